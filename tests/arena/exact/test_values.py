import numpy as np
import pytest

from dro_jax.arena.exact import values

REWARDS = np.array([1.0, 4.0, 2.0])


@pytest.mark.parametrize(
  'name, expected',
  [
    ('mean', [7 / 3] * 3),
    ('leave_one_out_mean', [3.0, 1.5, 2.5]),
    ('log_mean_exp', [0.5 * np.log(np.mean(np.exp(REWARDS / 0.5)))] * 3),
    (
      'leave_one_out_log_mean_exp',
      [0.5 * np.log(np.mean(np.exp(np.delete(REWARDS, k) / 0.5))) for k in range(3)],
    ),
  ],
)
def test_a_groups_value_is_a_mean_of_its_rewards(name, expected):
  np.testing.assert_allclose(values.group_values(REWARDS, name, 0.5), expected)


def test_an_answer_that_is_alone_has_no_other():
  assert np.isnan(values.group_values(np.array([2.0]), 'leave_one_out_mean', 0.5)).all()
  np.testing.assert_allclose(values.group_values(np.array([2.0]), 'log_mean_exp', 0.5), 2.0)


def test_log_mean_exp_lies_between_the_mean_and_the_greatest():
  cold, warm = (values.group_values(REWARDS, 'log_mean_exp', tau)[0] for tau in (1e-3, 1e3))
  assert cold == pytest.approx(4.0, abs=0.01) and warm == pytest.approx(7 / 3, abs=0.01)


def test_values_belong_to_the_records_of_their_prompt():
  rewards, prompts = np.array([1.0, 10.0, 3.0, 30.0, 7.0]), np.array([5, 2, 5, 2, 9])
  found = values.logged_group_values(rewards, prompts, 'leave_one_out_mean', 0.5)
  np.testing.assert_array_equal(found, [3.0, 30.0, 1.0, 10.0, np.nan])


def test_the_error_is_over_records_that_have_a_value():
  assert values.error(np.array([1.0, np.nan, 4.0]), np.array([1.0, 5.0, 1.0])) == pytest.approx(np.sqrt(4.5))
