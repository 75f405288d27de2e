"""One process of a run over several: `two_processes.py PORT INDEX COUNT TRIPLETS MODEL_DIR STEPS`."""

import signal
import sys

import jax


def main(port: str, index: str, count: str, triplets: str, model_dir: str, steps: str) -> None:
  signal.signal(signal.SIGINT, signal.default_int_handler)  # A job in the background ignores it.
  jax.config.update('jax_num_cpu_devices', 8 // int(count))
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'localhost:{port}', int(count), int(index))

  from dro_jax.errors import Interrupted, Stopped
  from tests.parallel.test_partitioning import train_on_mesh

  try:
    train_on_mesh(triplets, model_dir, int(steps))
  except (Stopped, Interrupted):
    sys.exit(75)


if __name__ == '__main__':
  main(*sys.argv[1:])
