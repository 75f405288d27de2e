import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from dro_jax.errors import Failed, Interrupted, Stopped, UsageError
from dro_jax.recipes.reproduce import notes, running
from dro_jax.recipes.reproduce.stages import Reproduction, Stage, Training

# A stage here is a small Python program, which finds its folder as `here`.
_PRELUDE = 'import pathlib, sys, time; here = pathlib.Path(sys.argv[1]); '


def stage(name, code, *needs, makes=('made',)):
  return Stage(name, (f'{code}', '{root}/x'), needs, makes)


def program_of(root):
  return lambda stage: [sys.executable, '-S', '-c', _PRELUDE + stage.command[0], str(root / stage.name)]


def run(root, stages, jobs=1, redo=False):
  running.run(root, stages, program_of(root), jobs, redo=redo)


MADE = "(here / 'made').write_text('1')"
COUNT = "open(here.parent / 'count', 'a').write(here.name + ' '); " + MADE


def count(root):
  return (root / 'count').read_text().split() if (root / 'count').exists() else []


def waits_for(name):
  """Ends once another stage has begun; fails after ten seconds."""
  return (
    f"(here / 'made').write_text('1'); end = time.time() + 10\n"
    f"while not (here.parent / '{name}' / 'made').exists():\n  assert time.time() < end\n  time.sleep(.01)"
  )


def test_stages_run_after_those_that_they_need_and_several_at_once(tmp_path):
  both = "assert all((here.parent / name / 'ended').exists() for name in 'ab'); " + COUNT
  ends = "\ntime.sleep(.3); (here / 'ended').touch()"
  stages = [stage('a', waits_for('b') + ends), stage('b', waits_for('a') + ends), stage('c', both, 'a', 'b')]
  run(tmp_path, stages, jobs=3)
  assert count(tmp_path) == ['c']
  note = json.loads((tmp_path / 'c' / 'stage.json').read_text())
  assert note['state'] == 'done' and set(note['needs']) == {'a', 'b'}


def test_a_finished_stage_is_not_run_again(tmp_path):
  stages = [stage('a', COUNT), stage('b', COUNT, 'a')]
  run(tmp_path, stages)
  run(tmp_path, stages)
  assert count(tmp_path) == ['a', 'b']


def test_a_failure_names_the_stage_and_ends_with_its_log_and_the_next_call_goes_on(tmp_path):
  fails = "(here.parent / 'mended').exists() or sys.exit('the disk is on fire'); "
  stages = [stage('a', COUNT), stage('b', fails + COUNT, 'a'), stage('c', COUNT, 'b')]
  with pytest.raises(Failed, match=r'(?s)the stage b failed with exit code 1\..*the disk is on fire'):
    run(tmp_path, stages)
  (tmp_path / 'mended').touch()
  run(tmp_path, stages)
  assert count(tmp_path) == ['a', 'b', 'c']
  assert 'on fire' in (tmp_path / 'b' / 'log.txt').read_text()


def test_a_stage_that_ends_without_its_files_failed(tmp_path):
  with pytest.raises(Failed, match='the stage a ended without its files'):
    run(tmp_path, [stage('a', 'pass')])


def test_a_changed_command_is_refused_in_words_and_redone_with_what_rests_on_it(tmp_path):
  stages = [stage('a', COUNT), stage('b', COUNT), stage('c', COUNT, 'a')]
  run(tmp_path, stages)
  changed = [stage('a', COUNT + '; 5'), *stages[1:]]
  with pytest.raises(
    UsageError, match=r'(?s)the stage a .* made otherwise: its command had .*REDO=true.*: a, c\.'
  ):
    run(tmp_path, changed)
  run(tmp_path, changed, redo=True)
  assert count(tmp_path) == ['a', 'b', 'c', 'a', 'c']


def test_a_changed_output_and_a_changed_own_file_are_noticed(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'own.py').write_text('1')
  own = Stage('a', (COUNT, f'--reward={tmp_path}/own.py:f'), (), ('made',))
  run(tmp_path, [own])
  (tmp_path / 'own.py').write_text('2')
  with pytest.raises(UsageError, match=r'own\.py, which its command names, has other'):
    run(tmp_path, [own])
  (tmp_path / 'own.py').write_text('1')
  (tmp_path / 'a' / 'made').write_text('3')
  with pytest.raises(UsageError, match='a/made was changed since'):
    run(tmp_path, [own])
  (tmp_path / 'a' / 'made').unlink()
  with pytest.raises(UsageError, match='a/made is gone since'):
    run(tmp_path, [own])


def test_a_changed_output_redoes_what_read_it(tmp_path):
  stages = [stage('a', COUNT), stage('b', COUNT, 'a'), stage('c', COUNT)]
  run(tmp_path, stages)
  (tmp_path / 'a' / 'made').write_text('3')
  found = running.states(tmp_path, stages, notes.identities(stages))
  assert [bool(state.changed) for state in found.values()] == [True, True, False]
  with pytest.raises(UsageError, match=r'REDO=true.*: a, b\.'):
    run(tmp_path, stages)
  run(tmp_path, stages, redo=True)
  assert sorted(count(tmp_path)) == ['a', 'a', 'b', 'b', 'c']


