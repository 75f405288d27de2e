import numpy as np
import pytest

from dro_jax.arena import trials
from dro_jax.arena.trials import Range, Turns
from dro_jax.errors import UsageError

RATES = Range(1e-4, 1e-3)
GRIDS = {
  'dro_v': {'temperature': Range(0.1, 0.4), 'learning_rate': RATES},
  'sft': {'learning_rate': RATES},
  'best_of': {'number': Range(2, 16, whole=True)},
}


@pytest.mark.parametrize('points, widen, number', [(2, 0, 4), (3, 0, 9), (2, 1, 16)])
def test_every_method_gets_as_many_trials(points, widen, number):
  for tried in trials.make_trials(GRIDS, points, widen).values():
    assert len(tried) == number
    assert len({tuple(trial.items()) for trial in tried}) == number or 'number' in tried[0]


def test_values_are_even_by_ratio_and_end_where_the_range_ends():
  tried = trials.make_trials(GRIDS, 2)
  assert tried['dro_v'] == [
    {'temperature': t, 'learning_rate': rate} for t in (0.1, 0.4) for rate in (1e-4, 1e-3)
  ]
  rates = [trial['learning_rate'] for trial in tried['sft']]
  np.testing.assert_allclose(rates, np.geomspace(1e-4, 1e-3, 4), rtol=1e-3)
  assert [trial['number'] for trial in tried['best_of']] == [2, 4, 8, 16]


def test_widening_keeps_the_step_and_what_was_tried():
  before, after = trials.make_trials(GRIDS, 3)['dro_v'], trials.make_trials(GRIDS, 3, 1)['dro_v']
  assert all(trial in after for trial in before)
  assert sorted({trial['temperature'] for trial in after}) == [0.05, 0.1, 0.2, 0.4, 0.8]


def test_nothing_to_try_is_one_trial():
  assert trials.make_trials({'copg': {}, 'ipo': {}}, 2) == {'copg': [{}], 'ipo': [{}]}


def test_unequal_numbers_of_trials_are_refused():
  three = {'a': RATES, 'b': RATES, 'c': RATES}
  with pytest.raises(UsageError, match='dro_v has 2 hyperparameters to try, others have 3'):
    trials.make_trials({'dro_v': GRIDS['dro_v'], 'other': three}, 2)
  with pytest.raises(UsageError, match='none has 0'):
    trials.make_trials({'none': {}, 'dro_v': GRIDS['dro_v']}, 2)
  with pytest.raises(UsageError, match='points=1'):
    trials.make_trials(GRIDS, 1)


def test_an_optimum_at_an_edge_is_named():
  tried = trials.make_trials({'dro_v': GRIDS['dro_v']}, 3)['dro_v']
  assert trials.edges({'temperature': 0.2, 'learning_rate': 3.162e-4}, tried) == []
  assert trials.edges({'temperature': 0.1, 'learning_rate': 3.162e-4}, tried) == ['temperature ≤ 0.1']
  assert trials.edges(tried[-1], tried) == ['temperature ≥ 0.4', 'learning_rate ≥ 0.001']
  # A range of one value has no edge.
  assert trials.edges({'temperature': 1}, [{'temperature': 1}]) == []


def test_a_budget_buys_steps():
  assert trials.steps_within(1000, 100) == 10
  assert trials.steps_within(1000, 100, spent=440) == 6
  with pytest.raises(UsageError, match='buys no step'):
    trials.steps_within(1000, 100, spent=960)


def test_a_choice_by_name_takes_turns_and_adds_no_trials():
  turns = {'optimizer': Turns(('adafactor', 'adamw'))}
  tried = trials.make_trials({name: GRIDS[name] | turns for name in ('dro_v', 'sft')}, 2)
  assert [trial['optimizer'] for trial in tried['dro_v']] == ['adafactor', 'adamw', 'adamw', 'adafactor']
  assert [trial['optimizer'] for trial in tried['sft']] == ['adafactor', 'adamw'] * 2
  for name in ('temperature', 'learning_rate'):
    pairs = {(trial[name], trial['optimizer']) for trial in tried['dro_v']}
    assert len(pairs) == 4
  assert trials.edges(tried['dro_v'][1], tried['dro_v']) == ['temperature ≤ 0.1', 'learning_rate ≥ 0.001']


def test_widening_leaves_a_choice_by_name_where_it_was():
  grids = {'dro_v': GRIDS['dro_v'] | {'optimizer': Turns(('adafactor', 'adamw'))}}
  before, after = trials.make_trials(grids, 2)['dro_v'], trials.make_trials(grids, 2, 1)['dro_v']
  assert all(trial in after for trial in before)


def test_fewer_trials_are_spread_evenly_and_end_with_the_last():
  every = trials.make_trials(GRIDS, 2)
  for most, kept in ((1, [3]), (2, [1, 3]), (3, [1, 2, 3]), (9, [0, 1, 2, 3])):
    found = trials.make_trials(GRIDS, 2, most=most)
    assert found == {name: [of_method[i] for i in kept] for name, of_method in every.items()}
  with pytest.raises(UsageError, match='trials=0'):
    trials.make_trials(GRIDS, 2, most=0)
