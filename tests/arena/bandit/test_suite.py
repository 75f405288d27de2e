import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from dro_jax.arena import arena as run
from dro_jax.arena.bandit import learning, methods, report, world
from dro_jax.arena.bandit.suite import bandit
from dro_jax.errors import UsageError

BANDIT = world.Bandit()
R, TAU = np.array(BANDIT.rewards), BANDIT.tau
MU = np.mean(BANDIT.behaviours, axis=0)


def test_the_optimum_is_the_papers():
  best = world.optimum(BANDIT)
  np.testing.assert_allclose(best.policy, [0.70538, 0.25950, 0.03512], atol=1e-5)
  assert best.value == pytest.approx(2.12520, abs=1e-5)
  start = best.value - 1.83333
  np.testing.assert_allclose(world.regret(BANDIT, np.zeros((2, 3))), start, atol=1e-5)


def test_the_population_is_every_pair_with_either_preference():
  pairs = world.population(BANDIT)
  assert len(pairs.first) == 18
  assert float(pairs.weights.sum()) == pytest.approx(1)
  chosen = pairs.weights * pairs.prefers_first * (pairs.first == 0) * (pairs.second == 2)
  assert float(chosen.sum()) == pytest.approx(0.1 * 0.9 / (1 + np.exp(-1.5)))


def test_a_sample_looks_like_the_population():
  drawn, expected = world.sample(BANDIT, 0), world.population(BANDIT)
  for seen in (lambda p: p.first == 1, lambda p: p.second == 2, lambda p: p.prefers_first):
    share = float(jnp.mean(seen(drawn)))
    assert share == pytest.approx(float(jnp.sum(expected.weights * seen(expected))), abs=0.02)


@pytest.mark.parametrize('method', methods.METHODS)
def test_population_fixed_points(method):
  settled = learning.settle(method, BANDIT, jax.random.normal(jax.random.key(1), (3,)))
  assert float(world.regret(BANDIT, settled['logps'])) == pytest.approx(
    methods.METHODS[method].regret, abs=report.AGREEMENT
  )
  if method == 'dro_v':
    assert float(settled['value']) == pytest.approx(2.12520, abs=1e-4)


def solved(baseline: float) -> np.ndarray:
  """Where μ(R − τ log π/π_ref − b) is proportional to π, in float64."""

  def gradient(logits):
    pi = np.exp(np.append(logits, 0)) / np.exp(np.append(logits, 0)).sum()
    pull = MU * (R - TAU * np.log(3 * pi) - baseline)
    return (pull - pi * pull.sum())[:2]

  logits = np.append(scipy.optimize.fsolve(gradient, np.zeros(2)), 0)
  return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize('method', methods.GIVEN_VALUES)
def test_another_value_biases_the_policy_within_proposition_1(method):
  value = methods.GIVEN_VALUES[method](BANDIT)
  policy = solved(value)
  assert world.regret(BANDIT, np.log(policy)) == pytest.approx(methods.METHODS[method].regret, abs=5e-5)
  distance, bound = report.proposition_1(BANDIT, policy, value)
  assert distance <= bound + 1e-9
  assert (distance < 1e-6) == (method == 'dro_oracle_value')


def test_the_suite_runs_resumes_and_reports(tmp_path):
  suite = functools.partial(bandit, steps=40, measurements=4, pairs=1000)
  chosen = {'algorithms': 'copg,dro_v,dro_zero_value', 'seeds': 2}
  assert run.arena(str(tmp_path / 'arena'), suite, **chosen)['cells_run'] == 6
  assert run.arena(str(tmp_path / 'arena'), suite, **chosen)['cells_run'] == 0
  fixed, theory, recipe = json.loads((tmp_path / 'arena/results.json').read_text())['tables']
  assert [row['agrees'] for row in fixed['rows']] == [True] * 3
  assert [row['method'] for row in theory['rows']] == ['dro_v', 'dro_zero_value']
  assert all(row['holds'] for row in theory['rows'])
  falling = recipe['rows'][0]
  assert falling['still falling'] and 0.2 < falling['regret at the end']['value'] < 0.2919
  assert (tmp_path / 'arena/regret.png').exists()


def test_another_bandit_has_no_published_numbers(tmp_path):
  other = BANDIT._replace(tau=1.0)
  suite = functools.partial(bandit, tau=1.0, steps=20, measurements=2, pairs=600)
  run.arena(str(tmp_path / 'arena'), suite, algorithms='dro_v,ipo', seeds=1)
  rows = json.loads((tmp_path / 'arena/results.json').read_text())['tables'][0]['rows']
  assert [row['expected regret'] for row in rows] == [0.0, None]
  assert rows[0]['agrees'] and rows[1]['agrees'] is None
  np.testing.assert_allclose(world.regret(other, np.log(world.optimum(other).policy)), 0, atol=1e-12)


def test_steps_that_do_not_divide_are_refused():
  with pytest.raises(UsageError, match='not a multiple'):
    bandit(steps=7, measurements=2)
