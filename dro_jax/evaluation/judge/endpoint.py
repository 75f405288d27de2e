"""A judge behind an endpoint that speaks OpenAI's chat completions, by the `openai` client."""

import dataclasses
import email.utils
import math
import os
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dro_jax import limits
from dro_jax.errors import Failed, UsageError
from dro_jax.evaluation.judge import verdicts

_TOP = 20  # The most log-probs that OpenAI's endpoint gives for a token.
# What a chat template may add to a message, in tokens; a text has at most a token for each of its bytes.
_FRAME = 256
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
_PATIENCE = 900.0  # Seconds: an endpoint that asks for more ends the command, which the user can start again.
_NAME = re.compile(r'[A-Za-z_]\w*')
# Characters of a key that is a secret. Local servers take words like x or EMPTY, which a reply may have too.
_SECRET = 8
# Errors before a connection is made, by name: versions of openai differ in the library that raises them.
_UNSENT = ('ConnectError', 'ConnectTimeout', 'PoolTimeout')
OPENAI = 'https://api.openai.com/v1'


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """An endpoint, how it is asked, and what may be spent.

  Attributes:
    model: the model's name at the endpoint; `None` is no endpoint.
    base_url: where it is; `None` is OpenAI's own.
    key_variable: the environment variable that holds the key. A local server needs none.
    temperature: at which the judge answers; `None` leaves it to the endpoint, as some models demand.
    max_length: tokens of a reply at most.
    soft: asks for log-probs, by which a verdict is a probability.
    concurrency: requests at once.
    timeout: seconds without a byte after which a request is given up; of a program that judges, seconds that
      a verdict may take.
    retries: further attempts after one that failed.
    requests_per_minute: at most.
    tokens_per_minute: at most.
    max_requests: the budget of attempts, over all calls with one folder; `None` sets none.
    max_tokens: the budget of tokens, likewise.
    input_price: of a million tokens of input, in any currency.
    output_price: of a million tokens of output.
    resend: sends again what was in flight when an earlier call was killed, and may have been paid for.

  Example:
    >>> dro.Endpoint(model='qwen3-8b', base_url='http://localhost:8000/v1', max_requests=500).temperature
    0.0
  """

  model: str | None = None
  base_url: str | None = None
  key_variable: str = 'OPENAI_API_KEY'
  temperature: float | None = 0.0
  max_length: int = 512
  soft: bool = False
  concurrency: int = 8
  timeout: float = 60.0
  retries: int = 6
  requests_per_minute: int | None = None
  tokens_per_minute: int | None = None
  max_requests: int | None = None
  max_tokens: int | None = None
  input_price: float | None = None
  output_price: float | None = None
  resend: bool = False

  def contents(self, message: str) -> dict[str, Any]:
    """All that decides the reply to a message."""
    return {
      'url': (self.base_url or OPENAI).rstrip('/'), 'model': self.model, 'temperature': self.temperature,
      'max_length': self.max_length, 'soft': self.soft, 'message': message,
    }  # fmt: skip

  def most_tokens(self, message: str) -> int:
    """The most tokens that a request and its reply can have."""
    return len(message.encode()) + _FRAME + self.max_length

  def cost(self, input_tokens: int, output_tokens: int) -> float | None:
    """What tokens cost; `None` without prices."""
    if self.input_price is None or self.output_price is None:
      return None
    return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6


class Reply(NamedTuple):
  """A reply: its text, its tokens that are labels, and the tokens (of input, of output) that were counted."""

  text: str
  labels: list[dict[str, Any]]
  usage: tuple[int, int] | None


class Retry(Exception):
  """An attempt failed, and another may succeed.

  Attributes:
    wait: seconds that the endpoint asks for, or `None`.
    charged: whether the attempt may have cost tokens.
    sent: whether it may have reached the endpoint.
  """

  def __init__(self, why: str, wait: float | None, charged: bool, sent: bool = True):
    super().__init__(why)
    self.wait, self.charged, self.sent = wait, charged, sent


class Refused(Exception):
  """The endpoint does not take this request, as one that is too long; others it may take."""


