import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dro_jax import losses
from dro_jax.losses.groups import GROUP_VALUES
from tests.losses.conftest import FIRST, SECOND, check, fixed_point, float32, gradients, regret

SIZES = (4, 3, 2, 1)
REGULARISED = (losses.copg, losses.agro, losses.rloo, losses.nca)


def loops(groups, of_group):
  """(losses, gradients) `[G]`, `[G, K]`, member by member; a group of one has none."""
  values, slopes = np.zeros(4), np.zeros((4, 4))
  for g, size in enumerate(SIZES):
    if size > 1:
      rows = {name: x[g, :size] for name, x in groups.items() if name != 'mask'}
      values[g], slopes[g, :size] = of_group(size, **rows)
  return values, slopes


def test_copg_weighs_half_of_beta_in_the_loss_and_all_of_it_in_the_gradient(groups):
  def of_group(size, policy_logps, reference_logps, rewards):
    rho, value, slope = policy_logps - reference_logps, 0.0, np.zeros(size)
    pairs = list(itertools.combinations(range(size), 2))
    for i, j in pairs:
      dr, drho = rewards[i] - rewards[j], rho[i] - rho[j]
      value -= (dr - 0.35 * drho) * drho / len(pairs)
      slope[i] -= (dr - 0.7 * drho) / len(pairs)
      slope[j] += (dr - 0.7 * drho) / len(pairs)
    return value, slope

  check(losses.copg, groups, *loops(groups, of_group), beta=0.7)


def test_agro_is_half_the_variance(groups):
  def of_group(size, policy_logps, reference_logps, rewards):
    residual = rewards - 0.7 * (policy_logps - reference_logps)
    return np.var(residual) / 2, -0.7 * (residual - residual.mean()) / size

  check(losses.agro, groups, *loops(groups, of_group), beta=0.7)


def test_rebel_regresses_differences(groups):
  groups['behaviour_logps'] = groups.pop('reference_logps')

  def of_group(size, policy_logps, behaviour_logps, rewards):
    log_ratio, value, slope = policy_logps - behaviour_logps, 0.0, np.zeros(size)
    pairs = list(itertools.combinations(range(size), 2))
    for i, j in pairs:
      residual = log_ratio[i] - log_ratio[j] - 1.3 * (rewards[i] - rewards[j])
      value += residual**2 / len(pairs)
      slope[i] += 2 * residual / len(pairs)
      slope[j] -= 2 * residual / len(pairs)
    return value, slope

  check(losses.rebel, groups, *loops(groups, of_group), eta=1.3)


def test_rloo_leaves_one_out(groups):
  def of_group(size, policy_logps, reference_logps, rewards):
    returns = rewards - 0.7 * (policy_logps - reference_logps)
    advantages = np.array([returns[i] - np.delete(returns, i).mean() for i in range(size)])
    return -advantages @ policy_logps / size, -advantages / size

  check(losses.rloo, groups, *loops(groups, of_group), ('reference_logps', 'rewards'), beta=0.7)


def test_nca_classifies_each_response_against_noise(groups):
  def of_group(size, policy_logps, reference_logps, rewards):
    margins = 0.3 * (policy_logps - reference_logps)
    weights = np.exp(rewards / 0.5) / np.exp(rewards / 0.5).sum()
    sigma = 1 / (1 + np.exp(-margins))
    value = -(weights * np.log(sigma)).sum() - np.log(1 - sigma).mean()
    return value, 0.3 * (-weights * (1 - sigma) + sigma / size)

  check(losses.nca, groups, *loops(groups, of_group), beta=0.3, alpha=0.5)


def test_pro_ranks_the_list(groups):
  del groups['reference_logps']
  groups['lengths'] = np.where(groups['mask'], np.arange(1, 17).reshape(4, 4) % 5 + 1, 0)

  def value_of(policy_logps, rewards, lengths):
    order = np.argsort(-rewards)
    p, r, logps = (policy_logps / lengths)[order], rewards[order], policy_logps[order]
    total = -0.05 * logps[0]
    for k in range(len(p) - 1):
      gaps = r[k] - r[k + 1 :]
      top = p[k] * gaps.max()
      total += np.log(np.exp(top) + np.exp(p[k + 1 :] * gaps).sum()) - top
    return total

  def of_group(size, policy_logps, **rest):
    nudges = 1e-6 * np.eye(size)
    slope = [(value_of(policy_logps + d, **rest) - value_of(policy_logps - d, **rest)) / 2e-6 for d in nudges]
    return value_of(policy_logps, **rest), slope

  check(losses.pro, groups, *loops(groups, of_group))


