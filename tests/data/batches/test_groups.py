import dataclasses

import numpy as np
import pytest

from dro_jax.data.batches.groups import UnitOptions, form, merge_duplicates
from dro_jax.data.batches.loader import Loader
from dro_jax.data.batches.packing import Layout
from dro_jax.data.batches.plan import SequentialPlan, UnitPlan
from dro_jax.data.table import table
from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.errors import UsageError

RECORDS = [
  ('a', 'good', 3.0), ('a', 'bad', 1.0), ('a', 'fair', 2.0), ('a', 'good', 4.0),  # good: twice, 3.5
  ('b', 'one', 1.0),
  ('c', 'tied', 2.0), ('c', 'too', 2.0),
  ('d', 'w', 0.0), ('d', 'v', 5.0), ('d', 'u', 4.0), ('d', 't', 4.0), ('d', 's', 1.0),
]  # fmt: skip


def build(tmp_path, records=RECORDS):
  mappings = [{'prompt': p, 'response': y, 'reward': r} for p, y, r in records]
  return table.build(mappings, vocabulary('bytes'), tmp_path / 't', prompt_length=8, response_length=8)


def texts(formed):
  """Units as texts, so that a wrong renumbering shows."""
  return [[formed.table.responses[i] for i in row if i >= 0] for row in formed.members]


def test_pairs_are_a_prompts_best_response_against_its_worst(tmp_path):
  formed = form(build(tmp_path), 'pair', UnitOptions())
  assert texts(formed) == [['good', 'bad'], ['v', 'w']]
  assert formed.report['duplicates_merged'] == 1
  assert formed.report['ties_dropped'] == 1
  assert formed.report['prompts_without'] == 2
  assert formed.report['responses_left_out'] == 7  # fair, one, tied, too, u, t, s
  assert [formed.table.raw_rewards[i] for i in formed.members[0]] == [3.5, 1.0]


def test_all_pairs_differ_by_the_margin(tmp_path):
  whole = build(tmp_path)
  formed = form(whole, 'pair', UnitOptions(pairs='all'))
  brute = []
  merged, _ = merge_duplicates(whole)
  for i in range(len(merged)):
    for j in range(len(merged)):
      if merged.prompt_index[i] == merged.prompt_index[j] and merged.raw_rewards[i] > merged.raw_rewards[j]:
        brute.append([merged.responses[i], merged.responses[j]])
  assert sorted(texts(formed)) == sorted(brute)
  assert formed.report['ties_dropped'] == 2
  wide = form(whole, 'pair', UnitOptions(pairs='all', margin=2.5))
  gaps = wide.table.raw_rewards[wide.members]
  assert sorted(texts(wide)) == sorted(
    [['good', 'bad'], ['v', 'w'], ['u', 'w'], ['t', 'w'], ['v', 's'], ['u', 's'], ['t', 's']]
  )
  assert (gaps[:, 0] - gaps[:, 1] >= 2.5).all()


def test_large_groups_are_split_evenly_with_the_best_first(tmp_path):
  formed = form(build(tmp_path), 'group', UnitOptions(group_size=3))
  assert texts(formed) == [['good', 'fair', 'bad'], ['tied', 'too'], ['v', 't', 'w'], ['u', 's']]
  assert formed.members.shape == (4, 3)
  ranked = form(build(tmp_path), 'group', UnitOptions(ranked=True))
  assert texts(ranked) == [['good', 'fair', 'bad'], ['v', 'u', 's', 'w']]
  assert ranked.report['ties_dropped'] == 2


def test_scaled_rewards_do_not_change_the_units(tmp_path):
  whole = build(tmp_path)
  whole = dataclasses.replace(whole, rewards=whole.raw_rewards * 10 - 5)
  formed = form(whole, 'pair', UnitOptions())
  assert [formed.table.rewards[i] for i in formed.members[0]] == [30.0, 5.0]


@pytest.mark.parametrize(
  'records, message',
  [
    (RECORDS[:1] + RECORDS[4:5], '2 responses to 2 prompts make no pair: every prompt has one response'),
    (RECORDS[5:7], '1 dropped as ties'),
    ([RECORDS[0], RECORDS[3]], '1 responses as duplicates'),
  ],
)
def test_data_without_pairs_is_refused(tmp_path, records, message):
  with pytest.raises(UsageError, match=message):
    form(build(tmp_path, records), 'pair', UnitOptions())


ROUNDED = [
  ('a', 'x', 0.1 + 0.2), ('a', 'y', 0.3),  # Equal, and so is the mean of three times .7:
  ('b', 'x', 0.7), ('b', 'y', 0.7), ('b', 'y', 0.7), ('b', 'y', 0.7),
  ('c', 'x', 0.7), ('c', 'y', 0.4),  # .3 apart, which is .29999999999999993.
]  # fmt: skip


