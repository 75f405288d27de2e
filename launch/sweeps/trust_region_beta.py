"""β of DPO and of its two trust-region forms, four values; another loss by another gin file.

Learn Your Reference Model, arXiv 2404.09656, whose table has β = .05; the other values are ours.

  python launch/launch.py --job=launch/jobs/v5e_16.py --sweep=launch/sweeps/trust_region_beta.py -- \
    train --gin_file=experiments/trust_region/dpo.gin --model_dir=/mnt/runs/tr_beta
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.REFERENCE = ('frozen', 'soft', 'hard')
  sweep.product.BETA = (0.01, 0.05, 0.1, 0.5)
  return sweep
