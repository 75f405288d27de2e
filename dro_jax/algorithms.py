"""What each algorithm asks of a step: its losses, and which scores and data they need. Data, no branches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dro_jax import derived, limits, losses, values
from dro_jax.batch import Batch
from dro_jax.errors import UsageError
from dro_jax.ops import masked
from dro_jax.types import Array, LossOutput, LossTerm, Scalar

# Why a setting may not be what it is.
_STILL = 'at 0 its gradient is 0 and nothing is learned'
_UNHELD = 'at 0 nothing holds the policy to its reference'
_CLIPPED = 'at 0 every ratio is clipped'
_WINDOW = 'e^ρ is clipped to 1 ± ε, and a weight may not be negative'
_NO_SIDE = 'at half neither of a pair is preferred, and above it the rejected one'


class Online(NamedTuple):
  """How an algorithm that learns from fresh responses gets them, and what it makes of them.

  Attributes:
    samples: responses of the current policy to each prompt of a batch.
    epochs: optimiser steps on every batch of them.
    token_columns: from a batch, scored by the policy that sampled it, to what the loss reads by token,
      `[N, T]` each; `None` for nothing, and then no such scores are taken.
  """

  samples: int
  epochs: int = 1
  token_columns: Callable[[Batch], Mapping[str, Array]] | None = None


class Algorithm(NamedTuple):
  """What a train step needs to know of an algorithm.

  Attributes:
    name: the algorithm's, recorded with the run.
    loss: from a batch to losses with weights, by response, pair or group.
    temperature: τ (or β), by which τρ is an advantage in reward units.
    criterion: the validation loss, or part of it, whose least value marks the best checkpoint.
    unit: what `batch_size` counts: 'response', or the 'pair' or 'group' of responses to one prompt, or the
      'prompt' to be answered.
    uses_reference: whether it reads the reference policy's scores.
    uses_value: whether it reads, and trains, a value network.
    uses_token_values: whether that must give a value for each token.
    pools_values: whether it reads one value for the whole batch, the mean of its responses'.
    uses_mismatched: whether it reads scores of mismatched pairs.
    uses_rewards: whether it reads rewards.
    trains_policy: whether the policy gets a gradient.
    couples: whether one example's loss depends on other examples, so that a microbatch alone cannot give its
      gradient.
    requires: the data's columns without which it cannot run.
    columns: columns that it derives from the data (see `derived`), by name.
    check: refuses triplets that it cannot learn from.
    least_batch: what a batch must hold at least, of its unit: where it compares with the batch's mean, 2.
    select: which of a table's responses to train on, `[N]` booleans; `None` for all.
    weights: how often to draw each of a table's responses, `[N]`; `None` for each once an epoch.
    statistics: running scalars, checkpointed, with their first values.
    online: how it gets fresh responses; `None` where it learns from the logged ones.
  """

  name: str
  loss: Callable[[Batch], LossOutput]
  temperature: float = 1.0
  criterion: str = 'loss'
  unit: str = 'response'
  uses_reference: bool = True
  uses_value: bool = False
  uses_token_values: bool = False
  pools_values: bool = False
  uses_mismatched: bool = False
  uses_rewards: bool = True
  trains_policy: bool = True
  couples: bool = False
  requires: tuple[str, ...] = ()
  columns: Mapping[str, derived.Fit] = {}
  check: Callable[[Any], None] = lambda triplets: None
  least_batch: int = 1
  select: Callable[[Any], np.ndarray] | None = None
  weights: Callable[[Any], np.ndarray] | None = None
  statistics: Mapping[str, float] = {}
  online: Online | None = None


def with_batch_value(algorithm: Algorithm) -> Algorithm:
  """The algorithm on one value for the whole batch, which couples the batch's examples."""
  return algorithm._replace(pools_values=True, couples=True)


def by_response(name: str, per_example: Callable[[Batch], Array], **settings: Any) -> Algorithm:
  """An algorithm with one loss `[N]`, by response."""

  def loss(batch: Batch) -> LossOutput:
    return LossOutput({'policy': LossTerm(per_example(batch), batch.valid)})

  return Algorithm(name, loss, **settings)


def by_pair(name: str, per_pair: Callable[[Batch], Array], **settings: Any) -> Algorithm:
  """An algorithm with one loss `[P]`, by pair: member 0 is chosen, member 1 rejected."""

  def loss(batch: Batch) -> LossOutput:
    valid = jnp.all(batch.unit_mask, axis=1)
    scores = batch.policy_logps - (0.0 if batch.reference is None else batch.reference_logps)
    margins = jax.lax.stop_gradient(jnp.diff(-batch.members(scores), axis=1)[:, 0])
    wins = jnp.where(margins == 0, 0.5, (margins > 0).astype(jnp.float32))
    metrics = {
      'pair_margin': masked.weighted_mean(margins, valid),
      'pair_accuracy': masked.weighted_mean(wins, valid),
    }
    return LossOutput({'policy': LossTerm(per_pair(batch), valid)}, metrics)

  return Algorithm(name, loss, unit='pair', couples=True, **settings)


