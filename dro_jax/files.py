"""Files as this project reads and writes them: JSON lines, and a user's Python files by what they hold."""

import ast
import contextlib
import errno
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import pathlib
import re
import shutil
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dro_jax.errors import Failed, UsageError

# What other programs (`str.splitlines` among them) take for the end of a line, and half a surrogate pair,
# which UTF-8 cannot hold. JSON escapes the other control characters itself.
_ESCAPED = re.compile('[\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def json_text(value: Any, **options: Any) -> str:
  """A value as JSON that every reader takes: what is not finite is null, for JSON has no NaN.

  All that the package writes as JSON goes through here. `options` are those of `json.dumps`.
  """
  return json.dumps(to_json(value), allow_nan=False, **options)


def json_line(record: Mapping[str, Any]) -> str:
  """A record as one line of JSON, for people and for any reader: only its last character ends a line."""
  text = json_text(record, ensure_ascii=False)
  return _ESCAPED.sub(lambda match: f'\\u{ord(match[0]):04x}', text) + '\n'


def json_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The records of a file of JSON lines. Only a line feed ends a line: texts may hold other separators.

  The last line of a file that is still written, or whose writer was killed, may be torn: it is passed over.

  Raises:
    UsageError: another line is no JSON object.
  """
  lines = path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    record = parsed(line)
    if record is not None:
      yield record
    elif number < len(lines):
      raise UsageError(f'{path}:{number}: the line is no JSON object. Remove the line, or bring back a copy')


def parsed(line: bytes) -> dict[str, Any] | None:
  """The JSON object that a line holds; None where it holds none."""
  try:
    record = json.loads(line)
  except ValueError:  # Bytes that are cut within a character are no UTF-8, which is a ValueError too.
    return None
  return record if isinstance(record, dict) else None


# --- where results go ---------------------------------------------------------------------------------------


def output_file(path: str, flag: str = '--output') -> pathlib.Path:
  """The file for a result, `~` expanded; checks before the work starts that it can be written.

  Its folder may be missing: who writes the file makes it.

  Raises:
    UsageError: nothing can be written there.
  """
  target = pathlib.Path(path).expanduser()
  if '://' in path:
    raise UsageError(f'{flag}={path} is an address, which cannot be written: pass a file on this machine')
  # The file itself is replaced, and not a link to it.
  target = target.resolve() if target.is_symlink() else target
  if not path or target.is_dir():
    raise UsageError(f'{flag}={path} is a folder: pass a file in it, {flag}={target / "NAME"}')
  if target.exists() and not target.is_file():
    raise UsageError(f'{flag}={path} is a pipe or device, which would be replaced: pass a file')
  _refuse_unwritable(target.parent, f'{flag}={path}', 'file')
  return target


def refuse_input(target: pathlib.Path, inputs: Iterable[str]) -> None:
  """Refuses, as a UsageError, to replace one of the files that a result is made of."""
  if target.resolve() in [pathlib.Path(path).resolve() for path in inputs]:
    raise UsageError(f'{target} is among the files to read, and would be replaced: pass another --output.')


def output_folder(path: str | os.PathLike[str], flag: str = '--output') -> pathlib.Path:
  """The folder for a result, new or not, `~` expanded; checks before the work starts that it can be written.

  Raises:
    UsageError: it is no folder, or cannot be made or written to.
  """
  target = pathlib.Path(path).expanduser()
  if '://' in str(path):
    return target
  _refuse_unwritable(target, f'{flag}={path}', 'folder')
  return target


def _refuse_unwritable(folder: pathlib.Path, passed: str, kind: str) -> None:
  """Refuses a folder, new or not, that is none, or that cannot be made or written to."""
  there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
  if not there.is_dir():
    raise UsageError(f'{passed}: {there} is a file and not a folder. Pass another {kind}')
  if not os.access(there, os.W_OK | os.X_OK):
    raise UsageError(f'{passed}: the folder {there} cannot be written to. Pass another {kind}')


# --- a user's Python files ----------------------------------------------------------------------------------


def import_function(text: str, setting: str, wanted: str = 'function') -> Callable[..., Any]:
  """The user's function that FILE.py:NAME or MODULE:NAME names.

  Args:
    text: names it.
    setting: the setting that holds the text, by which errors begin.
    wanted: which function the setting needs, as errors say it.

  Raises:
    UsageError: the text has another form, the module cannot be imported, or it has no such function.
  """
  path, _, name = text.rpartition(':')
  if not path or not name.isidentifier():
    raise UsageError(f'{setting}={text!r} names no function: pass FILE.py:NAME or MODULE:NAME.')
  function: Callable[..., Any] | None = getattr(import_module(path, f'{setting}={text}'), name, None)
  if not callable(function):
    raise UsageError(f'{setting}={text}: {path} has no function {name!r}: pass the name of a {wanted}.')
  return function


def import_module(name: str, setting: str, *, register: bool = False) -> types.ModuleType:
  """Imports a user's module, a dotted name or a .py file.

  Args:
    name: the module.
    setting: the setting that names it, by which errors begin.
    register: keep a file's module in `sys.modules` under the file's name, and import it only once.

  Raises:
    UsageError: there is no such module, or it raises while it is imported: then file and line are named.
  """
  try:
    return _import(name, register)
  except (Exception, SystemExit) as error:
    if isinstance(error, SyntaxError) or _frames(error):
      problem = f'importing {name} raised {raised(error)}. Mend the file.'
    else:
      problem = f'cannot import {name} ({error}): pass a .py file, or a module on the path.'
    raise UsageError(f'{setting}: {problem}') from error


def _import(name: str, register: bool) -> types.ModuleType:
  if not name.endswith('.py'):
    return importlib.import_module(name)
  stem = pathlib.Path(name).stem
  if register and stem in sys.modules:
    return sys.modules[stem]
  spec = importlib.util.spec_from_file_location(stem, os.path.expanduser(name))
  assert spec is not None and spec.loader is not None  # Every .py file has both.
  module = importlib.util.module_from_spec(spec)
  if register:
    sys.modules[stem] = module
  try:
    spec.loader.exec_module(module)
  except BaseException:
    if register:  # Half a module would be taken for the whole one once the file is mended.
      del sys.modules[stem]
    raise
  return module


def raised(error: BaseException) -> str:
  """An error that a user's code raised, with the last file and line of that code which it passed."""
  if isinstance(error, SyntaxError) and error.filename:
    return f'{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})'
  frames = _frames(error)
  place = [frame for frame in frames if _is_users(frame.filename)] or frames
  said, _, _ = str(error).strip().partition('\n')
  return f'{type(error).__name__}: {said} ({place[-1].filename}, line {place[-1].lineno})'


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
  """Where an error passed, outside of Python's import and of this file: nothing if no module was reached."""
  frames = traceback.extract_tb(error.__traceback__)
  python = (__file__, importlib.__file__)
  return [x for x in frames if x.filename not in python and not x.filename.startswith('<frozen ')]


def _is_users(file: str) -> bool:
  """Whether a file is neither installed nor of dro_jax, nor text that was compiled."""
  path = pathlib.Path(file).resolve()
  ours = path.is_relative_to(pathlib.Path(__file__).resolve().parent)
  return not (ours or file.startswith('<') or _is_installed(path))


def code_digest(path: str | os.PathLike[str]) -> str:
  """A hash of a Python file and of the files beside it that it imports, directly or through each other.

  Comments count too. What was installed does not: its versions are recorded with a run.
  """
  first = pathlib.Path(path).expanduser().resolve()
  root = _root(first)
  own = [first] if _is_installed(first) else sorted(_with_imports(first, root), key=str)
  codes = ((file.relative_to(root), file.read_bytes()) for file in own)
  return hash_parts(f'{name} {len(code)}:'.encode() + code for name, code in codes)


def _is_installed(file: pathlib.Path) -> bool:
  places = [sysconfig.get_path(name) for name in ('stdlib', 'purelib', 'platlib')]
  return bool({'site-packages', 'dist-packages'} & {*file.parts}) or any(map(file.is_relative_to, places))


def _root(file: pathlib.Path) -> pathlib.Path:
  """The folder from which a file's imports are read: its own, or the one that holds its package."""
  folder = file.parent
  while (folder / '__init__.py').exists() and folder != folder.parent:
    folder = folder.parent
  return folder


def _with_imports(file: pathlib.Path, root: pathlib.Path) -> set[pathlib.Path]:
  found, waiting = set(), [file]
  while waiting:
    file = waiting.pop()
    if file not in found:
      found.add(file)
      waiting += [path for path in _imported(file, root) if path.is_file() and path not in found]
  return found


def _imported(file: pathlib.Path, root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Where the modules that a file imports would lie, if they are beside it."""
  try:
    nodes = list(ast.walk(ast.parse(file.read_bytes())))
  except (SyntaxError, ValueError):
    return
  for node in nodes:
    if isinstance(node, ast.Import):
      places = [(root, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = file.parents[node.level - 1] if 0 < node.level <= len(file.parents) else root
      module = [node.module] if node.module else []
      places = [(base, '.'.join([*module, *name])) for name in ([], *([alias.name] for alias in node.names))]
    else:
      continue
    for base, name in places:
      whole = base.joinpath(*name.split('.')) if name else base
      yield from (whole.with_name(f'{whole.name}.py'), whole / '__init__.py')


def source_of(function: Callable[..., Any] | None) -> str | None:
  """A hash of the code of a user's function: of its file, or of its own text where it was typed in.

  None of a function of dro_jax or of an installed package, and where no source is to be found.
  """
  values = []
  while isinstance(function, functools.partial):
    values.append(repr([x for x in (*function.args, *function.keywords.items()) if _is_plain(x)]))
    function = function.func
  if function is None:
    return None
  function = inspect.unwrap(function)
  named = function if hasattr(function, '__qualname__') else type(function)
  if named.__module__.partition('.')[0] == 'dro_jax':
    return None
  code = _code(named)
  return code and hash_parts([repr([named.__qualname__, code, *values]).encode()])


def _code(named: Any) -> str | None:
  """The digest of the file that defines a function or class, or the text of one that was typed in."""
  try:
    file = inspect.getsourcefile(named)
    if named.__module__ == '__main__' or file is None or not os.path.isfile(file):
      return inspect.getsource(named)
  except (OSError, TypeError):
    return None
  return None if _is_installed(pathlib.Path(file).resolve()) else code_digest(file)


def _is_plain(value: Any) -> bool:
  """Whether a value's `repr` says all of it, in every process."""
  if isinstance(value, tuple):
    return all(map(_is_plain, value))
  return value is None or isinstance(value, (str, int, float, bool))


# What a disk can end a run with, whatever the run did.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE)


@contextlib.contextmanager
def disk_of(folder: str | os.PathLike[str]) -> Iterator[None]:
  """A block that writes a run's folder; raises `Failed`, with a remedy, where the disk refuses."""
  try:
    yield
  except OSError as error:
    if error.errno not in _DISK:
      raise
    raise Failed(
      f'{error.filename or folder}: {error.strerror}. What was saved before is intact: once there is room '
      'and leave to write, the same command resumes.'
    ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Any]:
  """A path beside `path` at which the block makes a file or folder; it replaces `path` once the block ends.

  Where the block raises, `path` stays as it was and nothing else remains. Of several processes one alone may
  be in the block (`data.storage.folders.Replacing` is for several). An `epath.Path` may be in a bucket.
  """
  target: Any = path if isinstance(path, os.PathLike) else pathlib.Path(path)
  temporary = target.with_name(f'.{target.name}.tmp')
  _remove(temporary)
  try:
    yield temporary
    if temporary.is_dir():
      _remove(target)
    temporary.replace(target)
  finally:
    _remove(temporary)


def _remove(path: Any) -> None:
  """Removes a file or a folder, if it is there."""
  if path.is_dir() and not is_remote(path):
    shutil.rmtree(path)
  elif path.is_dir():
    path.rmtree()
  else:
    path.unlink(missing_ok=True)


def hash_parts(parts: Iterable[bytes | memoryview]) -> str:
  """The hash by which saved files know content: BLAKE2b, 128 bits, of all parts joined; as hexadecimals."""
  digest = hashlib.blake2b(digest_size=16)
  for part in parts:
    digest.update(part)
  return digest.hexdigest()


def hash_file(path: str | os.PathLike[str], start: int = 0) -> str:
  """The hash of a file's bytes from `start` on, read in pieces: it may be larger than the memory."""
  with open(path, 'rb') as file:
    file.seek(start)
    return hash_parts(iter(lambda: file.read(2**20), b''))


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
  """Writes a file whole or not at all; a text in UTF-8."""
  with replacing(path) as temporary, open(temporary, 'wb') as file:
    file.write(content.encode() if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path has a scheme, and so is no file of this machine."""
  return '://' in str(path)


def absolute(path: str | os.PathLike[str]) -> Any:
  """The absolute `epath.Path`; a path with a scheme stays as it is."""
  from etils import epath  # Heavier than all the rest of this file, which `--help` imports.

  whole = epath.Path(path)
  # epath would make gs://bucket a folder of the working directory.
  return whole if is_remote(path) else whole.expanduser().absolute()


def to_json(value: Any) -> Any:
  """Named tuples by their fields, arrays and tuples as lists, and null for what is not finite."""
  if hasattr(value, '_asdict'):
    value = value._asdict()
  if isinstance(value, Mapping):
    return {str(name): to_json(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(item) for item in value]
  if hasattr(value, 'tolist'):
    return to_json(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
