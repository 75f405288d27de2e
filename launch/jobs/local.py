"""This machine: one process with all its GPUs, or two processes of four CPU devices each, a pod in small."""

from ml_collections import config_dict

from launch.backends import local


def get_config() -> config_dict.ConfigDict:
  return local.spec()
