"""Weighted behaviour cloning, of which supervised fine-tuning is weight one."""

from jaxtyping import Float

from dro_jax.types import Array


def sft(policy_logps: Float[Array, ' B']) -> Float[Array, ' B']:
  """Supervised fine-tuning: the response's negative log-likelihood, summed over its tokens.

  L = −log π(y|x)

  Args:
    policy_logps: log π(y|x), nats, EOS included.
  """
  return -policy_logps
