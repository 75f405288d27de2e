import collections
import json
import os
import signal
import threading
import time

import pytest

from dro_jax.errors import Failed, Interrupted, Stopped, UsageError
from dro_jax.evaluation.judge import endpoint as endpoints
from dro_jax.evaluation.judge.endpoint import Client, Endpoint
from dro_jax.evaluation.judge.requests import Requests, key_of
from dro_jax.evaluation.judge.sending import LOST, Sender, spent_of
from tests.evaluation.judge import chat_server
from tests.evaluation.judge.chat_server import serving, status

pytest.importorskip('openai')


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
  monkeypatch.setattr(endpoints, '_FIRST_WAIT', 0.01)
  monkeypatch.setenv('OPENAI_API_KEY', 'sk-a-very-secret-key')


class Sent:
  """What came of sending some messages."""

  def __init__(self, folder, server, messages, **settings):
    self.endpoint = Endpoint(model='m', base_url=server.url, **{'timeout': 0.3, 'concurrency': 4, **settings})
    keys = [key_of(self.endpoint.contents(message)) for message in messages]
    requests = Requests(folder, self.endpoint.max_requests, self.endpoint.max_tokens)
    self.sender = Sender(self.endpoint, requests, Client(self.endpoint))
    self.error = None
    try:
      self.sender.send(dict(zip(keys, messages)))
    except (Failed, UsageError, Stopped, Interrupted) as error:
      self.error = error
    finally:
      requests.close()
    self.replies = [requests.answers.get(key, {}).get('text') for key in keys]
    self.problems = [self.sender.problems.get(key) for key in keys]
    self.spent = requests.spent


def echo(number, message):
  return f'reply to {message}'


def counted(server):
  return collections.Counter(asked.message for asked in server.asked)


def test_every_message_gets_its_own_reply_and_none_is_sent_twice(tmp_path):
  messages = [f'message {i}' for i in range(30)]
  with serving(echo) as server:
    first = Sent(tmp_path, server, messages[:20])
    second = Sent(tmp_path, server, messages)
  assert first.replies + second.replies[20:] == [f'reply to {message}' for message in messages]
  assert counted(server) == dict.fromkeys(messages, 1)
  assert (second.spent.requests, second.spent.input_tokens, second.spent.output_tokens) == (30, 3000, 210)
  assert second.spent.unknown == 0


def test_every_passing_fault_is_tried_again_until_there_is_a_reply(tmp_path):
  faults = [
    status(500), status(429, Retry_After='0'), chat_server.hang, chat_server.cut, chat_server.broken,
    chat_server.slam, chat_server.page, status(503), chat_server.no_completion,
  ]  # fmt: skip

  def answer(number, message):
    return faults[number] if number < len(faults) else echo(number, message)

  with serving(answer) as server:
    sent = Sent(tmp_path, server, ['one', 'two', 'three'], retries=9)
  assert sent.replies == ['reply to one', 'reply to two', 'reply to three'] and sent.error is None
  assert sent.spent.requests == len(server.asked) == 12
  # Refusals cost nothing; what was cut, hung or unreadable may have been paid for.
  assert 6 * sent.endpoint.most_tokens('one') <= sent.spent.unknown <= 6 * sent.endpoint.most_tokens('three')
  lines = [json.loads(line) for line in (tmp_path / 'requests.jsonl').read_text().splitlines()]
  assert collections.Counter(line['event'] for line in lines) == {'sent': 12, 'failed': 9, 'answered': 3}
  assert sum(line.get('charged', False) for line in lines) == 6


def test_retry_after_holds_back_all_requests(tmp_path):
  def answer(number, message):
    return status(429, Retry_After='0.4') if number == 0 else echo(number, message)

  with serving(answer) as server:
    sent = Sent(tmp_path, server, [f'm{i}' for i in range(6)], concurrency=1)
  assert None not in sent.replies
  waited = server.asked[1].seconds - server.asked[0].seconds
  assert waited >= 0.4


