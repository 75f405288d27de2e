"""Decoder-only models of Hugging Face: the names in their files."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dro_jax.checkpoints.huggingface import causal_config, vocabulary
from dro_jax.checkpoints.huggingface.format import Format, Places, Raw
from dro_jax.models.causal import names
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.stored import Layout, Stored

# The model within one that reads images too, in files and in config.json.
MULTIMODAL = {'gemma3': 'gemma3_text'}
SCORE = 'score.weight'

# Before the names of a trunk, if not their usual prefix: in files of the hub's GPT-2 and of models without
# logits; and in models that read images, of transformers 4 and 5.
_PREFIXES = ('', 'language_model.model.', 'model.language_model.')
_HEADS = ('lm_head.weight', 'embed_out.weight', 'language_model.lm_head.weight')
# Masks and frequencies, which earlier versions saved with the weights.
_BUFFERS = re.compile(r'(.*\.)?((attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq)')
_IMAGES = re.compile(r'(model\.)?(vision_tower|multi_modal_projector)\..*')


def read_config(raw: Raw, folder: Path) -> CausalConfig:
  """The configuration of a config.json; of a model that reads images, of its text model."""
  return causal_config.read_config(_text_model(raw), folder / 'config.json')


def _text_model(raw: Raw) -> Mapping[str, Any]:
  kind = MULTIMODAL.get(raw.get('model_type', ''))
  if kind is None:
    return raw
  ids = {name: raw[name] for name in ('eos_token_id', 'bos_token_id', 'pad_token_id') if name in raw}
  return {**causal_config.OMITTED[kind], **raw.get('text_config', {}), **ids, 'model_type': kind}


def find(present: Collection[str], config: CausalConfig, raw: Raw) -> Places:
  """The places of a model's weights in a file, by the prefix that its embedding has there."""
  stored = [each.name for each in names.stored(config)]
  usual, _, embedding = stored[0].partition('.')
  usual += '.'
  prefix = next((each for each in (usual, *_PREFIXES) if each + embedding in present), usual)
  places = {name: prefix + name.removeprefix(usual) for name in stored if name.startswith(usual)}
  head = next((name for name in _HEADS if name in present), None)
  copies = {}
  if config.logits_via_embedding:
    copies = {name: places[stored[0]] for name in _HEADS if name in present}
  else:
    places |= {name: head or name for name in stored if name in _HEADS}
  unread = [_BUFFERS] + ([_IMAGES] if raw['model_type'] in MULTIMODAL else [])
  return Places(
    places, copies, frozenset(name for name in present if any(each.fullmatch(name) for each in unread))
  )


_ROW = Layout(lambda array, heads: [array[0]], lambda arrays, heads: arrays[0][None])


def reward_stored(config: CausalConfig) -> list[Stored]:
  """The arrays of a reward model: a trunk without logits, and one row that reads its last state."""
  trunk = [
    each._replace(paths=tuple(('trunk', *path) for path in each.paths))
    for each in names.stored(config)
    if each.name not in _HEADS
  ]
  return [*trunk, Stored(SCORE, (('head', 'kernel'),), _ROW)]


FORMAT = Format(
  kind='a decoder-only language model',
  model_types=(*causal_config.KINDS, *MULTIMODAL),
  read_config=read_config,
  config_json=causal_config.config_json,
  stored=names.stored,
  find=find,
  tokenizer=vocabulary.find_files,
  reward_stored=reward_stored,
)
