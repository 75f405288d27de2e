"""A run's loop: steps, records, validations, checkpoints, signals."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from dro_jax import algorithms
from dro_jax.checkpoints import orbax
from dro_jax.data.batches import loader
from dro_jax.errors import Interrupted, NotFinite, Stopped
from dro_jax.parallel import interrupts, partitioning
from dro_jax.run.build import Run
from dro_jax.run.folder import configs, nonfinite, spending, validation
from dro_jax.run.folder.records import RunWriter
from dro_jax.run.sampling import policy_samples
from dro_jax.run.schedule import Clock, Schedule
from dro_jax.step import reference, train_step
from dro_jax.step import state as train_state

MANY_PROMPTS = 8  # Below it a mean over a batch says little of other prompts.
_DEALT = {'together': "one prompt's dealt together", 'uniform': 'dealt uniformly'}


class _Pending(NamedTuple):
  """A step whose numbers may still be in the making."""

  step: int
  rows: Any
  output: train_step.StepOutput
  times: Mapping[str, float]


def run_loop(run: Run, state: train_state.TrainState, timing: Schedule) -> dict[str, Any]:
  """Steps until the schedule's end, a signal, or a loss that is not finite."""
  first = int(state.step)
  writer = RunWriter(
    str(run.model_dir), first_step=first, num_steps=timing.steps, primary=jax.process_index() == 0
  )
  latest: dict[str, Any] = {}
  total = spending.ComputeCounter(
    run.model_dir / 'metrics.jsonl', run.train_loader.num_rows, run.train_loader.plan.batch_size,
    first=first, counts_flops=run.samplers.responder is None,
  )  # fmt: skip
  noticed = interrupts.noticed(several=jax.process_count() > 1)
  with contextlib.closing(writer), contextlib.closing(run.checkpoints), noticed as stopped:
    _announce(run, writer, state, timing)
    pending, clock, said = None, Clock(), first > 0
    for step, rows in global_batches(run, first, timing.steps):
      rows, times = with_fresh_responses(run, state, step, rows)
      with partitioning.use_mesh(run.mesh):
        so_far = total.add(run.step, step, state, rows, num_rows=len(rows.valid))
        state, output = run.step(state, rows)
        output = _measured(run, state, step + 1, rows, output, timing)
      if pending is not None:
        latest = _report(run, writer, pending, timing, clock) or latest
      pending = _Pending(step + 1, rows, output, times | so_far)
      stop = _agreed(stopped, step)
      saving = timing.is_due(timing.checkpoint_every, step + 1) or step + 1 == timing.steps
      # What is saved is measured too, or it could never be the best; but not against a deadline.
      evaluating = (saving or timing.is_due(timing.eval_every, step + 1)) and run.eval_loader is not None
      pausing = evaluating or saving or stop
      if pausing or run.samplers.responder is not None:  # Fresh responses wait for the step anyway.
        latest, pending = _report(run, writer, pending, timing, clock) or latest, None
      if pausing:
        measured = _evaluate(run, writer, state, step + 1, timing, so_far) if evaluating else {}
        latest = latest | measured
        stop = stop or (_agreed(stopped, step) if jax.process_count() == 1 else False)
        if saving or stop:
          run.checkpoints.save(step + 1, state, measured)
        _keep_validations(run)
        clock.lap()
      if stop:
        run.checkpoints.wait()
      said = said or _say_saved(run)
      if stop:
        _raise_stopped(stopped, step + 1)
    run.checkpoints.wait()
    _ = said or _say_saved(run)
  return {'model_dir': str(run.model_dir), 'step': max(first, timing.steps), **latest}


def _say_saved(run: Run) -> bool:
  """Whether a checkpoint is on disk; the run's description then says so."""
  begun = run.checkpoints.latest_step() is not None  # Asks no disk, step after step.
  if jax.process_index() or not begun or orbax.newest_step(run.model_dir) is None:
    return False
  configs.say_saved(run.model_dir)
  return True


