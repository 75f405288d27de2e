"""The soft update's α, five values; DPO, or another loss by another gin file.

Learn Your Reference Model, arXiv 2404.09656: α from .1 to .8. The values between are ours, and so is an
update every 512 steps; --set TRUST_REGION_EVERY=1 updates at each.

  python launch/launch.py --job=launch/jobs/v5e_16.py --sweep=launch/sweeps/trust_region_alpha.py -- \
    train --gin_file=experiments/trust_region/dpo.gin --model_dir=/mnt/runs/tr_alpha
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.TRUST_REGION_ALPHA = (0.1, 0.2, 0.4, 0.6, 0.8)
  return sweep
