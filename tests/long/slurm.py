"""The `slurm` backend on a real Slurm of two nodes: `python tests/long/slurm.py [NAME ...]`.

It needs root and Debian's packages `slurm-wlm` and `munge`, and skips without them (exit code 77). It starts
munged, slurmctld and a slurmd a node itself, on ports and in a folder of their own, with two GPUs a node that
are only numbers, and ends them. There is no accounting, so sacct answers nothing.

    processes  two tasks find each other by `jax.distributed.initialize()` and train one run.
    limit      the time limit comes: the run saves, is queued again, resumes, and ends as the undisturbed run,
               to the bit.
    cancel     Ctrl-C to the launcher: the run saves, ends with 75 and is not queued again. `scancel` by
               another: the launcher says so at once.
    node       a node dies, its slurmd and all: the run is queued again, on the other node, and ends as the
               undisturbed run, to the bit.
    split      a node's slurmd dies alone: the job that is queued again waits until the first trains no more.

Without a name it does all of them, in some ten minutes on one core.
"""

import contextlib
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import faults

SKIPPED = 77
STEPS, FEW, SHORT, FOREVER = 1500, 60, 300, 1_000_000
faults.STEPS = STEPS
# jax joins processes by the nodes' names, so these must lead to this machine.
NODES = ('127.0.0.2', '127.0.0.3')
PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol')
LAUNCH = faults.ROOT / 'launch' / 'launch.py'
JOB = """
from launch.backends import slurm


def get_config():
  return slurm.spec()
"""


def main(folder: pathlib.Path, names: list[str]) -> int:
  if reason := missing():
    print(f'skipped: {reason}')
    return SKIPPED
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # The daemons must end.
  faults.write_triplets(folder)
  (folder / 'job.py').write_text(JOB)
  with cluster(folder / 'slurm'):
    for name in names or ('processes', 'limit', 'cancel', 'node', 'split'):
      began = time.monotonic()
      globals()[name](folder)
      print(f'{name}: {time.monotonic() - began:.0f} s', flush=True)
  return 0


def missing() -> str:
  if os.geteuid():
    return 'only root may start slurmd'
  if absent := [name for name in PROGRAMS if not shutil.which(name)]:
    return f'{absent[0]} is not there (apt-get install --no-install-recommends slurm-wlm munge)'
  return ''


# --- the cluster --------------------------------------------------------------------------------------------


