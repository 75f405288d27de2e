"""TPU machines through gcloud: creates, describes and reaches them, and deletes them for certain."""

import json
import time
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import config_dict

from launch.commands import Commands, Result
from launch.say import say

READY, NOT_FOUND, UNKNOWN = 'READY', 'NOT_FOUND', 'UNKNOWN'
_QUEUE_ENDS = ('FAILED', 'SUSPENDING', 'SUSPENDED', 'DELETING', NOT_FOUND)
# States of a machine before it is ready.
_BORN = ('CREATING', 'STARTING', 'RESTARTING', 'REPAIRING', 'STATE_UNSPECIFIED', UNKNOWN)


class Failed(Exception):
  """A step failed for good."""


class Lost(Exception):
  """The machine was preempted, or is gone."""


class Machine(NamedTuple):
  """A machine with a name that no other machine has.

  name      the name of the node and of its queued resource.
  job       the spec.
  commands  runs gcloud.
  """

  name: str
  job: config_dict.ConfigDict
  commands: Commands


def _tpus(machine: Machine, *words: str) -> list[str]:
  """A gcloud command for TPUs, in the project and zone of the job."""
  job = machine.job
  place = [f'--{name}={job[name]}' for name in ('project', 'zone') if job[name]]
  return ['gcloud', 'compute', 'tpus', *words, *place]


class Report:
  """Prints each new state."""

  def __init__(self, machine: Machine):
    self._machine, self._last, self._heard = machine, None, time.monotonic()

  def wait(self, now: str, described: dict) -> None:
    """Waits until the next request.

    Raises:
      Failed: gcloud has not answered for too long.
    """
    job, why = self._machine.job, described.get('why', '')
    if now != UNKNOWN:
      self._heard = time.monotonic()
    elif time.monotonic() > self._heard + job.silence_seconds:
      raise Failed(f'gcloud has not described {self._machine.name} for {job.silence_seconds:g} s: {why}')
    if now != self._last:
      say(f'launch: {self._machine.name} is {now}{": " if why else ""}{why}')
    self._last = now
    self._machine.commands.pause(job.poll_seconds)


def create(machine: Machine) -> None:
  """Requests the machine.

  Raises:
    Failed: the request was refused.
  """
  job, name = machine.job, machine.name
  node = [f'--accelerator-type={job.accelerator_type}', *(['--spot'] if job.spot else [])]
  if job.queued:
    until = [f'--valid-until-duration={job.valid_until}'] if job.valid_until else []
    what = ['queued-resources', 'create', name, f'--node-id={name}', *node]
    what += [f'--runtime-version={job.runtime_version}', *until]
  else:
    what = ['tpu-vm', 'create', name, *node, f'--version={job.runtime_version}']
  for attempt in range(1, job.create_attempts + 1):
    result = machine.commands.call(_tpus(machine, *what, *job.create_flags))
    # No other machine has the name: an earlier attempt succeeded although it seemed to fail.
    if not result.code or (attempt > 1 and 'ALREADY_EXISTS' in result.err):
      return
    say(f'launch: creating {name} failed ({attempt} of {job.create_attempts}): {result.err}')
    if attempt < job.create_attempts:
      machine.commands.pause(job.retry_seconds)
  raise Failed(f'{name} could not be created')


def _describe(machine: Machine, kind: str, pretend: str, *, shielded: bool = False) -> dict:
  """The description by gcloud; `{'state': NOT_FOUND}` if it does not exist, UNKNOWN if gcloud fails."""
  command = _tpus(machine, kind, 'describe', machine.name, '--format=json')
  result = machine.commands.call(command, pretend=pretend, shielded=shielded)
  if result.code:
    return {'state': NOT_FOUND} if _is_not_found(result) else {'state': UNKNOWN, 'why': result.err}
  try:
    return json.loads(result.out)
  except ValueError:
    return {'state': UNKNOWN}


def _is_not_found(result: Result) -> bool:
  return 'NOT_FOUND' in result.err or 'was not found' in result.err or 'notFound' in result.err


def state(machine: Machine) -> str:
  """The state of the node: READY, PREEMPTED, NOT_FOUND, ..., or UNKNOWN where gcloud fails."""
  return _describe(machine, 'tpu-vm', '{"state": "READY"}').get('state', UNKNOWN)


def wait_until_ready(machine: Machine) -> int:
  """Waits in the queue and for the node; returns its number of workers.

  Raises:
    Failed: the request was refused or has expired.
    Lost: the machine was taken away before it was ready.
  """
  if machine.job.queued:
    _wait_in_queue(machine)
  workers = max(1, hosts(machine.job.accelerator_type))
  pretend = json.dumps({'state': READY, 'networkEndpoints': [{}] * workers})
  report = Report(machine)
  while True:
    node = _describe(machine, 'tpu-vm', pretend)
    now = node.get('state', UNKNOWN)
    if now == READY:
      return len(node.get('networkEndpoints', ())) or workers
    if now not in _BORN:
      raise Lost(f'{machine.name} is {now} before it was ready')
    report.wait(now, node)


