"""Quantile rewards: QRPO."""

from collections.abc import Callable

from dro_jax import limits, losses
from dro_jax.algorithms import columns
from dro_jax.algorithms.base import Algorithm, by_response
from dro_jax.types import Scalar


def prompt_quantiles() -> columns.Fit:
  """Quantiles among the responses logged for the same prompt (see `algorithms.columns.prompt_quantiles`)."""
  return columns.prompt_quantiles


def data_quantiles() -> columns.Fit:
  """Quantiles among all training rewards (see `algorithms.columns.data_quantiles`)."""
  return columns.data_quantiles


def qrpo(beta: Scalar = 0.1, quantiles: Callable[[], columns.Fit] = prompt_quantiles) -> Algorithm:
  """QRPO (`losses.qrpo`) on quantiles of the logged rewards."""
  limits.above_zero('qrpo', 'log Z divides by it', beta=beta)
  return by_response(
    'qrpo',
    lambda batch: losses.qrpo(
      policy_logps=batch.policy_logps, reference_logps=batch.reference_logps,
      quantiles=batch.column('quantile'), beta=beta,
    ),
    temperature=beta, columns={'quantile': quantiles()},
  )  # fmt: skip


__all__ = ['data_quantiles', 'prompt_quantiles', 'qrpo']
