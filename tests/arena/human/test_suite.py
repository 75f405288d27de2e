import functools
import json

import numpy as np
import pytest

from dro_jax.arena import arena as run
from dro_jax.arena import cells, results, trials
from dro_jax.arena import methods as arena_methods
from dro_jax.arena.human import report as human_report
from dro_jax.arena.human import suite as human
from dro_jax.arena.trials import Range
from dro_jax.data.records import triplets as sources
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models.t5.config import T5Config

WORDS = vocabularies.vocabulary('bytes')
MODEL = T5Config(emb_dim=8, num_heads=2, head_dim=4, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1)


def write(path, num, seed, edits=True, per_prompt=1):
  """Translations with scores: a correction differs from its response where HTER is above 0."""
  rng = np.random.default_rng(seed)
  with open(path, 'w') as file:
    for i in range(num):
      prompt = f'p{seed}{i // per_prompt}'
      response = ''.join(rng.choice(list('abc'), rng.integers(2, 6)))
      hter = float(rng.choice([0.0, 0.25, 0.5]))
      record = {'id': f'{seed}-{i}', 'prompt': prompt, 'response': response, 'reward': float(rng.normal())}
      if edits:
        record |= {'post_edit': response + ('x' if hter else ''), 'hter': hter}
      file.write(json.dumps(record) + '\n')
  return str(path)


def suite_of(folder, one_device, triplets, **feedback):
  given = human.Feedback(
    triplets, prompt_length=8, response_length=8, reference_steps=2, validation=0.25, test=0.25, **feedback
  )
  settings = {'steps': 2, 'batch_size': 8, 'evaluations': 1, 'mesh': one_device, 'model': MODEL}
  return functools.partial(human.human, str(folder), lambda: given, **settings)


@pytest.fixture(scope='module')
def arena(tmp_path_factory, one_device):
  """One response to a prompt and its correction; two methods, and copies for one's other trials."""
  base = tmp_path_factory.mktemp('human')
  make = suite_of(base / 'arena', one_device, write(base / 'a.jsonl', 120, 0))
  folder, suite = base / 'arena', make()
  cells.claim(folder, 'human', suite.settings)
  for name in ('filtered_sft', 'dro_v'):
    tried = trials.make_trials(suite.grids, 2)[name]
    cell = cells.Cell('human', name, tried[0], 0, {})
    result = suite.run(cell)
    for trial in tried if name == 'filtered_sft' else tried[:1]:
      cells.write(folder, cells.Finished(cell._replace(hyperparameters=trial), result, 1.0))
  return folder, make


@pytest.mark.long
def test_agreement_is_told_with_intervals_beside_baselines(arena):
  folder, make = arena
  assert run.arena(str(folder), make, algorithms='filtered_sft', seeds=1)['cells_run'] == 0
  correlation, corrections, choices = json.loads((folder / 'results.json').read_text())['tables']
  for shown in (correlation, corrections):
    assert [row['score of'] for row in shown['rows']] == [
      'dro_v', 'filtered_sft', 'the reference', 'the length', shown['rows'][4]['score of'],
    ]  # fmt: skip
    assert shown['rows'][4]['score of'].endswith('tokens at most')
    assert {'its own', 'log-prob', 'log-prob by token'} <= shown['rows'][0].keys()
  assert [row['trials'] for row in choices['rows']] == [1, 4]
  own = corrections['rows'][0]['its own']
  assert own['low'] <= own['value'] <= own['high']
  assert corrections['rows'][3]['its own']['value'] == 1  # Every correction is longer.
  assert (folder / 'agreement.png').exists()


@pytest.mark.long
def test_a_value_is_scored_where_there_is_one(arena):
  results = {each.cell.algorithm: each.result for each in cells.read_all(arena[0])}
  assert 'values' in results['dro_v']['last']['test']
  assert 'values' not in results['filtered_sft']['last']['test']
  assert results['dro_v']['temperature'] == 0.1
  assert results['dro_v']['last']['test']['logps'] != results['dro_v']['about']['test']['reference']


def test_imitation_of_the_whole_log_and_a_reward_model_compete_besides():
  competing = human.methods((1e-4, 5e-4))
  added = competing.keys() - arena_methods.methods(Range(1e-4, 5e-4)).keys()
  assert {name: competing[name].algorithm(0.1).name for name in added} == {
    'sft': 'sft', 'reward_regression': 'reward_regression'
  }  # fmt: skip
  assert all('temperature' not in competing[name].grid for name in added)


