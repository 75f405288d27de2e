"""DPO's β, six values, as CoPG's baseline.

CoPG, arXiv 2406.19185, Sect. 6: six values of each method, as its figures show.
These are ours, with its best, .1.

  python launch/launch.py --job=launch/jobs/v5e_16.py --sweep=launch/sweeps/dpo_beta.py -- \
    train --gin_file=experiments/copg/tldr.gin --model_dir=/mnt/runs/dpo_beta
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.ALGORITHM = ('dpo',)
  sweep.product.DPO_BETA = (0.01, 0.03, 0.06, 0.1, 0.3, 0.6)
  return sweep
