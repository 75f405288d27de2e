import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dro_jax.data import scaling
from dro_jax.data.table import table
from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.errors import UsageError
from tests.data.generated import ratings, records, small_table

WORDS = vocabulary('bytes')
EOS = WORDS.special.eos
TRIPLETS = [
  {'id': 'a', 'prompt': 'one', 'response': 'une', 'reward': 1.0, 'label': 1},
  {'id': 'b', 'prompt': 'two', 'response': 'deux', 'reward': 0.0, 'label': 0},
  {'id': 'c', 'prompt': 'one', 'response': 'un', 'reward': 0.5, 'label': True},
]


def build(directory, triplets=TRIPLETS, **options) -> table.TokenTable:
  return table.build(triplets, WORDS, directory, **{'prompt_length': 16, 'response_length': 16} | options)


def test_a_table_returns_its_records(tmp_path):
  built = build(tmp_path / 't')
  for found in (built, table.load(tmp_path / 't')):
    assert len(found) == 3
    for i, record in enumerate(TRIPLETS):
      np.testing.assert_array_equal(found.prompt(i), [*WORDS.encode(record['prompt']), EOS])
      np.testing.assert_array_equal(found.response(i), [*WORDS.encode(record['response']), EOS])
      texts = found.ids[i], found.prompts[i], found.responses[i]
      assert texts == (record['id'], record['prompt'], record['response'])
    np.testing.assert_array_equal(found.prompt_lengths, [4, 4, 4])
    np.testing.assert_array_equal(found.response_lengths, [4, 5, 3])
    np.testing.assert_array_equal(found.prompt_index, [0, 1, 0])
    np.testing.assert_array_equal(found.rewards, [1, 0, 0.5])
    np.testing.assert_array_equal(found.columns['label'], [1, 0, 1])
    assert found.report['prompts'] == 2
    assert list(found.ids) == ['a', 'b', 'c']
    assert found.responses[1:] == ['deux', 'un']
    assert found.weights is None


def test_rewards_keep_their_precision(tmp_path):
  """seqio's packer casts floats to integers and drops zeros."""
  found = build(tmp_path / 't', [dict(TRIPLETS[0], reward=0.0), dict(TRIPLETS[1], reward=-1.0000001)])
  np.testing.assert_array_equal(found.rewards, [0.0, -1.0000001])


def test_wide_vocabularies_keep_their_ids(tmp_path):
  wide = WORDS._replace(size=70000, encode_batch=lambda texts: [np.array([69999, 3]) for _ in texts])
  found = table.build(TRIPLETS, wide, tmp_path / 't', prompt_length=8, response_length=8)
  np.testing.assert_array_equal(found.response(1), [69999, 3, EOS])


def test_overlong_responses_are_cut_without_eos_and_counted(tmp_path):
  found = build(tmp_path / 't', response_length=4)
  np.testing.assert_array_equal(found.response(1), WORDS.encode('deux'))
  np.testing.assert_array_equal(found.response(0), [*WORDS.encode('une'), EOS])
  np.testing.assert_array_equal(found.truncated, [False, True, False])
  assert (found.report['overlong_responses'], found.report['dropped_responses']) == (1, 0)
  assert found.report['overlong_response_examples'] == ['b']


def test_overlong_drop_drops_overlong_responses_and_counts_them(tmp_path):
  found = build(tmp_path / 't', response_length=4, overlong='drop')
  assert list(found.ids) == ['a', 'c']
  np.testing.assert_array_equal(found.rewards, [1.0, 0.5])
  np.testing.assert_array_equal(found.columns['label'], [1, 1])
  assert (found.report['overlong_responses'], found.report['dropped_responses']) == (1, 1)


@pytest.mark.parametrize('keep, kept', [('start', 'on'), ('end', 'ne')])
def test_overlong_prompts_are_cut_keep_eos_and_are_counted(tmp_path, keep, kept):
  found = build(tmp_path / 't', prompt_length=3, keep=keep)
  np.testing.assert_array_equal(found.prompt(0), [*WORDS.encode(kept), EOS])
  assert found.report['truncated_prompts'] == 2  # Prompts, not records.


