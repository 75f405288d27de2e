"""The `gke` backend: creates a JobSet on TPU node pools of a Kubernetes cluster and follows it to its end.

The cluster restarts the run after preemptions by itself, so the run does not need the launcher.
"""

import json
import pathlib
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from dro_jax.errors import UsageError
from launch import arguments as words
from launch import checks, children, commands, outcomes, scripts, signals, slices
from launch.backends import jobset
from launch.say import say

_PREFIX = 'jobset.sigs.k8s.io'
_FIRST = (f'{_PREFIX}/job-index', 'batch.kubernetes.io/job-completion-index')
_UNKNOWN, _GONE, _COMPLETED, _FAILED = 'unknown', 'gone', 'Completed', 'Failed'
# A pod that waits for one of these will never start.
_STUCK = ('ImagePullBackOff', 'InvalidImageName', 'CreateContainerConfigError', 'CreateContainerError')
_STUCK_LOOKS = 3
# With these it may: images are large. But without its volume it waits for ever.
_SLOW = ('ContainerCreating', 'PodInitializing')
_POD_CHARACTERS = 63
_CLOSE_SECONDS = 2  # Between requests while a set is being deleted, at most.
_LAST_WORDS_SECONDS = 2  # How long the log may take to end after its pod.
# The answer of the cluster in a dry run: the set is done and has one pod.
_PRETENDED = json.dumps(
  {
    'items': [
      {'kind': 'JobSet', 'status': {'conditions': [{'type': _COMPLETED, 'status': 'True'}]}},
      {
        'kind': 'Pod',
        'metadata': {'name': 'FIRST_POD', 'labels': dict.fromkeys(_FIRST, '0')},
        'status': {'containerStatuses': [{'name': jobset.CONTAINER, 'state': {'running': {}}}]},
      },
    ]
  }
)


def spec() -> config_dict.ConfigDict:
  """The fields of a job on a Kubernetes cluster."""
  job = config_dict.ConfigDict()
  job.backend = 'launch.backends.gke:run'
  job.name = 'dro-jax'  # prefix of the JobSet's name
  job.context = ''  # the context of kubectl; '' takes kubectl's current one
  job.namespace = ''  # the namespace, likewise
  job.queue = ''  # Kueue's LocalQueue, where the cluster has one
  job.topology = 'v5e:4x8'  # the slice, or several: 2xv5e:4x8
  job.chips_per_host = 0  # chips of each machine of the node pool; 0 is the usual number
  job.spot = False  # cheaper, and may be taken away at any time
  job.node_selector = ()  # more labels that the nodes must have, NAME=VALUE
  job.image = ''  # the image built by launch/Dockerfile, in a registry
  job.env = ()  # more environment variables, NAME=VALUE
  job.service_account = ''  # a service account of Kubernetes, which a bucket needs
  job.shared_dir = '/mnt/runs'  # where the shared folder is mounted; model_dir must be in it
  job.claim = ''  # the PersistentVolumeClaim (Filestore) that is mounted there
  job.bucket = ''  # or the bucket, by gcsfuse; it needs a hierarchical namespace for atomic checkpoints
  job.keep = False  # keep the JobSet when the run is over, for inspection
  job.keep_seconds = 86400  # how long the cluster keeps a JobSet that is over and not deleted
  job.max_restarts = 20  # how often a stopped or preempted run continues
  job.poll_seconds = 20.0  # between requests for the state
  job.retry_seconds = 15.0  # between attempts of a command that failed
  job.attempts = 5
  job.silence_seconds = 1800.0  # how long the cluster may fail to answer
  job.begin_seconds = 1800.0  # how long a pod may take to start once it has its machine
  job.save_seconds = 600.0  # how long the run may take to save after SIGTERM
  job.tail = 30  # last lines of a failed run that are shown
  job.at_once = 4  # cells of a sweep that run at the same time
  checks.fields(job)
  return job


class Failed(Exception):
  """A step failed for good."""


class Set(NamedTuple):
  """A JobSet with a name that no other JobSet has.

  name      its name
  job       the spec
  commands  runs kubectl
  """

  name: str
  job: config_dict.ConfigDict
  commands: commands.Commands


