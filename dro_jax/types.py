"""The arrays everything else speaks of: rows, scores, examples, losses.

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
# A temperature: a number, or traced, so that one compilation serves a whole grid.
Scalar = float | Float[Array, '']


class SpecialTokens(NamedTuple):
  """Ids that stand for no text: padding, a text's end, text without a piece, a response's first input."""

  pad: int = 0
  eos: int = 1
  unknown: int = 2
  start: int = 0


class Mismatched(NamedTuple):
  """Another row's responses, each pointing at a prompt of *this* row with a different text.

  KTO's reference point is estimated on them: a second decoder pass over this row's encoder states.
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
  where a group has fewer members than others, and for all of a unit that only fills up a short batch.
  """

  index: Int[Array, 'U K']  # type: ignore[assignment]  # Hides the method of tuples.
  mask: Bool[Array, 'U K']


class Rows(NamedTuple):
  """One row layout for everything: some prompts, some responses, every response points at its prompt.

  Segments count from 1 within a row, are contiguous, and 0 is padding. Response segment r + 1 fills slot r of
  the `[B, R]` arrays. `response_tokens` are the targets: the decoder's inputs are these, shifted right within
  each segment. `response_prompt` is the prompt segment that a response token's cross-attention sees.
  `columns` carries what else the data brings by response (`label`, `behaviour_logps`), `token_columns` what
  it brings by token, float32. `units` belongs to the whole batch, not to its rows.
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
  """What one pass of the networks says of every response: a batch's tiny vectors.

  Log-probs are in nats and float32; `logps` sums `token_logps` over each response. The reference policy's
  scores have no values. Padding is 0.
  """

  logps: Float[Array, 'B R']
  token_logps: Float[Array, 'B T']
  mismatched_logps: Float[Array, 'B R'] | None = None
  values: Float[Array, 'B R'] | None = None
  token_values: Float[Array, 'B T'] | None = None


class LossTerm(NamedTuple):
  """A per-example loss and its weights; the step takes their one weighted mean over the global batch.

  Weights never depend on scores.
  """

  per_example: Float[Array, '...']
  weights: Float[Array, '...']


class LossOutput(NamedTuple):
  """An algorithm's losses by name (`policy`, `value`), which the step adds up, and metrics of its own.

  `statistics` are the algorithm's running scalars as they stand after this batch (see `Algorithm`).
  """

  terms: Mapping[str, LossTerm]
  metrics: Mapping[str, Float[Array, '']] = {}
  statistics: Mapping[str, Float[Array, '']] = {}


# The words by which a record says that the reference policy sampled its response.
SAMPLED = ('sampled', 'sampling', 'sample')

# What a store of the reference's log-probs calls them: by token, and of mismatched pairs.
TOKEN_LOGPS, MISMATCHED_LOGPS = 'reference_token_logps', 'reference_mismatched_logps'
