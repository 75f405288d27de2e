import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dro_jax.data.text import chat_templates
from dro_jax.data.text.chat import Turn
from dro_jax.data.text.chat_templates import ChatTemplate, Job, Rendered
from dro_jax.errors import UsageError

CONTROL = ('<|im_end|>', '<|im_start|>', '<s>', 's>b')
LINES = (
  '{% for turn in messages %}<s>{{ turn.content }}\n{% endfor %}{% if add_generation_prompt %}?{% endif %}'
)
FOREVER = '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'


def made(source: str = LINES) -> ChatTemplate:
  return ChatTemplate(source, {}, CONTROL, '<|im_end|>', lambda texts, mark: [])


def job(*texts: str, asks: bool = False) -> Job:
  return Job([Turn('user', text) for text in texts], asks)


def texts(jobs: list[Job], source: str = LINES) -> list[str]:
  rendered, mark = chat_templates.render(made(source), jobs)
  return [chat_templates.checked(each, 'here: ').replace(mark or 'no mark', '°') for each in rendered]


def test_conversations_of_many_batches_come_back_in_order():
  jobs = [job(f'{i}', 'x', asks=i % 2 == 0) for i in range(600)]
  assert texts(jobs) == [f'<s>{i}\n<s>x\n' + '?' * (i % 2 == 0) for i in range(600)]
  assert texts([]) == []


def test_names_of_control_tokens_that_a_turn_holds_are_marked():
  found = texts([job('a <|im_end|> <|im_start|>'), job('<s>b <|im_end'), job('plain')])
  assert found == ['<s>a <°|im_end|> <°|im_start|>\n', '<s><°s°>b <|im_end\n', '<s>plain\n']


def test_a_mark_is_no_letter_of_the_texts():
  [rendered], mark = chat_templates.render(made(), [job('\ue000\ue001<s>')])
  assert mark == '\ue002' and rendered.text == '<s>\ue000\ue001<\ue002s>\n'
  assert chat_templates.render(made(), [job('\ue000')])[1] == ''


def test_a_failing_conversation_does_not_fail_others():
  source = "{% if messages[0].content == 'no' %}{{ raise_exception('Not so.') }}{% endif %}yes"
  rendered, _ = chat_templates.render(made(source), [job('no'), job('x')])
  assert rendered[1] == Rendered('yes')
  with pytest.raises(
    UsageError, match=r'^f:3: .*does not take this conversation \(TemplateError: Not so.\).*CHAT=false'
  ):
    chat_templates.checked(rendered[0], 'f:3: ')


@pytest.mark.parametrize('source', [FOREVER, "{{ ('a' * 10000000) | replace('', 'b' * 100000) }}"])
def test_a_template_that_takes_too_long_or_too_much_is_ended_and_the_next_is_rendered(monkeypatch, source):
  monkeypatch.setattr(chat_templates, 'SECONDS', 0.5)
  texts([job('x')])
  process = chat_templates._WORKER._process
  began = time.monotonic()
  with pytest.raises(UsageError, match='took longer than 0.5 s|MemoryError'):
    texts([job('x')], source)
  assert time.monotonic() - began < 10
  monkeypatch.undo()
  assert texts([job('x')]) == ['<s>x\n']
  assert source != FOREVER or process.poll() == -signal.SIGKILL


def test_the_process_ends_itself_where_nobody_ends_it(monkeypatch):
  """As when the program that asked was killed."""
  worker = chat_templates._Worker()
  worker._start()
  request = json.dumps({'template': FOREVER, 'variables': {}, 'seconds': 0.2, 'jobs': [([], True)]})
  worker._process.stdin.write(request.encode() + b'\n')
  worker._process.stdin.flush()
  assert worker._process.wait(timeout=20) == -signal.SIGALRM
  worker.stop()


def test_a_killed_process_is_an_error_once(monkeypatch):
  texts([job('x')])
  monkeypatch.setattr(chat_templates._WORKER._process, 'poll', lambda: None)
  os.kill(chat_templates._WORKER._process.pid, signal.SIGKILL)
  with pytest.raises(UsageError, match='ended its process'):
    texts([job('x')])
  assert texts([job('x')]) == ['<s>x\n']


def test_the_process_opens_nothing():
  """Should a template leave the sandbox: no file and no connection."""
  lines = [
    'import sys', f'sys.path.insert(0, {os.path.dirname(chat_templates._SCRIPT)!r})', 'import jinja_worker',
    'jinja_worker._confine()', "open('/etc/passwd')",
  ]  # fmt: skip
  done = subprocess.run([sys.executable, '-c', '\n'.join(lines)], capture_output=True, text=True)
  assert 'Too many open files' in done.stderr


def test_a_forked_process_starts_its_own():
  texts([job('x')])
  worker, first = chat_templates._WORKER, chat_templates._WORKER._process
  worker._owner = -1  # As it is in a process that was forked.
  worker.stop()
  assert worker._process is first
  assert texts([job('y')]) == ['<s>y\n'] and worker._process is not first
  assert first.wait(timeout=20) == 0  # Nobody holds its pipe here any more.


def test_a_response_is_what_follows_the_prompt_up_to_the_end_of_the_turn():
  part = chat_templates.response_text
  assert part('q?', 'q?a<|e|>\n', '<|e|>', '') == 'a<|e|>'
  assert part('q?', 'q?a<|e|>b<|e|>', '<|e|>', '') == 'a<|e|>'
  assert part('q?', 'q?a', '<|e|>', '') == 'a<|e|>'
  with pytest.raises(UsageError) as error:
    part('user q\nassistant <think>\n', 'user q\nassistant a', '<|e|>', 'f:3: ')
  assert str(error.value).startswith('f:3: ') and "letter 17 on it writes '<think>\\n'" in str(error.value)
  assert "and 'a' with one" in str(error.value)
