import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dro_jax.models import scoring
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.policy import make_network, smallest_rows
from tests.examples import CONFIG, init_params, layout, random_examples
from tests.models.t5gemma import tiny
from tests.tiers import long

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


FAMILIES = {
  't5': CONFIG,
  'causal': CausalConfig(
    vocab_size=32, emb_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=32, num_layers=2,
    scan_layers=True, remat=True,
  ),
  't5gemma': tiny.config('t5gemma'),
}  # fmt: skip


@pytest.mark.parametrize('family', ['t5', 'causal', *long('t5gemma')])
def test_next_token_kls_are_alike_packed_and_padded_in_chunks_and_whole(family):
  """And each sums, over the response alone, the KL between the two networks' distributions."""
  network = make_network(FAMILIES[family])
  init = jax.jit(lambda key: nn.unbox(network.init(key, smallest_rows())['params']))
  params = {name: init(jax.random.key(seed)) for seed, name in enumerate(('policy', 'reference'))}
  score_reference = scoring.make_score(network, keeps_states=True)

  def kls(rows, chunk_size):
    @jax.jit
    def both(params):
      reference = score_reference({'policy': params['reference']}, rows)
      score = scoring.make_score(network, kl_direction='reverse', chunk_size=chunk_size)
      return score(params, rows, None, reference), reference.states

    scores, states = both(params)
    assert states.shape[:2] == rows.response_tokens.shape and scores.states is None
    assert not np.asarray(scores.token_kls)[np.asarray(rows.response_segments) == 0].any()
    slots = [
      np.where(rows.response_segments == r + 1, scores.token_kls, 0).sum(1)
      for r in range(rows.valid.shape[1])
    ]
    return by_example(np.stack(slots, 1), rows)

  packed, padded = kls(layout(EXAMPLES, 4, 3), 6), kls(layout(EXAMPLES, 12, 1, lengths=(8, 8)), None)
  np.testing.assert_allclose(packed, padded, rtol=1e-4)
  assert packed.min() > 1e-3
