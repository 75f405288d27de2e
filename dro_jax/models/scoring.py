"""Rows to scores: one pass of the networks over one row layout."""

from collections.abc import Callable

import jax
from flax import linen as nn

from dro_jax.ops import logprobs, masked
from dro_jax.types import Array, Params, Rows, Scores

Score = Callable[[Params, Rows, Array | None], Scores]


def make_score(policy: nn.Module, value: nn.Module | None = None, *, chunk_size: int | None = None) -> Score:
  """Returns `score(params, rows, rng)`: log-probs of every response, and its value where `value` is given.

  Args:
    policy: has methods `encode`, `decode` and `logits` (see `models.t5.network.T5`).
    value: takes the rows and the policy's states to values (see `models.value.ValueNetwork`).
    chunk_size: response tokens projected to the vocabulary at once; `None` for all.

  `params` holds the trees `policy` and, if there is one, `value`. Dropout is on exactly where `rng` is given.
  Mismatched pairs are scored where the rows bring them: a second decoder pass on the same encoder states.
  """

  def score(params: Params, rows: Rows, rng: Array | None = None) -> Scores:
    def apply(method, *args, **kwargs):
      rngs = None if rng is None else {'dropout': rng}
      return policy.apply({'params': params['policy']}, *args, **kwargs, method=method, rngs=rngs)

    dropout = rng is not None
    encoded_BSD = apply(
      'encode', rows.prompt_tokens, rows.prompt_segments, rows.prompt_positions, enable_dropout=dropout
    )

    def decode(responses):
      hidden_BTD = apply(
        'decode',
        encoded_BSD,
        rows.prompt_segments,
        responses.response_tokens,
        responses.response_segments,
        responses.response_positions,
        responses.response_prompt,
        enable_dropout=dropout,
      )
      token_logps_BT = logprobs.response_token_logps(
        lambda hidden: apply('logits', hidden),
        hidden_BTD,
        responses.response_tokens,
        responses.response_segments > 0,
        chunk_size,
      )
      num_slots = responses.valid.shape[1]
      return (
        hidden_BTD,
        token_logps_BT,
        masked.segment_sum(token_logps_BT, responses.response_segments, num_slots),
      )

    hidden_BTD, token_logps_BT, logps_BR = decode(rows)
    mismatched_logps_BR = None
    if rows.mismatched is not None:
      # They make a statistic that carries no gradient: nothing of this pass is kept for a backward one.
      mismatched_logps_BR = jax.lax.stop_gradient(decode(rows.mismatched)[-1])
    values_BR = token_values_BT = None
    if value is not None:
      values_BR, token_values_BT = value.apply({'params': params['value']}, rows, encoded_BSD, hidden_BTD)
    return Scores(logps_BR, token_logps_BT, mismatched_logps_BR, values_BR, token_values_BT)

  return score
