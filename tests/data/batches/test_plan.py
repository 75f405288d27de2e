import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dro_jax.data.batches.plan import Plan
from dro_jax.errors import UsageError
from tests.data.generated import Lengths, ratings, translations


def plan_of(data: Lengths, batch_size: int = 32, seed: int = 0, **options) -> Plan:
  return Plan(data.prompt_lengths, data.response_lengths, data.prompt_index, batch_size, seed, **options)


def groups_of(batch: np.ndarray, index: np.ndarray) -> list[int]:
  """The runs of one prompt in a batch, by prompt."""
  prompts = index[batch]
  return [int(p) for i, p in enumerate(prompts) if i == 0 or prompts[i - 1] != p]


@settings(max_examples=60, deadline=None)
@given(
  sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
  batch_size=st.integers(1, 12),
  window=st.integers(1, 5),
  seed=st.integers(0, 2**31),
)
def test_an_epoch_has_every_response_once_in_batches_of_exactly_batch_size(sizes, batch_size, window, seed):
  rng = np.random.default_rng(seed)
  index = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
  plan = Plan(
    rng.integers(1, 50, len(sizes))[index],
    rng.integers(1, 50, len(index)),
    index,
    batch_size,
    seed,
    window=window,
  )
  n = len(index)
  stream = [plan.batch(step) for step in range(-(-3 * n // batch_size))]
  assert all(batch.shape == (batch_size,) for batch in stream)
  drawn = np.concatenate(stream)[: 3 * n].reshape(3, n)
  np.testing.assert_array_equal(np.sort(drawn), np.tile(np.arange(n), (3, 1)))


def test_a_batch_depends_only_on_seed_and_step():
  data = ratings(80)
  plan, again = plan_of(data), plan_of(data)
  steps = np.random.default_rng(0).permutation(60)
  for step in steps:
    np.testing.assert_array_equal(plan.batch(int(step)), again.batch(int(step)))
  forward = plan_of(data)
  np.testing.assert_array_equal(
    [forward.batch(step) for step in range(60)], [plan.batch(step) for step in range(60)]
  )
  other = plan_of(data, seed=1)
  assert any((plan.batch(step) != other.batch(step)).any() for step in range(3))


def test_epochs_are_shuffled_differently():
  data = translations(320)
  plan = plan_of(data)
  assert set(plan.batch(0)) != set(plan.batch(10))


def test_responses_to_one_prompt_are_together():
  data = ratings(200)
  plan = plan_of(data)
  batches = [plan.batch(step) for step in range(len(data.rewards) // 32)]
  runs = [groups_of(batch, data.prompt_index) for batch in batches]
  assert all(len(run) == len(set(run)) for run in runs)
  splits = sum(map(len, runs)) - len(set(itertools.chain(*runs)))
  assert splits <= len(batches)  # A batch's exact size asks for one split each at most.


def test_a_group_larger_than_a_batch_is_split():
  plan = Plan(np.full(50, 3), np.full(50, 4), np.zeros(50, int), 8, 0)
  np.testing.assert_array_equal(
    np.sort(np.concatenate([plan.batch(s) for s in range(25)])[:50]), np.arange(50)
  )


def sorted_batches(data: Lengths, batch_size: int) -> list[np.ndarray]:
  """What a plan must not be: whole batches of equal length."""
  order = np.argsort(data.response_lengths, kind='stable')
  return [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]


def distributions_match(data: Lengths, batches: list[np.ndarray]) -> bool:
  """Whether batches look like random draws: no more two-sample KS rejections at 1 % than chance explains.

  Under the null the count of rejections is at most binomial; six standard deviations are allowed.
  """
  limit = 0.01 * len(batches) + 6 * np.sqrt(0.01 * len(batches))
  for values in (data.prompt_lengths, data.response_lengths, data.rewards):
    rejected = sum(stats.ks_2samp(values[batch], values, method='asymp').pvalue < 0.01 for batch in batches)
    if rejected > limit:
      return False
  return True


def test_batches_have_the_datas_mix_of_lengths_and_rewards():
  data = translations(3200)
  plan = plan_of(data)
  assert distributions_match(data, [plan.batch(step) for step in range(100)])


def test_batches_of_sorted_data_fail_the_test_of_the_mix():
  data = translations(3200)
  assert not distributions_match(data, sorted_batches(data, 32))


def test_batches_have_about_equal_token_totals():
  data = translations()
  plan = plan_of(data)
  batches = [plan.batch(step) for step in range(218)]
  for lengths in (data.prompt_lengths, data.response_lengths):
    totals = np.array([lengths[batch].sum() for batch in batches])
    assert totals.std() < 0.02 * totals.mean()  # Random batches: about .055.


def test_the_length_of_a_text_does_not_decide_when_it_is_drawn():
  data = translations(3200)
  plan = plan_of(data, window=20)
  order = np.concatenate([plan.batch(step) for step in range(100)])
  assert abs(stats.spearmanr(np.arange(len(order)), data.response_lengths[order]).statistic) < 0.06
  within = np.concatenate([np.arange(32)] * 100)
  assert abs(stats.spearmanr(within, data.response_lengths[order]).statistic) < 0.06


def test_weights_are_the_rates_of_draws():
  data = translations(400)
  weights = np.where(np.arange(400) < 100, 3.0, 1.0)
  plan = plan_of(data, weights=weights)
  drawn = np.concatenate([plan.batch(step) for step in range(200)])
  share = (drawn < 100).mean()
  assert abs(share - 0.5) < 4 * np.sqrt(0.25 / len(drawn))
  assert len(np.unique(drawn[:400])) < 400  # With replacement.


def test_a_weight_of_zero_is_never_drawn():
  plan = plan_of(translations(64), weights=np.arange(64) % 2)
  assert all((plan.batch(step) % 2 == 1).all() for step in range(8))


def test_a_sequential_plan_takes_every_record_once_in_order():
  plan = Plan.sequential(70, 32)
  np.testing.assert_array_equal(np.concatenate([plan.batch(step) for step in range(3)]), np.arange(70))
  assert [len(plan.batch(step)) for step in range(3)] == [32, 32, 6]
  assert plan.num_batches == 3
  with pytest.raises(ValueError, match='no batch 3'):
    plan.batch(3)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'batch_size': 0}, 'batch_size'),
    ({'weights': np.ones(3)}, 'weights'),
    ({'weights': -np.ones(40)}, 'weights'),
    ({'window': 0}, 'window'),
  ],
)
def test_bad_arguments_raise(options, message):
  with pytest.raises(ValueError, match=message):
    plan_of(translations(40), **options)


def test_arrays_of_unequal_length_raise():
  with pytest.raises(ValueError, match='one entry for each response'):
    Plan([1, 2], [1], [0, 1], 1, 0)


# Dealt uniformly


def prompts_a_batch(plan, index, batches):
  return np.array([len(np.unique(index[plan.batch(step)])) for step in range(batches)])


def test_a_uniform_batch_holds_as_many_prompts_as_a_draw_without_replacement():
  """400 prompts with 4 responses each, 32 a batch: E = 400 (1 − C(1596, 32) / C(1600, 32)) prompts."""
  data = ratings(400)
  index = np.repeat(np.arange(400), 4)
  data = data._replace(
    prompt_index=index, prompt_lengths=np.resize(data.prompt_lengths, 1600),
    response_lengths=np.resize(data.response_lengths, 1600), rewards=np.resize(data.rewards, 1600),
  )  # fmt: skip
  found = prompts_a_batch(plan_of(data, deal='uniform'), index, 50 * 20)
  expected = 400 * (1 - stats.hypergeom(1600, 4, 32).pmf(0))
  drawn = np.random.default_rng(1)
  again = np.array([len(np.unique(index[drawn.choice(1600, 32, replace=False)])) for _ in range(1000)])
  assert abs(found.mean() - expected) < 4 * again.std() / np.sqrt(len(found))
  assert 0.8 < found.std() / again.std() < 1.25
  assert set(prompts_a_batch(plan_of(data), index, 50)) == {8}


def test_uniform_batches_are_not_stratified_by_length():
  """Where a batch takes one of each length, its total hardly varies; of random draws it does."""
  data = translations(3200)
  plan = plan_of(data, deal='uniform')
  batches = [plan.batch(step) for step in range(100)]
  assert distributions_match(data, batches)
  totals = np.array([data.response_lengths[batch].sum() for batch in batches])
  expected = np.sqrt(32) * data.response_lengths.std()
  assert 0.7 < totals.std() / expected < 1.4


@settings(max_examples=30, deadline=None)
@given(
  sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
  batch_size=st.integers(1, 12),
  seed=st.integers(0, 2**31),
)
def test_a_uniform_epoch_takes_every_response_once(sizes, batch_size, seed):
  index = np.repeat(np.arange(len(sizes)), sizes)
  ones, n = np.ones(len(index)), len(index)
  plan = Plan(ones, ones, index, batch_size, seed, deal='uniform')
  stream = [plan.batch(step) for step in range(-(-3 * n // batch_size))]
  assert all(batch.shape == (batch_size,) for batch in stream)
  drawn = np.concatenate(stream)[: 3 * n].reshape(3, n)
  np.testing.assert_array_equal(np.sort(drawn), np.tile(np.arange(n), (3, 1)))


def test_a_uniform_batch_depends_only_on_seed_and_step():
  data = ratings(80)
  steps = np.random.default_rng(0).permutation(60)
  plan, again = plan_of(data, deal='uniform'), plan_of(data, deal='uniform')
  backwards = {int(step): again.batch(int(step)) for step in steps}
  for step in range(60):
    np.testing.assert_array_equal(plan.batch(step), backwards[step])
  other = plan_of(data, seed=1, deal='uniform')
  assert (plan.batch(0) != other.batch(0)).any()


def test_uniform_draws_keep_their_weights():
  plan = plan_of(translations(64), weights=np.arange(64) % 2, deal='uniform')
  assert all((plan.batch(step) % 2 == 1).all() for step in range(8))


def test_an_unknown_deal_is_refused_with_a_suggestion():
  with pytest.raises(UsageError, match=r"deal 'unform' is unknown \(did you mean uniform\?\).*--set DEAL="):
    plan_of(translations(40), deal='unform')
