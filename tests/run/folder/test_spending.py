import json

import jax
import jax.numpy as jnp
import pytest

from dro_jax.run.folder.spending import ComputeCounter

ROWS = (4, 4, 8, 4)  # One batch takes more rows than the others.


@jax.jit
def step(x):
  return x @ x.T[:, :2]


def records(metrics, first, last, every=1):
  spent, result = ComputeCounter(metrics, ROWS.__getitem__, 16, first=first), []
  for i in range(first, last):
    x = jnp.ones((ROWS[i], 3))
    result.append({'step': i + 1, **spent.add(step, i, x, num_rows=ROWS[i])})
  return [each for each in result if each['step'] % every == 0]


def test_rows_cost_alike(tmp_path):
  got = records(tmp_path / 'metrics.jsonl', 0, 4)
  assert [each['flops'] for each in got] == [2 * 3 * 2 * n for n in (4, 8, 16, 20)]
  assert [each['examples'] for each in got] == [16, 32, 48, 64]


@pytest.mark.parametrize('every', [1, 2, 5])
def test_a_resumed_run_continues_the_count_of_flops_and_examples(tmp_path, every):
  """Also where the last record is older than the checkpoint, or there is none."""
  metrics = tmp_path / 'metrics.jsonl'
  whole = records(metrics, 0, 4)
  metrics.write_text(''.join(json.dumps(each) + '\n' for each in records(metrics, 0, 3, every)))
  assert records(metrics, 3, 4) == whole[3:]


def test_the_counter_without_flops_records_examples_only(tmp_path):
  spent = ComputeCounter(tmp_path / 'metrics.jsonl', ROWS.__getitem__, 16, counts_flops=False)
  assert spent.add(step, 0, jnp.ones((4, 3)), num_rows=4) == {'examples': 16}