def test_cells_of_other_scores_are_not_taken_for_these(tmp_path, one_device):
  path = write(tmp_path / 'a.jsonl', 60, 0)
  make = suite_of(tmp_path / 'arena', one_device, path)
  cells.claim(tmp_path / 'arena', 'human', make().settings)
  cells.claim(tmp_path / 'arena', 'human', make().settings)
  write(tmp_path / 'a.jsonl', 60, 1)
  with pytest.raises(UsageError, match='holds cells whose contents is'):
    cells.claim(tmp_path / 'arena', 'human', make().settings)


@pytest.mark.long
def test_no_prompt_is_in_two_parts_and_corrections_are_in_the_responses_order(arena):
  place = arena[1]().run.args[0]
  dealt, edited = human.parts(place, WORDS), human.parts(place, WORDS, 'post_edit')
  tables = dealt[:4]
  assert all(len(table) > 5 for table in tables)
  digests = [set(table.prompt_digests.tolist()) for table in tables]
  assert sum(map(len, digests)) == len(set.union(*digests)) == 120
  assert list(dealt.test.ids) == list(edited.test.ids)
  assert all(b.startswith(a) for a, b in zip(dealt.test.responses, edited.test.responses))


def test_test_triplets_are_kept_out_of_training(tmp_path, one_device):
  train, test = write(tmp_path / 'a.jsonl', 60, 0), write(tmp_path / 'b.jsonl', 20, 1)
  with open(train) as one, open(test, 'a') as other:
    other.write(one.readline().replace('0-0', 'again'))
  make = suite_of(tmp_path / 'arena', one_device, train, test_triplets=test)
  dealt = human.parts(make().run.args[0], WORDS)
  assert len(dealt.test) == 21
  assert sum(map(len, dealt[:3])) == 59


def write_answers(path, prompts, writers):
  """Each writer's answer to each prompt; the reward is the writer's number."""
  records = [
    {'prompt': prompt, 'response': f'{i} {prompt}', 'reward': float(i), 'by': f'w{i}'}
    for prompt in prompts for i in range(writers)
  ]  # fmt: skip
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def test_new_writers_are_reported_on_and_nothing_else(tmp_path, one_device):
  train = write_answers(tmp_path / 'a.jsonl', [f'p{i}' for i in range(40)], 20)
  test = write_answers(tmp_path / 'b.jsonl', [f'q{i}' for i in range(10)], 20)
  make = suite_of(tmp_path / 'arena', one_device, train, test_triplets=test, writer='by', new_writers=0.3)
  dealt = human.parts(make().run.args[0], WORDS)
  written_by = {
    name: set(table.raw_rewards.tolist())
    for name, table in dealt._asdict().items() if name not in ('report', 'written_by')
  }  # fmt: skip
  new = written_by.pop('new_writers')
  assert 2 < len(new) < 12
  assert all(known == set(map(float, range(20))) - new for known in written_by.values())
  assert len(dealt.test) + len(dealt.new_writers) == 200


def test_few_responses_and_prompts_are_the_same_in_every_run(tmp_path, one_device):
  path = write_answers(tmp_path / 'a.jsonl', [f'p{i}' for i in range(60)], 6)
  whole, some = (
    human.parts(suite_of(tmp_path / name, one_device, path, **sizes)().run.args[0], WORDS)
    for name, sizes in (('whole', {}), ('some', {'prompts': 3, 'responses': 2}))
  )
  assert len(some.train) == 6 and len(np.unique(some.train.prompt_index)) == 3
  assert set(some.train.ids) <= set(whole.train.ids)
  for few, all_of in ((some.validation, whole.validation), (some.test, whole.test)):
    prompts, counts = np.unique(few.prompt_index, return_counts=True)
    assert (counts == 2).all() and len(prompts) == len(np.unique(all_of.prompt_index))
    assert set(few.ids) <= set(all_of.ids)


def test_a_writers_mean_and_a_capped_length_stand_beside_the_methods():
  of = about([1.0, 2.0, 3.0], [0, 0, 0]) | {'writer_means': [1.0, 2.0, 3.0], 'usual_length': 2}
  of['lengths'] = [3, 2, 1]
  scores = {'logps': [-1.0, -1.0, -1.0]}
  result = {'last': {'test': scores}, 'best': {'test': scores}, 'about': {'test': of}, 'temperature': 1.0}
  chosen = {'dro_p': results.Chosen({}, {0: result}, 1, [])}
  shown = human_report.table('', '', human_report.measure_within, chosen)
  own = {row['score of']: row['its own'].value for row in shown.rows if 'its own' in row}
  assert own == {
    'dro_p': 0.5, 'the length': 0, 'the length, 2 tokens at most': pytest.approx(0.5 / 3),
    'its writer’s mean reward': 1,
  }  # fmt: skip


