"""Statistics of a scored triplet file, against brute force and scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats

from dro_jax.statistics import agreement


def example(seed=0, num_responses=60, num_prompts=12):
  """Scores and star ratings with ties in both, unequal groups, prompt numbers with gaps."""
  rng = np.random.default_rng(seed)
  prompts = rng.integers(num_prompts, size=num_responses) * 7 + 3
  rewards = rng.integers(1, 6, size=num_responses).astype(float)
  scores = np.round(rng.normal(size=num_responses) + 0.3 * rewards, 1)
  return scores, rewards, prompts


def brute_force(scores, rewards, prompts):
  wins = pairs = ties = 0
  for i, j in itertools.combinations(range(len(scores)), 2):
    if prompts[i] != prompts[j]:
      continue
    if rewards[i] == rewards[j]:
      ties += 1
      continue
    pairs += 1
    better, worse = (i, j) if rewards[i] > rewards[j] else (j, i)
    wins += 1.0 if scores[better] > scores[worse] else 0.5 if scores[better] == scores[worse] else 0.0
  return pairs, wins, ties


@pytest.mark.parametrize('seed', range(3))
def test_pairs_equal_brute_force(seed):
  counts = agreement.count_pairs(*example(seed))
  pairs, wins, ties = brute_force(*example(seed))
  assert (counts.pairs.sum(), counts.wins.sum(), counts.ties.sum()) == (pairs, wins, ties)
  assert agreement.pairwise_accuracy(counts, np.ones(len(counts.pairs))) == pytest.approx(wins / pairs)


def test_accuracy_ignores_each_prompts_level_and_the_temperature():
  scores, rewards, prompts = example()
  levels = np.random.default_rng(1).normal(size=prompts.max() + 1)[prompts]
  shifted = 8 * scores + 64 * np.round(levels)
  one, other = (
    agreement.within_prompts({'tau_rho': x}, rewards, prompts, resamples=10) for x in (scores, shifted)
  )
  assert one == other


@pytest.mark.parametrize('seed', range(3))
def test_rank_correlation_equals_scipy(seed):
  scores, rewards, _ = example(seed)
  got = agreement.rank_correlation(scores, rewards, np.ones(len(scores)))
  assert got == pytest.approx(scipy.stats.spearmanr(scores, rewards).statistic, abs=1e-12)


def test_weights_are_repetitions():
  scores, rewards, _ = example()
  weights = np.random.default_rng(0).integers(0, 4, size=len(scores)).astype(float)
  repeated = np.repeat(scores, weights.astype(int)), np.repeat(rewards, weights.astype(int))
  want = scipy.stats.spearmanr(*repeated).statistic
  assert agreement.rank_correlation(scores, rewards, weights) == pytest.approx(want, abs=1e-12)
  want = 1 - np.var(repeated[1] - repeated[0]) / np.var(repeated[1])
  assert agreement.explained_variance(scores, rewards, weights) == pytest.approx(want, abs=1e-12)


def test_explained_variance_of_known_values():
  targets, ones = np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4)
  assert agreement.explained_variance(targets + 5, targets, ones) == 1.0
  assert agreement.explained_variance(np.full(4, 2.0), targets, ones) == 0.0
  assert agreement.explained_variance(-targets, targets, ones) == -3.0


@pytest.mark.parametrize('seed', range(3))
def test_variance_within_prompts_equals_brute_force(seed):
  scores, rewards, prompts = example(seed)
  names, drawn = np.unique(prompts), np.random.default_rng(seed).integers(0, 3, size=12).astype(float)[:12]
  drawn = drawn[: len(names)]
  unexplained = total = xx = xy = 0.0
  for prompt, times in zip(names, drawn):
    r, s = rewards[prompts == prompt], scores[prompts == prompt]
    total += times * ((r - r.mean()) ** 2).sum()
    unexplained += times * ((r - s - (r - s).mean()) ** 2).sum()
    xx += times * ((s - s.mean()) ** 2).sum()
    xy += times * ((s - s.mean()) * (r - r.mean())).sum()
  explained = agreement.within_prompt_explained_variance(scores, rewards, prompts)
  correlation = agreement.within_prompt_correlation(scores, rewards, prompts)
  assert explained(drawn) == pytest.approx(1 - unexplained / total, abs=1e-12)
  assert correlation(drawn) == pytest.approx(xy / np.sqrt(xx * total), abs=1e-12)
  # Its square is what the best multiple of the scores explains.
  best = agreement.within_prompt_explained_variance(scores * xy / xx, rewards, prompts)
  assert best(drawn) == pytest.approx(correlation(drawn) ** 2, abs=1e-12)


def test_the_optimum_explains_all_variance_within_prompts_whatever_the_levels():
  _, rewards, prompts = example()
  levels = np.random.default_rng(1).normal(size=prompts.max() + 1)[prompts]
  tau = 0.3
  found = agreement.score_statistics(
    (rewards - levels) / tau, np.ones(60), rewards, prompts, reference_logps=np.zeros(60), temperature=tau
  )
  ones = np.ones(len(np.unique(prompts)))
  assert found['within_prompt_explained_variance'](ones) == pytest.approx(1.0)
  assert found['within_prompt_correlation'](ones) == pytest.approx(1.0)


def test_a_policy_that_stayed_explains_nothing_and_equal_rewards_have_nothing_to_explain():
  scores, rewards, prompts = example()
  statistics = agreement.within_prompt_explained_variance, agreement.within_prompt_correlation
  ones = np.ones(len(np.unique(prompts)))
  for statistic in statistics:
    assert statistic(0 * scores, rewards, prompts)(ones) == 0.0
    assert np.isnan(statistic(scores, prompts * 0.1, prompts)(ones))  # Equal within each prompt.


def test_intervals_resample_prompts_not_responses():
  """Ten copies of every response say nothing new: the same interval."""
  scores, rewards, prompts = example()
  ten = [np.repeat(x, 10) for x in (scores, rewards, prompts)]
  one = agreement.across_prompts({'s': scores}, rewards, prompts, resamples=50)
  other = agreement.across_prompts({'s': ten[0]}, *ten[1:], resamples=50)
  np.testing.assert_allclose(one['s'], other['s'], atol=1e-9)


@pytest.mark.parametrize('seed', range(6))
def test_the_interval_of_a_rank_correlation_contains_it(seed):
  """Two draws of one prompt tie with each other, which lowers every draw."""
  rng = np.random.default_rng(seed)
  prompts = np.repeat(np.arange(5), 4)
  rewards = rng.normal(size=5)[prompts] + 0.05 * rng.normal(size=20)
  scores = {'good': rewards + 0.05 * rng.normal(size=20), 'bad': -rewards + 0.05 * rng.normal(size=20)}
  for value, low, high in agreement.across_prompts(scores, rewards, prompts, resamples=200).values():
    assert -1 <= low < value < high <= 1


def test_the_interval_of_a_perfect_rank_correlation_ends_at_one():
  rewards, prompts = np.arange(6.0), np.arange(6)
  found = agreement.across_prompts({'s': rewards}, rewards, prompts, resamples=50)['s']
  assert found == pytest.approx((1, 1, 1), abs=1e-9) and found.low <= found.value <= found.high


def test_intervals_are_seeded():
  scores, rewards, prompts = example()
  runs = [
    agreement.across_prompts({'s': scores}, rewards, prompts, resamples=50, seed=seed) for seed in (0, 0, 1)
  ]
  assert runs[0] == runs[1]
  assert runs[0] != runs[2]


def test_the_value_carries_the_ranking_across_prompts():
  """At DRO's optimum V + τρ is the reward, and τρ alone is not (METHODS: it must not rank across prompts)."""
  rng = np.random.default_rng(0)
  prompts = np.repeat(np.arange(50), 4)
  values, advantages = 3 * rng.normal(size=50)[prompts], rng.normal(size=200)
  rewards = values + advantages
  scores = {'v': values + advantages, 'tau_rho': advantages}
  result = agreement.across_prompts(scores, rewards, prompts, resamples=5)
  assert result['v'].value == pytest.approx(1.0)
  assert result['tau_rho'].value < 0.6
  within = agreement.within_prompts({'tau_rho': advantages}, rewards, prompts, resamples=5)
  assert within['accuracy']['tau_rho'] == (1.0, 1.0, 1.0)


