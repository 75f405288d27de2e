"""Comparisons: read in every shape that trainers take, kept as they were judged."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dro_jax import algorithms
from dro_jax.data.batches import groups
from dro_jax.data.batches.groups import UnitOptions
from dro_jax.data.records import comparisons
from dro_jax.data.records import triplets as sources
from dro_jax.data.sources import seqio_tasks
from dro_jax.data.table import table
from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import UsageError
from dro_jax.run import batches

CIRCLE = [('A', 'B'), ('B', 'C'), ('D', 'A')]


def write(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def judged(*pairs, prompt='p'):
  return [{'prompt': prompt, 'chosen': chosen, 'rejected': rejected} for chosen, rejected in pairs]


def load(path, **options):
  options = {'prompt_length': 64, 'response_length': 64, 'validation_fraction': 0} | options
  return load_triplets(str(path), cache_dir=str(path) + '.cache', **options)


def pairs_of(formed):
  return [tuple(formed.table.responses[i] for i in row) for row in formed.members]


def user(content):
  return {'role': 'user', 'content': content}


def assistant(content):
  return {'role': 'assistant', 'content': content}


DIALOGUE = '\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2 + 2?\n\nAssistant:'

# By name: the record, its prompt, the chosen and the rejected response.
SHAPES = {
  'text': ({'prompt': '2 + 2?', 'chosen': '4', 'rejected': '5'}, '2 + 2?', '4', '5'),
  'text that begins alike': (
    {'prompt': '2 + 2?', 'chosen': 'It is 4', 'rejected': 'It is 5'}, '2 + 2?', 'It is 4', 'It is 5',
  ),
  'conversations with a prompt': (
    {'prompt': [user('2 + 2?')], 'chosen': [assistant('4')], 'rejected': [assistant('5')]},
    'user: 2 + 2?', '4', '5',
  ),
  'whole conversations': (
    {'chosen': [user('2 + 2?'), assistant('4')], 'rejected': [user('2 + 2?'), assistant('5')]},
    'user: 2 + 2?', '4', '5',
  ),
  'whole conversations beside their prompt': (  # As in ultrafeedback_binarized.
    {
      'prompt': '2 + 2?', 'messages': [user('2 + 2?'), assistant('4')],
      'chosen': [user('2 + 2?'), assistant('4')], 'rejected': [user('2 + 2?'), assistant('5')],
    },
    '2 + 2?', '4', '5',
  ),
  'a prompt that says less than the conversations': (
    {
      'prompt': '2 + 2?', 'chosen': [user('Hi'), assistant('Yes?'), user('2 + 2?'), assistant('4')],
      'rejected': [user('Hi'), assistant('Yes?'), user('2 + 2?'), assistant('5')],
    },
    'user: Hi\nassistant: Yes?\nuser: 2 + 2?', '4', '5',
  ),
  'a text beside conversations of one turn': (
    {'prompt': '2 + 2?', 'chosen': [assistant('4')], 'rejected': [assistant('5')]}, '2 + 2?', '4', '5',
  ),
  'dialogues of HH': (
    {'chosen': f'{DIALOGUE} It is 4', 'rejected': f'{DIALOGUE} It is 5'}, DIALOGUE, 'It is 4', 'It is 5',
  ),
  'texts with a common beginning': (
    {'chosen': 'The sky is blue.', 'rejected': 'The sky is black.'}, 'The sky is', 'blue.', 'black.',
  ),
}  # fmt: skip


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('suffix', ['jsonl', 'parquet', 'csv'])
def test_every_shape_becomes_two_triplets_of_one_comparison(tmp_path, shape, suffix):
  record, prompt, chosen, rejected = SHAPES[shape]
  path = tmp_path / f't.{suffix}'
  if suffix == 'parquet':
    pq.write_table(pa.Table.from_pylist([record]), path)
  elif suffix == 'csv':
    with path.open('w', newline='') as file:
      writer = csv.DictWriter(file, list(record))
      writer.writeheader()
      writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()})
  else:
    write(path, [record])
  one, two = sources.read_triplets(str(path))
  assert [(r.prompt, r.response, r.reward) for r in (one, two)] == [
    (prompt, chosen, 1),
    (prompt, rejected, 0),
  ]
  assert one.columns == two.columns == {'comparison': one.columns['comparison']}
  assert [r.id.rpartition('/')[2] for r in (one, two)] == ['chosen', 'rejected']
  assert [asked for _, asked in sources.read_prompts(str(path))] == [prompt]


def test_a_comparison_keeps_its_id_and_other_numbers(tmp_path):
  record = {'key': 7, 'q': 'p', 'better': 'A', 'worse': 'B', 'chosen': 3, 'margin': 0.5}
  columns = 'id=key,prompt=q,chosen=better,rejected=worse,gap=margin'
  one, two = sources.read_triplets(write(tmp_path / 't.jsonl', [record]), columns)
  assert (one.id, two.id, one.response, two.response) == ('7/chosen', '7/rejected', 'A', 'B')
  assert {name: value for name, value in one.columns.items() if name != 'comparison'} == {'gap': 0.5}


def test_numbers_of_comparisons_are_whole_and_distinct():
  numbers = [comparisons.number(f't.jsonl:{i}') for i in range(1000)]
  assert len(set(numbers)) == 1000
  assert all(number == int(number) < 2**53 for number in numbers)


def test_a_record_with_a_response_is_not_a_comparison(tmp_path):
  record = {'prompt': 'p', 'response': 'r', 'reward': 2, 'chosen': 'A', 'rejected': 'B'}
  (found,) = sources.read_triplets(write(tmp_path / 't.jsonl', [record]))
  assert (found.response, found.reward, found.columns) == ('r', 2.0, {})
  (found,) = sources.read_triplets(
    write(tmp_path / 's.jsonl', judged(('A', 'B'))), 'response=chosen', rewards_required=False
  )
  assert (found.response, found.reward) == ('A', None)


@pytest.mark.parametrize(
  'record, columns, message',
  [
    ({'chosen': 'Yes', 'rejected': 'No'}, None, "t.jsonl:1 has no prompt, .*they share no first word"),
    ({'chosen': 'The sky is', 'rejected': 'The sky '}, None, 'one of them is empty after'),
    ({'prompt': 'p', 'chosen': 'A', 'rejected': ' '}, None, "field 'rejected' is empty"),
    ({'prompt': 'p', 'better': 'A'}, 'chosen=better', "field 'rejected' is missing"),
    ({'prompt': 'p', 'chosen': 'A', 'rejected': 'B'}, 'prompt=q', "field 'q' .the prompt. is missing"),
    ({'chosen': [user('p'), assistant('A')], 'rejected': [user('p')]}, None, 'ends in a turn of the user'),
    ({'chosen': DIALOGUE + ' A', 'rejected': DIALOGUE}, None, "rejected: the text does not end in an answer"),
    ({'chosen': [assistant('A')], 'rejected': 'B'}, None, "after 0 others"),
  ],
)  # fmt: skip
def test_a_malformed_comparison_is_refused_with_its_place(tmp_path, record, columns, message):
  with pytest.raises(UsageError, match=message):
    list(sources.read_triplets(write(tmp_path / 't.jsonl', [record]), columns))


# As they were judged


def test_a_circle_of_comparisons_stays_three_pairs(tmp_path):
  found = load(write(tmp_path / 't.jsonl', judged(*CIRCLE)))
  formed = groups.form(found.train, 'pair', UnitOptions())
  assert pairs_of(formed) == CIRCLE
  assert (formed.report['pairs'], formed.report['units']) == ('logged', 3)
  assert (formed.report['ties_dropped'], formed.report['duplicates_merged']) == (0, 0)
  assert 'each comparison as it was judged (PAIRS=logged), 3 of them' in groups.notes(formed.report)[0]
  # Merged, they are .5, .5, 0 and 1, and only one pair is left, that nobody judged.
  merged = groups.form(found.train, 'pair', UnitOptions(pairs='best_worst'))
  assert pairs_of(merged) == [('D', 'C')]
  assert merged.report['pairs'] == 'best_worst'


def test_a_comparison_judged_both_ways_is_two_pairs(tmp_path):
  write(tmp_path / 't.jsonl', judged(('A', 'B'), ('B', 'A'), ('A', 'B')))
  formed = groups.form(load(tmp_path / 't.jsonl').train, 'pair', UnitOptions())
  assert pairs_of(formed) == [('A', 'B'), ('B', 'A'), ('A', 'B')]


def test_a_comparison_of_a_response_with_itself_makes_no_pair(tmp_path):
  """Of cut responses too, whose difference lies beyond the cut: no pair's loss has a gradient there."""
  long = 'x' * 20
  write(tmp_path / 't.jsonl', judged(('A', 'A'), ('A', 'B'), (long + 'A', long + 'B')))
  formed = groups.form(load(tmp_path / 't.jsonl', response_length=20).train, 'pair', UnitOptions())
  assert pairs_of(formed) == [('A', 'B')]
  assert formed.report['equal_sides'] == 2
  assert '2 comparisons left out, because their sides have the same tokens' in groups.notes(formed.report)[0]
  write(tmp_path / 'u.jsonl', judged(('A', 'A'), ('B', 'B')))
  with pytest.raises(UsageError, match='2 comparisons.* the sides of each are the same tokens'):
    groups.form(load(tmp_path / 'u.jsonl').train, 'pair', UnitOptions())


