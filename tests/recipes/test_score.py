import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from dro_jax.data import triplets
from dro_jax.data.batches import groups
from dro_jax.data.records import scored
from dro_jax.data.storage.journal import Journal
from dro_jax.errors import UsageError
from dro_jax.recipes.score import score

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('mine.py').write_text(
    textwrap.dedent("""
      import json
      def length(prompts, responses):
        with open('calls.jsonl', 'a') as file:
          for prompt, response in zip(prompts, responses):
            file.write(json.dumps([prompt, response]) + '\\n')
        return [len(response) for response in responses]
      def fails_at_c(prompts, responses):
        if any(response.startswith('c') for response in responses):
          raise RuntimeError('the server is down')
        return length(prompts, responses)
    """)
  )
  return tmp_path


def write(*records, name='a.jsonl'):
  pathlib.Path(name).write_text(''.join(json.dumps(record) + '\n' for record in records))
  return name


def read(name='out.jsonl'):
  return [json.loads(line) for line in pathlib.Path(name).read_text().splitlines()]


def calls():
  path = pathlib.Path('calls.jsonl')
  return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_reward_fills_the_field_and_all_others_are_kept():
  file = write(
    {'id': 'a', 'prompt': 'p', 'response': 'xy', 'source': 'web', 'safe': 1},
    {'id': 'b', 'prompt': 'p', 'response': 'x', 'reward': 5},
  )
  result = score(file, 'mine.py:length', 'out.jsonl')
  assert read() == [
    {'id': 'a', 'prompt': 'p', 'response': 'xy', 'source': 'web', 'safe': 1, 'reward': 2.0},
    {'id': 'b', 'prompt': 'p', 'response': 'x', 'reward': 1.0, 'logged_reward': 5},
  ]
  assert result == {
    'output': 'out.jsonl', 'answers': 2, 'scored': 2, 'reward_mean': 1.5, 'reward_sd': 0.5
  }  # fmt: skip
  assert not pathlib.Path('out.jsonl.partial').exists()


def test_several_rewards_are_columns_that_training_weighs():
  file = write(*({'prompt': f'p{i}', 'response': 'a' * i, 'reward': -1} for i in range(1, 7)))
  score(file, 'long=mine.py:length,has_a=contains', 'out.jsonl')
  assert read()[2] == {
    'id': 'a.jsonl:3', 'prompt': 'p3', 'response': 'aaa', 'reward': -1, 'long': 3.0, 'has_a': 0.0
  }  # fmt: skip
  data = triplets.load_triplets(
    'out.jsonl', rewards='long=2,reward=0.5', validation_fraction=0, cache_dir='cache'
  )
  np.testing.assert_allclose(data.train.raw_rewards, [2 * i - 0.5 for i in range(1, 7)])
  [record] = data.report['scored_by']
  assert record['name'] == 'mine:length' and record['code']


@pytest.mark.parametrize('batch_size', [1, 2, 10])
def test_equal_texts_are_scored_once(batch_size):
  file = write(*({'prompt': 'p', 'response': r} for r in ('x', 'y', 'x')), {'prompt': 'q', 'response': 'x'})
  assert score(file, 'mine.py:length', 'out.jsonl', batch_size=batch_size)['scored'] == 3
  assert sorted(calls()) == [('p', 'x'), ('p', 'y'), ('q', 'x')]
  assert [record['reward'] for record in read()] == [1.0, 1.0, 1.0, 1.0]


def test_a_comparison_becomes_two_scored_triplets():
  file = write({'id': 'c', 'prompt': 'p', 'chosen': 'xyz', 'rejected': 'x'})
  score(file, 'mine.py:length', 'out.jsonl')
  assert read() == [
    {'id': 'c/chosen', 'prompt': 'p', 'response': 'xyz', 'reward': 3.0, 'logged_reward': 1.0},
    {'id': 'c/rejected', 'prompt': 'p', 'response': 'x', 'reward': 1.0, 'logged_reward': 0.0},
  ]


