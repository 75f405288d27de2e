"""CoPG's β, six values.

CoPG, arXiv 2406.19185, Sect. 6: six values of each method, as its figures show.
These are ours, around .06.

  python launch/launch.py --job=launch/jobs/v5e_16.py --sweep=launch/sweeps/copg_beta.py -- \
    train --gin_file=experiments/copg/tldr.gin --model_dir=/mnt/runs/copg_beta
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.ALGORITHM = ('copg',)
  sweep.product.COPG_BETA = (0.01, 0.03, 0.06, 0.1, 0.3, 0.6)
  return sweep
