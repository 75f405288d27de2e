import os

import numpy as np
import pytest

from dro_jax.data import triplets
from dro_jax.data.batches import loader, packing, plan
from dro_jax.data.storage import fingerprints, hashes
from dro_jax.data.table import column_store
from dro_jax.errors import UsageError
from tests.data.generated import ratings, records, small_table
from tests.data.test_triplets import write as write_file


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  return small_table(tmp_path_factory.mktemp('tables') / 't')


def by_token(table):
  """Numbers that say which record and token they belong to."""
  lengths = table.response_lengths
  return np.concatenate([np.arange(n) + 100.0 * i for i, n in enumerate(lengths)]), lengths


@pytest.fixture
def store(table, tmp_path):
  return column_store.write(
    tmp_path / 'store', column_store.keys(table), {'value': table.rewards},
    token_columns={'reference_token_logps': by_token(table)}, fingerprint={'dtype': 'float32'},
    origin={'who': 'me'},
  )  # fmt: skip


def test_a_store_joins_examples_in_any_order_and_split(table, store):
  some = table.subset(np.random.default_rng(0).permutation(len(table))[: len(table) // 2])
  joined, left_out = column_store.join(some, column_store.read(store.directory))
  assert not left_out.any()
  np.testing.assert_allclose(joined.columns['value'], some.rewards, rtol=1e-6)
  some = joined.subset(np.arange(len(some))[::-2])
  for i in range(len(some)):
    numbers = some.token_column('reference_token_logps', i)
    assert len(numbers) == some.response_lengths[i]
    record = int(numbers[0]) // 100
    assert table.ids[record] == some.ids[i]
    np.testing.assert_array_equal(numbers, 100.0 * record + np.arange(len(numbers)))


def test_rows_carry_numbers_by_token(table, store):
  joined, _ = column_store.join(table, store)
  batches = plan.Plan.from_table(joined, 12, 0)
  rows = loader.Loader(joined, batches, packing.Layout.fit(joined, batches, scan=2)).rows(0, 1)
  found = rows.token_columns['reference_token_logps']
  for b, slot in zip(*np.nonzero(rows.valid)):
    where = rows.response_segments[b] == slot + 1
    np.testing.assert_array_equal(found[b][where], 100.0 * rows.example_id[b, slot] + np.arange(where.sum()))
  assert not found[rows.response_segments == 0].any()


def test_the_error_of_missing_examples_counts_and_names_them(table, tmp_path):
  some = table.subset(np.arange(len(table) - 7))
  store = column_store.write(tmp_path / 'some', column_store.keys(some), {'value': some.rewards})
  with pytest.raises(UsageError, match=rf'7 of {len(table)} examples \(r\d+, r\d+.*\.\.\.\) are not in it'):
    column_store.join(table, store)


def test_a_store_with_other_tokens_is_refused(table, store, tmp_path):
  short = small_table(tmp_path / 'short', response_length=20)
  with pytest.raises(UsageError, match='another number of response tokens'):
    column_store.join(short, store)


def test_a_store_is_found_in_its_runs_folder_and_replaces_no_other_files(table, store, tmp_path):
  inside = column_store.write(
    tmp_path / 'run' / 'columns', column_store.keys(table), {'value': table.rewards}
  )
  assert column_store.read(tmp_path / 'run').mark == inside.mark
  other = tmp_path / 'precious'
  other.mkdir()
  (other / 'thesis.tex').write_text('text')
  with pytest.raises(UsageError, match='holds something else'):
    column_store.write(other, column_store.keys(table))
  assert os.listdir(other) == ['thesis.tex']
  with pytest.raises(UsageError, match='no complete column store'):
    column_store.read(other)
  again = column_store.write(store.directory, column_store.keys(table), {'value': -table.rewards})
  assert again.mark != store.mark
  assert set(os.listdir(tmp_path)) == {'run', 'precious', 'store'}


def test_equal_texts_share_their_stored_numbers(table, tmp_path):
  twice = table.subset(np.array([3, 1, 3]))
  store = column_store.write(
    tmp_path / 'twice', column_store.keys(twice), token_columns={'x': by_token(twice)}
  )
  assert len(store.keys) == 2
  joined, _ = column_store.join(twice, store)
  np.testing.assert_array_equal(joined.token_column('x', 0), joined.token_column('x', 2))


def test_mismatched_pairs_are_pairs_of_other_texts_in_their_slots(table, tmp_path):
  batches = plan.Plan.from_table(table, 48, 0)
  fitted = packing.Layout.fit(table, batches, row_multiple=2, scan=2)
  bare = loader.Loader(table, batches, fitted, mismatched=True)
  pairs = bare.mismatched_pairs(0)
  assert (table.prompt_index[pairs.prompt] != table.prompt_index[pairs.response]).all()
  mismatched = bare.rows(0).mismatched
  np.testing.assert_array_equal(np.argwhere(mismatched.valid), sorted(zip(pairs.row, pairs.slot)))
  numbers = 1.0 + np.arange(len(pairs.row))
  keys = column_store.keys_of(table.prompt_digests[pairs.prompt], table.response_digests(pairs.response))
  store = column_store.write(
    tmp_path / 's', column_store.keys(table), pairs=column_store.Pairs(keys, {'logps': numbers})
  )
  feed = loader.Loader(column_store.join(table, store).table, batches, fitted, mismatched=True)
  whole, half = feed.rows(0), feed.rows(0, 1, 2)
  np.testing.assert_array_equal(whole.columns['logps'][pairs.row, pairs.slot], numbers)
  np.testing.assert_array_equal(whole.columns['logps'] > 0, mismatched.valid)
  np.testing.assert_array_equal(whole.columns['logps'][1:2], half.columns['logps'])
  for row, slot, prompt, response in zip(
    pairs.row, pairs.slot, pairs.prompt.tolist(), pairs.response.tolist()
  ):
    where = mismatched.response_segments[row] == slot + 1
    np.testing.assert_array_equal(mismatched.response_tokens[row][where], table.response(response))
    there = whole.prompt_segments[row] == mismatched.response_prompt[row][where][0]
    np.testing.assert_array_equal(whole.prompt_tokens[row][there], table.prompt(prompt))
  with pytest.raises(UsageError, match='made for another plan'):
    feed.rows(1)


def test_loading_triplets_joins_both_parts(tmp_path):
  file = write_file(tmp_path / 't.jsonl', records(ratings(60)))
  options = {'prompt_length': 64, 'response_length': 96, 'cache_dir': str(tmp_path / 'cache')}
  plain = triplets.load_triplets(file, validation_fraction=0.25, scaling='standardise', **options)
  whole = triplets.load_triplets(file, validation_fraction=0, **options).train
  value = np.where(np.arange(len(whole)) % 5 == 0, np.nan, whole.rewards)
  store = column_store.write(tmp_path / 's', column_store.keys(whole), {'value': value})
  found = triplets.load_triplets(
    file, validation_fraction=0.25, scaling='standardise', columns_from=store.directory, **options
  )
  for part in ('train', 'eval'):
    joined = getattr(found, part)
    np.testing.assert_allclose(joined.columns['value'], joined.raw_rewards, rtol=1e-6)
    assert 0 < len(joined) < len(getattr(plain, part))
  assert found.scaling == plain.scaling
  assert found.report['columns_from'] == [store.mark]
  assert found.report['train_records'] == len(found.train)


def test_folds_divide_prompts_and_are_independent_of_the_split(table):
  fold = hashes.folds(table.prompt_digests, 3)
  assert set(fold.tolist()) == {0, 1, 2}
  for index in np.unique(table.prompt_index):
    assert len(set(fold[table.prompt_index == index].tolist())) == 1
  digests = hashes.digests(str(i) for i in range(4000))
  held = hashes.by_prompt_hash(digests, 0.25)
  np.testing.assert_allclose(np.bincount(hashes.folds(digests, 4)[held]) / held.sum(), 0.25, atol=0.05)


def test_differences_names_the_changed_inputs():
  ours, theirs = {'a': 1, 'model': {'width': 8, 'depth': 2}}, {'a': 1, 'model': {'width': 16, 'depth': 2}}
  assert list(fingerprints.differences(ours, theirs)) == ['model.width: 16 there, 8 here']


def test_a_damaged_store_is_refused(table, store):
  path = os.path.join(store.directory, 'column.value.npy')
  with open(path, 'rb') as file:
    sound = file.read()
  with open(path, 'wb') as file:
    file.write(sound[:-1] + bytes([sound[-1] ^ 1]))
  with pytest.raises(UsageError, match=r'the column store is damaged \(column.value.npy\); make it again'):
    column_store.read(store.directory)


def test_a_columns_name_cannot_leave_the_folder(table, tmp_path):
  found = column_store.write(tmp_path / 's', column_store.keys(table), {'../../up': table.rewards})
  assert list(found.columns) == ['../../up']
  assert os.listdir(tmp_path) == ['s']
