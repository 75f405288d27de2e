"""Answers to held-out prompts: of the policy (KL, length, reward), and of its reference (mass kept)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32

from dro_jax.data.batches.rows import single_rows
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.models import sampling, scoring
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import networks
from dro_jax.run.sampling import rewards, rollouts
from dro_jax.statistics import mass
from dro_jax.step.reference import MOVING, Reference
from dro_jax.step.state import TrainState
from dro_jax.types import Array, Params, Rows

_BATCH = 32  # Prompts at once.
TEMPERATURE = 1.0  # KL(π‖π_ref) is a mean over samples of π itself.
# Answers of the reference to each prompt, drawn once and scored at each validation: the mean of heavy-tailed
# weights needs more of them than KL does.
_REFERENCE_ANSWERS = 4


class OwnSamples(NamedTuple):
  """One sample to each of M prompts, and the scores of K answers of the reference to each.

  Attributes:
    prompts: digests of their texts, `[M]`.
    responses: as texts, `[M]`.
    lengths: in tokens, `[M]`.
    log_ratios: log π(y|x) − log π_ref(y|x), `[M]`: their mean estimates KL(π‖π_ref), of responses cut where
      the samples are; `None` where the reference's parameters are not at hand.
    rewards: by the reward function, `[M]`, or `None`.
    moving_log_ratios: the same as `log_ratios` to a reference that moves, where those are to the initial one.
    reference_log_ratios: log π(y|x) − log π_ref(y|x) of the reference's own answers, `[M, K]` (see
      `statistics.mass`); of the initial one's, where it moves. `None` without its parameters.
  """

  prompts: np.ndarray
  responses: np.ndarray
  lengths: np.ndarray
  log_ratios: np.ndarray | None
  rewards: np.ndarray | None
  moving_log_ratios: np.ndarray | None = None
  reference_log_ratios: np.ndarray | None = None


Draw = Callable[[TrainState, TokenTable], OwnSamples]


def make_draw(
  nets: networks.Networks,
  reference: Reference | None,
  mesh: Mesh,
  vocabulary: Vocabulary,
  count: int,
  *,
  max_length: int,
  reward: rewards.Reward | str | None = None,
  seed: int = 0,
  chunk_size: int | None = None,
) -> tuple[Draw, dict[str, Any]]:
  """Returns `draw(state, table)`, which samples answers to always the same prompts, and its settings.

  Args:
    nets: the run's networks.
    reference: the run's reference, scored where it scores any responses.
    mesh: rows are split over it.
    vocabulary: of the samples' texts.
    count: prompts at most.
    max_length: most tokens of a sample.
    reward: a reward function, or its name (see `run.sampling.rewards.find`).
    seed: with a prompt it decides its sample.
    chunk_size: response tokens projected to the vocabulary at once.
  """
  sample = _make_sample(nets, mesh, max_length)
  measure = _make_measure(nets, reference, mesh, chunk_size)
  measure_reference = _make_measure_reference(sample, measure, reference, seed)
  key = _key_data(jax.random.key(seed))
  reward, code = reward and rewards.find(reward, mesh=mesh), rewards.code_of(reward)

  def draw(state: TrainState, table: TokenTable) -> OwnSamples:
    records = chosen(table, count)
    digests, batches = table.prompt_digests[records], _place(mesh, table, records)
    drawn = [sample(state.networks['policy'], rows, key) for rows in batches]
    tokens, _, lengths = (x[: len(records)] for x in _joined(drawn))
    texts = [vocabulary.decode(row[:n]) for row, n in zip(tokens, lengths)]
    scored = None
    if reward is not None:
      scored = np.asarray(rewards.reward_responses(reward, [table.prompts[int(i)] for i in records], texts))
    found = OwnSamples(digests, np.array(texts), lengths, None, scored)
    if measure is None:
      return found
    # To the initial policy, and to a reference that moves: as many of these as there are.
    to = (*measure(state, batches, drawn)[: len(records)].T, None)
    of_reference = measure_reference(state, batches, digests)
    return found._replace(log_ratios=to[0], moving_log_ratios=to[1], reference_log_ratios=of_reference)

  settings = {
    'prompts': count, 'temperature': TEMPERATURE, 'max_length': max_length,
    'reward': reward and rewards.name_of(reward), 'reward_code': code,
  }  # fmt: skip
  return draw, settings


def chosen(table: TokenTable, count: int) -> np.ndarray:
  """A record of each of `count` prompts at most: of the prompts with the least digests, in any table."""
  records = np.unique(table.prompt_digests, return_index=True)[1]
  return records[:count]


def summary(drawn: OwnSamples) -> dict[str, float]:
  """Means over the samples, and the mass that the policy kept."""
  columns = measured_columns(drawn.log_ratios, drawn.moving_log_ratios, drawn.rewards, drawn.lengths)
  kept = {} if drawn.reference_log_ratios is None else mass.statistics(drawn.reference_log_ratios)
  ones = np.ones(len(drawn.prompts))
  means = {name: float(column.mean()) for name, column in columns.items()}
  return means | {name: statistic(ones) for name, statistic in kept.items()}


def measured_columns(
  log_ratios: np.ndarray | None,
  moving_log_ratios: np.ndarray | None,
  rewards: np.ndarray | None,
  lengths: np.ndarray | None,
) -> dict[str, np.ndarray]:
  """Columns of samples by the names that metrics and reports give to their means; `None` is left out."""
  columns = {
    'kl': log_ratios, f'kl{MOVING}': moving_log_ratios, 'sample_reward': rewards, 'sample_tokens': lengths,
  }  # fmt: skip
  return {name: column for name, column in columns.items() if column is not None}


def _key_data(key: Array) -> np.ndarray:
  data: np.ndarray = jax.device_get(jax.random.key_data(key))
  return data


def _place(mesh: Mesh, table: TokenTable, records: np.ndarray) -> list[Rows]:
  """Rows of the records' prompts on the mesh, in batches of one size; rows of padding come last."""
  ids = (table.prompt_digests[records] & np.uint64(0x7FFFFFFF)).astype(np.int32)
  num_rows = partitioning.divisible_rows(mesh, _BATCH)
  prompts = [table.prompt(int(i)) for i in records]
  length, placed = max(map(len, prompts)), []
  for start in range(0, len(records), num_rows):
    some = slice(start, start + num_rows)
    rows = single_rows(prompts[some], num_rows=num_rows, prompt_length=length, ids=ids[some])
    placed.append(partitioning.place_rows(mesh, rows))
  return placed


