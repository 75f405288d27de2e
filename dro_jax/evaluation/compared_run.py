"""A run as a report reads it from its folder."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax import files
from dro_jax.checkpoints.folders import find_checkpoint, newest_step
from dro_jax.checkpoints.metadata import upgrade_metadata
from dro_jax.configs.renamed import read_saved
from dro_jax.errors import UsageError
from dro_jax.run.folder import configs, validation
from dro_jax.run.folder.validation import Validation


class Run(NamedTuple):
  """A run's folder, read.

  Attributes:
    name: as tables call it.
    folder: where it lies.
    metadata: its run.json.
    bindings: its config.gin, by what is bound.
    records: its metrics.jsonl.
    last: its newest validation, after `last_step`.
    best: that of its best checkpoint, after `best_step`; the newest one's where no best was measured.
  """

  name: str
  folder: pathlib.Path
  metadata: Mapping[str, Any]
  bindings: Mapping[str, str]
  records: Sequence[Mapping[str, Any]]
  last: Validation
  last_step: int
  best: Validation
  best_step: int


def read(folder: str, name: str) -> Run:
  """A run's folder.

  Raises:
    UsageError: there is none, or it never validated.
  """
  path = pathlib.Path(folder).expanduser()
  if not (path / 'run.json').exists():
    raise UsageError(f"no run in {folder}: pass a run's --model_dir, which holds run.json and metrics.jsonl.")
  steps = validation.steps(path)
  if not steps:
    raise UsageError(
      f'{folder} holds no validation (eval/STEP.npz): it held nothing out, or EVAL_EVERY=0. Train with '
      'held-out prompts (--eval_triplets, or --set VALIDATION_FRACTION=0.05).'
    )
  best = _best_step(path)
  best = best if best in steps else steps[-1]
  return Run(
    name, path, upgrade_metadata(json.loads((path / 'run.json').read_text(encoding='utf-8'))),
    bindings(path),
    list(files.json_lines(path / 'metrics.jsonl')),
    validation.load(path, steps[-1]), steps[-1], validation.load(path, best), best,
  )  # fmt: skip


def _best_step(folder: pathlib.Path) -> int | None:
  if newest_step(folder) is None:
    return None
  return int(find_checkpoint(folder).name)


def bindings(folder: pathlib.Path) -> dict[str, str]:
  """What the configuration that a run last went on with binds, by name; nothing, where a run is Python's."""
  text = configs.newest_text(folder, configs.CONFIG) or ''
  return {binding.name: binding.value for binding in read_saved(text, configs.CONFIG) if binding.name}
