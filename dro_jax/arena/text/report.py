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
from dro_jax.statistics.bootstrap import Estimate

DRAWS = 1000
Results = Sequence[Mapping[str, Any]]


def _arrays(found: Results, *path: str) -> np.ndarray:
  """A measure of every seed, `[seeds, ...]`."""
  return np.array([functools.reduce(lambda at, name: at[name], path, each) for each in found], np.float64)


def _estimate(found: Results, *path: str) -> Estimate:
  return results.crossed_bootstrap(_arrays(found, *path))


def _mean(found: Results, *path: str) -> float:
  return float(_arrays(found, *path).mean())


def _policies(chosen: Mapping[str, results.Chosen]) -> dict[str, tuple[Results, tuple[str, ...]]]:
  """The reference and every chosen trial: its results, and the key of its answers in them."""
  most = max(chosen.values(), key=lambda choice: len(choice.results))
  return {'SFT (reference)': (most.of_seeds, ('reference',))} | {
    name: (choice.of_seeds, ('last', 'test')) for name, choice in chosen.items()
  }


def _marked(name: str, chosen: Mapping[str, results.Chosen]) -> str:
  """The method's name, with a mark where its best trial lies at an edge of what was tried."""
  return f'{name} †' if name in chosen and chosen[name].edges else name


def score_table(chosen: Mapping[str, results.Chosen], where: str = '') -> Table:
  """Each method's answers to test prompts, beside the reference's."""
  rows = []
  for name, (found, path) in _policies(chosen).items():
    reward_SP, trained = _arrays(found, *path, 'reward'), name in chosen
    gain_SP = reward_SP - _arrays(found, 'reference', 'reward')
    row = {
      'method': _marked(name, chosen),
      'reward': results.crossed_bootstrap(reward_SP),
      'minus SFT’s': results.crossed_bootstrap(gain_SP) if trained else None,
      'win rate': _estimate(found, *path, 'win') if trained else 0.5,
      'right': _mean(found, *path, 'exact'),
      'KL': _estimate(found, *path, 'kl') if trained else 0.0,
      'junk': _mean(found, *path, 'junk'),
    }
    rows.append(row | (kept(found) if trained else {}))
  at_edge = [f'{name}: {", ".join(choice.edges)}' for name, choice in chosen.items() if choice.edges]
  return Table(
    results.titled('Answers to test prompts', where), rows,
    'reward: 1 − edits to the right answer / length. minus SFT’s: paired by prompt. win rate: against an SFT '
    'answer to the same prompt, ties half. right: share of answers. KL: log π − log π_ref of own answers, '
    'nats. junk: share of answers that are wrong and to which π_ref gives less than to 99 % of its own. '
    'mass kept: mean of π / π_ref over π_ref’s answers, 1 where no probability left them, with its effective '
    'number of answers. 95 % intervals over prompts, and over seeds where there are several. '
    + (f'† the best value was at an end of the grid ({"; ".join(at_edge)}): --widen. ' if at_edge else '')
    + results.unequal(chosen),
  )  # fmt: skip


def kept(found: Results) -> dict[str, float]:
  """The mass that a policy keeps where the reference answers, and how many answers effectively say so."""
  ratios = np.concatenate([np.asarray(each['last']['kept'], np.float64) for each in found])
  return {
    'mass kept': float(ratios.mean()),
    'effective': off_policy.effective_sample_size(ratios),
  }


def ceiling_table(finished: Sequence[Finished], where: str = '') -> Table:
  """What there is to win without training, from the reference's own answers to the test prompts."""
  result = finished[0].result
  rows = [
    {
      'policy': name,
      'reward': results.crossed_bootstrap(np.asarray(ceiling['reward'], np.float64)[None]),
      'minus SFT’s': results.crossed_bootstrap(
        (np.asarray(ceiling['reward'], np.float64) - np.asarray(result['reference']['reward']))[None]
      ),
      'KL': ceiling['kl'],
    }
    for name, ceiling in result['ceilings'].items()
  ]
  log = {'policy': 'the policy that wrote the log', 'reward': _estimate([result], 'log', 'reward')}
  return Table(
    results.titled('Ceilings', where), [*rows, log],
    'Greedy decoding takes the most probable token of the reference; best of n takes the best of n of its '
    'answers, which needs the true reward (KL is its upper bound); π* at τ is estimated from its answers, '
    'self-normalised, τ in standard deviations of the log’s rewards.',
  )  # fmt: skip


def kind_table(chosen: Mapping[str, results.Chosen], where: str = '') -> Table:
  """The mean reward by kind of task."""
  rows = []
  for name, (found, path) in _policies(chosen).items():
    kinds = np.array(found[0]['kinds'])
    reward_SP = _arrays(found, *path, 'reward')
    rows.append(
      {'method': name}
      | {
        kind: results.crossed_bootstrap(reward_SP[:, kinds == kind]) for kind in dict.fromkeys(kinds.tolist())
      }
    )
  return Table(results.titled('Reward by kind of task', where), rows)


