"""Methods for pairs: DPO, IPO, SLiC."""

import jax.numpy as jnp

from dro_jax import limits, losses
from dro_jax.algorithms.base import Algorithm, by_pair, normalised_by_length
from dro_jax.algorithms.batch import Batch
from dro_jax.algorithms.settings import NO_SIDE, STILL
from dro_jax.types import Array, Scalar


def _pairs(batch: Batch) -> dict[str, Array]:
  """Log-probs of chosen and rejected responses, `[P]` each, by the losses' parameter names.

  Without a reference its log-probs are 0.
  """
  policy_P2 = batch.members(batch.policy_logps)
  reference_P2 = (
    jnp.zeros_like(policy_P2) if batch.reference is None else batch.members(batch.reference_logps)
  )
  return {
    'policy_chosen_logps': policy_P2[:, 0],
    'policy_rejected_logps': policy_P2[:, 1],
    'reference_chosen_logps': reference_P2[:, 0],
    'reference_rejected_logps': reference_P2[:, 1],
  }


def dpo(
  beta: Scalar = 0.1,
  label_smoothing: float = 0.0,
  reference_free: bool = False,
  length_normalised: bool = False,
) -> Algorithm:
  """DPO (`losses.dpo`).

  `reference_free` takes log π_ref as 0 and keeps no reference, as a baseline of A-LoL (arXiv 2305.14718).
  `length_normalised` divides every log-prob by the length of its response first. Both are other methods.
  """
  limits.above_zero('dpo', STILL, beta=beta)
  limits.within('dpo', 0, 0.5, NO_SIDE, label_smoothing=label_smoothing)
  algorithm = by_pair(
    'dpo_reference_free' if reference_free else 'dpo',
    lambda batch: losses.dpo(**_pairs(batch), beta=beta, label_smoothing=label_smoothing),
    temperature=beta,
    uses_reference=not reference_free,
  )
  return normalised_by_length(algorithm) if length_normalised else algorithm


def ipo(tau: Scalar = 0.1, by_length: bool = False) -> Algorithm:
  """IPO (`losses.ipo`) on summed log-probs, or with `by_length` on means over each response's tokens."""
  limits.above_zero('ipo', 'its margin is 1 / 2τ', tau=tau)

  def per_pair(batch: Batch) -> Array:
    lengths_P2 = batch.members(batch.lengths)
    lengths = {'chosen_lengths': lengths_P2[:, 0], 'rejected_lengths': lengths_P2[:, 1]} if by_length else {}
    return losses.ipo(**_pairs(batch), tau=tau, **lengths)

  return by_pair('ipo_by_length' if by_length else 'ipo', per_pair, temperature=tau)


def slic(delta: float = 1.0, sft_weight: float = 0.1) -> Algorithm:
  """SLiC (`losses.slic`): a hinge on the margin, and imitation of the chosen response."""
  limits.at_least_zero('slic', delta=delta, sft_weight=sft_weight)

  def per_pair(batch: Batch) -> Array:
    policy_P2 = batch.members(batch.policy_logps)
    return losses.slic(policy_P2[:, 0], policy_P2[:, 1], delta=delta, sft_weight=sft_weight)

  return by_pair('slic', per_pair, uses_reference=False)


__all__ = ['dpo', 'ipo', 'slic']
