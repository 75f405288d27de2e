"""Batches with a non-finite loss: kept in the run's folder, and run again by `--replay`.

MODEL_DIR/nonfinite/STEP/arrays.npz        the global batch as the step got it, with padding
MODEL_DIR/nonfinite/STEP/examples.jsonl    the same as text: a triplet file
"""

import os
import pathlib
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import dro_jax
from dro_jax import files
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError
from dro_jax.names import NEXT_TOKEN_KL
from dro_jax.step.state import TrainState
from dro_jax.types import LossOutput, LossTerm, Rows, Scores

FOLDER, _ARRAYS, _EXAMPLES = 'nonfinite', 'arrays.npz', 'examples.jsonl'
_LISTED = 8  # Ids that an error lists at most.


def keep(
  model_dir: pathlib.Path, step: int, rows: Rows, bad: np.ndarray, table: TokenTable, vocabulary: Vocabulary
) -> pathlib.Path:
  """Writes the batch of `step`, in which the records `bad` had non-finite losses; returns its folder.

  All processes call it; the first writes the whole folder or nothing.
  """
  folder = model_dir / FOLDER / str(step)
  rows = _on_this_host(rows)
  if jax.process_index() == 0:
    with files.replacing(folder) as building:
      building.mkdir(parents=True)
      np.savez(building / _ARRAYS, **dict(_named(rows)))
      with open(building / _EXAMPLES, 'w', encoding='utf-8') as file:
        for example in _examples(rows, bad, table, vocabulary):
          file.write(files.json_line(example))
  return folder


def _on_this_host(rows: Rows) -> Rows:
  """The whole global batch, in numpy."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(rows, tiled=True)
  return jax.device_get(rows)


def _named(rows: Rows) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(rows):
    yield jax.tree_util.keystr(path, simple=True, separator='.'), leaf


def _examples(
  rows: Rows, bad: np.ndarray, table: TokenTable, vocabulary: Vocabulary
) -> Iterator[dict[str, Any]]:
  """The examples as the step saw them: cut texts, scaled rewards (null where not finite)."""
  for row, slot in np.argwhere(rows.valid):
    record, reward = int(rows.example_id[row, slot]), float(rows.rewards[row, slot])
    tokens = rows.response_tokens[row][rows.response_segments[row] == slot + 1]
    yield {
      'id': table.ids[record], 'prompt': table.prompts[record], 'response': vocabulary.decode(tokens),
      'reward': reward if np.isfinite(reward) else None, 'finite': record not in bad,
    }  # fmt: skip


def listed(bad: np.ndarray, table: TokenTable) -> str:
  """The ids of the first records of `bad`, as errors list them."""
  return ', '.join(table.ids[int(i)] for i in bad[:_LISTED]) + (', ...' if len(bad) > _LISTED else '')


def step_of(folder: str | os.PathLike[str]) -> int:
  """The step of a kept batch.

  Raises:
    UsageError: the folder holds no batch.
  """
  path = pathlib.Path(folder).expanduser()
  if not (path.name.isdigit() and (path / _ARRAYS).is_file()):
    raise UsageError(
      f'--replay={folder} holds no batch: pass a folder MODEL_DIR/{FOLDER}/STEP, which has {_ARRAYS}.'
    )
  return int(path.name)


def load(folder: str | os.PathLike[str], like: Rows) -> Rows:
  """A kept batch, placed on the devices like `like`.

  Raises:
    UsageError: the file is damaged, or a run with other settings wrote it.
  """
  path = pathlib.Path(folder).expanduser() / _ARRAYS
  try:
    with np.load(path) as saved:
      arrays = dict(saved)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UsageError(f'{path} cannot be read ({error}): pass another batch.') from error
  shapes = {name: leaf.shape for name, leaf in _named(like)}
  saved_shapes = {name: array.shape for name, array in arrays.items()}
  if saved_shapes != shapes:
    names = saved_shapes.keys() | shapes.keys()
    name = min(name for name in names if saved_shapes.get(name) != shapes.get(name))
    raise UsageError(
      f'{path}: {name} has shape {saved_shapes.get(name)} there and {shapes.get(name)} in this run: pass the '
      'settings of the run that wrote it.'
    )
  leaves = [
    jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index, x=arrays[name]: x[index])
    for name, leaf in _named(like)
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def examine(
  evaluate: Callable[[TrainState, Rows], tuple[Scores, Scores | None, LossOutput]],
  state: TrainState,
  rows: Rows,
  table: TokenTable,
) -> dict[str, Any]:
  """Scores, values and losses of each example with a non-finite loss: id -> numbers.

  `evaluate(state, rows)` comes from `step.train_step.make_evaluate`; its results are on every host.
  """
  scores, reference, output = jax.device_get(evaluate(state, rows))
  rows = _on_this_host(rows)
  columns = {'reward': rows.rewards, 'logp': scores.logps}
  columns |= {} if reference is None else {'reference_logp': reference.logps}
  columns |= {} if scores.values is None else {'value': scores.values}
  of_units = {} if rows.units is None else {k: x for k, x in output.terms.items() if k != NEXT_TOKEN_KL}
  of_responses = {name: term for name, term in output.terms.items() if name not in of_units}
  columns |= {f'loss/{k}': x.per_example.reshape(rows.valid.shape) for k, x in of_responses.items()}
  columns |= {'units': _losses_of_units(rows, of_units.values())} if of_units else {}
  finite = np.all([np.isfinite(x_BR) for x_BR in columns.values()], axis=0)
  return {
    table.ids[int(rows.example_id[row, slot])]: {name: shown(x[row, slot]) for name, x in columns.items()}
    for row, slot in np.argwhere(rows.valid & ~finite)
  }


def shown(x: Any) -> float | str:
  """A finite number as it is; nan and inf as text, because JSON lacks them."""
  return float(x) if np.isfinite(x) else str(float(x))


def _losses_of_units(rows: Rows, terms: Iterable[LossTerm]) -> np.ndarray:
  """The summed loss of the pairs or groups that each response is in, `[B, R]`."""
  total = np.zeros(rows.valid.size)
  per_unit = sum(np.where(term.weights > 0, term.per_example, 0.0) for term in terms)
  for index, mask, loss in zip(rows.units.index, rows.units.mask, per_unit):
    np.add.at(total, index[mask], loss)
  return total.reshape(rows.valid.shape)


def origin(step: Callable[[TrainState, Rows], Any], state: TrainState, rows: Rows) -> str | None:
  """The innermost line of dro_jax at which the first NaN of `step(state, rows)` arises; `None` if none does.

  Runs the step operation by operation, which is slow and takes memory. With several processes it returns
  `None`, because one operation alone cannot run on a part of the devices.
  """
  if jax.process_count() > 1:
    return None
  package = dro_jax.__path__[0]
  try:
    with jax.debug_nans(True):
      jax.block_until_ready(jax.jit(step)(state, rows))
  except FloatingPointError as error:
    frames = [
      frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(package)
    ]
    last = frames[-1]
    return f'{pathlib.Path(last.filename).relative_to(package)}:{last.lineno}: {last.line}'
  return None
