"""Cost of a compiled step on a slice: memory a chip, operations, bytes moved, and a bound on seconds."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dro_jax.costs import slices
from dro_jax.costs.hlo import collectives as hlo_collectives
from dro_jax.costs.hlo import memory as hlo_memory
from dro_jax.costs.hlo import operations, program
from dro_jax.models import lora
from dro_jax.models.family import Family
from dro_jax.models.value import ValueNetwork
from dro_jax.step.state import TrainState


class Work(NamedTuple):
  """The work of one step on one chip: operations, bytes, and the collectives that move some of them."""

  flops: float | int
  hbm_bytes: float | int
  traffic: slices.Traffic
  collectives: Sequence[hlo_collectives.Collective]
  estimated_cycles: float | int
  kept_bytes: float | int


def work(text: str, devices: Sequence[Any], where: slices.Slice) -> Work:
  """Reads a compiled step's HLO.

  Args:
    text: the optimised module's.
    devices: the program's devices, in its order.
    where: the slice of the devices.
  """
  module = program.parse(text)
  collectives = hlo_collectives.collectives(module, len(devices))
  return Work(
    operations.flops(module), hlo_memory.memory_bytes(module), slices.traffic(collectives, devices, where),
    collectives, operations.estimated_cycles(module), hlo_memory.kept_bytes(module),
  )  # fmt: skip


def seconds(work: Work, chip: slices.Chip) -> dict[str, float | int]:
  """Seconds that each resource of a chip takes alone at its peak rate, their maximum and their sum.

  The maximum is the roofline, where all other work overlaps with one resource. The sum is without overlap.
  """
  alone = {
    'compute': work.flops / chip.flops, 'hbm': work.hbm_bytes / chip.hbm_bandwidth,
    'ici': work.traffic.ici_seconds, 'dcn': work.traffic.dcn_seconds,
  }  # fmt: skip
  return alone | {'most': max(alone.values()), 'sum': sum(alone.values())}


def bound_by(times: Mapping[str, float | int]) -> str:
  """The resource that takes longest."""
  return max(('compute', 'hbm', 'ici', 'dcn'), key=times.__getitem__)


def by_kind(collectives: Sequence[hlo_collectives.Collective]) -> list[dict[str, Any]]:
  """Collectives summed by kind and group size: runs, bytes that a chip sends a step, and the largest."""
  kinds = collections.defaultdict(list)
  for collective in collectives:
    kinds[collective.kind, len(collective.groups[0]), collective.network].append(collective)
  rows = [
    {
      'kind': kind, 'group': size, 'over': 'DCN' if network else 'ICI',
      'runs': sum(collective.count for collective in members),
      'sent_bytes': sum(collective.count * collective.sent for collective in members),
      'largest': max(members, key=lambda collective: collective.sent).describe(),
    }
    for (kind, size, network), members in kinds.items()
  ]  # fmt: skip
  return sorted(rows, key=lambda row: -row['sent_bytes'])


def shard_bytes(tree: Any) -> int:
  """Bytes that one device holds of a tree of shapes with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
    if x.sharding is not None
  )


def memory(state: TrainState, statistics: Any, kept: float | int) -> dict[str, float | int]:
  """Bytes a chip by kind, of a compiled step that fits.

  Args:
    state: shapes and shardings.
    statistics: the compiler's (`compiled.memory_analysis()`).
    kept: bytes that the forward pass keeps for the backward pass, by layer.
  """
  held = state_memory(state)
  rows = max(statistics.argument_size_in_bytes - sum(held.values()), 0)
  new = max(statistics.output_size_in_bytes - statistics.alias_size_in_bytes, 0)
  kept = min(kept, statistics.temp_size_in_bytes)
  parts = held | {
    'rows_and_padding': rows + new, 'activations': kept,
    'temporaries': statistics.temp_size_in_bytes - kept, 'code': statistics.generated_code_size_in_bytes,
  }  # fmt: skip
  return parts | {'total': sum(parts.values())}


def state_memory(state: TrainState) -> dict[str, float | int]:
  """Bytes a chip that the state occupies between steps."""
  held: dict[str, float | int] = {
    'parameters': shard_bytes(state.params), 'optimizer': shard_bytes(state.opt_state),
    'reference': shard_bytes(state.reference),
  }  # fmt: skip
  held |= {} if state.initial is None else {'initial_policy': shard_bytes(state.initial)}
  return held if state.base is None else held | {'frozen_base': shard_bytes(state.base)}


# --- the rule of thumb --------------------------------------------------------------------------------------


def rule_of_thumb(
  state: TrainState,
  tokens: tuple[int, int],
  algorithm: Any,
  family: Family,
  value: ValueNetwork | None = None,
  uses_reference: bool = False,
) -> float | int:
  """Operations of a step by 6 N D and 2 N D: parameters times tokens that meet them.

  6 for trained networks (4 where adapters train on a frozen base, whose own gradient is not computed), 2 for
  the reference and for a frozen trunk, 2 more by response for mismatched pairs.

  Args:
    state: shapes.
    tokens: of prompts and of responses, padding included, as the rows are computed on.
    algorithm: says which passes a step makes.
    family: of the policy: which parameters a token meets.
    value: the value network: whether its trunk is trained, and whether it reads responses.
    uses_reference: of networks with adapters, whether the reference is scored, on the same base.
  """
  policy, reference = state.params['policy'], state.reference
  trunk, trained = state.params.get('value', {}).get('trunk'), 6
  if state.base is not None:
    policy, trained = jax.eval_shape(lora.base_params, state.base), 4
    reference = policy if uses_reference else None
    trunk = trunk and {side: policy[side] for side in trunk}
  met = family.parameters_met
  passes = [(trained if algorithm.trains_policy else 2, *met(policy, True))]
  if not algorithm.scores_policy:  # Only a value that shares its states needs a pass of the policy.
    passes = [(2, *met(policy, False))] if value is not None and value.shared else []
  passes += [] if reference is None else [(2, *met(reference, True))]
  if value is not None and trunk:
    by_prompt, by_response = met(trunk, False)
    factor = 2 if value.frozen_trunk else trained
    passes.append((factor, by_prompt, by_response if value.readout in ('token', 'response') else 0))
  if algorithm.uses_mismatched:
    passes += [(2, 0, met(tree, True)[1]) for tree in (policy, reference) if tree is not None]
  return float(
    sum(
      factor * (by_prompt * tokens[0] + by_response * tokens[1]) for factor, by_prompt, by_response in passes
    )
  )
