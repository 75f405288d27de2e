"""A run's loop: steps, records, validations, checkpoints, signals."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from dro_jax.checkpoints import folders, orbax
from dro_jax.errors import Interrupted, NotFinite, Stopped
from dro_jax.parallel import interrupts, partitioning
from dro_jax.run import best, lost_mass, outcome, summary
from dro_jax.run import hooks as hooking
from dro_jax.run.build import Run
from dro_jax.run.folder import configs, nonfinite, spending, validation
from dro_jax.run.folder.records import RunWriter, recorded
from dro_jax.run.hooks import NO_HOOKS, Hooks
from dro_jax.run.schedule import Clock
from dro_jax.step import train_step
from dro_jax.step.state import TrainState

_DEALT = {'together': "one prompt's dealt together", 'uniform': 'dealt uniformly'}


class _Loop(NamedTuple):
  """What stays the same from step to step: the run, and where it writes."""

  run: Run
  folder: pathlib.Path
  checkpoints: orbax.Checkpoints
  writer: RunWriter
  hooks: Hooks


class _Pending(NamedTuple):
  """A step whose numbers may still be in the making."""

  step: int
  rows: Any
  output: train_step.StepOutput
  times: Mapping[str, float]


def run_loop(
  run: Run,
  folder: pathlib.Path,
  checkpoints: orbax.Checkpoints,
  state: TrainState,
  hooks: Hooks = NO_HOOKS,
) -> dict[str, Any]:
  """Steps until the schedule's end, a signal, or a loss that is not finite; returns the last metrics."""
  first, schedule = int(state.step), run.schedule
  writer = RunWriter(
    str(folder), first_step=first, num_steps=schedule.steps, primary=jax.process_index() == 0,
    trackers=hooks.trackers,
  )  # fmt: skip
  loop = _Loop(run, folder, checkpoints, writer, hooks)
  profiler = hooking.Profiler(folder, hooks.profile_steps)
  latest = recorded(folder / 'metrics.jsonl', first) if first >= schedule.steps else {}
  total = spending.ComputeCounter(
    folder / 'metrics.jsonl', run.loaders.train.num_rows, run.loaders.train.plan.batch_size,
    first=first, counts_flops=run.rollouts is None,
  )  # fmt: skip
  noticed = interrupts.noticed(several=jax.process_count() > 1)
  closing = contextlib.closing
  with closing(writer), closing(checkpoints), closing(profiler), noticed as stopped:
    _announce(loop, state)
    _evaluate_start(loop, state)
    pending, clock, said = None, Clock(), first > 0
    for step, rows in run.batches(first, schedule.steps):
      rows, times = run.with_responses(state, step, rows)
      with partitioning.use_mesh(run.mesh):
        so_far = total.add(run.jitted_step, step, state, rows, num_rows=len(rows.valid))
        profiler.before(step + 1)
        with jax.transfer_guard('disallow'):  # A transfer that is not asked for would wait for the devices.
          state, output = run.jitted_step(state, rows)
        profiler.after(step + 1, output)
        output = _measured(run, state, step + 1, rows, output)
      if pending is not None:
        latest = _report(loop, pending, clock) or latest
      pending = _Pending(step + 1, rows, output, times | so_far)
      stop = _agreed(stopped, step)
      saving = schedule.is_due(schedule.checkpoint_every, step + 1) or step + 1 == schedule.steps
      # What is saved is measured too, or it could never be the best; but not against a deadline.
      evaluating = saving or schedule.is_due(schedule.eval_every, step + 1)
      evaluating = evaluating and run.loaders.eval is not None
      pausing = evaluating or saving or stop
      if pausing or run.rollouts is not None:  # Fresh responses wait for the step anyway.
        latest, pending = _report(loop, pending, clock) or latest, None
      if pausing:
        measured = _evaluate(loop, state, step + 1, so_far) if evaluating else {}
        latest = latest | measured
        stop = stop or (_agreed(stopped, step) if jax.process_count() == 1 else False)
        if saving or stop:
          checkpoints.save(step + 1, state._replace(base=None), measured)
        _keep_validations(loop)
        clock.lap()
      if stop:
        checkpoints.wait()
      said = said or _say_saved(loop)
      if stop:
        _raise_stopped(stopped, step + 1)
    checkpoints.wait()
    if not said:
      _say_saved(loop)
    _show_outcome(loop)
  return {'model_dir': str(folder), 'step': max(first, schedule.steps), **latest}


def _say_saved(loop: _Loop) -> bool:
  """Writes into the run's description that a checkpoint is on disk, once one is; returns whether it did."""
  begun = loop.checkpoints.latest_step() is not None  # Asks no disk, step after step.
  if jax.process_index() or not begun or folders.newest_step(loop.folder) is None:
    return False
  configs.say_saved(loop.folder)
  return True


def _announce(loop: _Loop, state: TrainState) -> None:
  run, say = loop.run, loop.writer.say
  first = int(state.step)
  train = run.loaders.train
  shape = train.layout
  verb = f'resuming after step {first}' if first else 'starting'
  records = 'responses' if run.rollouts is None else 'prompts'
  say(
    f'{verb}: {run.schedule.steps} steps on {jax.device_count()} {jax.devices()[0].device_kind} devices '
    f'({summary.mesh(run.mesh.shape)}); parameters: '
    f'{summary.parameters(summary.num_parameters(state))}; '
    f'{len(train.table):,} {records}, {train.plan.batch_size} {run.algorithm.unit}s a '
    f'batch ({_DEALT[train.plan.deal]}) in {shape.rows} rows of {shape.prompt_length} + '
    f'{shape.response_length} tokens'
  )
  if run.rollouts is not None:
    say(
      'each prompt gets {samples} fresh responses of {max_length} tokens at most, rewarded by {reward}; '
      'optimiser steps on each batch of them: {epochs}'.format(**run.rollouts.settings)
    )
  for note in run.notes():
    say(note)


