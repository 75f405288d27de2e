"""Thirty-two v5e chips, on eight machines: T5-XL. Spot machines by --job.spot=True."""

from ml_collections import config_dict

from launch.backends import tpu_vm


def get_config() -> config_dict.ConfigDict:
  job = tpu_vm.spec()
  job.name = 'dro-jax-v5e-32'
  job.accelerator_type = 'v5litepod-32'
  return job
