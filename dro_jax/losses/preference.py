"""Losses of pairs: a chosen and a rejected response to one prompt, `[P]` each.

Log-probs are in nats, summed over the response's tokens, EOS included. ρ = policy_logps − reference_logps,
Δρ = ρ_chosen − ρ_rejected.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dro_jax.ops import checks
from dro_jax.types import Array, Scalar


def dpo(
  policy_chosen_logps: Float[Array, ' P'],
  policy_rejected_logps: Float[Array, ' P'],
  reference_chosen_logps: Float[Array, ' P'],
  reference_rejected_logps: Float[Array, ' P'],
  beta: Scalar = 0.1,
  label_smoothing: float = 0.0,
) -> Float[Array, ' P']:
  """DPO: the pair's label under a Bradley-Terry model whose rewards are βρ.

  L = −(1−ls) log σ(βΔρ) − ls log σ(−βΔρ)        (arXiv 2305.18290, Eq. 7; ls: its appendix on noisy labels)

  Args:
    policy_chosen_logps: log π of the chosen response, nats.
    policy_rejected_logps: of the rejected one.
    reference_chosen_logps: log π_ref of the chosen response, nats.
    reference_rejected_logps: of the rejected one.
    beta: β > 0, per nat.
    label_smoothing: ls in [0, ½), the chance that a label is wrong.

  Raises:
    ValueError: the arrays are not all `[P]`.
  """
  margins = beta * _delta_rho(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
  )
  right, wrong = jax.nn.log_sigmoid(margins), jax.nn.log_sigmoid(-margins)
  return -(1 - label_smoothing) * right - label_smoothing * wrong


def ipo(
  policy_chosen_logps: Float[Array, ' P'],
  policy_rejected_logps: Float[Array, ' P'],
  reference_chosen_logps: Float[Array, ' P'],
  reference_rejected_logps: Float[Array, ' P'],
  tau: Scalar = 0.1,
  chosen_lengths: Float[Array, ' P'] | None = None,
  rejected_lengths: Float[Array, ' P'] | None = None,
) -> Float[Array, ' P']:
  """IPO: regression of the margin on a constant, so that it cannot grow without bound.

  L = (Δρ − 1/(2τ))²        (arXiv 2310.12036, Eq. 17)

  Args:
    policy_chosen_logps: log π of the chosen response, nats.
    policy_rejected_logps: of the rejected one.
    reference_chosen_logps: log π_ref of the chosen response, nats.
    reference_rejected_logps: of the rejected one.
    tau: temperature τ > 0.
    chosen_lengths: tokens of the chosen response; if passed, each ρ is divided by its length first, which is
      another method.
    rejected_lengths: of the rejected one; pass both or neither.

  Raises:
    ValueError: the arrays are not all `[P]`, or one length is missing.
  """
  if (chosen_lengths is None) != (rejected_lengths is None):
    raise ValueError('ipo got only one of chosen_lengths and rejected_lengths: pass both, or neither.')
  checks.check_same(
    policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps,
    reference_chosen_logps=reference_chosen_logps, reference_rejected_logps=reference_rejected_logps,
  )  # fmt: skip
  rho_chosen = policy_chosen_logps - reference_chosen_logps
  rho_rejected = policy_rejected_logps - reference_rejected_logps
  if chosen_lengths is not None and rejected_lengths is not None:
    checks.check_same(rho=rho_chosen, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    rho_chosen, rho_rejected = rho_chosen / chosen_lengths, rho_rejected / rejected_lengths
  return jnp.square(rho_chosen - rho_rejected - 1 / (2 * tau))


def slic(
  policy_chosen_logps: Float[Array, ' P'],
  policy_rejected_logps: Float[Array, ' P'],
  delta: float = 1.0,
  sft_weight: float = 0.1,
) -> Float[Array, ' P']:
  """SLiC: a hinge on the margin of log-probs, and imitation of the chosen response with a small weight.

  L = max(0, δ − (log π_c − log π_r)) − sft_weight · log π_c        (arXiv 2305.10425)

  Args:
    policy_chosen_logps: log π of the chosen response, nats.
    policy_rejected_logps: of the rejected one.
    delta: the margin δ ≥ 0, nats.
    sft_weight: weight of the imitation.

  Raises:
    ValueError: the arrays are not all `[P]`.
  """
  checks.check_same(policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps)
  hinge = jnp.maximum(0.0, delta - (policy_chosen_logps - policy_rejected_logps))
  return hinge - sft_weight * policy_chosen_logps


def _delta_rho(
  policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array
) -> Array:
  checks.check_same(
    policy_chosen_logps=policy_chosen, policy_rejected_logps=policy_rejected,
    reference_chosen_logps=reference_chosen, reference_rejected_logps=reference_rejected,
  )  # fmt: skip
  return (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)


__all__ = ['dpo', 'ipo', 'slic']
