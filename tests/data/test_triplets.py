import json
import os
import pathlib
import warnings

import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.data.sources import find, task_modules
from dro_jax.data.table import cache as table_cache
from dro_jax.data.table import table
from dro_jax.data.text import tokenise
from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.data.triplets import (
  Triplets,
  few_held_out,
  load_triplets,
  read_again,
  read_parts,
  require_rewards,
  with_missing_rewards_zero,
)
from dro_jax.errors import UsageError
from dro_jax.run import batches
from tests.data.generated import ratings, records
from tests.data.text import tiny_tokenizers

MODULE = """
from dro_jax.data.sources import seqio_tasks
import seqio
import tensorflow as tf

def shout(dataset):
  return dataset.map(lambda x: {**x, 'prompt': tf.strings.upper(x['prompt'])})

files = {'train': %(train)r, 'validation': %(eval)r}
seqio_tasks.register('%(name)s_plain', files)
seqio_tasks.register('%(name)s_loud', files, preprocessors=[shout])
words = seqio.Feature(seqio.ByteVocabulary())
seqio.TaskRegistry.add(
  '%(name)s_tokens',
  source=seqio.TaskRegistry.get('%(name)s_plain').source,
  preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
  output_features={'prompt': words, 'response': words},
)
seqio.MixtureRegistry.add('%(name)s_mix', [('%(name)s_plain', 3.0), ('%(name)s_loud', 1.0)])
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'dro_jax'


def write(path, triplets) -> str:
  path.write_text(''.join(json.dumps(triplet) + '\n' for triplet in triplets))
  return str(path)


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
  train = write(tmp_path / 'train.jsonl', records(ratings(60)))
  return train, write(tmp_path / 'eval.jsonl', records(ratings(10, seed=1), seed=1))


def load(*args, **options) -> Triplets:
  return load_triplets(*args, **{'prompt_length': 64, 'response_length': 96} | options)


def test_the_split_holds_out_whole_prompts_and_keeps_all_records(files):
  train, held_out, _, report = load(files[0], validation_fraction=0.25)
  assert not set(train.prompts) & set(held_out.prompts)
  assert sorted([*train.ids, *held_out.ids]) == sorted(record['id'] for record in records(ratings(60)))
  assert (report['train_records'], report['eval_records']) == (len(train), len(held_out))
  assert report['split'] == {'by': 'prompt hash', 'fraction': 0.25, 'salt': ''}
  assert json.loads(json.dumps(report)) == report


def test_the_split_is_the_same_with_another_template_vocabulary_and_order(files, tmp_path):
  held_out = load(files[0], validation_fraction=0.25).eval
  again = write(tmp_path / 'again.jsonl', records(ratings(60))[::-1])
  other = load(again, validation_fraction=0.25, template='Say: {prompt}').eval
  assert set(held_out.ids) == set(other.ids)


def test_eval_triplets_replace_the_split(files):
  train, held_out, _, report = load(files[0], eval_triplets=files[1])
  assert (len(train), len(held_out)) == (len(records(ratings(60))), len(records(ratings(10, seed=1))))
  assert report['eval_prompts_in_train'] == 0
  assert load(files[0], eval_triplets=files[0]).report['eval_prompts_in_train'] == 60


def test_paths_are_taken_as_their_texts_are(files):
  train, held_out = (pathlib.Path(file) for file in files)
  as_paths, as_texts = load([train], eval_triplets=held_out), load([files[0]], eval_triplets=files[1])
  assert as_paths.report == as_texts.report and json.dumps(as_paths.report)
  assert list(load(train, validation_fraction=0.0).train.ids) == list(as_texts.train.ids)


def test_a_validation_fraction_of_0_holds_out_nothing(files):
  assert load(files[0], validation_fraction=0).eval is None


def parts(*args, **options):
  options = {'prompt_length': 64, 'response_length': 96, 'overlong': 'truncate', 'keep': 'auto'} | options
  return read_parts(*args, **{'template': '{prompt}', **options})


@pytest.mark.parametrize('apart', [False, True])
def test_parts_are_read_again_by_their_report(apart, files, cache):
  made = parts(
    files[0], eval_triplets=files[1] if apart else None, template='Q: {prompt}', prompt_length=8,
    response_length=96, overlong='drop', keep='end', columns='label=', map_reward='numbers',
    rewards='reward=2', validation_fraction=0.2, test_fraction=0.1, split_salt='s', data_dir=str(cache),
  )  # fmt: skip
  again = read_parts(**read_again(json.loads(json.dumps(made.report))), vocabulary='bytes')
  assert json.dumps(again.report) == json.dumps(made.report)


def test_prompts_kept_for_tests_neither_train_nor_validate(files):
  train, held_out, test, report = parts(files[0], validation_fraction=0.25, test_fraction=0.3)
  prompts = [set(table.prompts) for table in (train, held_out, test)]
  assert not prompts[0] & prompts[1] and not prompts[2] & (prompts[0] | prompts[1])
  ids = sorted([*train.ids, *held_out.ids, *test.ids])
  assert ids == sorted(record['id'] for record in records(ratings(60)))
  run = load(files[0], validation_fraction=0.25, test_fraction=0.3)
  assert [*run.train.ids] == [*train.ids] and [*run.eval.ids] == [*held_out.ids]
  assert run.report['test_split'] == {'by': 'prompt hash', 'fraction': 0.3, 'salt': ''}
  assert run.report['test_prompts'] == len(prompts[2])
  assert run.report['test_fingerprint'] == test.fingerprint()
  assert report['options'] == run.report['options'] and json.loads(json.dumps(report)) == report


def test_a_test_part_takes_prompts_from_both_other_parts_and_moves_none(files):
  without = parts(files[0], validation_fraction=0.25)
  train, held_out, test, _ = parts(files[0], validation_fraction=0.25, test_fraction=0.3)
  tested = set(test.prompts)
  for before, now in ((without.train, train), (without.eval, held_out)):
    assert set(now.prompts) == set(before.prompts) - tested
    assert set(before.prompts) & tested
  assert without.test is None and not any(name.startswith('test') for name in without.report)


def test_the_test_part_is_decided_by_contents_and_the_salt(files, tmp_path):
  test = parts(files[0], test_fraction=0.2).test
  again = write(tmp_path / 'again.jsonl', records(ratings(60))[::-1])
  assert set(parts(again, test_fraction=0.2, template='Say: {prompt}').test.ids) == set(test.ids)
  assert set(test.ids) < set(parts(files[0], test_fraction=0.4).test.ids)
  assert set(parts(files[0], test_fraction=0.2, split_salt='x').test.ids) != set(test.ids)


def test_held_out_files_lose_the_prompts_that_are_kept_for_tests(files):
  train, held_out, test, _ = parts(files[0], eval_triplets=files[0], test_fraction=0.3)
  assert set(held_out.ids) == set(train.ids) and not set(test.ids) & set(held_out.ids)
  only_tests = [record for record in records(ratings(60)) if record['id'] in set(test.ids)]
  path = write(pathlib.Path(files[0]).with_name('tests.jsonl'), only_tests)
  with pytest.raises(UsageError, match='all of its prompts are among those that test_fraction'):
    load(files[0], eval_triplets=path, test_fraction=0.3)


@pytest.mark.parametrize('fraction', [-0.1, 1.0])
def test_a_test_fraction_out_of_range_is_refused(fraction, files):
  with pytest.raises(UsageError, match='test_fraction must be at least 0 and below 1'):
    load(files[0], test_fraction=fraction)


def test_a_test_part_without_records_is_refused(tmp_path):
  path = write(tmp_path / 'one.jsonl', [{'prompt': 'p', 'response': 'r', 'reward': 1}])
  with pytest.raises(UsageError, match=r'pass another share \(--set TEST_FRACTION=0.2'):
    load(path, validation_fraction=0, test_fraction=0.2)


def test_scaling_is_fitted_on_training_rewards_alone(files):
  train, held_out, scaling, report = load(files[0], eval_triplets=files[1], scaling='standardise')
  assert train.rewards.mean() == pytest.approx(0, abs=1e-9)
  assert train.rewards.std() == pytest.approx(1)
  np.testing.assert_allclose(held_out.rewards, (held_out.raw_rewards - scaling.shift) / scaling.scale)
  assert report['scaling']['scale'] == scaling.scale
  assert 'within_prompt_sd' in report['scaling']['statistics']


def test_a_second_run_reads_the_cache(files, cache):
  load(files[0])
  before = {name: os.stat(cache / name / 'table.json').st_ino for name in os.listdir(cache)}
  load(files[0], scaling='minmax', validation_fraction=0.5)  # Neither belongs to the table.
  assert {name: os.stat(cache / name / 'table.json').st_ino for name in os.listdir(cache)} == before
  write(pathlib.Path(files[0]), records(ratings(61)))
  assert len(load(files[0], validation_fraction=0).train) == len(records(ratings(61)))


@pytest.mark.parametrize('overlong, fate', [('truncate', 'cut, without EOS'), ('drop', 'left out')])
def test_overlong_texts_are_logged(files, caplog, overlong, fate):
  with caplog.at_level('WARNING', 'dro_jax.data.table.cache'):
    report = load(files[0], response_length=20, prompt_length=20, overlong=overlong).report['train_table']
  count, total = report['overlong_responses'], report['records'] + report['dropped_responses']
  assert f'{count} of {total} responses are longer than 20 tokens and {fate}' in caplog.text
  assert 'prompts are longer than 20 tokens and cut' in caplog.text


def test_records_without_rewards_are_zeros_for_sft_and_refused_where_rewards_are_needed(tmp_path):
  triplets = [{'prompt': f'p{i}', 'response': 'mt', 'post_edit': f'pe{i}'} for i in range(40)]
  path = write(tmp_path / 't.jsonl', triplets)
  triplets = load(path, columns='response=post_edit', validation_fraction=0.1)
  train = triplets.train
  assert all(text.startswith('pe') for text in train.responses)
  assert np.isnan(train.raw_rewards).all() and train.report['without_reward'] == 40
  assert triplets.scaling.statistics == {'count': 0}
  with_zeros = with_missing_rewards_zero(triplets)
  assert not with_zeros.train.rewards.any() and not with_zeros.eval.raw_rewards.any()
  assert with_zeros.train.fingerprint() == train.fingerprint()  # As earlier versions wrote it.
  with pytest.raises(
    UsageError, match=r't.jsonl:1: .*reward.*dro_v needs rewards, and \d+ of \d+ records have'
  ):
    require_rewards(triplets, 'dro_v')


def test_sft_and_dro_v_share_the_table_of_one_file(tmp_path, cache):
  rows = [{'prompt': f'p{i}', 'response': f'r{i}', 'reward': i} for i in range(20)]
  path = write(tmp_path / 't.jsonl', rows)
  tables = [
    batches.admitted(load(path, validation_fraction=0.3), make()).train
    for make in (algorithms.sft, algorithms.dro_v)
  ]
  assert tables[0].directory == tables[1].directory and len(os.listdir(cache)) == 1
  np.testing.assert_array_equal(tables[0].rewards, tables[1].rewards)


def test_an_unknown_reward_word_is_refused_by_dro_v_and_ignored_by_sft(tmp_path, cache):
  rows = [{'prompt': f'p{i}', 'response': f'r{i}', 'reward': 'up'} for i in range(20)]
  path = write(tmp_path / 't.jsonl', [*rows[:7], rows[7] | {'reward': 'sideways'}, *rows[8:]])
  assert not batches.admitted(
    load(path, map_reward='up=0', validation_fraction=0), algorithms.sft()
  ).train.rewards.any()
  message = (
    r"t.jsonl:8: field 'reward' is 'sideways', which --map_reward \('up'\) does not name; the words so far: "
    r"'up'. Give it a number there, or remove the record. dro_v needs rewards, and 1 of 20 records have none."
  )
  with pytest.raises(UsageError, match=message):
    batches.admitted(load(path, map_reward='up=0', validation_fraction=0), algorithms.dro_v())
  assert len(os.listdir(cache)) == 1


def test_scaling_leaves_out_records_without_a_reward(tmp_path):
  rows = [{'prompt': f'p{i}', 'response': 'r', 'reward': i if i % 2 else None} for i in range(8)]
  path = write(tmp_path / 't.jsonl', rows)
  triplets = load(path, scaling='standardise', validation_fraction=0)
  assert triplets.scaling.statistics['count'] == 4 and triplets.scaling.shift == 4
  np.testing.assert_array_equal(np.isnan(triplets.train.rewards), [True, False] * 4)


def test_scaling_without_any_reward_names_the_first_record_that_lacks_one(tmp_path):
  rows = [{'prompt': f'p{i}', 'response': 'r', 'reward': 'up'} for i in range(8)]
  path = write(tmp_path / 't.jsonl', rows)
  with pytest.raises(
    UsageError, match=r"no record has a reward.*t.jsonl:1: field 'reward' is 'up'.*map_reward"
  ):
    load(path, scaling='minmax', validation_fraction=0)


@pytest.mark.parametrize('fraction', [1, -0.5])
def test_a_bad_fraction_is_refused(files, fraction):
  with pytest.raises(UsageError, match='validation_fraction must be'):
    load(files[0], validation_fraction=fraction)


def test_a_split_with_an_empty_side_is_refused(tmp_path):
  path = write(tmp_path / 't.jsonl', records(ratings(1)))
  with pytest.raises(UsageError, match=r'leaves no record on one side; pass --eval_triplets'):
    load(path, validation_fraction=0.1)


def test_bad_input_leaves_no_files(tmp_path, cache):
  path = write(tmp_path / 't.jsonl', [*records(ratings(5)), {'prompt': 'p', 'response': '', 'reward': 1}])
  with pytest.raises(UsageError, match=r't.jsonl:\d+: '):
    load(path)
  assert not cache.exists() or os.listdir(cache) == []


def test_no_name_in_the_data_leads_out_of_the_cache(tmp_path, cache):
  up = '../../up'
  triplets = [
    {'id': f'{up}/{i}', 'prompt': up, 'response': up, 'reward': i, up: 1, '/up': 2, 'behaviour_sampler': up}
    for i in range(3)
  ]
  long = tmp_path / 'in' / f'..{"x" * 240}.jsonl'
  long.parent.mkdir()
  train = load(write(long, triplets), validation_fraction=0).train
  assert set(train.columns) == {up, '/up', 'behaviour_sampled'}
  assert set(train.ids) == {f'{up}/{i}' for i in range(3)}
  assert set(os.listdir(tmp_path)) == {'in', 'cache'} and os.listdir(tmp_path / 'cache') == ['dro_jax']
  (folder,) = os.listdir(cache)
  assert folder.startswith('..xxx') and all(
    os.path.isfile(cache / folder / n) for n in os.listdir(cache / folder)
  )


def test_a_damaged_cached_table_is_built_again(files, cache):
  before = load(files[0], validation_fraction=0).train
  (folder,) = os.listdir(cache)
  rewards = cache / folder / 'rewards.npy'
  rewards.write_bytes(rewards.read_bytes()[:-8] + bytes(8))
  np.testing.assert_array_equal(load(files[0], validation_fraction=0).train.rewards, before.rewards)


def test_few_held_out_prompts_are_said_to_decide_nothing():
  said = few_held_out(1, 60)
  assert '1 of 60 prompts is held out' in said and '--set VALIDATION_FRACTION=0.2 holds out about 12' in said
  assert 'gather more prompts' in few_held_out(2, 15)
  assert few_held_out(0, 60) == few_held_out(10, 60) == ''


def test_conversations_are_rendered_by_the_runs_template(tmp_path):
  talk = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]
  path = write(tmp_path / 't.jsonl', [{'messages': talk, 'thumb': '👍'}])
  options = {'columns': 'reward=thumb', 'map_reward': '👍=1', 'validation_fraction': 0}
  found = [load(path, **options), load(path, chat_template='{content}', **options)]
  assert [list(triplets.train.prompts) for triplets in found] == [['user: q'], ['q']]
  assert [t.report['options']['chat_template'] for t in found] == ['{role}: {content}', '{content}']
  assert found[0].train.rewards.tolist() == [1.0]


@pytest.fixture(scope='module')
def qwen(tmp_path_factory) -> str:
  return tiny_tokenizers.qwen(tmp_path_factory.mktemp('qwen'))


TALK = [
  {'role': 'user', 'content': 'Hi'},
  {'role': 'assistant', 'content': 'Yes?'},
  {'role': 'user', 'content': 'So?'},
]


def test_prompts_of_a_chat_model_go_through_its_template(tmp_path, qwen):
  words = vocabulary(qwen)
  path = write(tmp_path / 't.jsonl', [
    {'prompt': 'Hello', 'response': 'there', 'reward': 1}, {'prompt': TALK, 'response': 'Well', 'reward': 0},
    {'prompt': TALK[2:], 'response': 'a <|im_end|>', 'reward': 0},
    {'prompt': 'Hello', 'response': 'you', 'reward': 2},
  ])  # fmt: skip
  found = load(path, vocabulary=qwen, validation_fraction=0)
  table = found.train
  assert [table.prompts[i] for i in range(4)] == ['Hello', json.dumps(TALK), 'So?', 'Hello']
  for i in range(4):
    [(prompt, _)] = tokenise.prompts([table.prompts[i]], words, by_chat=True)
    [response] = tokenise.responses([table.prompts[i]], [table.responses[i]], words, by_chat=True).ids
    np.testing.assert_array_equal(table.prompt(i), prompt)
    np.testing.assert_array_equal(table.response(i), response)
  assert (table.response(2) == words.special.eos).sum() == 1
  assert found.report['options']['chat'] is True and table.report['tokenised_apart'] == 0
  assert load(path, vocabulary=qwen, validation_fraction=0).train.directory == table.directory


def test_a_chat_models_template_can_be_switched_off(tmp_path, qwen, caplog):
  words = vocabulary(qwen)
  path = write(tmp_path / 't.jsonl', [
    {'prompt': TALK, 'response': ' Well', 'reward': 1},
    {'prompt': 'What is the cap', 'response': 'ital', 'reward': 0},
  ])  # fmt: skip
  with_template, found = (
    load(path, vocabulary=qwen, chat=chat, validation_fraction=0) for chat in (None, False)
  )
  assert with_template.train.directory != found.train.directory
  table = found.train
  assert table.prompts[0] == 'user: Hi\nassistant: Yes?\nuser: So?'
  np.testing.assert_array_equal(table.prompt(0), words.encode(table.prompts[0]))
  np.testing.assert_array_equal(table.response(1), [*words.encode('ital'), words.special.eos])
  assert found.report['options']['chat'] is False and table.report['tokenised_apart'] == 1
  assert '1 of 2 responses are tokenised apart from their prompts' in caplog.text


def test_a_record_that_the_models_template_refuses_is_named(tmp_path):
  folder = tiny_tokenizers.gemma(tmp_path / 'gemma')
  record = {'prompt': [{'role': 'system', 'content': 'Be brief.'}, *TALK[:1]], 'response': 'a', 'reward': 0}
  path = write(tmp_path / 't.jsonl', [{'prompt': 'q', 'response': 'a', 'reward': 1}, record])
  with pytest.raises(UsageError, match=r't.jsonl:2: .*There is no system turn.*CHAT=false'):
    load(path, vocabulary=folder, validation_fraction=0)


def test_settings_that_the_models_template_makes_void_are_refused(tmp_path, qwen, files):
  with pytest.raises(UsageError, match='CHAT_TEMPLATE=.*has a chat template of its own'):
    load(files[0], vocabulary=qwen, chat_template='{content}')
  with pytest.raises(UsageError, match='CHAT=true, but'):
    load(files[0], chat=True)
  path = write(tmp_path / 't.jsonl', [{'prompt': TALK, 'response': 'a', 'reward': 1}])
  with pytest.raises(UsageError, match='TEMPLATE=.*is a conversation'):
    load(path, vocabulary=qwen, template='Q: {prompt}', validation_fraction=0)


def test_tables_of_a_t5_are_found_under_the_names_that_they_always_had():
  """These are those of the first version with tables of decoder-only models."""
  options = {
    'prompt_length': 8,
    'response_length': 9,
    'overlong': 'drop',
    'keep': 'end',
    'template': 'Q: {prompt}',
  }
  described = table.description('x', vocabulary('bytes'), **options)
  assert described['fingerprint'] == '3133099940f4c5cf9f6bcbd8c29ac1ae' and 'chat' not in described['options']
  assert table_cache.table_name(find.Source('s', None, 'y'), vocabulary('bytes'), options) == 's-eb6c2bb2ffc5'


def test_load_triplets_refuses_an_empty_name():
  with pytest.raises(UsageError, match='there are no triplets'):
    load('')


# --- seqio


@pytest.fixture
def module(files, tmp_path, request) -> tuple[str, str]:
  """A user's task module and the stem of its tasks' names."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import seqio
    import tensorflow_datasets  # noqa: F401
  name = f'triplets_{abs(hash(request.node.name))}'
  path = tmp_path / f'{name}.py'
  path.write_text(MODULE % {'train': files[0], 'eval': files[1], 'name': name})
  yield str(path), name
  for task in ('mix', 'tokens', 'loud', 'plain'):
    registry = seqio.MixtureRegistry if task == 'mix' else seqio.TaskRegistry
    if f'{name}_{task}' in registry.names():
      registry.remove(f'{name}_{task}')


