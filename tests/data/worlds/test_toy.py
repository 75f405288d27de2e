"""The toy world: its closed forms against brute force, its draws against its probabilities."""

import itertools
import math

import numpy as np
import pytest

from dro_jax.data.worlds import toy

WORLD = toy.World()


def log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def matrices(world=WORLD, split='heldout'):
  xs = toy.prompts(world, split)
  return xs, toy.complete(toy.demonstration_logps(world, xs) - 0.05), toy.expected_reward(world, xs)


def test_splits_share_no_word_and_cover_every_letter():
  words = {split: {toy.parse(x)[0] for x in toy.prompts(WORLD, split)} for split in toy.SPLITS}
  for one, other in itertools.combinations(toy.SPLITS, 2):
    assert not words[one] & words[other]
  assert set().union(*words.values()) == set(toy.responses(WORLD))
  for split in ('sft', 'feedback'):
    for position, alphabet in enumerate(WORLD.alphabets):
      assert {word[position] for word in words[split]} == set(alphabet)


def test_an_unknown_split_is_refused():
  with pytest.raises(ValueError, match=r"'test'.*heldout"):
    toy.prompts(WORLD, 'test')


def test_prompts_parse_back():
  for x in toy.prompts(WORLD, 'heldout'):
    assert toy.prompt(*toy.parse(x), x[-2:]) == x


@pytest.mark.parametrize('feedback,lowest,votes', [('stars', 1, 4), ('thumbs', 0, 1)])
def test_expected_reward_counts_matches_by_hand(feedback, lowest, votes):
  world = WORLD._replace(feedback=feedback)
  rewards = toy.expected_reward(world, ['KOT3 ab', 'BAL0 ab'])
  for y, response in enumerate(toy.responses(world)):
    for x, (word, ease) in enumerate([('kot', 0.38), ('bal', 0.02)]):
      p = ease + 0.48 * sum(a == b for a, b in zip(word, response)) / 3
      assert rewards[x, y] == pytest.approx(lowest + votes * p, abs=1e-12)
  np.testing.assert_allclose(rewards[:, -1], lowest + votes * np.array([0.38, 0.02]))
  assert toy.responses(world)[rewards[0].argmax()] == 'kot'
  assert rewards.min() >= lowest
  assert rewards.max() <= lowest + votes


def test_expected_ratings_stay_on_the_scale_everywhere():
  for split in toy.SPLITS:
    rewards = matrices(split=split)[2]
    assert rewards.min() >= 1
    assert rewards.max() <= 5


@pytest.mark.parametrize('logps', [toy.logging_logps, toy.demonstration_logps])
def test_policies_are_distributions(logps):
  np.testing.assert_allclose(np.exp(logps(WORLD, toy.prompts(WORLD, 'feedback'))).sum(-1), 1.0, rtol=1e-12)


def test_logging_probability_of_one_word_by_hand():
  """'bot' for 'KOT' in mood 2: the favourite first letter though wrong, then two right ones."""

  def letter(right, favourite):
    return 0.35 * favourite + 0.65 * (0.2 * right + 0.8 / 5)

  want = math.log(letter(0, 1)) + 2 * math.log(letter(1, 0))
  got = toy.logging_logps(WORLD, ['KOT2 ab'])[0, toy.responses(WORLD).index('bot')]
  assert got == pytest.approx(want, abs=1e-12)


def test_a_log_depends_on_its_seed_and_is_reproducible():
  assert toy.sample_log(WORLD, 50, 1) == toy.sample_log(WORLD, 50, 1)
  assert toy.sample_log(WORLD, 50, 1) != toy.sample_log(WORLD, 50, 2)
  assert toy.sft_records(WORLD, 50, 1) == toy.sft_records(WORLD, 50, 1)


def test_a_log_holds_its_propensities():
  ys = toy.responses(WORLD)
  for record in toy.sample_log(WORLD, 20, 0):
    logp = toy.logging_logps(WORLD, [record['prompt']])[0, ys.index(record['response'])]
    assert record['behaviour_logprob'] == logp
    assert record['behaviour_sampler'] == 'sampled'


def test_demonstrations_and_feedback_share_no_prompt():
  def prompts(records):
    return {toy.parse(record['prompt']) for record in records}

  demonstrated = prompts(toy.sft_records(WORLD, 2000, 0))
  assert not demonstrated & prompts(toy.sample_log(WORLD, 2000, 0))
  assert demonstrated <= set(map(toy.parse, toy.prompts(WORLD, 'sft')))


def test_most_prompts_of_a_log_are_unique():
  prompts = [record['prompt'] for record in toy.sample_log(WORLD, 5000, 0)]
  assert len(set(prompts)) > 0.95 * len(prompts)


def test_logged_frequencies_and_ratings_match_the_world():
  """The draw over everything, marginally: response frequencies and the mean rating of each mood."""
  records = toy.sample_log(WORLD, 40_000, 0)
  xs, ys = toy.prompts(WORLD, 'feedback'), toy.responses(WORLD)
  mu = np.exp(toy.logging_logps(WORLD, xs))
  counts = np.zeros(len(ys))
  np.add.at(counts, [ys.index(record['response']) for record in records], 1)
  np.testing.assert_allclose(counts / len(records), mu.mean(0), atol=0.003)
  moods = np.array([toy.parse(x)[1] for x in xs])
  expected = (mu * toy.expected_reward(WORLD, xs)[:, :-1]).sum(-1)
  for mood in range(len(WORLD.ease)):
    ratings = [record['reward'] for record in records if toy.parse(record['prompt'])[1] == mood]
    assert np.mean(ratings) == pytest.approx(expected[moods == mood].mean(), abs=0.05)