def test_requests_keep_to_a_rate(tmp_path, monkeypatch):
  monkeypatch.setattr('dro_jax.evaluation.judge.pace._WINDOW', 0.3)
  with serving(echo) as server:
    began = time.monotonic()
    sent = Sent(tmp_path, server, [f'm{i}' for i in range(7)], requests_per_minute=3)
  # Two whole windows pass before the seventh (test_pace.py holds every window to the limit).
  assert None not in sent.replies and time.monotonic() - began > 0.6


@pytest.mark.parametrize('concurrency', [1, 8])
def test_a_budget_of_requests_is_never_exceeded_over_all_calls(tmp_path, concurrency):
  def answer(number, message):
    return status(500) if number % 3 == 0 else echo(number, message)

  messages = [f'm{i}' for i in range(20)]
  with serving(answer) as server:
    options = {'concurrency': concurrency, 'retries': 20}
    first = Sent(tmp_path, server, messages, max_requests=7, **options)
    assert len(server.asked) == 7 and first.sender.budget_ended
    again = Sent(tmp_path, server, messages, max_requests=7, **options)
    assert len(server.asked) == 7 and again.replies == first.replies
    Sent(tmp_path, server, messages, max_requests=12, **options)
    assert len(server.asked) == 12
    last = Sent(tmp_path, server, messages, **options)
  assert None not in last.replies and last.spent.requests == len(server.asked)


def test_attempts_that_reached_nobody_count_in_no_budget(tmp_path):
  messages = [f'm{i}' for i in range(3)]
  with serving(echo) as server:
    port = server.server_port
  budgets = {'max_requests': 3, 'max_tokens': 3 * Endpoint().most_tokens('m0'), 'retries': 1}
  for _ in range(2):
    down = Sent(tmp_path, server, messages, **budgets)
    assert down.spent == (0, 0, 0, 0) and not down.sender.budget_ended
    assert all('Connection refused' in problem for problem in down.problems)
  with serving(echo, port) as server:
    up = Sent(tmp_path, server, messages, **budgets)
  assert None not in up.replies and up.spent.requests == len(server.asked) == 3


def test_a_budget_does_not_end_while_what_is_in_flight_may_reach_nobody(tmp_path):
  with serving(echo) as server:
    pass
  down = Sent(tmp_path, server, ['m0', 'm1', 'm2', 'm3'], max_requests=1, retries=0)
  assert down.spent.requests == 0 and not down.sender.budget_ended
  assert all('Connection refused' in problem for problem in down.problems)


def test_a_budget_of_tokens_holds_what_every_request_may_cost(tmp_path):
  messages = [f'm{i}' for i in range(20)]
  most = Endpoint().most_tokens(messages[0])
  with serving(echo) as server:
    # Three may be on their way at once. Each then turns out to have cost 107, which makes room for others.
    sent = Sent(tmp_path, server, messages, max_tokens=3 * most, concurrency=8)
    assert sent.spent.tokens == 107 * len(server.asked) <= 3 * most
    assert sent.spent.tokens + most > 3 * most and sent.sender.budget_ended
  with serving(lambda n, m: chat_server.completion('A', usage=False)) as server:
    sent = Sent(tmp_path / 'other', server, messages, max_tokens=3 * most)
  assert len(server.asked) == 3 and sent.spent.tokens == 3 * most  # Without a count the most is counted.


def test_what_was_in_flight_at_a_kill_is_sent_again_only_on_request(tmp_path):
  with serving(echo) as server:
    endpoint = Endpoint(model='m', base_url=server.url)
    requests = Requests(tmp_path)
    assert requests.send(key_of(endpoint.contents('lost')), endpoint.contents('lost'), 50)
    requests.close()
    sent = Sent(tmp_path, server, ['lost', 'other'])
    assert sent.replies == [None, 'reply to other'] and sent.problems == [LOST, None]
    assert counted(server) == {'other': 1} and sent.spent.unknown == 50
    again = Sent(tmp_path, server, ['lost', 'other'], resend=True)
    assert again.replies == ['reply to lost', 'reply to other'] and counted(server) == {'lost': 1, 'other': 1}
    assert again.spent.unknown == 50 and again.spent.requests == 3


