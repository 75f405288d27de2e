import numpy as np
import pytest

from dro_jax.data import scaling
from dro_jax.data.table import table
from dro_jax.data.text import tokenise, vocabularies
from dro_jax.inspection import describe
from tests.data.text import tiny_tokenizers

LIMIT = 6


@pytest.fixture(scope='module')
def make(tmp_path_factory):
  """A table of (prompt, response, reward), in bytes, cut at LIMIT tokens."""
  folder = tmp_path_factory.mktemp('tables')

  def build(*triplets):
    records = [dict(zip(('prompt', 'response', 'reward'), triplet)) for triplet in triplets]
    words = vocabularies.vocabulary('bytes')
    where = folder / table.fingerprint(triplets)
    return table.build(records, words, where, prompt_length=LIMIT, response_length=LIMIT)

  return build


# Two prompts with rewards 1, 3 and 4, 4, 7: means 2, 5 and 3.8.
REWARDS, PROMPTS = np.array([1.0, 4.0, 3.0, 4.0, 7.0]), np.array([9, 2, 9, 2, 2])


def test_the_variance_is_decomposed_as_by_hand():
  found = describe.variance(REWARDS, PROMPTS)
  assert found['between'] == pytest.approx(2 * 1.8**2 + 3 * 1.2**2)
  assert found['within'] == pytest.approx(1 + 1 + 1 + 1 + 4)
  assert found['between'] + found['within'] == pytest.approx(5 * REWARDS.var())
  assert (found['between_freedom'], found['within_freedom']) == (1, 3)
  size = (5 - (4 + 9) / 5) / 1
  component = (10.8 - 8 / 3) / size
  assert found['component_within'] == pytest.approx(8 / 3)
  assert found['component_between'] == pytest.approx(component)
  assert found['intraclass_correlation'] == pytest.approx(component / (component + 8 / 3))
  fitted = scaling.fit('none', REWARDS, PROMPTS)
  assert found['component_within'] == pytest.approx(fitted.statistics['within_prompt_sd'] ** 2)


def test_the_components_are_those_of_the_world_that_made_the_rewards():
  rng = np.random.default_rng(0)
  prompts = np.repeat(np.arange(4000), rng.integers(1, 5, 4000))
  rewards = 2.0 * rng.normal(size=4000)[prompts] + 0.5 * rng.normal(size=len(prompts))
  found = describe.variance(rewards, prompts)
  assert found['component_between'] == pytest.approx(4.0, rel=0.07)
  assert found['component_within'] == pytest.approx(0.25, rel=0.05)


def test_one_response_a_prompt_says_nothing_of_the_variance_within():
  found = describe.variance(REWARDS, np.arange(5))
  assert found['share_within'] is found['component_within'] is found['intraclass_correlation'] is None
  assert describe.variance(REWARDS, np.zeros(5))['component_between'] is None


def test_comparisons_count_ties_and_who_is_longer():
  lengths = np.array([1.0, 5.0, 2.0, 6.0, 4.0])
  found = describe.comparisons(REWARDS, lengths, PROMPTS)
  assert (found['pairs'], found['tied_pairs']) == (1 + 3, 1)
  assert found['longer_is_better'] == pytest.approx(1 / 3)  # Of 3 > 1, 7 > 4 and 7 > 4: the first only.
  tied = describe.comparisons(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]))
  assert (tied['prompts_all_tied'], tied['prompts_with_comparisons'], tied['share_tied']) == (1, 0, 1.0)


@pytest.mark.parametrize('rewards', [np.full(7, 0.7), np.array([0.3, 0.1 + 0.2] * 3 + [0.3])])
def test_equal_rewards_have_no_variance(rewards):
  found = describe.variance(rewards, np.array([0, 0, 0, 1, 1, 1, 2]))
  assert (found['between'], found['within'], found['share_within']) == (0, 0, None)
  assert (found['component_within'], found['component_between']) == (0, 0)
  described = describe.rewards(rewards)
  assert (described['sd'], described['distinct'], described['is_binary']) == (0, 1, False)


