import email.utils
import math
import time

import pytest

from dro_jax.errors import Failed, UsageError
from dro_jax.evaluation.judge import endpoint as endpoints
from dro_jax.evaluation.judge.endpoint import Client, Endpoint, Refused, Retry
from dro_jax.evaluation.judge.verdicts import parse
from tests.evaluation.judge import chat_server
from tests.evaluation.judge.chat_server import serving, status

pytest.importorskip('openai')


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)


def attempt(reply, **settings):
  """One attempt at a server that gives one reply, and what arrived there."""
  with serving(lambda *_: reply) as server:
    endpoint = Endpoint(model='m', base_url=server.url, timeout=0.5, **settings)
    return Client(endpoint).attempt('hello', 'ab12'), server.asked[0]


def failure(reply):
  with pytest.raises((Retry, Refused, UsageError, Failed)) as caught:
    attempt(reply)
  return caught.value


def test_a_request_says_all_that_decides_its_reply():
  reply, asked = attempt('Verdict: A', max_length=9)
  assert reply.text == 'Verdict: A' and reply.usage == (100, 7)
  assert asked.body == {
    'model': 'm', 'temperature': 0.0, 'max_tokens': 9, 'messages': [{'role': 'user', 'content': 'hello'}],
  }  # fmt: skip
  assert asked.headers['idempotency-key'] == 'ab12'


def test_a_model_that_takes_no_temperature_gets_none():
  _, asked = attempt('A', temperature=None)
  assert 'temperature' not in asked.body


def test_the_key_comes_from_the_environment_only(monkeypatch):
  monkeypatch.setenv('MY_KEY', 'sk-secret')
  _, asked = attempt('A', key_variable='MY_KEY')
  assert asked.headers['authorization'] == 'Bearer sk-secret'
  _, asked = attempt('A')
  assert 'sk-secret' not in str(asked)
  with pytest.raises(UsageError, match='OPENAI_API_KEY holds no key'):
    endpoints.check(Endpoint(model='m'))
  error = failure_with_key('sk-secret', monkeypatch)
  assert 'sk-secret' not in str(error) and '[key]' in str(error)


def failure_with_key(key, monkeypatch):
  """The error of an endpoint that repeats the key."""
  monkeypatch.setenv('OPENAI_API_KEY', key)
  return failure(status(401, f'Incorrect API key provided: {key}'))


def test_a_key_that_a_reply_repeats_is_masked_and_its_verdict_stays_soft(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', 'sk-a-secret-key')
  tokens = [
    ('Say ', {}),
    ('sk-a-secret-key', {}),
    ('\nVerdict:', {}),
    (' A', {' A': -1.0, 'sk-a-secret-key': -2.0}),
  ]
  reply, _ = attempt(chat_server.completion('Say sk-a-secret-key\nVerdict: A', tokens=tokens), soft=True)
  assert reply.text == f'Say {"*" * 15}\nVerdict: A' and 'secret' not in str(reply.labels)
  assert parse(reply.text, reply.labels) == (1.0, True)
  monkeypatch.setenv('OPENAI_API_KEY', 'A')  # No secret, but what local servers take for one.
  assert attempt('Verdict: A')[0].text == 'Verdict: A'


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'model': 'x-sk-a-secret-key'}, r'model= \(--set JUDGE_MODEL\) holds the key of OPENAI_API_KEY'),
    ({'base_url': 'http://h/sk-a-secret-key/v1'}, r'base_url= \(--set BASE_URL\) holds the key'),
    ({'key_variable': 'sk-a-secret-key'}, 'is not the name of an environment variable'),
  ],
)
def test_a_key_in_another_setting_is_refused_and_not_repeated(monkeypatch, settings, message):
  monkeypatch.setenv('OPENAI_API_KEY', 'sk-a-secret-key')
  with pytest.raises(UsageError, match=message) as caught:
    endpoints.check(Endpoint(**{'model': 'm', 'base_url': 'http://h/v1'} | settings))
  assert 'secret' not in str(caught.value)


