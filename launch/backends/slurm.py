"""The `slurm` backend: queues a batch job on the GPUs of a cluster and follows it to its end.

Launch from a machine of the cluster on which `sbatch` works. The nodes must share its disk: they use this
checkout, this Python, the current folder and the files of the run. A queued job does not need the launcher.
"""

import codecs
import math
import pathlib
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import config_dict

from dro_jax.errors import UsageError
from dro_jax.parallel import processes
from launch import arguments as words
from launch import checks, commands, outcomes, scripts, signals
from launch.say import say

ROOT = pathlib.Path(__file__).resolve().parents[2]
_LOG_BYTES = 1_000_000  # Bytes of a log that are read at once.
_UNKNOWN = 'unknown'
_LOCK = '.lock'  # dro_jax.run.folder.lock.LOCK, whose module imports jax.
# The states of jobs that are over, as sacct names them.
_OVER = (
  *('BOOT_FAIL', 'CANCELLED', 'COMPLETED', 'DEADLINE', 'FAILED', 'NODE_FAIL', 'OUT_OF_MEMORY'),
  *('PREEMPTED', 'REVOKED', 'TIMEOUT'),
)


def spec() -> config_dict.ConfigDict:
  """The fields of a Slurm job."""
  job = config_dict.ConfigDict()
  job.backend = 'launch.backends.slurm:run'
  job.name = 'dro-jax'  # prefix of the job's name
  job.nodes = 1
  job.gpus_per_node = 8  # GPUs, each with a process of its own
  job.cpus_per_task = 8
  job.partition = ''  # '' takes the default of the cluster
  job.account = ''  # the account, likewise
  job.time = ''  # the time limit, such as 12:00:00; the run saves before it and is queued again
  job.sbatch_flags = ()  # more flags for sbatch, such as --constraint=h100
  job.srun_flags = ()  # more flags for srun, such as --container-image=IMAGE
  job.setup = ''  # shell commands that run first, such as module load cuda
  job.python = ''  # the Python that runs dro_jax; '' is that of the launcher
  job.folder = 'slurm'  # the folder of scripts and logs, on the shared disk
  job.signal_seconds = 120  # how long before its limit a job must save
  job.peer_seconds = 120  # how long the other processes may go on once one has ended
  job.lock_seconds = 600  # how long a job that was queued again waits for a former process that still runs
  job.max_restarts = 20  # how often a run that stopped after saving (75) is queued again
  job.poll_seconds = 10.0  # between requests for the state
  job.retry_seconds = 15.0  # between attempts of a command that failed
  job.attempts = 5
  job.silence_seconds = 1800.0  # how long Slurm may fail to answer
  job.save_seconds = 600.0  # how long the run may take to save after Ctrl-C or SIGTERM
  job.tail = 30  # last lines of a failed run that are shown
  job.at_once = 16  # cells of a sweep that are queued at the same time
  return job


class Failed(Exception):
  """A step failed for good."""


class Batch(NamedTuple):
  """A job of Slurm.

  number    its id
  job       the spec
  commands  runs the commands of Slurm
  files     the files of the job
  """

  number: str
  job: config_dict.ConfigDict
  commands: commands.Commands
  files: 'Files'


class Files(NamedTuple):
  """Files of a run: script, log, exit code (once it is over), and a mark that it must not be queued again."""

  script: pathlib.Path
  log: pathlib.Path
  code: pathlib.Path
  stop: pathlib.Path


