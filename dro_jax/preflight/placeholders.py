"""Placeholders for data, weights and a reference store that this machine does not have."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dro_jax import names
from dro_jax.data.records.readers import FORMATS
from dro_jax.data.table.table import Ragged, TokenTable
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.data.triplets import Triplets
from dro_jax.data.worlds import placeholder
from dro_jax.models.scoring import Score
from dro_jax.run.spec import RunSpec, replace
from dro_jax.step.reference import Cached, Reference

# Columns from which algorithms derive others.
_DERIVED_FROM = ('value', 'behaviour_logps', 'behaviour_sampled')


def are_local_files(triplets: str | Sequence[str] | None) -> bool:
  """Whether these are files; preflight downloads no data set and uses placeholders instead."""
  names = triplets.split(',') if isinstance(triplets, str) else triplets or ()
  return bool(names) and all(name.strip().endswith(FORMATS) for name in names)


def with_texts_of_full_length(spec: RunSpec, prompt_length: int, response_length: int) -> RunSpec:
  """The run on placeholders: batches of texts of full length, in rows with one prompt and one response."""
  algorithm, batches, rows = spec.algorithm, spec.batches, spec.batches.rows
  columns = (*algorithm.requires, *(_DERIVED_FROM if algorithm.columns else ()))
  responses = batches.units.group_size if algorithm.unit == 'group' else 2

  def read(vocabulary: Vocabulary, **options: Any) -> Triplets:
    return placeholder.triplets(
      vocabulary, prompts=batches.size, responses=responses, prompt_length=prompt_length,
      response_length=response_length, columns=columns,
    )  # fmt: skip

  rows = dataclasses.replace(
    rows, prompt_length=rows.prompt_length or prompt_length,
    response_length=rows.response_length or response_length,
  )  # fmt: skip
  return replace(spec, data=read, batches={'rows': rows})


def without_weights(spec: RunSpec) -> RunSpec:
  """The run from a random start where its checkpoint or vocabulary is missing: the step is the same."""
  policy = spec.policy
  if policy.init_from is not None and policy.config is not None and not _is_here(policy.init_from):
    policy = dataclasses.replace(policy, init_from=None)
  if isinstance(policy.vocabulary, str) and policy.vocabulary != 'bytes' and not _is_here(policy.vocabulary):
    policy = dataclasses.replace(policy, vocabulary=None)
  return dataclasses.replace(spec, policy=policy)


def _is_here(path: str) -> bool:
  """Whether a path of this machine exists; does not look into buckets."""
  return '://' not in path and pathlib.Path(path).expanduser().exists()


def without_store(spec: RunSpec) -> RunSpec:
  """The run with placeholders for the log-probs of a reference store, if it reads one."""
  if not isinstance(spec.reference, Cached) or not spec.algorithm.uses_reference:
    return spec
  return dataclasses.replace(spec, reference=_StandInStore(), data=_with_logps(spec.data))


@dataclasses.dataclass(frozen=True)
class _StandInStore:
  """A cached reference whose log-probs come with the triplets."""

  def build(self, score: Score) -> Reference:
    return Cached('stand-in').build(score)._replace(stored=None)


def _with_logps(data: Triplets | Callable[..., Triplets]) -> Callable[..., Triplets]:
  def read(**options: Any) -> Triplets:
    triplets = data if isinstance(data, Triplets) else data(**options)
    return triplets._replace(train=_extended(triplets.train), eval=_extended(triplets.eval))

  return read


def _extended(table: TokenTable | None) -> TokenTable | None:
  if table is None:
    return None
  starts = np.cumsum(table.response_lengths) - table.response_lengths
  zeros = Ragged(np.zeros(int(table.response_lengths.sum()), np.float32), starts)
  pairs = {names.MISMATCHED_LOGPS: lambda prompts, responses: np.zeros(len(prompts))}
  return table.with_columns(token_columns={names.TOKEN_LOGPS: zeros}, pair_columns=pairs)
