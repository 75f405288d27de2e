import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.algorithms import NextTokenKl, with_next_token_kl
from dro_jax.algorithms.batch import Batch
from dro_jax.errors import UsageError
from dro_jax.types import Scores, Units
from tests.examples import layout, random_examples

RNG = np.random.default_rng(0)
ROWS = layout(random_examples(4), 2, 2)
ROWS = ROWS._replace(valid=ROWS.valid.at[1, 1].set(False))
TOKEN_KLS = jnp.where(ROWS.response_segments > 0, jnp.asarray(RNG.random(ROWS.response_tokens.shape)), 0.0)


def scores(**changes):
  token_logps = jnp.zeros(ROWS.response_tokens.shape)
  return Scores(jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32), token_logps, **changes)


BATCH = Batch(scores(values=jnp.zeros((2, 2)), token_kls=TOKEN_KLS.astype(jnp.float32)), scores(), ROWS)
EXPECTED = np.array(
  [[np.where(ROWS.response_segments[b] == r + 1, TOKEN_KLS[b], 0).sum() for r in range(2)] for b in range(2)]
).reshape(-1)


@pytest.mark.parametrize(
  'algorithm, temperature',
  [(algorithms.dro_v(0.3), 0.3), (algorithms.rebel(eta=4.0), 0.25), (algorithms.sft(), 1.0)],
)
def test_the_term_is_the_weighted_kl_of_each_response_in_units_of_the_temperature(algorithm, temperature):
  output = with_next_token_kl(algorithm._replace(loss=algorithms.NO_LOSS.loss), 2.0).loss(BATCH)
  [term] = output.terms.values()
  np.testing.assert_allclose(term.per_example, 2.0 * temperature * EXPECTED, rtol=1e-5)
  assert term.weights.tolist() == [True, True, True, False]
  np.testing.assert_allclose(output.metrics['next_token_kl'], EXPECTED[:3].mean(), rtol=1e-5)


def test_the_algorithms_own_losses_and_criterion_stay():
  alone, added = (each.loss(BATCH) for each in (algorithms.dro_v(), with_next_token_kl(algorithms.dro_v())))
  assert [*added.terms] == ['policy', 'value', 'next_token_kl']
  for name, term in alone.terms.items():
    np.testing.assert_array_equal(term.per_example, added.terms[name].per_example)
  assert with_next_token_kl(algorithms.dro_v()).criterion == 'loss/value'


def test_the_mean_runs_over_responses_where_the_algorithm_counts_pairs():
  rows = ROWS._replace(units=Units(jnp.array([[0, 1]]), jnp.ones((1, 2), bool)))
  terms = with_next_token_kl(algorithms.dpo()).loss(BATCH._replace(rows=rows)).terms
  assert terms['policy'].per_example.shape == (1,) and terms['next_token_kl'].per_example.shape == (4,)


def test_a_loss_without_a_reference_does_not_see_the_one_that_the_kl_needs():
  rows = ROWS._replace(units=Units(jnp.array([[0, 1]]), jnp.ones((1, 2), bool)))
  slic, batch = with_next_token_kl(algorithms.slic()), BATCH._replace(rows=rows)
  assert slic.uses_reference and slic.kl_direction == 'reverse'
  alone = algorithms.slic().loss(batch._replace(reference=None)).metrics['pair_margin']
  assert slic.loss(batch).metrics['pair_margin'] == alone
  assert algorithms.slic().loss(batch).metrics['pair_margin'] != alone


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'weight': -1.0}, 'weight=-1.0 weighs a KL.*away from its reference'),
    ({'weight': float('nan')}, 'weight=nan'),
    ({'weight': 1.0, 'direction': 'both'}, "direction='both' is not a direction"),
    ({'direction': 'forward'}, "direction='forward' changes nothing, because a weight of 0"),
  ],
)
def test_settings_that_add_no_kl_are_refused(settings, message):
  with pytest.raises(UsageError, match=message):
    NextTokenKl(**settings)


@pytest.mark.parametrize(
  'algorithm, message',
  [
    (algorithms.regression(), 'regression does not train the policy'),
    (algorithms.rloo(beta=0.0), "in multiples of rloo's temperature, which is 0"),
  ],
)
def test_algorithms_that_it_could_not_hold_are_refused(algorithm, message):
  with pytest.raises(UsageError, match=message):
    with_next_token_kl(algorithm)
