"""The `tpu_vm` backend: creates a slice of TPUs for one run and deletes it afterwards.

The run starts on the workers and the launcher polls it, so a broken connection ends nothing. Whatever happens
to the launcher except SIGKILL, it deletes the machine: the name is unique and chosen before the request.
"""

import codecs
import functools
import math
import pathlib
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from ml_collections import config_dict

from dro_jax.errors import UsageError
from launch import arguments as words
from launch import checks, commands, outcomes, scripts, signals
from launch.backends import machines
from launch.backends.machines import Failed, Lost, Machine, deletion
from launch.say import say

ROOT = pathlib.Path(__file__).resolve().parents[2]
_LOG_BYTES = 1_000_000  # Bytes of a log that are read at once.
# Git requires a name also for a commit that stays unreferenced.
_NOBODY = ('-c', 'user.name=launch', '-c', 'user.email=launch@localhost')
_ODD_LOOKS = 3  # How often a worker must report that it has no run before the launcher believes it.


def spec() -> config_dict.ConfigDict:
  """The fields of a job on TPU machines."""
  job = config_dict.ConfigDict()
  job.backend = 'launch.backends.tpu_vm:run'
  job.name = 'dro-jax'  # prefix of the machine's name
  job.project = ''  # the project of Google Cloud; '' takes that of gcloud
  job.zone = ''  # the zone, likewise
  job.accelerator_type = 'v5litepod-16'
  job.topology = ''  # the shape for preflight, such as v5e:4x4; '' is the usual one
  job.runtime_version = 'v2-alpha-tpuv5-lite'
  job.spot = False  # cheaper, and may be taken away at any time
  job.queued = True  # wait in Google's queue; False requests the machine at once, and fails if none is free
  job.valid_until = ''  # how long to wait in the queue, such as 6h; '' is without limit
  job.create_flags = ()  # more flags for gcloud create, such as --network=NAME
  job.ssh_flags = ()  # more flags for gcloud ssh and scp, such as --internal-ip
  job.python = '3.11'  # the workers' Python, which also selects the lock to install
  job.extra = 'tpu'  # the extra of jax to install on the workers
  job.mount = ''  # shell command that mounts a shared folder on each worker
  job.shared_dir = ''  # the shared folder; model_dir must be in it
  job.keep = False  # keep the machine when the run is over
  job.max_restarts = 20  # how often a stopped or preempted run continues
  job.poll_seconds = 20.0  # between requests for the state of queue, machine and run
  job.retry_seconds = 15.0  # between attempts of a command that failed
  job.create_attempts = 3
  job.ssh_attempts = 8
  job.delete_attempts = 20
  job.silence_seconds = 1800.0  # how long gcloud or the workers may fail to answer
  job.save_seconds = 600.0  # how long the run may take to save after Ctrl-C or SIGTERM
  job.tail = 30  # last lines of a failed run that are shown
  job.at_once = 4  # cells of a sweep that run at the same time
  checks.fields(job)
  return job


class Asked(Exception):
  """A signal stopped the run; `code` is its exit code."""

  def __init__(self, code: int):
    super().__init__(f'stopped with {outcomes.in_words(code)}')
    self.code = code


class Log:
  """The first worker's log, shown as it grows."""

  def __init__(self, machine: Machine, attempt: int):
    self._machine, self._attempt, self._offset = machine, attempt, 0
    self._decode = codecs.getincrementaldecoder('utf-8')('replace').decode

  def show(self) -> None:
    """Shows what is new."""
    script = functools.partial(scripts.follow, self._attempt, limit=_LOG_BYTES)
    while found := machines.shell(self._machine, script(offset=self._offset), worker='0').out:
      self._offset += len(found)
      say(self._decode(found), stream=sys.stdout, end='')
      if len(found) < _LOG_BYTES:
        break


def run(job: config_dict.ConfigDict, arguments: Sequence[str], *, dry_run: bool = False) -> int:
  """Creates a machine, runs `dro_jax ARGUMENTS` on all its workers to the end, deletes the machine."""
  refuse(job, arguments)
  topology = checks.topology(job)
  if dry_run:
    checks.preflight(job, arguments, topology, commands.dry(), dry_run=True)
    return _launch(job, arguments, commands.dry(), scripts.BUNDLE)
  if not shutil.which('gcloud'):
    raise UsageError("gcloud is not on the PATH: install Google Cloud's CLI and run `gcloud auth login`")
  with tempfile.TemporaryDirectory() as folder, signals.watching() as watch:
    bundle = str(pathlib.Path(folder) / scripts.BUNDLE)
    checks.preflight(job, arguments, topology, commands.real(watch), dry_run=False)
    pack(bundle)
    return _launch(job, arguments, commands.real(watch), bundle)


