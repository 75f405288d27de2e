"""Six values of τ, two seeds each: how far from the reference is best?

Other values: --sweep.product.TAU='(0.5, 2.0)'.
"""

from ml_collections import config_dict

from launch import sweep as cells


def get_config() -> config_dict.ConfigDict:
  sweep = cells.spec()
  sweep.product.TAU = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
  sweep.product.SEED = (0, 1)
  return sweep