def run(job: config_dict.ConfigDict, arguments: Sequence[str], *, dry_run: bool = False) -> int:
  """Queues `dro_jax ARGUMENTS` and follows the job until it is over; returns its exit code."""
  refuse(job, arguments)
  name = f'{job.name}-{secrets.token_hex(4)}'
  folder = pathlib.Path(job.folder).expanduser().absolute()
  files = Files(*(folder / f'{name}.{end}' for end in ('sh', 'log', 'code', 'stop')))
  text = script(job, name, files, arguments, pathlib.Path.cwd())
  if dry_run:
    say(f'mkdir -p {shlex.quote(str(folder))}', stream=sys.stdout)
    say(scripts.heredoc(str(files.script), text), stream=sys.stdout)
    return _life(job, commands.dry(), files)
  if not shutil.which('sbatch'):
    raise UsageError('sbatch is not on the PATH: launch from a machine of the Slurm cluster')
  folder.mkdir(parents=True, exist_ok=True)
  files.script.write_text(text, encoding='utf-8')
  with signals.watching() as watch:
    return _life(job, commands.real(watch), files)


def refuse(job: config_dict.ConfigDict, arguments: Sequence[str]) -> None:
  """Refuses a job that would fail after its time in the queue.

  Raises:
    UsageError: the message says what to pass.
  """
  for field in ('nodes', 'gpus_per_node', 'cpus_per_task'):
    if job[field] < 1:
      raise UsageError(f'--job.{field}={job[field]}: pass 1 or more')
  if not re.fullmatch(r'[\w.-]+', job.name):
    raise UsageError(f'--job.name={job.name}: pass letters, digits, dots and dashes')
  checks.refuse_missing(arguments)
  checks.refuse_unbound(arguments)


# --- the script ---------------------------------------------------------------------------------------------


def script(
  job: config_dict.ConfigDict, name: str, files: Files, arguments: Sequence[str], folder: pathlib.Path
) -> str:
  """The batch script: bash, for sbatch.

  Args:
    job: the spec.
    name: the name of the job.
    files: the files of the job.
    arguments: the arguments of dro_jax.
    folder: the working directory.
  """
  options = '\n'.join(f'#SBATCH {shlex.quote(option)}' for option in _options(job, name, files, folder))
  # srun does not inherit cpus-per-task from sbatch.
  run_flags = [f'--cpus-per-task={job.cpus_per_task}', '--kill-on-bad-exit=0', f'--wait={job.peer_seconds}']
  program = [job.python or sys.executable, '-m', 'dro_jax.main', *arguments]
  setup = (f'{job.setup}\n' if job.setup else '') + _wait(job, arguments)
  code, stop = shlex.quote(str(files.code)), shlex.quote(str(files.stop))
  return f"""#!/bin/bash
{options}
{setup}export {processes.VARIABLE}=auto PYTHONUNBUFFERED=1
export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}
code=0
if [ -e {stop} ]; then  # Asked to stop before there was a step to signal.
  code={outcomes.STOPPED}
else
  srun {shlex.join([*run_flags, *job.srun_flags])} \\
    {shlex.join(program)} || code=$?
fi
# Where a node fails, srun may end with 0 while Slurm has queued the job again, or given it up.
if job=$(scontrol show job "$SLURM_JOB_ID" --oneliner) &&
  [[ $job != *" Restarts=${{SLURM_RESTART_COUNT:-0}} "* || $job == *" JobState=NODE_FAIL "* ]]; then
  echo "launch: a node failed; this start of the job counts no more"
  exit "$code"
fi
again=$((${{SLURM_RESTART_COUNT:-0}} + 1))
if [ "$code" -eq {outcomes.STOPPED} ] && [ ! -e {stop} ] && [ "$again" -le {job.max_restarts} ]; then
  echo "launch: stopped after saving; queued again ($again of {job.max_restarts})"
  scontrol requeue "$SLURM_JOB_ID" && exit {outcomes.STOPPED}
fi
echo "$code" > {code}.new
mv {code}.new {code}
exit "$code"
"""


def _wait(job: config_dict.ConfigDict, arguments: Sequence[str]) -> str:
  """Waits for the lock of the run's folder: a node that Slurm has given up may still train."""
  model_dir = words.value(arguments, 'model_dir')
  if not model_dir:
    return ''
  lock = shlex.quote(f'{model_dir}/{_LOCK}')
  return f"""if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] && [ -e {lock} ]; then
  flock --wait {job.lock_seconds} {lock} true || echo 'launch: another process still has the lock of the run'
fi
"""


