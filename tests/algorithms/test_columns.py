import types

import numpy as np
import pytest

from dro_jax.algorithms import columns as algorithms_columns
from dro_jax.algorithms import refusals
from dro_jax.data import scaling
from dro_jax.errors import UsageError

RAW = np.array([1.0, 2.0, 3.0, 4.0, 4.0, 6.0])
PROMPTS = np.array([0, 0, 0, 1, 1, 2])


def triplets(raw=RAW, prompts=PROMPTS, kind='standardise', **columns):
  fitted = scaling.fit(kind, raw, prompts)
  table = types.SimpleNamespace(
    raw_rewards=raw, rewards=fitted.apply(raw, fitted.levels(raw, prompts)), prompt_index=prompts,
    columns={name: np.asarray(column, float) for name, column in columns.items()},
  )  # fmt: skip
  return types.SimpleNamespace(train=table, scaling=fitted)


def made(fit, **columns):
  data = triplets(**columns)
  return fit(data)(data.train)


BY_BATCH, NO_LABEL = algorithms_columns.BY_BATCH, algorithms_columns.NO_LABEL
BY_MEANS = {
  'minibatch': algorithms_columns.above_minibatch_mean,
  'dataset': algorithms_columns.above_dataset_mean,
  'prompt': algorithms_columns.above_prompt_mean,
}


def labelled(fit, raw, prompts=None, kind='none', **columns):
  """(labels, report) of rewards, by default two responses to a prompt."""
  raw = np.asarray(raw, float)
  prompts = np.arange(len(raw)) // 2 if prompts is None else np.asarray(prompts)
  data = triplets(raw=raw, prompts=prompts, kind=kind, **columns)
  found = fit(data)
  return found(data.train).tolist(), found.report(data.train)


