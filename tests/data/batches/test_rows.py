import dataclasses

import jax
import numpy as np

from dro_jax.data.batches import rows
from tests import examples


def test_single_rows_are_laid_out_as_by_hand():
  pairs = [dataclasses.replace(example, reward=0.0) for example in examples.random_examples(3)]
  made = rows.single_rows(
    [pair.prompt for pair in pairs], [pair.response for pair in pairs], num_rows=4, prompt_length=8,
    response_length=6, ids=range(3),
  )  # fmt: skip
  expected = examples.layout(pairs, 4, 1, (8, 6))._replace(columns={})
  jax.tree.map(np.testing.assert_array_equal, made, expected)
  assert jax.tree.map(lambda x: x.dtype, made) == jax.tree.map(lambda x: x.dtype, expected)


def test_prompts_without_responses_are_valid_rows():
  made = rows.single_rows([np.array([5, 1])], num_rows=2, prompt_length=4, ids=[7])
  assert made.prompt_tokens.tolist() == [[5, 1, 0, 0], [0, 0, 0, 0]]
  assert made.response_tokens.shape == (2, 0)
  assert made.valid.tolist() == [[True], [False]] and made.example_id.tolist() == [[7], [0]]