def test_overlong_conversations_keep_the_question_and_other_prompts_the_start(tmp_path):
  talk = [{'role': 'user', 'content': 'one'}, {'role': 'assistant', 'content': 'two'}]
  talk += [{'role': 'user', 'content': 'three?'}]
  triplets = [dict(TRIPLETS[0], prompt=talk), dict(TRIPLETS[1], prompt='user: one two three?')]
  found = build(tmp_path / 'auto', triplets, prompt_length=9)
  assert [WORDS.decode(found.prompt(i)) for i in range(2)] == ['r: three?'[1:], 'user: on']
  for keep, kept in (('start', 'user: on'), ('end', ': three?')):
    found = build(tmp_path / keep, triplets, prompt_length=9, keep=keep)
    assert WORDS.decode(found.prompt(0)) == kept


def test_overlong_messages_keep_the_question(tmp_path):
  talk = [{'role': 'user', 'content': 'one or two?'}, {'role': 'assistant', 'content': 'two'}]
  found = build(tmp_path / 't', [{'id': 'a', 'messages': talk, 'reward': 1.0}], prompt_length=5)
  assert WORDS.decode(found.prompt(0)) == 'two?'


def test_overlong_hh_dialogues_keep_the_question(tmp_path):
  text = '\n\nHuman: one\n\nAssistant: two\n\nHuman: three?\n\nAssistant:'
  found = build(tmp_path / 't', [dict(TRIPLETS[0], prompt=text)], prompt_length=20)
  assert WORDS.decode(found.prompt(0)) == text[-19:]


def test_the_template_surrounds_the_prompt(tmp_path):
  found = build(tmp_path / 't', [dict(TRIPLETS[0], prompt='{x}')], template='Say {prompt}!')
  assert found.prompts[0] == 'Say {x}!'
  assert WORDS.decode(found.prompt(0)) == 'Say {x}!'
  np.testing.assert_array_equal(
    found.prompt_digests, build(tmp_path / 'u', [dict(TRIPLETS[0], prompt='{x}')]).prompt_digests
  )  # The split does not depend on the template.


@pytest.mark.parametrize('template', ['no prompt', '{prompt} {reward}', '{prompt', '{}'])
def test_bad_templates_are_refused(tmp_path, template):
  with pytest.raises(UsageError, match='template'):
    build(tmp_path / 't', template=template)


def test_a_table_takes_more_records_than_a_chunk(tmp_path, monkeypatch):
  monkeypatch.setattr(table, '_CHUNK', 7)
  data = ratings(20)
  found = small_table(tmp_path / 't', data)
  np.testing.assert_array_equal(found.response_lengths, data.response_lengths)
  np.testing.assert_array_equal(found.prompt_lengths, data.prompt_lengths)
  for i, record in enumerate(records(data)):
    assert WORDS.decode(found.prompt(i)) == record['prompt']
    assert WORDS.decode(found.response(i)) == record['response']


# --- the cache


def built_at(directory) -> int:
  return os.stat(os.path.join(directory, 'table.json')).st_ino


def test_the_same_inputs_and_options_are_not_built_again(tmp_path):
  build(tmp_path / 't')
  first = built_at(tmp_path / 't')
  build(tmp_path / 't')
  assert built_at(tmp_path / 't') == first


@pytest.mark.parametrize(
  'change',
  [
    {'triplets': [*TRIPLETS[:2], dict(TRIPLETS[2], reward=0.25)]},
    {'triplets': TRIPLETS[:2]},
    {'prompt_length': 17},
    {'response_length': 4},
    {'overlong': 'drop'},
    {'keep': 'end'},
    {'template': 'Say: {prompt}'},
  ],
)
def test_other_inputs_or_options_build_a_new_table(tmp_path, change):
  build(tmp_path / 't')
  first = built_at(tmp_path / 't')
  build(tmp_path / 't', **change)
  assert built_at(tmp_path / 't') != first
  assert os.listdir(tmp_path) == ['t']