def test_rewards_that_are_equal_within_prompts_vary_between_them_only():
  rewards = np.repeat([0.7, 0.1], 3)
  assert describe.variance(rewards, np.repeat([0, 1], 3))['share_within'] == 0


def test_texts_whose_rewards_differ_by_rounding_have_no_conflict(make):
  table = make(('p', 'x', 0.3), ('p', 'x', 0.1 + 0.2), ('q', 'y', 1.0))
  found = describe.duplicates(table)
  assert (found['texts_with_conflicting_rewards'], found['largest_conflict'], found['examples']) == (0, 0, [])


def test_duplicates_and_conflicts_are_told_apart(make):
  found = describe.duplicates(
    make(
      ('a', 'x', 1), ('a', 'x', 1), ('a', 'y', 1), ('b', 'x', 2), ('b', 'x', 5), ('b', 'x', 4), ('c', 'x', 9)
    )
  )
  assert (found['duplicates'], found['texts_repeated']) == (3, 2)
  assert (found['texts_with_conflicting_rewards'], found['largest_conflict']) == (1, 3.0)
  assert found['examples'] == ['record:5']


def test_whole_lengths_are_those_before_the_limit(make):
  built = make(('12345', 'a', 0), ('1234567', 'abcdefghij', 0), ('12345', '12345', 0))
  found = describe.whole_lengths(built, vocabularies.vocabulary('bytes'), LIMIT)
  np.testing.assert_array_equal(found.prompt_tokens, [6, 8])  # EOS included; 6 fits just.
  np.testing.assert_array_equal(found.response_tokens, [2, 11, 6])
  np.testing.assert_array_equal(found.prompt_characters, [5, 7])
  np.testing.assert_array_equal(found.response_characters, [1, 10, 5])
  cut = describe.truncation(found.response_tokens, LIMIT)
  assert (cut['cut'], cut['share_of_tokens_lost']) == (1, 5 / 19) and cut['limit_for_99_percent'] == 11
  assert cut['cut'] == built.report['overlong_responses']


def test_a_limit_for_99_percent_keeps_99_percent():
  whole = np.arange(1, 201)
  limit = describe.truncation(whole, 10)['limit_for_99_percent']
  assert (
    describe.truncation(whole, limit)['share_cut']
    <= 0.01
    < describe.truncation(whole, limit - 1)['share_cut']
  )


def test_rewards_of_few_values_are_counted_one_by_one():
  found = describe.rewards(np.array([1.0, 0.0, 1.0]))
  assert found['is_binary'] and [bar['count'] for bar in found['histogram']] == [1, 2]
  many = describe.rewards(np.arange(100.0))
  assert not many['is_binary'] and sum(bar['count'] for bar in many['histogram']) == 100


@pytest.mark.parametrize('by_chat', [True, False])
def test_whole_lengths_of_a_decoder_only_model_are_those_of_its_tokens(tmp_path, by_chat):
  words = vocabularies.vocabulary(tiny_tokenizers.qwen(tmp_path / 'words'))
  texts = [('ZYX' * 20, 'WVU' * 20), ('ZYX', 'WVU')]
  records = [{'prompt': prompt, 'response': response, 'reward': 0} for prompt, response in texts]
  options = {'prompt_length': 50, 'response_length': 20, 'chat': by_chat}
  built = table.build(records, words, tmp_path / 'table', **options)
  found = describe.whole_lengths(built, words, 50, by_chat)
  whole = [len(ids) for ids, _ in tokenise.prompts([prompt for prompt, _ in texts], words, by_chat=by_chat)]
  assert found.prompt_tokens.tolist() == whole and whole[0] > 50
  assert found.response_tokens.tolist() == [61, 4]
  assert describe.unknown_share(built, words.special.unknown) == 0
