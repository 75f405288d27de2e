import json
import math
from typing import NamedTuple

import numpy as np

from dro_jax.files import to_json


class Pair(NamedTuple):
  low: float
  high: float


def test_to_json_turns_arrays_tuples_and_infinities_into_plain_json():
  value = {
    1: Pair(0.5, math.inf),
    'array': np.array([[1.0, np.nan]]),
    'scalar': np.float32(2),
    'tuple': (1, None),
  }
  expected = {
    '1': {'low': 0.5, 'high': None}, 'array': [[1.0, None]], 'scalar': 2.0, 'tuple': [1, None],
  }  # fmt: skip
  assert to_json(value) == expected
  json.dumps(to_json(value), allow_nan=False)
