"""The `make_comparisons` command: pairs of answers, judged by a reward with as much noise as people have."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax import files, limits
from dro_jax.data.records.answers import new_file, read_answers
from dro_jax.data.records.file_names import expand
from dro_jax.errors import UsageError
from dro_jax.run.sampling import rewards
from dro_jax.run.sampling.rewards import Reward


def make_comparisons(
  answers: str | Sequence[str],
  reward: str | Reward,
  output: str,
  *,
  noise: float = 0.0,
  pairs: int = 6,
  columns: str | Mapping[str, str] | None = None,
  seed: int = 0,
) -> dict[str, Any]:
  """Writes comparisons, a line each: id, prompt, chosen, rejected; of answers to one prompt that differ.

  With noise n the first answer is chosen with the probability σ((r₁ − r₂) / n), as in Bradley and Terry's
  model, so that equal answers are decided by a coin. Without noise the higher reward is chosen, and of equal
  ones no pair is made.

  Args:
    answers: files with several answers to a prompt; blank ones are left out.
    reward: a reward's name, FILE.py:FUNCTION, or a function of (prompts, responses).
    output: the file to write.
    noise: in reward units.
    pairs: of a prompt at most, drawn from all of its answers.
    columns: the files' names of fields.
    seed: of the pairs and of the noise.

  Raises:
    UsageError: there is no reward, or no pair, or the output is one of the files.
  """
  limits.seed(seed)
  limits.above_zero('make_comparisons', 'there would be no comparison', pairs=pairs)
  limits.at_least_zero('make_comparisons', noise=noise)
  target = new_file(output, expand(answers))
  function = rewards.find(reward)
  rng = np.random.default_rng(seed)
  every = [answer for answer in read_answers(answers, columns) if answer.response.strip()]
  values = rewards.reward_responses(
    function, [answer.prompt for answer in every], [answer.response for answer in every]
  )
  by_prompt: dict[str, list[tuple[str, float]]] = {}
  for answer, value in zip(every, values):
    by_prompt.setdefault(answer.prompt, []).append((answer.response, value))
  records, agreed = [], 0
  for prompt, rewarded in by_prompt.items():
    # Without noise, equal rewards decide nothing.
    met = [
      (one, other)
      for one, other in itertools.combinations(rewarded, 2)
      if one[0] != other[0] and (noise or one[1] != other[1])
    ]
    for at in rng.permutation(len(met))[:pairs]:
      (first, first_value), (second, second_value) = met[at]
      better = first_value - second_value
      wins = rng.random() < 1 / (1 + np.exp(-better / noise)) if noise else better > 0
      chosen, rejected = (first, second) if wins else (second, first)
      agreed += better >= 0 if wins else better <= 0
      name = f'pair-{len(records)}'
      records.append({'id': name, 'prompt': prompt, 'chosen': chosen, 'rejected': rejected})
  if not records:
    raise UsageError(
      f'{answers}: no prompt has two answers that differ{"" if noise else " in their rewards"}. Sample '
      'several answers to each (dro_jax generate --set SAMPLES=4).'
    )
  target.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(target, ''.join(map(files.json_line, records)))
  return {
    'output': str(target), 'prompts': len(by_prompt), 'comparisons': len(records),
    'agree_with_reward': agreed / len(records),
  }  # fmt: skip


__all__ = ['make_comparisons']