@pytest.mark.parametrize('loss', REGULARISED)
def test_wrong_shapes_raise(groups, loss):
  arrays = {**float32(groups), 'mask': jnp.asarray(groups['mask'])}
  with pytest.raises(ValueError, match='rewards has shape'):
    loss.__wrapped__(**(arrays | {'rewards': jnp.zeros((4, 1))}))


# --- identities ---------------------------------------------------------------------------------------------


def pairs_as_groups(seed=5):
  rng = np.random.default_rng(seed)
  names = ('policy_logps', 'reference_logps', 'rewards')
  arrays = {name: jnp.asarray(rng.normal(size=(6, 2)), jnp.float32) for name in names}
  return arrays | {'mask': jnp.ones((6, 2), bool)}


def test_copg_with_signed_quarters_is_ipo():
  """r = ±¼: CoPG is (β/2)·IPO on sums, up to a constant."""
  arrays = pairs_as_groups() | {'rewards': jnp.tile(jnp.array([0.25, -0.25]), (6, 1))}
  columns = [arrays[side][:, i] for side in ('policy_logps', 'reference_logps') for i in (0, 1)]
  beta = 0.7
  # Δr = ½: −(½ − (β/2)Δρ)Δρ = (β/2)(Δρ − 1/(2β))² − 1/(8β).
  expected = beta / 2 * losses.ipo(*columns, tau=beta) - 1 / (8 * beta)
  np.testing.assert_allclose(losses.copg(**arrays, beta=beta), expected, rtol=1e-5, atol=1e-6)


def test_copg_is_rebel_around_the_reference():
  """CoPG = (β/2)·REBEL at η = 1/β with the reference for behaviour, up to a constant."""
  arrays, beta = pairs_as_groups(), 0.7
  behaviour = {'behaviour_logps': arrays['reference_logps']}
  rebel = losses.rebel(
    **{name: x for name, x in arrays.items() if name != 'reference_logps'}, **behaviour, eta=1 / beta
  )
  constant = jnp.square(arrays['rewards'][:, 0] - arrays['rewards'][:, 1]) / (2 * beta)
  np.testing.assert_allclose(
    losses.copg(**arrays, beta=beta), beta / 2 * rebel - constant, rtol=1e-4, atol=1e-5
  )


def slopes(loss, arrays, **settings):
  moved = jax.jit(jax.grad(lambda x: jnp.sum(loss(**(arrays | {'policy_logps': x}), **settings))))
  return moved(arrays['policy_logps'])


def test_agro_on_pairs_is_copg():
  """Half the variance of two is an eighth of their squared difference: agro = (β/4)·copg + Δr²/8."""
  arrays, beta = pairs_as_groups(), 0.7
  np.testing.assert_allclose(
    slopes(losses.agro, arrays, beta=beta), beta / 4 * slopes(losses.copg, arrays, beta=beta), rtol=1e-4,
    atol=1e-6,
  )  # fmt: skip


def test_copgs_gradient_is_twice_rloos(groups):
  """At equal β, K and ρ, for any policy."""
  arrays = {**float32(groups), 'mask': jnp.asarray(groups['mask'])}
  np.testing.assert_allclose(
    slopes(losses.copg, arrays, beta=0.7), 2 * slopes(losses.rloo, arrays, beta=0.7), rtol=1e-3, atol=1e-4
  )


# --- CoPG's bandit ------------------------------------------------------------------------------------------


def group_loss(bandit, loss, **settings):
  def pair_loss(logps, y, other):
    members = jnp.stack([y, other], axis=1)
    arrays = bandit.reference_logps[members], bandit.rewards[members], jnp.ones(members.shape, bool)
    return loss(logps[members], *arrays, **settings)

  return pair_loss


@pytest.mark.parametrize(
  'loss', [functools.partial(losses.copg, beta=0.5), functools.partial(losses.agro, beta=0.5)]
)
def test_the_bandits_optimum_is_found_from_others_pairs(bandit, loss):
  np.testing.assert_allclose(fixed_point(bandit, group_loss(bandit, loss)), bandit.optimum, atol=1e-4)


def test_rebel_from_the_reference_finds_the_optimum(bandit):
  loss = functools.partial(losses.rebel, eta=1 / bandit.tau)
  np.testing.assert_allclose(fixed_point(bandit, group_loss(bandit, loss)), bandit.optimum, atol=1e-4)


