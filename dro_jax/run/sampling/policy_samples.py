"""The policy's own answers to held-out prompts: KL(π‖π_ref), length, and reward where there is a function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dro_jax.data.batches.rows import single_rows
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.models import sampling, scoring
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import networks
from dro_jax.run.sampling import rewards, rollouts
from dro_jax.step.reference import MOVING, Reference
from dro_jax.step.state import TrainState
from dro_jax.types import Array, Rows

_BATCH = 32  # Prompts at once.
TEMPERATURE = 1.0  # KL(π‖π_ref) is a mean over samples of π itself.


class OwnSamples(NamedTuple):
  """One sample to each of M prompts.

  Attributes:
    prompts: digests of their texts, `[M]`.
    responses: as texts, `[M]`.
    lengths: in tokens, `[M]`.
    log_ratios: log π(y|x) − log π_ref(y|x), `[M]`: their mean estimates KL(π‖π_ref), of responses cut where
      the samples are; `None` where the reference's parameters are not at hand.
    rewards: by the reward function, `[M]`, or `None`.
    moving_log_ratios: the same as `log_ratios` to a reference that moves, where those are to the initial one.
  """

  prompts: np.ndarray
  responses: np.ndarray
  lengths: np.ndarray
  log_ratios: np.ndarray | None
  rewards: np.ndarray | None
  moving_log_ratios: np.ndarray | None = None


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
  sample = _make_sample(nets, reference, mesh, max_length, seed, chunk_size)
  reward, code = reward and rewards.find(reward), rewards.code_of(reward)

  def draw(state: TrainState, table: TokenTable) -> OwnSamples:
    records = chosen(table, count)
    digests, drawn = table.prompt_digests[records], []
    ids = (digests & np.uint64(0x7FFFFFFF)).astype(np.int32)
    num_rows = partitioning.divisible_rows(mesh, _BATCH)
    length = max(len(table.prompt(int(i))) for i in records)
    for start in range(0, len(records), num_rows):
      some = records[start : start + num_rows]
      prompts = [table.prompt(int(i)) for i in some]
      rows = single_rows(prompts, num_rows=num_rows, prompt_length=length, ids=ids[start : start + num_rows])
      samples, ratios = jax.device_get(sample(state, partitioning.place_rows(mesh, rows)))
      drawn += [(samples.tokens[b], samples.lengths[b], ratios[:, b]) for b in range(len(some))]
    tokens, lengths, ratios = zip(*drawn)
    texts = [vocabulary.decode(row[:n]) for row, n in zip(tokens, lengths)]
    scored = None
    if reward is not None:
      scored = np.asarray(rewards.reward_responses(reward, [table.prompts[int(i)] for i in records], texts))
    # To the initial policy, and to a reference that moves: as many of these as there are.
    to = (*np.array(ratios, np.float64).T, None, None)
    return OwnSamples(digests, np.array(texts), np.array(lengths), to[0], scored, to[1])

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
  """Means over the samples."""
  columns = measured_columns(drawn.log_ratios, drawn.moving_log_ratios, drawn.rewards, drawn.lengths)
  return {name: float(column.mean()) for name, column in columns.items()}


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


def _make_sample(
  nets: networks.Networks,
  reference: Reference | None,
  mesh: Mesh,
  max_length: int,
  seed: int,
  chunk_size: int | None,
) -> Callable[..., tuple[sampling.Samples, Array]]:
  score, key = scoring.make_score(nets.policy, chunk_size=chunk_size), jax.random.key(seed)
  kept = reference is not None and reference.is_live
  yardsticks = list(reference.yardsticks.values()) if kept else []

  def sample(state: TrainState, prompts: Rows) -> tuple[sampling.Samples, Array]:
    tokens = prompts.prompt_tokens, prompts.prompt_segments
    samples = sampling.sample(
      nets.policy, state.networks['policy'], tokens, max_length, key, temperature=TEMPERATURE,
      prompt_ids=prompts.example_id[:, 0],
    )  # fmt: skip
    if not yardsticks:
      return samples, jnp.zeros((0, len(prompts.valid)))
    rows = rollouts.answered_rows(prompts, samples, prompts.rewards)
    # Both by the same pass, so that policies that are equal are 0 apart.
    logps_B1 = score(state.networks, rows, None).logps
    ratios = [logps_B1 - scores(state, rows).logps for scores in yardsticks]
    return samples, jnp.stack(ratios)[:, :, 0]

  return partitioning.jit_on(mesh, sample)
