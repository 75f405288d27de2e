"""Answers to prompts, drawn in batches from a policy on a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import UInt32

from dro_jax.data.batches.rows import single_rows
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError
from dro_jax.models import beam_search, sampling, scoring
from dro_jax.models.policy import refuse_long_texts
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run.sampling.decoding import Decoding, refuse_beams
from dro_jax.types import Array, Params, Rows

_PROMPT_MULTIPLE = 32  # Prompts are padded to a multiple, so that few lengths are compiled.


class Response(NamedTuple):
  """An answer: its text, its log π(y|x) in nats, its tokens, and whether it ended by itself."""

  text: str
  logp: float
  tokens: np.ndarray
  ended: bool

  def record(self, **logps: float) -> dict[str, Any]:
    """Its fields in a file of answers; `logps` are its log-probs under other policies, by their fields."""
    return {
      'response': self.text, 'logp': self.logp, **logps, 'tokens': len(self.tokens), 'ended': self.ended
    }  # fmt: skip


class Answer(NamedTuple):
  """A response's tokens (EOS included unless cut) and its log π(y|x) in nats, of the policy as trained."""

  tokens: np.ndarray
  logp: float

  def decoded(self, vocabulary: Vocabulary) -> Response:
    """The answer with its text."""
    has_ended = bool(self.tokens[-1] == vocabulary.special.eos)
    return Response(vocabulary.decode(self.tokens), self.logp, self.tokens, has_ended)


Generator = Callable[[Params, Sequence[np.ndarray], Sequence[int]], Iterator[Answer]]


def make_generator(policy: nn.Module, mesh: Mesh, decoding: Decoding) -> Generator:
  """Returns `generate(params, prompts, ids)`: an answer to each prompt's tokens, in order.

  Args:
    policy: the model.
    mesh: rows are split over it.
    decoding: how it answers. `batch_size` is rounded up to a number that the mesh divides; `seed` decides,
      with a prompt's id, the sample for the prompt, whatever the batch.

  Raises:
    UsageError: a beam search is to draw, or several answers to a prompt are to come from one id.
  """
  refuse_beams(decoding)
  if decoding.num_samples != 1:
    raise UsageError(
      f'num_samples={decoding.num_samples}: each prompt is answered once here. Pass num_samples=1, and a '
      'prompt as often as it is to be answered.'
    )
  max_length, num_rows = decoding.max_length, partitioning.divisible_rows(mesh, decoding.batch_size)
  sample, key = (
    # One batch size and seed: they are not compiled.
    _make_sample(policy, mesh, dataclasses.replace(decoding, batch_size=1, seed=0)),
    jax.device_get(jax.random.key_data(jax.random.key(decoding.seed))),
  )

  def generate(params: Params, prompts: Sequence[np.ndarray], ids: Sequence[int]) -> Iterator[Answer]:
    for start in range(0, len(prompts), num_rows):
      chunk = prompts[start : start + num_rows]
      length = _padded_length(policy, chunk, max_length)
      chunk_ids = ids[start : start + num_rows]
      rows = single_rows(chunk, num_rows=num_rows, prompt_length=length, ids=chunk_ids)
      samples = jax.device_get(sample(params, partitioning.place_rows(mesh, rows), key))
      for row in range(len(chunk)):
        yield Answer(samples.tokens[row, : samples.lengths[row]], float(samples.logps[row]))

  return generate


Scorer = Callable[[Params, Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]


def make_scorer(policy: nn.Module, mesh: Mesh, *, max_length: int, batch_size: int = 32) -> Scorer:
  """Returns `score(params, prompts, responses)`: log π(y|x) of each response's tokens, in nats, `[N]`.

  Args:
    policy: the model, which need not be the one that answered.
    mesh: rows are split over it.
    max_length: tokens of a response at most.
    batch_size: responses at once, rounded up to a number that the mesh divides.
  """
  num_rows, on_mesh = partitioning.divisible_rows(mesh, batch_size), _make_score(policy, mesh)

  def score(params: Params, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]) -> np.ndarray:
    logps = []
    for start in range(0, len(prompts), num_rows):
      some, answered = (texts[start : start + num_rows] for texts in (prompts, responses))
      length = _padded_length(policy, some, max_length)
      rows = single_rows(some, answered, num_rows=num_rows, prompt_length=length, response_length=max_length)
      scored = jax.device_get(on_mesh(params, partitioning.place_rows(mesh, rows)))
      logps.append(scored[: len(some)])
    return np.concatenate(logps or [np.zeros(0)])

  return score


@functools.lru_cache(maxsize=16)
def _make_score(policy: nn.Module, mesh: Mesh) -> Callable[[Params, Rows], Array]:
  """Returns `score(params, rows)`, `[B]`, compiled for the mesh."""
  score = scoring.make_score(policy)
  return partitioning.jit_on(mesh, lambda params, rows: score({'policy': params}, rows).logps[:, 0])


def _padded_length(policy: nn.Module, prompts: Sequence[np.ndarray], max_length: int) -> int:
  """The prompt tokens of rows that hold these prompts.

  Raises:
    UsageError: the model has no positions for prompts of this length and responses of `max_length`.
  """
  longest = max(map(len, prompts))
  refuse_long_texts(
    policy.config, longest, max_length, 'prompts (PROMPT_LENGTH) and max_length=... (MAX_LENGTH)'
  )
  return -(-longest // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE


# One function for equal arguments, so that a second generator of the same policy compiles nothing again.
@functools.lru_cache(maxsize=16)
def _make_sample(policy: nn.Module, mesh: Mesh, decoding: Decoding) -> Callable[..., sampling.Samples]:
  """Returns `sample(params, rows, key data)`, compiled for the mesh."""

  def sample(params: Params, rows: Rows, key: UInt32[Array, '...']) -> sampling.Samples:
    prompts = rows.prompt_tokens, rows.prompt_segments
    if decoding.beams != 1:
      return beam_search.search(
        policy, params, prompts, decoding.max_length, beams=decoding.beams,
        length_penalty=decoding.length_penalty, repetition_penalty=decoding.repetition_penalty,
      )  # fmt: skip
    return sampling.sample(
      policy, params, prompts, decoding.max_length, jax.random.wrap_key_data(key),
      temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p,
      repetition_penalty=decoding.repetition_penalty, prompt_ids=rows.example_id[:, 0],
    )  # fmt: skip

  return partitioning.jit_on(mesh, sample)
