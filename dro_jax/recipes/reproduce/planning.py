"""`--dry_run`: the commands of a reproduction, how they stand, and preflight's verdict on training."""

import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from dro_jax import files
from dro_jax.names import SAME_STEP
from dro_jax.parallel import machine
from dro_jax.printing.result import Sections
from dro_jax.printing.tables import Table
from dro_jax.recipes.reproduce import notes, running
from dro_jax.recipes.reproduce.stages import Reproduction, Stage

PREFLIGHTS = 'preflights'


def plan(made: Reproduction, root: pathlib.Path, program: running.Program, *, preflight: bool) -> Sections:
  """All stages in order.

  Args:
    made: the reproduction.
    root: the folder of its stages; preflight's verdicts are kept there, and nothing else is written.
    program: the command line of a stage's process.
    preflight: whether to ask it.
  """
  states = running.states(root, made.stages, notes.identities(made.stages))
  rows, commands = [], []
  for stage in made.stages:
    state = states[stage.name]
    row: dict[str, Any] = {'stage': stage.name, 'is': state.changed or state.name or 'to do'}
    if stage.training is not None:
      row |= _trained(stage, root) if preflight else {'steps': stage.training.steps}
    rows.append(row)
    commands.append(shlex.join(_shown(program(stage))))
  columns = Table('', rows).columns
  full = [{column: _text(row.get(column)) for column in columns} for row in rows]
  listed = [row | {'command': command} for row, command in zip(rows, commands)]
  content = {'name': made.name, 'model_dir': str(root), 'stages': listed}
  return Sections(content, {made.title: full}, verbatim='\n'.join(commands))


def _text(value: Any) -> str:
  return '' if value is None else str(value)


def _shown(command: Sequence[str]) -> list[str]:
  """A process's command line as a user would type it."""
  start = [sys.executable, '-m', 'dro_jax.main']
  return ['dro_jax', *command[3:-1]] if list(command[:3]) == start else ['python', *command[1:]]


def _trained(stage: Stage, root: pathlib.Path) -> dict[str, Any]:
  """Preflight's columns of a stage that trains, where it is meant for a slice."""
  about = stage.training
  assert about is not None
  row: dict[str, Any] = {'steps': about.steps}
  if not about.topology:
    return row
  row |= {'slice': about.topology, "paper's hours": about.stated_hours}
  verdict = _preflight(stage, root)
  if 'error' in verdict:
    return row | {'fits': f'not known: {verdict["error"]}'}
  seconds = verdict.get('roofline_seconds')
  row['fits'] = 'yes' if verdict['fits'] else f'no; with {verdict.get("remedy")}'
  return row | {'at least hours': None if seconds is None else f'{seconds * about.steps / 3600:.1f}'}


def _preflight(stage: Stage, root: pathlib.Path) -> dict[str, Any]:
  """The verdict of `dro_jax preflight`, kept by the arguments that decide it."""
  about = stage.training
  assert about is not None
  left_out = '|'.join(SAME_STEP)
  decisive = [
    argument
    for argument in stage.command[1:]
    if not re.match(rf'--(model_dir|init_from)=|--set=({left_out})=', argument)
  ]
  arguments = ['preflight', *decisive, f'--topology={about.topology}', '--set=INIT_FROM=None', '--json']
  place = root / PREFLIGHTS / f'{files.hash_parts([files.json_text(arguments).encode()])[:16]}.json'
  if place.exists():
    kept: dict[str, Any] = json.loads(place.read_text(encoding='utf-8'))
    return kept
  ran = subprocess.run(
    [sys.executable, '-m', 'dro_jax.main', *arguments], capture_output=True, text=True,
    env=machine.environment(running.CHECKOUT),
  )  # fmt: skip
  if ran.returncode:
    return {'error': (ran.stderr.strip().splitlines() or ['no message'])[-1]}
  place.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(place, ran.stdout)
  verdict: dict[str, Any] = json.loads(ran.stdout)
  return verdict
