"""The configuration of T5Gemma and T5Gemma 2: an encoder's sizes beside a decoder's, and their switches."""

import dataclasses

from dro_jax.errors import UsageError
from dro_jax.models import layers
from dro_jax.models.causal.config import CausalConfig, RopeScaling, as_scaling
from dro_jax.models.family import check_config, freeze

_SIZES = ('emb_dim', 'num_heads', 'head_dim', 'mlp_dim', 'num_encoder_layers', 'num_decoder_layers')
# Sizes that an encoder may have to itself.
SIDED = ('emb_dim', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim')
# Fields that both sides share with a decoder-only model.
COMMON = (
  'vocab_size', 'mlp_activations', 'norm_epsilon', 'qk_norm', 'max_positions', 'rope_theta',
  'rope_local_theta', 'rope_scaling', 'window_pattern', 'query_scale', 'attention_softcap', 'logits_softcap',
  'pad', 'eos', 'start', 'dropout_rate', 'dtype', 'scan_layers', 'remat',
  'attention',
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5GemmaConfig:
  """Size and kind of a T5Gemma; the defaults are those of T5Gemma 2, 270M-270M.

  Both sides are stacks of Gemma's layers: norms before and after each block, scale 1 + w, token vectors
  multiplied by √emb_dim, logits tied to the decoder's table. A field without a side is of both.

  Args:
    vocab_size: rows of each embedding table; `None` leaves it to the run, which takes the vocabulary's size.
    emb_dim: width of the decoder's hidden states.
    num_heads: heads of queries of the decoder.
    num_kv_heads: heads of keys and values of the decoder, which divide `num_heads`; `None` for as many.
    head_dim: width of a head of the decoder.
    mlp_dim: width of the decoder's MLP.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    encoder_emb_dim: the encoder's, where it is not the decoder's; so are the four sizes below.
    encoder_num_heads: see `encoder_emb_dim`.
    encoder_num_kv_heads: see `encoder_emb_dim`.
    encoder_head_dim: see `encoder_emb_dim`.
    encoder_mlp_dim: see `encoder_emb_dim`.
    mlp_activations: `('gelu', 'linear')` (gated, tanh).
    norm_epsilon: added to the variance.
    merged_attention: the decoder reads its own tokens and the prompt in one softmax, with the same
      parameters (T5Gemma 2); otherwise it has a block of its own for the prompt (T5Gemma).
    shared_embedding: encoder and decoder have one table (T5Gemma 2).
    qk_norm: a norm of queries and keys before their rotation: `head`, over each head (T5Gemma 2); None.
    max_positions: the context that the model was trained for, if known.
    rope_theta: the base of the rotary frequencies.
    rope_local_theta: the base in layers with a window; `None` for the same, and then scaled alike.
    rope_scaling: how the frequencies are stretched; `None` for not.
    window: a token of a response sees this many tokens of it, itself included, in the layers of
      `window_pattern`; `None` for all, in the encoder too.
    window_pattern: which layers have a window, a tuple that repeats over the layers of each side.
    encoder_reach: how many earlier tokens and how many later ones a prompt's token sees in those layers.
    query_scale: multiplies queries; `None` is 1 / √head_dim.
    attention_softcap: c in c tanh(s / c) of attention scores; `None` for none.
    logits_softcap: the same of logits.
    pad: the id that fills up responses; masks never depend on it.
    eos: the id that ends a response.
    start: a response's first input, BOS.
    dropout_rate: used only where a caller enables dropout.
    dtype: activations, `float32` or `bfloat16`; parameters, norms, softmax and logits are float32.
    scan_layers: one compiled layer run over stacked parameters: compiles faster, the same numbers.
    remat: recompute in the backward pass, for less memory and the same numbers: each layer (True), or all of
      a layer but its products with parameters ('dots').
    attention: one of `models.attention.ways.WAYS`.

  Raises:
    UsageError: a field is out of range.
  """

  vocab_size: int | None = None
  emb_dim: int = 640
  num_heads: int = 4
  num_kv_heads: int | None = 1
  head_dim: int = 256
  mlp_dim: int = 2048
  num_encoder_layers: int = 18
  num_decoder_layers: int = 18
  encoder_emb_dim: int | None = None
  encoder_num_heads: int | None = None
  encoder_num_kv_heads: int | None = None
  encoder_head_dim: int | None = None
  encoder_mlp_dim: int | None = None
  mlp_activations: tuple[str, ...] | list[str] = ('gelu', 'linear')
  norm_epsilon: float = 1e-6
  merged_attention: bool = True
  shared_embedding: bool = True
  qk_norm: str | None = 'head'
  max_positions: int | None = None
  rope_theta: float = 1_000_000.0
  rope_local_theta: float | None = 10_000.0
  rope_scaling: RopeScaling | None = None
  window: int | None = 512
  window_pattern: tuple[bool, ...] | list[bool] = (True, True, True, True, True, False)
  encoder_reach: tuple[int, int] | list[int] = (255, 256)
  query_scale: float | None = None
  attention_softcap: float | None = None
  logits_softcap: float | None = None
  pad: int = 0
  eos: int = 1
  start: int = 2
  dropout_rate: float = 0.0
  dtype: str = 'float32'
  scan_layers: bool = False
  remat: bool | str = False
  attention: str = 'auto'

  def __post_init__(self) -> None:
    freeze(self, 'mlp_activations', 'window_pattern', 'encoder_reach')
    object.__setattr__(self, 'rope_scaling', as_scaling(self.rope_scaling))
    own = tuple(name for name in map('encoder_{}'.format, SIDED) if getattr(self, name) is not None)
    check_config(self, (*_SIZES, *own), layers.ACTIVATIONS)
    _check_sides(self)

  @property
  def decoder(self) -> CausalConfig:
    """The decoder's stack, as a decoder-only model has it."""
    return self._side({name: getattr(self, name) for name in SIDED}, self.num_decoder_layers, self.window)

  @property
  def encoder(self) -> CausalConfig:
    """The encoder's stack; its window is the number of tokens that a token sees, on both sides of it."""
    own = {name: getattr(self, f'encoder_{name}') for name in SIDED}
    sizes = {name: getattr(self, name) if size is None else size for name, size in own.items()}
    window = None if self.window is None else sum(self.encoder_reach) + 1
    return self._side(sizes, self.num_encoder_layers, window)

  def _side(self, sizes: dict[str, int], num_layers: int, window: int | None) -> CausalConfig:
    common = {name: getattr(self, name) for name in COMMON}
    return CausalConfig(
      **sizes, **common, num_layers=num_layers, window=window, norm='rms_plus_one', norm_place='sandwich',
      scale_embedding=True,
    )  # fmt: skip


def _check_sides(config: T5GemmaConfig) -> None:
  if len(config.encoder_reach) != 2 or min(config.encoder_reach) < 0:
    raise UsageError(
      f'encoder_reach={config.encoder_reach}: pass two numbers of tokens, 0 or more: of the earlier ones and '
      'of the later ones that a token of a prompt sees.'
    )
  width, one_width = config.encoder.emb_dim, config.merged_attention or config.shared_embedding
  if one_width and width != config.decoder.emb_dim:
    raise UsageError(
      f'encoder_emb_dim={width} and emb_dim={config.emb_dim}: merged attention and a shared embedding apply '
      'the same parameters to both sides, so that these need one width. Pass merged_attention=False and '
      'shared_embedding=False, or one width.'
    )


__all__ = ['T5GemmaConfig']
