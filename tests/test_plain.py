import json
import math
from typing import NamedTuple

import numpy as np

from dro_jax.files import to_json


class Pair(NamedTuple):
  low: float
  high: float


def test_what_json_lacks_is_said_in_what_it_has():
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
