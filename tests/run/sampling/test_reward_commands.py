import pathlib
import sys
import textwrap
import time

import pytest

from dro_jax.errors import UsageError
from dro_jax.run.sampling import rewards
from dro_jax.run.sampling.reward_commands import RewardCommand


@pytest.fixture
def program(tmp_path):
  """Writes a program of the user's; its command."""

  def write(body, name='judge.py'):
    (tmp_path / name).write_text('import json, sys, time\n' + textwrap.dedent(body))
    return f'{sys.executable} {tmp_path / name}'

  return write


LENGTHS = """
  for line in sys.stdin:
    record = json.loads(line)
    print(len(record['response']) - len(record['prompt']))
"""


def test_a_program_gets_json_lines_and_its_numbers_are_the_rewards(program):
  reward = rewards.find(f'command:{program(LENGTHS)}')
  responses = ['abc', 'two\nlines  ', '', 'é"']
  assert rewards.reward_responses(reward, ['q'] * 4, responses) == [2.0, 10.0, -1.0, 1.0]
  assert rewards.reward_responses(reward, [], []) == []


def test_a_large_batch_does_not_fill_a_pipe(program):
  texts = ['x' * 1000] * 2000
  assert rewards.reward_responses(rewards.find(f'command:{program(LENGTHS)}'), texts, texts) == [0.0] * 2000


@pytest.mark.parametrize(
  'body, message',
  [
    ('print(1)', 'wrote 1 lines for 2 responses: it must write one number a line, and nothing else'),
    ('print("scoring"); print(1); print(2)', 'wrote 3 lines for 2 responses'),
    ('print(1); print("good")', "wrote 'good' as line 2 of its standard output, which is not a number"),
    ('print(1); print("nan")', 'returned nan for the response'),
    ('sys.exit("no model here")', 'ended with exit code 1: no model here'),
    ('import os; os._exit(3)', 'ended with exit code 3, and wrote nothing on standard error'),
  ],
)
def test_bad_output_is_refused_in_words(program, body, message):
  with pytest.raises(UsageError, match=message):
    rewards.reward_responses(rewards.find(f'command:{program(body)}'), ['p', 'q'], ['r', 's'])


def test_a_program_that_takes_too_long_is_ended_with_what_it_started(program, tmp_path):
  command = program(f"""
    import subprocess
    child = subprocess.Popen(['sleep', '60'])
    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))
    time.sleep(60)
  """)
  began = time.monotonic()
  with pytest.raises(UsageError, match='did not end within 1 seconds.*--set TIMEOUT=SECONDS'):
    rewards.find(f'command:{command}', timeout=1.0)(['p'], ['r'])
  assert time.monotonic() - began < 30
  pid = (tmp_path / 'pid').read_text()
  for _ in range(100):  # A killed process of another parent stays until that one has waited for it.
    stat = pathlib.Path(f'/proc/{pid}/stat')
    if not stat.exists() or ') Z ' in stat.read_text():
      break
    time.sleep(0.05)
  else:
    pytest.fail('what the program started still runs')


def test_programs_that_are_not_there_and_torn_quotes_are_refused():
  with pytest.raises(UsageError, match="there is no program 'no_such_judge'.*command:python no_such_judge"):
    rewards.find('command:no_such_judge --fast')
  with pytest.raises(UsageError, match='names no program'):
    rewards.find('command:')
  with pytest.raises(UsageError, match='close the quotes'):
    rewards.find("command:sh -c 'cat")
  with pytest.raises(UsageError, match='timeout=0: pass seconds above 0'):
    RewardCommand('cat', timeout=0)


def test_its_code_is_that_of_the_files_that_it_names(program, tmp_path):
  spec = f'command:{program(LENGTHS)}'
  before = rewards.code_of(spec)
  assert rewards.name_of(rewards.find(spec)) == spec
  assert before == rewards.code_of(spec)
  (tmp_path / 'judge.py').write_text('print(0)\n')
  assert rewards.code_of(spec) != before
