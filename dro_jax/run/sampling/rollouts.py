"""Fresh responses in place of logged ones: the current policy answers prompts, a reward function scores.

A batch stays a function of (seed, step, parameters), whatever the mesh and the hosts, so that a resumed run
is the same run.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float, Int

from dro_jax.algorithms import Algorithm
from dro_jax.algorithms.batch import Batch
from dro_jax.data.batches.loader import Loader
from dro_jax.data.batches.rows import place_batch
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError, suggests_fields
from dro_jax.models import sampling, scoring
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import networks
from dro_jax.run.sampling import rewards
from dro_jax.step.reference import Reference
from dro_jax.step.state import TrainState
from dro_jax.types import Array, Params, Rows, Scalar, Units

_TRAINING, _VALIDATION = 0, 1  # Random keys of their own.


@suggests_fields
@dataclasses.dataclass(frozen=True)
class RolloutOptions:
  """How an online algorithm gets its responses and rewards.

  Args:
    reward: the reward function, from prompts and responses to numbers, or its name: exact_match, contains,
      FILE.py:FUNCTION, MODULE:FUNCTION, the folder of a reward model, or 'command:PROGRAM'.
    temperature: the divisor of the logits of training samples. At another temperature than 1 the samples are
      not the policy's own, and its gradient is biased.
    max_length: tokens of a response at most; `None` takes the length of the longest logged response.

  Example:
    >>> shortest = lambda prompts, responses: [-len(response) for response in responses]
    >>> rollouts = dro.RolloutOptions(reward=shortest, max_length=8)
    >>> dro.replace(spec, algorithm=dro.algorithms.rloo_online(), rollouts=rollouts).rollouts.max_length
    8
  """

  reward: Callable[..., Any] | str | None = None
  temperature: float | int = 1.0
  max_length: int | None = None

  def __post_init__(self) -> None:
    if self.temperature <= 0 or (self.max_length is not None and self.max_length < 1):
      raise UsageError(
        f'temperature={self.temperature}, max_length={self.max_length}: pass a temperature above 0, because '
        'greedy samples of a prompt are all the same, and 1 token or more, as '
        'RolloutOptions(temperature=1, max_length=64) or --set TEMPERATURE=1 and SAMPLE_LENGTH=64.'
      )


class Rollouts(NamedTuple):
  """The functions that sample from the policy and score its samples.

  Attributes:
    respond: from the state, a loader of prompts and a batch's rows to rows with the current policy's
      responses, K to each prompt, and their rewards.
    validate: from the state and a loader of prompts to the mean reward, KL(π‖π_ref) in nats and length of the
      policy's samples.
    settings: the settings that decide the run's numbers, recorded with it.
  """

  respond: Callable[[TrainState, Loader, int, Rows], Rows]
  validate: Callable[[TrainState, Loader], dict[str, float]]
  settings: dict[str, Any]


class _Answered(NamedTuple):
  """The rows of a batch, and on every host the samples for them, `[B, K]` each."""

  rows: Rows
  rewards: np.ndarray
  logps: np.ndarray
  lengths: np.ndarray
  ended: np.ndarray


_Answer = Callable[[TrainState, Loader, int, Rows], _Answered]


def prompts_only(triplets: Triplets) -> Triplets:
  """The triplets with each prompt once; the logged responses are not read later.

  Raises:
    UsageError: a scaling of rewards by the logged rewards is set.
  """
  if triplets.scaling.kind != 'none':
    raise UsageError(
      f'rewards are scaled ({triplets.scaling.kind}) by the logged rewards, which an online algorithm does '
      "not read: pass load_triplets(scaling='none'), or --set REWARD_SCALING=none, and scale inside the "
      'reward function.'
    )

  def once(table: TokenTable | None) -> TokenTable | None:
    return table and table.subset(np.sort(np.unique(table.prompt_index, return_index=True)[1]))

  return triplets._replace(train=once(triplets.train), eval=once(triplets.eval))


def make_rollouts(
  nets: networks.Networks,
  algorithm: Algorithm,
  reference: Reference,
  mesh: Mesh,
  vocabulary: Vocabulary,
  options: RolloutOptions,
  *,
  max_length: int,
  seed: int = 0,
  chunk_size: int | None = None,
) -> Rollouts:
  """How a run answers its prompts.

  Args:
    nets: the run's networks.
    algorithm: an online one.
    reference: its reference policy.
    mesh: rows are split over it.
    vocabulary: turns samples into text for the reward function.
    options: see `RolloutOptions`.
    max_length: most tokens of a response, where the options do not say.
    seed: with the step it decides the samples: fold_in(seed, step).
    chunk_size: response tokens projected to the vocabulary at once.

  Raises:
    UsageError: there is no reward function, or the reference knows logged responses only.
  """
  if not reference.is_live:
    raise UsageError(
      f'{algorithm.name} learns from fresh responses, and a cached reference has log-probs of logged ones '
      'only: pass a live one, as RunSpec(reference=Frozen()) or --set REFERENCE=frozen.'
    )
  reward, length = rewards.find(options.reward, mesh=mesh), options.max_length or max_length
  lay_out = _make_lay_out(nets, algorithm, reference, mesh, chunk_size)

  def make_answer(temperature: float | int, purpose: int) -> _Answer:
    key = jax.random.fold_in(jax.random.key(seed), purpose)
    sample = _make_sample(nets, mesh, key, algorithm.online.samples, length, temperature)

    def answer(state: TrainState, loader: Loader, step: int, rows: Rows) -> _Answered:
      samples = sample(state.networks['policy'], step, *rows[:2])
      drawn = jax.device_get(samples)
      scored_BK = _rewards(reward, loader, step, drawn, vocabulary)
      rows = lay_out(state, rows, samples, partitioning.place_rows(mesh, scored_BK))
      return _Answered(rows, scored_BK, *_by_prompt(drawn, scored_BK.shape, vocabulary.special.eos))

    return answer

  answer = make_answer(options.temperature, _TRAINING)
  # KL(π‖π_ref) is a mean over the policy's own samples, those at temperature 1.
  validate = _make_validate(make_answer(1.0, _VALIDATION), reference, mesh, algorithm.temperature)
  settings = {
    'samples': algorithm.online.samples, 'epochs': algorithm.online.epochs, 'reward': rewards.name_of(reward),
    'reward_code': rewards.code_of(options.reward), 'temperature': options.temperature, 'max_length': length,
  }  # fmt: skip
  return Rollouts(lambda *args: answer(*args).rows, validate, settings)


def _make_validate(
  answer: _Answer, reference: Reference, mesh: Mesh, temperature: Scalar
) -> Callable[[TrainState, Loader], dict[str, float]]:
  """Returns `validate(state, loader)`, which answers the prompts of a loader and measures the answers."""
  yardsticks = reference.yardsticks.items()
  reference_logps = partitioning.jit_on(
    mesh, lambda state, rows: {ending: scores(state, rows).logps for ending, scores in yardsticks}
  )

  def validate(state: TrainState, loader: Loader) -> dict[str, float]:
    parts = []
    for step in range(loader.plan.num_batches):
      answered = answer(state, loader, step, place_batch(mesh, loader, step))
      by = jax.device_get(reference_logps(state, answered.rows))
      used = loader.slots(step)[1][:, 0]
      kept = (*answered[1:], {ending: answered.logps - logps_BK for ending, logps_BK in by.items()})
      parts.append(jax.tree.map(lambda x_BK, used=used: x_BK[used], kept))
    return _summary(*jax.tree.map(lambda *x: np.concatenate(x), *parts), temperature)

  return validate


def _make_sample(
  nets: networks.Networks, mesh: Mesh, key: Array, num_samples: int, length: int, temperature: float | int
) -> Callable[..., sampling.Samples]:
  def sample(params: Params, step: Array, tokens_BS: Array, segments_BS: Array) -> sampling.Samples:
    # A sample's number is its place in the batch, which no mesh changes: rows of padding come last.
    prompts = jnp.repeat(tokens_BS, num_samples, axis=0), jnp.repeat(segments_BS, num_samples, axis=0)
    own_key = jax.random.fold_in(key, step)
    return sampling.sample(nets.policy, params, prompts, length, own_key, temperature=float(temperature))

  return partitioning.jit_on(mesh, sample)


def _rewards(
  reward: rewards.Reward, loader: Loader, step: int, samples: sampling.Samples, vocabulary: Vocabulary
) -> np.ndarray:
  """`[B, K]` rewards of a batch's samples, the same on every host; 0 for rows of padding."""
  example_B1, valid_B1 = loader.slots(step)
  num_rows, used = len(valid_B1), np.flatnonzero(valid_B1[:, 0])
  samples_BKL = samples.tokens.reshape(num_rows, -1, samples.tokens.shape[-1])
  num_samples = samples_BKL.shape[1]
  asked = [loader.table.prompts[int(example_B1[b, 0])] for b in used]
  answers = [vocabulary.decode(tokens_L) for tokens_L in samples_BKL[used].reshape(-1, samples_BKL.shape[2])]
  scored = rewards.reward_responses(reward, [text for text in asked for _ in range(num_samples)], answers)
  rewards_BK = np.zeros((num_rows, num_samples), np.float32)
  rewards_BK[used] = np.reshape(scored, (len(used), num_samples))
  # A reward that is not the same twice must not make the hosts' runs differ.
  return rewards_BK if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(rewards_BK)