def _wait_in_queue(machine: Machine) -> None:
  report = Report(machine)
  while True:
    found = _describe(machine, 'queued-resources', '{"state": {"state": "ACTIVE"}}')
    detail = found.get('state', UNKNOWN)
    now = detail if isinstance(detail, str) else detail.get('state', UNKNOWN)
    if now == 'ACTIVE':
      return
    if now == 'FAILED':
      reason = detail.get('failedData', {}).get('error', {}).get('message', 'gcloud gives no reason')
      raise Failed(f'the request for {machine.name} failed: {reason}')
    if now in _QUEUE_ENDS:
      raise Lost(f'the request for {machine.name} is {now}')
    report.wait(now, found)


def hosts(accelerator_type: str) -> int:
  """The number of machines of a slice by its name: v5litepod-16 has 4, v4-8 has 1; 0 for an unknown name."""
  family, _, size = accelerator_type.rpartition('-')
  if not size.isdigit():
    return 0
  # The newer names count chips (8 on a single machine, 4 a machine beyond), the older ones cores.
  if family in ('v5litepod', 'v5e', 'v6e'):
    return 1 if int(size) <= 8 else int(size) // 4
  return max(1, int(size) // 8) if family in ('v2', 'v3', 'v4', 'v5p') else 0


def copy(machine: Machine, file: str) -> None:
  """Copies a file to the home of every worker."""
  command = ['tpu-vm', 'scp', file, f'{machine.name}:', '--worker=all', '--quiet']
  _insist(machine, _tpus(machine, *command, *machine.job.ssh_flags), 'copying to the workers')


def shell(machine: Machine, script: str, *, worker: str = 'all', pretend: str = '') -> Result:
  """Runs a script on workers, once."""
  command = ['tpu-vm', 'ssh', machine.name, f'--worker={worker}', '--quiet', f'--command={script}']
  return machine.commands.call(_tpus(machine, *command, *machine.job.ssh_flags), pretend=pretend)


def insist(machine: Machine, script: str, what: str, *, pretend: str = '') -> Result:
  """Runs a script on all workers, and repeats it where it fails (see `_insist`)."""
  command = ['tpu-vm', 'ssh', machine.name, '--worker=all', '--quiet', f'--command={script}']
  return _insist(machine, _tpus(machine, *command, *machine.job.ssh_flags), what, pretend=pretend)


def _insist(machine: Machine, command: Sequence[str], what: str, *, pretend: str = '') -> Result:
  """Tries a command `ssh_attempts` times: connections to a new machine are often refused.

  Raises:
    Failed: all attempts failed.
    Lost: the machine is gone.
  """
  job = machine.job
  for attempt in range(1, job.ssh_attempts + 1):
    result = machine.commands.call(command, pretend=pretend)
    if not result.code:
      return result
    words = result.err or result.out.decode(errors='replace')
    last = '\n'.join(words.splitlines()[-job.tail :])
    say(f'launch: {what} failed ({attempt} of {job.ssh_attempts}): {last}')
    refuse_lost(machine)
    if attempt < job.ssh_attempts:
      machine.commands.pause(job.retry_seconds)
  raise Failed(f'{what} failed {job.ssh_attempts} times')


def refuse_lost(machine: Machine) -> None:
  """Raises `Lost` if the machine is no longer ready."""
  now = state(machine)
  if now not in (READY, UNKNOWN):
    raise Lost(f'{machine.name} is {now}')


def deletion(machine: Machine) -> list[str]:
  """The command that deletes the machine."""
  if machine.job.queued:
    return _tpus(machine, 'queued-resources', 'delete', machine.name, '--force', '--quiet')
  return _tpus(machine, 'tpu-vm', 'delete', machine.name, '--quiet')


def delete(machine: Machine) -> bool:
  """Deletes the machine whatever happens, and verifies that it is gone; returns whether it is.

  It checks twice: a request that was interrupted as it was made may arrive after the first check.
  """
  job, commands = machine.job, machine.commands
  for attempt in range(job.delete_attempts):
    if attempt:
      commands.pause(job.retry_seconds, shielded=True)
    result = commands.call(deletion(machine), shielded=True)
    if result.code and not _is_not_found(result):
      say(f'launch: deleting {machine.name}: {result.err}')
    if _is_gone(machine):
      commands.pause(job.retry_seconds, shielded=True)
      if _is_gone(machine):
        return True
  return False


def _is_gone(machine: Machine) -> bool:
  kinds = ['queued-resources', 'tpu-vm'] if machine.job.queued else ['tpu-vm']
  gone = json.dumps({'state': NOT_FOUND})
  left = [k for k in kinds if _describe(machine, k, gone, shielded=True).get('state') != NOT_FOUND]
  if left == ['tpu-vm'] and machine.job.queued:
    # The queue has forgotten the node.
    machine.commands.call(_tpus(machine, 'tpu-vm', 'delete', machine.name, '--quiet'), shielded=True)
  return not left