def test_comparisons_mixed_with_other_records_are_refused(tmp_path):
  alone = {'prompt': 'p', 'response': 'E', 'reward': 0.5}
  found = load(write(tmp_path / 't.jsonl', [*judged(*CIRCLE), alone]))
  settings = {'batch_size': 1, 'seed': 0, 'multiple': 1, 'eval_examples': None}
  with pytest.raises(UsageError, match='comparisons and other records.*PAIRS=best_worst'):
    batches.make_loaders(found, algorithms.dpo(), batches.RowOptions(), UnitOptions(), **settings)
  fed = batches.make_loaders(
    found, algorithms.dpo(), batches.RowOptions(), UnitOptions(pairs='all'), **settings
  )
  assert fed.units['pairs'] == 'all'
  assert (
    batches.make_loaders(found, algorithms.dro_v(), batches.RowOptions(), UnitOptions(), **settings).units
    is None
  )


def test_algorithms_for_single_responses_get_two_triplets_a_comparison(tmp_path):
  write(tmp_path / 't.jsonl', judged(*CIRCLE))
  train = load(tmp_path / 't.jsonl').train
  assert list(train.responses) == ['A', 'B', 'B', 'C', 'D', 'A']
  assert train.rewards.tolist() == [1, 0] * 3


def test_scaled_rewards_and_a_shuffled_subset_keep_the_pairs(tmp_path):
  write(tmp_path / 't.jsonl', judged(*CIRCLE) + judged(('E', 'F'), prompt='q'))
  train = load(tmp_path / 't.jsonl', scaling='standardise').train
  shuffled = train.subset(np.array([7, 1, 5, 3, 0, 2, 6, 4]))
  assert set(pairs_of(groups.form(shuffled, 'pair', UnitOptions()))) == {*CIRCLE, ('E', 'F')}