def by_group(name: str, per_group: Callable[[Batch], Array], **settings: Any) -> Algorithm:
  """An algorithm with one loss `[G]`, by group of responses to one prompt."""

  def loss(batch: Batch) -> LossOutput:
    return LossOutput({'policy': LossTerm(per_group(batch), jnp.any(batch.unit_mask, axis=1))})

  settings = {'check': derived.refuse_equal_within_prompts, **settings}
  return Algorithm(name, loss, unit='group', couples=True, **settings)


# --- imitation ----------------------------------------------------------------------------------------------


def sft() -> Algorithm:
  """Supervised fine-tuning on the responses, rewards ignored."""
  return by_response(
    'sft', lambda batch: losses.sft(batch.policy_logps), uses_reference=False, uses_rewards=False
  )


def weighted_bc() -> Algorithm:
  """Behaviour cloning weighted by rewards, which must not be negative (`losses.weighted_bc`)."""
  return by_response(
    'weighted_bc',
    lambda batch: losses.weighted_bc(batch.policy_logps, batch.rewards),
    uses_reference=False,
    check=derived.refuse_negative_rewards,
  )


def gold(floor: float = 0.1) -> Algorithm:
  """GOLD: behaviour cloning weighted by rewards and the policy's own token probabilities (`losses.gold`)."""
  limits.at_least_zero('gold', floor=floor)

  def per_example(batch: Batch) -> Array:
    return losses.gold(
      policy_logps=batch.tokens(batch.scores.token_logps),
      mask=batch.token_mask,
      rewards=batch.rewards,
      floor=floor,
    )

  return by_response('gold', per_example, uses_reference=False, check=derived.refuse_negative_rewards)


# --- labels and baselines from rewards ----------------------------------------------------------------------


class Thumbs(NamedTuple):
  """A batch's labels, `[N]` booleans each: which responses are desirable, and which have a label at all."""

  up: Array
  known: Array


class Labels(NamedTuple):
  """How rewards become thumbs: `of(batch)`, and what of the data it reads.

  `couples` where a response's label depends on the batch it is in.
  """

  of: Callable[[Batch], Thumbs]
  couples: bool = False
  uses_rewards: bool = True
  requires: tuple[str, ...] = ()
  columns: Mapping[str, derived.Fit] = {}


def _logged_thumbs(batch: Batch) -> Thumbs:
  """What the column of labels says (see `derived.Labelling`)."""
  label = batch.column('derived_label')
  return Thumbs(label == 1, label != derived.NO_LABEL)


def _minibatch_thumbs(batch: Batch) -> Thumbs:
  """A reward's side of the batch's mean. Equal rewards have none."""
  mean = masked.weighted_mean(batch.rewards, batch.valid)
  spread = jnp.sqrt(masked.weighted_variance(batch.rewards, batch.valid))
  # A reward that is the mean does not exceed it, in whichever order the layout made the float32 sum.
  above = batch.rewards - mean > 1e-5 * (jnp.abs(mean) + spread)
  return Thumbs(above, jnp.full_like(batch.valid, masked.varies(batch.rewards, batch.valid)))


def _derived_labels(fit: derived.Fit) -> Labels:
  return Labels(_logged_thumbs, columns={'derived_label': fit})


def minibatch_mean_labels() -> Labels:
  """Desirable when the reward exceeds the mean of the global minibatch (DRO's KTO baseline).

  Binary rewards are labels themselves (see `derived.binary_labels`): their column says so.
  """

  def of(batch: Batch) -> Thumbs:
    asks = batch.column('derived_label') == derived.BY_BATCH
    return Thumbs(*(jnp.where(asks, *pair) for pair in zip(_minibatch_thumbs(batch), _logged_thumbs(batch))))

  return Labels(of, couples=True, columns={'derived_label': derived.above_minibatch_mean})


def column_labels() -> Labels:
  """Desirable when the data's `label` column is positive."""
  return _derived_labels(derived.label_column)._replace(uses_rewards=False, requires=('label',))


def threshold_labels(threshold: float = 0.0) -> Labels:
  """Desirable when the reward, in its own units, exceeds a threshold."""
  return _derived_labels(derived.above_threshold(threshold))


def dataset_mean_labels() -> Labels:
  """Desirable when the reward exceeds the training responses' mean; binary rewards are labels themselves."""
  return _derived_labels(derived.above_dataset_mean)


def prompt_mean_labels() -> Labels:
  """Desirable when the reward exceeds the mean of the responses logged for its prompt.

  Binary rewards are labels themselves. Lone answers are compared with the data set's mean; ties have none.
  """
  return _derived_labels(derived.above_prompt_mean)


def value_labels() -> Labels:
  """Desirable when the reward exceeds the prompt's fitted value, the data's column `value`.

  Binary rewards are labels themselves (see `derived.binary_labels`).
  """
  return _derived_labels(derived.above_value)


def _with(check: Callable[[derived.Fit], derived.Fit], labels: Labels) -> Labels:
  """The same labels, refused where they are not what an algorithm needs."""
  return labels._replace(columns={name: check(fit) for name, fit in labels.columns.items()})


class Baseline(NamedTuple):
  """What is taken off a reward to make an advantage: `of(batch) -> [N]`, scaled, and what it derives."""

  of: Callable[[Batch], Array]
  couples: bool = False
  columns: Mapping[str, derived.Fit] = {}
  check: Callable[[Any], None] = lambda triplets: None
  least_batch: int = 1


