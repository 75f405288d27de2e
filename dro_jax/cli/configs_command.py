"""The results of `dro_jax configs`: packaged files, one configuration, or two side by side."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dro_jax.configs import files, parameters, table, text
from dro_jax.errors import UsageError
from dro_jax.printing import result

Known = Mapping[str, Mapping[str, parameters.Parameter]]


def listed(packaged: pathlib.Path, arguments: Sequence[str], summaries: Mapping[str, str]) -> result.Sections:
  """`configs list [FOLDER]`: the packaged files, each with its first sentence.

  Args:
    packaged: the gin files' folder.
    arguments: one of its folders, or nothing.
    summaries: a description of each command.

  Raises:
    UsageError: the folder does not exist, or several are passed.
  """
  if len(arguments) > 1:
    raise UsageError(
      f'configs list takes one folder, not {" ".join(arguments)!r}: `dro_jax configs list algorithms`'
    )
  rows = files.listing(packaged, arguments[0] if arguments else '', summaries)
  by_folder = {}
  for row in rows:
    by_folder.setdefault(str(pathlib.PurePath(row['file']).parent), []).append(row)
  return result.Sections({'folder': str(packaged), 'files': rows}, by_folder)


def shown(
  bindings: Iterable[text.Binding], roots: Sequence[str], known: Known, remedy: Callable[[str], str]
) -> result.Sections:
  """`configs show`: see `configs.table.table`."""
  tables = table.table(text.collect(bindings), roots, known, remedy)
  titles = {name: name.replace('_', ' ').capitalize() for name in tables}
  return result.Sections(tables, {titles[name]: list(map(_table_row, rows)) for name, rows in tables.items()})


def _table_row(row: Mapping[str, Any]) -> dict[str, str]:
  over = row['overrode']
  origin = row['origin'] + (f' (over {over["value"]}, {over["origin"]})' if over else '')
  return {'setting': row['setting'], 'value': row['value'], 'origin': origin, 'meaning': row['meaning']}


def compared(
  packaged: pathlib.Path, arguments: Sequence[str], commands: Iterable[str], known: Callable[[], Known]
) -> result.Sections:
  """`configs diff A B`: the differences, and whether a run of A may be resumed as B.

  Args:
    packaged: the gin files' folder.
    arguments: two runs' folders, gin files or commands.
    commands: the names of all commands.
    known: the parameters of every configurable.

  Raises:
    UsageError: they are not two, or one of them does not exist.
  """
  if len(arguments) != 2:
    raise UsageError(
      f'configs diff takes two runs, files or commands, not {len(arguments)}: `dro_jax configs diff A B`'
    )
  from dro_jax.run.folder import configs

  a, b = arguments
  sides = [text.collect(_whole(packaged, name, commands)) for name in arguments]
  known = known()
  defaults = parameters.defaults_of(known)
  rows = configs.rows(configs.between(*sides, (defaults, defaults)), parameters.effects_of(known))
  possible = all(row['resumable'] for row in rows)
  content = {'a': a, 'b': b, 'resumable': possible, 'differences': rows}
  if not rows:
    return result.Sections(
      content, {}, f'{a} and {b} have the same value for every setting that a run reads.'
    )
  note = f'A run of {a} {"can" if possible else "cannot"} be resumed as {b}.'
  return result.Sections(content, {'Differences': [_difference_row(row, a, b) for row in rows]}, note)


def _difference_row(row: Mapping[str, Any], a: str, b: str) -> dict[str, str]:
  bound = [None if text.macro_of(row[side] or '') else row[side] for side in ('a', 'b')]
  values = dict(zip((a, b), (value or 'not set' for value in bound)))
  return (
    {'setting': row['setting']}
    | values
    | {'resumable': 'yes' if row['resumable'] else 'no', 'for': row['why']}
  )


def bindings_of(packaged: pathlib.Path, name: str, commands: Iterable[str]) -> list[text.Binding]:
  """The bindings of a run's folder, of a command's defaults, or of a gin file.

  Raises:
    UsageError: there is none of that name.
  """
  folder = pathlib.Path(name).expanduser()
  if name in commands:
    name = f'runs/{name}.gin'
  elif folder.is_dir():
    return list(files.read_run(folder, packaged))
  return list(files.read_file(files.find(name, packaged, commands), packaged))


def _whole(packaged: pathlib.Path, name: str, commands: Iterable[str]) -> list[text.Binding]:
  """The bindings of a configuration; a few settings alone are laid over the defaults of `train`."""
  bindings = bindings_of(packaged, name, commands)
  return bindings if files.is_whole(bindings) else [*bindings_of(packaged, 'train', ['train']), *bindings]