def test_comparisons_that_stay_pairs_are_ranked_by_the_new_rewards():
  file = write(
    {'id': 'c', 'prompt': 'p', 'chosen': 'x', 'rejected': 'xyz'},
    {'id': 'd', 'prompt': 'p', 'chosen': 'xyz', 'rejected': 'xy'},
    {'id': 'e', 'prompt': 'p', 'chosen': 'xxxx', 'rejected': 'x'},
  )
  score(file, 'mine.py:length', 'out.jsonl', keep_pairs=True)
  data = triplets.load_triplets('out.jsonl', validation_fraction=0, cache_dir='cache').train
  pairs = groups.form(data, 'pair', groups.UnitOptions())
  assert pairs.report['pairs'] == 'logged'
  assert [tuple(pairs.table.responses[i] for i in pair) for pair in pairs.members] == [
    ('xyz', 'x'), ('xyz', 'xy'), ('xxxx', 'x')
  ]  # fmt: skip
  score(file, 'mine.py:length', 'apart.jsonl')
  apart = triplets.load_triplets('apart.jsonl', validation_fraction=0, cache_dir='cache').train
  assert groups.form(apart, 'pair', groups.UnitOptions()).report['pairs'] == 'best_worst'


def test_pairs_of_answers_that_are_none_are_not_kept():
  with pytest.raises(UsageError, match='no comparisons'):
    score(write({'prompt': 'p', 'response': 'r'}), 'mine.py:length', 'out.jsonl', keep_pairs=True)


def test_a_function_reads_a_conversation_by_the_template_and_the_file_keeps_its_turns():
  turns = [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'q'}]
  file = write({'prompt': turns, 'response': 'r'})
  score(file, 'mine.py:length', 'out.jsonl', chat_template='<{role}> {content}')
  assert calls() == [('<system> s\n<user> q', 'r')]
  assert read()[0]['prompt'] == turns


def test_what_was_scored_before_a_failure_is_kept_and_the_rest_is_scored_later():
  file = write(*({'prompt': 'p', 'response': letter * 2} for letter in 'abcd'))
  with pytest.raises(UsageError, match='raised RuntimeError: the server is down'):
    score(file, 'mine.py:fails_at_c', 'out.jsonl', batch_size=1)
  assert not pathlib.Path('out.jsonl').exists() and len(calls()) == 2
  code = pathlib.Path('mine.py').read_text()
  with pytest.raises(UsageError):  # The code is the same, and so are the rewards so far.
    score(file, 'mine.py:fails_at_c', 'out.jsonl', batch_size=1)
  assert len(calls()) == 2
  pathlib.Path('mine.py').write_text(code.replace("startswith('c')", "startswith('never')"))
  # Another reward: its scores are not mixed with those, which may have cost much.
  with pytest.raises(
    UsageError, match=r'holds 2 scores of other rewards .*rewards\.reward\.code: .*begin anew'
  ):
    score(file, 'mine.py:fails_at_c', 'out.jsonl')
  assert len(calls()) == 2
  pathlib.Path('out.jsonl.partial').unlink()
  assert score(file, 'mine.py:fails_at_c', 'out.jsonl')['scored'] == 4
  assert len(calls()) == 6


def test_a_torn_line_is_cut_and_its_answer_scored_again(caplog):
  file = write(*({'prompt': 'p', 'response': letter * 2} for letter in 'abc'))
  with pytest.raises(UsageError):
    score(file, 'mine.py:fails_at_c', 'out.jsonl', batch_size=1)
  partial = pathlib.Path('out.jsonl.partial')
  whole = partial.read_bytes()
  partial.write_bytes(whole[:-10])
  pathlib.Path('mine.py').touch()
  with pytest.raises(UsageError):
    score(file, 'mine.py:fails_at_c', 'out.jsonl', batch_size=1)
  assert partial.read_bytes() == whole and calls() == [('p', 'aa'), ('p', 'bb'), ('p', 'bb')]


def test_two_commands_do_not_score_into_one_file():
  file = write({'prompt': 'p', 'response': 'aa'})
  other = Journal(pathlib.Path('out.jsonl.partial'))
  with pytest.raises(UsageError, match=r'out\.jsonl\.partial is being written by another process'):
    score(file, 'mine.py:length', 'out.jsonl')
  assert calls() == []
  other.close()
  assert score(file, 'mine.py:length', 'out.jsonl')['scored'] == 1