def test_undefined_statistics_are_nan():
  ones = np.ones(3)
  alone = agreement.within_prompts({'s': ones}, np.arange(3.0), np.arange(3), resamples=5)
  assert alone['pairs'] == 0
  assert np.isnan(alone['accuracy']['s'].value)
  assert np.isnan(agreement.rank_correlation(ones, np.arange(3.0), ones))
  one_prompt = agreement.value_fit(np.arange(3.0), np.arange(3.0), np.zeros(3, int), resamples=5)
  assert one_prompt.value == 1.0
  assert np.isnan(one_prompt.low)


def test_rewards_that_differ_by_rounding_are_ties():
  rewards, scores, one = np.array([0.1 + 0.2, 0.3, 0.5]), np.array([1.0, 2.0, 3.0]), np.zeros(3, int)
  counts = agreement.count_pairs(scores, rewards, one)
  assert (counts.pairs.sum(), counts.wins.sum(), counts.ties.sum()) == (2, 2, 1)
  ranked = agreement.rank_correlation(scores, rewards, np.ones(3))
  assert ranked == agreement.rank_correlation(scores, np.array([3.0, 3.0, 5.0]), np.ones(3))


@pytest.mark.parametrize('value', [0.7, 1.0])
def test_equal_rewards_leave_no_variance_to_explain(value):
  targets, values = np.full(7, value), np.arange(7.0)
  assert np.isnan(agreement.explained_variance(values, targets, np.ones(7)))
  # So do those that a resample drew, whatever the others are.
  targets[-1], weights = 5.0, np.array([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0])
  assert np.isnan(agreement.explained_variance(values, targets, weights))


def test_baselines_are_the_log_prob_its_mean_by_token_and_the_length():
  got = agreement.baselines(np.array([-2.0, -6.0]), np.array([2, 3]))
  np.testing.assert_array_equal(got['logp_per_token'], [-1.0, -2.0])
  np.testing.assert_array_equal(got['length'], [2.0, 3.0])
