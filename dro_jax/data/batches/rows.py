"""Rows on a mesh: a batch of a loader, and rows of one prompt and one response that no table holds."""

from collections.abc import Sequence

import numpy as np

from dro_jax.data.batches.loader import Loader
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.types import Rows


def place_batch(mesh: Mesh, loader: Loader, step: int) -> Rows:
  """A batch of a loader on a mesh; every host reads its own rows."""
  num_rows = loader.num_rows(step)
  return partitioning.global_batch(mesh, loader.rows(step, *partitioning.host_rows(mesh, num_rows)), num_rows)


def single_rows(
  prompts: Sequence[np.ndarray],
  responses: Sequence[np.ndarray] = (),
  *,
  num_rows: int,
  prompt_length: int,
  response_length: int = 0,
  ids: Sequence[int] | np.ndarray = (),
) -> Rows:
  """One prompt a row, with its response where there are responses; the rows beyond them are padding.

  Args:
    prompts: tokens of each prompt, `num_rows` at most.
    responses: tokens of each prompt's response; none where the responses are still to be sampled.
    num_rows: rows in all, B.
    prompt_length: prompt tokens of a row, S.
    response_length: response tokens of a row, T.
    ids: `example_id` of each prompt; 0 where there are none.

  Returns:
    Numpy arrays; rewards are 0.
  """
  response_arrays = _padded(responses, num_rows, response_length)
  example_ids = np.zeros(num_rows, np.int32)
  example_ids[: len(ids)] = ids
  return Rows(
    *_padded(prompts, num_rows, prompt_length),
    *response_arrays,
    response_prompt=response_arrays[1],
    rewards=np.zeros((num_rows, 1), np.float32),
    example_id=example_ids[:, None],
    valid=(np.arange(num_rows) < len(prompts))[:, None],
  )


def _padded(texts: Sequence[np.ndarray], num_rows: int, length: int) -> np.ndarray:
  """Tokens, segments and positions, `[3, num_rows, length]`."""
  tokens, segments, positions = arrays = np.zeros((3, num_rows, length), np.int32)
  for row, text in enumerate(texts):
    tokens[row, : len(text)], segments[row, : len(text)] = text, 1
    positions[row, : len(text)] = np.arange(len(text))
  return arrays