def zero_baseline() -> Baseline:
  """b = 0."""
  return Baseline(lambda batch: jnp.zeros_like(batch.rewards), check=derived.refuse_zero_rewards)


def minibatch_mean_baseline() -> Baseline:
  """b = the global minibatch's mean reward."""
  return Baseline(
    lambda batch: jnp.full_like(batch.rewards, masked.weighted_mean(batch.rewards, batch.valid)),
    couples=True, check=derived.refuse_equal_rewards, least_batch=2,
  )  # fmt: skip


def value_baseline() -> Baseline:
  """b = V(x), the data's column `value`."""
  return Baseline(lambda batch: batch.column('scaled_value'), columns={'scaled_value': derived.scaled_value})


def filtered_sft(labels: Callable[[], Labels] = dataset_mean_labels) -> Algorithm:
  """Supervised fine-tuning on the desirable responses only."""
  label = _with(derived.some_desirable, labels())

  def loss(batch: Batch) -> LossOutput:
    thumbs = label.of(batch)
    kept = batch.valid & thumbs.known & thumbs.up
    metrics = {'desirable': masked.weighted_mean(kept.astype(jnp.float32), batch.valid)}
    return LossOutput({'policy': LossTerm(losses.sft(batch.policy_logps), kept)}, metrics)

  return Algorithm(
    'filtered_sft', loss, uses_reference=False, uses_rewards=label.uses_rewards, couples=label.couples,
    requires=label.requires, columns=label.columns,
  )  # fmt: skip


# --- DRO ----------------------------------------------------------------------------------------------------


def _value_loss(batch: Batch, rewards: Array, tau: Scalar) -> Array:
  """DRO-V's value loss `[N]`, by response, or by token where the value is read per token."""
  if batch.scores.token_values is None:
    return losses.dro_v_value(batch.policy_logps, batch.reference_logps, rewards, batch.values, tau=tau)
  policy_NT, reference_NT, values_NT = map(
    batch.tokens, (batch.scores.token_logps, batch.reference.token_logps, batch.scores.token_values)
  )
  return losses.dro_v_token_value(policy_NT, reference_NT, batch.token_mask, rewards, values_NT, tau=tau)


def _dro_v_terms(batch: Batch, rewards: Array, tau: Scalar, weights: Array) -> LossOutput:
  policy = losses.dro_v_policy(batch.policy_logps, batch.reference_logps, rewards, batch.values, tau=tau)
  value = _value_loss(batch, rewards, tau)
  return LossOutput({'policy': LossTerm(policy, weights), 'value': LossTerm(value, weights)})


def dro_v(tau: Scalar = 1.0) -> Algorithm:
  """DRO-V: a policy and a value trained together (`losses.dro_v_policy`, `losses.dro_v_value`)."""
  limits.above_zero('dro_v', _UNHELD, tau=tau)
  # The policy's loss has no meaning by itself; the value's is ½ (r − V − τρ)², DRO's own objective (Eq. 4).
  loss = lambda batch: _dro_v_terms(batch, batch.rewards, tau, batch.valid)  # noqa: E731
  return Algorithm(
    'dro_v', loss, tau, criterion='loss/value', uses_value=True, check=derived.refuse_equal_rewards
  )


def dro_v_binary(tau: Scalar = 1.0, labels: Callable[[], Labels] = dataset_mean_labels) -> Algorithm:
  """DRO-V on thumbs instead of rewards: what the scalar reward is worth."""
  limits.above_zero('dro_v_binary', _UNHELD, tau=tau)
  label = _with(derived.both_kinds, labels())

  def loss(batch: Batch) -> LossOutput:
    thumbs = label.of(batch)
    return _dro_v_terms(batch, thumbs.up.astype(jnp.float32), tau, batch.valid & thumbs.known)

  return Algorithm(
    'dro_v_binary', loss, tau, criterion='loss/value', uses_value=True, uses_rewards=label.uses_rewards,
    couples=label.couples, requires=label.requires, columns=label.columns,
  )  # fmt: skip


def dro_v_residual(tau: Scalar = 1.0) -> Algorithm:
  """DRO's squared residual, nothing stopped (`losses.dro_v_residual`): policy and value share one loss."""
  limits.above_zero('dro_v_residual', _UNHELD, tau=tau)

  def loss(batch: Batch) -> LossOutput:
    residual = losses.dro_v_residual(
      batch.policy_logps, batch.reference_logps, batch.rewards, batch.values, tau=tau
    )
    return LossOutput({'residual': LossTerm(residual, batch.valid)})

  return Algorithm('dro_v_residual', loss, tau, uses_value=True, check=derived.refuse_equal_rewards)


def dro_fixed_value(tau: Scalar = 1.0) -> Algorithm:
  """DRO with a given V, the data's column `value`: a regressed mean reward, or the oracle's V*.

  V is part of the solution: any other than V* biases the policy (arXiv 2405.19107, Sect. 3.3).
  """
  limits.above_zero('dro_fixed_value', _UNHELD, tau=tau)

  def loss(batch: Batch) -> LossOutput:
    values = batch.column('scaled_value')
    policy = losses.dro_v_policy(batch.policy_logps, batch.reference_logps, batch.rewards, values, tau=tau)
    residual = batch.rewards - values - tau * (batch.policy_logps - batch.reference_logps)
    metrics = {'residual': masked.weighted_mean(jnp.square(residual) / 2, batch.valid)}
    return LossOutput({'policy': LossTerm(policy, batch.valid)}, metrics)

  return Algorithm('dro_fixed_value', loss, tau, columns={'scaled_value': derived.scaled_value})


