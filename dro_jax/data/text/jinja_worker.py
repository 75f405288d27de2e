"""Renders chat templates in a process of its own: a script, which `chat_templates` starts.

Templates are programs from the internet. Jinja's sandbox keeps them from Python's insides, and this process
has nothing else: it opens no further file or connection, takes little memory, and ends itself when a batch
takes longer than it may. A line of JSON on standard input is a batch; a line on standard output answers it.
"""

import datetime
import functools
import json
import pprint  # noqa: F401
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.debug
import jinja2.ext
import jinja2.sandbox

# A template that writes the date writes this one: tokens must not depend on the day when a table is built.
TODAY = datetime.datetime(2024, 7, 26)
_LONGEST = 2**24  # Letters of a conversation that a template may write.
_MEMORY = 2**31  # Bytes.
# Python and Jinja load some of their parts when they are first used, and then no file can be opened any more.
_WARM_UP = (
  "{% for turn in messages %}{{ 'a\\n' + turn['role'] | trim }}{% endfor %}{{ messages | tojson }}"
  "{{ strftime_now('%d %b %Y') }}{{ messages | pprint }}{% generation %}{{ raise_exception('') }}"
  '{% endgeneration %}'
)


class _Generation(jinja2.ext.Extension):
  """{% generation %} ... {% endgeneration %}, which marks a response for other programs."""

  tags = {'generation'}

  def parse(self, parser: Any) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    return jinja2.nodes.Scope(parser.parse_statements(('name:endgeneration',), drop_needle=True)).set_lineno(
      line
    )


class _Dict:
  """`dict(...)` for templates, without the class."""

  def __call__(self, *args: Any, **items: Any) -> dict[str, Any]:
    return dict(*args, **items)

  def fromkeys(self, *args: Any) -> dict[str, Any]:
    return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
  """`namespace(...)` for templates, without names that begin with an underscore."""

  def __init__(*args: Any, **items: Any):  # `self` may be a name in it.
    self, values = args[0], dict(*args[1:], **items)
    for name in values:
      _check_name(name)
    jinja2.utils.Namespace.__init__(self, values)

  def __setitem__(self, name: str, value: Any) -> None:
    _check_name(name)
    jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
  if isinstance(name, str) and name.startswith('_'):
    raise jinja2.exceptions.SecurityError(f'a namespace cannot hold {name!r}')


def _raise(message: str) -> None:
  raise jinja2.exceptions.TemplateError(message)


def _to_json(
  value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
  """A template with what transformers offers to templates."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )
  environment.filters['tojson'] = _to_json
  del environment.globals['lipsum']
  environment.globals.update(
    raise_exception=_raise, strftime_now=TODAY.strftime, dict=_Dict(), namespace=_Namespace
  )
  return environment.from_string(source)


def render(batch: Mapping[str, Any]) -> list[dict[str, str]]:
  """Renders a batch: for each conversation {'text': ...}, or {'error': ...} where the template fails."""
  return [_rendered(batch['template'], batch['variables'], *job) for job in batch['jobs']]


def _rendered(
  source: str, variables: Mapping[str, str], turns: Sequence[Mapping[str, str]], asks: bool
) -> dict[str, str]:
  try:
    values = {'tools': None, 'documents': None, **variables, 'messages': turns}
    text = compiled(source).render(values, add_generation_prompt=asks)
    if len(text) > _LONGEST:
      raise jinja2.exceptions.TemplateError(f'it writes {len(text)} letters, more than {_LONGEST}')
    return {'text': text}
  except Exception as error:  # A template may raise anything.
    return {'error': f'{type(error).__name__}: {error}'[:1000]}


def _confine() -> None:
  """Leaves the process what it needs; on systems without these limits the sandbox alone remains."""
  render({'template': _WARM_UP, 'variables': {}, 'jobs': [([{'role': 'user'}], True)]})
  try:
    import resource
  except ImportError:
    return
  opened = 3  # Standard input, output and error.
  for limit, value in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_NOFILE, opened)):
    try:
      resource.setrlimit(limit, (value, value))
    except (OSError, ValueError):
      continue


def serve(lines: Any, write: Callable[[str], Any]) -> None:
  """Answers each line of JSON with a line of JSON."""
  for line in lines:
    batch = json.loads(line)
    if hasattr(signal, 'setitimer'):  # Its default action ends the process, whatever the template does.
      signal.setitimer(signal.ITIMER_REAL, batch['seconds'])
    write(json.dumps(render(batch)) + '\n')
    if hasattr(signal, 'setitimer'):
      signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
  _confine()

  def write(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()

  serve(sys.stdin, write)


if __name__ == '__main__':
  main()