def test_a_finished_command_scores_nothing_when_it_is_repeated():
  file = write(*({'prompt': 'p', 'response': r, 'reward': 3} for r in ('xy \u2028', 'x', 'x')))
  first = score(file, 'mine.py:length', 'out.jsonl')
  content = pathlib.Path('out.jsonl').read_bytes()
  assert score(file, 'mine.py:length', 'out.jsonl') == first | {'scored': 0}
  assert len(calls()) == first['scored'] == 2 and pathlib.Path('out.jsonl').read_bytes() == content


def test_a_file_that_is_there_is_not_replaced_by_other_scores():
  file = write({'prompt': 'p', 'response': 'xy'}, {'prompt': 'p', 'response': 'x'})
  other = write({'prompt': 'p', 'response': 'xyz'}, name='b.jsonl')
  more = write(*read(file), {'prompt': 'q', 'response': 'x'}, name='more.jsonl')
  pathlib.Path('notes.jsonl').write_text('{"my": "notes"}\n')
  score(file, 'mine.py:length', 'out.jsonl')
  kept = pathlib.Path('out.jsonl').read_bytes(), len(calls())
  for arguments, message in (
    ((file, 'contains', 'out.jsonl'), r'out\.jsonl holds scores of other rewards .*rewards.*another'),
    ((other, 'mine.py:length', 'out.jsonl'), 'holds other records than those to score, or was changed'),
    ((more, 'mine.py:length', 'out.jsonl'), 'holds other records than those to score, or was changed'),
    ((file, 'contains', 'notes.jsonl'), r'notes\.jsonl is there already, and nothing says that `score`'),
  ):
    with pytest.raises(UsageError, match=message):
      score(*arguments)
  assert (pathlib.Path('out.jsonl').read_bytes(), len(calls())) == kept
  assert pathlib.Path('notes.jsonl').read_text() == '{"my": "notes"}\n'
  shorter = write(read(file)[0], name='a.jsonl')
  with pytest.raises(UsageError, match='holds other records'):
    score(shorter, 'mine.py:length', 'out.jsonl')


def test_a_reward_does_not_replace_a_field_of_its_name():
  file = write({'prompt': 'p', 'response': 'x', 'note': 'mine'})
  with pytest.raises(UsageError, match=r"a\.jsonl:1: the record has a field 'note' .*--columns note="):
    score(file, 'note=mine.py:length', 'out.jsonl')
  assert calls() == []
  score(file, 'note=mine.py:length', 'out.jsonl', columns='note=')
  assert read()[0]['note'] == 1.0


def test_blank_answers_of_a_policy_are_scored_and_missing_ones_refused():
  score(
    write({'prompt': 'p', 'response': ''}, {'prompt': 'p', 'response': ' \n'}), 'mine.py:length', 'out.jsonl'
  )
  assert [(record['response'], record['reward']) for record in read()] == [('', 0.0), (' \n', 2.0)]
  for record, message in (
    ({'prompt': 'p'}, 'response'),
    ({'prompt': ' ', 'response': 'r'}, "'prompt' is empty"),
  ):
    with pytest.raises(UsageError, match=message):
      score(write(record), 'mine.py:length', 'other.jsonl')


def test_the_folder_of_the_output_is_made():
  score(write({'prompt': 'p', 'response': 'r'}), 'mine.py:length', 'new/scores/out.jsonl')
  assert read('new/scores/out.jsonl')[0]['reward'] == 1.0


def test_a_partial_file_without_a_score_is_in_nobodys_way():
  file = write(*({'prompt': 'p', 'response': letter} for letter in 'cab'))
  with pytest.raises(UsageError, match='the server is down'):
    score(file, 'mine.py:fails_at_c', 'out.jsonl', batch_size=1)
  assert score(file, 'contains', 'out.jsonl')['scored'] == 3


def test_the_record_beside_the_file_says_what_scored_it():
  score(write({'prompt': 'p', 'response': 'r'}), 'contains', 'out.jsonl')
  assert scored.read(['out.jsonl'], ['reward']) == [{'name': 'contains', 'code': None}]