def test_log_probs_make_a_verdict_a_probability():
  reply, asked = attempt(chat_server.soft('It is so.\nVerdict: A', _A=0.6, _B=0.2, _tie=0.1), soft=True)
  assert (asked.body['logprobs'], asked.body['top_logprobs']) == (True, 20)
  verdict = parse(reply.text, reply.labels)
  assert verdict.soft and verdict.score == pytest.approx(0.65 / 0.9)
  hard, _ = attempt('It is so.\nVerdict: A', soft=True)  # An endpoint that gives none.
  assert parse(hard.text, hard.labels) == (1.0, False)


def test_a_label_with_and_without_a_blank_is_one():
  tokens = [('Verdict:', {}), (' A', {' A': math.log(0.3), 'A': math.log(0.2), 'B': math.log(0.5)})]
  reply, _ = attempt(chat_server.completion('Verdict: A', tokens=tokens), soft=True)
  assert parse(reply.text, reply.labels).score == pytest.approx(0.5)


def test_a_refusal_is_a_reply_without_a_verdict():
  body = chat_server.completion(None)
  body['choices'][0]['message']['refusal'] = 'I cannot.'
  reply, _ = attempt(body)
  assert reply.text == 'I cannot.' and math.isnan(parse(reply.text).score)


@pytest.mark.parametrize(
  'fault, message, charged',
  [
    (status(429), 'HTTP 429', False),
    (status(500), 'HTTP 500', False),
    (status(503, 'busy'), 'busy', False),
    (chat_server.broken, 'no JSON', True),
    (chat_server.no_completion, 'not a chat completion', True),
    (chat_server.page, 'not a chat completion', True),
    (chat_server.cut, 'Connection error', True),
    (chat_server.slam, 'Connection error', True),
    (chat_server.hang, 'no reply within 0.5 s', True),
  ],
)
def test_a_fault_that_may_pass_asks_for_another_attempt(fault, message, charged):
  error = failure(fault)
  assert isinstance(error, Retry) and message in str(error) and error.charged == charged


def test_a_fault_of_the_settings_ends_the_command():
  for code in (401, 403, 404):
    error = failure(status(code))
    assert isinstance(error, UsageError) and 'JUDGE_MODEL' in str(error)
  assert isinstance(failure(status(400, 'too long')), Refused)


def test_a_wait_is_read_in_seconds_milliseconds_and_as_a_date():
  assert failure(status(429, Retry_After='7')).wait == 7
  assert failure(status(429, retry_after_ms='250')).wait == 0.25
  later = email.utils.formatdate(time.time() + 20, usegmt=True)
  assert 17 < failure(status(503, Retry_After=later)).wait <= 20
  assert failure(status(429, Retry_After='soon')).wait is None
  assert failure(status(429, Retry_After='Wed, 21 Oct 2015 07:28:00 GMT')).wait == 0
  error = failure(status(429, Retry_After='7200'))
  assert isinstance(error, Failed) and 'wait 120 minutes' in str(error)


def test_waits_between_attempts_double_and_differ_between_requests():
  waits = [endpoints.back_off(attempt, '00000000') for attempt in range(9)]
  assert waits[:3] == [0.5, 1.0, 2.0] and waits[-1] == 30
  assert 0.5 < endpoints.back_off(0, 'ffffffff') < 1.0


def test_the_most_tokens_are_at_least_those_of_any_tokenizer():
  text = '日本語' * 10
  assert Endpoint(max_length=5).most_tokens(text) >= len(text.encode()) + 5


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'base_url': 'localhost:8000'}, 'is not an address'),
    ({'base_url': 'http://me:secret@host/v1'}, 'holds a user, a password'),
    ({'base_url': 'http://host/v1?key=secret'}, 'holds a user, a password'),
    ({'base_url': 'http://h/v1', 'concurrency': 0}, 'concurrency=0 must be above 0'),
    ({'base_url': 'http://h/v1', 'retries': -1}, 'retries=-1 must be 0 or more'),
    ({'base_url': 'http://h/v1', 'timeout': 0.0}, 'timeout=0.0 must be above 0'),
    ({'base_url': 'http://h/v1', 'max_requests': -2}, 'max_requests=-2'),
  ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
  with pytest.raises(UsageError, match=message) as caught:
    endpoints.check(Endpoint(model='m', **settings))
  assert 'secret' not in str(caught.value)


def test_the_cost_is_that_of_the_tokens():
  assert Endpoint(input_price=2.0, output_price=8.0).cost(500_000, 1_000_000) == 9.0
  assert Endpoint(input_price=2.0).cost(1, 1) is None
