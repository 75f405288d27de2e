"""DRO-V's ablation: one network or two, one value or many.

DRO, arXiv 2405.19107, Sect. 5 (the sharing ablation). How each is read is told in the gin file.

  python launch/launch.py --job=launch/jobs/v5e_16.py --sweep=launch/sweeps/dro_sharing.py -- \
    train --gin_file=experiments/dro/ablation.gin --model_dir=/mnt/runs/dro_sharing
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.VALUE_SHARED = (False, True)
  sweep.product.VALUE_READOUT = ('prompt', 'batch')
  return sweep
