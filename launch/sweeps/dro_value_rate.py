"""DRO-V's learning rate of the value alone, four values; the policy's is 1e-4.

DRO, arXiv 2405.19107, Sect. 5 (the figure of learning rates). The grid is the paper's.

  python launch/launch.py --job=launch/jobs/v5e_16.py --sweep=launch/sweeps/dro_value_rate.py -- \
    train --gin_file=experiments/dro/sweeps.gin --model_dir=/mnt/runs/dro_value_rate
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.VALUE_LEARNING_RATE = (1e-5, 5e-5, 1e-4, 5e-4)
  return sweep