def test_another_vocabulary_builds_a_new_table(tmp_path):
  build(tmp_path / 't')
  other = WORDS._replace(fingerprint='other', encode_batch=lambda texts: [np.array([9]) for _ in texts])
  found = table.build(TRIPLETS, other, tmp_path / 't', prompt_length=16, response_length=16)
  np.testing.assert_array_equal(found.response(0), [9, EOS])


def test_load_refuses_a_damaged_table_and_build_replaces_it(tmp_path):
  build(tmp_path / 't')
  tokens = tmp_path / 't' / 'response_tokens.bin'
  tokens.write_bytes(tokens.read_bytes()[:-2])
  with pytest.raises(UsageError, match='no complete token table'):
    table.load(tmp_path / 't')
  np.testing.assert_array_equal(build(tmp_path / 't').response_lengths, [4, 5, 3])


def test_a_failed_build_leaves_no_files(tmp_path):
  def failing():
    yield from TRIPLETS
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    build(tmp_path / 't', failing(), source_fingerprint='x')
  assert os.listdir(tmp_path) == []


def test_a_bad_record_leaves_an_old_table_unchanged(tmp_path):
  build(tmp_path / 't')
  with pytest.raises(UsageError, match="record:4: field 'response' is empty"):
    build(tmp_path / 't', [*TRIPLETS, dict(TRIPLETS[0], id='d', response='')])
  assert os.listdir(tmp_path) == ['t']
  assert len(table.load(tmp_path / 't')) == 3


def test_a_directory_with_other_files_is_not_replaced(tmp_path):
  (tmp_path / 't').mkdir()
  (tmp_path / 't' / 'thesis.tex').write_text('mine')
  with pytest.raises(UsageError, match='holds something else'):
    build(tmp_path / 't')
  assert (tmp_path / 't' / 'thesis.tex').read_text() == 'mine'
  assert os.listdir(tmp_path) == ['t']


def test_a_table_that_another_process_built_meanwhile_stays(tmp_path):
  def overtaken():
    yield from TRIPLETS
    build(tmp_path / 't', source_fingerprint='x')

  found = build(tmp_path / 't', overtaken(), source_fingerprint='x')
  assert len(found) == 3
  assert os.listdir(tmp_path) == ['t']


def test_the_error_of_an_unwritable_folder_names_it(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UsageError, match=r'cannot write there.*cache_dir'):
    build(tmp_path / 'file' / 't')


# --- errors


def test_a_table_without_records_is_refused(tmp_path):
  with pytest.raises(UsageError, match='no records'):
    build(tmp_path / 't', [])
  with pytest.raises(UsageError, match='all 3 records were dropped'):
    build(tmp_path / 't', response_length=1, overlong='drop')
  assert os.listdir(tmp_path) == []


def test_a_column_with_a_meaning_that_some_records_lack_is_refused(tmp_path):
  partial = [TRIPLETS[0], {k: v for k, v in TRIPLETS[1].items() if k != 'label'}]
  with pytest.raises(UsageError, match="record:2: field 'label' is in some records"):
    build(tmp_path / 't', partial)
  with pytest.raises(UsageError, match="record:1: field 'label' is in some records"):
    build(tmp_path / 't', partial[::-1])


def test_other_incomplete_columns_are_left_out_and_reported(tmp_path):
  found = build(tmp_path / 't', [dict(TRIPLETS[0], hter=0.5, length=3), dict(TRIPLETS[1], length=4)])
  assert set(found.columns) == {'label', 'length'}
  assert found.report['columns_left_out'] == ['hter']


@pytest.mark.parametrize(
  'options, message',
  [
    ({'overlong': 'cut'}, "overlong 'cut' is unknown"),
    ({'keep': 'middle'}, "keep 'middle' is unknown"),
    ({'response_length': 0}, 'at least 1 token'),
  ],
)
def test_bad_options_are_refused(tmp_path, options, message):
  with pytest.raises(UsageError, match=message):
    build(tmp_path / 't', **options)


# --- views


