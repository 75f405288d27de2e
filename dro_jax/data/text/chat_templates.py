"""The chat templates that models bring: conversations as they write them, by Jinja, in a process of its own.

Where a turn's text holds the name of a control token, such as <|im_end|>, a mark is put behind the name's
first letter before the template is rendered. So a control token without a mark is the template's own, and
what a user typed stays text (see `encoders`).
"""

import atexit
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax import files
from dro_jax.data.text.chat import Turn
from dro_jax.data.text.encoders import any_of
from dro_jax.errors import UsageError, shown

SECONDS = 20.0  # A batch of conversations takes a small part of a second.
_BATCH = 256  # Conversations.
_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'jinja_worker.py')
_PRIVATE = range(0xE000, 0xF900)  # Characters without a meaning: those that no text holds can be marks.


class ChatTemplate(NamedTuple):
  """A model's template of conversations.

  Attributes:
    source: in Jinja.
    variables: names of special tokens that it may write, such as bos_token.
    control: names of the tokens that a user's text must not turn into.
    end: the name of the token that ends the model's turn.
    encode: (texts that the template wrote, mark) to ids.
  """

  source: str
  variables: Mapping[str, str]
  control: tuple[str, ...]
  end: str
  encode: Callable[[Sequence[str], str], list[np.ndarray]]


class Rendered(NamedTuple):
  """A conversation's text with marks, or the reason why the template does not write it."""

  text: str
  problem: str = ''


class Job(NamedTuple):
  """A conversation to render, and whether the text ends where the model is to answer."""

  turns: Sequence[Turn]
  asks: bool


def render(template: ChatTemplate, jobs: Sequence[Job]) -> tuple[list[Rendered], str]:
  """Conversations as a template writes them, and the mark in them; '' where nothing is marked.

  Raises:
    UsageError: the template takes longer than SECONDS for a batch.
  """
  contents, control = [turn.content for job in jobs for turn in job.turns], any_of(template.control)
  mark = _unused([*contents, *template.control]) if any(map(control.search, contents)) else ''
  plain = [([_plain(turn, template.control, mark) for turn in job.turns], job.asks) for job in jobs]
  rendered: list[Rendered] = []
  for start in range(0, len(plain), _BATCH):
    batch = {'template': template.source, 'variables': dict(template.variables), 'seconds': SECONDS + 1}
    answers = _WORKER.ask(batch | {'jobs': plain[start : start + _BATCH]})
    rendered += [Rendered(answer.get('text', ''), answer.get('error', '')) for answer in answers]
  return rendered, mark


def _plain(turn: Turn, control: Collection[str], mark: str) -> dict[str, str]:
  return {'role': turn.role, 'content': marked(turn.content, control, mark)}


def _unused(texts: Sequence[str]) -> str:
  """A character that no text holds."""
  used = set().union(*texts)
  return next(chr(point) for point in _PRIVATE if chr(point) not in used)


def marked(text: str, control: Collection[str], mark: str) -> str:
  """A text with the mark behind the first letter of every name in it, also where names overlap."""
  return re.sub(f'(?={any_of(control).pattern}).', rf'\g<0>{mark}', text, flags=re.DOTALL) if mark else text


def checked(rendered: Rendered, where: str) -> str:
  """The text, or a UsageError that says where the template does not write a conversation."""
  if rendered.problem:
    raise UsageError(
      f"{where}the model's chat template does not take this conversation ({rendered.problem}): change or "
      "remove the record, or pass --set CHAT=false to write prompts without the model's template"
    )
  return rendered.text


def response_text(prompt: str, whole: str, end: str, where: str) -> str:
  """What a template writes for a response: the rest behind the prompt, to the end of the model's turn.

  Args:
    prompt: as the template writes it where the model is to answer.
    whole: the prompt with its response.
    end: the name of the token that ends a turn; it follows where the template does not write it.
    where: for errors.

  Raises:
    UsageError: the template writes the prompt otherwise where a response follows.
  """
  if not whole.startswith(prompt):
    place = next((i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b), len(whole))
    raise UsageError(
      f"{where}the model's chat template writes a prompt otherwise when its response follows: from letter "
      f'{place} on it writes {shown(prompt[place:])} before an answer, and {shown(whole[place:])} with one. '
      'The policy would be trained on other prompts than it answers: change the template '
      "(chat_template.jinja), or pass --set CHAT=false to write prompts without the model's template"
    )
  return whole[len(prompt) :].partition(end)[0] + end


# --- the worker ---------------------------------------------------------------------------------------------


class _Worker:
  """A process that renders templates, for one process of ours."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._process: subprocess.Popen[bytes] | None = None
    self._owner: int | None = None
    self._left: subprocess.Popen[bytes] | None = None

  def ask(self, batch: Mapping[str, Any]) -> list[dict[str, str]]:
    """A batch's answers; starts the process where there is none, and ends it where it takes too long."""
    with self._lock:
      if self._owner != os.getpid() or self._process.poll() is not None:
        self._start()
      try:
        line = self._answer(files.json_text(batch).encode() + b'\n')
      except BaseException:
        self.stop()
        raise
    return json.loads(line)

  def _start(self) -> None:
    self._leave()
    command = [sys.executable, '-P', _SCRIPT]
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd='/')
    self._owner = os.getpid()

  def _answer(self, request: bytes) -> bytes:
    deadline = time.monotonic() + SECONDS
    answer = bytearray()
    try:
      self._process.stdin.write(request)
      self._process.stdin.flush()
      while not answer.endswith(b'\n'):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
          raise TimeoutError
        chunk = os.read(self._process.stdout.fileno(), 2**20)
        if not chunk:
          raise BrokenPipeError
        answer += chunk
    except (TimeoutError, BrokenPipeError) as error:
      reason = f'took longer than {SECONDS:g} s' if isinstance(error, TimeoutError) else 'ended its process'
      raise UsageError(
        f"the model's chat template {reason} for a batch of conversations: it may be faulty or hostile. Look "
        "at chat_template.jinja, or pass --set CHAT=false to write prompts without the model's template"
      ) from error
    return bytes(answer)

  def stop(self) -> None:
    """Ends the process, if this process of ours started it."""
    if self._process is not None and self._owner == os.getpid():
      self._process.kill()
      self._process.wait()
      self._leave()

  def _leave(self) -> None:
    """Closes our ends of the pipes: a forked process leaves its parent's worker to the parent."""
    if self._process is not None:
      for pipe in (self._process.stdin, self._process.stdout):
        with contextlib.suppress(OSError):
          pipe.close()
    # Kept, because Python warns of a process that it forgets while it runs.
    self._left, self._process, self._owner = self._process, None, None


_WORKER = _Worker()
atexit.register(_WORKER.stop)