def _by_prompt(samples: sampling.Samples, shape: Sequence[int], eos: int) -> tuple[np.ndarray, ...]:
  """Log-probs, lengths, and whether each response ended by itself, `[B, K]` each."""
  ended = (samples.tokens == eos).any(axis=-1)
  return tuple(x.reshape(shape) for x in (samples.logps, samples.lengths, ended))


def _make_lay_out(
  nets: networks.Networks, algorithm: Algorithm, reference: Reference, mesh: Mesh, chunk_size: int | None
) -> Callable[[TrainState, Rows, sampling.Samples, Array], Rows]:
  """Returns `lay_out(state, prompts, samples, rewards) -> Rows`, with the columns of the algorithm."""
  score = scoring.make_score(nets.policy, nets.value, chunk_size=chunk_size)
  token_columns = algorithm.online.token_columns

  def lay_out(state: TrainState, prompts: Rows, samples: sampling.Samples, rewards_BK: Array) -> Rows:
    rows = answered_rows(prompts, samples, rewards_BK)
    rows = rows if algorithm.couples else rows._replace(units=None)
    if token_columns is None:
      return rows
    scores = score(state.networks, rows, None)
    made = token_columns(Batch(scores, reference.scores(state, rows), rows, state.statistics))
    length, shape = samples.tokens.shape[-1], rows.response_tokens.shape
    # Each response has a stretch of its own in its row: cut to that length, they lie side by side again.
    return rows._replace(token_columns={name: x[:, :length].reshape(shape) for name, x in made.items()})

  sharded, whole = partitioning.rows_sharding(mesh), partitioning.replicated(mesh)
  where = Rows(
    *[sharded] * 10, columns=sharded, token_columns=sharded, units=whole if algorithm.couples else None
  )
  return partitioning.jit_on(mesh, lay_out, out_shardings=where)


