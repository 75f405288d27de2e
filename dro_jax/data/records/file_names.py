"""The files that a user's text names: paths, comma-separated lists and glob patterns."""

import glob
import os
from collections.abc import Sequence

from dro_jax.data.records.readers import FORMATS
from dro_jax.data.storage import buckets
from dro_jax.errors import UsageError
from dro_jax.files import is_remote


def is_files(name: str | Sequence[str]) -> bool:
  """Whether this looks like triplet files: a known ending, a path separator, or an existing file."""
  names = name.split(',') if isinstance(name, str) else list(name)
  # A seqio name has no separator, and importing seqio takes ten seconds: too long for a mistyped path.
  return any(
    n.endswith(FORMATS) or os.sep in n or os.path.exists(n) or glob.has_magic(n) for n in map(str, names)
  )


def expand(paths: str | Sequence[str]) -> list[str]:
  """File names from one path, several, a comma-separated string or glob patterns, in order.

  Files in a bucket (gs://...) are copied to this machine (see `storage.buckets`).

  Raises:
    UsageError: there is no such file, one file is named twice, or its format is unknown.
  """
  if isinstance(paths, str):
    paths = [paths] if os.path.exists(paths) else paths.split(',')
  files = []
  for path in map(os.path.expanduser, map(str, paths)):
    if is_remote(path):
      files += buckets.files(path)
      continue
    matches = sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
    files += [_checked_file(match, path) for match in matches or ['']]
  for path in files:
    if not path.endswith(FORMATS):
      raise UsageError(f"triplets '{path}': unknown format; the name must end in one of {', '.join(FORMATS)}")
  real = [os.path.realpath(path) for path in files]
  if repeated := [path for i, path in enumerate(files) if real[i] in real[:i]]:
    raise UsageError(
      f"triplets '{repeated[0]}': the file is named twice, so each of its records would count twice; name it "
      'once'
    )
  return files


def _folder_pattern(folder: str) -> str:
  """A pattern for the files in a folder that can be read."""
  names = sorted(name for name in os.listdir(folder) if name.endswith(FORMATS))
  # The longest ending that fits: a .jsonl.gz also ends in .gz.
  endings = [max(filter(names[0].endswith, FORMATS), key=len)] if names else ['.jsonl']
  return os.path.join(folder, f'*{endings[0]}')


def _checked_file(path: str, pattern: str) -> str:
  if os.path.isdir(path):
    raise UsageError(f"triplets '{path}': it is a folder; pass its files: '{_folder_pattern(path)}'")
  if os.path.exists(path) and not os.path.isfile(path):
    raise UsageError(f"triplets '{path}': a pipe or device, which cannot be read twice; pass a file")
  if not os.path.isfile(path):
    raise UsageError(f"triplets '{pattern}': there is no such file")
  return path
