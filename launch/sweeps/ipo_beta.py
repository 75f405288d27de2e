"""IPO's β, six values, as CoPG's baseline.

CoPG, arXiv 2406.19185, Sect. 6: six values, another grid than CoPG's and DPO's.
These are ours, with its best, .01.

  python launch/launch.py --job=launch/jobs/v5e_16.py --sweep=launch/sweeps/ipo_beta.py -- \
    train --gin_file=experiments/copg/tldr.gin --model_dir=/mnt/runs/ipo_beta
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.ALGORITHM = ('ipo',)
  sweep.product.IPO_BETA = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
  return sweep