def config(folder: pathlib.Path, ports: list[int]) -> str:
  controller, *of_nodes = ports
  nodes = '\n'.join(
    f'NodeName={name} NodeHostname={platform.node()} NodeAddr={name} Port={port} CPUs=4 Gres=gpu:2'
    for name, port in zip(NODES, of_nodes, strict=True)
  )
  # cred_expire: how long a job that is queued again waits. config_overrides: more CPUs than there are.
  return f"""
ClusterName=one
SlurmctldHost={platform.node()}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=15
KillWait=10
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def cluster(folder: pathlib.Path) -> Iterator[None]:
  """A Slurm of two nodes on this machine, found by SLURM_CONF until the block ends."""
  prepare(folder)
  os.environ['SLURM_CONF'] = str(folder / 'slurm.conf')
  try:
    files = {'key': 'munge.key', 'pid': 'munged.pid', 'log': 'munged.log', 'seed': 'munge.seed'}
    munge = [f'--{name}-file={folder / file}' for name, file in files.items()]
    called('munged', '--force', f'--socket={folder}/munge.socket', '--num-threads=2', *munge)
    called('slurmctld', '-f', f'{folder}/slurm.conf')
    for node in NODES:
      start_node(folder, node)
    wait_until(
      lambda: called('sinfo', '--noheader', '--format=%T %D').split() == ['idle', '2'], 30, 'two idle nodes'
    )
    yield
  finally:
    end(folder)


def prepare(folder: pathlib.Path) -> None:
  for name in ('state', *(f'spool.{node}' for node in NODES)):
    (folder / name).mkdir(parents=True)
  folder.chmod(0o755)
  (folder / 'slurm.conf').write_text(config(folder, free_ports(1 + len(NODES))))
  for number in range(2):
    os.mknod(folder / f'gpu{number}', 0o20666, os.makedev(1, 3))
  names = ','.join(NODES)
  (folder / 'gres.conf').write_text(f'NodeName={names} Name=gpu File={folder}/gpu[0-1]\n')
  (folder / 'munge.key').write_bytes(os.urandom(128))
  (folder / 'munge.key').chmod(0o600)


def free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(('localhost', 0))
    return [one.getsockname()[1] for one in sockets]


def start_node(folder: pathlib.Path, node: str) -> None:
  called('slurmd', '-f', f'{folder}/slurm.conf', '-N', node)


def end(folder: pathlib.Path) -> None:
  """Ends all jobs, then the daemons."""
  subprocess.run(['scancel', '--user=root'], check=False, capture_output=True)
  with contextlib.suppress(SystemExit):
    wait_until(lambda: not steps_of(), 30, 'no step left')
  pids = [*folder.glob('slurmd.*.pid'), folder / 'slurmctld.pid', folder / 'munged.pid']
  for file in pids:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
      os.kill(int(file.read_text()), signal.SIGTERM)
  for pid in steps_of():
    os.kill(pid, signal.SIGKILL)
  with contextlib.suppress(SystemExit):
    wait_until(lambda: not any(file.exists() for file in pids), 15, 'the daemons have ended')


def steps_of(node: str = '') -> list[int]:
  """The processes of jobs (of a node), which Slurm marks by their environment."""
  found = []
  for place in pathlib.Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):
      variables = (place / 'environ').read_bytes().split(b'\0')
      own = f'SLURM_CONF={os.environ["SLURM_CONF"]}'.encode() in variables
      names = [text for text in variables if text.startswith(b'SLURMD_NODENAME=')]
      if own and names and names[0].decode().endswith(f'={node}' if node else ''):
        found.append(int(place.name))
  return found


def called(*command: str) -> str:
  done = subprocess.run(command, capture_output=True, text=True)
  faults.expect(done.returncode, 0, f'{command}: {done.stderr}')
  return done.stdout


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
  deadline = time.monotonic() + seconds
  while not holds():
    if time.monotonic() > deadline:
      sys.exit(f'FAILED: {what}: not within {seconds:g} s')
    time.sleep(0.2)


# --- a job --------------------------------------------------------------------------------------------------


def launched(folder: pathlib.Path, name: str, steps: int, **fields: object) -> subprocess.Popen:
  """A launcher that follows its job; its words are in NAME.said, the job's in slurm_NAME/."""
  given = {'gpus_per_node': 1, 'cpus_per_task': 1, 'poll_seconds': 0.5, 'folder': f'slurm_{name}'} | fields
  flags = [f'--job.{field}={value}' for field, value in given.items()]
  compiled = str(pathlib.Path(tempfile.gettempdir()) / 'faults_compiled')
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'JAX_COMPILATION_CACHE_DIR': compiled,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
  }  # fmt: skip
  with open(folder / f'{name}.said', 'w') as said:
    train = faults.command(folder, name, steps)[3:]
    return subprocess.Popen(
      [sys.executable, str(LAUNCH), f'--job={folder / "job.py"}', *flags, '--', *train],
      cwd=folder, env=environment, stdout=said, stderr=said,
    )  # fmt: skip


def said(folder: pathlib.Path, name: str) -> str:
  return (folder / f'{name}.said').read_text()


def ended(folder: pathlib.Path, name: str, run: subprocess.Popen, code: int, seconds: float) -> str:
  """What a launcher said by its end, which must have this exit code."""
  try:
    found = run.wait(seconds)
  except subprocess.TimeoutExpired:
    run.kill()
    found = f'nothing within {seconds:g} s'
  faults.expect(found, code, f'{name}: {said(folder, name)[-2000:]}')
  return said(folder, name)


def number(folder: pathlib.Path, name: str) -> str:
  """The id of the job."""
  wait_until(lambda: ' is queued; ' in said(folder, name), 60, f'{name} is queued')
  return said(folder, name).partition('launch: job ')[2].split()[0]


def wait_for_step(folder: pathlib.Path, name: str, run: subprocess.Popen, step: int) -> None:
  def reached() -> bool:
    faults.expect(run.poll(), None, f'{name} is under way: {said(folder, name)[-2000:]}')
    return (faults.newest(folder / name) or 0) >= step

  wait_until(reached, 180, f'{name} reaches step {step}')


def whole(folder: pathlib.Path, steps: int = STEPS) -> pathlib.Path:
  """The undisturbed run."""
  name = f'whole{steps}'
  if not (folder / name).exists():
    began = time.monotonic()
    faults.finish(faults.command(folder, name, steps))
    print(f'undisturbed: {steps} steps in {time.monotonic() - began:.0f} s', flush=True)
  return folder / name


# --- what is tried ------------------------------------------------------------------------------------------


def processes(folder: pathlib.Path) -> None:
  run = launched(folder, 'two', FEW, gpus_per_node=2)
  job = number(folder, 'two')
  wait_for_step(folder, 'two', run, 20)
  faults.expect('Tasks=2' in called('scontrol', 'show', 'step', f'{job}.0'), True, 'a step of two tasks')
  ended(folder, 'two', run, 0, 180)
  faults.expect(
    [r['step'] for r in faults.metrics(folder / 'two') if 'loss' in r], list(range(1, FEW + 1)), 'steps'
  )
  print(f'two tasks trained one run: {FEW} steps, each recorded once')


