"""What stands in for data and references that are not here."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dro_jax import types
from dro_jax.data import triplets
from dro_jax.data.table.table import Ragged, TokenTable
from dro_jax.data.worlds import placeholder
from dro_jax.models.scoring import Score
from dro_jax.step.reference import Reference

# What algorithms derive columns from, where a record has them.
DERIVED_FROM = ('value', 'behaviour_logps', 'behaviour_sampled')


def placeholder_triplets(vocabulary: Any, **sizes: Any) -> triplets.Triplets:
  return placeholder.triplets(vocabulary, **sizes)


def without_store(reference: Callable[[Score], Reference]) -> Callable[[Score], Any]:
  return lambda score: reference(score)._replace(stored=None)


def with_reference(data: Callable[..., triplets.Triplets], **options: Any) -> triplets.Triplets:
  """Triplets with a reference's log-probs, as a store would bring them."""
  found = data(**options)

  def extended(table: TokenTable | None) -> TokenTable | None:
    if table is None:
      return None
    starts = np.cumsum(table.response_lengths) - table.response_lengths
    zeros = Ragged(np.zeros(int(table.response_lengths.sum()), np.float32), starts)
    pairs = {types.MISMATCHED_LOGPS: lambda prompts, responses: np.zeros(len(prompts))}
    return table.with_columns(token_columns={types.TOKEN_LOGPS: zeros}, pair_columns=pairs)

  return found._replace(train=extended(found.train), eval=extended(found.eval))
