import json
import os
import pathlib
import sys
import textwrap
import time

import pytest

from dro_jax.errors import Failed, UsageError
from dro_jax.evaluation.judge import judges
from dro_jax.evaluation.judge.endpoint import Endpoint
from dro_jax.evaluation.judge.judges import Comparison, make_judge
from dro_jax.evaluation.judge.verdicts import Verdict
from tests.evaluation.judge import kills
from tests.evaluation.judge.chat_server import by_exact_reward, serving, soft

SORT = Comparison('sort: cab', 'abc', 'cab')
TURNED = Comparison('sort: cab', 'cab', 'abc')
BOTH_WRONG = Comparison('sort: cab', 'x', 'y')


def lines(folder):
  return [json.loads(line) for line in (folder / 'requests.jsonl').read_text().splitlines()]


def program(tmp_path, body):
  """A command that runs a Python program with this loop body, and its log of what it was asked."""
  text = """
    import json, sys
    for line in sys.stdin:
      asked = json.loads(line)
      open('{log}', 'a').write(line)
      {body}
      sys.stdout.flush()
  """
  file = tmp_path / 'judge.py'
  file.write_text(textwrap.dedent(text).format(log=tmp_path / 'log', body=body))
  return f'{sys.executable} {file}'


def test_a_reward_is_a_judge_by_which_the_higher_wins(tmp_path):
  calls = []

  def reward(prompts, responses):
    calls.append(len(responses))
    return [{'aa': 1.0, 'b': 0.3, 'c': 0.1 + 0.2}[response] for response in responses]

  judge = make_judge(tmp_path, reward=reward)
  pairs = (('aa', 'b'), ('b', 'aa'), ('b', 'c'), ('c', 'b'))
  judged = judge.judge([Comparison('p', *pair) for pair in pairs])
  assert [verdict.score for verdict in judged.verdicts] == [1.0, 0.0, 0.5, 0.5]  # Rounding breaks no tie.
  assert calls == [3] and not judge.sees_order  # Each answer is scored once.
  assert make_judge(tmp_path, reward=reward).judge([]).verdicts == []


def test_the_worlds_exact_reward_judges_by_its_name(tmp_path):
  judge = make_judge(tmp_path, reward='exact_match')
  assert judge.name == 'exact_match'
  assert [verdict.score for verdict in judge.judge([SORT, TURNED, BOTH_WRONG]).verdicts] == [1, 0, 0.5]


def test_a_function_of_ones_own_judges_and_is_asked_once(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    'def shorter(prompt, first, second):\n  with open(__file__ + ".log", "a") as log:\n    log.write("x")\n'
    '  return "tie" if len(first) == len(second) else 0.75 if len(first) < len(second) else "Verdict: B"\n'
  )
  asked = [Comparison('p', 'a', 'bb'), Comparison('p', 'bb', 'a'), Comparison('p', 'a', 'b')]
  found = make_judge(tmp_path, function=f'{file}:shorter').judge(asked).verdicts
  assert found == [Verdict(0.75, soft=True), Verdict(0.0), Verdict(0.5)]
  again = make_judge(tmp_path, function=f'{file}:shorter').judge([*asked, asked[0]]).verdicts
  assert again == [*found, found[0]]
  assert (tmp_path / 'mine.py.log').read_text() == 'xxx'
  file.write_text(file.read_text() + '# Other code may judge otherwise.\n')
  make_judge(tmp_path, function=f'{file}:shorter').judge(asked)
  assert (tmp_path / 'mine.py.log').read_text() == 'x' * 6


@pytest.mark.parametrize(
  'function, message',
  [
    (lambda p, a, b: 1.5, r'returned 1\.5: it must return A, B, tie, or a number from 0 to 1'),
    (lambda p, a, b: None, 'returned None'),
    (lambda p, a, b: 1 / 0, r'raised ZeroDivisionError: division by zero \(.*test_judges\.py, line'),
  ],
)
def test_a_function_that_returns_no_verdict_is_named(tmp_path, function, message):
  with pytest.raises(UsageError, match=message):
    make_judge(tmp_path, function=function).judge([SORT])


def test_a_function_whose_words_are_no_verdict_is_malformed(tmp_path):
  [verdict] = make_judge(tmp_path, function=lambda p, a, b: 'the first').judge([SORT]).verdicts
  assert verdict.score != verdict.score


def test_a_command_reads_lines_and_writes_verdicts(tmp_path):
  command = program(tmp_path, "print('A' if asked['first'] < asked['second'] else 'B')")
  found = make_judge(tmp_path, command=command).judge([SORT, TURNED]).verdicts
  assert found == [(1.0, False), (0.0, False)]
  again = make_judge(tmp_path, command=command).judge([SORT, TURNED, BOTH_WRONG]).verdicts
  assert again == [*found, (1.0, False)]
  asked = [json.loads(line) for line in (tmp_path / 'log').read_text().splitlines()]
  assert asked == [comparison._asdict() for comparison in (SORT, TURNED, BOTH_WRONG)]
  odd = program(tmp_path, """print('{"first": 0.25}' if asked['first'] == 'x' else '{"first": "?"}')""")
  found = make_judge(tmp_path / 'odd', command=odd).judge([BOTH_WRONG, SORT]).verdicts
  assert found[0] == (0.25, True) and found[1].score != found[1].score


