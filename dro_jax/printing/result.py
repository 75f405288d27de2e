"""A command's result on standard output: JSON, tables, or lines."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dro_jax.files import json_text, to_json


class Sections(dict[str, Any]):
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


def print_result(result: Any, *, as_json: bool) -> None:
  """Prints what a command returned, if it returned anything."""
  if not result:
    return
  if as_json:
    print(json_text(result, default=str))
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
    for name, value in _flat(to_json(result))
  ]
  _print_rich(tables.listing(rows))


def _flat(result: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in result.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{name}/')
    else:
      yield prefix + name, value
