"""Random triplets, laid out by hand: an implementation of the row layout independent of the loader's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dro_jax.algorithms.columns import BY_BATCH
from dro_jax.models.t5.config import T5Config
from dro_jax.models.t5.network import T5
from dro_jax.models.value import ValueNetwork
from dro_jax.types import Mismatched, Rows

CONFIG = T5Config(
  vocab_size=32, emb_dim=16, num_heads=8, head_dim=4, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
)


@dataclasses.dataclass
class Example:
  prompt: np.ndarray
  response: np.ndarray
  reward: float


def random_examples(num: int, seed: int = 0) -> list[Example]:
  rng = np.random.default_rng(seed)
  return [
    Example(rng.integers(3, 32, rng.integers(2, 7)), rng.integers(3, 32, rng.integers(1, 6)), rng.normal())
    for _ in range(num)
  ]


def layout(
  examples: list[Example], num_rows: int, slots: int, lengths: tuple[int, int] = (32, 24), mismatches=None
) -> Rows:
  """Example i fills slot i // num_rows of row i % num_rows.

  `mismatches[i] = j` scores response i under the prompt of example j, which must lie in the row that decodes
  i's row, the one before.
  """
  B, (S, T), R = num_rows, lengths, slots
  prompts = np.zeros((3, B, S), np.int32)
  responses = np.zeros((4, B, T), np.int32)
  rewards, ids = np.zeros((B, R), np.float32), np.zeros((B, R), np.int32)
  valid = np.zeros((B, R), bool)
  ends = np.zeros((2, B), int)
  for i, example in enumerate(examples):
    slot, row = divmod(i, B)
    for side, array, tokens in ((0, prompts, example.prompt), (1, responses, example.response)):
      start, stop = ends[side, row], ends[side, row] + len(tokens)
      array[0, row, start:stop] = tokens
      array[1, row, start:stop] = slot + 1
      array[2, row, start:stop] = np.arange(len(tokens))
      ends[side, row] = stop
    responses[3, row][responses[1, row] == slot + 1] = slot + 1
    rewards[row, slot], ids[row, slot], valid[row, slot] = example.reward, i, True
  mismatched = None
  if mismatches is not None:
    moved, moved_valid = np.roll(responses, -1, axis=1), np.roll(valid, -1, axis=0)
    for i, j in enumerate(mismatches):
      slot, row = divmod(i, B)
      target = (row - 1) % B
      assert j % B == target, 'the prompt lies in another row'
      moved[3, target][moved[1, target] == slot + 1] = j // B + 1
    mismatched = Mismatched(*moved, moved_valid)
  # As a run's loader brings them: labels that the batch's mean decides.
  columns = {
    'label': (rewards > 0.2).astype(np.float32),
    'derived_label': np.full_like(rewards, BY_BATCH),
  }
  return jax.tree.map(jnp.asarray, Rows(*prompts, *responses, rewards, ids, valid, columns, mismatched))


@functools.cache
def init_params(
  config: T5Config = CONFIG, readout: str | None = 'prompt', shared: bool = False, seed: int = 0
):
  """(policy, value network or None, unboxed params)."""
  rows = layout(random_examples(2), 1, 2)
  policy = T5(config)
  params = {'policy': nn.unbox(jax.jit(policy.init)(jax.random.key(seed), rows)['params'])}
  if readout is None:
    return policy, None, params
  value = ValueNetwork(config, readout=readout, shared=shared)
  encoded = jnp.zeros((1, 32, config.emb_dim))
  hidden = jnp.zeros((1, 24, config.emb_dim))
  params['value'] = nn.unbox(jax.jit(value.init)(jax.random.key(seed + 1), rows, encoded, hidden)['params'])
  return policy, value, params
