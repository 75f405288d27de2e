import json

import numpy as np
import pytest

from dro_jax import main
from dro_jax.data.storage import hashes
from dro_jax.errors import UsageError
from dro_jax.evaluation import report
from dro_jax.run.folder import validation
from dro_jax.run.folder.validation import Validation
from dro_jax.statistics import agreement

SCALING = {'kind': 'none', 'shift': 0.0, 'scale': 1.0, 'knots': [], 'effective_temperature': 1.0}
DECODING = {'prompts': 64, 'temperature': 1.0, 'max_length': 8, 'reward': None}
NUM_PROMPTS = 12


def measured(skill, seed=0, **changes):
  """Four responses to each prompt; `skill` is how far ρ follows the reward."""
  rng = np.random.default_rng(7)  # The same responses for every run.
  prompts = np.repeat(hashes.digests(f'p{i}' for i in range(NUM_PROMPTS)), 4)
  rewards, reference = rng.normal(size=len(prompts)), -20 + rng.normal(size=len(prompts))
  own = np.random.default_rng(seed)
  fields = {
    'temperature': np.asarray(1.0),
    'examples': hashes.digests(f'e{i}' for i in range(len(prompts))),
    'prompts': prompts,
    'rewards': rewards,
    'lengths': rng.integers(1, 8, len(prompts)),
    'logps': reference + skill * rewards + own.normal(size=len(prompts)),
    'reference_logps': reference,
    'sample_prompts': np.unique(prompts),
    'samples': np.array(['x'] * NUM_PROMPTS),
    'sample_lengths': own.integers(1, 8, NUM_PROMPTS),
    'sample_log_ratios': skill + own.normal(size=NUM_PROMPTS),
  }
  return Validation(**(fields | changes))


@pytest.fixture
def write(tmp_path):
  """Writes a run's folder as training leaves it, but for its checkpoints."""

  def write(name, found, *, scaling=SCALING, decoding=DECODING, config='', **data):
    folder = tmp_path / name
    folder.mkdir()
    held_out = {'split': {'by': 'prompt hash', 'fraction': 0.05, 'salt': ''}}
    metadata = {'algorithm': name, 'temperature': 1.0, 'batch_size': 8, 'decoding': decoding}
    metadata |= {'data': held_out | {'scaling': scaling, 'triplets': ['t.jsonl']} | data}
    (folder / 'run.json').write_text(json.dumps(metadata))
    (folder / 'config.gin').write_text(config)
    point = {'examples': 80, 'flops': 1e9, 'eval/kl': 0.5, 'eval/within_prompt_accuracy/log_ratio': 0.7}
    points = [{'step': 5, 'loss': 1.0}, {'step': 10, **point}, {'step': 20, **point, 'examples': 160}]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in points))
    validation.save(folder, 20, found)
    return str(folder)

  return write


def test_a_moving_reference_is_compared_with_its_own_kind(write):
  moving = measured(0.5)
  moving = moving._replace(
    moving_reference_logps=moving.logps, sample_moving_log_ratios=np.zeros(NUM_PROMPTS)
  )
  folders = [write('moved', moving), write('frozen', measured(0.3, seed=1))]
  rows = table(report.report(folders, resamples=5), 'Last validation')['rows']
  found = {row['metric']: row for row in rows}
  row = found[report.MEANINGS['kl_moving']]
  assert row['moved']['value'] == 0 and row['frozen'] is None
  assert found[report.MEANINGS['kl']]['frozen'] is not None
  assert 'against another reference' not in str(rows)


def table(result, title):
  return next(each for each in result['tables'] if each['title'] == title)


def row(result, title, metric):
  return next(each for each in table(result, title)['rows'] if each['metric'] == report.MEANINGS[metric])


def test_differences_are_paired(write):
  """Two scores that share their noise differ by far less than either is unsure of."""
  good, better = measured(0.5), measured(0.7)
  result = report.report([write('a', good), write('b', better)], resamples=300)
  rho = [x.logps - x.reference_logps for x in (good, better)]
  of = row(result, 'Last validation: difference from a', 'log_ratio')['b']
  assert of['value'] == pytest.approx((rho[1] - rho[0]).mean())
  alone = row(result, 'Last validation', 'log_ratio')['a']
  assert of['high'] - of['low'] < (alone['high'] - alone['low'])
  assert row(result, 'Last validation', 'kl')['b']['value'] == pytest.approx(better.sample_log_ratios.mean())


def test_a_value_and_its_interval_are_evaluates_own(write):
  found = measured(0.5)
  result = report.report([write('a', found), write('b', found)], resamples=50, seed=3)
  want = agreement.within_prompts(
    {'rho': found.logps - found.reference_logps}, found.rewards, found.prompts, resamples=50, seed=3
  )
  assert row(result, 'Last validation', 'within_prompt_accuracy/log_ratio')['a'] == (
    want['accuracy']['rho']._asdict()
  )
  same = row(result, 'Last validation: difference from a', 'within_prompt_accuracy/log_ratio')['b']
  assert same == {'value': 0.0, 'low': 0.0, 'high': 0.0}


