"""Answers to prompts by one or several checkpoints of a policy, batch by batch, from any answer on."""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.checkpoints import adapters, folders, policy
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError
from dro_jax.models.lora import Base
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import networks, trained
from dro_jax.run.sampling.generation import Generator, Scorer, make_scorer
from dro_jax.types import Params

OWN = 'run'  # Of REFERENCE_LOGP: the run's own reference.


class Work(NamedTuple):
  """What is to be answered: every prompt `num_samples` times, by each checkpoint.

  Attributes:
    checkpoints: folders by their steps, in order; one that was not chosen by its step has the step `None`.
    questions: (id, text) of each prompt.
    tokens: of each prompt, as the policy reads it.
    num_samples: answers to a prompt.
    num_rows: prompts of a batch.
  """

  checkpoints: Mapping[int | None, str]
  questions: Sequence[tuple[str, str]]
  tokens: Sequence[np.ndarray]
  num_samples: int
  num_rows: int

  @property
  def order(self) -> list[tuple[int, int]]:
    """(prompt, sample) of each answer of a checkpoint; an answer's place decides its randomness."""
    return [(i, k) for i in range(len(self.tokens)) for k in range(self.num_samples)]

  @property
  def ids(self) -> list[str]:
    """The ids of all answers, in their order."""
    return [self.id_of(step, i, k) for step in self.checkpoints for i, k in self.order]

  def id_of(self, step: int | None, i: int, k: int) -> str:
    """ID, ID@STEP, ID#SAMPLE or ID@STEP#SAMPLE."""
    at = '' if step is None else f'@{step}'
    return f'{self.questions[i][0]}{at}{"" if self.num_samples == 1 else f"#{k}"}'


class Policies:
  """The policies of checkpoints of one model, loaded when they are needed.

  A base that several adapters share is loaded once.

  Args:
    nets: the model.
    mesh: where to.
    base: of adapters, where their base lies now; `None` takes it from where it lay.
  """

  def __init__(self, nets: networks.Networks, mesh: Mesh, base: str | None = None):
    self.mesh, self._nets, self._base = mesh, nets, base
    self._loaded: tuple[Any, Base | None] = (None, None)

  def base_of(self, folder: str) -> Base | None:
    """The base of an adapter's checkpoint; `None` of a whole model."""
    saved = adapters.saved_adapter(folder)
    key = saved and (saved.fingerprint, saved.lora)
    if key != self._loaded[0]:
      self._loaded = (None, None)  # Two bases might not fit into memory.
      self._loaded = (key, networks.load_own_base(self._nets, folder, self.mesh, self._base))
    return self._loaded[1]

  def load(self, folder: str) -> Params:
    """The policy of a checkpoint."""
    return networks.load_policy(self._nets, folder, self.mesh, self._base, self.base_of(folder))


class ReferenceScorer(NamedTuple):
  """A policy under which answers are scored too."""

  params: Params
  score: Scorer


def make_reference(
  name: str,
  folder: str,
  policies: Policies,
  vocabulary: Vocabulary,
  *,
  init_from: str | None,
  max_length: int,
  batch_size: int,
) -> ReferenceScorer:
  """The policy under which answers are scored too.

  Args:
    name: `run` is the reference of the run, anything else a checkpoint's folder.
    folder: a checkpoint of the run.
    policies: those that answer.
    vocabulary: theirs.
    init_from: where the policy lies now from which the run started, if its reference was cached.
    max_length: tokens of an answer at most.
    batch_size: answers scored at once.

  Raises:
    UsageError: the run has no reference, or the folder's policy reads another vocabulary.
  """
  if name == OWN:
    network = trained.load_reference(folder, policies.mesh, init_from, policies.base_of(folder))
  else:
    place = str(folders.find_checkpoint(name))
    if policy.vocabulary_of(place).fingerprint != vocabulary.fingerprint:
      raise UsageError(
        f'reference_logp={name} (REFERENCE_LOGP) reads another vocabulary than {folder}, so that the answers '
        'are other tokens to it: pass a policy with the same vocabulary.'
      )
    network = trained.load_network(place, policies.mesh)
  score = make_scorer(network.module, policies.mesh, max_length=max_length, batch_size=batch_size)
  return ReferenceScorer(network.params, score)


def reference_digest(name: str | None, folder: str) -> str | None:
  """What identifies the reference, which need not be loaded; arguments as `make_reference`."""
  if name is None:
    return None
  return f'{OWN} of {digest_of(folder)}' if name == OWN else digest_of(name)


def digest_of(folder: str) -> str:
  """What identifies a checkpoint: its digest, or its place where an earlier version wrote none."""
  return folders.init_digest(folder) or str(pathlib.Path(folders.find_checkpoint(folder)).resolve())


def answer(
  work: Work,
  draw: Generator,
  policies: Policies,
  make_reference: Callable[[], ReferenceScorer] | None,
  vocabulary: Vocabulary,
  count: int = 0,
) -> Iterator[list[dict[str, Any]]]:
  """Yields the records of all answers after the first `count`, batch by batch; nothing is loaded for none.

  The batch in which they begin is drawn whole. In another batch, with longer prompts, say, log-probs could
  round otherwise.
  """
  total = len(work.order)
  reference = make_reference() if make_reference and count < total * len(work.checkpoints) else None
  for number, (step, folder) in enumerate(work.checkpoints.items()):
    done = max(count - number * total, 0)
    if done < total:
      yield from _answer_by(work, draw, policies.load(folder), reference, vocabulary, step, done)


def _answer_by(
  work: Work,
  draw: Generator,
  params: Params,
  reference: ReferenceScorer | None,
  vocabulary: Vocabulary,
  step: int | None,
  done: int,
) -> Iterator[list[dict[str, Any]]]:
  """The records of a checkpoint's answers after the first `done`."""
  order, start = work.order, done // work.num_rows * work.num_rows
  answers = draw(params, [work.tokens[i] for i, _ in order[start:]], range(start, len(order)))
  for first in range(start, len(order), work.num_rows):
    places = order[first : first + work.num_rows]
    batch = list(itertools.islice(answers, len(places)))
    scores: list[dict[str, float]] = [{} for _ in batch]
    if reference is not None:
      responses = [each.tokens for each in batch]
      logps = reference.score(reference.params, [work.tokens[i] for i, _ in places], responses)
      scores = [{'reference_logp': float(logp)} for logp in logps]
    records = [
      {
        'id': work.id_of(step, i, k), **({} if step is None else {'step': step}),
        'prompt': work.questions[i][1], **each.decoded(vocabulary).record(**scored),
      }
      for (i, k), each, scored in zip(places, batch, scores)
    ]  # fmt: skip
    yield records[max(done - first, 0) :]
