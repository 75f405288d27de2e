"""What a T5's parameters are called, here and in Hugging Face's files: one map for both directions."""

from collections.abc import Iterator, Mapping

from dro_jax.errors import UsageError
from dro_jax.models.stacks import Path, in_stack
from dro_jax.models.t5.config import T5Config

EMBEDDING: Path = ('token_embedder', 'embedding')
LOGITS: Path = ('decoder', 'logits_dense', 'kernel')
RELATIVE_BIAS: Path = ('relpos_bias', 'rel_embedding')


def unrolled(config: T5Config) -> dict[Path, str]:
  """Every parameter's path in the tree whose layers are not scanned, and its Hugging Face name."""
  names = {EMBEDDING: 'shared.weight'}
  for side, num_layers in (('encoder', config.num_encoder_layers), ('decoder', config.num_decoder_layers)):
    names[side, f'{side}_norm', 'scale'] = f'{side}.final_layer_norm.weight'
    if not config.relative_bias_per_layer:
      names[side, *RELATIVE_BIAS] = _relative_bias(side, 0)
    for i in range(num_layers):
      for theirs, ours in _layer(side, len(config.mlp_activations)):
        names[side, f'layers_{i}', *ours] = f'{side}.block.{i}.layer.{theirs}.weight'
      if config.relative_bias_per_layer:
        names[side, f'layers_{i}', *RELATIVE_BIAS] = _relative_bias(side, i)
  if not config.logits_via_embedding:
    names[LOGITS] = 'lm_head.weight'
  return names


def _relative_bias(side: str, layer: int) -> str:
  return f'{side}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight'


def _layer(side: str, num_activations: int) -> Iterator[tuple[str, Path]]:
  attentions = [('SelfAttention', 'attention', 'pre_attention_layer_norm')]
  if side == 'decoder':
    attentions = [
      ('SelfAttention', 'self_attention', 'pre_self_attention_layer_norm'),
      ('EncDecAttention', 'encoder_decoder_attention', 'pre_cross_attention_layer_norm'),
    ]
  for i, (theirs, ours, norm) in enumerate(attentions):
    yield f'{i}.layer_norm', (norm, 'scale')
    for letter, name in (('q', 'query'), ('k', 'key'), ('v', 'value'), ('o', 'out')):
      yield f'{i}.{theirs}.{letter}', (ours, name, 'kernel')
  inputs = ['wi'] if num_activations == 1 else [f'wi_{i}' for i in range(num_activations)]
  yield f'{len(attentions)}.layer_norm', ('pre_mlp_layer_norm', 'scale')
  for name in (*inputs, 'wo'):
    yield f'{len(attentions)}.DenseReluDense.{name}', ('mlp', name, 'kernel')


def shape(config: T5Config, path: Path) -> tuple[int, ...]:
  """Of one layer's parameter, or of one outside the layers."""
  joined = config.num_heads * config.head_dim
  shapes = {
    'embedding': (config.vocab_size, config.emb_dim),
    'scale': (config.emb_dim,),
    'rel_embedding': (config.num_heads, config.relative_attention_num_buckets),
    'logits_dense': (config.emb_dim, config.vocab_size),
    'out': (joined, config.emb_dim),
    'wo': (config.mlp_dim, config.emb_dim),
  }
  inner = config.mlp_dim if path[-2].startswith('wi') else joined
  return shapes.get(path[-1]) or shapes.get(path[-2]) or (config.emb_dim, inner)


def shapes(config: T5Config) -> dict[Path, tuple[int, ...]]:
  """Of every parameter, scanned or not as the configuration says."""
  flat = {}
  for path in unrolled(config):
    own = shape(config, path)
    stack, _ = in_stack(path) or (None, 0)
    if config.scan_layers and stack:
      layers = config.num_encoder_layers if path[0] == 'encoder' else config.num_decoder_layers
      flat[stack] = (own[0], layers, *own[1:])
    else:
      flat[path] = own
  return flat


def check(source: object, wanted: Mapping | set, found: Mapping | set, described: str) -> None:
  """Refuses a source whose weights are not exactly those wanted.

  Args:
    source: where the weights lie.
    wanted: their names.
    found: the source's names.
    described: what decides which are wanted.
  """
  missing, left_over = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
  if missing:
    raise UsageError(
      f'{source}: {len(missing)} weights of {described} are missing, the first is {missing[0]}.'
    )
  if left_over:
    raise UsageError(
      f'{source}: {len(left_over)} weights have no place in {described}, the first is {left_over[0]}.'
    )
