"""Memory of a process that is one of four: a state made, saved, restored, started from a checkpoint; all cut.

    python tests/long/sharded_restore.py [--processes=4] [--folder=FOLDER]

A T5 of 359 million parameters over 8 devices (fsdp 8), whose memory here is the processes' own: each has its
share of the state, and may have little else for a moment. A step's figure is the most resident memory that
any process had beyond what it had before, in shares; all of the state would be 4 shares, and a copy for each
device 8. A step may take LIMITS of them.

The last two steps restore where every process may have ALLOWED shares of memory of its own beyond what it had
(RLIMIT_DATA): what is cut fits, and a copy of the state in each process must not.

    fresh     parameters at random, their copy as the reference, Adafactor's moments
    saved     the same, written by the processes together: what is on its way to the disk is one share more
    restored  from there: what is being read is another share, or 1 GB where that is less
    imported  what `import_checkpoint` leaves, by one process
    plain     a run's first state with the policy from there
    scanned   the same where the layers are to be stacked
    allowed   restored under that limit
    whole     the same, nothing cut: must fail
"""

import argparse
import json
import os
import pathlib
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time

LIMITS = {
  'fresh': 1.8, 'saved': 2.6, 'restored': 2.2, 'imported': 1.3, 'plain': 1.8, 'scanned': 1.8, 'allowed': 2.2
}  # fmt: skip
ALLOWED = 3.0
DEVICES = 8
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def config(scan: bool = False):
  from dro_jax.models.t5.config import T5Config

  return T5Config(
    vocab_size=32128, emb_dim=2048, num_heads=32, head_dim=64, mlp_dim=5120, num_encoder_layers=2,
    num_decoder_layers=2, scan_layers=scan,
  )  # fmt: skip


def tools(scan: bool = False):
  """Networks, a mesh, what makes a state of parameters, and its shapes, as a run has them."""
  import functools

  import jax

  from dro_jax.parallel import partitioning
  from dro_jax.run import networks
  from dro_jax.step import optimizers
  from dro_jax.step import state as train_state

  mesh = partitioning.make_mesh(1, -1)
  nets = networks.build(config(scan), uses_value=False)
  create = functools.partial(
    train_state.create, optimizers={'policy': optimizers.adafactor(1e-3)}, uses_reference=True
  )
  abstract = jax.eval_shape(create, networks.abstract_on(nets, mesh))
  where = partitioning.state_shardings(abstract, networks.shardings(nets, mesh), mesh)
  return nets, mesh, create, networks.with_shardings(abstract, where)


def first_state(nets, mesh, create, abstract, init_from: str | None = None):
  """A state as `Run.init` makes it."""
  import jax

  from dro_jax.run import networks

  where = jax.tree.map(lambda x: x.sharding, abstract)
  params = networks.initial_params(nets, mesh, 0, init_from)
  return jax.jit(create, donate_argnums=0, out_shardings=where)(params)


def fresh(folder: pathlib.Path) -> int:
  nets, mesh, create, abstract = tools()
  first_state(nets, mesh, create, abstract)
  return size(abstract)


def saved(folder: pathlib.Path) -> int:
  """Each process's copy on its way to the disk is one share more."""
  nets, mesh, create, abstract = tools()
  state = first_state(nets, mesh, create, abstract)
  with opened(folder) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
  return size(abstract)


def restored(folder: pathlib.Path) -> int:
  *_, abstract = tools()
  with opened(folder) as checkpoints:
    checkpoints.restore_newest(abstract)
  return size(abstract)


def imported(folder: pathlib.Path) -> int:
  """What `import_checkpoint` leaves; one process."""
  import dataclasses

  import jax
  import numpy as np

  from dro_jax.checkpoints import orbax as checkpoints

  *_, abstract = tools()
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract.params['policy'])
  checkpoints.save_params(folder / 'imported', params, {'model': dataclasses.asdict(config())})
  return size(abstract.params)


def plain(folder: pathlib.Path, scan: bool = False) -> int:
  nets, mesh, create, abstract = tools(scan)
  first_state(nets, mesh, create, abstract, str(folder / 'imported'))
  return size(abstract)


def scanned(folder: pathlib.Path) -> int:
  return plain(folder, scan=True)


def allowed(folder: pathlib.Path) -> int:
  import jax

  *_, abstract = tools()
  grant(ALLOWED * size(abstract) / jax.process_count())
  return restored(folder)