def dro_p(tau: Scalar = 1.0) -> Algorithm:
  """DRO-P: the global batch's mean residual in place of a value (`losses.dro_p`)."""
  limits.above_zero('dro_p', _UNHELD, tau=tau)

  def loss(batch: Batch) -> LossOutput:
    residuals = batch.rewards - tau * (batch.policy_logps - batch.reference_logps)
    mean = jax.lax.stop_gradient(masked.weighted_mean(residuals, batch.valid))
    policy = losses.dro_p(batch.policy_logps, batch.reference_logps, batch.rewards, mean, tau=tau)
    return LossOutput({'policy': LossTerm(policy, batch.valid)}, {'mean_residual': mean})

  return Algorithm('dro_p', loss, tau, couples=True, check=derived.refuse_equal_rewards, least_batch=2)


def regression() -> Algorithm:
  """A value alone, fitted to rewards by least squares; the policy gets no gradient.

  L = ½ (V(x) − r)²
  """

  def loss(batch: Batch) -> LossOutput:
    return LossOutput({'value': LossTerm(jnp.square(batch.values - batch.rewards) / 2, batch.valid)})

  return Algorithm('regression', loss, uses_reference=False, uses_value=True, trains_policy=False)


# --- thumbs -------------------------------------------------------------------------------------------------


