"""How much probability a policy has left on the answers that its reference gives. Numpy, float64.

Answers y ~ π_ref(·|x) are weighed by w = π(y|x) / π_ref(y|x) = e^ρ. The mean of w is 1 for any policy whose
probability lies on answers that π_ref gives. Where a share m of it has moved to answers that π_ref almost
never gives, the answers that were drawn have the mean weight Z = 1 − m, the *mass kept*. No loss sees such a
move: neither the log nor held-out responses hold those answers.

The weights are heavy-tailed. A policy that strongly prefers a few answers weighs most others nearly 0, and Z
rests on few of them. The effective size (Σ w)² / Σ w² says on how many (Kong 1992).

M prompts, K answers of the reference to each.
"""

from collections.abc import Callable

import numpy as np

KEPT, SIZE = 'mass_kept', 'mass_kept_effective_size'
# Below LEAST, more than half of the probability has left. With EFFECTIVE answers or more, Z's standard error
# is at most Z/√20, so that 1 is more than four of them away. In simulations of 256 answers with lognormal
# weights, whose tail is heavy, at most 7 % of policies that had kept all mass were said to have lost it.
LEAST, EFFECTIVE = 0.5, 20.0


def statistics(log_ratios_MK: np.ndarray) -> dict[str, Callable[[np.ndarray], float]]:
  """Z and its effective size by name, as functions of how often each prompt was drawn, `[M]`.

  Args:
    log_ratios_MK: ρ = log π(y|x) − log π_ref(y|x) of the reference's own answers, in nats.
  """
  weights_M = np.exp(log_ratios_MK).mean(axis=1)
  # The effective size does not depend on a common factor, and without it all weights could round to 0.
  relative_MK = np.exp(log_ratios_MK - np.max(log_ratios_MK))
  sums_M, squares_M = relative_MK.sum(axis=1), np.square(relative_MK).sum(axis=1)
  return {
    KEPT: lambda draws_M: float(draws_M @ weights_M / draws_M.sum()),
    SIZE: lambda draws_M: float((draws_M @ sums_M) ** 2 / (draws_M @ squares_M)),
  }


def has_left(kept: float, effective_size: float) -> bool:
  """Whether more than half of the probability has left, by enough answers to say so."""
  return kept < LEAST and effective_size >= EFFECTIVE
