"""One process of a run over several: `python two_processes.py PORT INDEX COUNT TRIPLETS MODEL_DIR`."""

import sys

import jax


def main(port: str, index: str, count: str, triplets: str, model_dir: str) -> None:
  jax.config.update('jax_num_cpu_devices', 8 // int(count))
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'localhost:{port}', int(count), int(index))

  from tests.test_partitioning import train_on_mesh

  train_on_mesh(triplets, model_dir)


if __name__ == '__main__':
  main(*sys.argv[1:])
