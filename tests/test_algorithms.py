import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.batch import Batch
from dro_jax.errors import UsageError
from tests.examples import layout, random_examples


def test_a_reward_at_the_mean_is_undesirable_in_every_layout():
  """Scaled stars whose mean is a star: float32 sums of another order must not flip a whole level."""
  stars = np.array([1, 2, 3, 4, 5, 3, 3, 3, 1, 5, 2, 4, 3, 3, 3, 3])
  for shift, scale in ((0.0, 1.0), (2.9, 1.234567), (-0.37, 0.1)):
    rewards = (stars - shift) / scale
    for num_rows in (1, 2, 4, 8, 16):
      rows = layout(random_examples(16), num_rows, 16 // num_rows, lengths=(128, 128))
      rows = rows._replace(rewards=jnp.asarray(rewards, jnp.float32)[rows.example_id])
      desirable = np.asarray(algorithms.minibatch_mean_labels().of(Batch(None, None, rows)))
      np.testing.assert_array_equal(desirable, stars[np.asarray(rows.example_id).reshape(-1)] > 3)


def test_column_labels_need_no_rewards():
  rows = layout(random_examples(4), 2, 2)
  labels = algorithms.column_labels().of(Batch(None, None, rows))
  np.testing.assert_array_equal(labels, rows.columns['label'].reshape(-1) > 0)
  assert not algorithms.kto(labels=algorithms.column_labels).uses_rewards
  assert algorithms.kto().uses_rewards


def test_a_missing_column_is_named():
  kto = algorithms.kto(labels=algorithms.column_labels)
  algorithms.check_columns(kto, ['label'])
  with pytest.raises(UsageError, match="reads the column 'label'.*--columns label=YOURS"):
    algorithms.check_columns(kto, ['other'])
