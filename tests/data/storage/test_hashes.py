import numpy as np
import pytest

from dro_jax.data.storage.hashes import by_prompt_hash, digests, text_digest

PROMPTS = [f'prompt {i}' for i in range(5000)]


def test_the_split_never_changes():
  """These very prompts: another machine, version or order must hold out the same ones."""
  held = by_prompt_hash(PROMPTS[:40], 0.2)
  assert np.flatnonzero(held).tolist() == [11, 12, 17, 24, 30]


def test_a_texts_digest_never_changes():
  assert text_digest('abc', 8).hex() == 'd8bb14d833d59559'
  assert text_digest('abc').hex() == 'cf4ab791c62b8d2b2109c90275287816'


def test_about_the_given_fraction_is_held_out():
  for fraction in (0.05, 0.5):
    share = by_prompt_hash(PROMPTS, fraction).mean()
    assert abs(share - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 5000)


def test_equal_prompts_are_on_the_same_side():
  held = by_prompt_hash(PROMPTS, 0.3)
  order = np.random.default_rng(0).permutation(5000)
  np.testing.assert_array_equal(by_prompt_hash([PROMPTS[i] for i in order], 0.3), held[order])
  np.testing.assert_array_equal(by_prompt_hash(digests(PROMPTS), 0.3), held)


def test_a_larger_fraction_holds_out_a_superset():
  small, large = by_prompt_hash(PROMPTS, 0.1), by_prompt_hash(PROMPTS, 0.2)
  assert (small <= large).all()


def test_another_salt_gives_an_independent_split():
  one, two = by_prompt_hash(PROMPTS, 0.5), by_prompt_hash(PROMPTS, 0.5, 'salt')
  assert abs((one & two).mean() - 0.25) < 0.03


@pytest.mark.parametrize('fraction', [-0.1, 1, 2])
def test_bad_fractions_raise(fraction):
  with pytest.raises(ValueError, match='held-out fraction'):
    by_prompt_hash(PROMPTS, fraction)


def test_a_fraction_of_0_holds_out_no_prompt():
  assert not by_prompt_hash(PROMPTS, 0).any()
