"""The documentation site: `make docs` builds it, with warnings as errors.

Pages are Markdown. A line `<!-- generated: NAME -->` in a page is replaced by a table that a function below
makes of the code (the settings, the commands, the experiments), so that no page repeats what the code says.
"""

import importlib
import inspect
import pathlib
import re
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'docs')]

project = 'dro_jax'
author = 'the dro_jax authors'
copyright = 'the dro_jax authors, Apache-2.0'
release = re.search(r"^__version__ = '(.+)'$", (ROOT / 'dro_jax/__init__.py').read_text(), re.M)[1]

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
templates_path = []

html_theme = 'sphinx_book_theme'
html_title = 'dro_jax'
html_static_path = ['_static']
html_css_files = ['site.css']
html_theme_options = {
  'show_navbar_depth': 1,
  'show_toc_level': 2,
  'use_download_button': False,
  'navbar_persistent': [],
}

myst_enable_extensions = ['deflist']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # The tests run the examples; a build reads them.

smartquotes = False  # They would join the two dashes of a flag.
default_role = 'code'  # Docstrings here put names in single backquotes.
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
napoleon_use_rtype = False


# --- generated parts ----------------------------------------------------------------------------------------


def settings(command: str) -> str:
  """The settings in a command's packaged gin file; those of `train` stand on a page of their own."""
  text = (ROOT / 'gin_configs/runs' / f'{command}.gin').read_text(encoding='utf-8')
  rows = re.findall(r'^([A-Z][A-Z0-9_]*) *= *(.*?) *(?:# *(.*))?$', text, re.MULTILINE)
  body = [f'| `{name}` | `{default}` | {_cell(meaning)} |' for name, default, meaning in rows]
  return '\n'.join(['| setting | default | meaning |', '| --- | --- | --- |', *body, '']) if rows else ''


def settings_of_a_run() -> str:
  """The settings of a run, from the dataclasses of RunSpec."""
  import settings_page

  return settings_page.page()


def _cell(text: str) -> str:
  return text.replace('|', '\\|').replace('<', '&lt;').replace('*', '\\*')


def commands() -> str:
  """Every command: its summary, its flags, and its own settings."""
  from dro_jax.cli import help as usage
  from dro_jax.cli import tables

  parts = []
  for name, command in tables.COMMANDS.items():
    text = usage.default_text(name, tables.GIN_CONFIGS)
    flags = [flag for flag, about in tables.FLAGS.items() if usage.reads(text, about.macro)]
    bare = [f'Arguments without a flag are read as `--{command.bare}`.'] if command.bare else []
    rows = [f'| `--{flag}` | {_cell(tables.FLAGS[flag].help)} |' for flag in flags]
    table = ['| flag | meaning |', '| --- | --- |', *rows] if rows else []
    parts += [f'## {name}', '', f'`dro_jax {name}` {_cell(command.summary)}.', '', *bare, '', *table, '']
    if command.usage:
      parts += ['```text', *(line for line in command.usage if line), '```', '']
    if name == 'train':
      parts += ['Its settings have [a page of their own](settings.md).', '']
    elif text and (own := settings(name)):
      inherits = "include 'runs/train.gin'" in (ROOT / f'gin_configs/runs/{name}.gin').read_text()
      parts += ['Its settings, beside those of `train`:' if inherits else 'Its settings:', '', own, '']
  return '\n'.join(parts)


def experiments(folder: str) -> str:
  """The experiments of a paper: every gin file's own header, field by field."""
  parts = []
  for path in sorted((ROOT / 'gin_configs/experiments' / folder).glob('*.gin')):
    title, fields = _header(path)
    name = path.relative_to(ROOT / 'gin_configs')
    parts += [f'### {path.parent.name}/{path.name}', '', f'{_cell(title)} (`--gin_file={name}`)', '']
    for field, lines in fields.items():
      if field == 'Command':
        parts += [*_commands_of(lines)]
      else:
        parts += [f'**{field}.** {_cell(" ".join(lines))}', '']
  return '\n'.join(parts)


_FIELDS = ('Paper', 'Table', 'Command', 'Expect', 'Hours', 'Hardware', 'Stated', 'Ours')