def test_labels_follow_their_rule():
  np.testing.assert_array_equal(made(algorithms_columns.above_threshold(3)), [0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(made(algorithms_columns.above_dataset_mean), RAW.mean() < RAW)
  np.testing.assert_array_equal(made(algorithms_columns.above_minibatch_mean), [BY_BATCH] * 6)
  value = [2.0, 2.0, 2.0, 1.0, 1.0, 7.0]
  np.testing.assert_array_equal(made(algorithms_columns.above_value, value=value), [0, 0, 1, 1, 1, 0])


def test_the_prompts_mean_labels_no_ties_and_a_lone_answer_by_the_datas_mean():
  labels, report = labelled(algorithms_columns.above_prompt_mean, [*RAW, 1.0], [*PROMPTS, 3])
  assert labels == [0, 0, 1, NO_LABEL, NO_LABEL, 1, 0]
  assert report['desirable'] == 2 and report['labels'] == 5
  assert '2 labels come from lone answers' in report['said'] and '2 responses tie' in report['said']


@pytest.mark.parametrize('rule', BY_MEANS)
@pytest.mark.parametrize(
  'raw, labels',
  [
    ([1, 0, 1, 1, 0, 1], [1, 0, 1, 1, 0, 1]),
    ([1, -1, -1, 1], [1, 0, 0, 1]),
    ([1, 1, 1], [1, 1, 1]),  # A file of thumbs-ups only,
    ([0, 0], [0, 0]),  # or of thumbs-downs.
    ([-1, -1, -1], [0, 0, 0]),
    ([2, 5, 5, 2], [0, 1, 1, 0]),  # Of any other two the higher.
    ([-3.5, -3.25], [0, 1]),
    ([0.3, 0.1 + 0.2, 1, 1], [0, 0, 1, 1]),
    ([1.0], [1]),
  ],
)
def test_rewards_with_two_values_are_labels_themselves_with_any_mean(rule, raw, labels):
  found, report = labelled(BY_MEANS[rule], raw)
  assert found == labels and report['rule'] == 'binary'
  assert (report['desirable'], report['labels']) == (sum(labels), len(labels))
  # Lone answers are no exception, nor are scaled rewards.
  assert labelled(BY_MEANS[rule], raw, np.arange(len(raw)))[0] == labels
  if len(set(raw)) > 1:
    assert labelled(BY_MEANS[rule], raw, kind='standardise')[0] == labels


def test_the_report_describes_the_rule():
  _, report = labelled(algorithms_columns.above_minibatch_mean, [0, 1, 1, 0, 1, 0, 1, 1])
  assert report['said'] == 'the rewards 0 and 1 are labels themselves; 5 of 8 responses are desirable'
  _, report = labelled(algorithms_columns.above_minibatch_mean, [2, 5])
  assert report['said'].startswith('the rewards 2 and 5 are labels themselves, the higher desirable; 1 of 2')
  _, report = labelled(algorithms_columns.above_minibatch_mean, [1, 2, 3])
  assert report['rule'] == 'minibatch mean' and 'exceeds the mean of its minibatch' in report['said']


def test_the_training_part_decides_for_the_held_out_one():
  data = triplets(raw=np.array([0.0, 1.0]), prompts=np.arange(2))
  held_out = triplets(raw=np.ones(3), prompts=np.arange(3), kind='none').train
  for fit in BY_MEANS.values():
    np.testing.assert_array_equal(fit(data)(held_out), [1, 1, 1])
  # Scalar rewards that are held out make thumbs no scalars.
  data.eval = triplets(raw=np.array([0.25, 0.75, 1.0]), prompts=np.arange(3)).train
  for fit in BY_MEANS.values():
    np.testing.assert_array_equal(fit(data)(data.eval), [0, 1, 1])
  # A lone answer is compared with the training part's mean, 3.
  data = triplets(raw=np.array([1.0, 2.0, 6.0]), prompts=np.array([0, 0, 1]))
  held_out = triplets(raw=np.array([4.0, 8.0]), prompts=np.arange(2)).train
  for name in ('dataset', 'prompt'):
    np.testing.assert_array_equal(BY_MEANS[name](data)(held_out), [1, 1])


@pytest.mark.parametrize('rule', BY_MEANS)
def test_a_single_reward_that_is_not_a_thumb_is_refused(rule):
  for raw in ([0.7] * 3, [2.0], [0.3, 0.1 + 0.2]):
    with pytest.raises(UsageError, match='training rewards are .*--map_reward.*ALGORITHM=sft'):
      labelled(BY_MEANS[rule], raw)


@pytest.mark.parametrize('value', [0.7, 0.1])
def test_equal_rewards_of_a_prompt_are_ties_in_spite_of_rounding(value):
  labels, _ = labelled(algorithms_columns.above_prompt_mean, [value] * 3 + [1, 2, 3], [0, 0, 0, 1, 1, 1])
  assert labels == [NO_LABEL] * 3 + [0, 0, 1]
  with pytest.raises(UsageError, match='responses to each prompt have equal rewards'):
    labelled(algorithms_columns.above_prompt_mean, [value] * 3 + [2, 2, 3, 3], [0, 0, 0, 1, 1, 2, 2])


def test_a_rule_that_labels_all_alike_is_refused():
  with pytest.raises(UsageError, match='threshold 0.*all 3 training responses would be desirable'):
    labelled(algorithms_columns.above_threshold(0), [1, 2, 3])
  with pytest.raises(UsageError, match='all 3 training responses would be undesirable'):
    labelled(algorithms_columns.above_value, [1, 2, 3], value=[4.0, 4.0, 4.0])
  # Thumbs carry their meaning.
  assert labelled(algorithms_columns.above_threshold(0.5), [1, 1])[0] == [1, 1]
  assert labelled(algorithms_columns.above_threshold(0), [-1, -1])[0] == [0, 0]


@pytest.mark.parametrize('raw, threshold', [([0, 1, 1], 1), ([1, 1], 1), ([0, 0], -1), ([-1, 1], 5)])
def test_a_threshold_that_turns_thumbs_into_one_kind_is_refused(raw, threshold):
  with pytest.raises(UsageError, match='all . training responses would be .*desirable'):
    labelled(algorithms_columns.above_threshold(threshold), raw)


def test_thumbs_are_labels_with_any_fitted_value():
  """A value of prompts with thumbs-ups only lies about 1, on either side."""
  for raw in ([1, 1, 1], [1, 0, 1], [5, 2, 5]):
    labels, report = labelled(algorithms_columns.above_value, raw, value=[0.99, -0.01, 5.01])
    assert labels == [1, float(raw[1] == raw[0]), 1] and report['rule'] == 'binary'


def test_thumbs_of_one_kind_are_refused_where_both_are_needed():
  with pytest.raises(UsageError, match='all 2 training responses are desirable'):
    labelled(algorithms_columns.both_kinds(algorithms_columns.above_dataset_mean), [1, 1])
  with pytest.raises(UsageError, match='no training response is desirable'):
    labelled(algorithms_columns.some_desirable(algorithms_columns.above_dataset_mean), [0, 0])
  assert labelled(algorithms_columns.some_desirable(algorithms_columns.above_dataset_mean), [1, 1])[0] == [
    1,
    1,
  ]
  assert (
    labelled(algorithms_columns.both_kinds(algorithms_columns.above_minibatch_mean), [1, 2, 3])[0]
    == [BY_BATCH] * 3
  )


def test_a_label_column_is_counted():
  labels, report = labelled(algorithms_columns.label_column, [0, 0, 0], label=[1.0, 0.0, 1.0])
  assert labels == [1, 0, 1] and (report['desirable'], report['labels']) == (2, 3)


def test_the_report_counts_labels_that_an_earlier_version_made_otherwise():
  def unlike(fit, raw, *prompts):
    return labelled(fit, raw, *prompts)[1]['unlike_earlier']

  assert (
    unlike(algorithms_columns.above_minibatch_mean, [0, 1, 1]) == 3
  )  # By the minibatch's mean, which may be any.
  assert unlike(algorithms_columns.above_minibatch_mean, [1, 2, 3]) == 0
  assert unlike(algorithms_columns.above_dataset_mean, [0, 1, 1]) == 0
  assert unlike(algorithms_columns.above_dataset_mean, [1, 1, 1]) == 3
  assert unlike(algorithms_columns.above_prompt_mean, [1, 2, 3, 4]) == 0
  assert unlike(algorithms_columns.above_prompt_mean, [1, 2, 3, 4, 9], [0, 0, 1, 1, 2]) == 1  # A lone answer.
  assert unlike(algorithms_columns.above_threshold(0.3), [0.1, 0.1 + 0.2, 1]) == 1


def test_the_dataset_mean_is_the_training_parts():
  other = triplets(raw=np.array([10.0, 11.0]), prompts=np.array([0, 1])).train
  np.testing.assert_array_equal(algorithms_columns.above_dataset_mean(triplets())(other), [1, 1])


def test_values_are_scaled_as_rewards_are():
  value = np.array([2.0, 2.0, 2.0, 1.0, 1.0, 7.0])
  np.testing.assert_allclose(
    made(algorithms_columns.scaled_value, value=value), (value - RAW.mean()) / RAW.std()
  )
  np.testing.assert_allclose(made(algorithms_columns.advantages, value=value), (RAW - value) / RAW.std())


def test_advantages_do_not_depend_on_the_levels_of_prompts():
  value = np.array([2.0, 2.0, 2.0, 1.0, 1.0, 7.0])
  data = triplets(kind='standardise_within', value=value)
  scaled = algorithms_columns.scaled_value(data)(data.train)
  np.testing.assert_allclose(data.train.rewards - scaled, (RAW - value) / data.scaling.scale)
  np.testing.assert_allclose(
    made(algorithms_columns.advantages, kind='standardise_within', value=value),
    (RAW - value) / data.scaling.scale,
  )


def test_quantiles_are_shares_of_smaller_rewards():
  np.testing.assert_allclose(made(algorithms_columns.prompt_quantiles), [1 / 6, 3 / 6, 5 / 6, 0.5, 0.5, 0.5])
  expected = [(np.sum(r > RAW) + np.sum(r == RAW) / 2) / 6 for r in RAW]
  np.testing.assert_allclose(made(algorithms_columns.data_quantiles), expected)


def test_propensities_need_a_sampled_log():
  logps = -np.arange(6.0)
  with pytest.raises(UsageError, match='no behaviour_logprob'):
    made(algorithms_columns.propensities())
  for columns in ({}, {'behaviour_sampled': [1, 1, 1, 0, 1, 1]}):
    with pytest.raises(UsageError, match='BEHAVIOUR_SAMPLER=sampled'):
      made(algorithms_columns.propensities(), behaviour_logps=logps, **columns)
  with pytest.raises(UsageError, match='beam search'):
    made(algorithms_columns.propensities('beam'), behaviour_logps=logps, behaviour_sampled=np.ones(6))
  for sampler, columns in (('sampled', {}), (None, {'behaviour_sampled': np.ones(6)})):
    np.testing.assert_array_equal(
      made(algorithms_columns.propensities(sampler), behaviour_logps=logps, **columns), logps
    )


def test_ranks_and_advantages_ignore_rounding():
  raw, prompts = np.array([0.1 + 0.2, 0.3, 1.0, 0.7]), np.array([0, 0, 0, 1])
  data = triplets(raw=raw, prompts=prompts, kind='none', value=[0.3, 0.1 + 0.2, 0.5, 0.7])
  np.testing.assert_allclose(
    algorithms_columns.prompt_quantiles(data)(data.train), [1 / 3, 1 / 3, 5 / 6, 0.5]
  )
  np.testing.assert_allclose(algorithms_columns.data_quantiles(data)(data.train), [0.25, 0.25, 0.875, 0.625])
  np.testing.assert_array_equal(algorithms_columns.advantages(data)(data.train), [0, 0, 0.5, 0])


@pytest.mark.parametrize('value', [0.7, 1.0])
def test_equal_rewards_are_refused_by_algorithms_that_learn_from_differences(value):
  same = triplets(raw=np.full(4, value), prompts=np.array([0, 0, 1, 1]), kind='none')
  apart = triplets(raw=np.repeat([value, value + 1], 2), prompts=np.array([0, 0, 1, 1]), kind='none')
  for refuse in (refusals.refuse_equal_rewards, refusals.refuse_equal_within_prompts):
    with pytest.raises(UsageError, match='training rewards are .*ALGORITHM=sft'):
      refuse(same)
  refusals.refuse_equal_rewards(apart)
  with pytest.raises(UsageError, match='responses to each prompt have equal rewards'):
    refusals.refuse_equal_within_prompts(apart)
  with pytest.raises(UsageError, match='training rewards are'):
    algorithms_columns.data_quantiles(same)
  with pytest.raises(UsageError, match='responses to each prompt have equal rewards'):
    algorithms_columns.prompt_quantiles(apart)


def test_columns_that_the_data_cannot_give_are_refused():
  with pytest.raises(UsageError, match="column 'value'.*fit_value"):
    made(algorithms_columns.scaled_value)
  with pytest.raises(UsageError, match='no training response has a positive advantage'):
    made(algorithms_columns.advantages, value=RAW + 1)
  single = triplets(prompts=np.arange(6))
  with pytest.raises(UsageError, match='every prompt here has one: use the dataset mean'):
    algorithms_columns.above_prompt_mean(single)
  with pytest.raises(UsageError, match='data_quantiles'):
    algorithms_columns.prompt_quantiles(single)
  with pytest.raises(UsageError, match='REWARD_SCALING=minmax'):
    refusals.refuse_negative_rewards(triplets())
  refusals.refuse_negative_rewards(triplets(kind='minmax'))


@pytest.mark.parametrize(
  'threshold, share, labels',
  [
    (None, 0.25, [0, 0, 1, 1, 1, 1]),  # The best of each prompt, with its ties; a lone answer is the best.
    (None, 0.5, [0, 1, 1, 1, 1, 1]),  # ⌈1.5⌉ of three.
    (None, 1.0, [1, 1, 1, 1, 1, 1]),
    (4, 1.0, [0, 0, 0, 1, 1, 1]),  # At the threshold is enough.
    (5, 0.25, [0, 0, 0, 0, 0, 1]),
    (2, 0.25, [0, 0, 1, 1, 1, 1]),
  ],
)
def test_the_best_of_a_prompt_are_its_top_share_at_or_above_a_threshold(threshold, share, labels):
  found, report = labelled(algorithms_columns.best_of_prompt(threshold, share), RAW, PROMPTS, 'standardise')
  assert found == labels
  skipped = sum(not np.array(labels)[prompt == PROMPTS].any() for prompt in range(3))
  assert f'{skipped} of 3 prompts have none and are skipped' in report['said']
  assert report['desirable'] == sum(labels)


def test_the_top_share_counts_in_spite_of_rounding():
  raw = np.arange(30.0)
  found, _ = labelled(algorithms_columns.best_of_prompt(None, 0.1), raw, np.zeros(30))
  assert sum(found) == 3  # .1 · 30 is 3.0000000000000004.
  near = [0.3, 0.1 + 0.2, 0.1, 0.0]
  assert labelled(algorithms_columns.best_of_prompt(None, 0.25), near, np.zeros(4))[0] == [1, 1, 0, 0]


def test_binary_rewards_keep_the_higher_and_skip_prompts_without_it():
  found, report = labelled(algorithms_columns.best_of_prompt(None, 1.0), [1, 0, 0, 0, 1, 1])
  assert found == [1, 0, 0, 0, 1, 1] and '1 of 3 prompts' in report['said']
  assert labelled(algorithms_columns.best_of_prompt(None, 0.25), [-1, 1, -1, -1])[0] == [0, 1, 0, 0]


def test_the_best_of_lone_answers_needs_a_threshold():
  fit, lone = algorithms_columns.best_of_prompt(None, 0.25), np.arange(6)
  with pytest.raises(
    UsageError, match=r'every prompt here has one: use a threshold .--set rft.threshold=NUMBER'
  ):
    labelled(fit, RAW, lone)
  with pytest.raises(UsageError, match='do not say which responses are best'):
    labelled(fit, [0.7] * 4)
  assert labelled(algorithms_columns.best_of_prompt(4, 0.25), RAW, lone)[0] == [0, 0, 0, 1, 1, 1]
