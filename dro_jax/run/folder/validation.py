"""The results of a validation, by response and by prompt, from which reports compare runs.

MODEL_DIR/eval/STEP.npz     of the newest validation, and of the newest and best checkpoints
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dro_jax import files
from dro_jax.algorithms.base import PREFERENCES
from dro_jax.data.storage import hashes
from dro_jax.data.table.table import TokenTable
from dro_jax.run.sampling.policy_samples import OwnSamples, measured_columns
from dro_jax.run.table_scores import ScoredTable
from dro_jax.statistics import agreement, mass, preferences
from dro_jax.statistics.bootstrap import mean_of
from dro_jax.step.reference import MOVING


class Validation(NamedTuple):
  """N scored held-out responses, and the policy's samples for M held-out prompts; `None` is not measured.

  Attributes:
    temperature: τ, a scalar.
    examples: digests of prompt and response, `[N]`.
    prompts: digests of prompts, `[N]`.
    rewards: scaled, as the losses see them, `[N]`.
    lengths: response tokens, `[N]`.
    logps: log π(y|x) in nats, `[N]`.
    reference_logps: log π_ref(y|x), `[N]`.
    values: V(x), `[N]`.
    sample_prompts: digests of prompts, `[M]`.
    samples: texts, `[M]`.
    sample_lengths: in tokens, `[M]`.
    sample_log_ratios: log π − log π_ref, `[M]`.
    sample_rewards: rewards of a reward function, `[M]`.
    moving_reference_logps: log-probs under a reference that moves, `[N]`; `reference_logps` are then those of
      the initial reference.
    sample_moving_log_ratios: log-ratios of the samples to the moving reference, `[M]`.
    reference_sample_log_ratios: log π − log π_ref of K answers of the reference to each prompt, `[M, K]`.
    scores: a reward model's R(x, y), `[N]`.
    pairs: digests of the held-out pairs on which a model of preferences is measured, `[P]`.
    pair_prompts: digests of the pairs' prompts, `[P]`.
    pair_margins: R(x, y_chosen) − R(x, y_rejected), `[P]`.
  """

  temperature: np.ndarray
  examples: np.ndarray | None = None
  prompts: np.ndarray | None = None
  rewards: np.ndarray | None = None
  lengths: np.ndarray | None = None
  logps: np.ndarray | None = None
  reference_logps: np.ndarray | None = None
  values: np.ndarray | None = None
  sample_prompts: np.ndarray | None = None
  samples: np.ndarray | None = None
  sample_lengths: np.ndarray | None = None
  sample_log_ratios: np.ndarray | None = None
  sample_rewards: np.ndarray | None = None
  moving_reference_logps: np.ndarray | None = None
  sample_moving_log_ratios: np.ndarray | None = None
  reference_sample_log_ratios: np.ndarray | None = None
  scores: np.ndarray | None = None
  pairs: np.ndarray | None = None
  pair_prompts: np.ndarray | None = None
  pair_margins: np.ndarray | None = None


def from_table(
  temperature: float | int,
  table: TokenTable,
  scored: ScoredTable | None = None,
  drawn: OwnSamples | None = None,
  *,
  scores: str | None = None,
) -> Validation:
  """The results of a validation, of a scored table and of samples.

  A reward model's values are its `scores` (see `Algorithm.scores`); those of preferences are no
  rewards, which they could explain.
  """
  found = Validation(np.asarray(float(temperature)))
  if scored is not None:
    texts = (f'{prompt}\0{response}' for prompt, response in zip(table.prompts, table.responses))
    found = found._replace(
      examples=hashes.digests(texts), prompts=table.prompt_digests, rewards=scored.rewards,
      lengths=scored.lengths, logps=scored.logps, reference_logps=scored.reference_logps,
      values=None if scores == PREFERENCES else scored.values, moving_reference_logps=scored.moving_logps,
      scores=None if scores is None else scored.values,
    )  # fmt: skip
  if drawn is not None:
    found = found._replace(
      sample_prompts=drawn.prompts, samples=drawn.responses, sample_lengths=drawn.lengths,
      sample_log_ratios=drawn.log_ratios, sample_rewards=drawn.rewards,
      sample_moving_log_ratios=drawn.moving_log_ratios,
      reference_sample_log_ratios=drawn.reference_log_ratios,
    )  # fmt: skip
  return found


def with_pairs(found: Validation, table: TokenTable, scores: np.ndarray, members: np.ndarray) -> Validation:
  """The validation with the margins of pairs.

  Args:
    found: the validation.
    table: the pairs' responses.
    scores: a reward model's R(x, y) of each of these.
    members: records of the table, chosen and rejected, `[P, 2]`.
  """
  texts = (f'{table.prompts[a]}\0{table.responses[a]}\0{table.responses[b]}' for a, b in members.tolist())
  return found._replace(
    pairs=hashes.digests(texts), pair_prompts=table.prompt_digests[members[:, 0]],
    pair_margins=scores[members[:, 0]] - scores[members[:, 1]],
  )  # fmt: skip


def make_statistics(found: Validation) -> dict[str, Callable[[np.ndarray], float]]:
  """Statistics of the scored responses by name: functions of the number of draws of each prompt, `[P]`.

  Prompts are in the order of their digests.
  """
  if found.logps is None:
    return {}
  from_table = functools.partial(
    agreement.score_statistics, found.logps, found.lengths, found.rewards, found.prompts, values=found.values,
    temperature=float(found.temperature),
  )  # fmt: skip
  moving = {}
  if found.moving_reference_logps is not None:
    alone = from_table()
    moving = {
      f'{name}{MOVING}': function
      for name, function in from_table(reference_logps=found.moving_reference_logps).items()
      if name not in alone
    }
  return from_table(reference_logps=found.reference_logps) | moving | _of_scores(found)


def _of_scores(found: Validation) -> dict[str, Callable[[np.ndarray], float]]:
  """Statistics of a reward model's scores."""
  result: dict[str, Callable[[np.ndarray], float]] = {}
  if found.scores is not None:
    counts = agreement.count_pairs(found.scores, found.rewards, found.prompts)
    result['within_prompt_accuracy/score'] = functools.partial(agreement.pairwise_accuracy, counts)
  if found.pair_margins is not None:
    prompt_P = np.searchsorted(np.unique(found.prompts), found.pair_prompts)
    result |= preferences.statistics(found.pair_margins, prompt_P)
  return result