def test_a_seqio_task_gives_the_table_of_its_files(files, module):
  path, name = module
  found = load(f'{name}_plain', task_modules=path, eval_triplets=f'{name}_plain')
  want = load(files[0], eval_triplets=files[1])
  for ours, theirs in zip(found[:2], want[:2]):
    assert list(ours.ids) == list(theirs.ids)
    assert list(ours.prompts) == list(theirs.prompts)
    np.testing.assert_array_equal(ours.rewards, theirs.rewards.astype(np.float32))
    for i in range(len(ours)):
      np.testing.assert_array_equal(ours.response(i), theirs.response(i))


def test_a_task_that_tokenises_gives_its_original_text(files, module):
  path, name = module
  found = load(f'{name}_tokens', task_modules=path, validation_fraction=0).train
  want = load(files[0], validation_fraction=0).train
  assert list(found.prompts) == list(want.prompts)
  np.testing.assert_array_equal(found.response(3), want.response(3))


def test_a_mixtures_rates_are_weights(module):
  path, name = module
  train = load(f'{name}_mix', task_modules=[path], validation_fraction=0).train
  loud = np.array([prompt[3:].isupper() for prompt in train.prompts])
  assert 0 < loud.sum() < len(train)
  assert train.weights[loud].sum() / train.weights.sum() == pytest.approx(0.25)
  held = load(f'{name}_mix', task_modules=[path], validation_fraction=0.3)
  assert len(held.train.weights) == len(held.train)


