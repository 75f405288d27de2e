"""A batch as losses read it: scores, reference scores and data as flat arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Shaped

from dro_jax.ops import masked
from dro_jax.types import Array, Rows, Scores


class Batch(NamedTuple):
  """Scores of the rows, by the policy and by the reference where there is one, and the rows themselves.

  Slots `[B, R]` become examples `[N]`, packed tokens `[B, T]` become one response a row `[N, T]`. Pairs and
  groups are gathered from the examples by the rows' `units`. `statistics` are the algorithm's running scalars
  before this batch.
  """

  scores: Scores | None
  reference: Scores | None
  rows: Rows
  statistics: Mapping[str, Array] = {}

  @property
  def valid(self) -> Bool[Array, 'N']:
    return self.rows.valid.reshape(-1)

  @property
  def policy_logps(self) -> Float[Array, 'N']:
    return self.scores.logps.reshape(-1)

  @property
  def reference_logps(self) -> Float[Array, 'N']:
    return self.reference.logps.reshape(-1)

  @property
  def rewards(self) -> Float[Array, 'N']:
    return self.rows.rewards.reshape(-1)

  @property
  def values(self) -> Float[Array, 'N']:
    return self.scores.values.reshape(-1)

  @property
  def next_token_kls(self) -> Float[Array, 'N']:
    """Σ_t KL of policy and reference over the next token, of each response."""
    slots = self.rows.valid.shape[1]
    return masked.segment_sum(self.scores.token_kls, self.rows.response_segments, slots).reshape(-1)

  @property
  def lengths(self) -> Float[Array, 'N']:
    """Tokens of each response, at least 1 so that losses can divide by it."""
    tokens_BR = masked.segment_sum(
      jnp.ones_like(self.scores.token_logps), self.rows.response_segments, self.rows.valid.shape[1]
    )
    return jax.lax.stop_gradient(jnp.maximum(tokens_BR, 1)).reshape(-1)

  def column(self, name: str) -> Float[Array, 'N']:
    return self.rows.columns[name].reshape(-1)

  def tokens(self, x: Float[Array, 'B T']) -> Float[Array, 'N T']:
    """Packed token arrays with one response a row; 0 outside `token_mask`."""
    return masked.unpack(x, self.rows.response_segments, self.rows.valid.shape[1])[0]

  @property
  def token_mask(self) -> Bool[Array, 'N T']:
    segments_BT = self.rows.response_segments
    return masked.unpack(segments_BT, segments_BT, self.rows.valid.shape[1])[1]

  @property
  def unit_mask(self) -> Bool[Array, 'U K']:
    return self.rows.units.mask

  def members(self, x: Shaped[Array, 'N']) -> Shaped[Array, 'U K']:
    """`x` of the members of each pair or group."""
    return x[self.rows.units.index]
