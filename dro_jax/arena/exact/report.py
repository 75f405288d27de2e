"""Tables of the `exact` suite: the frontier, regret, the cost of each change, the trials."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.arena import results
from dro_jax.arena.cells import Finished
from dro_jax.arena.results import CHECKPOINTS, Chosen
from dro_jax.arena.suite import Report
from dro_jax.printing.tables import Table
from dro_jax.statistics.bootstrap import Estimate

BASELINE = 'dro_v'
# What changes from the first method to the second, and nothing else.
LADDER = (
  ('dro_oracle_value', 'dro_v', 'V is learned, not V*'),
  ('dro_v', 'dro_v+kl1', 'next-token KL is added'),
  ('dro_oracle_value', 'dro_oracle_value+kl1', 'next-token KL is added'),
  ('dro_v', 'dro_regressed_value', 'V is E[r|x], not learned with π'),
  ('dro_v', 'dro_p', 'V is a batch’s mean'),
  ('dro_v', 'dro_group_mean', 'V̂ is the mean of a prompt’s rewards'),
  ('dro_group_mean', 'dro_group_leave_one_out_mean', 'V̂ leaves the answer itself out'),
  ('dro_v', 'dro_group_log_mean_exp', 'V̂ is the log-mean-exp of a prompt’s rewards'),
  ('dro_group_log_mean_exp', 'dro_group_leave_one_out_log_mean_exp', 'V̂ leaves the answer itself out'),
  ('dro_v', 'dro_v_binary', 'rewards become thumbs'),
  ('dro_v_binary', 'kto_value', 'the loss is KTO’s, thumbs are r > E[r|x]'),
  ('kto_value', 'kto', 'the threshold is the batch’s mean'),
  ('dro_regressed_value', 'awr', 'the loss is exp(A)-weighted imitation'),
  ('awr', 'filtered_sft', 'weights are 0 or 1'),
  ('filtered_sft', 'sft', 'nothing is filtered'),
)

# One loss, every V; from the least to the most that V knows.
VALUES = (
  'dro_p', 'dro_regressed_value', 'dro_group_mean', 'dro_group_leave_one_out_mean', 'dro_group_log_mean_exp',
  'dro_group_leave_one_out_log_mean_exp', 'dro_v', 'dro_oracle_value',
)  # fmt: skip

Choices = Mapping[str, Mapping[str, Chosen]]


def report(about: Mapping[str, str], finished: Sequence[Finished]) -> Report:
  """Tables and figures for every point of the axes, and one over the axes where there are several."""
  tables, figures, points = [], {}, results.points(finished)
  for number, axes in enumerate(points):
    here = results.at(finished, axes)
    chosen = {checkpoint: results.choose(here, about, checkpoint) for checkpoint in CHECKPOINTS}
    where = _where(axes) if len(points) > 1 else ''
    tables += [
      frontier_table(chosen, about, where),
      regret_table(chosen, where),
      ladder_table(chosen['best'], where),
      trials_table(chosen['best'], where),
    ]
    name = f'frontier-{number}.png' if len(points) > 1 else 'frontier.png'
    figures[name] = functools.partial(draw_frontier, here, chosen['best'], where)
    figures[name.replace('frontier', 'curves')] = functools.partial(draw_curves, chosen['best'], where)
  tables.insert(0, values_table(finished))
  if len(points) > 1:
    tables.insert(0, axes_table(finished, about))
  return Report([table for table in tables if table.rows], figures)


def _where(axes: Mapping[str, Any]) -> str:
  return ', '.join(f'{name} {value:g}' for name, value in axes.items())


def _ordered(chosen: Mapping[str, Chosen], measure: str) -> list[str]:
  """Methods from the least to the greatest mean, those that diverged last."""

  def key(name: str) -> float:
    value = results.mean(results.by_prompt(chosen[name], 'best', measure)).value
    return value if np.isfinite(value) else np.inf

  return sorted(chosen, key=key)


def frontier_table(chosen: Choices, about: Mapping[str, str], where: str) -> Table:
  """Reward, divergence and the distance to the most reward at that divergence; landmarks beside."""
  best = chosen['best']

  def mean(name: str, measure: str, checkpoint: str = 'best') -> Estimate:
    return results.mean(results.by_prompt(chosen[checkpoint][name], checkpoint, measure))

  rows = [
    {
      'method': name,
      'below the frontier': mean(name, 'below_frontier'),
      'the same, last': mean(name, 'below_frontier', 'last').value,
      'reward': mean(name, 'reward').value,
      'KL(π‖π_ref)': mean(name, 'kl_to_reference').value,
      'no word': mean(name, 'no_word').value,
      'what it is': about[name],
    }
    for name in _ordered(best, 'below_frontier')
  ]
  return Table(
    results.titled('Reward against divergence', where), rows + _landmark_rows(best),
    'Stars and nats, means over test prompts and seeds with 95 % intervals; the checkpoint that is best by '
    'validation, unless it says last. Below the frontier: reward missing to the most at an equal KL.',
  )  # fmt: skip


def _landmark_rows(chosen: Mapping[str, Chosen]) -> list[dict[str, Any]]:
  """The reference, the logging policy and the optimum, means over seeds."""
  worlds = {
    seed: result['world']['policies'] for each in chosen.values() for seed, result in each.results.items()
  }
  names = list(next(iter(worlds.values()))) if worlds else []

  def mean(name: str, measure: str) -> float:
    return float(np.mean([world[name][measure] for world in worlds.values()]))

  return [
    {
      'method': f'({name})',
      'below the frontier': mean(name, 'below_frontier'),
      'reward': mean(name, 'reward'),
      'KL(π‖π_ref)': mean(name, 'kl_to_reference'),
      'no word': mean(name, 'no_word'),
      'what it is': f'regret {mean(name, "regret"):.4f}',
    }
    for name in names
  ]


def regret_table(chosen: Choices, where: str) -> Table:
  """J* − J at the best and the last checkpoint, and the paired difference to DRO-V's."""
  best, rows = chosen['best'], []
  for name in _ordered(best, 'regret'):
    regret = {
      checkpoint: results.by_prompt(chosen[checkpoint][name], checkpoint, 'regret')
      for checkpoint in CHECKPOINTS
    }
    row = {'method': name, 'regret, best': results.mean(regret['best'])}
    if BASELINE in best:
      base = results.by_prompt(best[BASELINE], 'best', 'regret')
      row[f'minus {BASELINE}’s'] = None if name == BASELINE else results.difference(regret['best'], base)
    row |= {
      'regret, last': results.mean(regret['last']),
      'KL(π‖π*), best': results.mean(results.by_prompt(best[name], 'best', 'kl_to_optimum')).value,
      'V − V* (rms)': _value_error(best[name]),
    }
    rows.append(row)
  note = (
    'Stars; paired by seed and prompt, intervals over both. V* at the temperature that V was fitted at. '
    + results.unequal(best)
  )
  return Table(results.titled('Regret J* − J', where), rows, note.strip())