def test_a_tasks_fingerprint_follows_its_files_and_code(files, module, tmp_path):
  path, name = module
  task_modules.import_module(path)
  before = {task: find.find(f'{name}_{task}').fingerprint for task in ('plain', 'loud')}
  assert before['plain'] != before['loud']
  assert find.find(f'{name}_plain').fingerprint == before['plain']
  write(tmp_path / 'train.jsonl', records(ratings(61)))
  assert find.find(f'{name}_plain').fingerprint != before['plain']
  # What its functions call counts too.
  loud = find.find(f'{name}_loud').fingerprint
  with open(path, 'a') as file:
    file.write('\nLOUDER = 2\n')
  assert find.find(f'{name}_loud').fingerprint != loud


def test_the_error_of_an_unknown_name_lists_the_known_ones(module):
  path, name = module
  with pytest.raises(UsageError, match=rf'neither a triplet file.*{name}_plain.*TASK_MODULES'):
    load(f'{name}_plane', task_modules=path)
  with pytest.raises(UsageError, match="no split 'test'; it has train, validation"):
    load(f'{name}_plain', task_split='test')
  with pytest.raises(UsageError, match=r"task module 'no\.such\.module'"):
    load('x', task_modules='no.such.module')


def test_a_task_module_that_raises_is_refused_with_its_line(tmp_path):
  path = tmp_path / 'broken_tasks_of_this_test.py'
  path.write_text('\n1 / 0')
  said = r"task module '.*': importing .* raised ZeroDivisionError: .*broken_tasks_of_this_test.py, line 2\)"
  for _ in range(2):
    with pytest.raises(UsageError, match=said):
      load('x', task_modules=str(path))


