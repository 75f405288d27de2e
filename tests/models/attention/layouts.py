"""Packed rows as spans, random keys and values to read, and one softmax computed head by head in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dro_jax.models.attention import spans
from dro_jax.models.attention.spans import Source, Span
from dro_jax.models.layers import KeysValues

RNG = np.random.default_rng(0)
# Of two rows: the lengths of prompts, and (prompt, length) of responses: two that share one, a prompt of one
# token, a row of one long response, and padding.
ROWS = (((60, 1, 69), ((1, 40), (1, 50), (2, 10), (3, 80))), ((9,), ((1, 130),)))
PROMPTS, RESPONSES = 150, 200


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@functools.cache
def segments():
  """Segments of prompts and of responses, and each response token's prompt, position and prompt's place."""
  prompts = np.zeros((2, PROMPTS), int)
  responses, pointed, places, starts, ends = np.zeros((5, 2, RESPONSES), int)
  for row, (lengths, owners) in enumerate(ROWS):
    edges = np.cumsum((0, *lengths))
    prompts[row, : edges[-1]] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    at = 0
    for number, (owner, length) in enumerate(owners):
      here = slice(at, at + length)
      responses[row, here], pointed[row, here] = number + 1, owner
      starts[row, here], ends[row, here] = edges[owner - 1], edges[owner] - 1
      places[row, here] = ends[row, here] + np.arange(length)
      at += length
  return prompts, responses, pointed, places, Span(jnp.asarray(starts), jnp.asarray(ends))


def response_spans(window=None):
  """The spans of responses: of their prompts, and of their own tokens."""
  _, responses, _, places, prompt = segments()
  own = spans.own_span(jnp.asarray(responses))
  if window is None:
    return prompt, own
  return (
    spans.within(prompt, jnp.asarray(places), window),
    spans.within(own, jnp.arange(RESPONSES)[None], window),
  )


def response_masks(window=None):
  """The same from segments, token by token."""
  prompts, responses, pointed, places, _ = segments()
  ends = np.array([[len(row) - 1 - row.tolist()[::-1].index(segment) for segment in row] for row in prompts])
  prompt = (pointed[:, :, None] == prompts[:, None]) & (prompts > 0)[:, None]
  prompt &= (np.arange(PROMPTS)[None] != ends)[:, None]
  own = (responses[:, :, None] == responses[:, None]) & np.tri(RESPONSES, dtype=bool)[None]
  if window is not None:
    prompt &= places[:, :, None] - np.arange(PROMPTS)[None, None] < window
    own &= np.arange(RESPONSES)[:, None] - np.arange(RESPONSES)[None] < window
  return prompt, own


def arrays(heads=4, kv_heads=2, width=8, rows=2):
  """Queries, and keys and values of prompts and of responses."""
  return (
    normal(rows, RESPONSES, heads, width) * 2,
    KeysValues(normal(rows, PROMPTS, kv_heads, width), normal(rows, PROMPTS, kv_heads, width)),
    KeysValues(normal(rows, RESPONSES, kv_heads, width), normal(rows, RESPONSES, kv_heads, width)),
  )


def values_and_gradients(function, inputs, both, softcap=None):
  """Outputs of the tokens of responses, and the gradients of a weighted sum of them."""
  weights = np.random.default_rng(1).normal(size=inputs[0].shape) * (segments()[1] > 0)[:, :, None, None]

  def total(queries, prompt, own):
    sources = [Source(keys, span) for keys, span in zip((prompt, own), both, strict=True)]
    read = function(queries, sources, softcap)
    return jnp.sum(read * weights), read * (weights != 0)

  (_, read), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*inputs)
  return read, gradients


def assert_equal(ours, expected, tolerance=3e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * float(np.abs(y).max())),
    ours,
    expected,
  )


def direct(queries, sources, masks, softcap=None):
  """One softmax over all keys, in float64, head by head; a query without keys reads 0."""
  out = np.zeros(queries.shape)
  rows, _, heads, _ = queries.shape
  for n, h in np.ndindex(rows, heads):
    scores, values = [], []
    for keys_values, mask in zip(sources, masks, strict=True):
      row, head = n // (rows // keys_values.keys.shape[0]), h // (heads // keys_values.keys.shape[2])
      products = np.asarray(queries[n, :, h], np.float64) @ np.asarray(keys_values.keys[row, :, head]).T
      capped = products if softcap is None else softcap * np.tanh(products / softcap)
      scores.append(np.where(mask[row], capped, -np.inf))
      values.append(np.asarray(keys_values.values[row, :, head], np.float64))
    scores = np.concatenate(scores, axis=-1)
    weights = np.exp(scores - np.maximum(scores.max(axis=-1, keepdims=True), -1e300))
    out[n, :, h] = weights @ np.concatenate(values) / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
  return out