def answered_rows(prompts: Rows, samples: sampling.Samples, rewards: Float[Array, 'B K']) -> Rows:
  """Rows of one prompt and its K samples, each in a stretch of its own; a prompt's samples make a group.

  Args:
    prompts: rows of one prompt each; their responses are not read.
    samples: K samples of each row, those of one row next to each other.
    rewards: the rewards of the samples.
  """
  num_rows, num_samples = rewards.shape
  tokens_BT = samples.tokens.reshape(num_rows, -1)
  inside_BKL = _inside(samples.lengths.reshape(num_rows, num_samples), samples.tokens.shape[-1])
  segments_BKL = jnp.where(inside_BKL, jnp.arange(1, num_samples + 1)[None, :, None], 0)
  positions_BKL = jnp.where(inside_BKL, jnp.arange(inside_BKL.shape[-1])[None, None, :], 0)
  segments_BT, positions_BT, prompt_BT = (
    x.astype(jnp.int32).reshape(tokens_BT.shape) for x in (segments_BKL, positions_BKL, inside_BKL)
  )
  valid_BK = jnp.broadcast_to(prompts.valid[:, :1], rewards.shape)
  return Rows(
    *prompts[:3], tokens_BT, segments_BT, positions_BT, prompt_BT, rewards,
    jnp.broadcast_to(prompts.example_id[:, :1], rewards.shape), valid_BK,
    columns={'behaviour_logps': samples.logps.reshape(rewards.shape)},
    units=Units(jnp.arange(rewards.size, dtype=jnp.int32).reshape(rewards.shape), valid_BK),
  )  # fmt: skip


def _inside(lengths: Int[Array, 'B K'], length: int) -> Bool[Array, 'B K L']:
  return jnp.arange(length)[None, None, :] < lengths[:, :, None]


def validation_names(endings: Collection[str] = ('',)) -> list[str]:
  """Names of the metrics of `validate`, with an ending for each policy that the samples are compared with."""
  samples_BK = np.zeros((1, 2))
  return list(_summary(*[samples_BK] * 4, dict.fromkeys(endings, samples_BK), temperature=1.0))


def _summary(
  rewards_BK: np.ndarray, logps_BK: np.ndarray, lengths_BK: np.ndarray, ended_BK: np.ndarray,
  rho_BK: Mapping[str, np.ndarray], temperature: Scalar,
) -> dict[str, float]:  # fmt: skip
  """Means over samples, and the criterion that the best checkpoint minimises: β KL − reward."""
  means = {f'kl{ending}': rho.mean() for ending, rho in rho_BK.items()}
  means |= {
    'reward': rewards_BK.mean(), 'logp': logps_BK.mean(),
    'response_tokens': lengths_BK.mean(), 'ended': ended_BK.mean(),
  }  # fmt: skip
  means |= {
    'reward_within_prompt_std': rewards_BK.std(axis=1).mean(),
    'criterion': temperature * means['kl'] - means['reward'],
  }
  return {name: float(value) for name, value in means.items()}


__all__ = ['RolloutOptions']
