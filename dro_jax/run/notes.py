"""What a reader should know of a built run before it starts, a line each."""

from typing import Any

import numpy as np

from dro_jax import algorithms
from dro_jax.data import scaling as scalings
from dro_jax.data.batches import groups, loader
from dro_jax.data.triplets import Triplets, few_held_out
from dro_jax.models import chunks
from dro_jax.run import best, reward_records
from dro_jax.step import optimizers

MANY_PROMPTS = 8  # With fewer prompts than this, a batch's mean is mostly noise between prompts.


def of(run: Any) -> list[str]:
  """The notes of a built run (`run.build.Run`)."""
  labels, tests = (run.triplets.report.get(name) for name in ('labels', 'test_prompts'))
  spec, train = run.spec, run.loaders.train
  lines = [
    few_prompts(train, run.algorithm),
    repeated(train.plan, run.algorithm),
    few_to_validate(run.triplets),
    f'{tests} prompts are kept for tests: they neither train nor validate' if tests else '',
    f'labels: {labels["said"]}' if labels else '',
    *scalings.notes(run.triplets.scaling),
    added_kl(run),
    *optimizers.notes(run.optimizers, run.schedule.steps, {'policy': spec.value.warmup_steps}),
    *groups.notes(run.loaders.units),
    chunked(run),
    best.described(spec.keep) if run.loaders.eval is not None else '',
    reward_records.note(spec, run.algorithm, run.triplets),
  ]
  return [line for line in lines if line]


def added_kl(run: Any) -> str:
  """The next-token KL that a run adds, with its unit, or ''."""
  added, algorithm = run.spec.next_token_kl, run.algorithm
  if not added.weight:
    return ''
  return f"the loss adds {added}, at {algorithm.name}'s temperature of {algorithm.temperature:g}, by response"


def few_prompts(batches: loader.Loader, algorithm: algorithms.Algorithm) -> str:
  """A note where a batch's few prompts make its statistics nearly those of one prompt, or ''."""
  batch, deal = batches.plan.batch(0), batches.plan.deal
  prompts = len(np.unique(batches.table.prompt_index[batch]))
  if not (algorithm.couples and algorithm.unit == 'response' and prompts < MANY_PROMPTS < len(batch)):
    return ''
  why, remedy = {
    'together': (', for those to one prompt are dealt together', ', and so does --set DEAL=uniform'),
    'uniform': ('', ''),
  }[deal]
  return (
    f"note: a batch holds the responses to {prompts} prompts{why}: {algorithm.name}'s statistics of a batch "
    f'are nearly those of a prompt. A larger BATCH helps{remedy}.'
  )


def few_to_validate(triplets: Triplets) -> str:
  """A note where so few prompts are held out that validation decides nothing, or ''."""
  if triplets.eval is None or 'split' not in triplets.report:
    return ''
  held_out, trained = (len(np.unique(table.prompt_index)) for table in (triplets.eval, triplets.train))
  few = few_held_out(held_out, held_out + trained)
  return few and f'note: {few}'


def repeated(plan: Any, algorithm: algorithms.Algorithm) -> str:
  """A note where a batch is larger than what there is to train on, or ''."""
  if plan.batches_per_epoch >= 1:
    return ''
  there = round(plan.batches_per_epoch * plan.batch_size)
  return (
    f'note: a batch of {plan.batch_size} {algorithm.unit}s is more than the {there} that there are to train '
    f'on, so every batch repeats them. Pass --set BATCH={there} or less, or more data.'
  )


def chunked(run: Any) -> str:
  """A note where a run projects to the vocabulary in chunks unasked, or ''."""
  if run.spec.compute.chunk_size is not None or run.rollouts is not None or run.chunk_size is None:
    return ''
  return (
    f'note: {run.chunk_size} of the {run.loaders.train.layout.response_length} response tokens of each row '
    'are projected to the vocabulary at once, because the logits of all would take more than '
    f'{chunks.MOST_BYTES / 2**30:g} GiB of a device (chunk_size=0, --set CHUNK_SIZE=0, projects all).'
  )


__all__ = ['few_prompts', 'few_to_validate', 'of', 'repeated']