def _header(path: pathlib.Path) -> tuple[str, dict[str, list[str]]]:
  """What an experiment's opening comment says: its title, and its fields."""
  title, fields, field = [], {}, None
  for line in path.read_text(encoding='utf-8').splitlines():
    if not line.startswith('#'):
      break
    text = line.lstrip('#').strip()
    if match := re.match(rf'({"|".join(_FIELDS)}):(.*)', text):
      field, text = match[1], match[2].strip()
      fields[field] = []
    (title if field is None else fields[field]).append(text)
  return ' '.join(title), {name: [line for line in lines if line] for name, lines in fields.items()}


def _commands_of(lines: list[str]) -> list[str]:
  """Commands as shell, with the remarks between them as comments."""
  return ['```sh', *(line if line.startswith('dro_jax ') else f'# {line}' for line in lines), '```', '']


def job_fields(backend: str) -> str:
  """The fields of a launch backend's job, as its `spec` lists and explains them."""
  text = (ROOT / 'launch/backends' / f'{backend}.py').read_text(encoding='utf-8')
  pattern = r'^  job\.(?!backend)(\w+) = (?:\(\n +)?(.+?)(?:  # (.+))?$'
  rows = [
    f'| `--job.{name}` | `{value}` | {_cell(meaning)} |'
    for name, value, meaning in re.findall(pattern, text, re.M)
  ]
  return '\n'.join(['| field | default | meaning |', '| --- | --- | --- |', *rows])


def papers() -> str:
  """Every loss by the paper that its docstring cites first."""
  from dro_jax import losses

  by_paper: dict[str, list[str]] = {}
  for name in losses.__all__:
    if cited := re.search(r'arXiv (\d{4}\.\d{5})', inspect.getdoc(getattr(losses, name))):
      by_paper.setdefault(cited[1], []).append(f'`{name}`')
  rows = [
    f'| [{paper}](https://arxiv.org/abs/{paper}) | {", ".join(names)} |' for paper, names in by_paper.items()
  ]
  return '\n'.join(['| paper | losses |', '| --- | --- |', *sorted(rows)])


def algorithm_list(module: str) -> str:
  """Autodoc's directives for the public functions of a module, in its own order."""
  own = importlib.import_module(module)
  names = [name for name in own.__all__ if callable(getattr(own, name))]
  directives = [f'.. autofunction:: {module}.{name}' for name in names]
  return '\n'.join(['```{eval-rst}', *directives, '```'])


GENERATED: dict[str, Callable[..., str]] = {
  'settings': settings_of_a_run, 'commands': commands, 'experiments': experiments, 'autodoc': algorithm_list,
  'job': job_fields, 'papers': papers,
}  # fmt: skip


def expand(text: str) -> str:
  """A page with its generated parts in place."""
  pattern = re.compile(r'^<!-- generated: (\w+) ?(\S*) -->$', re.MULTILINE)
  return pattern.sub(lambda match: GENERATED[match[1]](*filter(None, [match[2]])), text)


# --- docstrings ---------------------------------------------------------------------------------------------


def literal_equations(lines: list[str]) -> list[str]:
  """A docstring whose displayed equations, indented by two, are literal blocks of reStructuredText."""
  text = inspect.cleandoc('\n'.join(lines))
  paragraphs = re.split(r'\n\n', text)
  return '\n\n'.join(map(_as_literal, paragraphs)).split('\n')


def _as_literal(paragraph: str) -> str:
  first = paragraph.split('\n')[0]
  is_section = re.match(r'(Args|Returns|Raises|Attributes|Yields):$', first)
  is_equation = re.match(r'[\w₀-₉()*\', ]{1,24} = \S', first) and not is_section
  if not is_equation:
    # A bar opens a substitution, except within quotes.
    return re.sub(r'(`[^`]*`)|\|', lambda match: match[1] or '\\|', paragraph)
  return '::\n\n' + '\n'.join(f'  {line}' for line in paragraph.split('\n'))


def setup(app) -> dict:
  def read(app, docname: str, source: list[str]) -> None:
    source[0] = expand(source[0])

  def docstring(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = literal_equations(lines)

  app.connect('source-read', read)
  app.connect('autodoc-process-docstring', docstring, priority=100)
  return {'parallel_read_safe': True}
