"""A batch whose loss was not finite: kept beside the run, and gone through again by `--replay`.

MODEL_DIR/nonfinite/STEP/arrays.npz        the global batch as the step got it, padding and all
MODEL_DIR/nonfinite/STEP/examples.jsonl    the same for people, which is a triplet file too
"""

import os
import pathlib
import traceback
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import dro_jax
from dro_jax import files
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError
from dro_jax.step.state import TrainState
from dro_jax.types import Rows

FOLDER, _ARRAYS, _EXAMPLES = 'nonfinite', 'arrays.npz', 'examples.jsonl'


def keep(
  model_dir: pathlib.Path, step: int, rows: Rows, bad: np.ndarray, table: TokenTable, words: Vocabulary
) -> pathlib.Path:
  """Writes the batch of `step`, where the records `bad` had losses that are not finite; returns its folder.

  All processes call it; the first writes, and all of the folder or nothing is there.
  """
  folder = model_dir / FOLDER / str(step)
  rows = _on_this_host(rows)
  if jax.process_index() == 0:
    with files.replacing(folder) as building:
      building.mkdir(parents=True)
      np.savez(building / _ARRAYS, **dict(_named(rows)))
      with open(building / _EXAMPLES, 'w', encoding='utf-8') as file:
        for example in _examples(rows, bad, table, words):
          file.write(files.json_line(example))
  return folder


def _on_this_host(rows: Rows) -> Rows:
  """All of a global batch, numpy."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(rows, tiled=True)
  return jax.device_get(rows)


def _named(rows: Rows) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(rows):
    yield jax.tree_util.keystr(path, simple=True, separator='.'), leaf


def _examples(rows: Rows, bad: np.ndarray, table: TokenTable, words: Vocabulary) -> Iterator[dict[str, Any]]:
  """The batch's examples as the step saw them: texts as cut, rewards as scaled (null where not finite)."""
  for row, slot in np.argwhere(rows.valid):
    record, reward = int(rows.example_id[row, slot]), float(rows.rewards[row, slot])
    tokens = rows.response_tokens[row][rows.response_segments[row] == slot + 1]
    yield {
      'id': table.ids[record], 'prompt': table.prompts[record], 'response': words.decode(tokens),
      'reward': reward if np.isfinite(reward) else None, 'finite': record not in bad,
    }  # fmt: skip


def step_of(folder: str | os.PathLike) -> int:
  """The step that a kept batch is of.

  Raises:
    UsageError: the folder holds no such batch.
  """
  path = pathlib.Path(folder).expanduser()
  if not (path.name.isdigit() and (path / _ARRAYS).is_file()):
    raise UsageError(f'--replay={folder}: pass a folder MODEL_DIR/{FOLDER}/STEP, which has {_ARRAYS}.')
  return int(path.name)


def load(folder: str | os.PathLike, like: Rows) -> Rows:
  """A kept batch, placed on the devices as `like` is.

  Raises:
    UsageError: it is torn, or other settings made it.
  """
  path = pathlib.Path(folder).expanduser() / _ARRAYS
  try:
    with np.load(path) as saved:
      arrays = dict(saved)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UsageError(f'{path} cannot be read: {error}') from error
  wanted = {name: leaf.shape for name, leaf in _named(like)}
  found = {name: array.shape for name, array in arrays.items()}
  if found != wanted:
    name = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    raise UsageError(
      f'{path}: {name} has shape {found.get(name)} there and {wanted.get(name)} in this run: pass the '
      'settings of the run that wrote it.'
    )
  leaves = [
    jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index, x=arrays[name]: x[index])
    for name, leaf in _named(like)
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def examine(evaluate: Callable, state: TrainState, rows: Rows, table: TokenTable) -> dict[str, Any]:
  """What each example whose loss is not finite looks like to the networks: id -> numbers.

  `evaluate(state, rows)` is `step.train_step.make_evaluate`'s, with its results on every host.
  """
  scores, reference, output = jax.device_get(evaluate(state, rows))
  rows = _on_this_host(rows)
  columns = {'reward': rows.rewards, 'logp': scores.logps}
  columns |= {} if reference is None else {'reference_logp': reference.logps}
  columns |= {} if scores.values is None else {'value': scores.values}
  if rows.units is None:
    shape = rows.valid.shape
    columns |= {f'loss/{name}': term.per_example.reshape(shape) for name, term in output.terms.items()}
  else:
    columns['units'] = _losses_of_units(rows, output)
  finite = np.all([np.isfinite(x_BR) for x_BR in columns.values()], axis=0)
  return {
    table.ids[int(rows.example_id[row, slot])]: {name: shown(x[row, slot]) for name, x in columns.items()}
    for row, slot in np.argwhere(rows.valid & ~finite)
  }


def shown(x: Any) -> float | str:
  """A number, or the word for what is none, which JSON lacks."""
  return float(x) if np.isfinite(x) else str(float(x))


def _losses_of_units(rows: Rows, output: Any) -> np.ndarray:
  """The summed loss of the pairs or groups that each response is in, `[B, R]`."""
  total = np.zeros(rows.valid.size)
  per_unit = sum(np.where(term.weights > 0, term.per_example, 0.0) for term in output.terms.values())
  for index, mask, loss in zip(rows.units.index, rows.units.mask, per_unit):
    np.add.at(total, index[mask], loss)
  return total.reshape(rows.valid.shape)


def origin(step: Callable, state: TrainState, rows: Rows) -> str | None:
  """Where the first NaN of `step(state, rows)` arises: our innermost line; `None` where none does.

  The step is run operation by operation, which is slow and takes memory. With several processes nothing is
  looked for, since an operation by itself cannot be run on a part of the devices.
  """
  if jax.process_count() > 1:
    return None
  here = dro_jax.__path__[0]
  try:
    with jax.debug_nans(True):
      jax.block_until_ready(jax.jit(step)(state, rows))
  except FloatingPointError as error:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(here)]
    last = frames[-1]
    return f'{pathlib.Path(last.filename).relative_to(here)}:{last.lineno}: {last.line}'
  return None
