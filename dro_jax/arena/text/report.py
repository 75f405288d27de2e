"""Tables of the `text` suite: answers, the frontier, and estimates from the log against the truth."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.arena import results, training
from dro_jax.arena.cells import Finished
from dro_jax.arena.suite import Report
from dro_jax.arena.text.answers import GRAMS
from dro_jax.printing.tables import Table
from dro_jax.statistics import agreement, off_policy
from dro_jax.statistics.agreement import Estimate

DRAWS = 1000
Results = Sequence[Mapping[str, Any]]


def _arrays(found: Results, *path: str) -> np.ndarray:
  """A measure of every seed, `[seeds, ...]`."""
  return np.array([functools.reduce(lambda at, name: at[name], path, each) for each in found], np.float64)


def _estimate(found: Results, *path: str) -> Estimate:
  return results.crossed_bootstrap(_arrays(found, *path))


def _mean(found: Results, *path: str) -> float:
  return float(_arrays(found, *path).mean())


def _seeds(choice: results.Chosen) -> Results:
  return list(choice.results.values())


def _policies(chosen: Mapping[str, results.Chosen]) -> dict[str, tuple[Results, tuple[str, ...]]]:
  """The reference and every chosen trial: its results, and the key of its answers in them."""
  first = _seeds(next(iter(chosen.values())))
  return {'SFT (reference)': (first, ('log',))} | {
    name: (_seeds(choice), ('last', 'test')) for name, choice in chosen.items()
  }


def score_table(chosen: Mapping[str, results.Chosen]) -> Table:
  """Each method's answers to test prompts, beside the reference's."""
  rows = []
  for name, (found, path) in _policies(chosen).items():
    is_reference = path == ('log',)
    rows.append(
      {
        'method': name,
        'reward': _estimate(found, *path, 'reward'),
        'win rate': 0.5 if is_reference else _estimate(found, *path, 'win'),
        'right': _mean(found, *path, 'exact'),
        'KL': 0.0 if is_reference else _estimate(found, *path, 'kl'),
        'best checkpoint’s reward': None if is_reference else _estimate(found, 'best', 'test', 'reward'),
      }
    )
  return Table(
    'Answers to test prompts', rows,
    'reward: 1 − edits to the right answer / length. win rate: against an SFT answer to the same prompt, '
    'ties half. right: share of answers. KL: log π − log π_ref of own answers, nats. 95 % intervals over '
    'prompts, and over seeds where there are several.',
  )  # fmt: skip


def shape_table(chosen: Mapping[str, results.Chosen]) -> Table:
  """How long and how different answers are."""
  rows = [
    {
      'method': name,
      'tokens': _mean(found, *path, 'length'),
      **{f'distinct-{n}': _mean(found, *path, f'distinct_{n}') for n in GRAMS},
      'different of K': _mean(found, *path, 'different'),
      'best of K': _estimate(found, *path, 'best'),
    }
    for name, (found, path) in _policies(chosen).items()
  ]
  return Table(
    'How they differ', rows,
    'distinct-n: different n-grams of tokens over all. different of K: of the K answers to a prompt. best of '
    'K: the reward of the best of them.',
  )  # fmt: skip


def difference_table(chosen: Mapping[str, results.Chosen]) -> Table:
  """Rewards less the first method's, paired by seed and prompt."""
  (first, base), *others = chosen.items()
  rewards = {name: results.by_prompt(choice, 'last', 'reward') for name, choice in others}
  rows = [
    {
      'method': name,
      f'reward less {first}’s': results.difference(of_seeds, results.by_prompt(base, 'last', 'reward')),
    }
    for name, of_seeds in rewards.items()
  ]
  return Table(
    f'Against {first}, paired by seed and prompt', rows, 'An interval that holds 0 tells no difference.'
  )


def log_of(found: Results) -> off_policy.Log:
  """Estimates of a policy from the log of the test prompts: the logs of all seeds, one after the other."""

  def joined(*path: str) -> np.ndarray:
    return np.concatenate([functools.reduce(lambda at, name: at[name], path, each) for each in found])

  rewards_N, expected_P = joined('log', 'rewards'), joined('last', 'test', 'expected')
  num = len(rewards_N) // len(expected_P)
  prompts = np.tile(np.arange(len(expected_P) // len(found)), len(found))
  return off_policy.Log(
    joined('last', 'ratios'), rewards_N, joined('log', 'predicted'), np.repeat(expected_P, num),
    np.repeat(prompts, num),
  )  # fmt: skip


def value_table(chosen: Mapping[str, results.Chosen]) -> Table:
  """Estimates of each policy from the SFT policy's log, beside the truth."""
  rows = []
  for name, choice in chosen.items():
    log = log_of(_seeds(choice))
    size = off_policy.effective_sample_size(log.ratios)
    rows.append(
      {
        'method': name,
        'truth': _estimate(_seeds(choice), 'last', 'test', 'reward'),
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
  """The error of each estimate over all trials, and whether it ranks them as the truth does."""
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
        'rank correlation with the truth': agreement.rank_correlation(
          np.array(values), truth, np.ones(len(truth))
        ),
      }
    )
  return Table(f'Estimates of {len(truth)} policies: every trial', rows)


def draw_frontier(finished: Sequence[Finished], chosen: Mapping[str, results.Chosen], figure: Any) -> None:
  """Reward against KL on test prompts: every trial small, the chosen ones large."""
  figure.set_size_inches(7, 5)
  axes = figure.subplots()
  for name, choice in chosen.items():
    tried = [each.result for each in finished if each.cell.algorithm == name]
    points = [[_mean([each], 'last', 'test', of) for of in ('kl', 'reward')] for each in tried]
    dots = axes.scatter(*np.array(points).T, s=15, alpha=0.5)
    best = [_mean(_seeds(choice), 'last', 'test', of) for of in ('kl', 'reward')]
    axes.scatter(*best, s=90, color=dots.get_facecolor()[0], alpha=1, label=name)
  log = _seeds(next(iter(chosen.values())))
  axes.scatter(0, _mean(log, 'log', 'reward'), marker='s', color='0.3', label='SFT (reference)')
  axes.axhline(_mean(log, 'log', 'best'), color='0.7', linestyle=':', label='SFT, best of K')
  axes.set(xlabel='KL(π‖π_ref), nats', ylabel='mean reward', title='Answers to test prompts')
  axes.legend(fontsize='small')


def draw_values(finished: Sequence[Finished], figure: Any) -> None:
  """Estimates against the truth, a panel each, every trial a dot."""
  figure.set_size_inches(12, 3.6)
  truth = [_mean([each.result], 'last', 'test', 'reward') for each in finished]
  made = [off_policy.estimates(log_of([each.result]), resamples=1) for each in finished]
  for axes, (name, title) in zip(figure.subplots(1, len(_ESTIMATORS), sharey=True), _ESTIMATORS.items()):
    axes.scatter(truth, [each[name].value for each in made], s=15)
    axes.plot([min(truth), max(truth)], [min(truth), max(truth)], color='0.6', zorder=0)
    axes.set(xlabel='true mean reward', title=title)


def report(order: Sequence[str], finished: Sequence[Finished]) -> Report:
  """The suite's tables and figures, methods in this order."""
  chosen = results.choose(finished, order, 'last')
  tables = [
    score_table(chosen), difference_table(chosen), shape_table(chosen), value_table(chosen),
    trust_table(finished), training.choices(chosen),
  ]  # fmt: skip
  figures = {
    'frontier.png': functools.partial(draw_frontier, finished, chosen),
    'values.png': functools.partial(draw_values, finished),
  }
  return Report([table for table in tables if table.rows], figures)
