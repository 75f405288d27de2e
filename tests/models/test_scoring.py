import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.models import scoring
from tests.examples import init_params, layout, random_examples

EXAMPLES = random_examples(12, seed=3)


def by_example(array_BR, rows):
  order = np.argsort(np.asarray(rows.example_id)[np.asarray(rows.valid)])
  return np.asarray(array_BR)[np.asarray(rows.valid)][order]


@pytest.fixture(scope='module')
def score():
  policy, value, params = init_params()
  # A head off zero, so that values tell prompts apart.
  params = params | {'value': jax.tree.map(lambda x: x + 0.1, params['value'])}
  jitted = jax.jit(scoring.make_score(policy, value))
  return lambda rows: jitted(params, rows)


def test_packed_padded_and_one_by_one_score_alike(score):
  packed, padded = layout(EXAMPLES, 4, 3), layout(EXAMPLES, 12, 1)
  singles = [layout([example], 1, 1, lengths=(8, 8)) for example in EXAMPLES]
  several, one = score(packed), score(padded)
  single = [score(rows) for rows in singles]
  for field in ('logps', 'values'):
    reference = np.array([getattr(scores, field)[0, 0] for scores in single])
    np.testing.assert_allclose(by_example(getattr(several, field), packed), reference, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_example(getattr(one, field), padded), reference, rtol=1e-5, atol=1e-5)
    assert np.ptp(reference) > 0.01


def test_token_log_probs_sum_to_the_responses(score):
  rows = layout(EXAMPLES, 4, 3)
  scores = score(rows)
  segments = np.asarray(rows.response_segments)
  for slot in range(3):
    sums = np.where(segments == slot + 1, scores.token_logps, 0).sum(-1)
    np.testing.assert_allclose(scores.logps[:, slot], sums, rtol=1e-5)
  assert not np.asarray(scores.token_logps)[segments == 0].any()


def test_chunks_change_no_score():
  policy, value, params = init_params()
  rows = layout(EXAMPLES, 4, 3)
  full = jax.jit(scoring.make_score(policy, value))(params, rows)
  chunked = jax.jit(scoring.make_score(policy, value, chunk_size=6))(params, rows)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), full, chunked)


def test_a_prompts_value_never_sees_the_response(score):
  rows = layout(EXAMPLES, 12, 1)
  other = rows._replace(response_tokens=jnp.where(rows.response_tokens > 0, 5, 0))
  np.testing.assert_array_equal(score(rows).values, score(other).values)
  assert not np.array_equal(score(rows).logps, score(other).logps)