def test_dropping_one_side_drops_the_comparison(tmp_path):
  write(tmp_path / 't.jsonl', judged(('A', 'B' * 50), ('A', 'C')))
  train = load(tmp_path / 't.jsonl', response_length=20, overlong='drop').train
  formed = groups.form(train, 'pair', UnitOptions())
  assert pairs_of(formed) == [('A', 'C')]
  assert formed.report['comparisons_left_out'] == 1
  assert formed.report['responses_left_out'] == 1


def test_sides_with_different_prompts_are_triplets_without_a_pair(tmp_path):
  other = {'chosen': [user('p'), assistant('A')], 'rejected': [user('q'), assistant('B')]}
  same = {'chosen': [user('p'), assistant('A')], 'rejected': [user('p'), assistant('C')]}
  write(tmp_path / 't.jsonl', [other, same])
  train = load(tmp_path / 't.jsonl').train
  formed = groups.form(train, 'pair', UnitOptions())
  assert len(train) == 4
  assert pairs_of(formed) == [('A', 'C')]
  assert formed.report['comparisons_left_out'] == 1


def build(tmp_path, records):
  return table.build(records, vocabulary('bytes'), tmp_path / 't', prompt_length=8, response_length=8)


def test_rewards_make_pairs_of_best_and_worst_despite_a_column_named_comparison(tmp_path):
  records = [
    {'prompt': 'p', 'response': response, 'reward': reward, 'comparison': 1}
    for response, reward in (('A', 3), ('B', 2), ('C', 1))
  ]
  built = build(tmp_path, records)
  assert groups.resolved(UnitOptions(), built).pairs == 'best_worst'
  assert pairs_of(groups.form(built, 'pair', UnitOptions())) == [('A', 'C')]
  with pytest.raises(
    UsageError, match='PAIRS=logged keeps the pairs that were judged, and this data holds rew'
  ):
    groups.form(built, 'pair', UnitOptions(pairs='logged'))


