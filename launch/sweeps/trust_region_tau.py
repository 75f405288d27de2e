"""The hard update's τ, the steps between two updates, six values; DPO, or another loss by another gin file.

Learn Your Reference Model, arXiv 2404.09656: τ from 2⁵ to 2¹⁰.

  python launch/launch.py --job=launch/jobs/v5e_16.py --sweep=launch/sweeps/trust_region_tau.py -- \
    train --gin_file=experiments/trust_region/dpo.gin --model_dir=/mnt/runs/tr_tau
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.REFERENCE = ('hard',)
  sweep.product.TRUST_REGION_EVERY = (32, 64, 128, 256, 512, 1024)
  return sweep
