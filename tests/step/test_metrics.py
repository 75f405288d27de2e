import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.statistics import agreement
from dro_jax.step import metrics
from dro_jax.types import LossOutput, LossTerm, Scores
from tests.examples import layout, random_examples

ROWS = layout(random_examples(3), 2, 2)


def scores(**changes):
  rng = np.random.default_rng(0)
  logps = jnp.asarray(rng.normal(size=(2, 2)), jnp.float32)
  token_logps = jnp.where(ROWS.response_segments > 0, -1.0, 0.0)
  return Scores(logps, token_logps)._replace(**changes)


def test_statistics_are_over_valid_responses():
  reference = scores(logps=jnp.zeros((2, 2)))
  rewards, values = np.asarray(ROWS.rewards), np.asarray(ROWS.rewards) / 2
  result = metrics.score_metrics(scores(values=jnp.asarray(values)), reference, ROWS)
  valid = np.asarray(ROWS.valid)
  rho = np.asarray(scores().logps)[valid]
  np.testing.assert_allclose(result['reward'], rewards[valid].mean(), rtol=1e-5)
  np.testing.assert_allclose(result['log_ratio'], rho.mean(), rtol=1e-5)
  np.testing.assert_allclose(result['log_ratio_std'], rho.std(), rtol=1e-5)
  np.testing.assert_allclose(result['value_explained_variance'], 0.75, rtol=1e-5)
  assert result['responses'] == 3
  lengths = [len(example.response) for example in random_examples(3)]
  np.testing.assert_allclose(result['response_tokens'], np.mean(lengths))
  np.testing.assert_allclose(result['response_fill'], sum(lengths) / 48)


def test_no_variance_to_explain_is_zero():
  for value in (1.0, 0.7, 0.1, 123.4):
    constant, values = jnp.full(7, value), jnp.arange(7.0)
    assert metrics.explained_variance(values, constant, jnp.ones(7)) == 0
    other = constant.at[-1].set(9.0)  # Padding may be anything.
    assert metrics.explained_variance(values, other, jnp.ones(7).at[-1].set(0)) == 0


@pytest.mark.parametrize('seed', range(3))
def test_a_steps_statistics_are_those_of_a_table(seed):
  rng = np.random.default_rng(seed)
  valid = ROWS.valid
  rewards, logps, reference, values = (
    jnp.where(valid, jnp.asarray(rng.normal(3, 2, (2, 2)), jnp.float32), jnp.nan) for _ in range(4)
  )
  batch = metrics.score_metrics(
    scores(logps=logps, values=values), scores(logps=reference), ROWS._replace(rewards=rewards)
  )
  kept = [np.asarray(x, np.float64)[np.asarray(valid)] for x in (logps, rewards, reference, values)]
  prompts = np.arange(len(kept[0]))
  whole = agreement.score_statistics(
    kept[0], np.ones(len(prompts)), kept[1], prompts, reference_logps=kept[2], values=kept[3]
  )
  both = {'reward', 'logp', 'value', 'value_explained_variance', 'log_ratio', 'log_ratio_std'}
  assert batch.keys() & whole.keys() == both
  for name in both:
    np.testing.assert_allclose(batch[name], whole[name](np.ones(len(prompts))), rtol=2e-5, err_msg=name)


def test_a_step_says_zero_where_a_table_leaves_out_what_is_undefined():
  values, rewards, ones = np.arange(5.0), np.full(5, 0.7), np.ones(5)
  assert np.isnan(agreement.explained_variance(values, rewards, ones))
  assert metrics.explained_variance(*map(jnp.float32, (values, rewards, ones))) == 0


def test_ids_of_nonfinite_examples_leave_out_padding():
  loss = jnp.array([1.0, jnp.nan, 2.0, jnp.inf])
  output = LossOutput({'policy': LossTerm(loss, ROWS.valid.reshape(-1))})
  ids = metrics.nonfinite_ids(output, {'loss': jnp.float32(jnp.nan)}, ROWS)
  flat_valid = np.asarray(ROWS.valid).reshape(-1)
  expected = np.where(flat_valid & ~np.isfinite(loss), np.asarray(ROWS.example_id).reshape(-1), -1)
  np.testing.assert_array_equal(ids, expected)


def test_a_nonfinite_gradient_alone_gives_the_ids_of_the_whole_batch():
  output = LossOutput({'policy': LossTerm(jnp.zeros(4), ROWS.valid.reshape(-1))})
  ids = metrics.nonfinite_ids(
    output, {'loss': jnp.float32(0), 'gradient_norm/policy': jnp.float32(jnp.inf)}, ROWS
  )
  assert sorted(np.asarray(ids)[np.asarray(ids) >= 0].tolist()) == [0, 1, 2]
