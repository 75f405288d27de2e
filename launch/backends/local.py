"""The `local` backend: one run on this machine, on its GPUs or on CPU devices of several processes."""

import os
import pathlib
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import config_dict

from dro_jax.errors import UsageError
from dro_jax.parallel import processes as cluster
from launch import children, gpus, outcomes, signals
from launch.say import say

ROOT = pathlib.Path(__file__).resolve().parents[2]
_TICK = 0.05  # Seconds between looks at the processes.


def spec() -> config_dict.ConfigDict:
  """The fields of a local job."""
  job = config_dict.ConfigDict()
  job.backend = 'launch.backends.local:run'
  job.module = 'dro_jax.main'  # the module that each process runs
  job.platform = ''  # gpu or cpu (a rehearsal of a pod); '' is gpu where this machine has any
  job.processes = 0  # number of processes, joined by jax.distributed; 0 is 1 on GPUs and 2 on CPUs
  job.devices = 4  # CPU devices of each process; the processes share all GPUs
  job.max_restarts = 0  # how often a run that stopped after saving (75) is started again
  job.peer_seconds = 10.0  # how long the other processes may go on once one has failed
  job.grace_seconds = 10.0  # from SIGTERM to SIGKILL after that
  job.save_seconds = 600.0  # how long a run may take to save after Ctrl-C or SIGTERM
  job.tail = 20  # last lines of a failed process that are shown again
  job.at_once = 1  # cells of a sweep that run at the same time; each takes all GPUs, so 1 there
  return job


class _Place(NamedTuple):
  """Where the processes run.

  processes  number of processes
  gpus       GPUs of each process, as CUDA_VISIBLE_DEVICES names them; empty for CPU devices
  """

  processes: int
  gpus: tuple[Sequence[str], ...] = ()


def run(job: config_dict.ConfigDict, arguments: Sequence[str], *, dry_run: bool = False) -> int:
  """Runs `dro_jax ARGUMENTS` in every process; returns their folded exit code (see `outcomes.fold`)."""
  for field, least in (('processes', 0), ('devices', 1)):
    if job[field] < least:
      raise UsageError(f'--job.{field}={job[field]}: pass {least} or more')
  place = _place(job)
  command = [sys.executable, '-m', job.module, *arguments]
  if dry_run:
    _show(job, place, command)
    return outcomes.DONE
  with signals.watching() as watch:
    for restart in range(job.max_restarts + 1):
      if restart:
        say(f'launch: stopped after saving; restart {restart} of {job.max_restarts}')
      code, signalled = _run_once(job, place, command, watch)
      if code != outcomes.STOPPED or signalled:
        break
  return code


def _place(job: config_dict.ConfigDict) -> _Place:
  """The devices and the number of processes.

  Raises:
    UsageError: the machine does not have the devices that the job asks for.
  """
  if job.platform not in ('', 'cpu', 'gpu'):
    raise UsageError(
      f'--job.platform={job.platform}: pass gpu or cpu, or leave it out to use GPUs where there are any'
    )
  total = 0 if job.platform == 'cpu' else gpus.count()
  if job.platform == 'gpu' and not total:
    raise UsageError(
      '--job.platform=gpu: this machine has no GPU that jax may use (nvidia-smi -L, JAX_PLATFORMS): pass '
      '--job.platform=cpu'
    )
  if not total:
    return _Place(job.processes or 2)
  processes, names = job.processes or 1, gpus.visible(total)
  if total % processes:
    raise UsageError(
      f'--job.processes={processes} do not share {total} GPUs evenly: pass a divisor of {total}'
    )
  say(f'launch: the run takes {total} GPUs of this machine; --job.platform=cpu rehearses on CPU devices')
  each = total // processes
  return _Place(processes, tuple(names[index * each : (index + 1) * each] for index in range(processes)))


def _show(job: config_dict.ConfigDict, place: _Place, command: Sequence[str]) -> None:
  for index in range(place.processes):
    variables = [f'{name}={value}' for name, value in _variables(job, place, index, 'PORT').items()]
    say(shlex.join(['env', *variables, *command]), stream=sys.stdout)


def _variables(job: config_dict.ConfigDict, place: _Place, index: int, port: int | str) -> dict[str, str]:
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  variables = {'PYTHONPATH': os.pathsep.join(paths), 'PYTHONUNBUFFERED': '1'}
  if place.processes > 1 or not place.gpus:
    variables[cluster.VARIABLE] = f'{index}/{place.processes}@localhost:{port}'
  if place.gpus:
    return variables | {'CUDA_VISIBLE_DEVICES': ','.join(place.gpus[index])}
  # The number of devices must not be set twice.
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ.get('XLA_FLAGS', ''))
  return variables | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(job.devices),
    'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
    'XLA_FLAGS': flags.strip(),
  }


def _run_once(
  job: config_dict.ConfigDict, place: _Place, command: Sequence[str], watch: signals.Watch
) -> tuple[int, bool]:
  """The folded exit code, and whether a signal stopped the launcher."""
  port, processes, signalled = _free_port(), [], False
  try:
    for index in range(place.processes):
      variables = _variables(job, place, index, port)
      processes.append(children.start(str(index), command, variables, tail=job.tail))
    ended = _wait(job, processes, watch)
  except signals.Interrupted as interrupted:
    signalled = True
    say(f'launch: {interrupted}; asking all processes to save. A second signal kills them')
    ended = _stop(job, processes, watch)
  finally:
    children.end(processes)
  return _judge(ended), signalled


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _wait(
  job: config_dict.ConfigDict,
  processes: Sequence[children.Process],
  watch: signals.Watch,
  patience: float | int = float('inf'),
) -> list[children.Process]:
  """The processes in the order in which they end; ends the others once one fails or patience runs out."""
  ended, asked = [], False
  deadline = time.monotonic() + patience
  while len(ended) < len(processes):
    running = [process for process in processes if process not in ended]
    just = [process for process in running if process.popen.poll() is not None]
    for process in just:
      ended.append(process)
      if process.popen.returncode != outcomes.DONE:
        # The others may wait for the failed one until the heartbeat of jax fails.
        deadline = min(deadline, time.monotonic() + job.peer_seconds)
    if not just:
      watch.pause(_TICK)
    if len(ended) < len(processes) and time.monotonic() > deadline:
      running = [process for process in running if process.popen.poll() is None]
      children.send(running, signal.SIGKILL if asked else signal.SIGTERM)
      asked, deadline = True, time.monotonic() + job.grace_seconds
  return ended


def _stop(
  job: config_dict.ConfigDict, processes: Sequence[children.Process], watch: signals.Watch
) -> list[children.Process]:
  """Asks all processes to save and end; a second signal kills them."""
  children.send(processes, signal.SIGTERM)
  try:
    return _wait(job, processes, watch, patience=job.save_seconds)
  except signals.Interrupted:
    children.send(processes, signal.SIGKILL)
    return list(processes)


def _judge(ended: Sequence[children.Process]) -> int:
  """The folded exit code; prints the last lines of the process that failed first."""
  code = outcomes.fold(process.popen.returncode for process in ended)
  if outcomes.is_failure(code):
    failed = next(process for process in ended if outcomes.is_failure(process.popen.returncode))
    say(f'launch: process {failed.label} failed first, with {outcomes.in_words(failed.popen.returncode)}:')
    for line in failed.last:
      say(f'launch: [{failed.label}] {line}')
  return code
