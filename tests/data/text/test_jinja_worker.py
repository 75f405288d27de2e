"""What a chat template may do, and may not; `serve` runs here, the process itself in test_chat_templates."""

import datetime
import json

import pytest
from transformers.utils import chat_template_utils as theirs

from dro_jax.data.text import jinja_worker

TURNS = [
  {'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': ' "Hi" <b>é</b> '},
  {'role': 'assistant', 'content': 'Yes'},
]  # fmt: skip


def rendered(template: str, **variables) -> dict[str, str]:
  [answer] = jinja_worker.render({'template': template, 'variables': variables, 'jobs': [(TURNS, True)]})
  return answer


@pytest.mark.parametrize(
  'template',
  [
    '{% for t in messages %}\n  {% if t.role == "system" %}\nS\n  {% endif %}\n{{ t.content }}\n{% endfor %}',
    '{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}',
    '{% for t in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ t.content }}{% endfor %}',
    '{% for t in messages %}{% if loop.first %}{% continue %}{% endif %}{{ t.content }}{% endfor %}',
    '{% for t in messages %}{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}',
    '{% set n = namespace(k=0, self=2) %}{% for t in messages %}{% set n.k = n.k + 1 %}{% endfor %}{{ n.k }}',
    '{{ dict(a=1).a }} {{ dict.fromkeys(["k"]) }} {{ bos_token }} {{ tools is none }}',
    '{{ add_generation_prompt }}{{ unknown }}{{ messages[-1]["content"].upper() }}',
    '{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(messages[1].content) }}',
  ],
)
def test_templates_write_what_they_write_in_transformers(template):
  expected, _ = theirs.render_jinja_template(
    [TURNS], chat_template=template, add_generation_prompt=True, bos_token='<s>'
  )
  assert rendered(template, bos_token='<s>') == {'text': expected[0]}


def test_the_date_is_the_same_every_day():
  assert rendered("{{ strftime_now('%d %b %Y') }}") == {'text': '26 Jul 2024'}
  assert datetime.datetime.now() > jinja_worker.TODAY


@pytest.mark.parametrize(
  'template, message',
  [
    ("{{ raise_exception('No tools here.') }}", 'No tools here.'),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 'SecurityError'),
    ('{{ messages.append.__self__ }}', 'SecurityError'),
    ('{{ raise_exception.__globals__.x }}', 'SecurityError'),
    ('{{ strftime_now.__self__.x }}', 'SecurityError'),
    ('{{ messages.append(1) }}', 'SecurityError'),
    ('{{ messages[0].update(role="user") }}', 'SecurityError'),
    ('{% set ns = namespace(__class__=1) %}', 'SecurityError'),
    ('{% set ns = namespace() %}{% set ns.__init__ = 1 %}', 'SecurityError'),
    ('{{ lipsum() }}', 'UndefinedError'),
    ('{{ nothing.at.all }}', 'UndefinedError'),
    ('{% for turn in messages %}', 'TemplateSyntaxError'),
    ('{{ range(1000000) | length }}', 'OverflowError'),
    ("{{ 'a' * 20000000 }}", 'it writes 20000000 letters'),
    ('{% include "/etc/passwd" %}', 'TypeError: no loader'),
  ],
)
def test_a_template_that_fails_or_reaches_out_gives_its_reason(template, message):
  assert message in rendered(template)['error']


def test_lines_are_answered_by_lines():
  written = []
  batch = {'template': '{{ messages[0].content }}\n', 'variables': {}, 'seconds': 60}
  jobs = [([{'role': 'user', 'content': text}], False) for text in ('a\nb', '\u2028')]
  jinja_worker.serve([json.dumps(batch | {'jobs': jobs}), json.dumps(batch | {'jobs': []})], written.append)
  assert [json.loads(line) for line in written] == [[{'text': 'a\nb'}, {'text': '\u2028'}], []]
  assert all(line.count('\n') == 1 for line in written)