def refuse(job: config_dict.ConfigDict, arguments: Sequence[str]) -> None:
  """Refuses a job that would fail on a machine which costs money.

  Raises:
    UsageError: the message says what to pass.
  """
  if not re.fullmatch(r'[a-z]([a-z0-9-]{0,40}[a-z0-9])?', job.name):
    raise UsageError(f'--job.name={job.name}: pass at most 42 small letters, digits and dashes')
  if not (ROOT / 'requirements' / f'py{job.python.replace(".", "")}.txt').exists():
    raise UsageError(f'--job.python={job.python}: requirements/ has no lock for it; pass 3.11, 3.12 or 3.13')
  checks.refuse_absent(arguments, job.shared_dir)
  checks.refuse_unbound(arguments)
  folder = words.value(arguments, 'model_dir')
  if folder is None or words.is_in(folder, job.shared_dir):
    return
  alone = machines.hosts(job.accelerator_type) == 1
  if alone and job.keep and not job.spot:
    return
  remedy = (
    'Mount a bucket or an NFS share on the workers and name a folder in it: '
    "--job.mount='sudo mount ADDRESS:/SHARE /mnt/runs' --job.shared_dir=/mnt/runs, --model_dir=/mnt/runs/NAME"
  )
  if '://' in folder:
    raise UsageError(f'--model_dir={folder}: a run appends to its metrics, which no address allows. {remedy}')
  kind = f'{"spot " if job.spot else ""}{job.accelerator_type}'
  why = 'is deleted with the machine' if alone else 'is another folder on each machine, deleted with it'
  raise UsageError(f'--model_dir={folder} on a {kind} {why}. {remedy}')


def pack(bundle: str) -> None:
  """Writes the tracked files as they are now, committed or not, to a .tar.gz.

  Raises:
    UsageError: the launcher does not run from a git checkout.
  """
  git = lambda *words: subprocess.run(  # noqa: E731
    ['git', '-C', str(ROOT), *_NOBODY, *words], capture_output=True, text=True
  )
  # A commit of the uncommitted changes, on no branch.
  changed = git('stash', 'create')
  commit = changed.stdout.strip() or 'HEAD'
  packed = git('archive', '--format=tar.gz', f'--output={bundle}', commit)
  if changed.returncode or packed.returncode:
    words = (changed.stderr or packed.stderr).strip()
    raise UsageError(f'{ROOT} cannot be packed: {words}. Launch from a git checkout without conflicts')
  head = git('rev-parse', '--short', 'HEAD').stdout.strip()
  changes = ' and uncommitted changes' if commit != 'HEAD' else ''
  say(f'launch: packed {head}{changes}, without untracked files')


def _launch(
  job: config_dict.ConfigDict, arguments: Sequence[str], how: commands.Commands, bundle: str
) -> int:
  """Takes machine after machine until the run is done or has no restart left."""
  name = f'{job.name}-{secrets.token_hex(4)}'
  attempts = iter(range(1, job.max_restarts + 2))
  for attempt in attempts:
    try:
      return _life(Machine(f'{name}-{attempt}', job, how), arguments, bundle, attempt, attempts)
    except Lost:
      say('launch: the run continues on another machine')
    except Failed as failed:
      say(f'launch: {failed}')
      return outcomes.FAILED
    except signals.Interrupted as interrupted:
      say(f'launch: {interrupted}')
      return interrupted.exit_code
    except Asked as asked:
      return asked.code
  say('launch: no restart is left: launch again with the same model_dir, or with a larger --job.max_restarts')
  return outcomes.STOPPED


def _life(
  machine: Machine, arguments: Sequence[str], bundle: str, attempt: int, attempts: Iterator[int]
) -> int:
  """Creates a machine, runs on it and deletes it; returns the exit code of the run.

  Raises:
    Lost: the machine was preempted, and is deleted.
    Failed: another step failed, or the machine could not be deleted.
  """
  lost = False
  try:
    workers = _prepare(machine, bundle)
    while (code := _run_once(machine, workers, arguments, attempt)) == outcomes.STOPPED:
      # SIGTERM on a machine mostly means that it is being taken away.
      machines.refuse_lost(machine)
      following = next(attempts, None)
      if following is None:
        break
      say(f'launch: stopped after saving; attempt {following} on the same machine')
      attempt = following
    return code
  except Lost as error:
    say(f'launch: {error}')
    lost = True
    raise
  finally:
    _give_back(machine, keep=machine.job.keep and not lost)