def test_a_request_that_the_endpoint_does_not_take_is_left_out(tmp_path):
  def answer(number, message):
    return status(400, 'too long') if message == 'long' else echo(number, message)

  with serving(answer) as server:
    sent = Sent(tmp_path, server, ['short', 'long', 'other'], concurrency=1)
    assert sent.replies == ['reply to short', None, 'reply to other'] and 'too long' in sent.problems[1]
    assert counted(server)['long'] == 1
    refused = Sent(tmp_path / 'b', server, ['long', 'short', 'other'], concurrency=1)
  assert 'refused the first request: HTTP 400' in str(refused.error) and counted(server)['short'] == 1


def test_one_request_that_always_fails_does_not_stop_the_others(tmp_path):
  def answer(number, message):
    return status(500, 'poison') if message == 'bad' else echo(number, message)

  with serving(answer) as server:
    sent = Sent(tmp_path, server, ['bad', 'a', 'b'], retries=2)
  assert sent.replies == [None, 'reply to a', 'reply to b'] and 'poison' in sent.problems[0]
  assert counted(server)['bad'] == 3 and sent.error is None


def test_an_endpoint_that_is_down_ends_the_command_which_can_go_on(tmp_path):
  messages, down = [f'm{i}' for i in range(40)], threading.Event()

  def answer(number, message):
    return status(502) if down.is_set() else echo(number, message)

  with serving(answer) as server:
    Sent(tmp_path, server, messages[:5])
    down.set()
    sent = Sent(tmp_path, server, messages, retries=1)
    assert 'in a row failed 2 times each' in str(sent.error) and len(server.asked) < 40
    down.clear()
    assert None not in Sent(tmp_path, server, messages).replies
  assert all(counted(server)[message] == 1 for message in messages[:5])


def test_a_wrong_key_ends_the_command_and_is_in_no_file(tmp_path, caplog):
  with serving(lambda *_: status(401, 'Incorrect API key: sk-a-very-secret-key')) as server:
    sent = Sent(tmp_path, server, [f'm{i}' for i in range(50)])
  assert isinstance(sent.error, UsageError) and 'OPENAI_API_KEY' in str(sent.error)
  assert len(server.asked) <= 4
  written = b''.join(path.read_bytes() for path in tmp_path.rglob('*') if path.is_file())
  assert b'[key]' in written and b'secret' not in written
  assert 'secret' not in caplog.text + str(sent.error)


@pytest.mark.parametrize('number, kind', [(signal.SIGTERM, Stopped), (signal.SIGINT, Interrupted)])
def test_a_signal_waits_for_what_is_in_flight_and_sends_nothing_more(tmp_path, number, kind, request):
  if number == signal.SIGINT:  # Tests in the background ignore it.
    before = signal.signal(number, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(number, before))

  def answer(index, message):
    if index == 3:
      os.kill(os.getpid(), number)
    time.sleep(0.15)
    return echo(index, message)

  messages = [f'm{i}' for i in range(40)]
  with serving(answer) as server:
    sent = Sent(tmp_path, server, messages, timeout=5)
    assert isinstance(sent.error, kind) and 'the same command goes on' in str(sent.error)
    arrived = len(server.asked)
    assert arrived < 20 and sum(reply is not None for reply in sent.replies) == arrived
    assert sent.spent.unknown == 0
    assert None not in Sent(tmp_path, server, messages, timeout=5, concurrency=40).replies
  assert counted(server) == dict.fromkeys(messages, 1)


def test_spending_has_its_cost(tmp_path):
  with serving(echo) as server:
    sent = Sent(tmp_path, server, ['a'], input_price=10.0, output_price=100.0)
  requests = Requests(tmp_path)
  assert spent_of(requests, sent.endpoint) == {
    'requests': 1, 'input_tokens': 100, 'output_tokens': 7, 'unknown': 0,
    'cost': pytest.approx(100e-5 + 70e-5),
  }  # fmt: skip
  requests.close()
