"""Value networks: V(x) for a response's prompt, V(x, y_<t) for each token, or one number for the batch."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from dro_jax import masked, values
from dro_jax.errors import UsageError
from dro_jax.models.t5 import T5, T5Config
from dro_jax.types import Array, Params, Rows

READOUTS = ('prompt', 'token', 'batch')


class Head(nn.Module):
  """v = w · h + b in float32, zero at the start, so that V is 0 until rewards move it."""

  @nn.compact
  def __call__(self, states: Float[Array, 'B R D']) -> Float[Array, 'B R']:
    init = nn.with_logical_partitioning(nn.initializers.zeros, ('embed',))
    kernel_D = self.param('kernel', init, (states.shape[-1],), jnp.float32)
    bias = self.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, ()), (), jnp.float32)
    # A sum, not a product: an accelerator would round a product's inputs to bfloat16.
    return jnp.sum(states.astype(jnp.float32) * kernel_D[None, None, :], axis=-1) + bias


class Scalar(nn.Module):
  """One learned number."""

  @nn.compact
  def __call__(self) -> Float[Array, '']:
    init = nn.with_logical_partitioning(nn.initializers.zeros, ())
    return self.param('value', init, (), jnp.float32)


class ValueNetwork(nn.Module):
  """V in reward units, beside the policy (DRO, arXiv 2405.19107, Eq. 4 and its ablation).

  Args:
    config: the trunk's T5; only what the read-out needs of it has parameters (no decoder for `prompt`).
    readout: `prompt`: w · (mean of the encoder's states over the response's prompt) + b, which never sees the
      response. `token`: w · (decoder's state at t) + b = V(x, y_<t); the response's value is V_0, seeing no
      response token. `batch`: one learned scalar.
    shared: read the policy's own states, and pull its parameters too, instead of a trunk's.

  Parameters: `{'trunk': a T5's tree, 'head': {'kernel', 'bias'}}`, or `{'head': {'value'}}` for `batch`; no
  `trunk` when shared.
  """

  config: T5Config
  readout: str = 'prompt'
  shared: bool = False

  def setup(self):
    if self.readout not in READOUTS:
      raise UsageError(f'readout={self.readout!r} reads nothing: pass one of {READOUTS}.')
    self.head = Scalar() if self.readout == 'batch' else Head()
    if not self.shared and self.readout != 'batch':
      self.trunk = T5(self.config)

  def _encoded(self, rows: Rows, encoded_BSD: Array | None) -> Array:
    if self.shared:
      return encoded_BSD
    return self.trunk.encode(rows.prompt_tokens, rows.prompt_segments, rows.prompt_positions)

  def _hidden(self, rows: Rows, hidden_BTD: Array | None) -> Array:
    if self.shared:
      return hidden_BTD
    return self.trunk.decode(
      self._encoded(rows, None),
      rows.prompt_segments,
      rows.response_tokens,
      rows.response_segments,
      rows.response_positions,
      rows.response_prompt,
    )

  def __call__(
    self,
    rows: Rows,
    encoded_BSD: Float[Array, 'B S D'] | None = None,
    hidden_BTD: Float[Array, 'B T D'] | None = None,
  ) -> tuple[Float[Array, 'B R'], Float[Array, 'B T'] | None]:
    """Values of the responses, and of the tokens with the `token` read-out; 0 where there is none.

    Args:
      rows: prompts and responses.
      encoded_BSD: the policy's prompt states, read when shared.
      hidden_BTD: the policy's decoder states, read when shared.
    """
    slots = rows.valid.shape[1]
    if self.readout == 'batch':
      return jnp.where(rows.valid, self.head(), 0.0), None
    if self.readout == 'prompt':
      prompts_BR = masked.segment_first(rows.response_prompt, rows.response_segments, slots)
      means_BRD = values.prompt_means(self._encoded(rows, encoded_BSD), rows.prompt_segments, prompts_BR)
      return jnp.where(rows.valid, self.head(means_BRD), 0.0), None
    token_values_BT = self.head(self._hidden(rows, hidden_BTD))
    token_values_BT = jnp.where(rows.response_segments > 0, token_values_BT, 0.0)
    first_BR = masked.segment_first(token_values_BT, rows.response_segments, slots)
    return jnp.where(rows.valid, first_BR, 0.0), token_values_BT


def _matching(wanted: Params, source: Params, path: str) -> Params:
  if isinstance(wanted, dict):
    missing = sorted(set(wanted) - set(source)) if isinstance(source, dict) else sorted(wanted)
    if missing:
      raise UsageError(
        f"the policy has no {path}/{missing[0]}: give the value network the policy's T5Config."
      )
    return {key: _matching(value, source[key], f'{path}/{key}') for key, value in wanted.items()}
  if wanted.shape != source.shape:
    raise UsageError(
      f'{path} is {wanted.shape} in the value network and {source.shape} in the policy: '
      "give the value network the policy's T5Config, or let it start from its own initialisation."
    )
  return source


def start_from_policy(value_params: Params, policy_params: Params) -> Params:
  """The value network's parameters with its trunk a copy of the policy's (a copy, for both are donated).

  Raises:
    UsageError: the trunk is not a part of the policy.
  """
  if 'trunk' not in value_params:
    return value_params
  trunk = _matching(value_params['trunk'], policy_params, 'trunk')
  return value_params | {'trunk': jax.tree.map(jnp.copy, trunk)}