def summary(found: Validation) -> dict[str, float]:
  """The statistics of the scored responses, with every prompt drawn once."""
  functions = make_statistics(found)
  ones = np.ones(len(np.unique(found.prompts)) if functions else 0)
  return {name: float(function(ones)) for name, function in functions.items()}


def sample_statistics(found: Validation) -> dict[str, Callable[[np.ndarray], float]]:
  """Statistics of the policy's samples by name: functions of the number of draws of each prompt, `[M]`."""
  columns = measured_columns(
    found.sample_log_ratios, found.sample_moving_log_ratios, found.sample_rewards, found.sample_lengths
  )
  kept = found.reference_sample_log_ratios
  masses = {} if kept is None else mass.statistics(kept)
  return {name: mean_of(column) for name, column in columns.items()} | masses


def save(model_dir: pathlib.Path, step: int, found: Validation) -> None:
  """Writes a validation whole or not at all."""
  folder = model_dir / 'eval'
  folder.mkdir(exist_ok=True)
  arrays = {name: np.asarray(x) for name, x in found._asdict().items() if x is not None}
  with files.replacing(folder / f'{step}.npz') as temporary, open(temporary, 'wb') as file:
    np.savez_compressed(file, **arrays)


def load(model_dir: pathlib.Path, step: int) -> Validation:
  """The validation after a step."""
  with np.load(model_dir / 'eval' / f'{step}.npz') as file:
    return Validation(**{name: file[name] for name in file.files if name in Validation._fields})


def steps(model_dir: pathlib.Path) -> list[int]:
  """The steps with a saved validation, in order."""
  return sorted(int(path.stem) for path in (model_dir / 'eval').glob('[0-9]*.npz'))


def keep(model_dir: pathlib.Path, kept: Iterable[int | None]) -> None:
  """Removes the validations of all other steps."""
  wanted = set(kept)
  for step in steps(model_dir):
    if step not in wanted:
      (model_dir / 'eval' / f'{step}.npz').unlink()


def common(found: Sequence[Validation]) -> list[Validation]:
  """The validations, cut to the responses and sampled prompts that all of them hold, in the same order."""
  result = list(found)
  for key, fields in (
    ('examples', (
      'examples', 'prompts', 'rewards', 'lengths', 'logps', 'reference_logps', 'values',
      'moving_reference_logps', 'scores',
    )),
    ('pairs', ('pairs', 'pair_prompts', 'pair_margins')),
    ('sample_prompts', (
      'sample_prompts', 'samples', 'sample_lengths', 'sample_log_ratios', 'sample_rewards',
      'sample_moving_log_ratios', 'reference_sample_log_ratios',
    )),
  ):  # fmt: skip
    having = [i for i, each in enumerate(result) if getattr(each, key) is not None]
    picks = _aligned([_numbered(getattr(result[i], key)) for i in having])
    for i, pick in zip(having, picks):
      present = {name: getattr(result[i], name) for name in fields}
      result[i] = result[i]._replace(**{name: x[pick] for name, x in present.items() if x is not None})
  return result


def _numbered(digests: np.ndarray) -> list[tuple[int, int]]:
  """Each digest with how often it occurred before, for a log may hold a response twice."""
  seen: dict[int, int] = {}
  result = []
  for digest in digests.tolist():
    result.append((digest, seen.setdefault(digest, 0)))
    seen[digest] += 1
  return result


def _aligned(keys: Sequence[Sequence[tuple[int, int]]]) -> list[np.ndarray]:
  """For each list, where it has the keys that all of them have."""
  places = [{key: i for i, key in enumerate(of)} for of in keys]
  shared = sorted(set.intersection(*map(set, places))) if places else []
  return [np.array([of[key] for key in shared], int) for of in places]