class Pod(NamedTuple):
  """A pod as the cluster describes it.

  name       its name
  attempt    the attempt of the set, from 0
  first      whether it is the first machine of the first slice
  begun      whether its container has started
  waiting    the reason why it waits, and the message
  code       the exit code of its container
  ended      the time at which it ended, as Kubernetes writes it
  disrupted  whether its machine was taken away
  """

  name: str
  attempt: int
  first: bool
  begun: bool
  waiting: tuple[str, str]
  code: int | None
  ended: str
  disrupted: bool


def run(job: config_dict.ConfigDict, arguments: Sequence[str], *, dry_run: bool = False) -> int:
  """Creates a JobSet that runs `dro_jax ARGUMENTS`, follows it to its end, deletes it."""
  where = refuse(job, arguments)
  name = f'{job.name}-{secrets.token_hex(4)}'
  _refuse_long(job, name, where)
  if dry_run:
    how = commands.dry()
    checks.preflight(job, arguments, job.topology, how, dry_run=True)
    say(scripts.heredoc(f'{name}.json', _text(job, name, arguments)), stream=sys.stdout)
    return _life(Set(name, job, how), f'{name}.json')
  if not shutil.which('kubectl'):
    raise UsageError(
      'kubectl is not on the PATH: install it and run `gcloud container clusters get-credentials`'
    )
  with tempfile.TemporaryDirectory() as folder, signals.watching() as watch:
    how = commands.real(watch)
    checks.preflight(job, arguments, job.topology, how, dry_run=False)
    file = pathlib.Path(folder) / f'{name}.json'
    file.write_text(_text(job, name, arguments))
    return _life(Set(name, job, how), str(file))


def _text(job: config_dict.ConfigDict, name: str, arguments: Sequence[str]) -> str:
  return json.dumps(jobset.manifest(job, name, arguments), indent=2, ensure_ascii=False)


def refuse(job: config_dict.ConfigDict, arguments: Sequence[str]) -> slices.Slice:
  """Refuses a job that would fail on machines which cost money; returns the slice.

  Raises:
    UsageError: the message says what to pass.
  """
  where = slices.parse(job.topology, job.chips_per_host)
  if not re.fullmatch(r'[a-z]([a-z0-9-]*[a-z0-9])?', job.name):
    raise UsageError(f'--job.name={job.name}: pass small letters, digits and dashes')
  if where.count > 1 and where.hosts == 1:
    raise UsageError(
      f'--job.topology={job.topology}: GKE joins several slices only if each has several machines. Pass '
      'larger slices, or one slice'
    )
  if not job.image:
    raise UsageError(
      'the job has no image: build one of this checkout and pass --job.image=REGISTRY/NAME:TAG:\n'
      '  git archive HEAD | docker build --file=launch/Dockerfile --tag=REGISTRY/NAME:TAG -'
    )
  if job.claim and job.bucket:
    raise UsageError(
      f'--job.claim={job.claim} and --job.bucket={job.bucket}: {job.shared_dir} mounts one. Pass one of them'
    )
  for text in (*job.env, *job.node_selector):
    if not re.match(r'[^=]+=', text):
      raise UsageError(f'{text!r} in --job.env or --job.node_selector: pass NAME=VALUE')
  shared = job.shared_dir if job.claim or job.bucket else ''
  checks.refuse_absent(arguments, shared)
  checks.refuse_unbound(arguments)
  folder = words.value(arguments, 'model_dir')
  if folder is not None and not words.is_in(folder, shared):
    raise UsageError(
      f'--model_dir={folder} would be deleted with its pod. Mount a Filestore share (--job.claim=CLAIM) or a '
      f'bucket (--job.bucket=BUCKET), and pass --model_dir={job.shared_dir}/NAME'
    )
  return where


def _refuse_long(job: config_dict.ConfigDict, name: str, where: slices.Slice) -> None:
  """Refuses a name too long for pods, to which Kubernetes adds slice, machine and five characters."""
  longest = f'{name}-{jobset.REPLICATED}-{where.count - 1}-{where.hosts - 1}-xxxxx'
  if over := max(0, len(longest) - _POD_CHARACTERS):
    raise UsageError(
      f'--job.name={job.name}: Kubernetes does not allow the name of the pod {longest}: pass a name that is '
      f'{over} characters shorter'
    )


def _kubectl(of: Set, *words: str) -> list[str]:
  """A kubectl command in the context and namespace of the job."""
  place = [f'--{name}={of.job[name]}' for name in ('context', 'namespace') if of.job[name]]
  return ['kubectl', *place, *words]


