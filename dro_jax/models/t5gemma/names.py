"""Names of T5Gemma's parameters, here and in Hugging Face's files: one map for both directions."""

from collections.abc import Iterator, Mapping

from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.stacks import Path
from dro_jax.models.stored import PLAIN, TURNED, Stored
from dro_jax.models.t5gemma.config import T5GemmaConfig

EMBEDDING: Path = ('token_embedder', 'embedding')
PROMPT_EMBEDDING: Path = ('prompt_embedder', 'embedding')
_LOGITS = 'lm_head.out_proj.weight'
_TABLES = {side: f'model.{side}.embed_tokens.weight' for side in ('encoder', 'decoder')}
_IMAGES = ('model.encoder.vision_tower.', 'model.encoder.multi_modal_projector.')
_NORMS = {'attention': 'self_attn', 'cross': 'cross_attn', 'mlp': 'feedforward'}


def stored(config: T5GemmaConfig) -> list[Stored]:
  """Every stored array of a model's text, by the tree whose layers are not scanned."""
  return list(_stored(config))


def stored_name(name: str) -> str:
  """The name in `stored` of an array in a file; `text_model.` is in transformers' memory alone."""
  return name.replace('model.encoder.text_model.', 'model.encoder.')


def copies(config: T5GemmaConfig) -> dict[str, str]:
  """Further names of a table that is stored, by the name that each repeats."""
  if config.shared_embedding:
    return dict.fromkeys((_LOGITS, _TABLES['decoder']), _TABLES['encoder'])
  return {_LOGITS: _TABLES['decoder']}


def is_of_images(name: str) -> bool:
  """Whether text never reaches a stored array: T5Gemma 2 reads images too."""
  return name.startswith(_IMAGES) or name.endswith('.eoi_embedding')


def _stored(config: T5GemmaConfig) -> Iterator[Stored]:
  tables: Mapping[str, Path] = {'encoder': EMBEDDING}
  if not config.shared_embedding:
    tables = {'encoder': PROMPT_EMBEDDING, 'decoder': EMBEDDING}
  for side, path in tables.items():
    yield Stored(_TABLES[side], (path,), PLAIN)
  for side, own in (('encoder', config.encoder), ('decoder', config.decoder)):
    crosses = side == 'decoder' and not config.merged_attention
    for i in range(own.num_layers):
      yield from _layer(own, (side, f'layers_{i}'), f'model.{side}.layers.{i}', crosses)
    yield Stored(f'model.{side}.norm.weight', ((side, f'{side}_norm', 'scale'),), PLAIN)


def _layer(config: CausalConfig, layer: Path, name: str, crosses: bool) -> Iterator[Stored]:
  yield from _attention(config, (*layer, 'attention'), f'{name}.self_attn')
  if crosses:
    yield from _attention(config, (*layer, 'cross_attention'), f'{name}.cross_attn')
  for ours, its in zip((*config.mlp_inputs, 'wo'), ('gate_proj', 'up_proj', 'down_proj')):
    yield Stored(f'{name}.mlp.{its}.weight', ((*layer, 'mlp', ours, 'kernel'),), TURNED)
  for block, its in _NORMS.items():
    if block != 'cross' or crosses:
      for place in ('pre', 'post'):
        yield Stored(
          f'{name}.{place}_{its}_layernorm.weight', ((*layer, f'{place}_{block}_norm', 'scale'),), PLAIN
        )


def _attention(config: CausalConfig, path: Path, name: str) -> Iterator[Stored]:
  for ours, its in (('query', 'q_proj'), ('key', 'k_proj'), ('value', 'v_proj'), ('out', 'o_proj')):
    yield Stored(f'{name}.{its}.weight', ((*path, ours, 'kernel'),), TURNED)
  if config.qk_norm:
    for ours, its in (('query_norm', 'q_norm'), ('key_norm', 'k_norm')):
      yield Stored(f'{name}.{its}.weight', ((*path, ours, 'scale'),), PLAIN)
