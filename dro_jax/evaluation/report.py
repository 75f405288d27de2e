"""The `report` command: runs side by side, or why they cannot be compared."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax import files, limits
from dro_jax.errors import UsageError
from dro_jax.evaluation.compared_run import Run, read
from dro_jax.printing import tables
from dro_jax.printing.result import Report
from dro_jax.run.folder import validation
from dro_jax.run.folder.validation import Validation
from dro_jax.statistics import agreement

# What means the same for every algorithm, and how it is called.
MEANINGS = {
  'sample_reward': 'reward of own samples',
  'kl': 'KL(π‖π_ref) of own samples, nats',
  'kl_moving': 'KL to the moving reference of own samples, nats',
  'mass_kept': "mass kept on the reference's own answers",
  'mass_kept_effective_size': 'its effective size, answers',
  'sample_tokens': 'tokens of own samples',
  'within_prompt_accuracy/log_ratio': 'within-prompt accuracy of ρ',
  'within_prompt_accuracy/log_ratio_moving': 'within-prompt accuracy of ρ to the moving reference',
  'within_prompt_explained_variance': 'variance within prompts explained by τρ',
  'within_prompt_explained_variance_moving': 'the same by τρ to the moving reference',
  'within_prompt_correlation': 'correlation of ρ with rewards within prompts',
  'within_prompt_correlation_moving': 'the same of ρ to the moving reference',
  'within_prompt_accuracy/logp': 'within-prompt accuracy of log π',
  'within_prompt_accuracy/logp_per_token': 'within-prompt accuracy of log π by token',
  'rank_correlation': 'rank correlation of V + τρ',
  'value_explained_variance': 'variance explained by V',
  'log_ratio': 'mean log-ratio ρ on logged responses',
  'log_ratio_std': 'its standard deviation',
  'logp': 'log π of logged responses',
}
AXES = {'examples': 'examples seen', 'flops': 'FLOPs of training', 'eval/kl': MEANINGS['kl']}
_CURVES = (
  'sample_reward', 'within_prompt_accuracy/log_ratio', 'within_prompt_explained_variance',
  'within_prompt_accuracy/logp', 'rank_correlation', 'kl', 'mass_kept',
)  # fmt: skip
_SAME_REFERENCE = 0.1  # nats: more than rounding makes of one reference on two machines.


def report(
  runs: str | Sequence[str], *, output: str | None = None, resamples: int = 1000, seed: int = 0
) -> Report:
  """Compares runs: what differs in their settings, what they spent, and what came of it.

  Intervals are over held-out prompts; those of differences are paired, on the same draws of prompts.

  Args:
    runs: two folders or more, or their names separated by commas; differences are from the first.
    output: a folder for report.md, report.json and curves.png.
    resamples: draws of prompts behind each 95 % interval.
    seed: of those draws.

  Raises:
    UsageError: a folder is no run's, or split, reward scaling or decoding differ.
  """
  limits.seed(seed)
  folders = [part for part in (runs.split(',') if isinstance(runs, str) else runs) if part]
  if len(folders) < 2:
    raise UsageError(
      f'{len(folders)} run to compare: name two or more, as dro.report("runs/a", "runs/b") or `dro_jax '
      'report runs/a runs/b`.'
    )
  target = None if output is None else files.output_folder(output)
  found = [read(folder, name) for folder, name in zip(folders, _names(folders))]
  refuse_incomparable(found)
  content, shown = {'runs': {run.name: str(run.folder) for run in found}}, [settings(found), spending(found)]
  differ = any(run.best_step != run.last_step for run in found)
  for moment in ('last', 'best') if differ else ('last',):
    values, differences = compared(found, moment, resamples, seed)
    shown += [values, differences]
  content['tables'] = [tables.for_json(table) for table in shown]
  content['curves'] = {run.name: curves(run) for run in found}
  made = Report(content, shown)
  if target is not None:
    title = ' against '.join(run.name for run in found)
    made.save(target, 'report', title, '\n![curves](curves.png)\n')
    plot(content['curves'], target / 'curves.png')
  return made


def _names(folders: Sequence[str]) -> list[str]:
  """The last part of each path, or all of it where two would be called the same."""
  names = [pathlib.Path(folder).name for folder in folders]
  return names if len(set(names)) == len(names) else list(folders)


def refuse_incomparable(runs: Sequence[Run]) -> None:
  """Refuses runs that were not measured by the same yardstick.

  Raises:
    UsageError: says which two runs, what differs, and how.
  """
  first = runs[0]
  for run in runs[1:]:
    for what, of in _YARDSTICKS.items():
      a, b = of(first), of(run)
      if a is not None and b is not None and a != b:
        raise _incomparable(first, run, what, *_differing(a, b))
    _refuse_other_prompts(first, run)
    _refuse_other_rewards(first, run)


def _split(run: Run) -> dict[str, Any]:
  """How responses were held out; of a file of their own it is their prompts that tell."""
  data = run.metadata['data']
  return data.get('split') or {'by': 'eval_triplets'}


def _scaling(run: Run) -> dict[str, Any]:
  scaling = run.metadata['data']['scaling']
  return {name: scaling[name] for name in ('kind', 'shift', 'scale', 'knots')}


def _decoding(run: Run) -> dict[str, Any] | None:
  """`None` where nothing was sampled, and so nothing measured on samples."""
  decoding = run.metadata.get('decoding')
  return decoding and {name: value for name, value in decoding.items() if name != 'reward_code'}


def _reward_code(run: Run) -> dict[str, Any] | None:
  """`None` where no user's function scored samples, or an earlier version did not record it."""
  code = (run.metadata.get('decoding') or {}).get('reward_code')
  return code and {'code': code}


