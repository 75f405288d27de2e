import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from dro_jax.run import outcome
from dro_jax.run.folder import validation
from dro_jax.run.folder.validation import Validation

PROMPTS = 60


def measured(share, *, kl=0.0, reward=0.0, prompts=PROMPTS, samples=True):
  """Two responses to each prompt, of which ρ prefers the better in a share of prompts."""
  digests = np.repeat(np.arange(prompts, dtype=np.uint64), 2)
  better = np.tile([0.0, 1.0], prompts)
  right = np.where(np.arange(prompts) < share * prompts, 1.0, -1.0)
  reference = np.full(2 * prompts, -9.0)
  own = {
    'sample_prompts': np.arange(prompts, dtype=np.uint64), 'samples': np.array(['a'] * prompts),
    'sample_lengths': np.full(prompts, 3), 'sample_log_ratios': np.full(prompts, kl),
    'sample_rewards': reward + np.linspace(-1, 1, prompts),
  }  # fmt: skip
  return Validation(
    np.asarray(1.0), np.arange(2 * prompts, dtype=np.uint64), digests, better, np.full(2 * prompts, 4),
    reference + np.repeat(right, 2) * better, reference, **(own if samples else {}),
  )  # fmt: skip


@pytest.fixture
def write(tmp_path):
  def write(steps, criteria=(2.0, 1.0)):
    for (step, found), criterion in zip(steps.items(), criteria):
      validation.save(tmp_path, step, found)
      lines = {
        'metrics.jsonl': [{'step': step, 'eval/criterion': criterion}, {'step': step, 'loss': 9.0}],
        'samples.jsonl': [
          {'step': step, 'prompt': f'p{i}', 'response': f'after {step}: {i}', 'logp': 0.0} for i in range(5)
        ],
      }
      for name, records in lines.items():
        with open(tmp_path / name, 'a') as file:
          file.writelines(json.dumps(record) + '\n' for record in records)
    return tmp_path

  return write


def rows(result):
  return {row['metric']: row for row in result.table.rows}


def test_numbers_before_and_after_have_intervals_over_prompts(write):
  folder = write({0: measured(0.5), 9: measured(0.8, kl=2.0, reward=1.0)})
  result = outcome.read(folder)
  found = rows(result)
  assert list(found) == [
    'criterion', 'reward of samples', 'KL, nats', 'accuracy of ρ', 'explained by τρ',
  ]  # fmt: skip
  assert found['criterion'] == {
    'metric': 'criterion', 'before': 2.0, 'after': 1.0, 'change': -1.0
  }  # fmt: skip
  accuracy = found['accuracy of ρ']
  assert accuracy['before'] == (0.5, 0.5, 0.5)
  assert accuracy['after'].value == pytest.approx(0.8) and 0.6 < accuracy['after'].low < 0.8
  # Paired by prompt: every reward rose by as much.
  assert found['reward of samples']['change'] == pytest.approx((1.0, 1.0, 1.0))
  assert result.table.note == (
    '120 held-out responses to 60 prompts and own samples to 60 prompts; 95 % intervals over prompts.'
  )
  assert result.verdict.startswith('It worked: the reward of own samples rose by 1.0')


def test_three_prompts_are_shown_with_the_answer_before_and_after(write):
  result = outcome.read(write({0: measured(0.5), 9: measured(0.8)}))
  assert result.answers == [
    {'prompt': f'p{i}', 'before': f'after 0: {i}', 'after': f'after 9: {i}'} for i in range(3)
  ]
  console = Console(width=500, record=True, file=io.StringIO())
  console.print(result)
  text = console.export_text()
  assert 'Before and after 9 steps' in text and "before: 'after 0: 2'" in text and result.verdict in text


@pytest.mark.parametrize(
  'changes, says',
  [
    ({'share': 0.9}, 'It worked: the within-prompt accuracy of ρ rose by 0.4'),
    ({'share': 0.1}, 'It made things worse: the within-prompt accuracy of ρ changed by −0.4'),
    ({'share': 0.55}, 'Undecided: the within-prompt accuracy of ρ changed by .*decides nothing'),
  ],
)
def test_without_a_reward_of_own_samples_the_order_of_responses_decides(write, changes, says):
  result = outcome.read(write({0: measured(0.5, samples=False), 9: measured(**changes, samples=False)}))
  assert re.search(says, result.verdict)


def test_only_prompts_with_answers_of_different_rewards_count_for_their_order(write):
  """Thirty prompts of which three tell good from bad decide nothing."""

  def few(share):
    found = measured(share, samples=False, prompts=30)
    return found._replace(rewards=np.where(found.prompts < 3, found.rewards, 1.0))

  verdict = outcome.read(write({0: few(0.5), 9: few(1.0)})).verdict
  assert verdict == (
    'Undecided: 3 held-out prompts with answers of different rewards are too few (the within-prompt accuracy '
    'of ρ changed by 0.5000).'
  )