@pytest.mark.parametrize('feedback,values', [('stars', {1.0, 2.0, 3.0, 4.0, 5.0}), ('thumbs', {0.0, 1.0})])
def test_ratings_have_the_expected_mean(feedback, values):
  world = WORLD._replace(feedback=feedback)
  expected = toy.expected_reward(world, ['KOT3 ab'])[0, :40]
  ratings = toy.rate(world, np.random.default_rng(0), np.broadcast_to(expected, (5000, 40)))
  np.testing.assert_allclose(ratings.mean(0), expected, atol=0.07)
  assert set(np.unique(ratings)) == values


def test_unknown_feedback_is_refused():
  with pytest.raises(ValueError, match="'grades'"):
    toy.expected_reward(WORLD._replace(feedback='grades'), ['KOT3 ab'])


def test_optimum_is_the_formula_in_plain_probabilities():
  _, reference, rewards = matrices()
  tau = 0.3
  logps, values = toy.optimum(reference, rewards, tau)
  unnormalised = np.exp(reference) * np.exp(rewards / tau)
  z = unnormalised.sum(-1, keepdims=True)
  np.testing.assert_allclose(np.exp(logps), unnormalised / z, rtol=1e-10)
  np.testing.assert_allclose(values, tau * np.log(z[:, 0]), rtol=1e-10)


def test_optimum_is_a_fixed_point_of_dro():
  """Eq. 4: r - V* - tau log(pi*/pi_ref) is 0 for every response, not on average."""
  _, reference, rewards = matrices()
  logps, values = toy.optimum(reference, rewards, 0.3)
  np.testing.assert_allclose(rewards - values[:, None] - 0.3 * (logps - reference), 0.0, atol=1e-12)


def test_gradient_ascent_reaches_the_optimum_and_does_not_exceed_it():
  _, reference, rewards = matrices()
  reference, rewards, tau = reference[:3], rewards[:3], 0.3
  best, values = toy.optimum(reference, rewards, tau)
  np.testing.assert_allclose(toy.objective(best, reference, rewards, tau), values, rtol=1e-12)
  rng = np.random.default_rng(0)
  for _ in range(20):
    other = log_softmax(best + 0.1 * rng.normal(size=best.shape))
    assert (toy.objective(other, reference, rewards, tau) < values).all()
  logits = reference.copy()
  for _ in range(300):  # mirror ascent: gradient of J in probabilities, up to a constant
    logits = log_softmax(logits + 0.1 * (rewards / tau - (logits - reference)))
  np.testing.assert_allclose(logits, best, atol=1e-8)


def test_the_optimum_matches_the_bandit_of_the_copg_paper():
  reference, rewards = np.log(np.full((1, 3), 1 / 3)), np.array([[2.5, 2.0, 1.0]])
  logps, values = toy.optimum(reference, rewards, 0.5)
  np.testing.assert_allclose(np.exp(logps[0]), [0.70538, 0.25950, 0.03512], atol=5e-6)
  assert values[0] == pytest.approx(2.12520, abs=5e-6)
  assert toy.objective(reference, reference, rewards, 0.5)[0] == pytest.approx(1.83333, abs=5e-6)


def test_regret_is_tau_times_kl_to_the_optimum():
  xs, reference, rewards = matrices()
  logps, tau = toy.complete(toy.logging_logps(WORLD, xs)), 0.3
  best, _ = toy.optimum(reference, rewards, tau)
  np.testing.assert_allclose(toy.regret(logps, reference, rewards, tau), tau * toy.kl(logps, best), rtol=1e-9)


def test_kl_is_finite_where_a_policy_excludes_words():
  sure = np.full((1, 4), -np.inf)
  sure[0, 2] = 0.0
  assert toy.kl(sure, np.log(np.full((1, 4), 0.25)))[0] == pytest.approx(math.log(4))


def test_complete_adds_the_missing_probability():
  logps = np.log([[0.2, 0.6], [0.5, 0.5 + 1e-9]])
  np.testing.assert_allclose(np.exp(toy.complete(logps)), [[0.2, 0.6, 0.2], [0.5, 0.5, 0.0]], atol=1e-8)


def test_splitting_the_other_texts_does_not_change_the_optimum():
  _, reference, rewards = matrices()
  logps, values = toy.optimum(reference, rewards, 0.3)
  halves = np.concatenate([reference[:, :-1], reference[:, -1:] + np.log([0.3, 0.7])], -1)
  split_logps, split_values = toy.optimum(halves, np.concatenate([rewards, rewards[:, -1:]], -1), 0.3)
  np.testing.assert_allclose(split_values, values, rtol=1e-12)
  np.testing.assert_allclose(np.exp(split_logps[:, -2:]).sum(-1), np.exp(logps[:, -1]), rtol=1e-10)


def test_the_world_needs_a_value_function():
  """V* spreads wider over prompts than responses differ within one, and the log is far from the reference."""
  xs, reference, rewards = matrices()
  _, values = toy.optimum(reference, rewards, 0.4)
  assert values.std() > 1.2 * rewards.std(-1).max()
  logged = toy.complete(toy.logging_logps(WORLD, xs))
  assert toy.kl(logged, reference).mean() > 0.5
  regrets = [toy.regret(logps, reference, rewards, 0.4).mean() for logps in (logged, reference)]
  assert regrets[0] > 2 * regrets[1] > 0.4