def test_copgs_recipe_ends_near_the_optimum_and_still_falling(bandit):
  """The paper's 2000 Adam steps of 1e-3, here on the whole population of pairs: regret ≈ .013."""
  y, other = (jnp.array(column) for column in zip(*itertools.product(range(3), repeat=2)))
  weights = jnp.array(np.outer(FIRST, SECOND).ravel(), jnp.float32)
  pair_loss = group_loss(bandit, losses.copg, beta=bandit.tau)
  slope = jax.grad(lambda logits: jnp.sum(weights * pair_loss(jax.nn.log_softmax(logits), y, other)))

  def step(carry, count):
    logits, first, second = carry
    gradient = slope(logits)
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    update = first / (1 - 0.9**count) / (jnp.sqrt(second / (1 - 0.999**count)) + 1e-8)
    return (logits - 1e-3 * update, first, second), logits

  _, path = jax.lax.scan(step, (jnp.zeros(3),) * 3, jnp.arange(1.0, 2001.0))
  start, late, end = (regret(bandit, np.asarray(jax.nn.softmax(path[i]), np.float64)) for i in (0, 1900, -1))
  np.testing.assert_allclose(start, 2.12520 - 1.83333, atol=1e-5)
  np.testing.assert_allclose(end, 0.0128, atol=3e-4)
  assert late > end + 0.001


def test_nca_of_all_answers_is_the_tilted_reference(bandit):
  """K p = π/π_ref at β = 1: π = softmax(R/α), for any log."""

  def loss(logps, y, other):
    everything = jnp.ones((1, 3), bool)
    arrays = logps[None], bandit.reference_logps[None], bandit.rewards[None], everything
    return losses.nca(*arrays, beta=1.0, alpha=bandit.tau)

  np.testing.assert_allclose(fixed_point(bandit, loss), bandit.optimum, atol=1e-4)


def test_pro_prefers_the_better(bandit):
  def pro(logps, y, other):
    members = jnp.stack([y, other], axis=1)
    ones = jnp.ones(members.shape)
    return losses.pro(logps[members], bandit.rewards[members], ones, ones > 0, sft_weight=0.0)

  ranked = fixed_point(bandit, pro, steps=300)
  assert ranked[0] > ranked[1] > ranked[2]


def test_rloo_on_its_own_samples_climbs_to_the_optimum(bandit):
  """On-policy groups of two: the mean gradient vanishes at π*."""
  logits = jnp.log(jnp.asarray(bandit.optimum, jnp.float32))
  y, other = (jnp.array(column) for column in zip(*itertools.product(range(3), repeat=2)))

  @jax.jit
  @jax.grad
  def slope(logits, weights):
    logps = jax.nn.log_softmax(logits)
    return jnp.sum(weights * group_loss(bandit, losses.rloo, beta=bandit.tau)(logps, y, other))

  on_policy = jnp.outer(jnp.asarray(bandit.optimum), jnp.asarray(bandit.optimum)).ravel()
  off_policy = jnp.outer(jnp.asarray(FIRST), jnp.asarray(SECOND)).ravel()
  np.testing.assert_allclose(slope(logits, on_policy), 0, atol=1e-4)
  # At π* every return is the same, whoever sampled: that is why logged groups serve too.
  np.testing.assert_allclose(slope(logits, off_policy), 0, atol=1e-4)


def group_value(value, rewards, weights, beta, k):
  """V̂ of member k by hand."""
  others = [j for j in range(len(rewards)) if not (value.startswith('leave_one_out') and j == k)]
  weights, rewards = np.array(weights)[others] / np.sum(np.array(weights)[others]), rewards[others]
  if value.endswith('log_mean_exp'):
    return beta * np.log(np.sum(weights * np.exp(rewards / beta)))
  return np.sum(weights * rewards)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('value', GROUP_VALUES)
def test_the_value_of_a_group_is_estimated_from_its_rewards(groups, value, weighted):
  behaviour = {'behaviour_logps': groups['reference_logps'] - np.linspace(-1, 1, 16).reshape(4, 4)}

  def of_group(size, policy_logps, reference_logps, rewards, behaviour_logps):
    weights = np.exp(reference_logps - behaviour_logps) if weighted else np.ones(size)
    rho = policy_logps - reference_logps
    advantages = rewards - [group_value(value, rewards, weights, 0.4, k) for k in range(size)]
    per_member = -advantages * policy_logps + 0.7 / 2 * rho**2
    return per_member.mean(), (-advantages + 0.7 * rho) / size

  expected = loops(groups | behaviour, of_group)
  settings = {'tau': 0.7, 'value': value, 'value_temperature': 0.4}
  check(losses.dro_group_value, groups | (behaviour if weighted else {}), *expected, **settings)