_YARDSTICKS: dict[str, Callable[[Run], Any]] = {
  'split': _split, 'reward scaling': _scaling, 'decoding': _decoding,
  'reward function': _reward_code,
}  # fmt: skip


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
  return tuple({name: each.get(name) for name in names} for each in (a, b))


def _refuse_other_prompts(first: Run, run: Run) -> None:
  one, other = (None if x.last.prompts is None else set(x.last.prompts.tolist()) for x in (first, run))
  if one is None or other is None or one <= other or other <= one:
    return
  shared = f'{len(one & other)} of them the same'
  raise _incomparable(
    first, run, 'split', f'{len(one)} held-out prompts', f'{len(other)} held-out prompts, {shared}'
  )


def _refuse_other_rewards(first: Run, run: Run) -> None:
  a, b = validation.common([first.last, run.last])
  if a.rewards is not None and b.rewards is not None and not np.allclose(a.rewards, b.rewards, atol=1e-4):
    i = int(np.argmax(np.abs(a.rewards - b.rewards)))
    raise _incomparable(
      first, run, 'reward of a held-out response', f'{a.rewards[i]:.4g}', f'{b.rewards[i]:.4g}'
    )


def _incomparable(first: Run, run: Run, what: str, a: Any, b: Any) -> UsageError:
  return UsageError(
    f'{first.name} and {run.name} cannot be compared, for their {what} differs: {a} and {b}. Train both with '
    'the same, or `dro_jax evaluate` both on one file.'
  )


def compared(
  runs: Sequence[Run], moment: str, resamples: int, seed: int
) -> tuple[tables.Table, tables.Table]:
  """Metrics with intervals over prompts, and their differences from the first run's with paired ones."""
  found = validation.common([getattr(run, moment) for run in runs])
  draws = {'resamples': resamples, 'seed': seed}
  values: dict[str, dict[str, Any]] = {}
  differences: dict[str, dict[str, Any]] = {}
  for functions, num_prompts in _measured(found):
    for metric, meaning in MEANINGS.items():
      of = [each.get(metric) for each in functions]
      if not any(of):
        continue
      values[metric] = {'metric': meaning} | {
        run.name: f and agreement.bootstrap(f, num_prompts, **draws) for run, f in zip(runs, of)
      }
      differences[metric] = {'metric': meaning} | {
        run.name: f and of[0] and agreement.bootstrap(_less(f, of[0]), num_prompts, **draws)
        for run, f in zip(runs[1:], of[1:])
      }
  ordered = [metric for metric in MEANINGS if metric in values]
  title = {'last': 'Last validation', 'best': 'Best checkpoints'}[moment]
  return (
    tables.Table(title, [values[metric] for metric in ordered], _note(runs, found)),
    tables.Table(
      f'{title}: difference from {runs[0].name}', [differences[metric] for metric in ordered],
      'Paired: each interval is over prompts, drawn alike for both runs. One that spans 0 decides nothing.',
    ),
  )  # fmt: skip


def _measured(found: Sequence[Validation]) -> Iterator[tuple[list[dict[str, Any]], int]]:
  """(each run's statistics, the number of prompts that they are functions of): logged responses, samples."""
  prompts = next((len(np.unique(x.prompts)) for x in found if x.prompts is not None), 0)
  samples = next((len(x.sample_prompts) for x in found if x.sample_prompts is not None), 0)
  if samples:
    yield [validation.sample_statistics(x) for x in found], samples
  if prompts:
    yield [validation.make_statistics(x) for x in found], prompts


def _less(
  f: Callable[[np.ndarray], float], g: Callable[[np.ndarray], float]
) -> Callable[[np.ndarray], float]:
  return lambda weights_P: f(weights_P) - g(weights_P)