def _options(job: config_dict.ConfigDict, name: str, files: Files, folder: pathlib.Path) -> list[str]:
  given = {'partition': job.partition, 'account': job.account, 'time': job.time}
  return [
    f'--job-name={name}',
    f'--nodes={job.nodes}',
    # jax gives each process the GPU with its own number on the node.
    f'--gpus-per-node={job.gpus_per_node}',
    f'--ntasks-per-node={job.gpus_per_node}',
    f'--cpus-per-task={job.cpus_per_task}',
    # The signal goes to the processes, not to this script.
    f'--signal=TERM@{job.signal_seconds}',
    '--requeue',
    '--open-mode=append',
    f'--output={files.log}',
    f'--chdir={folder}',
    *(f'--{flag}={value}' for flag, value in given.items() if value),
    *job.sbatch_flags,
  ]


# --- its life -----------------------------------------------------------------------------------------------


def _life(job: config_dict.ConfigDict, how: commands.Commands, files: Files) -> int:
  """Queues a job and follows it until it is over; returns the exit code of the run."""
  try:
    batch = Batch(_submit(job, how, files), job, how, files)
  except Failed as failed:
    say(f'launch: {failed}')
    return outcomes.FAILED
  say(f'launch: job {batch.number} is queued; its log is {files.log}. To cancel it: scancel {batch.number}')
  log = Log(files.log)
  try:
    code = _follow(batch, log)
  except signals.Interrupted as interrupted:
    say(f'launch: {interrupted}; asking job {batch.number} to save. A second signal cancels it at once')
    return _stop(batch, log, interrupted.exit_code)
  except Failed as failed:
    say(f'launch: {failed}. The job continues: squeue --jobs={batch.number}')
    return outcomes.FAILED
  except BaseException:
    _cancel(batch)
    raise
  if outcomes.is_failure(code):
    _show_end(batch, code)
  elif code == outcomes.STOPPED:
    say('launch: no restart is left: launch again with the same model_dir, or a larger --job.max_restarts')
  return code


def _submit(job: config_dict.ConfigDict, how: commands.Commands, files: Files) -> str:
  """Queues the script once, whatever happens; returns the number of the job.

  Raises:
    Failed: Slurm refused it.
  """
  result = how.call(['sbatch', '--parsable', str(files.script)], pretend='JOB', shielded=True)
  if result.code:
    raise Failed(f'sbatch refused {files.script}: {result.err}')
  return result.out.decode().strip().partition(';')[0]


class Log:
  """The log of the job, shown as it grows."""

  def __init__(self, file: pathlib.Path):
    self._file, self._offset = file, 0
    self._decode = codecs.getincrementaldecoder('utf-8')('replace').decode

  def show(self) -> None:
    """Shows what is new."""
    if not self._file.exists():
      return
    with open(self._file, 'rb') as file:
      file.seek(self._offset)
      while found := file.read(_LOG_BYTES):
        self._offset += len(found)
        say(self._decode(found), stream=sys.stdout, end='')


def _follow(batch: Batch, log: Log, patience: float | int = math.inf) -> int:
  """Shows the log until the job is over; returns its exit code.

  Raises:
    Failed: Slurm does not answer, or the job does not end in time.
  """
  number, silence = batch.number, batch.job.silence_seconds
  heard, said, deadline = time.monotonic(), '', time.monotonic() + patience
  while True:
    word, _, text = _state(batch).partition('|')
    code = _code(batch, word, text)
    log.show()
    if code is not None:
      return code
    if word not in (_UNKNOWN, *_OVER):
      heard = time.monotonic()
      if word != said:
        say(f'launch: job {number} is {word}')
      said = word
    if time.monotonic() > heard + silence:
      raise Failed(f'Slurm has not described job {number} for {silence:g} s')
    if time.monotonic() > deadline:
      raise Failed(f'job {number} did not end within {patience:g} s')
    batch.commands.pause(batch.job.poll_seconds)


