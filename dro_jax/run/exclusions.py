"""Settings of a run that exclude each other, whatever the data."""

from typing import Any

from dro_jax.errors import UsageError
from dro_jax.step.reference import AdapterOff, Cached


def refuse(spec: Any) -> None:
  """Refuses a `RunSpec` whose settings make no run, whatever the data.

  Raises:
    UsageError: says which settings, and what to pass.
  """
  algorithm, readout = spec.full_algorithm, spec.value.readout
  if not algorithm.temperature >= 0:  # NaN is refused too.
    raise UsageError(
      f'{algorithm.name} has temperature {algorithm.temperature}, and below 0 it drives the policy away '
      'from its reference: pass 0 or more, as dro_v(tau=1.0) or --set TAU=1.0, or as copg(beta=0.06) or '
      '--set copg.beta=0.06.'
    )
  if spec.compute.dropout_rate > 0 and (algorithm.uses_reference or algorithm.uses_value):
    raise UsageError(
      f'dropout_rate={spec.compute.dropout_rate} is for supervised fine-tuning: with dropout, the loss of '
      f'{algorithm.name} would compare log-probs of two different networks. Pass Compute(dropout_rate=0), or '
      '--set DROPOUT_RATE=0.'
    )
  if isinstance(spec.reference, Cached) and spec.next_token_kl.weight:
    raise UsageError(
      'a cached reference has one log-prob for each logged token, and '
      f'next-token KL (weight={spec.next_token_kl.weight}) compares whole distributions over the vocabulary: '
      'pass a reference that is scored, as RunSpec(reference=Frozen()) or --gin_file=references/frozen.gin, '
      'or NextTokenKl(weight=0), or --set NEXT_TOKEN_KL=0.'
    )
  if isinstance(spec.reference, AdapterOff) and spec.policy.lora is None:
    raise UsageError(
      'the reference is the base with the adapter off, and the run has no adapter: pass '
      'Policy(lora=Lora(rank=16)), or --set LORA_RANK=16, or another reference, as '
      'RunSpec(reference=Frozen()) or --set REFERENCE=@frozen.'
    )
  if spec.value.warmup_steps and not (algorithm.uses_value and algorithm.trains_policy):
    lacks = 'trains no policy' if algorithm.uses_value else 'has no value'
    raise UsageError(
      f'warmup_steps={spec.value.warmup_steps} trains the value alone before the policy, and '
      f'{algorithm.name} {lacks}: pass Value(warmup_steps=0), or --set VALUE_WARMUP_STEPS=0, or an '
      'algorithm with a policy and a value (--gin_file=algorithms/dro_v.gin).'
    )
  if algorithm.uses_token_values and readout != 'token':
    raise UsageError(
      f'{algorithm.name} reads a value for each token, but readout={readout!r} does not give one: pass '
      "Value(readout='token'), or --set VALUE_READOUT=token."
    )
  if algorithm.uses_response_values and readout != 'response':
    raise UsageError(
      f'{algorithm.name} scores responses, and readout={readout!r} does not read them: pass '
      "Value(readout='response'), or --set VALUE_READOUT=response "
      f'(--gin_file=algorithms/{algorithm.name}.gin sets it).'
    )
  if algorithm.uses_value and readout == 'response' and not algorithm.uses_response_values:
    raise UsageError(
      f"readout='response' sees the response, and {algorithm.name} reads a value that must not: pass "
      "Value(readout='prompt'), or --set VALUE_READOUT=prompt, or an algorithm that trains a reward model "
      '(--gin_file=algorithms/bradley_terry.gin).'
    )


__all__ = ['refuse']
