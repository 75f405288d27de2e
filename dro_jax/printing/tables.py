"""Tables, for a terminal, for Markdown and for JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box, markup
from rich import table as rich_tables
from rich import text as rich_text

from dro_jax.statistics.bootstrap import Estimate


class Table(NamedTuple):
  """Rows of values by column: numbers, texts, `Estimate`s (a value and its interval), or None."""

  title: str
  rows: Sequence[Mapping[str, Any]]
  note: str = ''

  @property
  def columns(self) -> list[str]:
    return list(dict.fromkeys(name for row in self.rows for name in row))

  def column(self, name: str) -> list[Any]:
    return [row.get(name) for row in self.rows]


def text(value: Any) -> str:
  """A table's entry."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return '–'
  if isinstance(value, Estimate):
    low, high = text(value.low), text(value.high)
    return text(value.value) + ('' if low == high == '–' else f' [{low}, {high}]')
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, float):
    return _number(value)
  return str(value)


def _number(value: float) -> str:
  if value != 0 and not 1e-4 <= abs(value) < 1e5:
    return f'{value:.2e}'
  shown = f'{value:.4f}' if abs(value) < 1 else f'{value:.4g}'
  return shown.replace('-', '−')


def for_terminal(table: Table, emphasised: str | None = None) -> rich_tables.Table:
  """The table as rich prints it, numbers to the right; the row that starts with `emphasised` is bold."""
  shown = rich_tables.Table(title=f'\n{table.title}', caption=markup.escape(table.note), box=box.SIMPLE_HEAD)
  for name in table.columns:
    has_texts = any(isinstance(value, str) and not value[:1].isdigit() for value in table.column(name))
    shown.add_column(name, justify='left' if has_texts else 'right', no_wrap=True)
  for row in table.rows:
    style = 'bold' if row.get(table.columns[0]) == emphasised else None
    shown.add_row(*(markup.escape(text(row.get(name))) for name in table.columns), style=style)
  return shown


def listing(rows: Sequence[Mapping[str, Any]]) -> rich_tables.Table:
  """Rows of texts as rich prints them, without borders; long texts fold, and no names make no header."""
  columns = Table('', rows).columns
  has_names = any(map(str.strip, columns))
  shown = rich_tables.Table(box=None, header_style='bold', pad_edge=False, show_header=has_names)
  for name in columns:
    shown.add_column(name, overflow='fold')
  for row in rows:
    values = map(row.get, columns)
    shown.add_row(*(rich_text.Text('' if value is None else str(value)) for value in values))
  return shown


def for_markdown(table: Table) -> str:
  """The table as Markdown."""
  lines = [table.columns, ['---'] * len(table.columns)]
  lines += [[text(row.get(name)) for name in table.columns] for row in table.rows]
  body = '\n'.join('| ' + ' | '.join(entry.replace('|', '\\|') for entry in line) + ' |' for line in lines)
  return f'## {table.title}\n\n{body}\n' + (f'\n{table.note}\n' if table.note else '')


def for_json(table: Table) -> dict[str, Any]:
  """The table as plain values; an estimate has `value`, `low` and `high`."""

  def entry(value: Any) -> Any:
    return value._asdict() if isinstance(value, Estimate) else value

  rows = [{name: entry(value) for name, value in row.items()} for row in table.rows]
  return {'title': table.title, 'rows': rows, 'note': table.note}