def _value_error(chosen: Chosen) -> float | None:
  """Root mean square of V − V* over seeds: of a learned V over test prompts, of others over the log."""
  logged = [result.get('value_error') for result in chosen.results.values()]
  if None not in logged:
    return float(np.sqrt(np.mean(np.square(logged))))
  values, best = (results.by_prompt(chosen, 'best', name) for name in ('value', 'best_value'))
  if not values:
    return None
  return float(np.sqrt(np.mean([np.square(values[seed] - best[seed]) for seed in values])))


def ladder_table(chosen: Mapping[str, Chosen], where: str) -> Table:
  """The cost in regret of each change from one method to the next."""
  rows = []
  for before, after, change in LADDER:
    if before in chosen and after in chosen:
      regrets = [results.by_prompt(chosen[name], 'best', 'regret') for name in (after, before)]
      rows.append(
        {'from': before, 'to': after, 'change': change, 'regret gained': results.difference(*regrets)}
      )
  return Table(
    results.titled('What makes the difference', where), rows, 'Regret of the second minus the first, paired.'
  )


def trials_table(chosen: Mapping[str, Chosen], where: str) -> Table:
  """The trials that validation chose, whether they are at an edge of the grid, and their cost."""
  rows = []
  for name, each in chosen.items():
    some = list(each.results.values())
    rows.append(
      {
        'method': name,
        'chosen': ', '.join(f'{key} {value:.3g}' for key, value in each.hyperparameters.items()) or '–',
        'at an edge': ', '.join(each.edges) or '–',
        'trials': each.trials,
        'seeds': len(each.results),
        'best at step': ', '.join(str(result['best']['step']) for result in some),
        'steps': some[0]['steps'],
        'FLOPs': float(some[0]['flops']),
      }
    )
  flagged = sum(bool(each.edges) for each in chosen.values())
  return Table(
    results.titled('Trials', where), rows,
    f'{flagged} of {len(rows)} optima lie at an edge of their grid: a better one may lie beyond. --widen '
    'extends every grid alike. FLOPs are of training; best_of_n pays when it answers.',
  )  # fmt: skip


