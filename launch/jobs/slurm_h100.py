"""Eight H100s, of one node of a Slurm cluster; more by --job.nodes."""

from ml_collections import config_dict

from launch.backends import slurm


def get_config() -> config_dict.ConfigDict:
  job = slurm.spec()
  job.name = 'dro-jax-h100'
  job.sbatch_flags = ('--constraint=h100',)
  return job
