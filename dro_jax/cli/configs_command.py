"""What `dro_jax configs` answers, from texts: packaged files, one configuration, or two side by side."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dro_jax.configs import files, parameters, table, text
from dro_jax.errors import UsageError
from dro_jax.printing import result

Known = Mapping[str, Mapping[str, parameters.Parameter]]


def listed(packaged: pathlib.Path, words: Sequence[str], summaries: Mapping[str, str]) -> result.Sections:
  """`configs list [FOLDER]`: the packaged files, each with its first sentence.

  Args:
    packaged: the gin files' folder.
    words: a folder of it, or none.
    summaries: what each command does.

  Raises:
    UsageError: there is no such folder, or there are several.
  """
  if len(words) > 1:
    raise UsageError(
      f'configs list takes one folder, not {" ".join(words)!r}: `dro_jax configs list algorithms`'
    )
  rows = files.listing(packaged, words[0] if words else '', summaries)
  by_folder = {}
  for row in rows:
    by_folder.setdefault(str(pathlib.PurePath(row['file']).parent), []).append(row)
  return result.Sections({'folder': str(packaged), 'files': rows}, by_folder)


def shown(
  bindings: Iterable[text.Binding], roots: Sequence[str], known: Known, remedy: Callable[[str], str]
) -> result.Sections:
  """`configs show`: see `configs.table.table`."""
  found = table.table(text.collect(bindings), roots, known, remedy)
  titles = {name: name.replace('_', ' ').capitalize() for name in found}
  return result.Sections(found, {titles[name]: list(map(_in_words, rows)) for name, rows in found.items()})


def _in_words(row: Mapping[str, Any]) -> dict[str, str]:
  over = row['overrode']
  origin = row['origin'] + (f' (over {over["value"]}, {over["origin"]})' if over else '')
  return {'setting': row['setting'], 'value': row['value'], 'origin': origin, 'meaning': row['meaning']}


def compared(
  packaged: pathlib.Path, words: Sequence[str], commands: Iterable[str], known: Callable[[], Known]
) -> result.Sections:
  """`configs diff A B`: what differs, and whether a run of A may be resumed as B.

  Args:
    packaged: the gin files' folder.
    words: two runs' folders, gin files or commands.
    commands: the commands there are.
    known: the parameters of all that gin may bind.

  Raises:
    UsageError: they are not two, or one of them is not there.
  """
  if len(words) != 2:
    raise UsageError(
      f'configs diff takes two runs, files or commands, not {len(words)}: `dro_jax configs diff A B`'
    )
  from dro_jax.run.folder import configs

  a, b = words
  sides = [text.collect(_whole(packaged, name, commands)) for name in words]
  known = known()
  defaults = parameters.defaults_of(known)
  rows = configs.rows(configs.between(*sides, (defaults, defaults)), parameters.effects_of(known))
  possible = all(row['resumable'] for row in rows)
  content = {'a': a, 'b': b, 'resumable': possible, 'differences': rows}
  if not rows:
    return result.Sections(content, {}, f'{a} and {b} do not differ in anything that is read.')
  note = f'A run of {a} {"can" if possible else "cannot"} be resumed as {b}.'
  return result.Sections(content, {'What differs': [_judged(row, a, b) for row in rows]}, note)


def _judged(row: Mapping[str, Any], a: str, b: str) -> dict[str, str]:
  given = [None if text.macro_of(row[side] or '') else row[side] for side in ('a', 'b')]
  values = dict(zip((a, b), (value or 'not set' for value in given)))
  return (
    {'setting': row['setting']}
    | values
    | {'resumable': 'yes' if row['resumable'] else 'no', 'for': row['why']}
  )


def bindings_of(packaged: pathlib.Path, name: str, commands: Iterable[str]) -> list[text.Binding]:
  """Of a run's folder, a command's defaults, or a gin file.

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
  """A few settings mean a run with them: they are laid over the defaults of `train`."""
  bindings = bindings_of(packaged, name, commands)
  whole = files.is_whole(bindings)
  return bindings if whole else [*bindings_of(packaged, 'train', ['train']), *bindings]
