"""The arrays that all other modules pass on: rows, scores, losses.

Dimension key, used in local names (`logps_BR`) and in jaxtyping annotations:

  B  rows of a batch                    S  prompt tokens of a row
  R  response slots of a row            T  response tokens of a row
  N  responses of a batch, flat (B*R)   L  tokens of one response, unpacked
  P  pairs      G  groups      K  responses of a group      U  units: pairs or groups
  D  model width      H  heads      V  vocabulary      M  microbatches
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Bool, Float, Int

Array = jax.Array
Params = Any
# A temperature: a number, or a traced one, so that one compilation serves a whole grid.
Scalar = float | Float[Array, '']


class Mismatched(NamedTuple):
  """Another row's responses, each pointing at a prompt of *this* row with a different text.

  KTO's reference point is estimated on them: a second pass of responses over this row's prompts.
  `valid` is 0 where no prompt of the row has a different text.
  """

  response_tokens: Int[Array, 'B T']
  response_segments: Int[Array, 'B T']
  response_positions: Int[Array, 'B T']
  response_prompt: Int[Array, 'B T']
  valid: Bool[Array, 'B R']


class Units(NamedTuple):
  """Which responses make up each pair or group of the *global* batch.

  `index` counts slots of the flat `[N]` batch, best response first (of a pair: chosen, rejected). `mask` is 0
  where a group has fewer members than others, and for every member of a unit that fills up a short batch.
  """

  index: Int[Array, 'U K']  # type: ignore[assignment]  # Hides the method of tuples.
  mask: Bool[Array, 'U K']


class Rows(NamedTuple):
  """The one row layout: prompts, and responses that each point at their prompt.

  Segments count from 1 within a row, are contiguous, and 0 is padding. Response segment r + 1 fills slot r of
  the `[B, R]` arrays. `response_tokens` are the targets: a model's inputs are these, shifted right within
  each segment. `response_prompt` is the segment of a response token's prompt. `columns` carries further
  columns of the data by response (`label`, `behaviour_logps`), `token_columns` by token, float32. `units`
  belongs to the whole batch, not to its rows.
  """

  prompt_tokens: Int[Array, 'B S']
  prompt_segments: Int[Array, 'B S']
  prompt_positions: Int[Array, 'B S']
  response_tokens: Int[Array, 'B T']
  response_segments: Int[Array, 'B T']
  response_positions: Int[Array, 'B T']
  response_prompt: Int[Array, 'B T']
  rewards: Float[Array, 'B R']
  example_id: Int[Array, 'B R']
  valid: Bool[Array, 'B R']
  columns: Mapping[str, Float[Array, 'B R']] = {}
  mismatched: Mismatched | None = None
  token_columns: Mapping[str, Float[Array, 'B T']] = {}
  units: Units | None = None


class Scores(NamedTuple):
  """The log-probs and values that one pass of the networks gives each response: a batch's small vectors.

  Log-probs are in nats and float32; `logps` sums `token_logps` over each response. The reference policy's
  scores have no values. Padding is 0. Where the algorithm asks for next-token KL, the policy's scores have
  `token_kls`, in nats, and the reference's the hidden `states` from which its logits are made.
  """

  logps: Float[Array, 'B R']
  token_logps: Float[Array, 'B T']
  mismatched_logps: Float[Array, 'B R'] | None = None
  values: Float[Array, 'B R'] | None = None
  token_values: Float[Array, 'B T'] | None = None
  token_kls: Float[Array, 'B T'] | None = None
  states: Float[Array, 'B T D'] | None = None


class LossTerm(NamedTuple):
  """A per-example loss and its weights; the step takes the weighted mean over the global batch.

  Weights never depend on scores.
  """

  per_example: Float[Array, '...']
  weights: Float[Array, '...']


class LossOutput(NamedTuple):
  """An algorithm's losses by name (`policy`, `value`), which the step adds up, and its own metrics.

  Terms are by the algorithm's unit, response, pair or group; `next_token_kl` is always by response.
  `statistics` are the algorithm's running scalars as they stand after this batch (see `Algorithm`).
  """

  terms: Mapping[str, LossTerm]
  metrics: Mapping[str, Float[Array, '']] = {}
  statistics: Mapping[str, Float[Array, '']] = {}
