"""Names of T5's parameters, here and in Hugging Face's files: one map for both directions."""

from collections.abc import Iterator

from dro_jax.models.stacks import Path, in_stack
from dro_jax.models.stored import PLAIN, TURNED, Stored
from dro_jax.models.t5.config import T5Config

KIND = 'an encoder-decoder T5'
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
      for torch_name, path in _layer(side, len(config.mlp_activations)):
        names[side, f'layers_{i}', *path] = f'{side}.block.{i}.layer.{torch_name}.weight'
      if config.relative_bias_per_layer:
        names[side, f'layers_{i}', *RELATIVE_BIAS] = _relative_bias(side, i)
  if not config.logits_via_embedding:
    names[LOGITS] = 'lm_head.weight'
  return names


def stored(config: T5Config) -> list[Stored]:
  """Every array of a Hugging Face file."""
  return [
    Stored(name, (path,), PLAIN if path == EMBEDDING else TURNED) for path, name in unrolled(config).items()
  ]


def _relative_bias(side: str, layer: int) -> str:
  return f'{side}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight'


def _layer(side: str, num_activations: int) -> Iterator[tuple[str, Path]]:
  """Each parameter of a layer: its name in Hugging Face's files, and its path here."""
  attentions = [('SelfAttention', 'attention', 'pre_attention_layer_norm')]
  if side == 'decoder':
    attentions = [
      ('SelfAttention', 'self_attention', 'pre_self_attention_layer_norm'),
      ('EncDecAttention', 'encoder_decoder_attention', 'pre_cross_attention_layer_norm'),
    ]
  for i, (torch_name, attention, norm) in enumerate(attentions):
    yield f'{i}.layer_norm', (norm, 'scale')
    for letter, name in (('q', 'query'), ('k', 'key'), ('v', 'value'), ('o', 'out')):
      yield f'{i}.{torch_name}.{letter}', (attention, name, 'kernel')
  inputs = ['wi'] if num_activations == 1 else [f'wi_{i}' for i in range(num_activations)]
  yield f'{len(attentions)}.layer_norm', ('pre_mlp_layer_norm', 'scale')
  for name in (*inputs, 'wo'):
    yield f'{len(attentions)}.DenseReluDense.{name}', ('mlp', name, 'kernel')


def shape(config: T5Config, path: Path) -> tuple[int, ...]:
  """The shape of one layer's parameter, or of one outside the layers."""
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
  """The shape of every parameter, scanned or not as the configuration says."""
  flat = {}
  for path in unrolled(config):
    layer_shape = shape(config, path)
    stack, _ = in_stack(path) or (None, 0)
    if config.scan_layers and stack:
      layers = config.num_encoder_layers if path[0] == 'encoder' else config.num_decoder_layers
      flat[stack] = (layer_shape[0], layers, *layer_shape[1:])
    else:
      flat[path] = layer_shape
  return flat