def _measured(
  run: Run, state: TrainState, step: int, rows: Any, output: train_step.StepOutput
) -> train_step.StepOutput:
  """A step's numbers; where the reference moves and they are logged, those against the initial policy too."""
  if run.measure is None or not run.schedule.is_due(run.schedule.log_every, step):
    return output
  return output._replace(metrics={**output.metrics, **run.measure(state, rows, output.logps)})


def _report(loop: _Loop, pending: _Pending, clock: Clock) -> dict[str, float] | None:
  """Waits for a step's numbers; refuses what is not finite, and records them when it is time."""
  schedule, writer = loop.run.schedule, loop.writer
  scalars, ids = jax.device_get((pending.output.metrics, pending.output.nonfinite_ids))
  seconds = clock.lap()
  _refuse_nonfinite(loop, pending, scalars, ids)
  writer.advance(pending.step)
  if not schedule.is_due(schedule.log_every, pending.step):
    return None
  scalars = {name: float(value) for name, value in scalars.items()}
  times = {'time/step_seconds': seconds, 'time/tokens_per_second': scalars['tokens'] / seconds}
  times |= pending.times
  writer.metrics(pending.step, scalars | times)
  return scalars | times


def _refuse_nonfinite(loop: _Loop, pending: _Pending, scalars: Mapping[str, Any], ids: np.ndarray) -> None:
  bad, table = np.unique(ids[ids >= 0]), loop.run.loaders.train.table
  if not len(bad):
    return
  folder = nonfinite.keep(loop.folder, pending.step, pending.rows, bad, table, loop.run.vocabulary)
  wrong = [name for name, value in scalars.items() if not np.isfinite(value)]
  names = nonfinite.listed(bad, table)
  subject = ', '.join(wrong) if wrong and 'loss' not in wrong else 'the loss'
  raise NotFinite(
    f'{subject} of step {pending.step} is not finite, in {len(bad)} examples: {names}. Earlier checkpoints '
    f'are intact. {folder / "examples.jsonl"} shows the batch; the same command with '
    f'--replay={folder} computes that step again and names the operation that gave the first NaN. If the '
    'examples are sound, lower the learning rate or raise τ.'
  )


def _evaluate(loop: _Loop, state: TrainState, step: int, so_far: Mapping[str, float]) -> dict[str, float]:
  """Validates on held-out prompts and answers a few of them."""
  run, writer = loop.run, loop.writer
  table, decisive = run.loaders.eval.table, best.metrics_of(run.spec.keep)
  scalars, responses = run.validator.validate(state)
  if jax.process_index() == 0:
    validation.save(loop.folder, step, responses)
  measured = {f'eval/{name}': value for name, value in scalars.items()}
  every = run.loaders.statistics or run.loaders.eval
  measured |= hooking.measure(loop.hooks, every.table, responses, measured)
  for metric in {*decisive.values()} - measured.keys():
    writer.say(f'note: {metric} is undefined at step {step}, which so cannot be the best')
  if lost_mass.has_left(measured) and not lost_mass.had_left(loop.folder):  # Once in a run.
    writer.say(lost_mass.warning(step, measured, uses_value=run.algorithm.uses_value))
  writer.metrics(step, measured | so_far)
  count = min(run.schedule.sample_prompts, len(table))
  if count:
    firsts = np.unique(table.prompt_index, return_index=True)[1]
    writer.samples(step, _answers(run, state, table, np.sort(firsts)[:count]))
  writer.flush()
  return measured


def _evaluate_start(loop: _Loop, state: TrainState) -> None:
  """Validates the first policy, which is the reference: its numbers stand beside all later ones."""
  run = loop.run
  if int(state.step) or run.loaders.eval is None or not run.schedule.steps:
    return
  _evaluate(loop, state, 0, {'examples': 0.0} | ({'flops': 0.0} if run.rollouts is None else {}))
  if jax.process_index() == 0:
    validation.keep(loop.folder, (0,))  # Of a run that was begun here before, and saved nothing.


def _show_outcome(loop: _Loop) -> None:
  """Says what came of the run, where its first policy was measured."""
  if jax.process_index() == 0:
    step, keep = loop.checkpoints.best_step(), loop.run.spec.keep
    if step is None and keep.bound is not None:
      loop.writer.say(best.without_any(keep))
    if (result := outcome.read(loop.folder, step)) is not None:
      loop.writer.show(result)


def _keep_validations(loop: _Loop) -> None:
  """Keeps those of the first policy, of the newest validation and of the checkpoints that are kept."""
  if jax.process_index() == 0:
    newest = validation.steps(loop.folder)[-1:]
    kept = (0, *newest, loop.checkpoints.latest_step(), loop.checkpoints.best_step())
    validation.keep(loop.folder, kept)


def _answers(run: Run, state: TrainState, table: Any, records: np.ndarray) -> list[dict[str, Any]]:
  """Greedy responses to some records' prompts."""
  prompts = [table.prompt(int(i)) for i in records]
  answers = run.answer(state.networks['policy'], prompts, records.tolist())
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