def test_rewards_that_differ_by_rounding_are_ties_and_make_no_pair(tmp_path):
  whole = build(tmp_path, ROUNDED)
  assert merge_duplicates(whole)[0].raw_rewards[3] != 0.7
  formed = form(whole, 'pair', UnitOptions(pairs='all', margin=0.3))
  assert texts(formed) == [['x', 'y']] and formed.report['ties_dropped'] == 2
  assert formed.table.raw_rewards.tolist() == [0.7, 0.4]
  ranked = form(whole, 'group', UnitOptions(ranked=True))
  assert texts(ranked) == [['x', 'y']] and ranked.report['ties_dropped'] == 2


def test_bad_options_are_refused():
  with pytest.raises(UsageError, match="pairs 'best' is unknown; choose from logged, best_worst, all"):
    UnitOptions(pairs='best')
  with pytest.raises(UsageError, match='group_size=1'):
    UnitOptions(group_size=1)


@pytest.fixture(scope='module')
def many(tmp_path_factory):
  """40 prompts with 1 to 6 responses."""
  rng = np.random.default_rng(0)
  records = [
    (f'p{i}', ''.join(rng.choice(list('abcdef'), rng.integers(1, 7))), rng.normal())
    for i in range(40)
    for _ in range(rng.integers(1, 7))
  ]
  return build(tmp_path_factory.mktemp('many'), records)


LAYOUTS = {
  'packed': {},
  'each with its prompt': {'encode_once': False},
  'padded': {'packed': False},
  'by four': {'row_multiple': 4},
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
  'unit, options', [('pair', UnitOptions(pairs='all')), ('group', UnitOptions(group_size=4))]
)
def test_index_arrays_point_at_the_members_in_every_layout(many, unit, options, layout):
  formed = form(many, unit, options)
  batches = UnitPlan.from_table(formed.table, formed.members, 8, seed=3)
  fitted = Layout.fit(formed.table, batches, scan=8, **LAYOUTS[layout])
  source = Loader(formed.table, batches, fitted)
  for step in (0, 1, 5):
    rows = source.rows(step)
    expected = batches.units(step)
    assert rows.units.index.shape == rows.units.mask.shape == (8, formed.members.shape[1])
    ids, valid = rows.example_id.reshape(-1), rows.valid.reshape(-1)
    np.testing.assert_array_equal(np.where(rows.units.mask, ids[rows.units.index], -1), expected)
    assert valid[rows.units.index[rows.units.mask]].all()
    assert sorted(ids[valid]) == sorted(np.unique(expected[expected >= 0]))  # Each response once.


def test_every_host_has_all_units(many):
  formed = form(many, 'group', UnitOptions())
  batches = UnitPlan.from_table(formed.table, formed.members, 8, seed=3)
  source = Loader(formed.table, batches, Layout.fit(formed.table, batches, scan=4, row_multiple=2))
  half = source.num_rows(0) // 2
  np.testing.assert_array_equal(source.rows(0, 0, half).units.index, source.rows(0, half).units.index)


def test_an_epoch_has_every_unit_once_and_is_reproducible(many):
  formed = form(many, 'pair', UnitOptions(pairs='all'))
  count = len(formed.members)
  batches = UnitPlan.from_table(formed.table, formed.members, count // 4, seed=0)
  seen = np.concatenate([batches.units(step) for step in range(5)])[:count]
  assert sorted(map(tuple, seen)) == sorted(map(tuple, formed.members))
  again = UnitPlan.from_table(formed.table, formed.members, count // 4, seed=0)
  np.testing.assert_array_equal(again.batch(3), batches.batch(3))


def test_a_uniform_epoch_deals_every_unit_once_and_whole(many):
  formed = form(many, 'pair', UnitOptions(pairs='all'))
  count, of_unit = len(formed.members), formed.table.prompt_index[formed.members[:, 0]]
  uniform, together = (
    UnitPlan.from_table(formed.table, formed.members, 8, seed=0, deal=deal)
    for deal in ('uniform', 'together')
  )
  drawn = np.concatenate([uniform.units(step) for step in range(-(-count // 8))])[:count]
  assert sorted(map(tuple, drawn)) == sorted(map(tuple, formed.members))

  def prompts_a_batch(plan):
    prompt_of = dict(zip(map(tuple, formed.members), of_unit))
    return np.mean([len({prompt_of[tuple(unit)] for unit in plan.units(step)}) for step in range(20)])

  assert prompts_a_batch(uniform) > prompts_a_batch(together) + 1
  source = Loader(formed.table, uniform, Layout.fit(formed.table, uniform, scan=4))
  assert source.rows(5).units.mask.all()


def test_a_short_last_batch_is_padded_with_masked_units(many):
  formed = form(many, 'pair', UnitOptions())
  count = len(formed.members)
  once = UnitPlan(SequentialPlan(count, count - 1), formed.members, len(formed.table))
  source = Loader(formed.table, once, Layout.fit(formed.table, once))
  units = source.rows(1).units
  assert units.mask.sum() == 2
  assert units.mask.shape == (count - 1, 2)
