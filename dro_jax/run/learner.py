"""Who learns in a run: its algorithm, networks and reference, on its mesh."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from dro_jax import algorithms
from dro_jax.checkpoints import policy as saved_policies
from dro_jax.data.text import vocabularies
from dro_jax.models import scoring
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import networks
from dro_jax.run.folder.legacy import Legacy
from dro_jax.run.model import find_model_config, refuse_idle_value
from dro_jax.run.spec import RunSpec, Value
from dro_jax.step.reference import AdapterOff, Frozen, Reference


class Learner(NamedTuple):
  """An algorithm, and the networks and reference that it reads, on a mesh.

  Attributes:
    algorithm: the spec's, with next-token KL where the run adds it, on one value for a batch where the value
      is read so.
    networks: policy and value.
    value: how the value is read.
    reference: the reference policy; `None` where the algorithm has none.
    vocabulary: the policy's.
    mesh: where all this lies.
  """

  algorithm: algorithms.Algorithm
  networks: networks.Networks
  value: Value
  reference: Reference | None
  vocabulary: vocabularies.Vocabulary
  mesh: Mesh


def make_learner(spec: RunSpec, devices: Sequence[Any] | None, legacy: Legacy) -> Learner:
  """Builds a run's networks and reference; no parameter is made or read.

  Raises:
    UsageError: there is no model or vocabulary, or settings do not go together.
  """
  vocabulary = saved_policies.find_vocabulary(spec.policy.vocabulary, spec.policy.init_from)
  config = find_model_config(spec.policy, spec.compute, vocabulary)
  value = dataclasses.replace(spec.value, readout=legacy.readout(spec.value.readout))
  refuse_idle_value(value, legacy)
  algorithm = spec.full_algorithm
  pools = algorithm.uses_value and value.readout == 'batch'
  algorithm = algorithms.with_batch_value(algorithm) if pools else algorithm
  nets = networks.build(
    config, uses_value=algorithm.uses_value, lora=spec.policy.lora, **dataclasses.asdict(value)
  )
  keeps_states = algorithm.kl_direction is not None
  reference = _build_reference(spec, nets, keeps_states) if algorithm.uses_reference else None
  reference = legacy.reference(reference)
  return Learner(algorithm, nets, value, reference, vocabulary, spec.mesh.over(devices))


def _build_reference(spec: RunSpec, nets: networks.Networks, keeps_states: bool) -> Reference:
  """The run's reference; the initial policy of a fresh adapter is its base with the adapter off."""
  scheme = spec.reference
  is_fresh = nets.lora is not None and not networks.continues(nets, spec.policy.init_from)
  if scheme == Frozen() and is_fresh:
    scheme = AdapterOff()
  chunk_size = spec.compute.chunk_size
  return scheme.build(scoring.make_score(nets.policy, chunk_size=chunk_size, keeps_states=keeps_states))