def _note(runs: Sequence[Run], found: Sequence[Validation]) -> str:
  """On how much this rests, and where two runs' references are not the same."""
  responses = next((len(x.examples) for x in found if x.examples is not None), 0)
  note = f'On {responses} held-out responses that all runs scored; 95 % intervals over prompts.'
  scored = {run.name: x.reference_logps for run, x in zip(runs, found) if x.reference_logps is not None}
  if scored:
    base = next(iter(scored.values()))
    others = [name for name, x in scored.items() if len(x) and np.abs(x - base).max() > _SAME_REFERENCE]
    if others:
      note += (
        f' {", ".join(others)} measure KL and ρ against another reference than {next(iter(scored))} does: '
        'these rows compare each run with its own.'
      )
  return note


# Of run.json; and what config.gin says too.
_DESCRIBED = ('temperature', 'value', 'value_warmup_steps', 'reference', 'model', 'online')
_BOUND = ('algorithm', 'next_token_kl', 'batch_size', 'seed', 'init_from')


def settings(runs: Sequence[Run]) -> tables.Table:
  """Settings that are not the same in all runs."""
  texts = [_settings_of(run) for run in runs]
  names = dict.fromkeys(name for of in texts for name in of)
  rows = [
    {'setting': name} | {run.name: of.get(name) for run, of in zip(runs, texts)}
    for name in names
    if len({of.get(name) for of in texts}) > 1
  ]
  return tables.Table('What differs', rows, '' if rows else 'Nothing but the folder.')


def _settings_of(run: Run) -> dict[str, str]:
  """What config.gin binds; and what run.json says where that is more (a run of Python has no config.gin)."""
  bound = {name: value for name, value in run.bindings.items() if name != 'MODEL_DIR'}
  names = _DESCRIBED if bound else (*_DESCRIBED, *_BOUND)
  data = run.metadata['data']
  described = {name: run.metadata.get(name) for name in names}
  described |= {name: data.get(name) for name in ('triplets', 'train_records', 'units', 'options')}
  return bound | dict(_flat(described))


def _flat(value: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
  for name, item in value.items():
    if isinstance(item, Mapping):
      yield from _flat(item, f'{prefix}{name}.')
    elif item is not None:
      yield prefix + name, str(item)


def spending(runs: Sequence[Run]) -> tables.Table:
  """How long each run was, and what it took."""
  rows = []
  for run in runs:
    spent = {name: _latest(run, name) for name in ('examples', 'flops')}
    rows.append(
      {
        'run': run.name, 'algorithm': run.metadata['algorithm'], 'last step': run.last_step,
        'best step': run.best_step, f'{_unit(run)}s seen': spent['examples'], 'FLOPs': spent['flops'],
      }
    )  # fmt: skip
  return tables.Table(
    'Runs', rows, "FLOPs are the training steps' products of matrices, reference and value included."
  )


def _unit(run: Run) -> str:
  units = run.metadata['data'].get('units') or {}
  return 'prompt' if run.metadata.get('online') else units.get('unit', 'response')


def _latest(run: Run, name: str) -> float | int | None:
  return next((record[name] for record in reversed(run.records) if name in record), None)


def curves(run: Run) -> list[dict[str, float | int]]:
  """A point for each validation, that of the first policy too: what was spent, KL, and what is comparable."""
  names = {'step', *AXES, *(f'eval/{metric}' for metric in MEANINGS)}
  return [
    {name: value for name, value in record.items() if name in names}
    for record in run.records
    if any(name.startswith('eval/') for name in record)
  ]


def plot(points: Mapping[str, Sequence[Mapping[str, Any]]], file: pathlib.Path) -> None:
  """Saves the curves: a row for each metric, against examples, FLOPs and KL."""
  from matplotlib.figure import Figure

  flat = [point for of in points.values() for point in of]
  metrics = [metric for metric in _CURVES if any(f'eval/{metric}' in point for point in flat)]
  axes = [axis for axis in AXES if any(axis in point for point in flat)]
  figure = Figure(figsize=(4.4 * len(axes), 3 * len(metrics)), layout='constrained')
  grid = figure.subplots(len(metrics), len(axes), squeeze=False)
  for row, metric in enumerate(metrics):
    for column, axis in enumerate(axes):
      _draw(grid[row, column], points, axis, f'eval/{metric}')
      grid[row, column].set(xlabel=AXES[axis], ylabel=MEANINGS[metric])
  grid[0, 0].legend()
  figure.savefig(file, dpi=120)


def _draw(axes: Any, points: Mapping[str, Sequence[Mapping[str, Any]]], x: str, y: str) -> None:
  for name, of in points.items():
    pairs = [(point[x], point[y]) for point in of if x in point and y in point]
    axes.plot(*(np.array(pairs).T if pairs else ([], [])), marker='o', markersize=3, label=name)


__all__ = ['report']
