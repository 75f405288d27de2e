import json
import logging
import shutil

import pytest

from dro_jax import main
from dro_jax.errors import Failed, UsageError
from dro_jax.evaluation.judge import choosing
from dro_jax.evaluation.judge import sides as sides_of
from dro_jax.evaluation.judge.endpoint import Endpoint
from dro_jax.evaluation.judge.judge import judge
from dro_jax.run.sampling.decoding import Decoding
from tests.evaluation.judge.chat_server import by_exact_reward, serving
from tests.evaluation.judge.conftest import PROMPTS

DECODING = Decoding(max_length=4, batch_size=8)


def write(path, answer, prompts=PROMPTS):
  """A file of answers by a function of the prompt's number and its letters."""
  records = [
    {'id': f'p{i}', 'prompt': prompt, 'response': answer(i, prompt.partition(': ')[2])}
    for i, prompt in enumerate(prompts)
  ]
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def right(text):
  return ''.join(sorted(text))


@pytest.fixture
def sides(tmp_path):
  """Files of answers: a third are right, two thirds, and all."""
  return [
    write(tmp_path / 'sft.jsonl', lambda i, text: right(text) if i % 3 == 0 else text + 'x'),
    write(tmp_path / 'kto.jsonl', lambda i, text: right(text) if i % 3 < 2 else text + 'y'),
    write(tmp_path / 'dro.jsonl', lambda i, text: right(text)),
  ]


def test_the_exact_reward_and_a_server_that_judges_by_it_agree(sides, tmp_path):
  pytest.importorskip('openai')
  exact = judge(sides, str(tmp_path / 'exact'), reward='exact_match', resamples=50)
  with serving(lambda number, message: by_exact_reward(message)) as server:
    endpoint = Endpoint(model='local', base_url=server.url)
    served = judge(sides, str(tmp_path / 'served'), endpoint=endpoint, resamples=50)
    asked = len(server.asked)
    again = judge(sides, str(tmp_path / 'served'), endpoint=endpoint, resamples=50)
    assert len(server.asked) == asked == served['spent']['requests']
  assert again == served
  for pair, found in served['pairs'].items():
    assert found['win_rate'] == exact['pairs'][pair]['win_rate'] and found['flips'] == 0
  rate = exact['pairs']['sft against dro']['win_rate'].value
  assert rate == pytest.approx((14 / 40) / 2, abs=1e-9) and exact['prompts'] == 40
  assert exact['strengths']['dro'].value > exact['strengths']['kto'].value > 0


def test_the_folder_holds_no_key_and_no_log_line_does(sides, tmp_path, monkeypatch, caplog):
  pytest.importorskip('openai')
  caplog.set_level(logging.DEBUG)
  monkeypatch.setenv('MY_KEY', 'sk-a-very-secret-key')
  with serving(lambda number, message: by_exact_reward(message)) as server:
    endpoint = Endpoint(model='local', base_url=server.url, key_variable='MY_KEY')
    judge(sides[:2], str(tmp_path / 'out'), endpoint=endpoint, resamples=5)
  assert server.asked[0].headers['authorization'] == 'Bearer sk-a-very-secret-key'
  written = b''.join(path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file())
  assert b'Verdict' in written and b'secret' not in written and 'secret' not in caplog.text


def test_the_command_judges_files_by_a_reward(sides, tmp_path, capsys):
  out = tmp_path / 'out'
  line = [
    'judge',
    *sides[:2],
    f'--output={out}',
    '--set',
    'REWARD=exact_match',
    '--set',
    'RESAMPLES=20',
    '--json',
  ]
  assert main.main(line) == main.DONE
  printed = json.loads(capsys.readouterr().out)
  assert printed['pairs']['sft against kto']['win_rate']['value'] == pytest.approx(0.5 - 13 / 80)
  assert json.loads((out / 'report.json').read_text()) == printed
  records = [json.loads(text) for text in (out / 'verdicts.jsonl').read_text().splitlines()]
  assert len(records) == 40 and records[1]['sides'] == ['sft', 'kto'] and records[1]['scores'] == [0.0, 0.0]


