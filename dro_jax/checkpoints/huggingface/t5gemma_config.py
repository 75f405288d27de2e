"""config.json of T5Gemma and T5Gemma 2 (text), as ours and back.

Each side's part of it says what a Gemma's config.json says, and is read and written as one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dro_jax.checkpoints.huggingface import causal_config
from dro_jax.errors import UsageError
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.t5gemma.config import COMMON, SIDED, T5GemmaConfig

Raw = Mapping[str, Any]

# What only the decoder's part of a config.json decides.
_DECODERS = ('logits_softcap', 'max_positions', 'pad', 'eos', 'start')
# Older files leave these out where they are T5Gemma's.
_TOKENS = {'pad_token_id': 0, 'eos_token_id': 1, 'bos_token_id': 2}
# transformers makes the mask of a window even where no layer has it.
_UNUSED_WINDOW = 4096
# T5Gemma 2 has a vision tower, which text does not reach: this is the smallest that transformers builds. No
# token's id is −1, so that each token has its vector in the table, the one that ends an image too.
_NO_IMAGES = {
  'vision_config': {
    'model_type': 'siglip_vision_model', 'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1,
    'num_attention_heads': 1, 'image_size': 4, 'patch_size': 2,
  },
  'mm_tokens_per_image': 4, 'eoi_token_index': -1,
}  # fmt: skip


class Kind(NamedTuple):
  """One model_type of transformers.

  Attributes:
    architecture: its class there.
    gemma: the model_type of the Gemma whose layers it has.
    merged: whether its decoder has merged attention, and shares its table with the encoder.
    sides: from a config.json to the encoder's part and the decoder's.
    parts: back from these.
    reach: from the encoder's `sliding_window` to the earlier and the later tokens that a token sees.
    window: back from these.
  """

  architecture: str
  gemma: str
  merged: bool
  sides: Callable[[Raw], tuple[Raw, Raw]]
  parts: Callable[[Raw, Raw], dict[str, Any]]
  reach: Callable[[int], tuple[int, int]]
  window: Callable[[tuple[int, int]], int]


def _uncapped(part: Raw) -> Raw:
  """A part without attention's soft cap, which transformers has in T5Gemma 2's files and does not use."""
  return {**part, 'attn_logit_softcapping': None}


KINDS: dict[str, Kind] = {
  't5gemma': Kind(
    'T5GemmaForConditionalGeneration',
    'gemma2',
    merged=False,
    sides=lambda raw: (raw['encoder'], raw['decoder']),
    parts=lambda encoder, decoder: {'encoder': encoder, 'decoder': decoder},
    reach=lambda window: (window, window),
    window=lambda reach: reach[1],
  ),
  't5gemma2': Kind(
    'T5Gemma2ForConditionalGeneration',
    'gemma3_text',
    merged=True,
    sides=lambda raw: (_uncapped(raw['encoder']['text_config']), _uncapped(raw['decoder'])),
    parts=lambda encoder, decoder: {'encoder': {'text_config': encoder, **_NO_IMAGES}, 'decoder': decoder},
    reach=lambda window: ((window + 1) // 2 - 1, window // 2),
    window=lambda reach: sum(reach) + 1,
  ),
}


def read_config(raw: Raw, source: Any) -> T5GemmaConfig:
  """The T5GemmaConfig of a config.json, with dropout 0.

  Raises:
    UsageError: the model is of another kind, or has what no model here has.
  """
  kind = KINDS.get(raw.get('model_type', ''))
  if kind is None:
    raise UsageError(
      f'{source}: its model_type is {raw.get("model_type")!r}: pass a checkpoint of {" or ".join(KINDS)}.'
    )
  if not raw.get('tie_word_embeddings', True):
    raise UsageError(f'{source}: its logits have weights of their own; here the table of tokens makes them.')
  try:
    encoder, decoder = (
      causal_config.read_config({**_TOKENS, **part, 'model_type': kind.gemma}, source)
      for part in kind.sides(raw)
    )
  except KeyError as error:
    raise UsageError(f'{source}: config.json lacks {error}: pass a complete copy.') from error
  return _joined(kind, encoder, decoder, source)


def _joined(kind: Kind, encoder: CausalConfig, decoder: CausalConfig, source: Any) -> T5GemmaConfig:
  """The model of two sides; these may differ in their sizes, windows and numbers of layers."""
  common = {name: getattr(decoder, name) for name in COMMON if name not in causal_config.COMPUTED}
  # The longer side shows all of the pattern.
  common['window_pattern'] = max(encoder, decoder, key=lambda side: side.num_layers).window_pattern
  own = {
    f'encoder_{name}': getattr(encoder, name)
    for name in SIDED
    if getattr(encoder, name) != getattr(decoder, name)
  }
  reach = kind.reach(encoder.window) if encoder.window else (0, 0)
  config = T5GemmaConfig(
    **common, **own, **{name: getattr(decoder, name) for name in SIDED},
    num_encoder_layers=encoder.num_layers, num_decoder_layers=decoder.num_layers,
    merged_attention=kind.merged, shared_embedding=kind.merged, window=decoder.window, encoder_reach=reach,
  )  # fmt: skip
  _check_alike(encoder, decoder, config, source)
  return config


def _check_alike(encoder: CausalConfig, decoder: CausalConfig, config: T5GemmaConfig, source: Any) -> None:
  """Refuses sides that differ in what `config` has for both."""
  pairs = []
  for side, made in ((encoder, config.encoder), (decoder, config.decoder)):
    side = dataclasses.replace(side, window=made.window, **{name: getattr(made, name) for name in _DECODERS})
    pairs += [map(dataclasses.asdict, (causal_config.explicit(side), causal_config.explicit(made)))]
  differing = sorted({name for read, made in pairs for name, value in read.items() if value != made[name]})
  if differing:
    raise UsageError(
      f'{source}: its encoder and its decoder differ in {", ".join(differing)}, in which they are alike here.'
    )


def config_json(config: T5GemmaConfig, dtype: str) -> dict[str, Any]:
  """The config.json of a model: of the first kind that can say all that its configuration says.

  Raises:
    UsageError: no kind in transformers has these switches together.
  """
  for name, kind in KINDS.items():
    ids = {'pad_token_id': config.pad, 'eos_token_id': config.eos, 'bos_token_id': config.start}
    common = {'vocab_size': config.vocab_size, 'dtype': dtype, **ids, 'tie_word_embeddings': True}
    windows = {'encoder': kind.window(config.encoder_reach), 'decoder': config.window}
    parts = []
    for side in ('encoder', 'decoder'):
      part = causal_config.KINDS[kind.gemma].write(getattr(config, side))
      window = windows[side] if config.window else _UNUSED_WINDOW
      parts.append(part | common | {'sliding_window': window})
    raw = {
      'architectures': [kind.architecture], 'model_type': name, 'is_encoder_decoder': True, **common,
      **kind.parts(*parts),
    }  # fmt: skip
    if _explicit(read_config(raw, 'export')) == _explicit(config):
      return raw
  raise causal_config.no_kind(config, KINDS)


def _explicit(config: T5GemmaConfig) -> tuple[Any, ...]:
  """All that decides a number."""
  sides = [causal_config.explicit(side) for side in (config.encoder, config.decoder)]
  reach = config.encoder_reach if any(config.encoder.windowed) else None
  return (*sides, config.merged_attention, config.shared_embedding, reach)
