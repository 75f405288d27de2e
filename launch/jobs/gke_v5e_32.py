"""Thirty-two v5e chips of a GKE cluster's node pool, on eight machines: T5-XL. Needs --job.image."""

from ml_collections import config_dict

from launch.backends import gke


def get_config() -> config_dict.ConfigDict:
  job = gke.spec()
  job.name = 'dro-jax-v5e-32'
  job.topology = 'v5e:4x8'
  return job