def test_a_report_compares_responses_that_both_runs_scored(write):
  """Whatever the order, and however often a response was logged."""
  whole = measured(0.5)
  arrays = ('examples', 'prompts', 'rewards', 'lengths', 'logps', 'reference_logps')
  order = np.random.default_rng(0).permutation(len(whole.examples))[:-5]
  part = whole._replace(**{name: getattr(whole, name)[order] for name in arrays})
  result = report.report([write('a', whole), write('b', part)], resamples=10)
  assert '43 held-out responses' in table(result, 'Last validation')['note']
  assert row(result, 'Last validation: difference from a', 'logp')['b']['value'] == pytest.approx(0.0)
  twice = np.array([1, 1, 2], np.uint64)
  one, other = validation._aligned([validation._numbered(twice), validation._numbered(twice[[2, 0]])])
  assert (one.tolist(), other.tolist()) == ([0, 2], [1, 0])


def test_a_metric_that_one_run_lacks_has_no_difference(write):
  without = measured(0.5, reference_logps=None, sample_log_ratios=None)
  result = report.report([write('a', measured(0.5)), write('b', without)], resamples=5)
  assert row(result, 'Last validation', 'kl')['b'] is None
  assert row(result, 'Last validation: difference from a', 'kl')['b'] is None
  assert row(result, 'Last validation', 'logp')['b']['value'] < 0
  nothing = Validation(np.asarray(1.0))
  assert report.report([write('c', nothing), write('d', nothing)])['tables'][2]['rows'] == []


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'split': {'by': 'prompt hash', 'fraction': 0.1, 'salt': ''}}, 'split differs: .*0.05.* and .*0.1'),
    ({'split': None}, 'split differs: .*prompt hash.* and .*eval_triplets'),
    ({'scaling': SCALING | {'kind': 'standardise', 'scale': 2.0}}, 'reward scaling differs: .*standardise'),
    ({'decoding': DECODING | {'max_length': 9}}, 'decoding differs: .*length.: 8} and .*length.: 9}'),
  ],
)
def test_another_yardstick_is_refused_by_its_name(write, changes, message):
  runs = [write('a', measured(0.5)), write('b', measured(0.5), **changes)]
  with pytest.raises(UsageError, match=f'a and b cannot be compared, for their {message}'):
    report.report(runs)


def test_other_prompts_and_other_rewards_are_refused(write):
  plain = measured(0.5)
  one = write('a', plain)
  prompts = plain.prompts.copy()
  prompts[:4] = 1
  with pytest.raises(UsageError, match='12 held-out prompts and 12 held-out prompts, 11 of them the same'):
    report.report([one, write('b', plain._replace(prompts=prompts))])
  with pytest.raises(UsageError, match='reward of a held-out response differs'):
    report.report([one, write('c', plain._replace(rewards=plain.rewards * 2))])


def test_another_reference_is_said(write):
  plain = measured(0.5)
  other = plain._replace(reference_logps=plain.reference_logps + 1)
  result = report.report([write('a', plain), write('b', other)], resamples=5)
  assert 'b measure KL and ρ against another reference than a' in table(result, 'Last validation')['note']


def test_runs_without_a_validation_and_other_folders_are_refused(write, tmp_path):
  one = write('a', measured(0.5))
  with pytest.raises(UsageError, match='1 run to compare'):
    report.report([one])
  with pytest.raises(UsageError, match='no run in'):
    report.report([one, str(tmp_path)])
  empty = write('b', measured(0.5))
  validation.keep(tmp_path / 'b', [])
  with pytest.raises(UsageError, match='holds no validation'):
    report.report(f'{one},{empty}')


def test_settings_that_differ_are_shown(write):
  config = "# Macros:\nBATCH = 8\nMODEL_DIR = 'x'\nf.x = \\\n    {'a': 1,\n     'b': 2}\n\n# Parameters\n"
  runs = [
    write('a', measured(0.5), config=config),
    write('b', measured(0.5), config=config.replace('8', '16').replace("'b': 2", "'b': 3")),
  ]
  shown = {each['setting']: each for each in table(report.report(runs, resamples=5), 'What differs')['rows']}
  assert shown == {
    'BATCH': {'setting': 'BATCH', 'a': '8', 'b': '16'},
    'f.x': {'setting': 'f.x', 'a': "{'a': 1, 'b': 2}", 'b': "{'a': 1, 'b': 3}"},
  }


def test_the_command_takes_folders_and_writes_files(write, tmp_path, capsys):
  runs = [write('a', measured(0.5)), write('b', measured(0.9))]
  argv = ['report', *runs, f'--output={tmp_path / "out"}', '--set', 'RESAMPLES=5']
  assert main.main(argv) == 0
  printed = capsys.readouterr().out
  assert 'Last validation: difference from a' in printed
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
    'curves.png', 'report.json', 'report.md'
  ]  # fmt: skip
  assert '## Last validation' in (tmp_path / 'out' / 'report.md').read_text()
  assert main.main([*argv, '--json']) == 0
  result = json.loads(capsys.readouterr().out)
  assert result['runs'] == {'a': runs[0], 'b': runs[1]}
  assert [point['step'] for point in result['curves']['a']] == [10, 20]
  assert result == json.loads((tmp_path / 'out' / 'report.json').read_text())