def test_a_policy_that_has_hardly_moved_has_not_worked_though_it_orders_answers(write):
  unrewarded = {'sample_rewards': None}
  before, after = (measured(share)._replace(**unrewarded) for share in (0.5, 0.9))
  verdict = outcome.read(write({0: before, 9: after})).verdict
  assert verdict.startswith('Not yet: the within-prompt accuracy of ρ rose by 0.4')
  assert 'has hardly moved' in verdict


def test_a_criterion_on_few_prompts_decides_nothing(write):
  found = measured(0.5, samples=False, prompts=8)._replace(rewards=np.zeros(16))
  assert outcome.read(write({0: found, 9: found})).verdict == 'Undecided: 8 held-out prompts are too few.'


def test_a_reward_model_is_judged_by_its_accuracy_on_pairs(write):
  def scored(right):
    """A model that orders this share of the pairs right; 0.5 are the ties of a model that knows nothing."""
    base = measured(0.5, samples=False)._replace(reference_logps=None)
    prompts = np.unique(base.prompts)
    margins = np.where(np.arange(PROMPTS) < right * PROMPTS, 2.0, -2.0) * (right != 0.5)
    scores = np.zeros(2 * PROMPTS)
    scores[1::2] = margins
    return base._replace(scores=scores, pairs=prompts, pair_prompts=prompts, pair_margins=margins)

  result = outcome.read(write({0: scored(0.5), 9: scored(0.9)}))
  found = rows(result)
  assert found['accuracy on pairs']['before'].value == 0.5
  assert found['accuracy on pairs']['after'].value == pytest.approx(0.9)
  assert 'calibration error' in found and 'accuracy of R' in found and 'accuracy of log π' not in found
  assert result.verdict.startswith('It worked: the accuracy on held-out pairs rose by 0.4')


@pytest.mark.parametrize('kl, says', [(0.0, 'has hardly moved'), (20.0, 'has left its reference')])
def test_the_verdict_says_when_the_policy_stayed_or_left(write, kl, says):
  assert says in outcome.read(write({0: measured(0.5), 9: measured(0.8, kl=kl)})).verdict


def test_the_mass_kept_is_shown_with_its_effective_size_and_the_verdict_mentions_a_loss(write):
  before, after = measured(0.5), measured(0.8, kl=1.0)
  zeros = np.zeros((PROMPTS, 4))
  kept = [before._replace(reference_sample_log_ratios=zeros)]
  kept += [after._replace(reference_sample_log_ratios=zeros + np.log(z)) for z in (0.9, 0.25)]
  result = outcome.read(write({0: kept[0], 5: kept[1], 9: kept[2]}, (3.0, 2.0, 1.0)), 9)
  found = rows(result)
  assert found['mass kept']['before'].value == 1 and found['mass kept']['after'].value == 0.25
  assert found['effective size']['after'].value == 4 * PROMPTS
  assert 'The policy has 0.2500 of its probability on answers that its reference gives' in result.verdict
  assert '--set NEXT_TOKEN_KL=1.0' in result.verdict
  assert 'probability' not in outcome.read(write({}), 5).verdict


@pytest.mark.parametrize(
  'prompts, says',
  [
    (20, r'^It worked: .* 20 held-out prompts are few, so other prompts may differ\.$'),
    (6, r'^Undecided: 6 held-out prompts are too few \(the reward of own samples changed by 1\.000'),
  ],
)
def test_few_prompts_are_called_few(write, prompts, says):
  after = measured(0.8, kl=1.0, reward=1.0, prompts=prompts)
  assert re.search(says, outcome.read(write({0: measured(0.5, prompts=prompts), 9: after})).verdict)


def test_a_terminal_of_80_columns_shows_the_whole_table(write):
  after = measured(0.8, kl=3e-5, reward=-1.0)
  result = outcome.read(write({0: measured(0.5), 9: after}, (-123456.7, -98765.4)))
  console = Console(width=80, record=True, file=io.StringIO())
  console.print(result)
  assert '…' not in console.export_text()


def test_with_nothing_but_a_criterion_the_verdict_is_guarded(write):
  bare = Validation(np.asarray(1.0))
  result = outcome.read(write({0: bare, 9: bare}))
  assert result.verdict == ('It seems to have worked: the held-out criterion fell. It has no interval here.')


def test_the_best_step_is_compared_where_it_is_kept(write):
  folder = write({0: measured(0.5), 5: measured(0.9), 9: measured(0.6)}, (3.0, 1.0, 2.0))
  assert outcome.read(folder, 5).table.title == 'Before and after 5 steps'
  assert outcome.read(folder, 7).table.title == 'Before and after 9 steps'


def test_other_held_out_responses_are_left_out_of_the_comparison(write):
  result = outcome.read(write({0: measured(0.5, prompts=80), 9: measured(0.8)}))
  assert result.table.note.startswith('120 held-out responses to 60 prompts')


def test_a_run_whose_first_policy_was_not_measured_has_no_outcome(write):
  folder = write({9: measured(0.8)})
  assert outcome.read(folder) is None