def _state(batch: Batch) -> str:
  """The state of the job as Slurm names it; STATE|CODE:SIGNAL once it has left the queue."""
  queued = ['squeue', f'--jobs={batch.number}', '--noheader', '--format=%T']
  result = batch.commands.call(queued)
  found = result.out.decode(errors='replace').split()
  if not result.code and found:
    return found[0]
  if result.code and 'Invalid job id' not in result.err:
    return _UNKNOWN
  done = ['sacct', f'--jobs={batch.number}', '--allocations', '--noheader', '--parsable2']
  result = batch.commands.call([*done, '--format=State,ExitCode'], pretend='COMPLETED|0:0')
  lines = result.out.decode(errors='replace').splitlines()
  if result.code:
    return _remembered(batch)
  if not lines:
    return _UNKNOWN
  # `CANCELLED by 1000`
  state, _, code = lines[-1].partition('|')
  return f'{state.split()[0]}|{code}'


def _remembered(batch: Batch) -> str:
  """The same from the controller, which remembers a job for some minutes (MinJobAge), without accounting."""
  command = ['squeue', f'--jobs={batch.number}', '--states=all', '--noheader']
  result = batch.commands.call([*command, '--Format=State:20,exit_code:20'])
  state, code, *_ = [*result.out.decode(errors='replace').split(), '', '']
  if result.code or state not in _OVER or not code.isdigit():
    return _UNKNOWN
  status = int(code)  # As wait(2) has it.
  return f'{state}|{status >> 8}:{status & 127}'


def _code(batch: Batch, state: str, text: str) -> int | None:
  """The exit code of a job, from its script or else from sacct; `None` if it is not over."""
  if batch.files.code.exists():
    return int(batch.files.code.read_text())
  if state not in _OVER:
    return None
  if state == 'COMPLETED':
    return outcomes.DONE
  code, number = (int(word) if word.isdigit() else 0 for word in f'{text}:'.split(':')[:2])
  found = 128 + number if number else code or outcomes.FAILED
  # A script that ends so without a code is being queued again.
  return None if found == outcomes.STOPPED else found


def _stop(batch: Batch, log: Log, otherwise: int) -> int:
  """Asks the run to save and end; returns its exit code, or `otherwise` where it had not started."""
  batch.files.stop.touch()
  try:
    if _state(batch) == 'PENDING':
      return otherwise if _cancel(batch) else outcomes.FAILED
    if not _scancel(batch, '--signal=TERM'):
      raise Failed(f'Slurm does not send SIGTERM to job {batch.number}')
    return _follow(batch, log, batch.job.save_seconds)
  except (Failed, signals.Interrupted) as error:
    say(f'launch: {error}; cancelling job {batch.number}')
    return otherwise if _cancel(batch) else outcomes.FAILED


def _scancel(batch: Batch, *flags: str) -> bool:
  """Signals or cancels the job; returns whether Slurm accepted that, or has no such job any more."""
  for attempt in range(batch.job.attempts):
    if attempt:
      batch.commands.pause(batch.job.retry_seconds, shielded=True)
    result = batch.commands.call(['scancel', *flags, batch.number], shielded=True)
    if not result.code or 'Invalid job id' in result.err:
      return True
    say(f'launch: scancel of job {batch.number}: {result.err}')
  return False


def _cancel(batch: Batch) -> bool:
  """Cancels the job; warns unmistakably where that fails."""
  if _scancel(batch):
    return True
  bar = '!' * 100
  say(
    f'{bar}\nlaunch: job {batch.number} MAY STILL RUN. Cancel it by hand:\n\n  scancel {batch.number}\n{bar}'
  )
  return False


def _show_end(batch: Batch, code: int) -> None:
  lines = []
  if batch.files.log.exists():
    lines = batch.files.log.read_text(encoding='utf-8', errors='replace').splitlines()[-batch.job.tail :]
  say('\n'.join([f'launch: the run failed with {outcomes.in_words(code)}:', *lines]))
