"""Runs stages as processes of their own, several at once, and resumes them."""

import logging
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple

import dro_jax
from dro_jax.errors import Failed, Interrupted, Stopped, UsageError, did_you_mean
from dro_jax.parallel import interrupts, machine
from dro_jax.recipes.reproduce import notes
from dro_jax.recipes.reproduce.stages import Stage

_log = logging.getLogger(__name__)
COMPILED = 'compiled'  # The folder of compiled programs.
_TICK = 0.05  # Seconds between looks at the processes.
_TAIL = 15  # Last lines of a failed stage's log.
_STOPPED = 75  # The exit code of a command that saved and stopped.
CHECKOUT = pathlib.Path(dro_jax.__file__).resolve().parents[1]

Program = Callable[[Stage], Sequence[str]]


def here(root: pathlib.Path) -> Program:
  """Runs each stage on this machine."""
  return lambda stage: [sys.executable, '-m', 'dro_jax.main', *stage.arguments(root), '--json']


def by_launcher(root: pathlib.Path, launch: str, stages: Sequence[Stage]) -> Program:
  """Runs stages that train by the launcher, others on this machine.

  Args:
    root: the folder of the stages.
    launch: the job for all, or SIZE=JOB,SIZE=JOB by the size of a stage's model.
    stages: all that will run.

  Raises:
    UsageError: this is not a checkout, or a stage's size has no job.
  """
  program = CHECKOUT / 'launch' / 'launch.py'
  if not program.is_file():
    raise UsageError(
      f'--launch={launch}: the launcher is not part of the installed package, so run this command from a '
      'checkout of dro_jax, or leave --launch to train on this machine.'
    )
  pairs = [part.partition('=') for part in launch.split(',')]
  for size, equals, named in pairs:
    job = named if equals else size
    if not (CHECKOUT / 'launch' / 'jobs' / f'{job}.py').is_file():
      known = [path.stem for path in sorted((CHECKOUT / 'launch' / 'jobs').glob('[!_]*.py'))]
      raise UsageError(
        f'--launch={launch}: there is no job {job!r}{did_you_mean(job, known)}: choose from '
        f'{", ".join(known)}, or add launch/jobs/{job}.py.'
      )
  jobs = {size: job for size, equals, job in pairs if equals}
  for stage in stages:
    if jobs and stage.training is not None and stage.training.size not in jobs:
      raise UsageError(
        f'--launch={launch} names no job for the size {stage.training.size} of stage {stage.name}: add '
        f'{stage.training.size}=JOB.'
      )
  local = here(root)

  def command(stage: Stage) -> Sequence[str]:
    if stage.training is None:
      return local(stage)
    job = jobs[stage.training.size] if jobs else launch
    return [sys.executable, str(program), f'--job={job}', '--', *stage.arguments(root)]

  return command


def states(root: pathlib.Path, stages: Sequence[Stage], known: Mapping[str, str]) -> dict[str, notes.State]:
  """How all stages stand, by their names.

  A finished stage has changed where one that it reads has, or is not done.

  Args:
    root: the folder of the stages.
    stages: in an order in which they can run.
    known: their identities (`notes.identities`).
  """
  found: dict[str, notes.State] = {}
  for stage in stages:
    state = notes.state(root, stage, known)
    before = [name for name in stage.needs if found[name] != notes.State(notes.DONE)]
    if state == notes.State(notes.DONE) and before:
      state = notes.State(notes.DONE, f'it read the files of the stage {before[0]}, which has to run')
    found[stage.name] = state
  return found


def run(root: pathlib.Path, stages: Sequence[Stage], program: Program, jobs: int, *, redo: bool) -> None:
  """Runs the stages that are not done, `jobs` at a time, each after those that it needs.

  Ctrl-C and SIGTERM end all running stages in their own way, so that the same command goes on. After a
  failure none begins, and those that run come to their end.

  Args:
    root: the folder of the stages.
    stages: in an order in which they can run.
    program: the command line of a stage's process.
    jobs: processes at once.
    redo: whether a stage that changed is removed and run anew; else it is refused.

  Raises:
    UsageError: a stage that has begun had another command or other inputs.
    Failed: a stage failed.
    Stopped: SIGTERM came, or a stage was stopped; the same command goes on.
    Interrupted: Ctrl-C came, likewise.
  """
  known = notes.identities(stages)
  found = states(root, stages, known)
  _refuse_changed(root, found, redo)
  for name, state in found.items():
    if state.changed:
      _log.info('%s: runs anew, for %s', name, state.changed)
      shutil.rmtree(root / name)
  done = [name for name, state in found.items() if state == notes.State(notes.DONE)]
  todo = [stage for stage in stages if stage.name not in done]
  _log.info('%d stages, of which %d are done', len(stages), len(done))
  with interrupts.noticed() as request:
    _Runs(root, program, known, set(done), todo, request).all(jobs)


