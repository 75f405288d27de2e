"""Reward models: a policy's trunk, and one number of its last state, which is a text's score."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import linen as nn

from dro_jax.checkpoints import folders, orbax
from dro_jax.checkpoints.metadata import REWARD_MODEL
from dro_jax.data.batches.rows import single_rows
from dro_jax.errors import UsageError
from dro_jax.models.policy import saved_config
from dro_jax.models.value import ValueNetwork
from dro_jax.types import Params

_LENGTHS = 64  # Rows are padded to multiples of this, so that few shapes are compiled.
_NO_RESPONSE = np.zeros(1, np.int32)  # A row needs one, which the read-out of a prompt never sees.


def load_reward_model(directory: str) -> tuple[ValueNetwork, Params]:
  """A reward model that `import_checkpoint` wrote: its network, and its parameters in host memory.

  `checkpoints.policy.vocabulary_of(directory)` is its vocabulary, with the chat template that it was trained
  with.

  Raises:
    UsageError: there is none in this folder.
  """
  saved = folders.load_metadata(directory)
  if not saved.get(REWARD_MODEL):
    raise UsageError(
      f'{directory} has no reward model: pass a folder that import_checkpoint wrote of a Hugging Face model '
      'for sequence classification with one label.'
    )
  params, _ = orbax.load_params(directory)
  return ValueNetwork(saved_config(saved), readout='prompt'), params


def scores(
  network: ValueNetwork, params: Params, texts: Sequence[np.ndarray], *, batch_size: int = 8
) -> np.ndarray:
  """The score of each text, float32 `[N]`: w · h of its last token.

  Args:
    network: of `load_reward_model`.
    params: its parameters, on the host or on devices.
    texts: tokens of each prompt with its response, of one token or more; the last is the one that ends it.
    batch_size: texts at a time.

  Raises:
    UsageError: a text has no tokens.
  """
  if any(not len(text) for text in texts):
    raise UsageError('a text without tokens has no score: remove it, or fill it in.')
  params = jax.device_put(params)
  found = np.zeros(len(texts), np.float32)
  # By length, so that short texts are not padded to the longest.
  order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
  for start in range(0, len(order), batch_size):
    batch = order[start : start + batch_size]
    length = -(-len(texts[batch[-1]]) // _LENGTHS) * _LENGTHS
    rows = single_rows(
      [texts[i] for i in batch], [_NO_RESPONSE] * len(batch), num_rows=batch_size, prompt_length=length,
      response_length=1,
    )  # fmt: skip
    found[batch] = np.asarray(_apply(network, params, rows))[: len(batch), 0]
  return found


def _score(network: nn.Module, params: Params, rows: object) -> jax.Array:
  return network.apply({'params': params}, rows)[0]


_apply = jax.jit(_score, static_argnums=0)

__all__ = ['load_reward_model', 'scores']