def _selector(of: Set) -> str:
  return f'--selector={jobset.LABEL}={of.name}'


def deletion(of: Set) -> list[str]:
  """The command that deletes the set, which asks its pods to save."""
  return _kubectl(
    of, 'delete', 'jobset', of.name, '--cascade=foreground', '--wait=false', '--ignore-not-found'
  )


def _life(of: Set, file: str) -> int:
  """Creates a set, follows it and deletes it; returns the exit code of the run."""
  say(f'launch: {of.name}. To delete it by hand: {shlex.join(deletion(of))}')
  log = Log(of)
  try:
    code, over = _run_once(of, file, log)
    log.close(_LAST_WORDS_SECONDS)
    if over and of.job.keep:
      say(f'launch: {of.name} is over, and kept until you run: {shlex.join(deletion(of))}')
      return code
    return code if _give_back(of) else outcomes.FAILED
  except signals.Interrupted as interrupted:
    say(
      f'launch: {interrupted}; deleting {of.name}, which asks the run to save. After a second signal the '
      'launcher does not wait for that'
    )
    return _stop(of, log, interrupted.exit_code)
  except BaseException:
    _give_back(of)
    raise
  finally:
    log.close(_LAST_WORDS_SECONDS)


def _run_once(of: Set, file: str, log: 'Log') -> tuple[int, bool]:
  """Creates the set and follows it; returns the exit code of the run, and whether the set is over."""
  over = False
  try:
    _insist(of, _kubectl(of, 'apply', f'--filename={file}', '--request-timeout=60s'), 'creating')
    code, over = _follow(of, log), True
  except Failed as failed:
    say(f'launch: {failed}')
    code = outcomes.FAILED
  if outcomes.is_failure(code):
    _show_end(of, code)
  elif code == outcomes.STOPPED:
    say('launch: no restart is left: launch again with the same model_dir, or a larger --job.max_restarts')
  return code, over


def _insist(of: Set, command: Sequence[str], what: str, *, shielded: bool = False) -> None:
  """Tries a command `attempts` times, each to its end; raises `Failed` if all attempts failed.

  No signal ends `shielded` attempts.
  """
  for attempt in range(1, of.job.attempts + 1):
    result = of.commands.call(command, shielded=True)
    if not result.code:
      return
    say(f'launch: {what} {of.name} failed ({attempt} of {of.job.attempts}): {result.err}')
    if attempt < of.job.attempts:
      of.commands.pause(of.job.retry_seconds, shielded=shielded)
  raise Failed(f'{what} {of.name} failed {of.job.attempts} times')


# --- looking ------------------------------------------------------------------------------------------------


class Log:
  """The log of the first pod; a kubectl of its own shows it as it grows."""

  def __init__(self, of: Set):
    self._of, self._pod, self._last = of, None, ''
    self._process: children.Process | None = None

  def show(self, pods: Sequence[Pod]) -> None:
    """Follows the log of the newest first pod, unless that is done."""
    pod = next((pod for pod in reversed(pods) if pod.first and pod.begun), None)
    if pod is None or (self._process and self._process.popen.poll() is None):
      return
    broken = self._process is not None and self._process.popen.returncode
    if pod.name == self._pod and (pod.code is not None and not broken):
      return
    if pod.name != self._pod:
      self._pod, self._last = pod.name, ''
    since = [f'--since-time={self._last}'] if self._last else []
    command = _kubectl(self._of, 'logs', pod.name, f'--container={jobset.CONTAINER}', '--follow')
    self._process = self._of.commands.start('', [*command, '--timestamps', *since], shown=self._shown)

  def _shown(self, line: str) -> str | None:
    """A line without its time; `None` if it was shown before."""
    stamp, _, text = line.partition(' ')
    if stamp <= self._last:
      return None
    self._last = stamp
    return text

  def close(self, seconds: float | int) -> None:
    """Ends the log once all of it has been shown, or after so many seconds."""
    if self._process is None:
      return
    deadline = time.monotonic() + seconds
    while self._process.popen.poll() is None and time.monotonic() < deadline:
      time.sleep(0.02)
    children.end([self._process])


class Look(NamedTuple):
  """A set as the cluster describes it.

  state     Completed, Failed, gone, unknown or ''
  restarts  how often the cluster restarted it
  why       the message of the cluster
  pods      the pods that exist, by attempt
  """

  state: str
  restarts: int
  why: str
  pods: list[Pod]