def check(endpoint: Endpoint) -> None:
  """Refuses settings that cannot work, before anything is sent."""
  whole = {
    'max_length': endpoint.max_length, 'concurrency': endpoint.concurrency,
    'requests_per_minute': endpoint.requests_per_minute, 'tokens_per_minute': endpoint.tokens_per_minute,
  }  # fmt: skip
  limits.above_zero('Endpoint', 'nothing could be asked', **whole, timeout=endpoint.timeout)
  limits.at_least_zero(
    'Endpoint', retries=endpoint.retries, max_requests=endpoint.max_requests, max_tokens=endpoint.max_tokens,
    input_price=endpoint.input_price, output_price=endpoint.output_price, temperature=endpoint.temperature,
  )  # fmt: skip
  _refuse_key(endpoint)
  url = urllib.parse.urlsplit(endpoint.base_url or OPENAI)
  if url.scheme not in ('http', 'https') or not url.hostname:
    raise UsageError(
      f'base_url={endpoint.base_url!r} is not an address: pass one like http://localhost:8000/v1 '
      '(--set BASE_URL=http://localhost:8000/v1).'
    )
  if url.username or url.password or url.query:
    raise UsageError(
      'base_url holds a user, a password or a query, which would be written into the folder: pass the bare '
      'address, and the key in the environment variable that --set API_KEY_VARIABLE names.'
    )
  key(endpoint)


def _refuse_key(endpoint: Endpoint) -> None:
  """Refuses a key in a setting that is written into the folder; no message repeats it."""
  if not _NAME.fullmatch(endpoint.key_variable):
    raise UsageError(
      'key_variable (--set API_KEY_VARIABLE=NAME) is not the name of an environment variable: pass the name '
      'of the variable that holds the key, and not the key.'
    )
  secret = os.environ.get(endpoint.key_variable, '')
  settings = {'model= (--set JUDGE_MODEL)': endpoint.model, 'base_url= (--set BASE_URL)': endpoint.base_url}
  held = [name for name, value in settings.items() if len(secret) >= _SECRET and secret in (value or '')]
  if held:
    raise UsageError(
      f'{held[0]} holds the key of {endpoint.key_variable}, which would be written into the folder: pass the '
      'key in the environment alone.'
    )


def key(endpoint: Endpoint) -> str:
  """The key in the environment.

  Raises:
    UsageError: OpenAI's own endpoint needs one and there is none.
  """
  found = os.environ.get(endpoint.key_variable, '')
  if not found and endpoint.base_url is None:
    raise UsageError(
      f'the environment variable {endpoint.key_variable} holds no key: export it, name another by '
      '--set API_KEY_VARIABLE=NAME, or pass --set BASE_URL=... of a server that needs none.'
    )
  return found or 'none'


