"""What a run says when its policy has moved probability to answers that its reference does not give."""

import pathlib
from collections.abc import Mapping

from dro_jax import files
from dro_jax.run.best import PREFIX
from dro_jax.statistics import mass


def has_left(measured: Mapping[str, float]) -> bool:
  """Whether a validation's metrics, by their names in the records, say so; one that lacks them does not."""
  kept, size = (measured.get(PREFIX + name) for name in (mass.KEPT, mass.SIZE))
  return kept is not None and size is not None and mass.has_left(kept, size)


def had_left(folder: pathlib.Path) -> bool:
  """Whether a validation that the run's folder records says so, and the run has said it before."""
  records = folder / 'metrics.jsonl'
  return records.exists() and any(map(has_left, files.json_lines(records)))


def warning(step: int, measured: Mapping[str, float], *, uses_value: bool) -> str:
  """What happened, and what to do about it.

  Args:
    step: of the validation.
    measured: its metrics.
    uses_value: whether the algorithm has a value that could be trained first.
  """
  kept, size = (measured[PREFIX + name] for name in (mass.KEPT, mass.SIZE))
  value_first = ', or train the value first (warmup_steps=100, --set VALUE_WARMUP_STEPS=100)'
  return (
    f'note: after step {step} the policy has {kept:.2f} of its probability on answers that its reference '
    f'gives (eval/mass_kept, an estimate from {size:.0f} answers). The rest has moved to answers that are '
    'neither in the log nor of the reference, which no loss sees. Read samples.jsonl. In a new run, add '
    f'NextTokenKl(weight=1.0) (--set NEXT_TOKEN_KL=1.0), or lower '
    f'POLICY_LEARNING_RATE{value_first if uses_value else ""}.'
  )
