"""Methods for groups of responses to one prompt: CoPG, AGRO, REBEL, RLOO, PRO, NCA."""

from dro_jax import limits, losses
from dro_jax.algorithms import columns
from dro_jax.algorithms.base import Algorithm, by_group
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.settings import STILL, UNHELD
from dro_jax.types import Array, Scalar


def _group(batch: Batch) -> dict[str, Array]:
  """The arrays that losses of groups read, `[G, K]` each, by the losses' parameter names."""
  return {
    'policy_logps': batch.members(batch.policy_logps),
    'reference_logps': batch.members(batch.reference_logps),
    'rewards': batch.members(batch.rewards),
    'mask': batch.unit_mask,
  }


def _without_reference(batch: Batch) -> dict[str, Array]:
  return {
    'policy_logps': batch.members(batch.policy_logps),
    'rewards': batch.members(batch.rewards),
    'mask': batch.unit_mask,
  }


def copg(beta: Scalar = 0.06) -> Algorithm:
  """CoPG (`losses.copg`): contrastive policy gradient over all pairs of a group."""
  limits.above_zero('copg', UNHELD, beta=beta)
  return by_group('copg', lambda batch: losses.copg(**_group(batch), beta=beta), temperature=beta)


def agro(beta: Scalar = 0.1) -> Algorithm:
  """AGRO (`losses.agro`): half the variance of r − βρ in a group."""
  limits.above_zero('agro', STILL, beta=beta)
  return by_group('agro', lambda batch: losses.agro(**_group(batch), beta=beta), temperature=beta)


def rebel(eta: Scalar = 1.0, behaviour_sampler: str | None = None) -> Algorithm:
  """REBEL (`losses.rebel`): regresses reward differences on log-ratios to the logging policy."""
  limits.above_zero('rebel', 'it scales the rewards, and 1 / η is the temperature', eta=eta)

  def per_group(batch: Batch) -> Array:
    return losses.rebel(
      **_without_reference(batch), behaviour_logps=batch.members(batch.column('propensity')), eta=eta
    )

  return by_group(
    'rebel', per_group, temperature=1 / eta, uses_reference=False,
    columns={'propensity': columns.propensities(behaviour_sampler)},
  )  # fmt: skip


def rloo(beta: Scalar = 0.05) -> Algorithm:
  """RLOO (`losses.rloo`): REINFORCE with the group's other responses as the baseline."""
  limits.at_least_zero('rloo', beta=beta)
  return by_group('rloo', lambda batch: losses.rloo(**_group(batch), beta=beta), temperature=beta)


def pro(sft_weight: float = 0.05) -> Algorithm:
  """PRO (`losses.pro`): preference ranking by length-mean log-probs."""
  limits.at_least_zero('pro', sft_weight=sft_weight)
  return by_group(
    'pro',
    lambda batch: losses.pro(
      **_without_reference(batch), lengths=batch.members(batch.lengths), sft_weight=sft_weight
    ),
    uses_reference=False,
  )


def nca(beta: Scalar = 0.01, alpha: float = 0.01) -> Algorithm:
  """NCA (`losses.nca`): noise contrastive alignment of a group's rewards."""
  limits.above_zero('nca', STILL, beta=beta)
  limits.above_zero('nca', 'it divides the rewards', alpha=alpha)
  return by_group('nca', lambda batch: losses.nca(**_group(batch), beta=beta, alpha=alpha), temperature=beta)


__all__ = ['agro', 'copg', 'nca', 'pro', 'rebel', 'rloo']
