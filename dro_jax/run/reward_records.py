"""What a run records of its rewards: the reward models that it trains on, and that measure it."""

from collections.abc import Mapping
from typing import Any

from dro_jax.algorithms import Algorithm
from dro_jax.data.triplets import Triplets
from dro_jax.run.sampling import rewards
from dro_jax.run.spec import RunSpec


def entries(spec: RunSpec, algorithm: Algorithm, triplets: Triplets) -> dict[str, Any]:
  """Entries of a run's metadata: a reward model's role and kind of scores, and the rewards that were used."""
  own, scored_by = _own(spec), triplets.report.get('scored_by', [])
  trained_on = scored_by if algorithm.online is None else [own]
  used = {'rewards': {'trained_on': trained_on, 'measured_by': own}} if trained_on or own else {}
  return {**(algorithm.reward_model or {}), **used}


def note(spec: RunSpec, algorithm: Algorithm, triplets: Triplets) -> str:
  """A warning of a run whose samples are measured by what its data was scored by; '' of other runs."""
  own = _own(spec)
  if own is None or algorithm.online is not None:  # Online, the reward is what the run is to raise.
    return ''
  problem = rewards.why_not_judge(own, {'rewards': {'trained_on': triplets.report.get('scored_by', [])}})
  return problem and f'warning: {problem}'


def _own(spec: RunSpec) -> Mapping[str, Any] | None:
  return None if spec.rollouts.reward is None else rewards.record_of(spec.rollouts.reward)