def test_the_records_of_a_finished_training_are_noticed(tmp_path):
  trains = Stage('a', ('train', '--set=STEPS=1'), training=Training(1))

  def program(_):
    makes = (
      "(here / 'run').mkdir(); [(here / 'run' / x).write_text('1') for x in ('run.json', 'metrics.jsonl')]"
    )
    return [sys.executable, '-S', '-c', _PRELUDE + makes, str(tmp_path / 'a')]

  running.run(tmp_path, [trains], program, 1, redo=False)
  (tmp_path / 'a' / 'run' / 'metrics.jsonl').write_text('')
  with pytest.raises(UsageError, match='metrics.jsonl was changed since'):
    running.run(tmp_path, [trains], program, 1, redo=False)


def test_a_word_that_happens_to_be_a_file_decides_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  known = [stage('train', COUNT), Stage('b', ('train', '--set=STEPS=2', 'judge'))]
  before = notes.identities(known)
  for name in ('train', '2', 'judge', 'STEPS'):
    (tmp_path / name).write_text('1')
  assert notes.identities(known) == before


def test_a_greater_budget_of_the_judge_goes_on_with_what_was_paid(tmp_path):
  def judged(budget):
    return Stage('a', (COUNT, f'--set=REQUEST_BUDGET={budget}', '--set=JUDGE_MODEL=m'), (), ('made',))

  assert notes.identities([judged(1)]) == notes.identities([judged(2)])
  run(tmp_path, [judged(1)])
  run(tmp_path, [judged(2)])
  assert count(tmp_path) == ['a']


def test_a_folder_of_others_and_a_damaged_note_are_refused(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'mine.txt').write_text('1')
  with pytest.raises(UsageError, match='holds files, and no stage.json'):
    run(tmp_path, [stage('a', COUNT)])
  (tmp_path / 'a' / 'stage.json').write_text('{"state": "done"}')
  with pytest.raises(UsageError, match='stage.json is damaged'):
    run(tmp_path, [stage('a', COUNT)], redo=True)
  assert (tmp_path / 'a' / 'mine.txt').exists()


SAVES = (
  "import signal; signal.signal(signal.SIGTERM, lambda *_: ((here / 'saved').touch(), sys.exit(75)))\n"
  "(here / 'begun').touch()\ntime.sleep(20)"
)


def when(path, act):
  """Acts once a file is there."""

  def wait():
    while not path.exists():
      time.sleep(0.01)
    act()

  threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize('number, error', [(signal.SIGINT, Interrupted), (signal.SIGTERM, Stopped)])
def test_a_signal_is_forwarded_and_the_stage_saves(tmp_path, number, error, request):
  if number == signal.SIGINT:  # Tests in the background ignore it.
    before = signal.signal(number, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(number, before))
  when(tmp_path / 'a' / 'begun', lambda: os.kill(os.getpid(), number))
  began = time.monotonic()
  with pytest.raises(error, match='the same command goes on'):
    run(tmp_path, [stage('a', SAVES), stage('b', COUNT)])
  assert (tmp_path / 'a' / 'saved').exists() and time.monotonic() - began < 10
  assert count(tmp_path) == []


def test_a_stage_that_was_stopped_after_saving_is_no_failure(tmp_path):
  with pytest.raises(Stopped, match='the stage a was stopped after saving'):
    run(tmp_path, [stage('a', 'sys.exit(75)')])


def test_the_launcher_gets_stages_that_train_and_a_package_has_none(tmp_path, monkeypatch):
  trains = Stage('t', ('train', '--model_dir={root}/t/run'), training=Training(5, size='xl'))
  command = running.by_launcher(tmp_path, 'l=v5e_16,xl=v5e_32', [trains])
  program = running.CHECKOUT / 'launch' / 'launch.py'
  assert command(trains) == [
    sys.executable, str(program), '--job=v5e_32', '--', 'train', f'--model_dir={tmp_path}/t/run'
  ]  # fmt: skip
  assert command(Stage('w', ('make_world',)))[:4] == [sys.executable, '-m', 'dro_jax.main', 'make_world']
  with pytest.raises(UsageError, match="there is no job 'v5e_61'.*v5e_16"):
    running.by_launcher(tmp_path, 'l=v5e_61', [trains])
  with pytest.raises(UsageError, match='names no job for the size xl'):
    running.by_launcher(tmp_path, 'l=v5e_16', [trains])
  monkeypatch.setattr(running, 'CHECKOUT', tmp_path)
  with pytest.raises(UsageError, match='from a checkout'):
    running.by_launcher(tmp_path, 'local', [trains])


def test_the_launcher_takes_the_command(tmp_path):
  trains = Stage('t', ('train', '--model_dir={root}/t/run'), training=Training(5, size='l'))
  line = list(running.by_launcher(tmp_path, 'local', [trains])(trains))
  line[2:3] = [line[2], '--dry_run', '--job.platform=cpu', '--job.processes=1']
  shown = subprocess.run(line, capture_output=True, text=True)
  assert shown.returncode == 0, shown.stderr
  assert f'dro_jax.main train --model_dir={tmp_path}/t/run' in shown.stdout


def test_stages_that_need_unknown_ones_or_share_a_name_are_refused():
  with pytest.raises(UsageError, match='stage b needs a'):
    Reproduction('x', '', [stage('b', MADE, 'a')], None)
  with pytest.raises(UsageError, match='two stages are called a'):
    Reproduction('x', '', [stage('a', MADE), stage('a', COUNT)], None)


def test_identities_do_not_depend_on_the_root():
  stages = [stage('a', MADE), stage('b', MADE, 'a')]
  assert notes.identities(stages) == notes.identities(stages)
  other = notes.identities([stage('a', COUNT), stages[1]])
  assert other['b'] != notes.identities(stages)['b']
  assert '{root}' not in ' '.join(stages[0].arguments(pathlib.Path('/somewhere')))