def test_the_command_takes_an_endpoint_and_a_template_of_ones_own(sides, tmp_path, capsys):
  pytest.importorskip('openai')
  template = tmp_path / 'mine.txt'
  template.write_text('Mine: {prompt} ({first}) ({second})')
  with serving(lambda *_: 'tie') as server:
    settings = [f'BASE_URL={server.url}', 'JUDGE_MODEL=m', 'PROMPTS=5', 'RESAMPLES=5', 'FOLDS=2']
    line = ['judge', *sides[:2], f'--output={tmp_path / "out"}', f'--judge_prompt={template}', '--json']
    assert main.main([*line, *(word for setting in settings for word in ('--set', setting))]) == main.DONE
  found = json.loads(capsys.readouterr().out)
  assert found['prompts'] == 5 and found['pairs']['sft against kto']['win_rate']['value'] == 0.5
  assert all(asked.message.startswith('Mine: sort: ') for asked in server.asked)


@pytest.fixture(scope='module')
def met(run, tmp_path_factory):
  """Judges a run, its reference and one of its checkpoints by a reward, in one folder."""
  folder, sides = tmp_path_factory.mktemp('met'), ['reference', run, f'early={run}/checkpoints/2']
  options = {'decoding': DECODING, 'resamples': 20, 'folds': 2}
  return folder, lambda reward: judge(sides, str(folder), reward=reward, **options)


def test_a_run_its_reference_and_its_checkpoints_meet_on_its_held_out_prompts(met):
  folder, judged_by = met
  found = judged_by('graded_match')
  assert 8 < found['prompts'] < 24
  assert list(found['sides']) == ['reference', 'dro_v', 'early'] and len(found['pairs']) == 3
  before = {path: path.stat().st_mtime_ns for path in (folder / 'answers').iterdir()}
  assert judged_by('graded_match') == found
  assert before == {path: path.stat().st_mtime_ns for path in (folder / 'answers').iterdir()}


def test_a_judge_that_scored_what_a_side_was_trained_on_is_warned_about(met, own_reward, caplog):
  folder, judged_by = met
  assert judged_by('graded_match')['warnings'] == [] and 'trained on its own scores' not in caplog.text
  first, second = judged_by(own_reward)['warnings']
  # The reference was not trained on them.
  assert first.startswith('dro_v: ') and second.startswith('early: ')
  assert 'judges a policy that was trained on its own scores' in first
  assert first in caplog.text and first in (folder / 'report.md').read_text()


def test_the_best_checkpoint_is_chosen_on_other_prompts_than_those_reported_on(run, triplets, tmp_path):
  out, options = (
    tmp_path / 'out',
    {'reward': 'length_reward', 'decoding': DECODING, 'resamples': 20, 'folds': 2},
  )
  found = judge(['reference', run], str(out), prompts=triplets, choose=0.4, **options)
  [table] = [each for each in found['tables'] if each['title'].startswith('Checkpoints')]
  steps = [row['checkpoint'] for row in table['rows']]
  assert steps == ['dro_v at 2', 'dro_v at 4']
  [best] = [row for row in table['rows'] if row['chosen']]
  assert best['win rate']['value'] == max(row['win rate']['value'] for row in table['rows'])
  assert found['sides']['dro_v'].endswith(f'checkpoints/{best["checkpoint"].split()[-1]}')
  reported = {json.loads(line)['prompt'] for line in (out / 'verdicts.jsonl').read_text().splitlines()}
  assert found['prompts'] == len(reported) < 40
  # All candidates have answered the prompts that choose, and none but the chosen one those reported on.
  files = [path.read_text().splitlines() for path in (out / 'answers').iterdir()]
  answered = [{json.loads(line)['prompt'] for line in lines} for lines in files]
  assert (
    sum(reported <= each for each in answered) == 2 and sum(not reported & each for each in answered) == 1
  )