def shape_table(chosen: Mapping[str, results.Chosen], where: str = '') -> Table:
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
    results.titled('How they differ', where), rows,
    'distinct-n: different n-grams of tokens, of all tokens. different of K: of the K answers to a prompt. '
    'best of K: the reward of the best of them.',
  )  # fmt: skip


def difference_table(chosen: Mapping[str, results.Chosen], where: str = '') -> Table:
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
    results.titled(f'Against {first}, paired by seed and prompt', where),
    rows,
    'An interval that holds 0 tells no difference.',
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


def value_table(chosen: Mapping[str, results.Chosen], where: str = '') -> Table:
  """Estimates of each policy from the log, beside the truth."""
  rows = []
  for name, choice in chosen.items():
    log = log_of(choice.of_seeds)
    size = off_policy.effective_sample_size(log.ratios)
    rows.append(
      {
        'method': name,
        'truth': _estimate(choice.of_seeds, 'last', 'test', 'reward'),
        **{_ESTIMATORS[key]: value for key, value in off_policy.estimates(log, resamples=DRAWS).items()},
        'effective samples': size,
        'of': len(log.ratios),
      }
    )
  return Table(
    results.titled('Value on test prompts, estimated from the log', where), rows,
    'truth: mean reward of the policy’s own answers. The reward model is a ridge regression on the training '
    'log, on letters and lengths. Few effective samples: the log says little of this policy.',
  )  # fmt: skip


_ESTIMATORS = {
  'ips': 'IPS',
  'self_normalised': 'self-normalised',
  'direct': 'reward model',
  'doubly_robust': 'doubly robust',
}


def trust_table(finished: Sequence[Finished], where: str = '') -> Table:
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
  return Table(results.titled(f'Estimates of {len(truth)} policies: every trial', where), rows)


def draw_frontier(finished: Sequence[Finished], chosen: Mapping[str, results.Chosen], figure: Any) -> None:
  """Reward against KL on test prompts: every trial small, the chosen ones large."""
  figure.set_size_inches(7, 5)
  axes = figure.subplots()
  for name, choice in chosen.items():
    tried = [each.result for each in finished if each.cell.algorithm == name]
    points = [[_mean([each], 'last', 'test', of) for of in ('kl', 'reward')] for each in tried]
    dots = axes.scatter(*np.array(points).T, s=15, alpha=0.5)
    best = [_mean(choice.of_seeds, 'last', 'test', of) for of in ('kl', 'reward')]
    axes.scatter(*best, s=90, color=dots.get_facecolor()[0], alpha=1, label=name)
  log = next(iter(chosen.values())).of_seeds
  axes.scatter(0, _mean(log, 'reference', 'reward'), marker='s', color='0.3', label='SFT (reference)')
  axes.axhline(_mean(log, 'reference', 'best'), color='0.7', linestyle=':', label='SFT, best of K')
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


def draws_table(finished: Sequence[Finished], order: Sequence[str]) -> Table:
  """Each method's reward less the reference's, a column for each draw of each world."""
  rows: dict[str, dict[str, Any]] = {}
  for axes in results.points(finished):
    chosen = results.choose(results.at(finished, axes), order, 'last')
    for name, choice in chosen.items():
      found = choice.of_seeds
      gained = _arrays(found, 'last', 'test', 'reward') - _arrays(found, 'reference', 'reward')
      rows.setdefault(name, {'method': name})[_where(axes)] = results.crossed_bootstrap(gained)
  return Table(
    'Reward less SFT’s, by world and draw', [rows[name] for name in order if name in rows],
    'Paired by prompt; a draw remakes prompts, demonstrations, SFT policies and log.',
  )  # fmt: skip


def _where(axes: Mapping[str, Any]) -> str:
  return f'{axes["world"]}, draw {axes["draw"]}'


def report(order: Sequence[str], finished: Sequence[Finished]) -> Report:
  """The suite's tables and figures for every draw of every world, methods in this order; and one over all."""
  figures, points = {}, results.points(finished)
  tables = [draws_table(finished, order)]
  for axes in points:
    here = results.at(finished, axes)
    chosen = results.choose(here, order, 'last')
    where = _where(axes) if len(points) > 1 else ''
    tables += [
      score_table(chosen, where), ceiling_table(here, where), kind_table(chosen, where),
      difference_table(chosen, where), shape_table(chosen, where), value_table(chosen, where),
      trust_table(here, where), training.choices(chosen, where),
    ]  # fmt: skip
    name = f'-{axes["world"]}-{axes["draw"]}' if len(points) > 1 else ''
    figures[f'frontier{name}.png'] = functools.partial(draw_frontier, here, chosen)
    figures[f'values{name}.png'] = functools.partial(draw_values, here)
  return Report([table for table in tables if table.rows], figures)
