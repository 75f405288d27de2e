"""Value networks: V(x) for a prompt, V(x, y_<t) for a token, one number for a batch, or a score R(x, y)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from dro_jax.errors import UsageError
from dro_jax.models import policy
from dro_jax.models.family import Config
from dro_jax.ops import masked
from dro_jax.types import Array, Params, Rows

READOUTS = ('prompt', 'attention', 'token', 'batch', 'scalar', 'response')
_POOLED = ('prompt', 'batch')  # Read-outs of one state that the family makes of a prompt's states.


class Head(nn.Module):
  """v = w · h + b in float32, zero at the start, so that V is 0 until rewards move it."""

  @nn.compact
  def __call__(self, states: Float[Array, 'B R D']) -> Float[Array, 'B R']:
    init = nn.with_logical_partitioning(nn.initializers.zeros, ('embed',))
    kernel_D = self.param('kernel', init, (states.shape[-1],), jnp.float32)
    bias = self.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, ()), (), jnp.float32)
    # A sum, not a product: an accelerator would round a product's inputs to bfloat16.
    return jnp.sum(states.astype(jnp.float32) * kernel_D[None, None, :], axis=-1) + bias


class AttentionPool(nn.Module):
  """A prompt's states pooled by attention heads with one learned query each, float32 (A-LoL, 2305.14718).

  p_h = Σ_s α_hs W^v_h x_s,  α_h = softmax_s(q_h · W^k_h x_s / √d) over the prompt's own tokens; the heads'
  pools are joined.
  """

  num_heads: int
  head_dim: int

  @nn.compact
  def __call__(
    self,
    states: Float[Array, 'B S D'],
    prompt_segments: Int[Array, 'B S'],
    response_prompts: Int[Array, 'B R'],
  ) -> Float[Array, 'B R HD']:
    shape = states.shape[-1], self.num_heads, self.head_dim
    fan_in = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', in_axis=0, out_axis=(1, 2))
    kernel = nn.with_logical_partitioning(fan_in, ('embed', 'heads', 'kv'))
    query = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('heads', 'kv'))
    query_HD = self.param('query', query, shape[1:], jnp.float32)
    keys_BSHD = _project(states, self.param('key', kernel, shape, jnp.float32))
    values_BSHD = _project(states, self.param('value', kernel, shape, jnp.float32))
    logits_BHS = jnp.einsum('bshd,hd->bhs', keys_BSHD, query_HD, precision=_EXACT) / self.head_dim**0.5
    own_BRS = prompt_segments[:, None, :] == response_prompts[:, :, None]
    logits_BRHS = jnp.where(own_BRS[:, :, None, :], logits_BHS[:, None, :, :], _NEVER)
    weights_BRHS = jax.nn.softmax(logits_BRHS, axis=-1)
    pooled_BRHD = jnp.einsum('brhs,bshd->brhd', weights_BRHS, values_BSHD, precision=_EXACT)
    return pooled_BRHD.reshape(*pooled_BRHD.shape[:2], -1)


_EXACT = jax.lax.Precision.HIGHEST
_NEVER = -1e30  # Finite, so that an empty slot, which has no prompt, does not become NaN.


def _project(states_BSD: Array, kernel_DHK: Array) -> Array:
  return jnp.einsum('bsd,dhk->bshk', states_BSD.astype(jnp.float32), kernel_DHK, precision=_EXACT)


class Scalar(nn.Module):
  """One learned number."""

  @nn.compact
  def __call__(self) -> Float[Array, '']:
    init = nn.with_logical_partitioning(nn.initializers.zeros, ())
    return self.param('value', init, (), jnp.float32)


class ValueNetwork(nn.Module):
  """V in reward units, beside the policy (DRO, arXiv 2405.19107, Eq. 4 and its ablation).

  Args:
    config: the trunk's. Only the parts that the read-out uses have parameters (no decoder for `prompt`).
    readout: `prompt`: w · h + b, which never sees the response; h is the mean of the prompt's states where an
      encoder made them, and its last token's state in a decoder-only model. `attention`: the
      same of an attention pool over those states (A-LoL's). `token`: w · (response's state at t) + b =
      V(x, y_<t); the response's value is V_0, which sees no response token. `batch`: as `prompt` here; the
      step then takes the mean over the global batch's responses, one value for all of them (see
      `models.value.batch_mean`). `scalar`: one learned number, which reads no network. `response`: a reward
      model's score R(x, y), w · h + b of the response's last token, once the network has read that token too,
      as the classifiers of transformers do. A decoder-only model reads it as the end of one text; an
      encoder-decoder's state is the one that predicts that token, its EOS where the response was not cut.
    shared: read the policy's own states, and train its parameters too, instead of a trunk's.
    frozen_trunk: no gradient reaches those states: only the read-out is fitted.

  Parameters: `{'trunk': the policy's kind of tree, 'head': {'kernel', 'bias'}}`, or `{'head': {'value'}}` for
  `scalar`; no `trunk` when shared; a `pool` for `attention`.
  """

  config: Config
  readout: str = 'prompt'
  shared: bool = False
  frozen_trunk: bool = False

  def setup(self) -> None:
    if self.readout not in READOUTS:
      raise UsageError(f'readout={self.readout!r} is unknown: pass one of {READOUTS}.')
    self.head = Scalar() if self.readout == 'scalar' else Head()
    if self.readout == 'attention':
      self.pool = AttentionPool(self.config.num_heads, self.config.head_dim)
    if not self.shared and self.readout != 'scalar':
      self.trunk = policy.make_network(self.config)

  def _prompt_states(self, rows: Rows, policy_states_BSD: Array | None) -> Array:
    if self.shared:
      return policy_states_BSD
    family = policy.family_of(self.config)
    return family.prompt_states(family.encode(self.trunk, rows, False))

  def _response_states(self, rows: Rows, policy_states_BTD: Array | None) -> Array:
    if self.shared:
      return policy_states_BTD
    family = policy.family_of(self.config)
    if self.readout == 'response':
      return family.read_responses(self.trunk, rows, False)
    return family.run(self.trunk, rows, False)[1]

  def _fitted(self, states: Array) -> Array:
    return jax.lax.stop_gradient(states) if self.frozen_trunk else states

  def __call__(
    self,
    rows: Rows,
    prompt_states_BSE: Float[Array, 'B S E'] | None = None,
    response_states_BTD: Float[Array, 'B T D'] | None = None,
  ) -> tuple[Float[Array, 'B R'], Float[Array, 'B T'] | None]:
    """Values of the responses, and of the tokens with the `token` read-out; 0 on padding.

    A policy's states that a `response` read-out shares must have read each token (`models.policy.read`).

    Args:
      rows: prompts and responses.
      prompt_states_BSE: the policy's states of the prompts, read when shared; an encoder's may have a width
        of their own, E.
      response_states_BTD: the policy's states of the responses, read when shared.
    """
    slots = rows.valid.shape[1]
    if self.readout == 'scalar':
      return jnp.where(rows.valid, self.head(), 0.0), None
    if self.readout in ('prompt', 'attention', 'batch'):
      prompts_BR = masked.segment_first(rows.response_prompt, rows.response_segments, slots)
      pool = policy.family_of(self.config).pool_prompts if self.readout in _POOLED else self.pool
      pooled_BRD = pool(
        self._fitted(self._prompt_states(rows, prompt_states_BSE)), rows.prompt_segments, prompts_BR
      )
      return jnp.where(rows.valid, self.head(pooled_BRD), 0.0), None
    token_values_BT = self.head(self._fitted(self._response_states(rows, response_states_BTD)))
    if self.readout == 'response':
      last_BR = masked.segment_last(token_values_BT, rows.response_segments, slots)
      return jnp.where(rows.valid, last_BR, 0.0), None
    token_values_BT = jnp.where(rows.response_segments > 0, token_values_BT, 0.0)
    first_BR = masked.segment_first(token_values_BT, rows.response_segments, slots)
    return jnp.where(rows.valid, first_BR, 0.0), token_values_BT


def _matching(target: Params, source: Params, path: str) -> Params:
  """The parameters of `source` that `target` has."""
  if isinstance(target, dict):
    missing = sorted(set(target) - set(source)) if isinstance(source, dict) else sorted(target)
    if missing:
      raise UsageError(
        f"the policy has no {path}/{missing[0]}: give the value network the policy's configuration."
      )
    return {key: _matching(value, source[key], f'{path}/{key}') for key, value in target.items()}
  if target.shape != source.shape:
    raise UsageError(
      f'{path} is {target.shape} in the value network and {source.shape} in the policy: '
      "give the value network the policy's configuration, or let it start from its own initialisation."
    )
  return source


def start_from_policy(value_params: Params, policy_params: Params) -> Params:
  """The value network's parameters with a copy of the policy as trunk; both may then be donated.

  Raises:
    UsageError: the policy lacks a part of the trunk.
  """
  if 'trunk' not in value_params:
    return value_params
  trunk = _matching(value_params['trunk'], policy_params, 'trunk')
  return value_params | {'trunk': jax.tree.map(jnp.copy, trunk)}


def batch_mean(values: Float[Array, 'B R'], valid: Bool[Array, 'B R']) -> Float[Array, 'B R']:
  """One value for a whole batch, at each response: the mean of the responses' values.

  V̄ = Σ_i V(x_i) / N over the N responses of the *global* batch.
  """
  return jnp.where(valid, masked.weighted_mean(values, valid), 0.0)
