"""T5's configuration."""

import dataclasses

from dro_jax.errors import UsageError
from dro_jax.models import layers
from dro_jax.models.family import check_config, freeze
from dro_jax.names import SpecialTokens

# Of T5's own vocabularies; a response's first input is padding.
TOKENS = SpecialTokens()
WAYS = ('auto', 'dense', 'blockwise', 'fused')
_SIZES = ('emb_dim', 'num_heads', 'head_dim', 'mlp_dim', 'num_encoder_layers', 'num_decoder_layers')


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """Size and kind of a T5.

  Args:
    vocab_size: rows of the embedding table; `None` leaves it to the run, which takes the vocabulary's size.
    emb_dim: width of the hidden states.
    num_heads: attention heads.
    head_dim: width of a head.
    mlp_dim: width of the MLP.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    mlp_activations: `('relu',)` in T5 1.0, `('gelu', 'linear')` (gated) in 1.1 and FLAN.
    logits_via_embedding: tie the logits to the embedding table, as 1.0 does; hidden states are then scaled by
      d^-½.
    dropout_rate: used only where a caller enables dropout.
    relative_attention_num_buckets: buckets of relative positions.
    relative_attention_max_distance: distances beyond it share a bucket.
    relative_bias_per_layer: each layer has its own bias, as in umT5 and T5X's scalable_t5; in T5 the layers
      of a side share one.
    attention: how attention is computed, the same numbers: 'dense', 'blockwise', 'fused' (TPUs; see
      `models.attention.ways`), or 'auto': blockwise for long rows on a CPU, else dense. Decoding is dense,
      and so is attention whose weights are dropped.
    dtype: activations, `float32` or `bfloat16`; parameters, norms, softmax and logits are float32.
    scan_layers: one compiled layer run over stacked parameters: compiles faster, the same numbers.
    remat: recompute in the backward pass, for less memory and the same numbers: each layer (True), or all of
      a layer but its products with parameters ('dots').

  Raises:
    UsageError: a field is out of range.
  """

  vocab_size: int | None = None
  emb_dim: int = 512
  num_heads: int = 8
  head_dim: int = 64
  mlp_dim: int = 2048
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  mlp_activations: tuple[str, ...] | list[str] = ('gelu', 'linear')
  logits_via_embedding: bool = False
  dropout_rate: float = 0.0
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  relative_bias_per_layer: bool = False
  attention: str = 'auto'
  dtype: str = 'float32'
  scan_layers: bool = False
  remat: bool | str = False

  def __post_init__(self) -> None:
    freeze(self, 'mlp_activations')
    check_config(self, _SIZES, layers.ACTIVATIONS)
    if self.attention not in WAYS:
      raise UsageError(
        f'attention={self.attention!r}: a T5 adds a relative bias to its scores, and has attention with a '
        f'bias by {", ".join(WAYS)} only: pass one of these, as Compute(attention=...) or --set '
        'ATTENTION=..., or leave it unset.'
      )


__all__ = ['T5Config']
