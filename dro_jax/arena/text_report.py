"""What the `text` suite tells: answers, the frontier, and the log's word on each policy against the truth."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax import off_policy, statistics
from dro_jax.arena import training
from dro_jax.arena.answers import GRAMS
from dro_jax.arena.cells import Finished
from dro_jax.arena.suite import Report
from dro_jax.arena.tables import Table
from dro_jax.statistics import Estimate

DRAWS = 1000


def _mean(results: Sequence[Mapping[str, Any]], path: Sequence[str]) -> np.ndarray:
  """An array of the results, averaged over seeds."""
  found = [functools.reduce(lambda at, name: at[name], path, each) for each in results]
  return np.asarray(np.mean(np.array(found, np.float64), axis=0))


def over_prompts(x_P: np.ndarray) -> Estimate:
  """A mean over prompts and its interval."""
  return statistics.bootstrap(lambda weights_P: float(weights_P @ x_P / weights_P.sum()), len(x_P), DRAWS, 0)


def validation_reward(result: Mapping[str, Any]) -> float:
  """What trials are chosen by: the last checkpoint's mean reward on validation prompts."""
  return float(np.mean(result['last']['validation']['reward']))


def score_table(chosen: Mapping[str, training.Choice]) -> Table:
  """Each method's answers to test prompts, beside the reference's."""
  log = next(iter(chosen.values())).results
  rows = [_reference_row(log)] + [_row(name, choice) for name, choice in chosen.items()]
  return Table(
    'Answers to test prompts', rows,
    'reward: 1 − edits to the right answer / length. win rate: against an SFT answer to the same prompt, '
    'ties half. KL: log π − log π_ref of own answers, nats. Trials are chosen by the reward on validation '
    'prompts; 95 % intervals over prompts; ≤, ≥: the best value was at an end of what was tried.',
  )  # fmt: skip