def limit(folder: pathlib.Path) -> None:
  expected = whole(folder)
  run = launched(folder, 'limited', STEPS, time=2, signal_seconds=30)
  text = ended(folder, 'limited', run, 0, 600)
  times = text.count('stopped after saving; queued again')
  faults.expect(times > 0, True, 'the time limit came before the end (raise STEPS)')
  faults.same_to_the_bit(expected, folder / 'limited')
  print(f'a limit of two minutes: queued again {times} times, then state and metrics of the undisturbed run')


def cancel(folder: pathlib.Path) -> None:
  run = launched(folder, 'stopped', FOREVER)
  job = number(folder, 'stopped')
  wait_for_step(folder, 'stopped', run, 20)
  began, before = time.monotonic(), faults.newest(folder / 'stopped')
  run.send_signal(signal.SIGINT)
  ended(folder, 'stopped', run, 75, 120)
  saved = faults.newest(folder / 'stopped')
  faults.expect(saved >= before, True, 'the run saved')
  wait_until(lambda: not called('squeue', '--noheader'), 30, 'the job has left the queue')
  print(f'Ctrl-C: 75 after {time.monotonic() - began:.0f} s, saved step {saved}, job {job} left the queue')
  run = launched(folder, 'stopped', FOREVER)
  wait_for_step(folder, 'stopped', run, saved + 20)
  began = time.monotonic()
  called('scancel', number(folder, 'stopped'))
  ended(folder, 'stopped', run, 143, 60)
  print(f'scancel by another: the launcher ends with 143 after {time.monotonic() - began:.0f} s')


def node(folder: pathlib.Path) -> None:
  expected = whole(folder)
  run = launched(folder, 'moved', STEPS)
  job = number(folder, 'moved')
  wait_for_step(folder, 'moved', run, 100)
  first = called('squeue', f'--jobs={job}', '--noheader', '--format=%N').strip()
  kill_node(folder / 'slurm', first)
  wait_until(
    lambda: 'down' in called('sinfo', '--noheader', f'--nodes={first}', '--format=%T'), 120, 'a node is down'
  )
  at = faults.newest(folder / 'moved')
  ended(folder, 'moved', run, 0, 400)
  show = called('scontrol', 'show', 'job', job)
  faults.expect('Restarts=1' in show and f'BatchHost={first}' not in show, True, show)
  faults.same_to_the_bit(expected, folder / 'moved')
  start_node(folder / 'slurm', first)
  print(f'{first} died after step {at}: the other node ended the run, with the undisturbed state and metrics')


def split(folder: pathlib.Path) -> None:
  """A slurmd dies and its job hangs, but lives: its script hears of the failure from srun."""
  expected = whole(folder, SHORT)
  run = launched(folder, 'split', SHORT)
  job = number(folder, 'split')
  wait_for_step(folder, 'split', run, 100)
  first = called('squeue', f'--jobs={job}', '--noheader', '--format=%N').strip()
  former = steps_of(first)
  for pid in (pid for pid in former if 'python' in os.readlink(f'/proc/{pid}/exe')):
    os.kill(pid, signal.SIGSTOP)
  os.kill(int((folder / 'slurm' / f'slurmd.{first}.pid').read_text()), signal.SIGKILL)
  other = next(name for name in NODES if name != first)
  at_other = ['squeue', f'--jobs={job}', '--noheader', '--format=%T %N']
  wait_until(lambda: called(*at_other).split() == ['RUNNING', other], 180, 'the job runs on the other node')
  time.sleep(20)
  faults.expect(run.poll(), None, f'the second waits for the first: {said(folder, "split")[-2000:]}')
  at = faults.newest(folder / 'split')
  for pid in former:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)
  ended(folder, 'split', run, 0, 400)
  faults.same_to_the_bit(expected, folder / 'split', SHORT)
  start_node(folder / 'slurm', first)
  print(f'{first} lost its slurmd alone and hung at step {at}: the other waited, then ended the run')


def kill_node(folder: pathlib.Path, name: str) -> None:
  """What a power cut does: no process of the node is left."""
  daemon = int((folder / f'slurmd.{name}.pid').read_text())
  steps = subprocess.run(['pgrep', '-f', 'slurmstepd: \\['], capture_output=True, text=True).stdout.split()
  for pid in (daemon, *map(int, steps), *steps_of(name)):
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as place:
    sys.exit(main(pathlib.Path(place), sys.argv[1:]))