def test_a_checkpoint_that_is_not_complete_is_no_candidate(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  (tmp_path / 'run' / 'checkpoints' / '9').mkdir()
  [found] = choosing.candidates(sides_of.parse(['a.jsonl', str(tmp_path / 'run')]))
  assert [side.name for side in found.checkpoints] == ['run at 2', 'run at 4']


@pytest.mark.parametrize(
  'options, message',
  [
    ({'choose': 1.0}, 'choose=1.0 must be at least 0 and below 1'),
    ({'choose': 0.5}, 'no side but the first is a run with several'),
    ({'folds': 0}, 'folds=0 must be above 0'),
    ({'folds': -1}, r'so many parts; .* or --set FOLDS=NUMBER\.$'),
    (
      {'resamples': 0},
      r'resamples=0 must be above 0, because there would be no interval; .*--set RESAMPLES=N',
    ),
    ({'num_prompts': 0}, r'num_prompts=0 must be above 0, .* or --set PROMPTS=NUMBER\.$'),
    ({'num_prompts': -3}, 'num_prompts=-3'),
    ({'choose': 2}, r'a share of the prompts, .* or --set CHOOSE=NUMBER\.$'),
    ({'decoding': Decoding(num_samples=0)}, r'or --set SAMPLES=NUMBER\.$'),
    ({'against': 'each'}, 'AGAINST=each'),
    ({'seed': -1}, 'seed=-1'),
    ({'reward': None}, 'there is no judge'),
  ],
)
def test_settings_that_cannot_work_are_refused(sides, tmp_path, options, message):
  with pytest.raises(UsageError, match=message):
    judge(sides, str(tmp_path / 'out'), **({'reward': 'exact_match'} | options))
  assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').glob('report*'))


def test_prompts_that_a_side_does_not_answer_are_left_out_and_counted(sides, tmp_path, caplog):
  few = write(tmp_path / 'few.jsonl', lambda i, text: text, PROMPTS[:7])
  found = judge([sides[0], few], str(tmp_path / 'out'), reward='exact_match', resamples=5)
  assert (found['prompts'], found['left_out']) == (7, 33) and '33 of 40 prompts are left out' in caplog.text
  other = write(tmp_path / 'other.jsonl', lambda i, text: text, ['sort: zzz'])
  with pytest.raises(UsageError, match='no prompt is answered by all sides .* sft 40, other 0'):
    judge([sides[0], other], str(tmp_path / 'out'), reward='exact_match')


def test_a_judge_that_gives_no_verdict_ends_the_command_after_its_report(sides, tmp_path, capsys):
  file, out = tmp_path / 'mine.py', tmp_path / 'out'
  file.write_text('def prose(prompt, first, second):\n  return "The first, I think"\n')
  line = ['judge', *sides[:2], f'--output={out}', '--set=RESAMPLES=5', f'--set=FUNCTION={file}:prose']
  assert main.main(line) == main.FAILED
  said = capsys.readouterr().err
  assert (
    "judged nothing: none of 52 replies is a verdict. The judge wrote, for example, 'The first, I" in said
  )
  assert 'must return A, B, tie' in said
  assert json.loads((out / 'report.json').read_text())['pairs']['sft against kto']['malformed'] == 52
  # Equal answers are ties, and nobody is asked.
  same = write(tmp_path / 'same.jsonl', lambda i, text: right(text))
  assert main.main(['judge', sides[2], same, *line[3:], '--json']) == main.DONE


def test_an_endpoint_that_refuses_or_talks_ends_the_command_after_its_report(sides, tmp_path, monkeypatch):
  pytest.importorskip('openai')
  monkeypatch.setattr('dro_jax.evaluation.judge.endpoint._FIRST_WAIT', 0.01)
  with serving(lambda *_: 'in prose') as server:
    options = {'num_prompts': 2, 'resamples': 5, 'endpoint': Endpoint(model='m', base_url=server.url)}
    with pytest.raises(Failed, match="for example, 'in prose'. Its reply must have one line .Verdict: A"):
      judge(sides[:2], str(tmp_path / 'prose'), **options)
  assert (tmp_path / 'prose' / 'report.md').exists()
  options['endpoint'] = Endpoint(model='m', base_url=server.url, retries=0, concurrency=8)
  with pytest.raises(Failed, match='judged nothing: .* requests have no reply.*Connection refused'):
    judge(sides[:2], str(tmp_path / 'down'), **options)
  assert (tmp_path / 'down' / 'report.md').exists()


def test_answers_that_are_left_over_are_warned_about(sides, tmp_path, caplog):
  three, two = (write(tmp_path / f'{k}.jsonl', lambda i, text: f'{text}{i}', PROMPTS[:2] * k) for k in (3, 2))
  options = {'reward': 'exact_match', 'resamples': 5, 'folds': 2}
  found = judge([three, two], str(tmp_path / 'out'), **options)
  # Two prompts; each third answer meets none, and the report counts two comparisons of each prompt.
  assert found['pairs']['3 against 2']['comparisons'] == 4
  [warning] = found['warnings']
  assert warning.startswith('2 answers meet none') and warning in caplog.text
  assert warning in (tmp_path / 'out' / 'report.md').read_text()
  # A single answer meets each of the others.
  assert judge([three, sides[0]], str(tmp_path / 'single'), **options)['warnings'] == []


def test_a_folder_in_use_is_refused(sides, tmp_path):
  from dro_jax.run.folder.lock import locked

  with locked(tmp_path / 'out'), pytest.raises(UsageError, match='is in use .* pass another --output'):
    judge(sides, str(tmp_path / 'out'), reward='exact_match')