def _look(of: Set, *, pretend: str, shielded: bool = False) -> Look:
  command = _kubectl(of, 'get', 'jobsets,pods', _selector(of), '--output=json')
  result = of.commands.call(command, pretend=pretend, shielded=shielded)
  try:
    items = json.loads(result.out)['items'] if not result.code else None
  except ValueError:
    items = None
  if items is None:
    return Look(_UNKNOWN, 0, result.err, [])
  pods = sorted((_pod(item) for item in items if item['kind'] == 'Pod'), key=lambda pod: pod.attempt)
  status = next((item.get('status', {}) for item in items if item['kind'] == 'JobSet'), None)
  if status is None:
    return Look(_GONE, 0, '', pods)
  conditions = [c for c in status.get('conditions', ()) if c.get('status') == 'True']
  over = next((c for c in conditions if c.get('type') in (_COMPLETED, _FAILED)), {})
  return Look(over.get('type', ''), status.get('restarts', 0), over.get('message', ''), pods)


def _pod(item: Mapping[str, Any]) -> Pod:
  labels, status = item['metadata'].get('labels', {}), item.get('status', {})
  containers = status.get('containerStatuses', ())
  state = next((c.get('state', {}) for c in containers if c['name'] == jobset.CONTAINER), {})
  waiting = state.get('waiting') or next(
    (c for c in status.get('conditions', ()) if c.get('status') == 'False' and c.get('reason')), {}
  )
  ended = state.get('terminated') or {}
  true = [c['type'] for c in status.get('conditions', ()) if c.get('status') == 'True']
  return Pod(
    name=item['metadata']['name'],
    attempt=int(labels.get(f'{_PREFIX}/restart-attempt', 0)),
    first=all(labels.get(label) == '0' for label in _FIRST),
    begun='running' in state or 'terminated' in state,
    waiting=(waiting.get('reason', ''), waiting.get('message', '')),
    code=ended.get('exitCode'),
    ended=ended.get('finishedAt') or '',
    disrupted='DisruptionTarget' in true,
  )


class Codes:
  """Exit codes of pods, noted here because the cluster forgets pods."""

  def __init__(self):
    self._pods: dict[str, Pod] = {}

  def note(self, pods: Sequence[Pod]) -> None:
    self._pods |= {pod.name: pod for pod in pods if pod.code is not None or pod.disrupted}

  def _newest(self) -> int:
    return max((pod.attempt for pod in self._pods.values() if pod.code is not None), default=0)

  def folded(self, before: int = 0) -> int | None:
    """The folded code of the newest attempt, or of one before it; `None` where no pod has one."""
    attempt = self._newest() - before
    ended = [pod for pod in self._pods.values() if pod.attempt == attempt and pod.code is not None]
    ended.sort(key=lambda pod: pod.ended)
    return outcomes.fold(pod.code for pod in ended) if ended else None

  def fails_again(self) -> bool:
    """Whether two attempts in succession failed although they lost no machine."""
    last = (self._newest(), self._newest() - 1)
    disrupted = any(pod.disrupted and pod.attempt in last for pod in self._pods.values())
    return not disrupted and self.folded() == self.folded(1) == outcomes.FAILED


def _follow(of: Set, log: Log) -> int:
  """Shows the log until the set is over; returns the exit code of the run.

  Raises:
    Failed: the cluster does not answer or cannot start the run, or the set was deleted from elsewhere.
  """
  job, codes, report = of.job, Codes(), Report(of)
  while True:
    now = _look(of, pretend=_PRETENDED)
    log.show(now.pods)
    codes.note(now.pods)
    if now.state == _COMPLETED:
      return outcomes.DONE
    if now.state == _FAILED:
      say(f'launch: {of.name} failed: {now.why}')
      return codes.folded() or outcomes.FAILED
    if now.state == _GONE:
      raise Failed(f'{of.name} was deleted from elsewhere')
    if codes.fails_again():
      raise Failed(f'{of.name} failed twice in succession, and lost no machine')
    report.note(now)
    of.commands.pause(job.poll_seconds)


