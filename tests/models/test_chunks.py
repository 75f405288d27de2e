"""A projection in chunks is chosen by the bytes of its logits, on one device of the mesh."""

import jax
import numpy as np
import pytest

from dro_jax.models import chunks, scoring
from dro_jax.parallel import partitioning
from tests.examples import init_params, layout, random_examples


@pytest.mark.parametrize(
  'rows, length, vocab_size, expected',
  [
    (32, 512, 32_128, 256),  # T5 on one device: 2.0 GiB of logits, in two chunks.
    (16, 512, 32_128, None),  # 1.0 GiB.
    (2, 512, 262_208, None),  # Gemma: 1.0 GiB.
    (3, 512, 262_208, 256),
    (32, 128, 128_256, 64),  # LLaMA-3: 1.96 GiB.
    (3, 100, 2_000_000, 50),  # Two equal chunks, not 55 and 45.
    (300, 8, 2_000_000, 1),  # One token is the least.
  ],
)
def test_the_fewest_equal_chunks_that_fit_are_chosen(rows, length, vocab_size, expected):
  assert chunks.choose_chunk_size(None, rows, length, vocab_size) == expected


@pytest.mark.parametrize('asked, expected', [(0, None), (7, 7)])
def test_a_number_is_taken_and_0_is_all_at_once(asked, expected):
  assert chunks.choose_chunk_size(asked, 32, 512, 262_144) == expected


def test_the_references_logits_count_beside_the_policys():
  assert chunks.choose_chunk_size(None, 32, 512, 262_144, policies=2) == 20


@pytest.mark.parametrize('sizes, expected', [((1, 1, 1), 40), ((2, 2, 1), 128), ((1, 2, 2), 128)])
def test_only_the_part_of_one_device_counts(sizes, expected):
  """16 GiB on one device; rows are cut by data and fsdp, the vocabulary by model."""
  devices = jax.devices()[: int(np.prod(sizes))]
  with partitioning.use_mesh(partitioning.make_mesh(*sizes, devices=devices)):
    assert chunks.choose_chunk_size(None, 32, 512, 262_144) == expected


def test_a_chosen_chunk_changes_no_score_and_bounds_the_logits(monkeypatch):
  policy, value, params = init_params()
  rows = layout(random_examples(12, seed=3), 4, 3)
  batch, vocab_size = len(rows.response_tokens), policy.config.vocab_size

  def scored(asked):
    score = scoring.make_score(policy, value, chunk_size=asked)
    makes_chunks = f'f32[{batch},5,{vocab_size}]' in str(jax.make_jaxpr(score)(params, rows))
    return jax.jit(score)(params, rows), makes_chunks

  whole, of_whole = scored(None)
  monkeypatch.setattr(chunks, 'MOST_BYTES', 4 * batch * 5 * vocab_size)  # 24 tokens in chunks of 5.
  chosen, of_chosen = scored(None)
  _, of_all = scored(0)
  assert (of_whole, of_chosen, of_all) == (False, True, False)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, chosen)