def _prepare(machine: Machine, bundle: str) -> int:
  """Creates the machine and installs the checkout; returns its number of workers."""
  say(f'launch: requesting {machine.name}. To delete it by hand: {shlex.join(deletion(machine))}')
  machines.create(machine)
  workers = machines.wait_until_ready(machine)
  say(f'launch: {machine.name} is ready, with {workers} workers; installing')
  machines.copy(machine, bundle)
  machines.insist(machine, scripts.install(machine.job.python, machine.job.extra), 'installing')
  if machine.job.mount:
    machines.insist(machine, machine.job.mount, 'mounting')
  return workers


def _give_back(machine: Machine, *, keep: bool) -> None:
  """Deletes the machine; prints a warning that cannot be missed where that fails.

  Raises:
    Failed: the machine may still exist.
  """
  command = shlex.join(deletion(machine))
  if keep:
    say(f'launch: {machine.name} is kept and costs money until you run: {command}')
    return
  say(f'launch: deleting {machine.name}')
  try:
    gone = machines.delete(machine)
  except Exception as error:  # No error may hide that the machine still exists.
    say(f'launch: {error!r}')
    gone = False
  if not gone:
    bar = '!' * 100
    say(
      f'{bar}\nlaunch: {machine.name} MAY STILL RUN AND COST MONEY. Delete it by hand:\n\n  {command}\n{bar}'
    )
    raise Failed(f'{machine.name} could not be deleted')


def _run_once(machine: Machine, workers: int, arguments: Sequence[str], attempt: int) -> int:
  """Runs dro_jax on all workers; returns their folded exit code.

  Raises:
    Asked: a signal came, and the run was asked to save.
    Lost: the machine is gone.
  """
  machines.insist(machine, scripts.start(attempt, arguments, 'auto'), 'starting')
  log = Log(machine, attempt)
  try:
    code = _follow(machine, workers, attempt, log)
  except signals.Interrupted as interrupted:
    say(f'launch: {interrupted}; asking the run to save. A second signal deletes the machine at once')
    raise Asked(_stop(machine, workers, attempt, log, interrupted.exit_code)) from interrupted
  if outcomes.is_failure(code):
    # A worker that is taken away ends the runs of the others, some seconds before gcloud reports it.
    machine.commands.pause(machine.job.retry_seconds if machine.job.spot else 0)
    machines.refuse_lost(machine)
    last = machines.shell(machine, scripts.last_lines(attempt, machine.job.tail))
    say(f'launch: the run failed with {outcomes.in_words(code)}:\n{last.out.decode(errors="replace")}')
  return code


def _stop(machine: Machine, workers: int, attempt: int, log: Log, otherwise: int) -> int:
  """Asks the run to save and end; returns its folded exit code, or `otherwise` where that is unknown."""
  try:
    machines.insist(machine, scripts.stop(attempt), 'stopping')
    return _follow(machine, workers, attempt, log, patience=machine.job.save_seconds)
  except (Lost, Failed) as error:
    say(f'launch: {error}')
    return otherwise


def _follow(machine: Machine, workers: int, attempt: int, log: Log, patience: float | int = math.inf) -> int:
  """Shows the log of the first worker until all workers end or one fails; returns the folded exit code.

  Raises:
    Lost: the machine is gone, has no such run, or does not answer.
  """
  job, codes, odd = machine.job, {}, 0
  deadline, heard = time.monotonic() + patience, time.monotonic()
  while True:
    states = _states(machine, workers, attempt)
    log.show()
    codes |= {host: int(state) for host, state in states.items() if state.isdigit()}
    if len(codes) == workers or any(map(outcomes.is_failure, codes.values())):
      return outcomes.fold(codes.values())
    if len(states) == workers:
      heard = time.monotonic()
      odd = odd + 1 if {scripts.GONE, scripts.MISSING} & set(states.values()) else 0
    else:
      machines.refuse_lost(machine)
    if odd >= _ODD_LOOKS or time.monotonic() > heard + job.silence_seconds:
      raise Lost(f'{machine.name} has no such run, or does not answer')
    if codes:
      deadline = min(deadline, time.monotonic() + job.save_seconds)
    if time.monotonic() > deadline:
      say(f'launch: some workers did not end within {job.save_seconds:g} seconds')
      return outcomes.FAILED
    machine.commands.pause(job.poll_seconds)


def _states(machine: Machine, workers: int, attempt: int) -> dict[str, str]:
  """The state of each worker that answered, by the name of its host."""
  pretend = ''.join(f'{scripts.STATUS} worker-{i} 0\n' for i in range(workers))
  answer = machines.shell(machine, scripts.status(attempt), pretend=pretend)
  return dict(re.findall(rf'{scripts.STATUS} (\S+) (\S+)', answer.out.decode(errors='replace')))
