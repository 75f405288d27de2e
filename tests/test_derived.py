import types

import numpy as np
import pytest

from dro_jax import derived
from dro_jax.data import scaling
from dro_jax.errors import UsageError

RAW = np.array([1.0, 2.0, 3.0, 4.0, 4.0, 6.0])
PROMPTS = np.array([0, 0, 0, 1, 1, 2])


def triplets(raw=RAW, prompts=PROMPTS, kind='standardise', **columns):
  fitted = scaling.fit(kind, raw)
  table = types.SimpleNamespace(
    raw_rewards=raw, rewards=fitted.apply(raw), prompt_index=prompts,
    columns={name: np.asarray(column, float) for name, column in columns.items()},
  )  # fmt: skip
  return types.SimpleNamespace(train=table, scaling=fitted)


def made(fit, **columns):
  data = triplets(**columns)
  return fit(data)(data.train)


def test_labels():
  np.testing.assert_array_equal(made(derived.above_threshold(3)), [0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(made(derived.above_dataset_mean), RAW.mean() < RAW)
  np.testing.assert_array_equal(made(derived.above_prompt_mean), [0, 0, 1, 0, 0, 0])
  value = [2.0, 2.0, 2.0, 1.0, 1.0, 7.0]
  np.testing.assert_array_equal(made(derived.above_value, value=value), [0, 0, 1, 1, 1, 0])


def test_the_dataset_mean_is_the_training_parts():
  other = triplets(raw=np.array([10.0, 11.0]), prompts=np.array([0, 1])).train
  np.testing.assert_array_equal(derived.above_dataset_mean(triplets())(other), [1, 1])


def test_values_are_scaled_as_rewards_are():
  value = np.array([2.0, 2.0, 2.0, 1.0, 1.0, 7.0])
  np.testing.assert_allclose(made(derived.scaled_value, value=value), (value - RAW.mean()) / RAW.std())
  np.testing.assert_allclose(made(derived.advantages, value=value), (RAW - value) / RAW.std())


def test_quantiles():
  np.testing.assert_allclose(made(derived.prompt_quantiles), [1 / 6, 3 / 6, 5 / 6, 0.5, 0.5, 0.5])
  expected = [(np.sum(r > RAW) + np.sum(r == RAW) / 2) / 6 for r in RAW]
  np.testing.assert_allclose(made(derived.data_quantiles), expected)


def test_propensities_need_a_sampled_log():
  logps = -np.arange(6.0)
  with pytest.raises(UsageError, match='no behaviour_logprob'):
    made(derived.propensities())
  for columns in ({}, {'behaviour_sampled': [1, 1, 1, 0, 1, 1]}):
    with pytest.raises(UsageError, match='BEHAVIOUR_SAMPLER=sampled'):
      made(derived.propensities(), behaviour_logps=logps, **columns)
  with pytest.raises(UsageError, match='beam search'):
    made(derived.propensities('beam'), behaviour_logps=logps, behaviour_sampled=np.ones(6))
  for sampler, columns in (('sampled', {}), (None, {'behaviour_sampled': np.ones(6)})):
    np.testing.assert_array_equal(
      made(derived.propensities(sampler), behaviour_logps=logps, **columns), logps
    )


def test_what_the_data_cannot_give_is_refused():
  with pytest.raises(UsageError, match="column 'value'.*fit_value"):
    made(derived.scaled_value)
  with pytest.raises(UsageError, match='no training response has a positive advantage'):
    made(derived.advantages, value=RAW + 1)
  single = triplets(prompts=np.arange(6))
  with pytest.raises(UsageError, match='every prompt here has one: use the dataset mean'):
    derived.above_prompt_mean(single)
  with pytest.raises(UsageError, match='data_quantiles'):
    derived.prompt_quantiles(single)
  with pytest.raises(UsageError, match='REWARD_SCALING=minmax'):
    derived.refuse_negative_rewards(triplets())
  derived.refuse_negative_rewards(triplets(kind='minmax'))
