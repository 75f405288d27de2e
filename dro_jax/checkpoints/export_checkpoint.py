"""The `export_checkpoint` command: a policy in the formats of other projects."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax

from dro_jax import files
from dro_jax.checkpoints import adapters, policy
from dro_jax.checkpoints.huggingface import peft
from dro_jax.checkpoints.huggingface import write as huggingface
from dro_jax.checkpoints.t5x import write as t5x
from dro_jax.errors import UsageError
from dro_jax.models.family import Config
from dro_jax.models.policy import family_of, parameter_shapes, saved_config
from dro_jax.models.t5.config import T5Config

DTYPES = ('float32', 'bfloat16', 'float16')
FORMATS = ('huggingface', 't5x')

_log = logging.getLogger(__name__)


def export_checkpoint(
  init_from: str,
  output: str,
  format: str = 'huggingface',
  *,
  dtype: str | None = None,
  scan_layers: bool = False,
  vocabulary: str | None = None,
  merged: bool = False,
  base: str | None = None,
  base_name: str | None = None,
) -> dict[str, Any]:
  """The `export_checkpoint` command: writes a policy as another project's checkpoint.

  Args:
    init_from: a run's folder (its best step, or the newest), one step of it, or an imported folder.
    output: the folder to write, which must not exist.
    format: 'huggingface' (transformers loads it) or 't5x'.
    dtype: of the weights; by default as an imported source stored them, and float32 after training.
    scan_layers: of 't5x', write examples/scalable_t5's tree instead of examples/t5's.
    vocabulary: where the checkpoint's vocabulary is now; `None` reads it where the checkpoint found it.
    merged: of an adapter's checkpoint, write its base with the adapter merged into it, a whole model; False
      writes the adapter alone, for PEFT.
    base: of an adapter's checkpoint, where its base lies now; `None` reads it where it lay.
    base_name: of an adapter that is written alone, what transformers loads its base by: a name on the hub or
      a folder. `None` takes what the base was imported from.

  Returns:
    The folder, and `notes`: parts that were left out, and facts that a reader of the folder needs.

  Raises:
    UsageError: there is no such checkpoint, the format cannot hold it, or `output` exists.
  """
  files.output_folder(output)
  saved = policy.policy_metadata(init_from)
  adapter = adapters.entry_of(saved)
  if adapter is None and (merged or base is not None):
    raise UsageError(
      f'{init_from} holds a whole model, and MERGED and LORA_BASE are of adapters: remove them.'
    )
  if adapter is not None and not merged:
    name = base_name or adapters.transformers_name(base or adapter.base)
    return _export_adapter(init_from, output, format, adapter, name)
  if base_name is not None:
    raise UsageError(
      f'BASE_NAME={base_name} names the base of an adapter that is written alone, and this export is a whole '
      'model: remove it.'
    )
  config, dtype = saved_config(saved), dtype or saved.get('stored_dtype', 'float32')
  writer = _writer(format, dtype, config, scan_layers, saved.get('step', 0))
  target = files.absolute(output)
  if target.exists():
    raise UsageError(f'{target} exists already: name a folder that does not, or remove it first.')
  stream = functools.partial(adapters.stream_merged, init_from, base=base)
  with files.replacing(target) as staged:
    staged.mkdir(parents=True)
    notes = writer(staged, stream, config, dtype=dtype, vocabulary=vocabulary or saved.get('vocabulary'))
  notes += _left_out(saved)
  for note in notes:
    _log.info('%s: %s', target, note)
  count = sum(math.prod(shape) for shape in parameter_shapes(config).values())
  return {'output': str(target), 'parameters': count, 'dtype': dtype, 'notes': notes}


def _export_adapter(
  init_from: str, output: str, format: str, adapter: adapters.Saved, base_name: str | None
) -> dict[str, Any]:
  """Writes an adapter alone, in PEFT's layout."""
  if format != 'huggingface':
    raise UsageError(
      f'FORMAT={format!r} cannot hold an adapter alone: pass --set MERGED=True, or --set FORMAT=huggingface.'
    )
  target = files.absolute(output)
  if target.exists():
    raise UsageError(f'{target} exists already: name a folder that does not, or remove it first.')
  params, config = adapters.read_unrolled(init_from)
  with files.replacing(target) as staged:
    staged.mkdir(parents=True)
    notes = peft.write(staged, params, adapter.lora, config, base_name)
  notes = [peft.how_to_load(target, config, base_name), *notes]
  for note in notes:
    _log.info('%s: %s', target, note)
  count = sum(x.size for x in jax.tree.leaves(params))
  return {'output': str(target), 'parameters': count, 'dtype': 'float32', 'notes': notes}


def _writer(
  format: str, dtype: str, config: Config, scan_layers: bool, step: int
) -> Callable[..., list[str]]:
  if dtype not in DTYPES:
    raise UsageError(f'DTYPE={dtype!r} is not a type for weights: pass one of {DTYPES}.')
  if format not in FORMATS:
    raise UsageError(f'FORMAT={format!r} is unknown: pass one of {FORMATS}.')
  if format == 'huggingface':
    return huggingface.write
  if not isinstance(config, T5Config):
    raise UsageError(
      f"FORMAT='t5x' is for T5 models, and this one is of the family {family_of(config).name!r}: pass "
      '--set FORMAT=huggingface.'
    )
  return functools.partial(t5x.write, scan_layers=scan_layers or config.relative_bias_per_layer, step=step)


def _left_out(saved: dict[str, Any]) -> list[str]:
  """Notes on the parts of a run that an export lacks."""
  value = ['without the value network, which only dro_jax knows'] if saved.get('value') else []
  return value + (['without the optimisers and the reference'] if 'step' in saved else [])


__all__ = ['export_checkpoint']
