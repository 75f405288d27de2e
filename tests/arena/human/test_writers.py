import json

import numpy as np
import pytest

from dro_jax.arena.human import writers
from dro_jax.errors import UsageError


def test_writers_are_found_by_the_ids_that_tables_have(tmp_path):
  records = [
    {'prompt': 'p', 'response': 'a', 'reward': 1, 'model': 'one', 'id': 'x'},
    {'prompt': 'p', 'response': 'b', 'reward': 0, 'model': 'two', 'id': 'x'},
  ]
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  assert writers.of_records(str(path), 'id=', 'model') == {'a.jsonl:1': 'one', 'a.jsonl:2': 'two'}
  with pytest.raises(UsageError, match='id .x. .* was used before'):
    writers.of_records(str(path), None, 'model')
  with pytest.raises(UsageError, match=r"a.jsonl:1: the field 'by' \(Feedback.writer\) is None"):
    writers.of_records(str(path), 'id=', 'by')


def test_a_writer_is_new_in_every_file():
  names = np.array([f'w{i}' for i in range(400)], dtype=object)
  new = writers.are_new(names, 0.2)
  assert 50 < new.sum() < 110
  assert (writers.are_new(names[::-1], 0.2) == new[::-1]).all()
  assert not writers.are_new(names, 0.0).any()


def test_a_writer_without_rewards_has_the_mean_of_all():
  known = np.array(['a', 'a', 'b'], dtype=object)
  means = writers.mean_rewards(known, np.array([1.0, 2.0, 6.0]), np.array(['b', 'a', 'c'], dtype=object))
  assert means.tolist() == [6, 1.5, 3]
