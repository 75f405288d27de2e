"""The commands that README and the pages show are commands, with flags and settings that exist."""

import pathlib
import re
import shlex

import pytest

from dro_jax.cli import bindings, flags
from dro_jax.cli.tables import COMMANDS
from launch import launch

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The pages of extend/ run whole, in test_extend.
PAGES = [
  ROOT / 'README.md',
  *sorted(path for path in (ROOT / 'docs').rglob('*.md') if path.parent.name != 'extend'),
]


def lines_of(page):
  blocks = re.findall(r'^```sh\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL)
  return [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]


def commands(program):
  """(page, arguments) of every line that begins with a program; what a line leaves out is left out."""
  found = []
  for page in PAGES:
    for line in lines_of(page):
      words = shlex.split(line, comments=True)
      if words[: len(program)] == program:
        arguments = [word for word in words[len(program) :] if word != '...']
        found.append(pytest.param(arguments, id=f'{page.stem}: {line[:60]}'))
  return found


@pytest.mark.parametrize('arguments', commands(['dro_jax']))
def test_a_command_of_dro_jax_is_one(arguments):
  name, *rest = arguments
  values = flags.parse_flags(name, rest, COMMANDS[name].bare) if '--help' not in rest else None
  if values is not None and not COMMANDS[name].own:
    bindings.configure(name, COMMANDS[name], values, complete=False)


# ml_collections loads a job's file by a method that Python will remove.
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
@pytest.mark.parametrize('arguments', commands(['python', 'launch/launch.py']))
def test_a_command_of_the_launcher_is_one(arguments, monkeypatch):
  monkeypatch.chdir(ROOT)
  launcher, command = launch.split(arguments)
  job, _, _ = launch.parse(launcher)
  assert job.backend.startswith('launch.backends.')
  assert command[0] in COMMANDS


@pytest.mark.parametrize('arguments', commands(['make']))
def test_a_target_of_make_is_one(arguments):
  targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
  assert arguments[0] in targets


def test_there_are_commands_to_check():
  assert len(commands(['dro_jax'])) > 40
