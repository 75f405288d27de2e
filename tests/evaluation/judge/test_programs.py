import json
import math
import pathlib
import sys
import textwrap
import time

import pytest

from dro_jax.errors import Failed, UsageError
from dro_jax.evaluation.judge.endpoint import Endpoint
from dro_jax.evaluation.judge.judges import Comparison, make_judge
from dro_jax.evaluation.judge.programs import OutOfStep, Program
from dro_jax.evaluation.judge.requests import Requests

ASKED = [Comparison('p', 'a' * i, 'b') for i in range(1, 5)]
_LOOP = """
  import json, os, sys, time
  {before}
  for line in sys.stdin:
    asked = json.loads(line)
    {body}
    sys.stdout.flush()
  {after}
"""


def program(tmp_path, body="print('A')", before='pass', after='pass'):
  """A command that runs a Python program with this loop body."""
  file = tmp_path / 'judge.py'
  file.write_text(textwrap.dedent(_LOOP).format(before=before, body=body, after=after))
  return f'{sys.executable} {file}'


def kept(folder):
  """Replies that the folder counts."""
  requests = Requests(folder)
  requests.close()
  return requests.answers


@pytest.mark.parametrize(
  'parts, wrote',
  [
    ({'before': "print('Loading the judge ...', flush=True)"}, "'Loading the judge ...'"),
    (
      {'before': "print('Loading the judge ...', flush=True)", 'body': "time.sleep(.03); print('A')"},
      "'Loading the judge ...'",
    ),
    ({'body': "print('B'); print('because')"}, "'because'"),
    ({'body': "print('B'); sys.stdout.flush(); time.sleep(.03); print('why')"}, "'why'"),
    ({'after': "print('Done.')"}, "'Done.'"),
    ({'after': "sys.stdout.write('Bye')"}, "'Bye'"),
  ],
)
def test_lines_that_fit_no_comparison_are_named_and_nothing_is_counted(tmp_path, parts, wrote):
  command = program(tmp_path, **parts)
  with pytest.raises(OutOfStep, match='beyond a line for each .*none of this call is counted') as error:
    make_judge(tmp_path, command=command).judge(ASKED)
  assert wrote in str(error.value) and 'standard error' in str(error.value)
  assert kept(tmp_path) == {}
  mended = program(tmp_path, "print('B')")  # The same text, another file: known apart.
  assert [each.score for each in make_judge(tmp_path, command=mended).judge(ASKED).verdicts] == [0] * 4


def test_what_an_earlier_call_counted_stays_when_a_later_one_is_out_of_step(tmp_path):
  command = program(tmp_path, "print('A\\nA' if asked['first'] == 'aaaa' else 'A')")
  make_judge(tmp_path, command=command).judge(ASKED[:2])
  with pytest.raises(OutOfStep):
    make_judge(tmp_path, command=command).judge(ASKED)
  assert len(kept(tmp_path)) == 2


def test_nothing_is_kept_of_a_program_that_may_be_out_of_step_and_fails(tmp_path):
  body = "time.sleep(.05); sys.exit(3) if asked['first'] == 'aaa' else print('A')"
  command = program(tmp_path, body, before="print('Loading the judge ...', flush=True)")
  with pytest.raises(Failed, match='ended with exit code 3'):
    make_judge(tmp_path, command=command).judge(ASKED)
  assert kept(tmp_path) == {}


def test_lines_in_step_that_are_no_verdict_are_malformed(tmp_path):
  command = program(tmp_path, "print('A' if len(asked['first']) > 2 else 'I like the first')")
  judged = make_judge(tmp_path, command=command).judge(ASKED)
  assert [math.isnan(verdict.score) for verdict in judged.verdicts] == [True, True, False, False]
  assert judged.unread == 'I like the first' and len(kept(tmp_path)) == 4


def test_a_program_that_hangs_is_ended_with_what_it_started_and_what_it_said_is_kept(tmp_path):
  body = """if asked['first'] == 'aaa':
    import subprocess; child = subprocess.Popen(['sleep', '60'])
    open({pid!r}, 'w').write(str(child.pid))
    time.sleep(60)
  print('A')"""
  command = program(tmp_path, body.format(pid=str(tmp_path / 'pid')))
  began = time.monotonic()
  with pytest.raises(Failed, match='no verdict within 1.5 seconds.*TIMEOUT=SECONDS'):
    make_judge(tmp_path, command=command, endpoint=Endpoint(timeout=1.5)).judge(ASKED)
  assert time.monotonic() - began < 10 and len(kept(tmp_path)) == 2
  status = pathlib.Path('/proc', (tmp_path / 'pid').read_text(), 'stat')
  deadline = time.monotonic() + 5
  while status.exists() and status.read_text().split()[2] != 'Z':
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_a_program_that_does_not_read_or_does_not_end_is_ended_too(tmp_path):
  with Program('sleep 60', 0.2) as asleep, pytest.raises(Failed, match='no verdict within 0.2 s'):
    asleep.ask({'prompt': 'x' * 1_000_000})
  began = time.monotonic()
  with Program(program(tmp_path, after='time.sleep(60)'), 2.0) as endless:
    assert endless.ask(ASKED[0]._asdict()) == 'A'
    endless.finish()
  assert time.monotonic() - began < 10


def test_a_program_is_known_by_the_files_that_it_names_too(tmp_path):
  command = program(tmp_path, "print('A')")
  make_judge(tmp_path, command=command).judge(ASKED)
  assert make_judge(tmp_path, command=program(tmp_path, "print('A')")).judge(ASKED).verdicts[0].score == 1
  assert make_judge(tmp_path, command=program(tmp_path, "print('B')")).judge(ASKED).verdicts[0].score == 0
  lines = (tmp_path / 'requests.jsonl').read_text().splitlines()
  assert len({json.loads(line)['contents']['code'] for line in lines}) == 2 and len(lines) == 8


@pytest.mark.parametrize(
  'command, message', [('', 'COMMAND is empty'), ("python 'mine.py", 'close the quotes')]
)
def test_what_is_no_command_is_refused_before_anybody_answers(tmp_path, command, message):
  with pytest.raises(UsageError, match=message):
    make_judge(tmp_path, command=command)