def _announce(run: Run, writer: RunWriter, state: train_state.TrainState, timing: Schedule) -> None:
  sizes = ', '.join(f'{name} {optax.tree.size(tree):,}' for name, tree in state.params.items())
  first = int(state.step)
  grid = ' × '.join(f'{axis} {size}' for axis, size in run.mesh.shape.items())
  shape = run.train_loader.layout
  verb = f'resuming after step {first}' if first else 'starting'
  records = 'responses' if run.samplers.responder is None else 'prompts'
  writer.say(
    f'{verb}: {timing.steps} steps on {jax.device_count()} {jax.devices()[0].device_kind} devices ({grid}); '
    f'parameters: {sizes}; '
    f'{len(run.train_loader.table):,} {records}, {run.train_loader.plan.batch_size} {run.algorithm.unit}s a '
    f'batch ({_DEALT[run.train_loader.plan.deal]}) in {shape.rows} rows of {shape.prompt_length} + '
    f'{shape.response_length} tokens'
  )
  if run.samplers.responder is not None:
    writer.say(
      'each prompt gets {samples} fresh responses of {max_length} tokens at most, rewarded by {reward}; '
      'optimiser steps on each batch of them: {epochs}'.format(**run.samplers.responder.settings)
    )
  about_batches = (
    few_prompts(run.train_loader, run.algorithm, first),
    repeated(run.train_loader.plan, run.algorithm),
  )
  for note in filter(None, (*about_batches, *run.notes)):
    writer.say(note)


def few_prompts(batches: loader.Loader, algorithm: algorithms.Algorithm, step: int) -> str:
  """A note where a batch's few prompts make its statistics nearly those of one prompt, or ''."""
  batch, deal = batches.plan.batch(step), batches.plan.deal
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


def repeated(plan: Any, algorithm: algorithms.Algorithm) -> str:
  """A note where a batch is larger than what there is to train on, or ''."""
  if plan.batches_per_epoch >= 1:
    return ''
  there = round(plan.batches_per_epoch * plan.batch_size)
  return (
    f'note: a batch of {plan.batch_size} {algorithm.unit}s is more than the {there} that there are to train '
    f'on, so every batch repeats them. Pass --set BATCH={there} or less, or more data.'
  )


def global_batches(run: Run, first: int, last: int) -> Iterator[tuple[int, Any]]:
  """This host's rows of every batch, as its part of the global batch."""
  source = run.train_loader
  host = functools.partial(partitioning.host_rows, run.mesh)
  for step, rows in loader.prefetch(source, range(first, last), host):
    yield step, partitioning.global_batch(run.mesh, rows, source.num_rows(step))


def with_fresh_responses(
  run: Run, state: train_state.TrainState, step: int, rows: Any
) -> tuple[Any, dict[str, float]]:
  """A batch as loaded, or with fresh responses to its prompts, and the seconds that those took."""
  if run.samplers.responder is None:
    return rows, {}
  clock = Clock()
  rows = run.samplers.responder.respond(state, run.train_loader, step, rows)
  return rows, {'time/generate_seconds': clock.lap()}


def _measured(
  run: Run,
  state: train_state.TrainState,
  step: int,
  rows: Any,
  output: train_step.StepOutput,
  timing: Schedule,
) -> train_step.StepOutput:
  """A step's numbers; where the reference moves and they are logged, those against the initial policy too."""
  if run.measure is None or not timing.is_due(timing.log_every, step):
    return output
  return output._replace(metrics={**output.metrics, **run.measure(state, rows, output.logps)})


def _report(
  run: Run, writer: RunWriter, pending: _Pending, timing: Schedule, clock: Clock
) -> dict[str, float] | None:
  """Waits for a step's numbers; refuses what is not finite, and records them when it is time."""
  scalars, ids = jax.device_get((pending.output.metrics, pending.output.nonfinite_ids))
  seconds = clock.lap()
  _refuse_nonfinite(run, pending, scalars, ids)
  writer.advance(pending.step)
  if not timing.is_due(timing.log_every, pending.step):
    return None
  scalars = {name: float(value) for name, value in scalars.items()}
  times = {'time/step_seconds': seconds, 'time/tokens_per_second': scalars['tokens'] / seconds}
  times |= pending.times
  writer.metrics(pending.step, scalars | times)
  return scalars | times


def _refuse_nonfinite(run: Run, pending: _Pending, scalars: Mapping[str, Any], ids: np.ndarray) -> None:
  bad, table = np.unique(ids[ids >= 0]), run.train_loader.table
  if not len(bad):
    return
  names = ', '.join(table.ids[int(i)] for i in bad[:8]) + (', ...' if len(bad) > 8 else '')
  folder = nonfinite.keep(run.model_dir, pending.step, pending.rows, bad, table, run.vocabulary)
  wrong = [name for name, value in scalars.items() if not np.isfinite(value)]
  subject = ', '.join(wrong) if wrong and 'loss' not in wrong else 'the loss'
  raise NotFinite(
    f'{subject} of step {pending.step} is not finite, in {len(bad)} examples: {names}. Earlier checkpoints '
    f'are intact. {folder / "examples.jsonl"} shows the batch; the same command with --replay={folder} goes '
    'there again and says where it arises. Lower the learning rate or raise τ if the examples are sound.'
  )


