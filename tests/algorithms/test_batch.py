import jax
import jax.numpy as jnp
import numpy as np

from dro_jax.algorithms.batch import Batch
from dro_jax.types import Scores, Units
from tests.examples import layout, random_examples

EXAMPLES = random_examples(5)
LENGTHS = np.array([len(example.response) for example in EXAMPLES])


def batch(num_rows, slots):
  """The examples in rows; every token's log-prob is minus its id."""
  rows = layout(EXAMPLES, num_rows, slots, lengths=(64, 64))
  rows = rows._replace(columns={'label': rows.example_id % 2.0})
  token_logps = -rows.response_tokens.astype(jnp.float32)
  logps = -jnp.arange(float(num_rows * slots)).reshape(num_rows, slots)
  values = logps * 10
  return Batch(Scores(logps, token_logps, values=values), Scores(logps - 1, token_logps), rows)


def by_example(batch, flat):
  """Entries of the flat examples in the order of EXAMPLES."""
  valid = np.asarray(batch.valid)
  order = np.argsort(np.asarray(batch.rows.example_id).reshape(-1)[valid])
  return np.asarray(flat)[valid][order]


def test_every_layout_has_the_same_examples():
  for num_rows, slots in ((1, 5), (2, 3)):
    found = batch(num_rows, slots)
    assert found.valid.shape == (num_rows * slots,) and found.valid.sum() == 5
    np.testing.assert_array_equal(by_example(found, found.lengths), LENGTHS)
    np.testing.assert_allclose(by_example(found, found.rewards), [x.reward for x in EXAMPLES], rtol=1e-6)
    np.testing.assert_array_equal(by_example(found, found.column('label')), [0, 1, 0, 1, 0])
    tokens = by_example(found, found.tokens(found.scores.token_logps))
    mask = by_example(found, found.token_mask)
    for i, example in enumerate(EXAMPLES):
      np.testing.assert_array_equal(tokens[i][mask[i]], -example.response)
      assert not tokens[i][~mask[i]].any()


def test_scores_of_a_slot_stay_together():
  found = batch(2, 3)
  np.testing.assert_array_equal(found.reference_logps, found.policy_logps - 1)
  np.testing.assert_array_equal(found.values, found.policy_logps * 10)


def test_an_empty_slot_has_a_length_to_divide_by_and_lengths_have_no_gradient():
  found = batch(4, 4)
  np.testing.assert_array_equal(found.lengths[~found.valid], 1)

  def total(token_logps):
    return found._replace(scores=found.scores._replace(token_logps=token_logps)).lengths.sum()

  assert not jax.grad(total)(found.scores.token_logps).any()


def test_a_batch_by_length_has_means_in_place_of_sums_in_every_layout():
  for num_rows, slots in ((1, 5), (2, 3)):
    found = batch(num_rows, slots)
    mismatched = found.rows._replace(response_segments=jnp.flip(found.rows.response_segments, axis=0))
    rows = found.rows._replace(mismatched=mismatched)
    scores = found.scores._replace(mismatched_logps=found.scores.logps)
    divided = found._replace(rows=rows, scores=scores).by_length()
    np.testing.assert_allclose(by_example(divided, divided.lengths), LENGTHS)
    for name in ('policy_logps', 'reference_logps'):
      expected = by_example(found, getattr(found, name)) / LENGTHS
      np.testing.assert_allclose(by_example(divided, getattr(divided, name)), expected, rtol=1e-6)
    tokens = by_example(divided, divided.tokens(divided.scores.token_logps))
    means = [-example.response.mean() for example in EXAMPLES]
    np.testing.assert_allclose(tokens.sum(axis=1), means, rtol=1e-6)
    lengths_BR = np.flip(np.asarray(found.lengths).reshape(num_rows, slots), axis=0)
    np.testing.assert_allclose(divided.scores.mismatched_logps * lengths_BR, found.scores.logps, rtol=1e-6)
    np.testing.assert_array_equal(divided.values, found.values)


def test_a_batch_by_length_needs_no_reference():
  assert batch(1, 5)._replace(reference=None).by_length().reference is None


def test_members_of_units_are_gathered_from_the_examples():
  found = batch(1, 5)
  units = Units(jnp.array([[4, 0], [2, 1]]), jnp.array([[True, True], [True, False]]))
  found = found._replace(rows=found.rows._replace(units=units))
  rewards = found.rewards
  np.testing.assert_array_equal(found.members(rewards), [[rewards[4], rewards[0]], [rewards[2], rewards[1]]])
  np.testing.assert_array_equal(found.unit_mask, units.mask)
