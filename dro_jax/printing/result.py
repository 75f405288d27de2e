"""A command's result on standard output: JSON, tables, or lines."""

import io
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dro_jax import files
from dro_jax.errors import did_you_mean


class Shown(dict[str, Any]):
  """Plain values, which may be read as attributes, and which show themselves in a terminal and a notebook."""

  def __getattr__(self, name: str) -> Any:
    if name in self:
      return self[name]
    raise AttributeError(f'no {name!r} here{did_you_mean(name, self)}')

  def __rich__(self) -> Any:
    raise NotImplementedError

  def _repr_html_(self) -> str:
    return to_html(self)


class Sections(Shown):
  """Lists of rows, by their titles, which show themselves as one table.

  Args:
    content: what JSON has.
    rows: texts by column, by title.
    note: a line below.
    verbatim: a text after all, to be copied: never folded.
  """

  def __init__(
    self,
    content: Mapping[str, Any],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    note: str = '',
    verbatim: str = '',
  ):
    super().__init__(content)
    self._rows, self._note, self.verbatim = rows, note, verbatim

  def __rich__(self) -> Any:
    from rich import console, text

    from dro_jax.printing import tables

    shown = {title: tables.listing(rows) for title, rows in self._rows.items() if rows}
    parts = [part for title, rows in shown.items() for part in (text.Text(f'\n{title}', style='bold'), rows)]
    return console.Group(*parts, *([text.Text(f'\n{self._note}')] if self._note else []))


class Report(Shown):
  """Plain values, which show themselves as several tables.

  Args:
    content: what JSON has.
    shown: the tables (`printing.tables.Table`).
  """

  def __init__(self, content: Mapping[str, Any], shown: Sequence[Any]):
    super().__init__(content)
    self._shown = list(shown)

  def __rich__(self) -> Any:
    from rich import console

    from dro_jax.printing import tables

    return console.Group(*map(tables.for_terminal, self._shown))

  def save(self, folder: pathlib.Path, name: str, title: str, below: str = '') -> None:
    """Writes NAME.json, and NAME.md with a title above the tables and a text below them."""
    from dro_jax.printing import tables

    folder.mkdir(parents=True, exist_ok=True)
    text = files.json_text(self, indent=2, ensure_ascii=False) + '\n'
    files.write_atomically(folder / f'{name}.json', text)
    body = '\n'.join(map(tables.for_markdown, self._shown))
    files.write_atomically(folder / f'{name}.md', f'# {title}\n\n{body}{below}')


_PAGE = '<pre style="line-height: 1.3; white-space: pre; overflow-x: auto">{code}</pre>'


def to_html(shown: Any, width: int = 160) -> str:
  """Something that rich shows, as HTML for a notebook.

  Args:
    shown: see `Sections`.
    width: characters of a line.
  """
  from rich.console import Console

  console = Console(file=io.StringIO(), record=True, width=width, highlight=False, force_jupyter=False)
  console.print(shown)
  text = console.export_html(inline_styles=True, code_format=_PAGE)
  return '\n'.join(line.rstrip() for line in text.splitlines())


def print_result(result: Any, *, as_json: bool) -> None:
  """Prints what a command returned, if it returned anything."""
  if not result:
    return
  if as_json:
    print(files.json_text(result, default=str))
  elif hasattr(result, '__rich__'):
    _print_rich(result)
  else:
    _print_table(result)


def _print_rich(result: Any) -> None:
  from rich.console import Console

  # What is piped has no width of its own.
  width = None if sys.stdout.isatty() else 200
  Console(file=sys.stdout, highlight=False, width=width).print(result)
  if verbatim := getattr(result, 'verbatim', ''):
    print(f'\n{verbatim}')


def _print_table(result: Mapping[str, Any]) -> None:
  from dro_jax.printing import tables

  rows = [
    {'': name, ' ': f'{value:.6g}' if isinstance(value, float) else str(value)}
    for name, value in _flat(files.to_json(result))
  ]
  _print_rich(tables.listing(rows))


def _flat(result: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in result.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{name}/')
    else:
      yield prefix + name, value
