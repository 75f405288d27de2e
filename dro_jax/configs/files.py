"""Locates and reads gin files: packaged ones, a user's own, and those in a run's folder."""

import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dro_jax.configs.renamed import read_saved
from dro_jax.configs.text import Binding, read
from dro_jax.errors import UsageError, did_you_mean

CONFIG = 'config.gin'


def find(name: str, packaged: pathlib.Path, others: Iterable[str] = ()) -> pathlib.Path:
  """Finds a gin file from the current folder, else among the packaged ones; `.gin` may be left out.

  Args:
    name: as typed.
    packaged: the folder of the packaged ones.
    others: other names for the did-you-mean.

  Raises:
    UsageError: there is no such file.
  """
  for path in (pathlib.Path(name).expanduser(), packaged / name, packaged / f'{name}.gin'):
    if path.is_file():
      return path
  names = [str(path.relative_to(packaged)) for path in sorted(packaged.rglob('*.gin'))]
  kind = "command, run's folder or gin file" if others else 'gin file'
  hint = did_you_mean(name, [*names, *others])
  raise UsageError(f'no {kind} {name!r} here or in {packaged}{hint}; `dro_jax configs list` lists the files')


def read_file(path: pathlib.Path, packaged: pathlib.Path) -> Iterator[Binding]:
  """The bindings of a gin file and of the files it includes."""

  def include(name: str) -> tuple[str, str]:
    path = find(name, packaged)
    inside = path.is_relative_to(packaged)
    return path.read_text(encoding='utf-8'), str(path.relative_to(packaged) if inside else path)

  return read(*include(str(path)), include)


def read_run(folder: pathlib.Path, packaged: pathlib.Path) -> Iterator[Binding]:
  """The bindings of a run: its first configuration and later changes; meanings come from packaged files.

  Raises:
    UsageError: the folder keeps no configuration.
  """
  paths = records(folder, CONFIG)
  if not paths:
    inner = [str(path.parent.relative_to(folder)) for path in sorted(folder.glob(f'*/**/{CONFIG}'))[:8]]
    hint = f'; pass one of its stages: {", ".join(inner)}' if inner else "; pass a run's --model_dir"
    raise UsageError(f'{folder} has no {CONFIG}{hint}.')
  meanings: dict[str, str] = {}
  values: dict[str, str] = {}
  for path in paths:
    text = path.read_text(encoding='utf-8')
    meanings = meanings or _meanings(text, packaged)
    for binding in read_saved(text, path.name):
      if values.get(binding.name) != binding.value or not binding.name:
        values[binding.name] = binding.value
        yield binding._replace(meaning=meanings.get(binding.name, ''))


def _meanings(text: str, packaged: pathlib.Path) -> dict[str, str]:
  """The comments of the packaged command whose bindings are most like a text's."""
  names = {binding.name for binding in read_saved(text, CONFIG)}
  commands = [list(read_file(path, packaged)) for path in sorted((packaged / 'runs').glob('*.gin'))]
  alike = max(commands, key=lambda bindings: -len(names ^ {binding.name for binding in bindings}), default=[])
  return {binding.name: binding.meaning for binding in alike if binding.meaning}


def records(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  """NAME, and NAME with the steps at which it changed, in order."""
  stem, _, suffix = name.rpartition('.')
  matches = [
    re.fullmatch(rf'{re.escape(stem)}(?:\.(\d+))?\.{suffix}', path.name) for path in folder.glob('*')
  ]
  steps = sorted((int(match[1] or -1), match[0]) for match in matches if match)
  return [folder / name for _, name in steps]


def listing(packaged: pathlib.Path, under: str, summaries: Mapping[str, str]) -> list[dict[str, Any]]:
  """The packaged files of a folder, '' for all, each with its first sentence.

  Args:
    packaged: the gin files' folder.
    under: a folder in it.
    summaries: of commands, whose files are `runs/COMMAND.gin`.

  Raises:
    UsageError: there is no such folder.
  """
  files = [path.relative_to(packaged) for path in sorted(packaged.rglob('*.gin'))]
  chosen = [path for path in files if not under or path.is_relative_to(under)]
  if not chosen:
    folders = dict.fromkeys(str(path.parent) for path in files)
    raise UsageError(
      f'no folder {under!r} of gin files{did_you_mean(under, folders)}. The folders: {", ".join(folders)}'
    )
  return [{'file': str(path), 'about': _about(packaged, path, summaries)} for path in chosen]


def _about(packaged: pathlib.Path, path: pathlib.Path, summaries: Mapping[str, str]) -> str:
  if path.parts[0] == 'runs' and path.stem in summaries:
    return f'The defaults of `dro_jax {path.stem}`, which {summaries[path.stem]}.'
  return header((packaged / path).read_text(encoding='utf-8'))


def header(gin_text: str) -> str:
  """The first sentence of a gin file's comment, without command lines."""
  lines = itertools.takewhile(lambda line: line.startswith('#'), gin_text.splitlines())
  comments = [line.lstrip('# ') for line in lines]
  text = ' '.join(line for line in comments if not line.startswith('dro_jax '))
  # A sentence does not end after an abbreviation: Sect. 5, App. B, Eq. 15.
  sentence = re.match(r'.*?(?<!Sect)(?<!App)(?<!Eq)(?<!Tab)(?<!Fig)\.(?= [A-Z-])', text)
  return sentence[0] if sentence else text


def is_whole(bindings: Iterable[Binding]) -> bool:
  """Whether these are the defaults of a command or a saved configuration, not just a few settings."""
  return any(binding.name.endswith('.model_dir') for binding in bindings)