def whole(folder: pathlib.Path) -> int:
  """One copy in each process: its first device has all, the others nothing."""
  import jax
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec

  *_, abstract = tools()
  grant(ALLOWED * size(abstract) / jax.process_count())
  firsts = [next(d for d in jax.devices() if d.process_index == i) for i in range(jax.process_count())]
  where = NamedSharding(jax.sharding.Mesh(np.array(firsts), 'x'), PartitionSpec())
  copied = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), abstract)
  with opened(folder) as checkpoints:
    checkpoints.restore_newest(copied)
  return size(abstract)


def grant(more: float) -> None:
  """Leaves this process so many bytes of memory of its own beyond what it has."""
  status = pathlib.Path('/proc/self/status').read_text()
  limit = int(re.search(r'VmData:\s+(\d+)', status)[1]) * 1024 + int(more)
  resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def opened(folder: pathlib.Path):
  import contextlib

  from dro_jax.checkpoints import orbax as checkpoints

  return contextlib.closing(checkpoints.Checkpoints(folder / 'checkpoints'))


def size(tree) -> int:
  import jax

  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(step: str, folder: pathlib.Path) -> None:
  """One process's part in a step; prints its figures."""
  import jax
  import orbax.checkpoint  # noqa: F401
  import tensorstore  # noqa: F401

  from dro_jax.parallel import processes as cluster
  from dro_jax.run import build  # noqa: F401

  cluster.join()
  jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())
  before, began = peak(), time.monotonic()
  whole = globals()[step](folder)
  print(json.dumps({'grown': peak() - before, 'whole': whole, 'seconds': time.monotonic() - began}))


def measured(step: str, folder: pathlib.Path, processes: int) -> dict:
  """Runs a step in so many processes; the most that one of them took, or `died`: what it said last."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  command = [sys.executable, __file__, f'--step={step}', f'--folder={folder}']
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(DEVICES // processes), 'PYTHONPATH': str(ROOT),
    'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo', 'XLA_FLAGS': '',
  }  # fmt: skip
  runs = []
  for i in range(processes):
    cluster = {'DRO_JAX_CLUSTER': f'{i}/{processes}@localhost:{port}'} if processes > 1 else {}
    with open(folder / f'{step}_{i}.log', 'w') as log:
      runs.append(
        subprocess.Popen(command, env=environment | cluster, stdout=subprocess.PIPE, stderr=log, text=True)
      )
  while any(run.poll() is None for run in runs):
    if any(run.poll() for run in runs):  # The others would wait for it.
      for run in runs:
        run.kill()
    time.sleep(0.1)
  lines = [run.communicate()[0] for run in runs]
  if any(run.returncode for run in runs):
    return {'died': ''.join(path.read_text() for path in folder.glob(f'{step}_*.log'))}
  found = [json.loads(line.splitlines()[-1]) for line in lines]
  return max(found, key=lambda one: one['grown'])


def main(folder: pathlib.Path, processes: int) -> None:
  failed = []
  for step, limit in LIMITS.items():
    count = 1 if step == 'imported' else processes
    found = measured(step, folder, count)
    if 'died' in found:
      sys.exit(f'FAILED: {step}: {found["died"][-2000:]}')
    share = found['whole'] / count
    print(
      f'{step:9} {count} processes: whole {found["whole"] / 2**30:.2f} GiB, a share {share / 2**30:.2f}; '
      f'a process grew by {found["grown"] / 2**30:.2f} GiB = {found["grown"] / share:.2f} shares, '
      f'{found["seconds"]:.0f} s',
      flush=True,
    )
    failed += [step] if found['grown'] > limit * share else []
  if processes > 1:
    died = measured('whole', folder, processes).get('died', '')
    # What is refused memory first words it: XLA, numpy, C++, tensorstore's reads, a new thread's stack.
    why = re.search(
      '.*(RESOURCE_EXHAUSTED|MemoryError|bad_alloc|[Cc]annot allocate|Failed to allocate memory|'
      'Resource temporarily unavailable).*',
      died,
    )
    said = why[0].strip()[:120] if why else died[-2000:]
    print(f'whole     with {ALLOWED} shares more for each process: {said}')
    failed += [] if why else ['whole']
  if failed:
    sys.exit(f'FAILED: more shares than LIMITS: {", ".join(failed)}')


if __name__ == '__main__':
  parser = argparse.ArgumentParser()
  parser.add_argument('--processes', type=int, default=4)
  parser.add_argument('--folder', help='an existing one, for some 10 GB of temporary files')
  parser.add_argument('--step')
  arguments = parser.parse_args()
  if arguments.step:
    work(arguments.step, pathlib.Path(arguments.folder))
  else:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
      main(pathlib.Path(place), arguments.processes)
