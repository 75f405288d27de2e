"""Peak memory of converting a large T5, each step in a process of its own: T5X, ours, Hugging Face, and back.

    python tests/long/convert_memory.py [--scale=4] [--folder=FOLDER]

The model is T5 1.1 XL with its layers divided by `scale` (4: 3.3 GB in float32; 1: 11.4 GB). A step's figure
is the peak of its resident memory beyond what the process had before, divided by the tree's size; every step
must stay below 1.3, and the last tree must be the first to the bit. Takes 2.5 times the tree on disk.
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

LIMIT = 1.3
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def config(scale: int):
  from dro_jax.models.t5.config import T5Config

  layers = 24 // scale
  return T5Config(
    vocab_size=32128, emb_dim=2048, num_heads=32, head_dim=64, mlp_dim=5120, num_encoder_layers=layers,
    num_decoder_layers=layers,
  )  # fmt: skip


def synthesise(scale: int, folder: str) -> None:
  """Writes a T5X checkpoint leaf by leaf."""
  import numpy as np
  from etils import epath

  from dro_jax.checkpoints.t5x import write as t5x
  from dro_jax.models.t5 import names

  def stream(scan):
    for i, (path, shape) in enumerate(names.shapes(model).items()):
      yield path, np.random.default_rng(i).standard_normal(shape, np.float32)

  target = epath.Path(folder)
  target.mkdir(parents=True)
  model = config(scale)
  t5x.write(target, stream, model, dtype='float32', vocabulary='bytes')


def bring_in(source: str, target: str) -> None:
  from dro_jax.checkpoints import import_checkpoint as importers

  importers.import_checkpoint(source, target, 'bytes')


def take_out(source: str, target: str, *arguments: str) -> None:
  from dro_jax.checkpoints import export_checkpoint as exporters

  exporters.export_checkpoint(source, target, *arguments)


def load_scanned(source: str) -> None:
  """As a run with scanned layers loads an unrolled checkpoint."""
  import dataclasses

  from dro_jax.checkpoints import policy
  from dro_jax.parallel import partitioning
  from dro_jax.run import networks

  model = dataclasses.replace(policy.config_of(source), scan_layers=True)
  abstract = networks.abstract_on(networks.build(model, uses_value=False), partitioning.make_mesh())
  policy.load_policy(source, model, abstract['policy'])


def step(name: str, arguments: list[str]) -> None:
  """One step in this process; prints its figures."""
  import jax  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import tensorstore  # noqa: F401

  before, start = resident(), time.monotonic()
  {'bring_in': bring_in, 'take_out': take_out, 'load_scanned': load_scanned}[name](*arguments)
  print(json.dumps({'bytes': peak() - before, 'seconds': time.monotonic() - start}))


def resident() -> int:
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * resource.getpagesize()


def peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(label: str, size: int, name: str, *arguments: str) -> bool:
  command = [sys.executable, __file__, '--step', name, *arguments]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
  figures = json.loads(done.stdout.splitlines()[-1])
  ratio = figures['bytes'] / size
  print(f'{label:34} {ratio:5.2f} × the tree   {figures["seconds"]:6.1f} s', flush=True)
  return ratio < LIMIT


def same(first: str, second: str) -> bool:
  import numpy as np
  from etils import epath

  from dro_jax.checkpoints.t5x import read as t5x

  opened = [t5x.open_checkpoint(t5x.find(epath.Path(folder))).weights for folder in (first, second)]
  return opened[0].keys() == opened[1].keys() and all(
    np.array_equal(opened[0][path]().read().result(), opened[1][path]().read().result()) for path in opened[0]
  )


def run(scale: int, folder: pathlib.Path) -> int:
  import math

  from dro_jax.models.t5 import names

  size = 4 * sum(math.prod(shape) for shape in names.shapes(config(scale)).values())
  print(f'T5 1.1 XL / {scale}: {size / 1e9:.2f} GB in float32')
  place = lambda name: str(folder / name)  # noqa: E731
  synthesise(scale, place('t5x'))
  good = [
    measure('T5X to ours', size, 'bring_in', place('t5x'), place('ours')),
    measure('ours, unrolled, to a scanned run', size, 'load_scanned', place('ours')),
    measure('ours to Hugging Face', size, 'take_out', place('ours'), place('hf')),
  ]
  shutil.rmtree(place('ours'))
  good += [measure('Hugging Face to ours', size, 'bring_in', place('hf'), place('back'))]
  shutil.rmtree(place('hf'))
  good += [measure('ours to T5X', size, 'take_out', place('back'), place('t5x_back'), 't5x')]
  equal = same(place('t5x'), place('t5x_back'))
  print('the tree came back to the bit' if equal else 'THE TREE CAME BACK CHANGED')
  if not all(good):
    print(f'a step took more than {LIMIT} × the tree')
  return 0 if equal and all(good) else 1


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--scale', type=int, default=4)
  parser.add_argument('--folder', help='where the files are written; a temporary folder by default')
  parser.add_argument('--step', nargs='+', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.step:
    step(options.step[0], options.step[1:])
    return 0
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    return run(options.scale, pathlib.Path(folder))


if __name__ == '__main__':
  sys.exit(main())