def _refuse_changed(root: pathlib.Path, found: Mapping[str, notes.State], redo: bool) -> None:
  changed = {name: state.changed for name, state in found.items() if state.changed}
  if changed and not redo:
    name, why = next(iter(changed.items()))
    more = f' The same is so of {len(changed) - 1} others.' if len(changed) > 1 else ''
    raise UsageError(
      f'the stage {name} in {root / name} was made otherwise: {why}.{more} Pass another --model_dir, or '
      f'--set REDO=true, which removes what changed and runs it anew: {", ".join(changed)}.'
    )


def _environment(root: pathlib.Path) -> dict[str, str]:
  """The environment of stages: what one of them compiles, the next ones read."""
  kept = {
    'JAX_COMPILATION_CACHE_DIR': str(root / COMPILED),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  variables = machine.environment(CHECKOUT)
  return variables if 'JAX_COMPILATION_CACHE_DIR' in variables else kept | variables


class _Running(NamedTuple):
  """A stage's process, its open files, and when it began."""

  stage: Stage
  process: subprocess.Popen[bytes]
  streams: tuple[IO[bytes], ...]
  began: float


class _Runs:
  """The running stages and those that wait."""

  def __init__(
    self,
    root: pathlib.Path,
    program: Program,
    known: Mapping[str, str],
    done: set[str],
    waiting: list[Stage],
    request: interrupts.Request,
  ):
    self._root, self._program, self._known = root, program, known
    self._done, self._waiting, self._request = done, waiting, request
    self._running: list[_Running] = []
    self._failed: dict[str, int] = {}

  def all(self, jobs: int) -> None:
    """Runs them; see `run`."""
    told = False
    try:
      while self._running or (self._waiting and not self._failed and not self._request):
        if self._request and not told:
          told = True
          self._send(signal.SIGTERM)
        self._start(jobs)
        self._look()
        time.sleep(_TICK)
    finally:
      self._send(signal.SIGTERM)
    self._judge()

  def _send(self, number: int) -> None:
    for running in self._running:
      if running.process.poll() is None:
        running.process.send_signal(number)

  def _start(self, jobs: int) -> None:
    for stage in [stage for stage in self._waiting if self._done.issuperset(stage.needs)]:
      if len(self._running) >= jobs or self._failed or self._request:
        return
      self._waiting.remove(stage)
      self._running.append(self._begun(stage))

  def _begun(self, stage: Stage) -> _Running:
    folder, command = self._root / stage.name, self._program(stage)
    notes.write(self._root, stage, self._known, notes.BEGUN)
    log = open(folder / notes.LOG, 'ab')  # noqa: SIM115  # They are open as long as the process runs.
    log.write(f'$ {shlex.join(command)}\n'.encode())
    log.flush()
    out = open(folder / notes.RESULT, 'wb')  # noqa: SIM115
    _log.info('%s: dro_jax %s ... (%s)', stage.name, stage.command[0], folder / notes.LOG)
    process = subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=_environment(self._root)
    )
    return _Running(stage, process, (log, out), time.monotonic())

  def _look(self) -> None:
    for running in [running for running in self._running if running.process.poll() is not None]:
      self._running.remove(running)
      for stream in running.streams:
        stream.close()
      seconds, stage = time.monotonic() - running.began, running.stage
      code = running.process.returncode
      missing = [name for name in stage.written if not (self._root / stage.name / name).is_file()]
      if code or missing:
        notes.write(self._root, stage, self._known, notes.BEGUN, seconds)
        self._failed[stage.name] = code
        continue
      notes.write(self._root, stage, self._known, notes.DONE, seconds)
      self._done.add(stage.name)
      _log.info('%s: done in %.0f s', stage.name, seconds)

  def _judge(self) -> None:
    """Says how it ended, unless all is done."""
    if self._request:
      text = 'stopped. Finished stages are kept, and the same command goes on with the others.'
      raise Interrupted(text) if self._request.by_interrupt else Stopped(text)
    if not self._failed:
      return
    name, code = next(iter(self._failed.items()))
    log = self._root / name / notes.LOG
    if set(self._failed.values()) == {_STOPPED}:
      raise Stopped(f'the stage {name} was stopped after saving: the same command goes on. See {log}.')
    others = [other for other in self._failed if other != name]
    more = f' So did {", ".join(others)}.' if others else ''
    how = _how(code)
    raise Failed(
      f'the stage {name} {how}.{more} Once its cause is mended the same command goes on. The end of '
      f'{log}:\n{os.linesep.join(tail(log))}'
    )


def _how(code: int) -> str:
  """How a stage failed, by its exit code."""
  if code == -signal.SIGKILL:
    return 'was killed by SIGKILL, as a system does whose memory is full,'
  return f'failed with exit code {code}' if code else 'ended without its files'


def tail(log: pathlib.Path, lines: int = _TAIL) -> list[str]:
  """The last lines of a log, without the list of settings."""
  text = log.read_text(encoding='utf-8', errors='replace')
  return [line for line in text.splitlines() if not line.startswith('gin: ')][-lines:]
