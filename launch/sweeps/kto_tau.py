"""KTO's τ, three values, as DRO's baseline.

DRO, arXiv 2405.19107, Sect. 5 (the figure of τ). The grid is the paper's.

  python launch/launch.py --job=launch/jobs/v5e_16.py --sweep=launch/sweeps/kto_tau.py -- \
    train --gin_file=experiments/kto/sweep.gin --model_dir=/mnt/runs/kto_tau
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.TAU = (0.1, 1.0, 5.0)
  return sweep
