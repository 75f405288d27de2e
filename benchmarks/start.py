"""What each command costs before it does anything: seconds to `--help`, and to import what it runs.

  python benchmarks/start.py [--commands=train,judge] [--runs=3]

Every figure is a process of its own, the fastest of RUNS after one that filled the disk's cache. `ready` is
the process that has imported the command and all that gin may bind in it, as each call does before it reads a
file. The packages are those whose modules take longest to import (by `python -X importtime`, which slows the
imports a little). Exits with 1 where a `--help` takes a second or more.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dro_jax.cli.tables import COMMANDS  # noqa: E402

LIMIT = 1.0  # Seconds of a --help.
_LINE = re.compile(r'import time:\s+(\d+) \|\s+\d+ \| *(\S+)')
_REGISTER = (
  'import sys; from dro_jax.cli import bindings, tables; bindings.register(tables.COMMANDS[sys.argv[1]])'
)


class Import(NamedTuple):
  """A module's own import, without those that it causes: milliseconds."""

  name: str
  own: float


def imports(stderr: str) -> list[Import]:
  """The imports that `python -X importtime` reports."""
  found = (_LINE.match(line) for line in stderr.splitlines())
  return [Import(match[2], int(match[1]) / 1000) for match in found if match]


def heaviest(modules: Sequence[Import], count: int = 5) -> dict[str, float]:
  """The packages whose modules take longest together: milliseconds by name."""
  sums = collections.Counter()
  for module in modules:
    sums[module.name.partition('.')[0]] += module.own
  return dict(sums.most_common(count))


def call(arguments: Sequence[str]) -> tuple[float, str]:
  """Seconds of a Python, and its standard error."""
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  environment.pop('PYTHONDONTWRITEBYTECODE', None)  # An installed package's modules are compiled once.
  began = time.perf_counter()
  done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
  seconds = time.perf_counter() - began
  if done.returncode:
    sys.exit(f'{arguments} failed: {done.stderr[-2000:]}')
  return seconds, done.stderr


def fastest(arguments: Sequence[str], runs: int) -> tuple[float, list[Import]]:
  """The least seconds, and the imports."""
  call(arguments)
  _, stderr = call(['-X', 'importtime', *arguments])
  return min(call(arguments)[0] for _ in range(runs)), imports(stderr)


def measure(name: str, runs: int) -> dict[str, object]:
  shown, for_help = fastest(['-m', 'dro_jax.main', name, '--help'], runs)
  row = {'command': name, 'help_seconds': shown, 'help_modules': len(for_help)}
  if COMMANDS[name].own:
    return row
  ready, modules = fastest(['-c', _REGISTER, name], runs)
  packages = {package: round(own / 1000, 2) for package, own in heaviest(modules).items()}
  return row | {'ready_seconds': ready, 'ready_modules': len(modules), 'heaviest_seconds': packages}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--commands', default=','.join(COMMANDS), help='some of the commands, by commas')
  parser.add_argument('--runs', type=int, default=3, help='processes of which the fastest counts')
  parser.add_argument('--json', action='store_true', help='one JSON object a command')
  options = parser.parse_args()
  rows = []
  if not options.json:
    print('| command | --help, s | modules | ready, s | modules | heaviest |\n|---|---|---|---|---|---|')
  for name in options.commands.split(','):
    rows.append(row := measure(name, options.runs))
    print(json.dumps(row) if options.json else table_row(row), flush=True)
  slow = [row['command'] for row in rows if row['help_seconds'] >= LIMIT]
  if slow:
    print(f'--help takes {LIMIT:g} s or more: {", ".join(slow)}', file=sys.stderr)
  return 1 if slow else 0


def table_row(row: dict) -> str:
  packages = ', '.join(f'{name} {seconds:.2f}' for name, seconds in row.get('heaviest_seconds', {}).items())
  ready = f'{row["ready_seconds"]:.2f} | {row["ready_modules"]}' if 'ready_seconds' in row else '– | –'
  return f'| `{row["command"]}` | {row["help_seconds"]:.2f} | {row["help_modules"]} | {ready} | {packages} |'


if __name__ == '__main__':
  sys.exit(main())
