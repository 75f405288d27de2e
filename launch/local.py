"""The `local` backend: several processes on this machine, one run over all their devices."""

import os
import pathlib
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence

from ml_collections import config_dict

from dro_jax import cluster
from dro_jax.errors import UsageError
from launch import children, outcomes, signals
from launch.say import say

ROOT = pathlib.Path(__file__).resolve().parent.parent
_TICK = 0.05  # Seconds between looks at the processes.


def spec() -> config_dict.ConfigDict:
  """The fields of a local job."""
  job = config_dict.ConfigDict()
  job.backend = 'launch.local:run'
  job.module = 'dro_jax.main'  # what each process runs
  job.processes = 2  # processes, which find each other through jax.distributed
  job.devices = 4  # CPU devices of each
  job.max_restarts = 0  # times that a run which stopped after saving (75) is started again
  job.peer_seconds = 10.0  # how long the others may go on once one has failed
  job.grace_seconds = 10.0  # from SIGTERM to SIGKILL after that
  job.save_seconds = 600.0  # how long a run may take to save after Ctrl-C or SIGTERM
  job.tail = 20  # last lines of a failed process that are shown again
  job.at_once = 1  # cells of a sweep that run at the same time
  return job


def run(job: config_dict.ConfigDict, arguments: Sequence[str], *, dry_run: bool = False) -> int:
  """Runs `dro_jax ARGUMENTS` in every process; returns their codes, folded (see `outcomes.fold`)."""
  for field in ('processes', 'devices'):
    if job[field] < 1:
      raise UsageError(f'--job.{field}={job[field]}: pass 1 or more')
  command = [sys.executable, '-m', job.module, *arguments]
  if dry_run:
    _show(job, command)
    return outcomes.DONE
  with signals.watching() as watch:
    for restart in range(job.max_restarts + 1):
      if restart:
        say(f'launch: stopped after saving; restart {restart} of {job.max_restarts}')
      code, signalled = _run_once(job, command, watch)
      if code != outcomes.STOPPED or signalled:
        break
  return code


def _show(job: config_dict.ConfigDict, command: Sequence[str]) -> None:
  for index in range(job.processes):
    variables = [f'{name}={value}' for name, value in _variables(job, index, 'PORT').items()]
    say(shlex.join(['env', *variables, *command]), stream=sys.stdout)


def _variables(job: config_dict.ConfigDict, index: int, port: int | str) -> dict[str, str]:
  # What the outside says of devices would be said twice.
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ.get('XLA_FLAGS', ''))
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  return {
    'PYTHONPATH': os.pathsep.join(paths),
    cluster.VARIABLE: f'{index}/{job.processes}@localhost:{port}',
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(job.devices),
    'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
    'XLA_FLAGS': flags.strip(),
    'PYTHONUNBUFFERED': '1',
  }


def _run_once(job: config_dict.ConfigDict, command: Sequence[str], watch: signals.Watch) -> tuple[int, bool]:
  """The folded exit code, and whether we were asked to stop."""
  port, processes, signalled = _free_port(), [], False
  try:
    for index in range(job.processes):
      variables = _variables(job, index, port)
      processes.append(children.start(str(index), command, variables, tail=job.tail))
    ended = _wait(job, processes, watch)
  except signals.Interrupted as interrupted:
    signalled = True
    say(f'launch: {interrupted}; asking all processes to save. Once more, and they are killed')
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
  """Waits for all, in the order in which they end; once one has failed, or patience, ends the others."""
  ended, asked = [], False
  deadline = time.monotonic() + patience
  while len(ended) < len(processes):
    running = [process for process in processes if process not in ended]
    just = [process for process in running if process.popen.poll() is not None]
    for process in just:
      ended.append(process)
      if process.popen.returncode != outcomes.DONE:
        # Those that the failure does not end would wait for it until jax's heartbeat fails.
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
  """Asks all to save and end; kills them at a second signal."""
  children.send(processes, signal.SIGTERM)
  try:
    return _wait(job, processes, watch, patience=job.save_seconds)
  except signals.Interrupted:
    children.send(processes, signal.SIGKILL)
    return list(processes)


def _judge(ended: Sequence[children.Process]) -> int:
  """The folded code, and a failed process's last lines."""
  code = outcomes.fold(process.popen.returncode for process in ended)
  if outcomes.is_failure(code):
    failed = next(process for process in ended if outcomes.is_failure(process.popen.returncode))
    say(f'launch: process {failed.label} ended first, by {outcomes.in_words(failed.popen.returncode)}:')
    for line in failed.last:
      say(f'launch: [{failed.label}] {line}')
  return code