@pytest.mark.parametrize(
  'reward, output, message',
  [
    ('contains', 'a.jsonl', 'is among the files to read'),
    ('contains', 'out.csv', r'must end in \.jsonl: pass --output=out\.jsonl'),
    ('contains', 'a.jsonl/out.jsonl', 'a.jsonl is a file and not a folder'),
    ('contains', f'{"x" * 230}.jsonl', 'its name is too long for the files that are written beside it'),
    ('a=contains,contains', 'out.jsonl', "REWARD='contains,contains' is not a reward function"),
    ('a=contains,a=contains', 'out.jsonl', 'a is named twice'),
    ('label=contains', 'out.jsonl', "the name 'label' has a meaning of its own"),
    ('contians', 'out.jsonl', r'is not a reward function \(did you mean contains\?\)'),
    ('runs/nowhere', 'out.jsonl', 'no checkpoint in .*runs/nowhere: it does not exist'),
  ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is(reward, output, message):
  write({'prompt': 'p', 'response': 'r'})
  with pytest.raises(UsageError, match=message):
    score('a.jsonl', reward, output)
  assert [path.name for path in pathlib.Path().glob('*.partial')] == []


def test_commas_and_equals_signs_of_a_program_belong_to_it():
  program = f"command:{sys.executable} -c 'import sys; [print(7) for _ in sys.stdin]' --k=3,4"
  score(write({'prompt': 'p', 'response': 'r'}), f'a={program},b=contains', 'out.jsonl')
  assert (read()[0]['a'], read()[0]['b']) == (7.0, 0.0)


def test_a_data_set_is_scored_by_its_name(monkeypatch, tmp_path):
  write({'id': 'a', 'prompt': 'p', 'response': 'xy', 'reward': 1}, name='task.jsonl')
  pathlib.Path('tasks_of_score.py').write_text(
    'from dro_jax.data.sources import seqio_tasks\n'
    "seqio_tasks.register('answers_of_score', {'train': 'task.jsonl'})\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  score('answers_of_score', 'mine.py:length', 'out.jsonl', task_modules='tasks_of_score.py')
  [record] = read()
  assert record == {'id': 'a', 'prompt': 'p', 'response': 'xy', 'reward': 2.0, 'logged_reward': 1.0}


def test_a_date_of_a_parquet_file_becomes_text(tmp_path):
  import datetime

  import pyarrow as pa
  import pyarrow.parquet as pq

  table = {'prompt': ['p'], 'response': ['r'], 'when': [datetime.date(2026, 1, 2)], 'n': [3]}
  pq.write_table(pa.table(table), 'a.parquet')
  score('a.parquet', 'contains', 'out.jsonl')
  assert read()[0] | {'reward': 0} == {
    'id': 'a.parquet:1', 'prompt': 'p', 'response': 'r', 'when': '2026-01-02', 'n': 3, 'reward': 0
  }  # fmt: skip


def killed_until_done(num_kills, count):
  """Runs the command in a process of its own, killed `num_kills` times; how often each answer was scored."""
  write(*({'id': f'r{i}', 'prompt': f'p{i}', 'response': 'a' * (i % 7 + 1)} for i in range(count)))
  code = pathlib.Path('mine.py').read_text()
  pathlib.Path('mine.py').write_text(
    code.replace('  return [len', '  import time; time.sleep(0.01)\n  return [len')
  )
  command = [
    sys.executable, '-m', 'dro_jax.main', 'score', 'a.jsonl', '--reward=mine.py:length',
    '--output=out.jsonl', '--set', 'BATCH=2',
  ]  # fmt: skip
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  rng = np.random.default_rng(0)
  for _ in range(num_kills):
    before = len(calls())
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while len(calls()) == before and process.poll() is None:
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not pathlib.Path('out.jsonl').exists()
  subprocess.run(command, env=environment, check=True, capture_output=True)
  times = {}
  for call in calls():
    times[call] = times.get(call, 0) + 1
  assert [record['reward'] for record in read()] == [float(i % 7 + 1) for i in range(count)]
  return times


@pytest.mark.long
def test_killed_at_any_instant_it_goes_on_where_it_was():
  """Only the batch in flight is scored again: what was written was kept."""
  times = killed_until_done(8, 400)
  assert len(times) == 400
  assert sum(count - 1 for count in times.values()) <= 8 * 2
