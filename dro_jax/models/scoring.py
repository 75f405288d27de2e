"""Rows to scores: one pass of the networks."""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from dro_jax.models import lora
from dro_jax.models import policy as models_policy
from dro_jax.models.chunks import choose_chunk_size
from dro_jax.ops import logprobs, masked
from dro_jax.types import Array, Mismatched, Params, Rows, Scores


class Score(Protocol):
  """From parameters, rows, a random key for dropout and the reference's scores to the rows' scores."""

  def __call__(
    self, params: Params, rows: Rows, rng: Array | None = None, reference: Scores | None = None, /
  ) -> Scores: ...


def make_score(
  policy: nn.Module,
  value: nn.Module | None = None,
  *,
  chunk_size: int | None = None,
  kl_direction: str | None = None,
  keeps_states: bool = False,
  scores_policy: bool = True,
) -> Score:
  """Returns `score(params, rows, rng, reference)`: log-probs of every response, and values if it has `value`.

  Args:
    policy: a network of one of `models.policy.FAMILIES`.
    value: takes the rows and the policy's states to values (see `models.value.ValueNetwork`).
    chunk_size: response tokens projected to the vocabulary at once; 0 projects all, `None` as many as
      `models.chunks` chooses for the rows.
    kl_direction: `reverse` or `forward`: takes next-token KL too (see `ops.logprobs.token_kls`), for which
      `reference` must bring the reference's states and `params` its tree `reference`; `None` takes none.
    keeps_states: whether the scores have the states, as the reference's must for next-token KL.
    scores_policy: whether the policy's log-probs are taken; where not, they are 0, and no pass of it is made
      but for the states that a `value` shares.

  `params` holds the trees `policy` and, if there is one, `value`. Dropout is on exactly where `rng` is
  passed. Mismatched pairs are scored where the rows bring them: a second pass of responses on the same
  memory.
  """

  def values_of(params: Params, rows: Rows, memory: Any, states_BTD: Array | None, rng: Array | None) -> Any:
    if value is None:
      return None, None
    prompt_states_BSD = None
    if memory is not None:
      prompt_states_BSD = models_policy.family_of(policy.config).prompt_states(memory)
    if value.shared and value.readout == 'response':
      states_BTD = models_policy.read(policy, params['policy'], rows, rng)
    return value.apply(lora.variables_of(params['value']), rows, prompt_states_BSD, states_BTD)

  def score_values(
    params: Params, rows: Rows, rng: Array | None = None, reference: Scores | None = None
  ) -> Scores:
    memory = states_BTD = None
    if value is not None and value.shared and value.readout != 'response':
      memory, states_BTD = models_policy.run(policy, params['policy'], rows, rng)
    values_BR, token_values_BT = values_of(params, rows, memory, states_BTD, rng)
    zeros = jnp.zeros(rows.valid.shape), jnp.zeros(rows.response_tokens.shape)
    return Scores(*zeros, values=values_BR, token_values=token_values_BT)

  def score(params: Params, rows: Rows, rng: Array | None = None, reference: Scores | None = None) -> Scores:
    own = params['policy']
    memory, states_BTD = models_policy.run(policy, own, rows, rng)
    logits_fn = functools.partial(models_policy.logits, policy, own)

    def chunk_of(states_BTD: Array, policies: int = 1) -> int | None:
      rows, length, _ = states_BTD.shape
      return choose_chunk_size(chunk_size, rows, length, policy.config.vocab_size, policies)

    def project(states_BTD: Array, responses: Rows | Mismatched) -> tuple[Array, Array]:
      mask_BT = responses.response_segments > 0
      token_logps_BT = logprobs.response_token_logps(
        logits_fn, states_BTD, responses.response_tokens, mask_BT, chunk_of(states_BTD)
      )
      return token_logps_BT, _summed(token_logps_BT, responses)

    if kl_direction is None:
      (token_logps_BT, logps_BR), token_kls_BT = project(states_BTD, rows), None
    else:
      token_logps_BT, token_kls_BT = logprobs.response_token_logps_and_kls(
        logits_fn, functools.partial(models_policy.logits, policy, params['reference']),
        states_BTD, reference.states, rows.response_tokens, rows.response_segments > 0,
        kl_direction, chunk_of(states_BTD, policies=2),
      )  # fmt: skip
      logps_BR = _summed(token_logps_BT, rows)
    mismatched_logps_BR = None
    if rows.mismatched is not None:
      others_BTD = models_policy.decode(policy, own, memory, rows, rows.mismatched, rng)
      # A statistic without a gradient: stopping it here keeps nothing of this pass for the backward pass.
      mismatched_logps_BR = jax.lax.stop_gradient(project(others_BTD, rows.mismatched)[-1])
    values_BR, token_values_BT = values_of(params, rows, memory, states_BTD, rng)
    states_BTD = states_BTD if keeps_states else None
    return Scores(
      logps_BR, token_logps_BT, mismatched_logps_BR, values_BR, token_values_BT, token_kls_BT, states_BTD
    )

  return score if scores_policy else score_values


def _summed(x_BT: Array, responses: Rows | Mismatched) -> Array:
  """The sum over each response's tokens, `[B, R]`."""
  return masked.segment_sum(x_BT, responses.response_segments, responses.valid.shape[1])
