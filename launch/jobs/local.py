"""Two processes of four CPU devices each on this machine: a pod in small."""

from ml_collections import config_dict

from launch import local


def get_config() -> config_dict.ConfigDict:
  return local.spec()
