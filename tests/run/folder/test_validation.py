import functools
import json
import shutil

import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.data import triplets
from dro_jax.evaluation import compared_run, report
from dro_jax.run import schedule
from dro_jax.run.folder import validation
from dro_jax.run.folder.validation import Validation
from dro_jax.run.sampling import rollouts
from dro_jax.statistics import agreement
from dro_jax.step import optimizers
from tests import runs
from tests.evaluation.test_evaluate import MODEL, one_device
from tests.evaluation.test_report import measured


def test_validations_are_saved_and_read_and_keep_removes_other_steps(tmp_path):
  found = measured(0.5, values=None)
  for step in (2, 10, 4):
    validation.save(tmp_path, step, found._replace(temperature=np.asarray(float(step))))
  assert validation.steps(tmp_path) == [2, 4, 10]
  validation.keep(tmp_path, (10, None, 2))
  assert sorted(path.name for path in (tmp_path / 'eval').iterdir()) == ['10.npz', '2.npz']
  again = validation.load(tmp_path, 10)
  assert float(again.temperature) == 10
  assert again.values is None
  for name in ('examples', 'prompts', 'logps', 'samples', 'sample_log_ratios'):
    np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_a_summary_is_what_its_intervals_are_around():
  found = measured(0.5, values=np.random.default_rng(0).normal(size=48))
  rho, summary = found.logps - found.reference_logps, validation.summary(found)
  scores = {'log_ratio': rho} | agreement.baselines(found.logps, found.lengths)
  within = agreement.within_prompts(scores, found.rewards, found.prompts, resamples=2)['accuracy']
  for name, estimate in within.items():
    assert summary[f'within_prompt_accuracy/{name}'] == estimate.value
  across = agreement.across_prompts({'v': found.values + rho}, found.rewards, found.prompts, resamples=2)
  assert summary['rank_correlation'] == across['v'].value
  fit = agreement.value_fit(found.values, found.rewards, found.prompts, resamples=2)
  assert summary['value_explained_variance'] == fit.value
  assert summary['log_ratio_std'] == pytest.approx(rho.std())
  assert validation.summary(Validation(np.asarray(1.0))) == {}


def test_statistics_of_a_moving_reference_are_named_apart():
  found = measured(0.5, values=np.random.default_rng(0).normal(size=48))
  moving = found._replace(moving_reference_logps=found.logps, sample_moving_log_ratios=np.zeros(12))
  plain, both = validation.summary(found), validation.summary(moving)
  added = {name: value for name, value in both.items() if name not in plain}
  assert {name: both[name] for name in plain} == plain
  assert added.keys() == {
    f'{name}_moving'
    for name in (
      'log_ratio', 'log_ratio_std', 'rank_correlation', 'within_prompt_accuracy/log_ratio',
      'within_prompt_explained_variance', 'within_prompt_correlation',
    )
  }  # fmt: skip
  assert added['log_ratio_moving'] == 0 and added['within_prompt_accuracy/log_ratio_moving'] == 0.5
  assert validation.sample_statistics(moving)['kl_moving'](np.ones(12)) == 0


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Two steps of DPO on prompts with three responses each, of which pairs leave one out."""
  folder = tmp_path_factory.mktemp('validated')
  records = [
    {'prompt': f'say {i % 12}', 'response': 'abc'[: 1 + i // 12], 'reward': float(i // 12)} for i in range(36)
  ]
  (folder / 't.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  runs.train(
    str(folder / 'run'),
    functools.partial(
      triplets.load_triplets, str(folder / 't.jsonl'), prompt_length=16, response_length=8,
      validation_fraction=0.4, cache_dir=str(folder / 'cache'),
    ),
    algorithms.dpo, model=MODEL, batch_size=4, mesh=one_device,
    policy_optimizer=functools.partial(optimizers.adamw, 0.01),
    rollouts=functools.partial(rollouts.RolloutOptions, reward='length_reward'),
    schedule=functools.partial(
      schedule.Schedule, steps=3, log_every=1, eval_every=1, checkpoint_every=2, sample_prompts=0,
      kl_prompts=3,
    ),
    best_metric='eval/kl',
  )  # fmt: skip
  return folder / 'run'


@pytest.mark.long
def test_a_run_of_pairs_is_measured_on_every_response(run):
  metadata = json.loads((run / 'run.json').read_text())
  found = validation.load(run, 3)
  assert len(found.examples) == len(np.unique(found.examples)) == metadata['data']['eval_records']
  assert metadata['data']['units']['responses_left_out'] > 0
  assert len(found.sample_prompts) == 3
  assert set(found.sample_prompts.tolist()) <= set(found.prompts.tolist())
  assert metadata['decoding'] == {
    'prompts': 3, 'temperature': 1.0, 'max_length': 4, 'reward': 'length_reward',
    'reward_code': None,
  }  # fmt: skip


def test_newest_and_best_are_kept(run):
  kl = {record['step']: record['eval/kl'] for record in _records(run) if 'eval/kl' in record}
  best = min((2, 3), key=kl.get)  # Those that were saved; 1 was measured only.
  assert sorted(kl) == [0, 1, 2, 3] and kl[0] == 0
  assert validation.steps(run) == sorted({0, best, 3})
  assert compared_run.read(str(run), 'run').best_step == best


def test_records_say_what_was_spent_and_how_far_it_went(run):
  records = _records(run)
  trained = [r for r in records if 'loss' in r]
  assert [r['examples'] for r in trained] == [4, 8, 12]
  assert trained[2]['flops'] == pytest.approx(3 * trained[0]['flops'], rel=0.5)
  last = records[-1]
  assert {'eval/kl', 'eval/sample_reward', 'eval/sample_tokens', 'examples', 'flops'} <= last.keys()
  drawn = validation.load(run, 3)
  assert last['eval/kl'] == pytest.approx(drawn.sample_log_ratios.mean())
  assert last['eval/mass_kept'] == pytest.approx(np.exp(drawn.reference_sample_log_ratios).mean())
  assert records[0]['eval/mass_kept'] == 1 and records[0]['eval/mass_kept_effective_size'] == 12
  assert last['eval/sample_reward'] == pytest.approx(drawn.sample_rewards.mean())


def test_a_run_differs_not_from_its_copy(run, tmp_path):
  copy = shutil.copytree(run, tmp_path / 'copy')
  result = report.report([str(run), str(copy)], output=str(tmp_path / 'out'), resamples=5)
  title = 'Last validation: difference from run'
  rows = next(table for table in result['tables'] if table['title'] == title)['rows']
  assert {'kl', 'sample_reward', 'logp'} <= {
    metric for metric, meaning in report.MEANINGS.items() if any(row['metric'] == meaning for row in rows)
  }
  assert all(row['copy'] == {'value': 0.0, 'low': 0.0, 'high': 0.0} for row in rows)
  assert (tmp_path / 'out' / 'curves.png').stat().st_size > 1000


def _records(run):
  return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
