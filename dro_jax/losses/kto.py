"""Losses of thumbs up or down: KTO (arXiv 2402.01306) and BCO (arXiv 2404.04656)."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from dro_jax.ops import checks, masked
from dro_jax.types import Array, Scalar


def kto(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  labels: Shaped[Array, ' B'],
  reference_point: Float[Array, ''],
  beta: Scalar = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> Float[Array, ' B']:
  """KTO: raise desirable responses above the reference point z₀, push undesirable ones below it.

  label 1: L = λ_D (1 − σ(β(ρ − z₀)));   label 0: L = λ_U (1 − σ(β(z₀ − ρ)))    (arXiv 2402.01306, Eq. 7-8)

  Args:
    policy_logps: log π(y|x), nats, summed over tokens.
    reference_logps: log π_ref(y|x), nats.
    labels: 1 (desirable) or 0 (undesirable).
    reference_point: z₀ ≥ 0, nats: `kto_reference_point` of the global batch; no gradient reaches it.
    beta: β > 0, per nat.
    desirable_weight: λ_D.
    undesirable_weight: λ_U.

  Raises:
    ValueError: the arrays are not all `[B]`, or `reference_point` is not a scalar.
  """
  checks.check_same(policy_logps=policy_logps, reference_logps=reference_logps, labels=labels)
  checks.check_scalar(reference_point=reference_point)
  margins = beta * (policy_logps - reference_logps - jax.lax.stop_gradient(reference_point))
  desirable = desirable_weight * jax.nn.sigmoid(-margins)
  undesirable = undesirable_weight * jax.nn.sigmoid(margins)
  return jnp.where(labels > 0, desirable, undesirable)


def kto_reference_point(
  policy_logps: Float[Array, ' B'], reference_logps: Float[Array, ' B'], weights: Shaped[Array, ' B']
) -> Float[Array, '']:
  """KTO's reference point z₀, an estimate of KL(π‖π_ref) from responses scored under other prompts.

  z₀ = sg max(0, mean over mismatched pairs of ρ(y' | x))        (arXiv 2402.01306, Sect. 4.1)

  Args:
    policy_logps: log π(y'|x) of mismatched pairs of the global batch, nats.
    reference_logps: log π_ref(y'|x), nats.
    weights: 0 for responses that could not be paired with a prompt of a different text.

  Raises:
    ValueError: the arrays are not all `[B]`.
  """
  checks.check_same(policy_logps=policy_logps, reference_logps=reference_logps, weights=weights)
  mean = masked.weighted_mean(policy_logps - reference_logps, weights)
  return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def bco(
  policy_logps: Float[Array, ' B'],
  reference_logps: Float[Array, ' B'],
  labels: Shaped[Array, ' B'],
  shift: Float[Array, ''],
  beta: Scalar = 0.1,
) -> Float[Array, ' B']:
  """BCO: a binary classifier whose logit is βρ minus a running mean δ.

  label 1: L = −log σ(βρ − δ);   label 0: L = −log σ(−(βρ − δ))        (arXiv 2404.04656)

  Args:
    policy_logps: log π(y|x), nats, summed over tokens.
    reference_logps: log π_ref(y|x), nats.
    labels: 1 (desirable) or 0 (undesirable).
    shift: δ, the running mean of βρ over all examples; no gradient reaches it.
    beta: β > 0, per nat.

  Raises:
    ValueError: the arrays are not all `[B]`, or `shift` is not a scalar.
  """
  checks.check_same(policy_logps=policy_logps, reference_logps=reference_logps, labels=labels)
  checks.check_scalar(shift=shift)
  logits = beta * (policy_logps - reference_logps) - jax.lax.stop_gradient(shift)
  return -jax.nn.log_sigmoid(jnp.where(labels > 0, logits, -logits))


__all__ = ['bco', 'kto', 'kto_reference_point']