def _joined(parts: Sequence[Any]) -> Any:
  """The batches' results as one, on the host; rows of padding come last."""
  return jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(parts))


def _make_sample(nets: networks.Networks, mesh: Mesh, max_length: int) -> Callable[..., sampling.Samples]:
  """Returns `sample(params, prompts, key data)`."""

  def sample(params: Params, prompts: Rows, key: UInt32[Array, '...']) -> sampling.Samples:
    tokens = prompts.prompt_tokens, prompts.prompt_segments
    return sampling.sample(
      nets.policy, params, tokens, max_length, jax.random.wrap_key_data(key), temperature=TEMPERATURE,
      prompt_ids=prompts.example_id[:, 0],
    )  # fmt: skip

  return partitioning.jit_on(mesh, sample)


_Measure = Callable[[TrainState, Sequence[Rows], Sequence[sampling.Samples]], np.ndarray]


def _make_measure(
  nets: networks.Networks, reference: Reference | None, mesh: Mesh, chunk_size: int | None
) -> _Measure | None:
  """Returns `measure(state, prompts, samples)`, by batch: log-ratios `[M, Y]` to each of Y yardsticks.

  `None` where the reference's parameters are not at hand.
  """
  if reference is None or not reference.is_live:
    return None
  score, yardsticks = scoring.make_score(nets.policy, chunk_size=chunk_size), reference.yardsticks.values()

  def log_ratios(state: TrainState, prompts: Rows, samples: sampling.Samples) -> Array:
    rows = rollouts.answered_rows(prompts, samples, prompts.rewards)
    # Both by the same pass, so that policies that are equal are 0 apart.
    logps_B1 = score(state.networks, rows, None).logps
    return jnp.concatenate([logps_B1 - scores(state, rows).logps for scores in yardsticks], axis=1)

  log_ratios_on_mesh = partitioning.jit_on(mesh, log_ratios)

  def measure(state: TrainState, prompts: Sequence[Rows], samples: Sequence[sampling.Samples]) -> np.ndarray:
    parts = [log_ratios_on_mesh(state, *each) for each in zip(prompts, samples)]
    joined: np.ndarray = _joined(parts).astype(np.float64)
    return joined

  return measure


def _make_measure_reference(
  sample: Callable[..., sampling.Samples], measure: _Measure | None, reference: Reference | None, seed: int
) -> Callable[..., np.ndarray | None]:
  """Returns `measure_reference(state, prompts, digests)`: log-ratios `[M, K]` of the reference's own answers.

  The answers are drawn once, from the initial policy where the reference moves. Its parameters stay as they
  are, so that a resumed run draws the same answers. A run of an earlier version that moves its reference has
  lost them: `None`.
  """
  lost = reference is not None and reference.initial is None and reference.settings['scheme'] == 'moving'
  keys = [_key_data(jax.random.fold_in(jax.random.key(seed), k)) for k in range(_REFERENCE_ANSWERS)]
  drawn: dict[bytes, list[list[sampling.Samples]]] = {}

  def measure_reference(state: TrainState, prompts: Sequence[Rows], digests: np.ndarray) -> np.ndarray | None:
    if measure is None or lost:
      return None
    asked = digests.tobytes()
    if asked not in drawn:
      policy = state.policy_of(state.reference if state.initial is None else state.initial)
      drawn[asked] = [[sample(policy, rows, key) for rows in prompts] for key in keys]
    columns = [measure(state, prompts, samples)[: len(digests), 0] for samples in drawn[asked]]
    return np.stack(columns, axis=1)

  return measure_reference
