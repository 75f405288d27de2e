"""Rows to scores: one pass of the networks."""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from dro_jax.models import lora
from dro_jax.models import policy as models_policy
from dro_jax.models.chunks import choose_chunk_size
from dro_jax.ops import logprobs, masked
from dro_jax.types import Array, Mismatched, Params, Rows, Scores

Score = Callable[[Params, Rows, Array | None], Scores]


def make_score(policy: nn.Module, value: nn.Module | None = None, *, chunk_size: int | None = None) -> Score:
  """Returns `score(params, rows, rng)`: log-probs of every response, and values where `value` is passed.

  Args:
    policy: a network of one of `models.policy.FAMILIES`.
    value: takes the rows and the policy's states to values (see `models.value.ValueNetwork`).
    chunk_size: response tokens projected to the vocabulary at once; 0 projects all, `None` as many as
      `models.chunks` chooses for the rows.

  `params` holds the trees `policy` and, if there is one, `value`. Dropout is on exactly where `rng` is
  passed. Mismatched pairs are scored where the rows bring them: a second pass of responses on the same
  memory.
  """

  def score(params: Params, rows: Rows, rng: Array | None = None) -> Scores:
    own = params['policy']
    memory, states_BTD = models_policy.run(policy, own, rows, rng)

    def project(states_BTD: Array, responses: Rows | Mismatched) -> tuple[Array, Array]:
      batch, length, _ = states_BTD.shape
      token_logps_BT = logprobs.response_token_logps(
        functools.partial(models_policy.logits, policy, own),
        states_BTD,
        responses.response_tokens,
        responses.response_segments > 0,
        choose_chunk_size(chunk_size, batch, length, policy.config.vocab_size),
      )
      slots = responses.valid.shape[1]
      return token_logps_BT, masked.segment_sum(token_logps_BT, responses.response_segments, slots)

    token_logps_BT, logps_BR = project(states_BTD, rows)
    mismatched_logps_BR = None
    if rows.mismatched is not None:
      others_BTD = models_policy.decode(policy, own, memory, rows, rows.mismatched, rng)
      # A statistic without a gradient: stopping it here keeps nothing of this pass for the backward pass.
      mismatched_logps_BR = jax.lax.stop_gradient(project(others_BTD, rows.mismatched)[-1])
    values_BR = token_values_BT = None
    if value is not None:
      prompt_states_BSD = models_policy.family_of(policy.config).prompt_states(memory)
      values_BR, token_values_BT = value.apply(
        lora.variables_of(params['value']), rows, prompt_states_BSD, states_BTD
      )
    return Scores(logps_BR, token_logps_BT, mismatched_logps_BR, values_BR, token_values_BT)

  return score
