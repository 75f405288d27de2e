"""Placeholder triplets of full length: they have the shapes of a run, and nothing to learn."""

import numpy as np

from dro_jax.data import scaling
from dro_jax.data.storage import hashes
from dro_jax.data.table.table import Texts, TokenTable
from dro_jax.data.text.templates import PROMPT_LENGTH, RESPONSE_LENGTH
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.data.triplets import Triplets


def triplets(
  vocabulary: Vocabulary,
  *,
  prompts: int,
  responses: int = 2,
  prompt_length: int = PROMPT_LENGTH,
  response_length: int = RESPONSE_LENGTH,
  columns: tuple[str, ...] = (),
) -> Triplets:
  """Prompts with `responses` responses each, all of the longest length, with rewards 0, 1, ... a prompt.

  Args:
    vocabulary: of the tokens.
    prompts: number of prompts.
    responses: number of responses to each prompt.
    prompt_length: tokens of every prompt.
    response_length: tokens of every response.
    columns: names of other columns, all ½, so that a value is below the best reward.
  """
  count = prompts * responses
  rewards = np.tile(np.arange(responses, dtype=np.float64), prompts)
  index = np.repeat(np.arange(prompts), responses)
  names = _texts([f'prompt {i}' for i in range(prompts)])
  table = TokenTable(
    prompt_index=index, prompt_lengths=np.full(count, prompt_length),
    response_lengths=np.full(count, response_length), rewards=rewards, raw_rewards=rewards,
    columns=dict.fromkeys(columns, np.full(count, 0.5)), ids=_texts([str(i) for i in range(count)]),
    prompts=Texts(names._data, names._offsets, index),
    responses=_texts([f'response {i}' for i in range(count)]),
    prompt_digests=hashes.digests(names)[index], truncated=np.zeros(count, bool), weights=None, report={},
    vocabulary=vocabulary.spec, directory='', _records=np.arange(count),
    _tokens={
      'prompt': _tokens(vocabulary, prompts, prompt_length),
      'response': _tokens(vocabulary, count, response_length, responses),
    },
  )  # fmt: skip
  return Triplets(table, None, scaling.fit('none', rewards, index), {})


def _texts(texts: list[str]) -> Texts:
  encoded = [text.encode() for text in texts]
  offsets = np.cumsum([0, *map(len, encoded)])
  return Texts(np.frombuffer(b''.join(encoded), np.uint8), offsets, np.arange(len(texts)))


def _tokens(vocabulary: Vocabulary, count: int, length: int, kinds: int = 1) -> tuple[np.ndarray, np.ndarray]:
  """Texts of `kinds` different kinds, because equal responses to a prompt would be merged."""
  tokens = np.full((count, length), vocabulary.special.eos, np.int32)
  tokens[:, 0] = (tokens[:, 0] + np.arange(count) % kinds) % vocabulary.size
  return tokens.ravel(), np.arange(count + 1) * length
