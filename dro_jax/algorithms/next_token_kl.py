"""Next-token KL: a term that any algorithm may take, on the policy's whole distributions over next tokens."""

import dataclasses
import math

from dro_jax.algorithms.base import Algorithm
from dro_jax.algorithms.batch import Batch
from dro_jax.errors import UsageError, suggests_fields
from dro_jax.names import NEXT_TOKEN_KL
from dro_jax.ops import masked
from dro_jax.types import LossOutput, LossTerm

_DIRECTIONS = ('reverse', 'forward')


@suggests_fields
@dataclasses.dataclass(frozen=True)
class NextTokenKl:
  """The KL between policy and reference over each next token of the logged responses, added to the loss.

  The added term is w c Σ_t KL(π(·|x,y_<t) ‖ π_ref(·|x,y_<t)) by response; see `with_next_token_kl`.

  Args:
    weight: w, 0 or more, in multiples of the algorithm's temperature; 0 adds nothing.
    direction: `reverse` takes KL(π‖π_ref), `forward` KL(π_ref‖π).

  Example:
    >>> held = dro.replace(spec, next_token_kl=dro.NextTokenKl(weight=1.0))
    >>> held.next_token_kl.direction
    'reverse'
  """

  weight: float | int = 0.0
  direction: str = 'reverse'

  def __post_init__(self) -> None:
    if not 0 <= self.weight < math.inf:
      raise UsageError(
        f'weight={self.weight} weighs a KL that the loss adds, and below 0 it would drive the policy '
        'away from its reference: pass 0, which adds nothing, or a finite number above 0 '
        '(NextTokenKl(weight=1.0), or --set NEXT_TOKEN_KL=1.0).'
      )
    if self.direction not in _DIRECTIONS:
      raise UsageError(
        f'direction={self.direction!r} is not a direction of next-token KL (NEXT_TOKEN_KL_DIRECTION): pass '
        'reverse, which takes KL(π‖π_ref), or forward, which takes KL(π_ref‖π).'
      )
    if not self.weight and self.direction != 'reverse':
      raise UsageError(
        f'direction={self.direction!r} changes nothing, because a weight of 0 adds no KL: pass weight=1.0 '
        'as well (--set NEXT_TOKEN_KL=1.0), or leave out the direction (NEXT_TOKEN_KL_DIRECTION).'
      )

  def __str__(self) -> str:
    return f'{self.weight:g} × next-token KL ({self.direction})'


def with_next_token_kl(algorithm: Algorithm, weight: float = 1.0, direction: str = 'reverse') -> Algorithm:
  """The algorithm with the KL of each next token added to its loss, at the prefixes of logged responses.

  L = L_algorithm + w c mean_y Σ_t KL(π(·|x,y_<t) ‖ π_ref(·|x,y_<t)), over the whole vocabulary.

  c is the algorithm's temperature (τ, β), or 1 where it has none. The mean runs over the batch's responses,
  for algorithms on pairs and groups too. A loss of log-probs alone does not see probability that moves to
  texts outside the log; this term does. It also moves the optimum: no longer π* ∝ π_ref e^{r/τ}, but a policy
  nearer to π_ref. The algorithm's criterion stays its own loss.

  Args:
    algorithm: one that trains the policy; it gets a reference where it had none, which its own loss does not
      read.
    weight: w > 0.
    direction: `reverse` as above, or `forward` for KL(π_ref‖π).

  Raises:
    UsageError: weight or direction is out of its range, the algorithm's temperature is 0, or it does not
      train the policy.
  """
  NextTokenKl(weight, direction)
  if not algorithm.trains_policy:
    raise UsageError(
      f'{algorithm.name} does not train the policy, so next-token KL (weight={weight}) has nothing '
      'to hold: pass weight=0 (--set NEXT_TOKEN_KL=0), or an algorithm that trains it.'
    )
  if isinstance(algorithm.temperature, float | int) and algorithm.temperature == 0:
    raise UsageError(
      f"next-token KL (weight={weight}) is in multiples of {algorithm.name}'s temperature, which is 0, so "
      'the term would be 0: pass a temperature above 0, or weight=0 (--set NEXT_TOKEN_KL=0).'
    )
  scale = weight * algorithm.temperature

  def loss(batch: Batch) -> LossOutput:
    output = algorithm.loss(batch if algorithm.uses_reference else batch._replace(reference=None))
    kls = batch.next_token_kls
    return output._replace(
      terms={**output.terms, NEXT_TOKEN_KL: LossTerm(scale * kls, batch.valid)},
      metrics={**output.metrics, NEXT_TOKEN_KL: masked.weighted_mean(kls, batch.valid)},
    )

  return algorithm._replace(loss=loss, uses_reference=True, kl_direction=direction)