@pytest.mark.parametrize('edits', [True, False])
def test_corrections_are_found(tmp_path, edits):
  path = write(tmp_path / 'a.jsonl', 3, 0, edits)
  assert human.corrected(path, 'post_edit') is edits
  assert not human.corrected(path, None)
  assert not human.corrected('some_task', 'post_edit')


def about(rewards, prompts, weights=None):
  n = len(rewards)
  return {
    'rewards': rewards, 'prompts': prompts, 'lengths': [2] * n, 'weights': weights or [1.0] * n,
    'reference': [-1.0] * n,
  }  # fmt: skip


def test_corrections_weigh_by_hter_and_ties_half():
  of = about([0.0] * 4, [0, 1, 2, 3], [0.5, 0.25, 0.25, 0.0])
  share = human_report.corrections(np.array([1.0, 1, 1, 1]), np.array([2.0, 1, 0, 0]), of)
  assert share(np.ones(4)) == 0.5 + 0.25 / 2
  assert share(np.array([0.0, 1, 1, 0])) == 0.25
  assert np.isnan(share(np.array([0.0, 0, 0, 1])))


def agreement(values, prompts):
  of = {'validation': about([1.0, 2.0, 3.0, 4.0], prompts)}
  return human_report.agreement({'logps': [-1.0] * 4, 'values': values}, of, 1.0)


def test_trials_are_chosen_by_what_the_validation_prompts_can_tell():
  """One response to a prompt: rank correlation, to which V adds. Several: accuracy, to which it does not."""
  assert agreement([1, 2, 3, 4], [0, 1, 2, 3]) == pytest.approx(1)
  assert agreement([4, 3, 2, 1], [0, 1, 2, 3]) == pytest.approx(-1)
  assert agreement([1, 1, 3, 3], [0, 0, 1, 1]) == 0.5
  assert agreement([1, 1, 1, 1], [0, 1, 2, 3]) == -1


def test_responses_to_one_prompt_are_ranked():
  of = about([1.0, 2.0, 1.0, 1.0], [0, 0, 1, 1])
  assert human_report.has_pairs(of)
  assert not human_report.has_pairs(about([1.0, 2.0, 1.0, 1.0], [0, 1, 2, 2]))
  assert human_report.within_prompts(np.array([0.0, 1, 5, 6]), of)(np.ones(2)) == 1


def test_estimates_average_seeds():
  estimate = human_report.estimate([lambda weights: 1.0, lambda weights: 3.0], [0, 1, 2])
  assert estimate.value == estimate.low == 2


def test_a_split_without_prompts_and_missing_triplets_are_refused(tmp_path, one_device):
  make = suite_of(tmp_path / 'arena', one_device, write(tmp_path / 'a.jsonl', 2, 0))
  with pytest.raises(UsageError, match='part .* is empty'):
    human.parts(make().run.args[0], WORDS)
  with pytest.raises(UsageError, match='pass them as --triplets=FILE'):
    human.human(str(tmp_path), lambda: human.Feedback(None))
  with pytest.raises(UsageError, match=r'new_writers=0.2 holds out writers.*--set WRITER=FIELD'):
    human.human(str(tmp_path), lambda: human.Feedback('a.jsonl', new_writers=0.2))


def test_real_scores_are_dealt_out(data_dir, tmp_path, one_device):
  """A hundred records of a file with corrections, as it came."""
  source = data_dir / 'mlqe_pe' / 'ro-en.test.jsonl.gz'
  if not source.exists():
    pytest.skip(f'{source} is not there')
  slice_ = tmp_path / 'slice.jsonl'
  records = [fields for _, (_, fields) in zip(range(100), sources.located(str(source)))]
  slice_.write_text(''.join(json.dumps(record) + '\n' for record in records))
  make = suite_of(tmp_path / 'arena', one_device, str(slice_))
  assert human.corrected(str(slice_), 'post_edit')
  dealt = human.parts(make().run.args[0], WORDS, 'post_edit')
  assert sum(map(len, dealt[:4])) == 100
  assert 'hter' in dealt.test.columns
