"""Generated data for the data wing's tests: lengths with a translation set's statistics, small tables."""

from typing import NamedTuple

import numpy as np

from dro_jax.data.table import table
from dro_jax.data.text.vocabularies import vocabulary


class Lengths(NamedTuple):
  """What plans and layouts need of a token table."""

  prompt_lengths: np.ndarray
  response_lengths: np.ndarray
  prompt_index: np.ndarray
  rewards: np.ndarray


def translations(n: int = 7000, seed: int = 0) -> Lengths:
  """One response a prompt; log-lengths with the means, spreads and correlation of MLQE-PE's ro-en train set.

  Means are set to that set's exactly: 30.717 and 22.625 tokens. Rewards fall with length (correlation -.24).
  """
  rng = np.random.default_rng(seed)
  logs = rng.multivariate_normal(
    (3.379, 3.068), [[0.0932, 0.834 * 0.0989], [0.834 * 0.0989, 0.105]], n, method='cholesky'
  )
  prompt, response = np.clip(np.exp(logs).round(), (8, 5), (72, 66)).astype(int).T
  rewards = -0.24 * (response - response.mean()) / response.std() + np.sqrt(1 - 0.24**2) * rng.normal(size=n)
  return Lengths(_with_mean(prompt, 30.717, rng), _with_mean(response, 22.625, rng), np.arange(n), rewards)


def _with_mean(lengths: np.ndarray, mean: float, rng: np.random.Generator) -> np.ndarray:
  """Adds or takes one token here and there until the mean is right."""
  lengths = lengths.copy()
  while off := round(mean * len(lengths)) - lengths.sum():
    picked = rng.permutation(len(lengths))[: abs(off)]
    lengths[picked] += np.sign(off)
  return lengths


def ratings(prompts: int = 60, seed: int = 0, most: int = 14) -> Lengths:
  """Several responses to a prompt, as in WMT; rewards depend on the prompt."""
  rng = np.random.default_rng(seed)
  index = np.repeat(np.arange(prompts), rng.integers(1, most + 1, prompts))
  prompt = rng.integers(4, 60, prompts)
  response = np.maximum(2, (prompt[index] * rng.uniform(0.8, 1.3, len(index))).astype(int))
  order = rng.permutation(len(index))
  rewards = rng.normal(size=prompts)[index] + rng.normal(size=len(index))
  return Lengths(prompt[index][order], response[order], index[order], rewards[order])


def records(lengths: Lengths, seed: int = 0) -> list[dict]:
  """Records whose byte tokens have these lengths (EOS included); equal index, equal prompt."""
  rng = np.random.default_rng(seed)

  def text(length: int) -> str:
    return ''.join(rng.choice(list('abcdefgh'), length))

  prompts = {i: f'{i:03d}' + text(n - 4) for i, n in zip(lengths.prompt_index, lengths.prompt_lengths)}
  return [
    {
      'id': f'r{i}',
      'prompt': prompts[group],
      'response': text(n - 1),
      'reward': float(reward),
      'label': i % 2,
    }
    for i, (group, n, reward) in enumerate(
      zip(lengths.prompt_index, lengths.response_lengths, lengths.rewards)
    )
  ]


def small_table(directory, lengths: Lengths | None = None, **options) -> table.TokenTable:
  lengths = ratings(24) if lengths is None else lengths
  options = {'prompt_length': 64, 'response_length': 96} | options
  return table.build(records(lengths), vocabulary('bytes'), directory, **options)