class Client:
  """Sends one attempt at a time, from any number of threads.

  Raises:
    UsageError: the package `openai` is missing.
  """

  def __init__(self, endpoint: Endpoint):
    try:
      import openai
    except ImportError as error:
      raise UsageError(
        "a judge behind an endpoint needs the package openai: pip install 'dro_jax[judge]'"
      ) from error
    self._openai, self._endpoint, self._key = openai, endpoint, key(endpoint)
    self._client = openai.OpenAI(
      api_key=self._key, base_url=endpoint.base_url or OPENAI, timeout=endpoint.timeout, max_retries=0
    )

  def attempt(self, message: str, request_key: str) -> Reply:
    """Sends a message once.

    Args:
      message: to the judge.
      request_key: the request's digest, sent as its Idempotency-Key, by which an endpoint may know it again.

    Raises:
      Retry: another attempt may succeed.
      Refused: this request never will.
      UsageError: no request will: the key, the model or the address is wrong.
    """
    try:
      completion = self._client.chat.completions.create(
        messages=[{'role': 'user', 'content': message}], extra_headers={'Idempotency-Key': request_key},
        **self._options(),
      )  # fmt: skip
    except self._openai.APIStatusError as error:
      raise self._of_status(error) from None
    except self._openai.APITimeoutError as error:
      sent = type(error.__cause__).__name__ not in _UNSENT
      raise Retry(f'no reply within {self._endpoint.timeout:g} s', None, charged=sent, sent=sent) from None
    except self._openai.APIConnectionError as error:
      sent = type(error.__cause__).__name__ not in _UNSENT
      why = self._redacted(f'{error} {error.__cause__ or ""}')
      raise Retry(why, None, charged=sent, sent=sent) from None
    except ValueError as error:  # The body is no JSON.
      raise Retry(self._redacted(f'the reply is no JSON ({error})'), None, charged=True) from None
    try:
      return self._masked(_read(completion))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
      why = self._redacted(f'the reply is not a chat completion ({error})')
      raise Retry(why, None, charged=True) from None

  def _options(self) -> dict[str, Any]:
    endpoint = self._endpoint
    # OpenAI's newer models refuse max_tokens, and many servers know nothing else.
    length = 'max_completion_tokens' if endpoint.base_url is None else 'max_tokens'
    options: dict[str, Any] = {'model': endpoint.model, length: endpoint.max_length}
    options |= {} if endpoint.temperature is None else {'temperature': endpoint.temperature}
    return options | ({'logprobs': True, 'top_logprobs': _TOP} if endpoint.soft else {})

  def _of_status(self, error: Any) -> Exception:
    """What an answer with an error's status means."""
    status, text = error.status_code, self._redacted(f'HTTP {error.status_code}: {error.message}')
    if status in (401, 403, 404):
      return UsageError(
        f'the endpoint {self._endpoint.base_url or OPENAI} answered {text}. Check model='
        f'{self._endpoint.model!r} (--set JUDGE_MODEL=...), base_url= (--set BASE_URL=...) and the key in '
        f'{self._endpoint.key_variable}.'
      )
    if status in (408, 409, 425, 429) or status >= 500:
      return Retry(text, asked_wait(error.response.headers), charged=False)
    return Refused(text)

  def _redacted(self, text: str) -> str:
    """A text for a file or a log: an endpoint may repeat the key in its errors."""
    return text.replace(self._key, '[key]')[:500] if self._key != 'none' else text[:500]

  def _masked(self, reply: Reply) -> Reply:
    """A reply without the key, which an endpoint may repeat there too; labels stay at their bytes."""
    if len(self._key) < _SECRET:
      return reply

    def masked(text: str) -> str:
      return text.replace(self._key, '*' * len(self._key.encode()))

    labels = [
      label | {'top': {masked(token): logprob for token, logprob in label['top'].items()}}
      for label in reply.labels
    ]
    return reply._replace(text=masked(reply.text), labels=labels)


def _read(completion: Any) -> Reply:
  """A chat completion's reply; raises where it is none."""
  choice, usage = completion.choices[0], completion.usage
  text = choice.message.content
  if text is None:
    text = getattr(choice.message, 'refusal', None) or ''
  if not isinstance(text, str):
    raise TypeError(f'its content is {type(text).__name__}')
  counted = None if usage is None else (int(usage.prompt_tokens), int(usage.completion_tokens))
  return Reply(text, verdicts.label_tokens(_tokens(choice)), counted)


def _tokens(choice: Any) -> Iterator[verdicts.Token]:
  listed = getattr(getattr(choice, 'logprobs', None), 'content', None) or ()
  for entry in listed:
    size = len(entry.token.encode()) if entry.bytes is None else len(entry.bytes)
    top = {other.token: float(other.logprob) for other in entry.top_logprobs or ()}
    yield verdicts.Token(entry.token, size, top)


def asked_wait(headers: Mapping[str, str]) -> float | None:
  """The seconds that Retry-After asks for, as a number or a date; `None` where it asks for none.

  Raises:
    Failed: they are too many to wait.
  """
  if text := headers.get('retry-after-ms'):
    seconds = _number(text)
    seconds = None if seconds is None else seconds / 1000
  else:
    text = headers.get('retry-after', '')
    seconds = _number(text)
    if seconds is None and text:
      try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
      except (TypeError, ValueError):
        seconds = None
  if seconds is not None and seconds > _PATIENCE:
    raise Failed(
      f'the endpoint asks to wait {seconds / 60:.0f} minutes. All replies so far are saved: run the same '
      'command again then.'
    )
  return None if seconds is None else max(seconds, 0.0)


def _number(text: str) -> float | None:
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def back_off(attempt: int, request_key: str) -> float:
  """Seconds to wait after the attempt of a number from 0: doubled each time, spread so that requests part."""
  spread = 0.5 + int(request_key[:8], 16) / 2**33
  return min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * spread
