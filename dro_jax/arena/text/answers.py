"""Answers of a policy to prompts: draws them, scores them, and measures them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from dro_jax.data.text import tokenise, vocabularies
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run.sampling import generation, rewards
from dro_jax.run.sampling.decoding import Decoding
from dro_jax.statistics import diversity
from dro_jax.types import Params

GRAMS = (1, 2, 3)
_BATCH = 256  # Prompts answered, and responses scored, at once.
_DRAWS = 100_000  # Samples of a purpose at most, each with a number of its own.
_PURPOSES = ('train', 'validation', 'test', 'own validation', 'own test', 'ceilings')


class Samples(NamedTuple):
  """K answers to each of P prompts, those to one prompt next to each other: N = P·K."""

  prompts: list[str]
  tokens: list[np.ndarray]
  texts: list[str]
  logps: np.ndarray
  rewards: np.ndarray


class Tools(NamedTuple):
  """Functions that answer and score, compiled once.

  Attributes:
    draw: from parameters, prompts, K, a purpose and a seed to samples.
    decode: from parameters and prompts to the most probable answer, token by token.
    score: from parameters and samples to log π(y|x), `[N]`.
    mesh: where parameters live.
  """

  draw: Callable[..., Samples]
  decode: Callable[[Params, Sequence[str]], Samples]
  score: Callable[[Params, Samples], np.ndarray]
  mesh: Mesh


def make_tools(policy: nn.Module, words: vocabularies.Vocabulary, mesh: Mesh, response_length: int) -> Tools:
  """Functions that answer and score with any policy of this kind, at temperature 1 without truncation."""
  drawing = Decoding(response_length, batch_size=_BATCH)
  answer = generation.make_generator(policy, mesh, drawing)
  greedy = generation.make_generator(policy, mesh, dataclasses.replace(drawing, temperature=0.0))

  def draw(params: Params, prompts: Sequence[str], num: int, purpose: str, seed: int) -> Samples:
    asked = [prompt for prompt in prompts for _ in range(num)]
    first = (seed * len(_PURPOSES) + _PURPOSES.index(purpose)) * _DRAWS
    return rewarded(answer, params, asked, range(first, first + len(asked)))

  def decode(params: Params, prompts: Sequence[str]) -> Samples:
    return rewarded(greedy, params, list(prompts), range(len(prompts)))

  def rewarded(by: generation.Generator, params: Params, asked: list[str], ids: range) -> Samples:
    answers = list(by(params, _prompt_tokens(words, asked), ids))
    texts = [words.decode(each.tokens) for each in answers]
    logps = np.array([each.logp for each in answers])
    graded = np.array(rewards.graded_match(asked, texts))
    return Samples(asked, [each.tokens for each in answers], texts, logps, graded)

  # The tokens as they were sampled: tokenising the text again may give others.
  scored = generation.make_scorer(policy, mesh, max_length=response_length, batch_size=_BATCH)

  def score(params: Params, samples: Samples) -> np.ndarray:
    return scored(params, _prompt_tokens(words, samples.prompts), samples.tokens).astype(np.float64)

  return Tools(draw, decode, score, mesh)


def _prompt_tokens(words: vocabularies.Vocabulary, prompts: Sequence[str]) -> list[np.ndarray]:
  return [ids for ids, _ in tokenise.prompts(prompts, words, by_chat=words.chat is not None)]


def by_prompt(x_N: np.ndarray, num: int) -> np.ndarray:
  """Means over the `num` answers to each prompt, `[P]`."""
  return np.asarray(x_N, np.float64).reshape(-1, num).mean(1)


def wins(own_PK: np.ndarray, other_PK: np.ndarray) -> np.ndarray:
  """Share of a prompt's (own, other) pairs of answers that the own one wins, ties half, `[P]`."""
  margin_PKK = own_PK[:, :, None] - other_PK[:, None, :]
  return ((np.sign(margin_PKK) + 1) / 2).mean((1, 2))


def about(samples: Samples, num: int) -> dict[str, Any]:
  """Measures of answers, K to a prompt: means by prompt, `[P]`, and distinct-n of all."""
  exact = np.array(rewards.exact_match(samples.prompts, samples.texts))
  tokens_PK = [[x.tolist() for x in samples.tokens[i : i + num]] for i in range(0, len(samples.tokens), num)]
  different = [len(set(samples.texts[i : i + num])) / num for i in range(0, len(samples.texts), num)]
  return {
    'reward': by_prompt(samples.rewards, num),
    'best': samples.rewards.reshape(-1, num).max(1),
    'exact': by_prompt(exact, num),
    'length': by_prompt(np.array([len(tokens) for tokens in samples.tokens]), num),
    'different': np.array(different),
    **{f'distinct_{n}': diversity.distinct(tokens_PK, n).value for n in GRAMS},
  }
