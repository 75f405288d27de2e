"""A batch as losses read it: scores, reference scores and data as flat arrays."""

from collections.abc import Mapping
from typing import NamedTuple

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
    return _lengths(self.rows.response_segments, self.rows.valid.shape[1]).reshape(-1)

  def by_length(self) -> 'Batch':
    """The same batch, with every log-prob divided by the length of its response."""
    return self._replace(
      scores=_by_length(self.scores, self.rows),
      reference=None if self.reference is None else _by_length(self.reference, self.rows),
    )

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


def _lengths(segments_BT: Array, num_slots: int) -> Float[Array, 'B R']:
  """Tokens of each slot's response, at least 1."""
  ones_BT = jnp.ones_like(segments_BT, jnp.float32)
  return jnp.maximum(masked.segment_sum(ones_BT, segments_BT, num_slots), 1)


def _by_length(scores: Scores, rows: Rows) -> Scores:
  """Log-probs over lengths: a response's sum becomes the mean over its tokens."""
  segments_BT, num_slots = rows.response_segments, rows.valid.shape[1]
  lengths_BR = _lengths(segments_BT, num_slots)
  lengths_BT = jnp.take_along_axis(lengths_BR, jnp.maximum(segments_BT - 1, 0), axis=1)
  divided = scores._replace(logps=scores.logps / lengths_BR, token_logps=scores.token_logps / lengths_BT)
  if scores.mismatched_logps is None:
    return divided
  mismatched_BR = _lengths(rows.mismatched.response_segments, num_slots)
  return divided._replace(mismatched_logps=scores.mismatched_logps / mismatched_BR)