def _evaluate(
  run: Run,
  writer: RunWriter,
  state: train_state.TrainState,
  step: int,
  timing: Schedule,
  so_far: Mapping[str, float],
) -> dict[str, float]:
  """Validates on held-out prompts and answers a few of them."""
  table = run.eval_loader.table
  summary, found = _validated(run, state)
  if jax.process_index() == 0:
    validation.save(run.model_dir, step, found)
  measured = {f'eval/{name}': value for name, value in summary.items()}
  if run.best_metric is not None and run.best_metric not in measured:
    writer.say(f'note: {run.best_metric} is undefined at step {step}, which so cannot be the best')
  writer.metrics(step, measured | so_far)
  count = min(timing.sample_prompts, len(table))
  if count:
    firsts = np.unique(table.prompt_index, return_index=True)[1]
    writer.samples(step, _answers(run, state, table, np.sort(firsts)[:count]))
  writer.flush()
  return measured


def _validated(run: Run, state: train_state.TrainState) -> tuple[dict[str, float], validation.Validation]:
  """Losses and statistics of held-out prompts, of responses logged and own; and each response's numbers."""
  every = run.statistics_loader or run.eval_loader
  drawn = run.samplers.draw and run.samplers.draw(state, every.table)
  own = policy_samples.summary(drawn) if drawn else {}
  if run.samplers.responder is not None:
    found = validation.from_table(run.algorithm.temperature, every.table, None, drawn)
    measured = own | run.samplers.responder.validate(state, run.eval_loader)
    _refuse_nonfinite_validation(int(state.step), measured, found, every.table)
    return measured, found
  scored = run.score_table(state, run.eval_loader)
  losses = scored.losses
  if run.statistics_loader is not None:
    scored = run.score_statistics(state, every)
  found = validation.from_table(run.algorithm.temperature, every.table, scored, drawn)
  criteria = {
    f'criterion{ending}': losses[f'{run.algorithm.criterion}{ending}']
    for ending in ('', reference.MOVING)
    if f'{run.algorithm.criterion}{ending}' in losses
  }
  measured = {**losses, **own, **criteria}
  _refuse_nonfinite_validation(int(state.step), measured, found, every.table)
  # A statistic may be undefined, as a correlation is where rewards are equal; a loss may not.
  defined = {name: value for name, value in validation.summary(found).items() if math.isfinite(value)}
  return measured | defined, found


def _refuse_nonfinite_validation(
  step: int, measured: Mapping[str, float], found: validation.Validation, table: Any
) -> None:
  wrong = [name for name, value in measured.items() if not math.isfinite(value)]
  if not wrong:
    return
  arrays = [x for x in (found.logps, found.reference_logps, found.values, found.rewards) if x is not None]
  bad = np.flatnonzero(~np.isfinite(arrays).all(axis=0)) if arrays else ()
  names = ', '.join(table.ids[int(i)] for i in bad[:8]) + (', ...' if len(bad) > 8 else '')
  where = f', in {len(bad)} of them: {names}' if len(bad) else ''
  raise NotFinite(
    f'{", ".join(wrong)} of the held-out responses is not finite after step {step}{where}. That step is not '
    'saved, and earlier checkpoints are intact. Lower the learning rate or raise τ if the data are sound.'
  )


def _keep_validations(run: Run) -> None:
  """Keeps those of the newest validation and of the checkpoints that are kept."""
  if jax.process_index() == 0:
    newest = validation.steps(run.model_dir)[-1:]
    validation.keep(run.model_dir, (*newest, run.checkpoints.latest_step(), run.checkpoints.best_step()))


def _answers(
  run: Run, state: train_state.TrainState, table: Any, records: np.ndarray
) -> list[dict[str, Any]]:
  """Greedy responses to some records' prompts."""
  prompts = [table.prompt(int(i)) for i in records]
  answers = run.samplers.greedy(state.params['policy'], prompts, records.tolist())
  return [
    {'prompt': table.prompts[int(i)], 'response': run.vocabulary.decode(answer.tokens), 'logp': answer.logp}
    for i, answer in zip(records, answers)
  ]


def _agreed(stopped: interrupts.Request, step: int) -> bool:
  """Whether to stop after this step: with several processes, all of them at the same one."""
  if jax.process_count() > 1:
    return multihost_utils.reached_preemption_sync_point(step)
  return bool(stopped)


def _raise_stopped(stopped: interrupts.Request, step: int) -> None:
  if stopped.by_interrupt:
    raise Interrupted(f'stopped by Ctrl-C after step {step}, which is saved: the same command resumes')
  raise Stopped(f'stopped by SIGTERM after step {step}, which is saved: the same command resumes')
