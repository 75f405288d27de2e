"""Sampling from a policy, with a key-value cache."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from dro_jax.errors import UsageError
from dro_jax.models import policy
from dro_jax.models.family import Cache, Prompts
from dro_jax.types import Array, Params

_SMALL = 1e-3  # Below this temperature logits are moved to 0 before the division.


class Samples(NamedTuple):
  """Sampled responses.

  `tokens` ends with EOS unless `max_length` cut it, then padding; `lengths` counts the EOS. `logps` is log
  π(y|x) in nats, as scoring the response gives it: the policy's own, whichever temperature and truncation
  drew the response (so it is the response's propensity only at temperature 1 without truncation).
  """

  tokens: Int[Array, 'B T']
  logps: Float[Array, 'B']
  lengths: Int[Array, 'B']


class _State(NamedTuple):
  position: Int[Array, '']
  hidden: Float[Array, 'B D']
  cache: Cache
  done: Bool[Array, 'B']
  samples: Samples
  seen: Bool[Array, 'B V'] | None


def sample(
  model: nn.Module,
  params: Params,
  prompts: Prompts,
  max_length: int,
  key: Array,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  repetition_penalty: float = 1.0,
  prompt_ids: Int[Array, 'B'] | None = None,
) -> Samples:
  """Samples one response to each prompt, until all have ended.

  Args:
    model: the policy.
    params: its parameters.
    prompts: tokens, and segments which are 1 on the prompt and 0 on padding; one prompt a row. A row of
      padding gets an empty response.
    max_length: most tokens of a response.
    key: the randomness; row b draws with fold_in(key, prompt_ids[b]), so that batching changes no sample.
    temperature: divides the logits; 0, or a number too small to divide by, takes the most probable token.
    top_k: keep the k most probable tokens (ties with the k-th too); 0 keeps all.
    top_p: of those, keep the fewest most probable tokens whose mass, renormalised, reaches p; 1 keeps all.
    repetition_penalty: see `penalised`; of logits here, before the temperature divides them.
    prompt_ids: a number for each row, the same in every batch; by default the row's place in this batch.
      Different samples of one prompt need different numbers.

  Raises:
    UsageError: a setting is out of its range.
  """
  if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or max_length < 1:
    raise UsageError(
      f'temperature={temperature}, top_k={top_k}, top_p={top_p}, max_length={max_length} are out of range: '
      'pass temperature ≥ 0 (0 is greedy), top_k ≥ 0 (0 is all), 0 < top_p ≤ 1 (1 is all), max_length ≥ 1.'
    )
  check_penalty(repetition_penalty)
  tokens_BS, segments_BS = prompts
  if prompt_ids is None:
    prompt_ids = jnp.arange(tokens_BS.shape[0])
  return _sample(
    model, max_length, temperature, top_k, top_p, repetition_penalty, params, tokens_BS, segments_BS,
    prompt_ids, key,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=range(6))
def _sample(
  model: nn.Module,
  max_length: int,
  temperature: float,
  top_k: int,
  top_p: float,
  repetition_penalty: float,
  params: Params,
  tokens_BS: Array,
  segments_BS: Array,
  prompt_ids_B: Array,
  key: Array,
) -> Samples:
  special = policy.special_tokens(model)
  keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, prompt_ids_B)

  def step(state: _State) -> _State:
    logits_BV = policy.next_logits(model, params, state.hidden)
    penalised_BV = penalised(logits_BV, state.seen, repetition_penalty)
    chosen_B = choose(penalised_BV, keys_B, state.position, temperature, top_k, top_p)
    chosen_B = jnp.where(state.done, special.pad, chosen_B).astype(jnp.int32)
    samples = _append(state.samples, state.position, logits_BV, chosen_B, state.done)
    hidden_BD, cache = policy.advance(model, params, state.cache, chosen_B, state.position + 1)
    done_B, seen_BV = state.done | (chosen_B == special.eos), with_seen(state.seen, chosen_B)
    return _State(state.position + 1, hidden_BD, cache, done_B, samples, seen_BV)

  def going(state: _State) -> Array:
    return (state.position < max_length) & ~jnp.all(state.done)

  start = _start(model, params, (tokens_BS, segments_BS), max_length, repetition_penalty)
  return jax.lax.while_loop(going, step, start).samples


def _start(
  model: nn.Module, params: Params, prompts: Prompts, max_length: int, repetition_penalty: float
) -> _State:
  tokens_BS, segments_BS = prompts
  batch = len(tokens_BS)
  hidden_BD, cache = policy.start(model, params, prompts, max_length)
  samples = Samples(
    no_tokens(model, (batch, max_length)), jnp.zeros(batch, jnp.float32), jnp.zeros(batch, jnp.int32)
  )
  done_B = ~jnp.any(segments_BS == 1, axis=-1)
  seen_BV = start_seen(model, params, (tokens_BS, segments_BS), hidden_BD, repetition_penalty)
  return _State(jnp.zeros((), jnp.int32), hidden_BD, cache, done_B, samples, seen_BV)


def no_tokens(model: nn.Module, shape: tuple[int, ...]) -> Int[Array, '...']:
  """Responses without a token yet: padding."""
  return jnp.full(shape, policy.special_tokens(model).pad, jnp.int32)


def _append(samples: Samples, position: Array, logits_BV: Array, chosen_B: Array, done_B: Array) -> Samples:
  logps_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32))
  chosen_logps_B = jnp.take_along_axis(logps_BV, chosen_B[:, None], axis=-1)[:, 0]
  return Samples(
    jax.lax.dynamic_update_slice_in_dim(samples.tokens, chosen_B[:, None], position, axis=1),
    samples.logps + jnp.where(done_B, 0.0, chosen_logps_B),
    samples.lengths + jnp.where(done_B, 0, 1),
  )


def check_penalty(repetition_penalty: float) -> None:
  """Refuses a repetition penalty that is not above 0."""
  if not repetition_penalty > 0:
    raise UsageError(
      f'repetition_penalty={repetition_penalty}: pass more than 0. 1 penalises nothing, 1.2 a little; '
      'a factor below 1 rewards repetitions.'
    )


def penalised(
  scores: Float[Array, 'B V'], seen: Bool[Array, 'B V'] | None, penalty: float
) -> Float[Array, 'B V']:
  """Scores of the next token, penalised where the text has it: s · penalty if s < 0, else s / penalty.

  CTRL (arXiv 1909.05858), Sect. 4.1, with transformers' sign rule. The text is the one that transformers
  counts: the response after its start token, and of a decoder-only model the prompt before it too. `seen` is
  `None` where nothing is penalised.
  """
  if seen is None:
    return scores
  return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def start_seen(
  model: nn.Module, params: Params, prompts: Prompts, hidden: Float[Array, 'N D'], penalty: float
) -> Bool[Array, 'N V'] | None:
  """The tokens that count as repeated before N / B responses to each prompt begin (see `penalised`).

  Returns:
    `None` where nothing is penalised.
  """
  if penalty == 1:
    return None
  num_rows, size = jax.eval_shape(lambda: policy.next_logits(model, params, hidden)).shape
  if not policy.family_of(model.config).continues_prompts:
    return jnp.zeros((num_rows, size), bool).at[:, policy.special_tokens(model).start].set(True)
  tokens_BS, segments_BS = prompts
  batch = len(tokens_BS)
  seen_BV = jnp.zeros((batch, size), bool).at[jnp.arange(batch)[:, None], tokens_BS].max(segments_BS == 1)
  return jnp.repeat(seen_BV, num_rows // batch, axis=0)


def with_seen(seen: Bool[Array, 'B V'] | None, tokens_B: Array) -> Bool[Array, 'B V'] | None:
  """The seen tokens, with one more in each row."""
  return None if seen is None else seen.at[jnp.arange(len(tokens_B)), tokens_B].set(True)


def choose(
  logits: Float[Array, 'B V'],
  keys: Array,
  position: Int[Array, ''],
  temperature: float,
  top_k: int,
  top_p: float,
) -> Int[Array, 'B']:
  """The next token of each row: the most probable at temperature 0, else drawn by fold_in(key, position)."""
  if temperature < jnp.finfo(jnp.float32).tiny:
    return jnp.argmax(logits, axis=-1)
  if temperature < _SMALL:
    # Otherwise they overflow, and all are equally probable.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
  return jax.vmap(jax.random.categorical)(keys, truncate(logits / temperature, top_k, top_p))


def truncate(logits: Float[Array, 'B V'], top_k: int, top_p: float) -> Float[Array, 'B V']:
  """Logits with −∞ for all but the `top_k` most probable, and of those all but the nucleus of `top_p`."""
  kept = logits
  if 0 < top_k < logits.shape[-1]:
    kept = jax.lax.top_k(logits, top_k)[0]
  if top_p < 1:
    probabilities = jax.nn.softmax(kept, axis=-1)
    kept = jnp.where(probabilities >= _nucleus_threshold(probabilities, top_p), kept, jnp.inf)
  return jnp.where(logits >= jnp.min(kept, axis=-1, keepdims=True), logits, -jnp.inf)


def _nucleus_threshold(probabilities_BV: Array, top_p: float) -> Array:
  """The largest probability t with Σ_{p_v ≥ t} p_v ≥ `top_p`: a nucleus' least probable token.

  By bisection, because sorting a vocabulary costs more than the model's step. Floats ≥ 0 are in the order of
  their bits, so that 31 halvings of these are exact.
  """
  bits_BV = jax.lax.bitcast_convert_type(probabilities_BV, jnp.int32)

  def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low_B1, high_B1 = bounds
    middle_B1 = low_B1 + (high_B1 - low_B1) // 2
    mass_B1 = jnp.sum(jnp.where(bits_BV >= middle_B1, probabilities_BV, 0.0), axis=-1, keepdims=True)
    enough_B1 = mass_B1 >= top_p
    return jnp.where(enough_B1, middle_B1, low_B1), jnp.where(enough_B1, high_B1, middle_B1)

  low_B1 = jnp.zeros_like(bits_BV[:, :1])
  low_B1, _ = jax.lax.fori_loop(0, 31, halve, (low_B1, low_B1 + jnp.iinfo(jnp.int32).max))
  return jax.lax.bitcast_convert_type(low_B1, jnp.float32)
