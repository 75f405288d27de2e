"""Beam search: the best response of a bounded search, by its mean log-prob."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from dro_jax.errors import UsageError
from dro_jax.models import policy, sampling
from dro_jax.models.family import Cache, Prompts
from dro_jax.models.sampling import Samples
from dro_jax.types import Array, Params


class _Beams(NamedTuple):
  """K responses to each prompt, the best first, which are either unfinished or ended.

  A score of −∞ marks an empty place.
  """

  tokens: Int[Array, 'B K T']
  scores: Float[Array, 'B K']
  logps: Float[Array, 'B K']
  lengths: Int[Array, 'B K']


class _State(NamedTuple):
  position: Int[Array, '']
  hidden: Float[Array, 'N D']
  cache: Cache
  seen: Bool[Array, 'N V'] | None
  going: _Beams
  ended: _Beams
  open: Bool[Array, 'B']


def search(
  model: nn.Module,
  params: Params,
  prompts: Prompts,
  max_length: int,
  *,
  beams: int,
  length_penalty: float = 1.0,
  repetition_penalty: float = 1.0,
) -> Samples:
  """The best response to each prompt that a beam search finds; the search is that of transformers.

  A response's score is Σ_t log π(y_t|x, y_<t) / length^length_penalty: by default the mean log-prob of its
  tokens, EOS included. A response that `max_length` cuts is scored as if it ended there. Each step keeps
  the `beams` best prefixes by Σ log π; a prompt's search is over once `beams` responses have ended and the
  best prefix, at its present length, scores no better than the worst of them
  (`generate(num_beams=..., early_stopping=False)`).

  Args:
    model: the policy.
    params: its parameters.
    prompts: as `models.sampling.sample` takes them.
    max_length: most tokens of a response.
    beams: prefixes kept at each step, K.
    length_penalty: exponent of the length; 0 scores by Σ log π, which favours short responses.
    repetition_penalty: see `models.sampling.penalised`; of log-probs here.

  Returns:
    Samples, whose `logps` are the policy's own, without penalties.

  Raises:
    UsageError: a setting is out of its range.
  """
  if beams < 1 or max_length < 1:
    raise UsageError(f'beams={beams}, max_length={max_length}: pass 1 or more of each.')
  sampling.check_penalty(repetition_penalty)
  tokens_BS, segments_BS = prompts
  return _search(
    model, max_length, beams, float(length_penalty), float(repetition_penalty), params, tokens_BS, segments_BS
  )


@functools.partial(jax.jit, static_argnums=range(5))
def _search(
  model: nn.Module,
  max_length: int,
  beams: int,
  length_penalty: float,
  repetition_penalty: float,
  params: Params,
  tokens_BS: Array,
  segments_BS: Array,
) -> Samples:
  eos = policy.special_tokens(model).eos

  def step(state: _State) -> _State:
    logps_NV = jax.nn.log_softmax(policy.next_logits(model, params, state.hidden).astype(jnp.float32))
    scores_NV = sampling.penalised(logps_NV, state.seen, repetition_penalty)
    candidates, beam_BC = _candidates(state.going, scores_NV, logps_NV, state.position)
    last_BC = _last_tokens(candidates)
    ends_BC = (last_BC == eos) | (state.position == max_length - 1)
    ended = _with_ended(state.ended, candidates, ends_BC, state.open, length_penalty)
    going, chosen_BK = _best(
      candidates._replace(scores=jnp.where(ends_BC, -jnp.inf, candidates.scores)), beams
    )
    state = _reordered(model, state, jnp.take_along_axis(beam_BC, chosen_BK, axis=1))
    token_N = jnp.take_along_axis(last_BC, chosen_BK, axis=1).reshape(-1)
    hidden_ND, cache = policy.advance(model, params, state.cache, token_N, state.position + 1)
    best_B = going.scores[:, 0] / (state.position + 1).astype(jnp.float32) ** length_penalty
    return _State(
      state.position + 1, hidden_ND, cache, sampling.with_seen(state.seen, token_N), going, ended,
      state.open & (best_B > ended.scores[:, -1]),
    )  # fmt: skip

  def going(state: _State) -> Array:
    return (state.position < max_length) & jnp.any(state.open)

  start = _start(model, params, (tokens_BS, segments_BS), max_length, beams, repetition_penalty)
  return _first(jax.lax.while_loop(going, step, start).ended, jnp.any(segments_BS == 1, axis=-1))


def _start(
  model: nn.Module, params: Params, prompts: Prompts, max_length: int, beams: int, repetition_penalty: float
) -> _State:
  tokens_BS, segments_BS = prompts
  batch = len(tokens_BS)
  hidden_ND, cache = policy.start(model, params, prompts, max_length, copies=beams)
  seen_NV = sampling.start_seen(model, params, (tokens_BS, segments_BS), hidden_ND, repetition_penalty)
  nothing = _Beams(
    sampling.no_tokens(model, (batch, beams, max_length)), jnp.full((batch, beams), -jnp.inf),
    jnp.zeros((batch, beams)), jnp.zeros((batch, beams), jnp.int32),
  )  # fmt: skip
  # All prefixes are the empty one: one of them goes on.
  first = nothing._replace(scores=nothing.scores.at[:, 0].set(0.0))
  is_prompt_B = jnp.any(segments_BS == 1, axis=-1)
  return _State(jnp.zeros((), jnp.int32), hidden_ND, cache, seen_NV, first, nothing, is_prompt_B)


def _candidates(
  going: _Beams, scores_NV: Array, logps_NV: Array, position: Array
) -> tuple[_Beams, Int[Array, 'B C']]:
  """The 2 K best prefixes with one more token, of which K at most end in EOS, and the beam of each."""
  batch, beams = going.scores.shape
  size = scores_NV.shape[-1]
  scores_BKV = going.scores[:, :, None] + scores_NV.reshape(batch, beams, size)
  scores_BC, index_BC = jax.lax.top_k(scores_BKV.reshape(batch, -1), 2 * beams)
  beam_BC, token_BC = index_BC // size, index_BC % size
  longer = _take(going, beam_BC)
  own_BC = jnp.take_along_axis(logps_NV.reshape(batch, -1), index_BC, axis=1)
  tokens_BCT = jax.lax.dynamic_update_slice_in_dim(
    longer.tokens, token_BC[:, :, None].astype(jnp.int32), position, axis=2
  )
  return _Beams(tokens_BCT, scores_BC, longer.logps + own_BC, longer.lengths + 1), beam_BC


def _last_tokens(beams: _Beams) -> Int[Array, 'B C']:
  return jnp.take_along_axis(beams.tokens, beams.lengths[:, :, None] - 1, axis=2)[:, :, 0]


def _with_ended(
  ended: _Beams, candidates: _Beams, ends_BC: Array, open_B: Array, length_penalty: float
) -> _Beams:
  """The best of the ended responses and of those K best candidates that end while the search is open."""
  beams = ended.scores.shape[1]
  counts_BC = ends_BC & open_B[:, None] & (jnp.arange(2 * beams) < beams)[None, :]
  scores_BC = candidates.scores / candidates.lengths.astype(jnp.float32) ** length_penalty
  new = candidates._replace(scores=jnp.where(counts_BC, scores_BC, -jnp.inf))
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), ended, new)
  return _best(both, beams)[0]


def _best(beams: _Beams, count: int) -> tuple[_Beams, Int[Array, 'B K']]:
  """The best beams of each prompt, in order, and their places."""
  _, index_BK = jax.lax.top_k(beams.scores, count)
  return _take(beams, index_BK), index_BK


def _take(beams: _Beams, index_BC: Array) -> _Beams:
  return jax.tree.map(lambda leaf: jax.vmap(lambda row, index: row[index])(leaf, index_BC), beams)


def _reordered(model: nn.Module, state: _State, beam_BK: Array) -> _State:
  """The state with the caches of the beams that the next ones grew from."""
  batch, beams = beam_BK.shape
  row_N = (beam_BK + beams * jnp.arange(batch)[:, None]).reshape(-1)
  cache = policy.select(model, state.cache, row_N, same_prompts=True)
  return state._replace(cache=cache, seen=None if state.seen is None else state.seen[row_N])


def _first(ended: _Beams, is_prompt_B: Array) -> Samples:
  best = jax.tree.map(lambda leaf: leaf[:, 0], ended)
  return Samples(best.tokens, jnp.where(is_prompt_B, best.logps, 0.0), best.lengths)