def values_table(finished: Sequence[Finished]) -> Table:
  """The V ladder: regret and V's error of every V, beside each other at every point of the axes."""
  points, rows = results.points(finished), {name: {'V of': name} for name in VALUES}
  differing = [name for name in (points[0] if points else ()) if len({axes[name] for axes in points}) > 1]
  for axes in points:
    where = ', '.join(f'{name} {axes[name]:g}' for name in differing)
    chosen = results.choose(results.at(finished, axes), VALUES, 'best')
    for name, each in chosen.items():
      rows[name] |= {
        results.titled('regret', where): results.mean(results.by_prompt(each, 'best', 'regret')),
        results.titled('V − V*', where): _value_error(each),
      }
  return Table(
    'The V ladder', [row for row in rows.values() if len(row) > 1],
    'Stars. V − V*: root mean square at the temperature of the chosen trial, of a learned V on test prompts, '
    'of others on the log; for dro_p that of the best constant, and a batch’s mean can be no better.',
  )  # fmt: skip


def axes_table(finished: Sequence[Finished], about: Mapping[str, str]) -> Table:
  """Every method's regret at every point of the axes."""
  rows = []
  for axes in results.points(finished):
    chosen = results.choose(results.at(finished, axes), about, 'best')
    regrets = {name: results.mean(results.by_prompt(chosen[name], 'best', 'regret')).value for name in chosen}
    rows.append({**axes, **regrets})
  return Table('Regret over the axes', rows, 'Best checkpoint; means over test prompts and seeds.')


def draw_frontier(
  finished: Sequence[Finished], chosen: Mapping[str, Chosen], where: str, figure: Any
) -> None:
  """Reward against KL: the frontier, every trial's last checkpoint, and the chosen ones by name."""
  figure.set_size_inches(9, 6)
  axes = figure.subplots()
  worlds = {each.cell.seed: each.result['world'] for each in finished}
  for number, world in enumerate(worlds.values()):
    curve = world['frontier']
    label = 'the most there is' if number == 0 else None
    axes.plot(curve['kl_to_reference'], curve['reward'], color='0.6', zorder=0, label=label)
    best = world['policies']['optimum']
    axes.scatter(best['kl_to_reference'], best['reward'], marker='*', s=120, color='0.3', zorder=3)
  for number, (name, each) in enumerate(chosen.items()):
    style = {'color': f'C{number % 10}', 'marker': 'os^'[number // 10]}
    tried = [cell.result for cell in finished if cell.cell.algorithm == name]
    axes.scatter(*_reward_and_kl(tried, 'last'), s=12, alpha=0.35, **style)
    axes.scatter(*_reward_and_kl(each.results.values(), 'best'), s=60, label=name, **style)
  most = max(world['frontier']['kl_to_reference'][0] for world in worlds.values())
  axes.set(
    xlabel='KL(π‖π_ref), nats', ylabel='expected reward, stars', xlim=(-0.1, 1.3 * most),
    title=results.titled('Test prompts: every trial (small), the chosen (large), π* (star)', where),
  )  # fmt: skip
  axes.legend(fontsize='small', ncols=2, loc='lower right')


def _reward_and_kl(some: Any, checkpoint: str) -> list[list[float]]:
  tests = [result[checkpoint]['test'] for result in some]
  return [
    [float(np.mean(np.asarray(test[name], np.float64))) for test in tests]
    for name in ('kl_to_reference', 'reward')
  ]


def draw_curves(chosen: Mapping[str, Chosen], where: str, figure: Any) -> None:
  """Validation regret by the share of the budget, the chosen trials, means over seeds."""
  figure.set_size_inches(8, 5)
  axes = figure.subplots()
  for number, (name, each) in enumerate(chosen.items()):
    curves = [result['curve'] for result in each.results.values()]
    regret = np.mean([[_number(point['validation']) for point in curve] for curve in curves], 0)
    steps = np.array([point['step'] for point in curves[0]])
    share = steps / max(steps[-1], 1)
    axes.plot(share, regret, marker='os^'[number // 10], color=f'C{number % 10}', label=name)
  axes.set(
    xlabel='share of the budget', ylabel='regret on validation prompts, stars', yscale='log',
    title=results.titled('On the way', where),
  )  # fmt: skip
  axes.legend(fontsize='small', ncols=2)


def _number(value: float | None) -> float:
  return np.nan if value is None else value