def _reference_row(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  return {
    'method': 'SFT (reference)',
    'reward': over_prompts(_mean(results, ('log', 'reward'))),
    'win rate': 0.5,
    'right': _number(results, 'log', 'exact'),
    'KL': 0.0,
    **_shape_of(results, ('log',)),
    'reward at best checkpoint': None,
    'best of K': over_prompts(_mean(results, ('log', 'best'))),
  }


def _row(name: str, choice: training.Choice) -> dict[str, Any]:
  results, test = choice.results, ('last', 'test')
  return {
    'method': name,
    'reward': over_prompts(_mean(results, (*test, 'reward'))),
    'win rate': over_prompts(_mean(results, (*test, 'win'))),
    'right': _number(results, *test, 'exact'),
    'KL': over_prompts(_mean(results, (*test, 'kl'))),
    **_shape_of(results, test),
    'reward at best checkpoint': over_prompts(_mean(results, ('best', 'test', 'reward'))),
    'best of K': over_prompts(_mean(results, (*test, 'best'))),
    'chosen': ', '.join(f'{key} {value:g}' for key, value in choice.hyperparameters.items()),
    'at an edge': ', '.join(choice.edges),
    'trials': choice.trials,
    'steps': results[0]['steps'],
    'seeds': len(results),
  }


def _number(results: Sequence[Mapping[str, Any]], *path: str) -> float:
  return float(np.mean(_mean(results, path)))


def _shape_of(results: Sequence[Mapping[str, Any]], path: Sequence[str]) -> dict[str, float]:
  return {
    'tokens': _number(results, *path, 'length'),
    **{f'distinct-{n}': _number(results, *path, f'distinct_{n}') for n in GRAMS},
    'different of K': _number(results, *path, 'different'),
  }


def difference_table(chosen: Mapping[str, training.Choice]) -> Table:
  """Rewards less the first method's, paired by prompt."""
  (first, base), *others = chosen.items()
  base_P = _mean(base.results, ('last', 'test', 'reward'))
  rows = [
    {
      'method': name,
      f'reward less {first}’s': over_prompts(_mean(choice.results, ('last', 'test', 'reward')) - base_P),
    }
    for name, choice in others
  ]
  return Table(f'Against {first}, paired by prompt', rows, 'An interval that holds 0 tells no difference.')


def log_of(results: Sequence[Mapping[str, Any]]) -> off_policy.Log:
  """What the log of the test prompts says of a policy: all seeds' logs, one after the other."""

  def joined(*path: str) -> np.ndarray:
    return np.concatenate([functools.reduce(lambda at, name: at[name], path, each) for each in results])

  rewards_N, expected_P = joined('log', 'rewards'), joined('last', 'test', 'expected')
  num = len(rewards_N) // len(expected_P)
  prompts = np.tile(np.arange(len(expected_P) // len(results)), len(results))
  return off_policy.Log(
    joined('last', 'ratios'), rewards_N, joined('log', 'predicted'), np.repeat(expected_P, num),
    np.repeat(prompts, num),
  )  # fmt: skip


def value_table(chosen: Mapping[str, training.Choice]) -> Table:
  """What the SFT policy's log says of each policy, and what is true."""
  rows = []
  for name, choice in chosen.items():
    log = log_of(choice.results)
    size = off_policy.effective_sample_size(log.ratios)
    rows.append(
      {
        'method': name,
        'truth': over_prompts(_mean(choice.results, ('last', 'test', 'reward'))),
        **{_ESTIMATORS[key]: value for key, value in off_policy.estimates(log, resamples=DRAWS).items()},
        'effective samples': size,
        'of': len(log.ratios),
      }
    )
  return Table(
    'Value on test prompts, estimated from the SFT policy’s log', rows,
    'truth: mean reward of the policy’s own answers. The reward model is a ridge regression on the training '
    'log, on letters and lengths. Few effective samples: the log says little of this policy.',
  )  # fmt: skip


_ESTIMATORS = {
  'ips': 'IPS',
  'self_normalised': 'self-normalised',
  'direct': 'reward model',
  'doubly_robust': 'doubly robust',
}


def trust_table(finished: Sequence[Finished]) -> Table:
  """How far each estimate is off over all trials, and whether it ranks them as the truth does."""
  truths, found = [], {name: [] for name in _ESTIMATORS}
  for each in finished:
    truths.append(float(np.mean(each.result['last']['test']['reward'])))
    made = off_policy.estimates(log_of([each.result]), resamples=1)
    for name in found:
      found[name].append(made[name].value)
  truth, rows = np.array(truths), []
  for name, values in found.items():
    off = np.array(values) - truth
    rows.append(
      {
        'estimate': _ESTIMATORS[name],
        'root mean square error': float(np.sqrt(np.mean(off**2))),
        'bias': float(off.mean()),
        'rank correlation with the truth': statistics.rank_correlation(
          np.array(values), truth, np.ones(len(truth))
        ),
      }
    )
  return Table(f'Estimates of {len(truth)} policies: every trial', rows)


def draw_frontier(finished: Sequence[Finished], chosen: Mapping[str, training.Choice], figure: Any) -> None:
  """Reward against KL on test prompts: every trial small, the chosen ones large."""
  figure.set_size_inches(7, 5)
  axes = figure.subplots()
  for name, choice in chosen.items():
    tried = [each.result for each in finished if each.cell.algorithm == name]
    points = [[_number([each], 'last', 'test', of) for of in ('kl', 'reward')] for each in tried]
    dots = axes.scatter(*np.array(points).T, s=15, alpha=0.5)
    best = [_number(choice.results, 'last', 'test', of) for of in ('kl', 'reward')]
    axes.scatter(*best, s=90, color=dots.get_facecolor()[0], alpha=1, label=name)
  log = next(iter(chosen.values())).results
  axes.scatter(0, _number(log, 'log', 'reward'), marker='s', color='0.3', label='SFT (reference)')
  axes.axhline(_number(log, 'log', 'best'), color='0.7', linestyle=':', label='SFT, best of K')
  axes.set(xlabel='KL(π‖π_ref), nats', ylabel='mean reward', title='Answers to test prompts')
  axes.legend(fontsize='small')


def draw_values(finished: Sequence[Finished], figure: Any) -> None:
  """Estimates against the truth, a panel each, every trial a dot."""
  figure.set_size_inches(12, 3.6)
  truth = [_number([each.result], 'last', 'test', 'reward') for each in finished]
  made = [off_policy.estimates(log_of([each.result]), resamples=1) for each in finished]
  for axes, (name, title) in zip(figure.subplots(1, len(_ESTIMATORS), sharey=True), _ESTIMATORS.items()):
    axes.scatter(truth, [each[name].value for each in made], s=15)
    axes.plot([min(truth), max(truth)], [min(truth), max(truth)], color='0.6', zorder=0)
    axes.set(xlabel='true mean reward', title=title)


def report(order: Sequence[str], finished: Sequence[Finished]) -> Report:
  """The suite's tables and figures, methods in this order."""
  found = training.choose(finished, validation_reward)
  chosen = {name: found[name] for name in order if name in found}
  tables = [score_table(chosen), difference_table(chosen), value_table(chosen), trust_table(finished)]
  figures = {
    'frontier.png': functools.partial(draw_frontier, finished, chosen),
    'values.png': functools.partial(draw_values, finished),
  }
  return Report([table for table in tables if table.rows], figures)
