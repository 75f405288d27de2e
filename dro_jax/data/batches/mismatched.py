"""Mismatched pairs: the responses that a batch scores under other prompts, for KTO's estimate of the KL."""

from typing import NamedTuple

import numpy as np

from dro_jax.data.batches.placement import Placement


class Mismatch(NamedTuple):
  """The row whose responses each row decodes, and the prompt segment that each response is scored under.

  Attributes:
    source_row: `[rows]`.
    prompt: `[n]`, for each response a segment of the row that decodes it; 0 where no prompt of that row has
      another text.
  """

  source_row: np.ndarray
  prompt: np.ndarray


def mismatch(placement: Placement, prompt_index: np.ndarray) -> Mismatch:
  """Pairs each response with a prompt of another text in the row that decodes the response.

  Rows with prompts exchange their responses: by the smallest shift that pairs them all, or else by the
  permutation that pairs most. Within a row, responses take its prompts in turn, and skip those of their own
  text.
  """
  used, row = np.unique(placement.prompt_row, return_inverse=True)
  texts = [prompt_index[placement.prompt_example[row == b]] for b in range(len(used))]
  only = np.array([text[0] if (text == text[0]).all() else -1 for text in texts])
  pairable = (only[:, None] < 0) | (only[:, None] != prompt_index)
  decoded = _exchange(pairable, np.searchsorted(used, placement.response_row))
  source_row = np.arange(placement.rows)
  source_row[used] = used[decoded]
  host = np.argsort(decoded)[np.searchsorted(used, placement.response_row)]
  prompt = np.zeros(len(prompt_index), np.int64)
  for i in np.flatnonzero(pairable[host, np.arange(len(host))]):
    offered = texts[host[i]]  # In the order of their segments.
    turns = (placement.response_segment[i] - 1 + np.arange(len(offered))) % len(offered)
    prompt[i] = turns[(offered[turns] != prompt_index[i]).argmax()] + 1
  return Mismatch(source_row, prompt)


def _exchange(pairable: np.ndarray, source: np.ndarray) -> np.ndarray:
  """The row that each row decodes, a permutation.

  Args:
    pairable: whether row b has a prompt for response i, `[rows, n]`.
    source: each response's row, `[n]`.
  """
  rows = len(pairable)
  counts = np.stack([np.bincount(source, weights, rows) for weights in pairable])
  for shift in (*range(1, rows), 0):
    decoded = (np.arange(rows) + shift) % rows
    if counts[np.arange(rows), decoded].sum() == len(source):
      return decoded
  from scipy import optimize  # Its import is a fifth of a command's, and few batches need it.

  return optimize.linear_sum_assignment(counts, maximize=True)[1]