def test_a_subset_has_new_numbers_and_the_same_records(tmp_path):
  whole = small_table(tmp_path / 't')
  picked = np.array([5, 0, 17])
  part = whole.subset(picked).subset(np.array([True, False, True]))
  assert len(part) == 2
  for i, j in enumerate([5, 17]):
    np.testing.assert_array_equal(part.prompt(i), whole.prompt(j))
    np.testing.assert_array_equal(part.response(i), whole.response(j))
    assert part.ids[i] == whole.ids[j]
    assert part.prompts[i] == whole.prompts[j]
    assert part.rewards[i] == whole.rewards[j]
    assert part.columns['label'][i] == whole.columns['label'][j]


def test_scaling_leaves_the_raw_rewards(tmp_path):
  whole = small_table(tmp_path / 't')
  scaled = whole.scaled(scaling.fit('standardise', whole.rewards))
  assert scaled.rewards.mean() == pytest.approx(0, abs=1e-9)
  np.testing.assert_array_equal(scaled.raw_rewards, whole.rewards)
  np.testing.assert_array_equal(scaled.scaled(scaling.RewardScaling()).rewards, whole.rewards)


def test_a_sources_rate_is_divided_among_its_records(tmp_path):
  triplets = [
    record._replace(source='x' if i else 'y') for i, record in enumerate(table._as_records(TRIPLETS))
  ]
  found = build(tmp_path / 't', triplets, rates={'x': 3.0, 'y': 1.0})
  np.testing.assert_allclose(found.weights, [1.0, 1.5, 1.5])


def test_reading_triplets_imports_no_jax():
  script = "import sys, dro_jax.data.triplets; assert not {'jax', 'tensorflow', 'seqio'} & {*sys.modules}"
  subprocess.run([sys.executable, '-c', script], check=True)


def test_the_data_folder_imports_neither_tensorflow_nor_seqio():
  script = """
import sys
from dro_jax.data import scaling, triplets
from dro_jax.data.batches import loader, packing, plan
from dro_jax.data.records import triplets as records
from dro_jax.data.storage import hashes
from dro_jax.data.table import table
from dro_jax.data.text import vocabularies
print([name for name in ('tensorflow', 'seqio', 'flax', 'pyarrow') if name in sys.modules])
"""
  result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == '[]'


def test_the_report_is_json(tmp_path):
  report = build(tmp_path / 't').report
  assert json.loads(json.dumps(report)) == report


# --- names and damage


def test_a_columns_name_need_not_be_a_valid_file_name(tmp_path):
  names = ['a/b', '../../up', '..', '', 'x' * 300, 'ü\n']
  found = build(tmp_path / 't', [dict(TRIPLETS[0], **{name: float(i) for i, name in enumerate(names)})])
  assert {name: found.columns[name].tolist() for name in names} == {
    name: [float(i)] for i, name in enumerate(names)
  }
  assert os.listdir(tmp_path) == ['t']
  assert not any(os.path.isdir(tmp_path / 't' / name) for name in os.listdir(tmp_path / 't'))


@pytest.mark.parametrize('name', ['response_tokens.bin', 'rewards.npy', 'prompt_texts.bin', 'table.json'])
def test_a_flipped_bit_is_detected(tmp_path, name, caplog):
  build(tmp_path / 't')
  path = tmp_path / 't' / name
  sound = path.read_bytes()
  path.write_bytes(sound[:-2] + bytes([sound[-2] ^ 1]) + sound[-1:])
  with pytest.raises(UsageError, match='damaged|no complete token table'):
    table.load(tmp_path / 't')
  with caplog.at_level('WARNING', 'dro_jax.data.table.table'):
    build(tmp_path / 't')
  assert name == 'table.json' or f'damaged ({name}) and is built again' in caplog.text
  assert (name == 'table.json') or path.read_bytes() == sound
  table.load(tmp_path / 't')


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"seal": 0}', '[' * 100_000, '{"version": 3, "files": 1}'])
def test_a_folder_with_a_broken_description_is_not_a_table(tmp_path, text):
  build(tmp_path / 't')
  (tmp_path / 't' / 'table.json').write_text(text)
  with pytest.raises(UsageError, match='no complete token table'):
    table.load(tmp_path / 't')
  assert len(build(tmp_path / 't')) == 3