def kto(
  beta: Scalar = 1.0,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
  balanced: bool = False,
  labels: Callable[[], Labels] = minibatch_mean_labels,
) -> Algorithm:
  """KTO (`losses.kto`), its reference point from mismatched pairs of the global batch.

  `balanced` multiplies λ_D and λ_U so that both kinds of a global batch weigh the same.
  """
  limits.above_zero('kto', _STILL, beta=beta)
  limits.at_least_zero('kto', desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
  label = labels()

  def loss(batch: Batch) -> LossOutput:
    mismatched_valid = batch.rows.mismatched.valid.reshape(-1)
    reference_point = losses.kto_reference_point(
      batch.scores.mismatched_logps.reshape(-1),
      batch.reference.mismatched_logps.reshape(-1),
      mismatched_valid,
    )
    labels_N, known = label.of(batch)
    labelled = batch.valid & known
    desirable = masked.weighted_mean(labels_N.astype(jnp.float32), labelled)
    shares = jnp.stack([desirable, 1 - desirable])
    # Where all are of one kind there is nothing to balance.
    factors = jnp.where(balanced & jnp.all(shares > 0), 0.5 / jnp.maximum(shares, 1e-6), 1.0)
    per_example = losses.kto(
      batch.policy_logps, batch.reference_logps, labels_N, reference_point, beta=beta,
      desirable_weight=desirable_weight, undesirable_weight=undesirable_weight,
    ) * jnp.where(labels_N, factors[0], factors[1])  # fmt: skip
    metrics = {
      'reference_point': reference_point,
      'desirable': desirable,
      'unpaired': jnp.sum(batch.valid) - jnp.sum(mismatched_valid),
    }
    return LossOutput({'policy': LossTerm(per_example, labelled)}, metrics)

  return Algorithm(
    'kto', loss, beta, uses_mismatched=True, uses_rewards=label.uses_rewards, couples=True,
    requires=label.requires, columns=label.columns,
  )  # fmt: skip


def bco(beta: Scalar = 0.1, labels: Callable[[], Labels] = minibatch_mean_labels) -> Algorithm:
  """BCO (`losses.bco`), its shift δ the running mean of βρ over all examples seen, this batch included."""
  limits.above_zero('bco', _STILL, beta=beta)
  label = labels()

  def loss(batch: Batch) -> LossOutput:
    rho = jax.lax.stop_gradient(batch.policy_logps - batch.reference_logps)
    count = batch.statistics['count'] + jnp.sum(batch.valid)
    gained = jnp.sum(jnp.where(batch.valid, beta * rho - batch.statistics['shift'], 0.0))
    shift = batch.statistics['shift'] + gained / jnp.maximum(count, 1)
    labels_N, known = label.of(batch)
    policy = losses.bco(batch.policy_logps, batch.reference_logps, labels_N, shift, beta=beta)
    return LossOutput(
      {'policy': LossTerm(policy, batch.valid & known)}, {'shift': shift}, {'shift': shift, 'count': count}
    )

  return Algorithm(
    'bco', loss, beta, couples=True, uses_rewards=label.uses_rewards, requires=label.requires,
    columns=label.columns, statistics={'shift': 0.0, 'count': 0.0},
  )  # fmt: skip


# --- advantages ---------------------------------------------------------------------------------------------


class _Advantages(NamedTuple):
  """How an algorithm that imitates what is better than V(x) takes its data."""

  of: Callable[[Batch], Array]
  settings: dict[str, Any]


def _advantages(priority: bool, weigh_again: bool) -> _Advantages:
  """A = r − V(x) from the data's column `value`; A ≤ 0 is dropped, or with `priority` drawn never.

  Drawn in proportion to A, a response weighs 1; with `weigh_again` A again, as the paper's code has it, whose
  expected weight is A² then.
  """
  if weigh_again and not priority:
    raise UsageError(
      'weigh_again=True with priority=False: responses that are drawn equally often weigh A already. Pass '
      '--set PRIORITY=true as well, or leave WEIGH_AGAIN.'
    )

  def of(batch: Batch) -> Array:
    advantages = batch.column('advantage')
    return (advantages > 0).astype(jnp.float32) if priority and not weigh_again else advantages

  def positive(table: Any) -> np.ndarray:
    return table.columns['advantage'] > 0

  settings = {'columns': {'advantage': derived.advantages}, 'select': positive}
  if priority:
    settings['weights'] = lambda table: table.columns['advantage']
  return _Advantages(of, settings)


def a_lol(epsilon: float = 0.9, priority: bool = False, weigh_again: bool = False) -> Algorithm:
  """A-LoL (`losses.a_lol`): positive advantages, weighted by the clipped ratio to the reference."""
  limits.within('a_lol', 0, 1, _WINDOW, epsilon=epsilon)
  advantages = _advantages(priority, weigh_again)
  return by_response(
    'a_lol',
    lambda batch: losses.a_lol(
      policy_logps=batch.policy_logps, reference_logps=batch.reference_logps, advantages=advantages.of(batch),
      epsilon=epsilon,
    ),
    **advantages.settings,
  )  # fmt: skip


def a_lol_ref_free(priority: bool = False, weigh_again: bool = False) -> Algorithm:
  """A-LoL without a reference (`losses.a_lol_ref_free`)."""
  advantages = _advantages(priority, weigh_again)
  return by_response(
    'a_lol_ref_free',
    lambda batch: losses.a_lol_ref_free(policy_logps=batch.policy_logps, advantages=advantages.of(batch)),
    uses_reference=False,
    **advantages.settings,
  )


def a_lol_kl(kl_weight: float = 0.1, priority: bool = False, weigh_again: bool = False) -> Algorithm:
  """A-LoL with a KL penalty (`losses.a_lol_kl`)."""
  limits.at_least_zero('a_lol_kl', kl_weight=kl_weight)
  if priority and not weigh_again:
    raise UsageError(
      'a_lol_kl with priority=True: drawn by their advantages, responses weigh 1, and the penalty then only '
      'scales the gradient, by 1 − kl_weight: that is a_lol_ref_free. Pass --set PRIORITY=false, or --set '
      'WEIGH_AGAIN=true, which weighs by advantages as well.'
    )
  advantages = _advantages(priority, weigh_again)
  return by_response(
    'a_lol_kl',
    lambda batch: losses.a_lol_kl(
      policy_logps=batch.policy_logps, reference_logps=batch.reference_logps, advantages=advantages.of(batch),
      kl_weight=kl_weight,
    ),
    **advantages.settings,
  )  # fmt: skip


def a_lol_sequence(epsilon: float = 0.9, priority: bool = False, weigh_again: bool = False) -> Algorithm:
  """A-LoL seq., its ratio clipped token by token (`losses.a_lol_sequence`)."""
  limits.within('a_lol_sequence', 0, 1, _WINDOW, epsilon=epsilon)
  advantages = _advantages(priority, weigh_again)

  def per_example(batch: Batch) -> Array:
    return losses.a_lol_sequence(
      policy_logps=batch.tokens(batch.scores.token_logps),
      reference_logps=batch.tokens(batch.reference.token_logps),
      mask=batch.token_mask, advantages=advantages.of(batch), epsilon=epsilon,
    )  # fmt: skip

  return by_response('a_lol_sequence', per_example, **advantages.settings)


def r_lol(epsilon: float = 0.9) -> Algorithm:
  """R-LoL (`losses.r_lol`): A-LoL on rewards, which must not be negative, without a value."""
  limits.within('r_lol', 0, 1, _WINDOW, epsilon=epsilon)
  return by_response(
    'r_lol',
    lambda batch: losses.r_lol(
      policy_logps=batch.policy_logps,
      reference_logps=batch.reference_logps,
      rewards=batch.rewards,
      epsilon=epsilon,
    ),
    check=derived.refuse_negative_rewards,
  )


def awr(beta: Scalar = 1.0, baseline: Callable[[], Baseline] = value_baseline) -> Algorithm:
  """Advantage-weighted regression (`losses.awr`), A = r − baseline."""
  limits.above_zero('awr', 'it divides the advantage', beta=beta)
  base = baseline()
  return by_response(
    'awr',
    lambda batch: losses.awr(
      policy_logps=batch.policy_logps, advantages=batch.rewards - base.of(batch), beta=beta
    ),
    temperature=beta, uses_reference=False, couples=base.couples, columns=base.columns,
  )  # fmt: skip


# --- policy gradients on logged responses -------------------------------------------------------------------


def reinforce(beta: Scalar = 0.0, baseline: Callable[[], Baseline] = minibatch_mean_baseline) -> Algorithm:
  """Naive off-policy policy gradient (`losses.reinforce`): the biased baseline that CoPG compares with."""
  limits.at_least_zero('reinforce', beta=beta)
  base = baseline()
  return by_response(
    'reinforce',
    lambda batch: losses.reinforce(
      policy_logps=batch.policy_logps, reference_logps=batch.reference_logps, rewards=batch.rewards,
      baselines=base.of(batch), beta=beta,
    ),
    temperature=beta, couples=base.couples, columns=base.columns, check=base.check,
    least_batch=base.least_batch,
  )  # fmt: skip


def ppo_clip(
  epsilon: float = 0.2,
  baseline: Callable[[], Baseline] = minibatch_mean_baseline,
  behaviour_sampler: str | None = None,
) -> Algorithm:
  """PPO's clipped ratio to the logging policy, by response (`losses.ppo_clip`), A = r − baseline."""
  limits.above_zero('ppo_clip', _CLIPPED, epsilon=epsilon)
  limits.within('ppo_clip', 0, 1, _WINDOW, epsilon=epsilon)
  base = baseline()
  return by_response(
    'ppo_clip',
    lambda batch: losses.ppo_clip(
      policy_logps=batch.policy_logps, behaviour_logps=batch.column('propensity'),
      advantages=batch.rewards - base.of(batch), epsilon=epsilon,
    ),
    uses_reference=False, couples=base.couples, check=base.check, least_batch=base.least_batch,
    columns={'propensity': derived.propensities(behaviour_sampler), **base.columns},
  )  # fmt: skip


def topr(baseline: Callable[[], Baseline] = zero_baseline, behaviour_sampler: str | None = None) -> Algorithm:
  """TOPR (`losses.topr`): imitates what is rewarded, and the rest by its clipped ratio to the log."""
  base = baseline()
  return by_response(
    'topr',
    lambda batch: losses.topr(
      policy_logps=batch.policy_logps, behaviour_logps=batch.column('propensity'),
      rewards=batch.rewards - base.of(batch),
    ),
    uses_reference=False, couples=base.couples, check=base.check, least_batch=base.least_batch,
    columns={'propensity': derived.propensities(behaviour_sampler), **base.columns},
  )  # fmt: skip


def prompt_quantiles() -> derived.Fit:
  """Quantiles among the responses logged for the same prompt (see `derived.prompt_quantiles`)."""
  return derived.prompt_quantiles


def data_quantiles() -> derived.Fit:
  """Quantiles among all training rewards (see `derived.data_quantiles`)."""
  return derived.data_quantiles


def qrpo(beta: Scalar = 0.1, quantiles: Callable[[], derived.Fit] = prompt_quantiles) -> Algorithm:
  """QRPO (`losses.qrpo`) on quantiles of the logged rewards."""
  limits.above_zero('qrpo', 'log Z divides by it', beta=beta)
  return by_response(
    'qrpo',
    lambda batch: losses.qrpo(
      policy_logps=batch.policy_logps, reference_logps=batch.reference_logps,
      quantiles=batch.column('quantile'), beta=beta,
    ),
    temperature=beta, columns={'quantile': quantiles()},
  )  # fmt: skip


def oreo(beta: Scalar = 0.03) -> Algorithm:
  """OREO (`losses.oreo_policy`, `losses.oreo_value`), on a value of each token."""
  limits.above_zero('oreo', _STILL, beta=beta)

  def loss(batch: Batch) -> LossOutput:
    arrays = {
      'policy_logps': batch.tokens(batch.scores.token_logps),
      'reference_logps': batch.tokens(batch.reference.token_logps),
      'mask': batch.token_mask,
      'values': batch.tokens(batch.scores.token_values),
      'rewards': batch.rewards,
    }
    policy, value = losses.oreo_policy(**arrays, beta=beta), losses.oreo_value(**arrays, beta=beta)
    return LossOutput({'policy': LossTerm(policy, batch.valid), 'value': LossTerm(value, batch.valid)})

  return Algorithm(
    'oreo', loss, beta, criterion='loss/value', uses_value=True, uses_token_values=True,
    check=derived.refuse_equal_rewards,
  )  # fmt: skip


# --- pairs --------------------------------------------------------------------------------------------------


def _pairs(batch: Batch) -> dict[str, Array]:
  """Log-probs of chosen and rejected responses, `[P]` each, by the losses' names."""
  policy_P2, reference_P2 = batch.members(batch.policy_logps), batch.members(batch.reference_logps)
  return {
    'policy_chosen_logps': policy_P2[:, 0],
    'policy_rejected_logps': policy_P2[:, 1],
    'reference_chosen_logps': reference_P2[:, 0],
    'reference_rejected_logps': reference_P2[:, 1],
  }


def dpo(beta: Scalar = 0.1, label_smoothing: float = 0.0) -> Algorithm:
  """DPO (`losses.dpo`)."""
  limits.above_zero('dpo', _STILL, beta=beta)
  limits.within('dpo', 0, 0.5, _NO_SIDE, label_smoothing=label_smoothing)
  return by_pair(
    'dpo',
    lambda batch: losses.dpo(**_pairs(batch), beta=beta, label_smoothing=label_smoothing),
    temperature=beta,
  )


def ipo(tau: Scalar = 0.1, by_length: bool = False) -> Algorithm:
  """IPO (`losses.ipo`) on summed log-probs, or with `by_length` on means over each response's tokens."""
  limits.above_zero('ipo', 'its margin is 1 / 2τ', tau=tau)

  def per_pair(batch: Batch) -> Array:
    lengths_P2 = batch.members(batch.lengths)
    lengths = {'chosen_lengths': lengths_P2[:, 0], 'rejected_lengths': lengths_P2[:, 1]} if by_length else {}
    return losses.ipo(**_pairs(batch), tau=tau, **lengths)

  return by_pair('ipo_by_length' if by_length else 'ipo', per_pair, temperature=tau)


def slic(delta: float = 1.0, sft_weight: float = 0.1) -> Algorithm:
  """SLiC (`losses.slic`): a hinge on the chosen response's margin, and some imitation of it."""
  limits.at_least_zero('slic', delta=delta, sft_weight=sft_weight)

  def per_pair(batch: Batch) -> Array:
    policy_P2 = batch.members(batch.policy_logps)
    return losses.slic(policy_P2[:, 0], policy_P2[:, 1], delta=delta, sft_weight=sft_weight)

  return by_pair('slic', per_pair, uses_reference=False)


# --- groups -------------------------------------------------------------------------------------------------


def _group(batch: Batch) -> dict[str, Array]:
  """What a loss of groups reads, `[G, K]` each, by the losses' names."""
  return {
    'policy_logps': batch.members(batch.policy_logps),
    'reference_logps': batch.members(batch.reference_logps),
    'rewards': batch.members(batch.rewards),
    'mask': batch.unit_mask,
  }


def _without_reference(batch: Batch) -> dict[str, Array]:
  return {
    'policy_logps': batch.members(batch.policy_logps),
    'rewards': batch.members(batch.rewards),
    'mask': batch.unit_mask,
  }


def copg(beta: Scalar = 0.06) -> Algorithm:
  """CoPG (`losses.copg`): contrastive policy gradient over all pairs of a group."""
  limits.above_zero('copg', _UNHELD, beta=beta)
  return by_group('copg', lambda batch: losses.copg(**_group(batch), beta=beta), temperature=beta)


def agro(beta: Scalar = 0.1) -> Algorithm:
  """AGRO (`losses.agro`): half the variance of r − βρ in a group."""
  limits.above_zero('agro', _STILL, beta=beta)
  return by_group('agro', lambda batch: losses.agro(**_group(batch), beta=beta), temperature=beta)


def rebel(eta: Scalar = 1.0, behaviour_sampler: str | None = None) -> Algorithm:
  """REBEL (`losses.rebel`): regresses reward differences on log-ratios to the logging policy."""
  limits.above_zero('rebel', 'it scales the rewards, and 1 / η is the temperature', eta=eta)

  def per_group(batch: Batch) -> Array:
    return losses.rebel(
      **_without_reference(batch), behaviour_logps=batch.members(batch.column('propensity')), eta=eta
    )

  return by_group(
    'rebel', per_group, temperature=1 / eta, uses_reference=False,
    columns={'propensity': derived.propensities(behaviour_sampler)},
  )  # fmt: skip


def rloo(beta: Scalar = 0.05) -> Algorithm:
  """RLOO (`losses.rloo`): REINFORCE, its baseline the group's other responses."""
  limits.at_least_zero('rloo', beta=beta)
  return by_group('rloo', lambda batch: losses.rloo(**_group(batch), beta=beta), temperature=beta)


def pro(sft_weight: float = 0.05) -> Algorithm:
  """PRO (`losses.pro`): preference ranking by length-mean log-probs."""
  limits.at_least_zero('pro', sft_weight=sft_weight)
  return by_group(
    'pro',
    lambda batch: losses.pro(
      **_without_reference(batch), lengths=batch.members(batch.lengths), sft_weight=sft_weight
    ),
    uses_reference=False,
  )


def nca(beta: Scalar = 0.01, alpha: float = 0.01) -> Algorithm:
  """NCA (`losses.nca`): noise contrastive alignment of a group's rewards."""
  limits.above_zero('nca', _STILL, beta=beta)
  limits.above_zero('nca', 'it divides the rewards', alpha=alpha)
  return by_group('nca', lambda batch: losses.nca(**_group(batch), beta=beta, alpha=alpha), temperature=beta)


# --- fresh responses of the current policy ------------------------------------------------------------------


def _on_fresh_groups(algorithm: Algorithm, samples: int, epochs: int = 1) -> Algorithm:
  """An algorithm of groups, on groups that the current policy samples."""
  if samples < 2:
    raise UsageError(
      f'{algorithm.name} compares the samples of a prompt, and samples={samples}: pass 2 or more '
      '(--set GROUP_SAMPLES=4).'
    )
  return algorithm._replace(
    name=f'{algorithm.name}_online', unit='prompt', uses_rewards=False, online=_online(samples, epochs),
    check=lambda triplets: None,
  )  # fmt: skip


def _online(samples: int, epochs: int, token_columns: Callable | None = None) -> Online:
  if samples < 1 or epochs < 1:
    raise UsageError(f'samples={samples}, epochs={epochs}: pass 1 or more of each.')
  return Online(samples, epochs, token_columns)


def rloo_online(beta: Scalar = 0.05, samples: int = 4) -> Algorithm:
  """RLOO (`losses.rloo`) as published: on fresh samples, one step on each batch of them."""
  return _on_fresh_groups(rloo(beta), samples)


def copg_online(beta: Scalar = 0.06, samples: int = 4, epochs: int = 1) -> Algorithm:
  """CoPG (`losses.copg`) on fresh samples; it may take several steps on each batch of them."""
  return _on_fresh_groups(copg(beta), samples, epochs)


def ppo_online(
  beta: Scalar = 0.05, epsilon: float = 0.2, lam: float = 0.95, samples: int = 1, epochs: int = 1
) -> Algorithm:
  """PPO by token (`losses.ppo_token`) on fresh samples (arXiv 1707.06347).

  r_t = −β log π(y_t|·)/π_ref(y_t|·), and r at the last token; advantages by GAE(γ = 1, λ) on the value of
  each token, which is fitted to A_t + V_t by least squares. Old log-probs, values and advantages are those of
  the policy that sampled, however many `epochs` follow. A-LoL's baseline (arXiv 2305.14718) is TRL's instead:
  there β adapts, scores are scaled and advantages whitened, values are clipped, and a batch has 4 epochs.
  """
  limits.at_least_zero('ppo_online', beta=beta)
  limits.above_zero('ppo_online', _CLIPPED, epsilon=epsilon)
  limits.within('ppo_online', 0, 1, _WINDOW, epsilon=epsilon)
  if not 0 <= lam <= 1:
    raise UsageError(f'ppo_online: lam={lam} must be from 0 to 1 (--gin.ppo_online.lam=0.95).')

  def token_columns(batch: Batch) -> dict[str, Array]:
    policy_NT, reference_NT, values_NT = map(
      batch.tokens, (batch.scores.token_logps, batch.reference.token_logps, batch.scores.token_values)
    )
    mask_NT = batch.token_mask
    last_NT = jnp.arange(mask_NT.shape[1])[None, :] == batch.lengths[:, None] - 1
    rewards_NT = jnp.where(last_NT, batch.rewards[:, None], 0.0) - beta * (policy_NT - reference_NT)
    advantages_NT = values.gae(rewards_NT, values_NT, mask_NT, lam=lam)
    return {
      'behaviour_logps': policy_NT,
      'advantages': advantages_NT,
      'returns': jnp.where(mask_NT, advantages_NT + values_NT, 0.0),
    }

  def loss(batch: Batch) -> LossOutput:
    columns, mask_NT = batch.rows.token_columns, batch.token_mask
    policy_NT, behaviour_NT = batch.tokens(batch.scores.token_logps), batch.tokens(columns['behaviour_logps'])
    policy = losses.ppo_token(
      policy_logps=policy_NT, mask=mask_NT, behaviour_logps=behaviour_NT,
      advantages=batch.tokens(columns['advantages']), epsilon=epsilon,
    )  # fmt: skip
    errors_NT = batch.tokens(batch.scores.token_values) - batch.tokens(columns['returns'])
    value = masked.masked_mean(jnp.square(errors_NT) / 2, mask_NT)
    clipped_NT = jnp.abs(jnp.expm1(policy_NT - behaviour_NT)) > epsilon
    metrics = {'clipped': masked.weighted_mean(clipped_NT.astype(jnp.float32), mask_NT)}
    return LossOutput(
      {'policy': LossTerm(policy, batch.valid), 'value': LossTerm(value, batch.valid)}, metrics
    )

  return Algorithm(
    'ppo_online', loss, beta, unit='prompt', uses_value=True, uses_token_values=True, uses_rewards=False,
    online=_online(samples, epochs, token_columns),
  )  # fmt: skip


def check_columns(algorithm: Algorithm, columns: Iterable[str]) -> None:
  """Refuses data without a column that the algorithm reads.

  Raises:
    UsageError: a required column is missing.
  """
  for column in algorithm.requires:
    if column not in columns:
      raise UsageError(
        f'the algorithm reads the column {column!r}, which the triplets lack (they have '
        f'{", ".join(sorted(columns)) or "no extra columns"}): add it, or map one with '
        f'--columns {column}=YOURS.'
      )


__all__ = [
  'a_lol', 'a_lol_kl', 'a_lol_ref_free', 'a_lol_sequence', 'agro', 'awr', 'bco', 'column_labels', 'copg',
  'copg_online', 'data_quantiles', 'dataset_mean_labels', 'dpo', 'dro_fixed_value', 'dro_p', 'dro_v',
  'dro_v_binary', 'dro_v_residual', 'filtered_sft', 'gold', 'ipo', 'kto', 'minibatch_mean_baseline',
  'minibatch_mean_labels', 'nca', 'oreo', 'ppo_clip', 'ppo_online', 'pro', 'prompt_mean_labels',
  'prompt_quantiles', 'qrpo', 'r_lol', 'rebel', 'regression', 'reinforce', 'rloo', 'rloo_online', 'sft',
  'slic', 'threshold_labels', 'topr', 'value_baseline', 'value_labels', 'weighted_bc', 'zero_baseline',
]  # fmt: skip
