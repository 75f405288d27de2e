import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dro_jax import algorithms
from dro_jax.errors import UsageError
from dro_jax.models import scoring
from dro_jax.step import reference, train_step
from dro_jax.step import state as train_state
from dro_jax.types import Units
from tests.examples import init_params, layout, random_examples
from tests.tiers import tiers

ROWS = layout(random_examples(8), 4, 2, mismatches=[4 * (1 - i // 4) + (i % 4 - 1) % 4 for i in range(8)])
PAIRS = Units(jnp.array([[0, 1], [2, 3], [4, 5], [6, 7]]), jnp.ones((4, 2), bool))
METHODS = {
  'dpo': algorithms.dpo,
  'ipo': algorithms.ipo,
  'kto': algorithms.kto,
  'dro_v': algorithms.dro_v,
  'bco': algorithms.bco,
}


def run(method, scheme, num_steps=3, num_microbatches=1):
  """States after each step, and each step's metrics."""
  algorithm = METHODS[method]()
  policy, value, params = init_params(readout='prompt' if algorithm.uses_value else None)
  txs = {name: optax.sgd(0.05) for name in params}
  step = train_step.make_train_step(
    scoring.make_score(policy, value),
    algorithm,
    txs,
    scheme().build(scoring.make_score(policy)),
    num_microbatches=num_microbatches,
  )
  moves = scheme().build(scoring.make_score(policy)).initial is not None
  state = train_state.create(params, txs, True, algorithm.statistics, keeps_initial=moves)
  step = jax.jit(step)
  rows = ROWS._replace(
    units=PAIRS if algorithm.unit == 'pair' else None,
    mismatched=ROWS.mismatched if algorithm.uses_mismatched else None,
  )
  states, measured = [state], []
  for _ in range(num_steps):
    state, output = step(state, rows)
    states.append(state)
    measured.append(output.metrics)
  return states, measured


def close(a, b, **tolerances):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), a, b)


def test_a_frozen_reference_stays():
  states, _ = run('dpo', reference.Frozen)
  jax.tree.map(np.testing.assert_array_equal, states[0].reference, states[-1].reference)
  assert states[0].params['policy'] is not states[-1].params['policy']


def test_soft_updates_weigh_the_policy_by_alpha_and_count_optimiser_steps():
  soft = functools.partial(reference.Soft, alpha=0.25, every=2)
  for num_microbatches in (1, 2):
    states, _ = run('dpo', soft, 4, num_microbatches)
    references = [state.reference for state in states]
    policies = [state.params['policy'] for state in states]
    jax.tree.map(np.testing.assert_array_equal, references[0], references[1])
    expected = jax.tree.map(lambda p, r: 0.25 * p + 0.75 * r, policies[2], references[0])
    close(references[2], expected, rtol=1e-5, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, references[2], references[3])
    expected = jax.tree.map(lambda p, r: 0.25 * p + 0.75 * r, policies[4], references[2])
    close(references[4], expected, rtol=1e-5, atol=1e-7)


def test_a_hard_update_is_the_policy():
  states, _ = run('dpo', functools.partial(reference.Hard, every=2), 2)
  jax.tree.map(np.testing.assert_array_equal, states[2].reference, states[2].params['policy'])
  jax.tree.map(np.testing.assert_array_equal, states[1].reference, states[0].reference)


@pytest.mark.parametrize('method', tiers(('dro_v',), METHODS))
def test_every_method_takes_a_moving_reference(method):
  """α = 1 after every step: the policy is always its own reference, and every log-ratio is zero."""
  _, measured = run(method, functools.partial(reference.Soft, alpha=1.0, every=1))
  for metrics in measured:
    assert metrics['log_ratio_max_moving'] == 0.0
    assert 'log_ratio_max' not in metrics
  _, measured = run(method, reference.Frozen)
  assert measured[-1]['log_ratio_max'] > 0.0


def test_a_moving_reference_is_measured_by_the_initial_policy():
  """Against the moving one ρ is 0 after each update; the initial policy stays as it was."""
  scheme = functools.partial(reference.Hard, every=1)
  states, _ = run('kto', scheme, 2)
  policy, _, params = init_params(readout=None)
  for state in states:
    jax.tree.map(np.testing.assert_array_equal, state.initial, params['policy'])
  score = jax.jit(scoring.make_score(policy))
  logps, initial_logps = (
    score({'policy': x}, ROWS).logps for x in (states[2].params['policy'], params['policy'])
  )
  for num_microbatches in (1, 2):
    measure = train_step.make_measure(scheme().build(scoring.make_score(policy)), num_microbatches)
    found = jax.jit(measure)(states[2], ROWS, logps)
    rho = np.asarray(logps - initial_logps, np.float64)
    assert rho.std() > 1e-3
    expected = {'log_ratio': rho.mean(), 'log_ratio_std': rho.std(), 'log_ratio_max': np.abs(rho).max()}
    close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('settings', [{'alpha': 0.0}, {'alpha': 1.5}, {'every': 0}])
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(UsageError, match='pass 0 < alpha ≤ 1'):
    reference.Soft(**settings).build(lambda *_: None)
