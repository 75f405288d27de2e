"""Which keys queries read: one span for each query, so that no way of attention needs a mask [T, S].

Rows hold whole prompts and whole responses one after another, and a query reads an unbroken part of one of
them: of its own segment the tokens up to itself, of its prompt all but the last, in a window their ends.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dro_jax.models.layers import KeysValues
from dro_jax.types import Array


class Span(NamedTuple):
  """Each query reads the keys from place `first` up to, and without, `stop`; none where they are equal."""

  first: Int[Array, 'B T']
  stop: Int[Array, 'B T']


class Source(NamedTuple):
  """Keys and values that queries read, and each query's span of them.

  `keys_values` may have fewer rows than the queries, which then share them: row n reads row n // (N / B). The
  span has those rows too, and one query where all of a row read alike.

  `bias` is added to the scores of queries and keys of the same tokens: by head, at the relative positions
  (key − query) −(T − 1) … T (see `layers.RelativeBias.by_relative_position`).
  """

  keys_values: KeysValues
  span: Span
  bias: Float[Array, 'H L'] | None = None


def own_span(segments: Int[Array, 'B T']) -> Span:
  """Earlier tokens of the same segment, and the token itself; padding (0) reads itself only."""
  places_BT = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
  return Span(jnp.where(segments > 0, segment_starts(segments), places_BT), places_BT + 1)


def segment_span(segments: Int[Array, 'B T']) -> Span:
  """All tokens of the same segment, before and after each of them; padding (0) reads padding."""
  starts_BT = segment_starts(segments)
  ends_BT = jnp.diff(segments, axis=1, append=-1) != 0
  past = jnp.where(ends_BT, jnp.arange(1, segments.shape[1] + 1)[None], segments.shape[1])
  return Span(starts_BT, jax.lax.cummin(past, axis=1, reverse=True))


def segment_starts(segments: Int[Array, 'B T']) -> Int[Array, 'B T']:
  """The place of the first token of each token's segment."""
  changes_BT = jnp.diff(segments, axis=1, prepend=-1) != 0
  return jax.lax.cummax(jnp.where(changes_BT, jnp.arange(segments.shape[1])[None], 0), axis=1)


def within(span: Span, places: Int[Array, 'B T'], window: int) -> Span:
  """The part of a span in a window: `window` keys up to the query's own place among the keys."""
  return Span(jnp.clip(places - window + 1, span.first, span.stop), span.stop)


def around(span: Span, places: Int[Array, 'B T'], earlier: int, later: int) -> Span:
  """The part of a span that lies `earlier` keys before to `later` keys after the query's own place."""
  clip = lambda at: jnp.clip(at, span.first, span.stop)  # noqa: E731
  return Span(clip(places - earlier), clip(places + later + 1))


def mask(span: Span, keys: int, start: int | Int[Array, ''] = 0) -> Bool[Array, '*B T S']:
  """The same as booleans, for `keys` keys from place `start` on; spans may be of one row, without B."""
  first_BT1, stop_BT1 = (jnp.expand_dims(x, -1) for x in span)
  places_11S = jnp.expand_dims(start + jnp.arange(keys), tuple(range(first_BT1.ndim - 1)))
  return (places_11S >= first_BT1) & (places_11S < stop_BT1)