# --- real input


@pytest.mark.parametrize(
  'name, records, prompts',
  [
    ('mlqe_pe/ro-en.train', 7000, 7000),
    ('mlqe_pe/en-de.train', 7000, 7000),
    ('wmt_mqm/ted_en-de', 4523, 521),
    ('emnlp17_d2t/medians', 2460, None),
  ],
)
def test_real_files_load(data_dir, vocab_file, name, records, prompts):
  words = vocabulary(str(vocab_file))
  train, held_out, _, report = load_triplets(
    str(data_dir / f'{name}.jsonl.gz'), vocabulary=words, scaling='standardise', validation_fraction=0.1
  )
  assert len(train) + len(held_out) == records
  assert report['train_table']['overlong_responses'] == 0
  if prompts:
    assert report['train_prompts'] + report['eval_prompts'] == prompts
  assert train.rewards.std() == pytest.approx(1)


def test_a_table_of_an_older_reader_is_not_used(tmp_path, monkeypatch):
  path = tmp_path / 't.jsonl'
  path.write_text('{"prompt": "p", "response": "r", "reward": 1}\n')
  now = find.find(str(path)).fingerprint
  monkeypatch.setattr(find.triplets, 'READING', 1)
  assert find.find(str(path)).fingerprint != now


def test_the_error_of_a_mistyped_file_suggests_the_right_one(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'thumbs.jsonl').write_text('')
  with pytest.raises(UsageError, match=r"'thumbs.jsnl' \(did you mean thumbs.jsonl\?\)"):
    load('thumbs.jsnl')
