"""Methods on the bandit, each by its loss, and the regret that theory or a paper gives its optimum."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dro_jax import losses
from dro_jax.arena.bandit.world import Bandit, Pairs, optimum
from dro_jax.types import Array


class State(NamedTuple):
  """The learner as a loss reads it: logits, V, and values derived from the logits."""

  logits: Array
  value: Array
  log_ratios: Array
  logps: Array


class Method(NamedTuple):
  """A method on this bandit.

  Attributes:
    loss: from the bandit, the learner and pairs to the mean loss.
    regret: what its population optimum must regret, J* − J, in reward units.
    source: where that number is from.
  """

  loss: Callable[[Bandit, State, Pairs], Array]
  regret: float
  source: str


def _mean(per_pair: Array, pairs: Pairs) -> Array:
  return jnp.sum(pairs.weights * per_pair) / jnp.sum(pairs.weights)


def _rewards(bandit: Bandit) -> Array:
  return jnp.asarray(bandit.rewards, jnp.float32)


def _group_loss(loss: Callable[..., Array]) -> Callable[[Bandit, State, Pairs], Array]:
  """A loss of groups, on pairs as groups of two, at the bandit's temperature."""

  def mean(bandit: Bandit, state: State, pairs: Pairs) -> Array:
    answers = jnp.stack([pairs.first, pairs.second], -1)
    per_group = loss(
      policy_logps=state.logps[answers],
      reference_logps=(state.logps - state.log_ratios)[answers],
      rewards=_rewards(bandit)[answers],
      mask=jnp.ones(answers.shape, bool),
      beta=bandit.tau,
    )
    return _mean(per_group, pairs)

  return mean


def _single_loss(per_answer: Callable[[Bandit, State, Array], Array]) -> Callable[..., Array]:
  """A loss of single answers, on both answers of every pair."""

  def mean(bandit: Bandit, state: State, pairs: Pairs) -> Array:
    return (
      _mean(per_answer(bandit, state, pairs.first), pairs)
      + _mean(per_answer(bandit, state, pairs.second), pairs)
    ) / 2

  return mean


def _ipo(bandit: Bandit, state: State, pairs: Pairs) -> Array:
  chosen = jnp.where(pairs.prefers_first, pairs.first, pairs.second)
  rejected = jnp.where(pairs.prefers_first, pairs.second, pairs.first)
  reference_logps = state.logps - state.log_ratios
  per_pair = losses.ipo(
    policy_chosen_logps=state.logps[chosen],
    policy_rejected_logps=state.logps[rejected],
    reference_chosen_logps=reference_logps[chosen],
    reference_rejected_logps=reference_logps[rejected],
    tau=bandit.tau,
  )
  return _mean(per_pair, pairs)


def _dro_p(bandit: Bandit, state: State, pairs: Pairs) -> Array:
  residuals = _rewards(bandit) - bandit.tau * state.log_ratios
  mean = (_mean(residuals[pairs.first], pairs) + _mean(residuals[pairs.second], pairs)) / 2

  def per_answer(bandit: Bandit, state: State, answers: Array) -> Array:
    return losses.dro_p(**_answer(bandit, state, answers), mean=mean, tau=bandit.tau)

  return _single_loss(per_answer)(bandit, state, pairs)


def _answer(bandit: Bandit, state: State, answers: Array) -> dict[str, Array]:
  """The arguments of losses of single answers."""
  return {
    'policy_logps': state.logps[answers],
    'reference_logps': (state.logps - state.log_ratios)[answers],
    'rewards': _rewards(bandit)[answers],
  }


def _dro_v(bandit: Bandit, state: State, answers: Array) -> Array:
  arrays = _answer(bandit, state, answers) | {'values': jnp.full(answers.shape, state.value)}
  return losses.dro_v_policy(**arrays, tau=bandit.tau) + losses.dro_v_value(**arrays, tau=bandit.tau)


def _with_value(value: Callable[[Bandit], float]) -> Callable[..., Array]:
  """The policy loss of DRO-V at a fixed V."""

  def per_answer(bandit: Bandit, state: State, answers: Array) -> Array:
    values = jnp.full(answers.shape, value(bandit), jnp.float32)
    return losses.dro_v_policy(**_answer(bandit, state, answers), values=values, tau=bandit.tau)

  return _single_loss(per_answer)


def _reinforce(baseline: Callable[[Bandit, State], Array]) -> Callable[..., Array]:
  def per_answer(bandit: Bandit, state: State, answers: Array) -> Array:
    baselines = jnp.full(answers.shape, baseline(bandit, state), jnp.float32)
    return losses.reinforce(**_answer(bandit, state, answers), baselines=baselines, beta=bandit.tau)

  return _single_loss(per_answer)


def _own_mean(bandit: Bandit, state: State) -> Array:
  return jax.lax.stop_gradient(jnp.sum(jnp.exp(state.logps) * _rewards(bandit)))


def logged_mean(bandit: Bandit) -> float:
  """E_μ R, the mean reward of the log."""
  return float(np.mean([np.dot(p, bandit.rewards) for p in bandit.behaviours]))


def _zero(*_: Any) -> float:
  return 0.0


_PAPER = 'CoPG, Sect. 5'
_SOLVED = 'its stationary point, solved in float64'
GIVEN_VALUES: Mapping[str, Callable[[Bandit], float]] = {
  'dro_zero_value': _zero,
  'dro_mean_value': logged_mean,
  'dro_oracle_value': lambda bandit: optimum(bandit).value,
}
METHODS: Mapping[str, Method] = {
  'copg': Method(_group_loss(losses.copg), 0.0, _PAPER),
  'agro': Method(_group_loss(losses.agro), 0.0, 'AGRO, its theorem'),
  'dro_v': Method(_single_loss(_dro_v), 0.0, 'DRO, Theorem 1'),
  'dro_p': Method(_dro_p, 0.0, 'DRO, App. B: one prompt'),
  'dro_oracle_value': Method(_with_value(GIVEN_VALUES['dro_oracle_value']), 0.0, 'DRO, Theorem 1'),
  'dro_mean_value': Method(_with_value(logged_mean), 0.1331, _SOLVED),
  'dro_zero_value': Method(_with_value(_zero), 0.6378, 'reinforce, b = 0: the same gradient'),
  'ipo': Method(_ipo, 0.1525, _PAPER),
  'reinforce': Method(_reinforce(_zero), 0.6378, _PAPER + ', b = 0'),
  'reinforce_own_mean': Method(_reinforce(_own_mean), 0.0148, _PAPER + ', b = E_π R'),
}