class Report:
  """Prints changes of a set, and gives up where waiting is of no use."""

  def __init__(self, of: Set):
    self._of, self._said, self._restarts, self._stuck = of, '', 0, 0
    self._heard, self._slow = time.monotonic(), {}

  def note(self, now: Look) -> None:
    """Takes one description of the set.

    Raises:
      Failed: the cluster does not answer, or a pod cannot start.
    """
    name, job = self._of.name, self._of.job
    if now.state == _UNKNOWN:
      if time.monotonic() > self._heard + job.silence_seconds:
        raise Failed(f'the cluster has not described {name} for {job.silence_seconds:g} s: {now.why}')
      return
    self._heard = time.monotonic()
    if now.restarts > self._restarts:
      say(f'launch: the cluster restarts {name}: restart {now.restarts} of {job.max_restarts}')
      self._restarts = now.restarts
    waits = [pod for pod in now.pods if pod.waiting[0] and not pod.begun]
    # A reason that waiting does not remove comes first.
    waiting = max((pod.waiting for pod in waits), key=lambda why: why[0] in _STUCK, default=('', ''))
    running = sum(pod.begun and pod.code is None for pod in now.pods)
    text = f'{running} of {len(now.pods)} pods run' + (f'; {": ".join(waiting)}' if waiting[0] else '')
    if now.pods and text != self._said:
      say(f'launch: {name}: {text}')
      self._said = text
    self._stuck = self._stuck + 1 if waiting[0] in _STUCK else 0
    if self._stuck >= _STUCK_LOOKS:
      raise Failed(f'{name} cannot start: {": ".join(waiting)}')
    self._refuse_slow([pod for pod in waits if pod.waiting[0] in _SLOW])

  def _refuse_slow(self, pods: Sequence[Pod]) -> None:
    """Raises `Failed`, with the cluster's description, where a pod takes too long to start."""
    job, now = self._of.job, time.monotonic()
    self._slow = {pod.name: self._slow.get(pod.name, now) for pod in pods}
    for pod, since in self._slow.items():
      if now > since + job.begin_seconds:
        command = _kubectl(self._of, 'describe', 'pods', pod)
        lines = self._of.commands.call(command).out.decode(errors='replace').splitlines()
        last = '\n'.join(lines[-job.tail :])
        raise Failed(f'{pod} has not started in {job.begin_seconds:g} s. {shlex.join(command)}:\n{last}')


# --- ending -------------------------------------------------------------------------------------------------


def _show_end(of: Set, code: int) -> None:
  command = _kubectl(of, 'logs', _selector(of), f'--container={jobset.CONTAINER}')
  last = of.commands.call([*command, f'--tail={of.job.tail}', '--prefix', '--ignore-errors'])
  say(f'launch: the run failed with {outcomes.in_words(code)}:\n{last.out.decode(errors="replace")}')


def _stop(of: Set, log: Log, otherwise: int) -> int:
  """Deletes the set, whose pods save; returns their folded exit code, or `otherwise` where there is none."""
  codes = Codes()

  def look(pods: Sequence[Pod]) -> None:
    log.show(pods)
    codes.note(pods)

  if not _give_back(of, look):
    return outcomes.FAILED
  code = codes.folded()
  return otherwise if code is None else code


def _give_back(of: Set, look: Callable[[Sequence[Pod]], None] = lambda pods: None) -> bool:
  """Deletes the set and waits until its pods have saved; warns unmistakably where that fails."""
  deadline = time.monotonic() + of.job.save_seconds + of.job.silence_seconds
  try:
    _insist(of, deletion(of), 'deleting', shielded=True)
    while _is_there(of, look):
      if time.monotonic() > deadline:
        raise Failed(f'{of.name} still exists')
      of.commands.pause(min(of.job.poll_seconds, _CLOSE_SECONDS))
  except signals.Interrupted as interrupted:
    say(f'launch: {interrupted}; the pods of {of.name} save and end by themselves')
  except Failed as failed:
    bar = '!' * 100
    say(f'{bar}\nlaunch: {failed}: IT MAY STILL RUN AND COST MONEY. Delete it by hand:')
    say(f'\n  {shlex.join(deletion(of))}\n{bar}')
    return False
  return True


def _is_there(of: Set, look: Callable[[Sequence[Pod]], None]) -> bool:
  """Whether the set or one of its pods still exists; passes the pods to `look`."""
  now = _look(of, pretend='{"items": []}', shielded=True)
  look(now.pods)
  return now.state != _GONE or bool(now.pods)
