"""A real HTTP server that speaks OpenAI's chat completions, with faults as a test scripts them."""

import contextlib
import http.server
import json
import math
import re
import threading
import time
from typing import NamedTuple

from dro_jax.data.worlds import exercises

_TEXTS = re.compile(
  r'\[Request\]\n(.*)\n\[End of request\].*\[Answer A\]\n(.*)\n\[End of answer A\].*'
  r'\[Answer B\]\n(.*)\n\[End of answer B\]',
  re.DOTALL,
)


class Asked(NamedTuple):
  """A request as it arrived: when, its message, its body and its headers."""

  seconds: float
  message: str
  body: dict
  headers: dict


def shown(message):
  """(prompt, first answer, second answer) of a message by the helpfulness template."""
  return _TEXTS.search(message).groups()


def by_exact_reward(message):
  """A judge that knows the worlds' answers."""
  prompt, first, second = shown(message)
  right = exercises.answer(prompt)
  a, b = (answer.strip() == right for answer in (first, second))
  return f'I compared them.\n\nVerdict: {"tie" if a == b else "A" if a else "B"}'


def completion(text, usage=True, tokens=None):
  """The body of a reply; `tokens` are (text, {token: log-prob})."""
  choice = {'index': 0, 'finish_reason': 'stop', 'message': {'role': 'assistant', 'content': text}}
  if tokens is not None:
    choice['logprobs'] = {'content': [_token(*each) for each in tokens]}
  body = {'id': 'x', 'object': 'chat.completion', 'created': 0, 'model': 'judge', 'choices': [choice]}
  counted = {'prompt_tokens': 100, 'completion_tokens': 7, 'total_tokens': 107}
  return body | ({'usage': counted} if usage else {})


def _token(text, top):
  listed = [{'token': token, 'logprob': logprob, 'bytes': None} for token, logprob in top.items()]
  return {'token': text, 'logprob': top.get(text, -9.0), 'bytes': [*text.encode()], 'top_logprobs': listed}


def soft(text, **probabilities):
  """A reply with log-probs: each word a token, and the given probabilities at each label."""
  top = {label.replace('_', ' '): math.log(p) for label, p in probabilities.items()}
  words = re.findall(r'\s*\S+', text)
  return completion(text, tokens=[(word, top if word.strip() in 'AB' else {word: 0.0}) for word in words])


class ChatServer(http.server.ThreadingHTTPServer):
  """Answers by a function of (number of the request from 0, message) that returns a text, or does a fault.

  A fault is a function of the handler. `asked` has all requests in the order of their arrival.
  """

  daemon_threads = True
  allow_reuse_address = True
  request_queue_size = 64

  def __init__(self, answer, port=0):
    super().__init__(('127.0.0.1', port), _Handler)
    self.answer, self.asked, self.lock = answer, [], threading.Lock()
    self.finished = []  # Messages whose reply was sent whole.
    self.closing = threading.Event()

  @property
  def url(self):
    return f'http://127.0.0.1:{self.server_port}/v1'

  def handle_error(self, request, client_address):
    pass  # A client that was killed.


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    message = body['messages'][-1]['content']
    with self.server.lock:
      number = len(self.server.asked)
      self.server.asked.append(
        Asked(time.monotonic(), message, body, {k.lower(): v for k, v in self.headers.items()})
      )
    assert self.path == '/v1/chat/completions'
    reply = self.server.answer(number, message)
    if callable(reply):
      reply(self)
      return
    reply = completion(reply) if isinstance(reply, str) else reply
    self.reply(200, json.dumps(reply).encode())
    with self.server.lock:
      self.server.finished.append(message)

  def reply(self, status, body, kind='application/json', **headers):
    self.send_response(status)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(body)))
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    self.wfile.write(body)


def status(code, text='refused', **headers):
  body = json.dumps({'error': {'message': text, 'type': 'x', 'code': None}}).encode()
  return lambda handler: handler.reply(code, body, **headers)


def broken(handler):
  handler.reply(200, b'{"choices": [{"message": ')


def no_completion(handler):
  handler.reply(200, b'{"choices": []}')


def page(handler):
  handler.reply(200, b'<html>a proxy</html>', kind='text/html')


def cut(handler):
  """Closes the connection in the middle of a body."""
  handler.send_response(200)
  handler.send_header('Content-Type', 'application/json')
  handler.send_header('Content-Length', '500')
  handler.end_headers()
  handler.wfile.write(b'{"choices": [')
  handler.wfile.flush()
  handler.close_connection = True
  handler.connection.close()


def slam(handler):
  """Closes the connection without a word."""
  handler.close_connection = True
  handler.connection.close()


def hang(handler):
  """Sends nothing until the server closes."""
  handler.server.closing.wait(30)
  handler.close_connection = True


@contextlib.contextmanager
def serving(answer, port=0):
  server = ChatServer(answer, port)
  thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()