@pytest.mark.parametrize('value', GROUP_VALUES)
def test_no_gradient_reaches_the_value_of_a_group(groups, value):
  """So that a reward's gradient is −log π / K alone, and propensities have none."""
  loss = functools.partial(losses.dro_group_value, value=value)
  arrays = groups | {'behaviour_logps': groups['reference_logps'] - 1}
  found = gradients(loss, arrays, 'rewards', 'behaviour_logps')
  sizes = np.array(SIZES)[:, None]
  expected = np.where(groups['mask'] & (sizes > 1), -groups['policy_logps'] / sizes, 0)
  np.testing.assert_allclose(found['rewards'], expected, rtol=1e-5)
  assert not found['behaviour_logps'].any()


def test_the_temperature_of_a_groups_value_is_tau_by_default(groups):
  arrays = {**float32(groups), 'mask': jnp.asarray(groups['mask'])}
  own = losses.dro_group_value(**arrays, tau=0.7, value_temperature=0.7)
  np.testing.assert_array_equal(losses.dro_group_value(**arrays, tau=0.7), own)
  with pytest.raises(ValueError, match='value=.median. is unknown: pass one of mean, '):
    losses.dro_group_value(**arrays, value='median')


@pytest.mark.parametrize('temperature', [1e-3, 1e3])
def test_a_groups_value_stays_exact_at_extreme_temperatures(groups, temperature):
  """Where e^{r/β₁} overflows float32, V̂ is the best reward less β₁ log K."""
  arrays = {**float32(groups), 'mask': jnp.asarray(groups['mask'])}
  rewards = 50 * arrays['rewards']
  arrays |= {'reference_logps': jnp.zeros((4, 4)), 'policy_logps': -jnp.ones((4, 4)), 'rewards': rewards}
  found = losses.dro_group_value(**arrays, tau=0.0, value='log_mean_exp', value_temperature=temperature)
  for g, size in enumerate(SIZES[:3]):
    members = np.asarray(rewards[g, :size], np.float64)
    value = temperature * (special.logsumexp(members / temperature) - np.log(size))
    np.testing.assert_allclose(found[g], members.mean() - value, atol=1e-3)


def whole_answer_set(bandit, reference_logps, behaviour, **settings):
  """A group with every answer once, as `behaviour` weighs them; the optimum of that reference too."""
  reference_logps = jnp.log(jnp.asarray(reference_logps))

  def loss(logps, y, other):
    arrays = logps[None], reference_logps[None], bandit.rewards[None], jnp.ones((1, 3), bool)
    behaviour_logps = None if behaviour is None else jnp.log(jnp.asarray(behaviour))[None]
    return losses.dro_group_value(*arrays, tau=bandit.tau, behaviour_logps=behaviour_logps, **settings)

  tilted = np.exp(
    np.asarray(reference_logps, np.float64) + np.asarray(bandit.rewards, np.float64) / bandit.tau
  )
  return fixed_point(bandit, loss), tilted / tilted.sum()


def test_a_group_of_all_answers_has_the_optimum(bandit):
  """V̂ is V* then: under a uniform reference as it is, under another by its propensities."""
  found, optimum = whole_answer_set(bandit, [1 / 3] * 3, None, value='log_mean_exp')
  np.testing.assert_allclose(found, optimum, atol=1e-4)
  np.testing.assert_allclose(optimum, bandit.optimum, atol=1e-4)
  found, optimum = whole_answer_set(bandit, [0.2, 0.3, 0.5], [1 / 3] * 3, value='log_mean_exp')
  np.testing.assert_allclose(found, optimum, atol=1e-4)
  biased, _ = whole_answer_set(bandit, [0.2, 0.3, 0.5], None, value='log_mean_exp')
  assert np.abs(biased - optimum).max() > 0.01


def test_the_mean_of_a_group_is_no_value(bandit):
  """DRO's Sect. 3.3: any other V than V* biases the policy."""
  found, optimum = whole_answer_set(bandit, [1 / 3] * 3, None, value='mean')
  assert np.abs(found - optimum).max() > 0.02