def test_a_command_that_ends_early_is_named_and_what_it_said_is_kept(tmp_path):
  command = program(tmp_path, "sys.exit(3) if asked['first'] == 'x' else print('A')")
  with pytest.raises(Failed, match='ended with exit code 3'):
    make_judge(tmp_path, command=command).judge([SORT, BOTH_WRONG])
  assert [line['text'] for line in lines(tmp_path) if line['event'] == 'answered'] == ['A']
  with pytest.raises(UsageError, match='cannot start it'):
    make_judge(tmp_path / 'b', command='/no/such/program').judge([SORT])


def test_an_endpoint_judges_by_a_template(tmp_path):
  pytest.importorskip('openai')
  with serving(lambda number, message: by_exact_reward(message)) as server:
    judge = make_judge(tmp_path, endpoint=Endpoint(model='m', base_url=server.url))
    judged = judge.judge([SORT, TURNED, BOTH_WRONG])
  assert [verdict.score for verdict in judged.verdicts] == [1, 0, 0.5] and judge.sees_order
  assert judged.note == '' and judged.spent['requests'] == 3
  assert '[Request]\nsort: cab\n' in server.asked[0].message


def test_an_endpoints_verdicts_are_read_from_the_kept_replies(tmp_path):
  """So a budget that has ended still gives what was paid for, and says what is missing."""
  pytest.importorskip('openai')
  replies = [soft('Verdict: A', _A=0.8, _B=0.2), 'in prose', 'Verdict: tie']
  with serving(lambda number, _: replies[number]) as server:
    options = {'model': 'm', 'base_url': server.url, 'soft': True, 'concurrency': 1}
    judge = make_judge(tmp_path, endpoint=Endpoint(**options, max_requests=2))
    first = judge.judge([SORT, TURNED, BOTH_WRONG])
    again = judge.judge([SORT, TURNED, BOTH_WRONG])
  assert first.verdicts[0] == (pytest.approx(0.8), True) and first.verdicts[2] is None
  assert first.verdicts[1].score != first.verdicts[1].score
  assert str(again.verdicts) == str(first.verdicts) and len(server.asked) == 2
  assert '1 of 3 requests have no reply' in again.note and 'REQUEST_BUDGET' in again.note


_JUDGE = """
import pathlib, sys
from dro_jax.evaluation.judge.endpoint import Endpoint
from dro_jax.evaluation.judge.judges import Comparison, make_judge

url, folder = sys.argv[1:]
judge = make_judge(pathlib.Path(folder), endpoint=Endpoint(model='m', base_url=url, concurrency=4))
judge.judge([Comparison(f'sort: ba{i}', f'ab{i}', f'{i}ab') for i in range(160)])
"""


@pytest.mark.long
def test_kills_lose_no_reply_and_pay_nothing_twice(tmp_path):
  pytest.importorskip('openai')
  comparisons = [Comparison(f'sort: ba{i}', f'ab{i}', f'{i}ab') for i in range(160)]
  root = pathlib.Path(__file__).resolve().parents[3]
  environment = {**os.environ, 'PYTHONPATH': str(root)}

  def answer(number, message):
    time.sleep(0.02)
    return by_exact_reward(message)

  with serving(answer) as server:
    command = [sys.executable, '-c', _JUDGE, server.url, str(tmp_path)]
    kills.kill_often(command, server, 2, environment=environment, longest=0.2)
    options = {'model': 'm', 'base_url': server.url, 'concurrency': 4}
    rest = make_judge(tmp_path, endpoint=Endpoint(**options)).judge(comparisons)
    lost = kills.check(server, tmp_path, 4, 2)
    assert rest.verdicts.count(None) == len(lost)
    whole = make_judge(tmp_path, endpoint=Endpoint(**options, resend=True)).judge(comparisons)
  exact = make_judge(tmp_path, reward='exact_match').judge(comparisons)
  assert whole.verdicts == exact.verdicts
  assert {message for message, count in kills.counted(server).items() if count > 1} <= lost


@pytest.mark.parametrize(
  'chosen, message',
  [
    ({}, 'there is no judge: pass one of'),
    ({'reward': 'exact_match', 'command': 'cat'}, r'command \(COMMAND\) and reward \(REWARD\) name 2 judges'),
    (
      {'reward': 'exact_match', 'endpoint': Endpoint(soft=True)},
      'soft is a setting of a judge behind an end',
    ),
    ({'command': 'cat', 'template': 'safety'}, r'template \(--judge_prompt\) is a setting'),
    ({'reward': 'exact_mtch'}, 'is not a reward function'),
    ({'function': 'mine'}, "FUNCTION='mine' names no function"),
  ],
)
def test_a_choice_that_cannot_be_meant_is_refused(tmp_path, chosen, message):
  with pytest.raises(UsageError, match=message):
    make_judge(tmp_path, **chosen)


def test_without_the_client_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'openai', None)
  with pytest.raises(UsageError, match=r"pip install 'dro_jax\[judge\]'"):
    judges.make_judge(tmp_path, endpoint=Endpoint(model='m', base_url='http://localhost:1/v1'))
