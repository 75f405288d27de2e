import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.algorithms.batch import Batch
from dro_jax.errors import UsageError
from dro_jax.types import Scores, Units
from tests.examples import layout, random_examples


def batch(pairs=((0, 1), (2, 3)), mask=((True, True), (True, True))):
  rows = layout(random_examples(4), 2, 2)
  rows = rows._replace(units=Units(jnp.array(pairs), jnp.array(mask)))
  zeros = jnp.zeros((2, 2)), jnp.zeros(rows.response_tokens.shape)
  # Examples lie down the rows: 0 and 2 in the first, 1 and 3 in the second.
  return Batch(Scores(*zeros, values=jnp.array([[2.0, 1.0], [0.5, 1.0]])), None, rows)


def test_bradley_terry_compares_the_scores_of_pairs():
  output = algorithms.bradley_terry(margin=0.25).loss(batch())
  margins = np.array([1.0, -0.5])
  expected = np.log1p(np.exp(-(margins - 0.25)))
  np.testing.assert_allclose(output.terms['value'].per_example, expected, rtol=1e-5)
  np.testing.assert_allclose(output.metrics['pair_margin'], 0.25, rtol=1e-6)
  assert float(output.metrics['pair_accuracy']) == 0.5


def test_a_pair_that_fills_up_a_batch_weighs_nothing_and_a_tie_half():
  output = algorithms.bradley_terry().loss(batch(pairs=((1, 3), (0, 1)), mask=((True, True), (False, False))))
  assert output.terms['value'].weights.tolist() == [True, False]
  assert float(output.metrics['pair_accuracy']) == 0.5 and float(output.metrics['pair_margin']) == 0


def test_reward_regression_compares_scores_with_rewards():
  data = batch()
  output = algorithms.reward_regression().loss(data)
  rewards = np.asarray(data.rewards)
  np.testing.assert_allclose(
    output.terms['value'].per_example, (np.array([2.0, 1.0, 0.5, 1.0]) - rewards) ** 2 / 2, rtol=1e-5
  )


@pytest.mark.parametrize('name, scores', [('bradley_terry', 'preferences'), ('reward_regression', 'rewards')])
def test_a_reward_model_says_what_it_is_for_and_what_its_scores_are(name, scores):
  make = getattr(algorithms, name)
  assert make().reward_model == {'role': 'proxy', 'scores': scores}
  assert make(role='gold').reward_model['role'] == 'gold'
  with pytest.raises(UsageError, match=r"role='god' is unknown \(did you mean gold\?\).*--set ROLE=gold"):
    make(role='god')


def test_reward_models_train_no_policy_and_read_none():
  for name in ('bradley_terry', 'reward_regression'):
    algorithm = getattr(algorithms, name)()
    assert algorithm.uses_response_values and algorithm.uses_value
    assert not (algorithm.trains_policy or algorithm.scores_policy or algorithm.uses_reference)


def test_a_negative_margin_is_refused():
  with pytest.raises(UsageError, match='margin=-1.0 must be 0 or more'):
    algorithms.bradley_terry(margin=-1.0)