def test_logged_pairs_have_no_margin(tmp_path):
  write(tmp_path / 't.jsonl', judged(*CIRCLE))
  with pytest.raises(UsageError, match=r'PAIR_MARGIN=0.5 is a difference of rewards, and logged comparisons'):
    groups.form(load(tmp_path / 't.jsonl').train, 'pair', UnitOptions(margin=0.5))


def test_a_file_registered_as_a_task_keeps_its_comparisons(tmp_path):
  write(tmp_path / 't.jsonl', judged(*CIRCLE))
  seqio_tasks.register('circle_of_comparisons', {'train': str(tmp_path / 't.jsonl')})
  options = {'cache_dir': str(tmp_path / 'cache'), 'validation_fraction': 0}
  found = load_triplets('circle_of_comparisons', prompt_length=8, response_length=8, **options)
  assert pairs_of(groups.form(found.train, 'pair', UnitOptions())) == CIRCLE


def test_the_held_out_part_is_paired_like_the_training_part(tmp_path):

  write(tmp_path / 't.jsonl', judged(*CIRCLE) + judged(('E', 'F'), ('G', 'F'), prompt='q'))
  whole = load(tmp_path / 't.jsonl')
  held_out = whole.train.subset(whole.train.prompt_index == 1)
  triplets = whole._replace(train=whole.train.subset(whole.train.prompt_index == 0), eval=held_out)
  feed = batches.make_loaders(
    triplets, algorithms.dpo(), batches.RowOptions(), UnitOptions(), batch_size=2, seed=0, multiple=1,
    eval_examples=None,
  )  # fmt: skip
  assert feed.units['pairs'] == 'logged'
  assert 'comparison' not in feed.train.rows(0).columns
  responses = feed.eval.table.responses
  pairs = [tuple(responses[i] for i in row) for row in feed.eval.plan.units(0)]
  assert pairs == [('E', 'F'), ('G', 'F')]


def test_the_files_order_does_not_decide_which_comparisons_are_held_out(tmp_path):
  """Where one response was compared with several, records differ in their comparison's number alone."""
  records = judged(*[('A', rejected) for rejected in 'BCDEFGHIJK'], *[(chosen, 'A') for chosen in 'BCDE'])
  found = []
  for order in (records, records[::-1]):
    train = load(write(tmp_path / f't{len(found)}.jsonl', order)).train
    sides = {}
    for number, response in zip(train.columns['comparison'], train.responses):
      sides.setdefault(number, set()).add(response)
    some = train.subset(batches.by_content(train))
    judgements = [sides[number] for number in some.columns['comparison']]
    found.append(list(zip(some.responses, some.rewards, judgements)))
  assert found[0] == found[1]


def test_the_error_of_a_comparison_without_its_rejected_side_says_so(tmp_path):
  (tmp_path / 'p.csv').write_text('prompt,chosen,rejected\nhi,hello,\n')
  with pytest.raises(UsageError, match='a comparison has both chosen and rejected'):
    list(sources.read_triplets(str(tmp_path / 'p.csv')))
