"""The parts of a run's triplets as files, which are read back as the run read them."""

import dataclasses
import json

import numpy as np
import pytest

from dro_jax import main
from dro_jax.checkpoints import orbax
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import load_triplets, read_parts
from dro_jax.errors import UsageError
from dro_jax.evaluation import export_split
from tests.data.text import tiny_tokenizers
from tests.examples import CONFIG

FRACTIONS = {'validation_fraction': 0.3, 'test_fraction': 0.3}


def write_triplets(path, count=60):
  with open(path, 'w', encoding='utf-8') as file:
    for i in range(count):
      record = {'question': f'say {i // 2} \u2028', 'answer': f'word {i}', 'thumbs': ('up', 'down')[i % 2]}
      file.write(json.dumps(record | {'length': i}) + '\n')
  return str(path)


@pytest.fixture
def saved(tmp_path):
  """Saves a run's folder as far as its data tell."""

  def saved(path, name='run', **options):
    folder = tmp_path / name
    options = {
      'columns': 'prompt=question,response=answer,reward=thumbs', 'map_reward': 'up=1,down=0',
      'template': 'Q: {prompt}', 'prompt_length': 64, 'response_length': 16, **FRACTIONS, **options,
      'cache_dir': str(tmp_path / 'tables'),
    }  # fmt: skip
    loaded = load_triplets(path, **options)
    words = vocabularies.vocabulary(options.get('vocabulary', 'bytes'))
    described = {
      'model': dataclasses.asdict(dataclasses.replace(CONFIG, vocab_size=words.size)),
      'vocabulary': words.spec, 'data': loaded.report,
    }  # fmt: skip
    orbax.save_params(folder, {'w': np.zeros(1)}, described)
    return str(folder), loaded

  return saved


def export(folder, tmp_path, **options):
  options = {'output': str(tmp_path / 'out'), 'cache_dir': str(tmp_path / 'tables')} | options
  return export_split.export_split(folder, **options)


def lines(tmp_path, part):
  text = (tmp_path / 'out' / f'{part}.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.split('\n')[:-1]]


def test_the_parts_are_those_of_the_run_as_triplets_without_its_template(saved, tmp_path):
  folder, loaded = saved(write_triplets(tmp_path / 't.jsonl'))
  found = export(folder, tmp_path)
  assert [*found] == ['train', 'validation', 'test']
  tables = {'train': loaded.train, 'validation': loaded.eval}
  for name, table in tables.items():
    records = lines(tmp_path, name)
    assert [record['id'] for record in records] == [*table.ids]
    assert [record['reward'] for record in records] == table.raw_rewards.tolist()
    assert [f'Q: {record["prompt"]}' for record in records] == [*table.prompts]
    assert [record['response'] for record in records] == [*table.responses]
    assert [record['length'] for record in records] == table.columns['length'].tolist()
    assert found[name]['records'] == len(table)
  assert found['test']['prompts'] == loaded.report['test_prompts']
  prompts = [{record['prompt'] for record in lines(tmp_path, name)} for name in found]
  assert len(set.union(*prompts)) == sum(map(len, prompts)) == 30
  # They are triplet files, of the same prompts to a run.
  again = load_triplets(
    found['train']['file'], validation_fraction=0, template='Q: {prompt}', prompt_length=64,
    response_length=16, cache_dir=str(tmp_path / 'tables'),
  )  # fmt: skip
  assert again.train.fingerprint() == loaded.train.fingerprint()


def test_a_run_without_parts_for_tests_or_validation_exports_what_it_has(saved, tmp_path):
  folder, loaded = saved(write_triplets(tmp_path / 't.jsonl'), test_fraction=0)
  assert {name: each['records'] for name, each in export(folder, tmp_path).items()} == {
    'train': len(loaded.train), 'validation': len(loaded.eval),
  }  # fmt: skip
  folder, _ = saved(str(tmp_path / 't.jsonl'), 'whole', test_fraction=0, validation_fraction=0)
  assert [*export(folder, tmp_path, output=str(tmp_path / 'whole_out'))] == ['train']


def test_a_part_of_another_run_does_not_stay_beside_the_new_ones(saved, tmp_path):
  path = write_triplets(tmp_path / 't.jsonl')
  export(saved(path)[0], tmp_path)
  before = {name: lines(tmp_path, name) for name in ('train', 'validation', 'test')}
  folder, _ = saved(path, 'without', test_fraction=0)
  with pytest.raises(UsageError, match=r'has test\.jsonl of another run, and .*no such part.*another folder'):
    export(folder, tmp_path)
  assert {name: lines(tmp_path, name) for name in before} == before
  (tmp_path / 'out' / 'test.jsonl').unlink()
  export(folder, tmp_path)
  assert len(lines(tmp_path, 'train')) > len(before['train'])


def test_all_parts_are_replaced_or_none(saved, tmp_path, monkeypatch):
  folder, _ = saved(write_triplets(tmp_path / 't.jsonl'))
  export(folder, tmp_path, num_prompts=2)
  before = lines(tmp_path, 'train')
  records = export_split._records

  def fails_at_test(reading, part, *rest):
    if part == 'test':
      raise OSError('the disk is full')
    return records(reading, part, *rest)

  monkeypatch.setattr(export_split, '_records', fails_at_test)
  with pytest.raises(OSError, match='the disk is full'):
    export(folder, tmp_path)
  assert lines(tmp_path, 'train') == before
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {
    'train.jsonl', 'validation.jsonl', 'test.jsonl'
  }  # fmt: skip


def test_records_have_their_files_fields_alone(saved, tmp_path):
  plain = {'columns': None, 'map_reward': None, 'template': '{prompt}', 'test_fraction': 0}
  path = tmp_path / 'pairs.jsonl'
  pairs = [{'prompt': f'say {i}', 'chosen': 'ab', 'rejected': 'b', 'weight': i} for i in range(20)]
  path.write_text(''.join(json.dumps(record) + '\n' for record in pairs))
  export(saved(str(path), 'pairs', **plain)[0], tmp_path)
  assert {tuple(record) for record in lines(tmp_path, 'train')} == {
    ('id', 'prompt', 'response', 'reward', 'weight')
  }
  # A field of that name which the file has stays.
  records = [{'prompt': f'say {i}', 'response': 'ab', 'reward': i, 'comparison': i // 2} for i in range(20)]
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  export(saved(str(path), 'own', **plain)[0], tmp_path)
  assert all(record['comparison'] == record['reward'] // 2 for record in lines(tmp_path, 'train'))


def test_held_out_files_are_the_validation_part(saved, tmp_path):
  held_out = write_triplets(tmp_path / 'held_out.jsonl', count=80)
  folder, loaded = saved(write_triplets(tmp_path / 't.jsonl'), eval_triplets=held_out)
  found = export(folder, tmp_path)
  ids = [record['id'] for record in lines(tmp_path, 'validation')]
  assert ids == [*loaded.eval.ids] and all(name.startswith('held_out') for name in ids)
  assert found['validation']['records'] < 80  # Without the prompts that are kept for tests.


def test_prompts_alone_are_written_once_and_the_fewest_are_among_the_fewer(saved, tmp_path):
  folder, _ = saved(write_triplets(tmp_path / 't.jsonl'))
  chosen = []
  for count in (3, 6):
    found = export(folder, tmp_path, num_prompts=count, responses=False)
    assert found['train'] == {
      'prompts': count, 'records': count, 'file': str(tmp_path / 'out' / 'train.jsonl'),
    }  # fmt: skip
    records = lines(tmp_path, 'train')
    assert all([*record] == ['id', 'prompt'] for record in records)
    chosen.append({record['prompt'] for record in records})
  assert chosen[0] < chosen[1] and len(chosen[1]) == 6
  whole = export(folder, tmp_path, num_prompts=3)
  assert {record['prompt'] for record in lines(tmp_path, 'train')} == chosen[0]
  assert whole['train'] == {'prompts': 3, 'records': 6, 'file': str(tmp_path / 'out' / 'train.jsonl')}


def test_conversations_stay_conversations(saved, tmp_path):
  talk = [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'yes?'}]
  path = tmp_path / 'talks.jsonl'
  records = [
    {'prompt': [*talk[: 2 * (i % 2)], {'role': 'user', 'content': f'say {i}'}], 'response': 'a', 'reward': i}
    for i in range(20)
  ]
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  plain = {'columns': None, 'map_reward': None, 'template': '{prompt}'}
  folder, loaded = saved(str(path), **plain)
  export(folder, tmp_path)
  wanted = {f'talks.jsonl:{i + 1}': record['prompt'] for i, record in enumerate(records)}
  found = lines(tmp_path, 'train')
  assert all(record['prompt'] == wanted[record['id']] for record in found)
  # The model's own template writes them: they are JSON, or the text of one turn.
  words = tiny_tokenizers.qwen(tmp_path / 'qwen')
  folder, loaded = saved(str(path), 'chat', vocabulary=words, **plain)
  export(folder, tmp_path)
  again = read_parts(
    str(tmp_path / 'out' / 'train.jsonl'), vocabulary=words, validation_fraction=0, template='{prompt}',
    prompt_length=64, response_length=16, overlong='truncate', keep='auto',
    cache_dir=str(tmp_path / 'tables'),
  ).train  # fmt: skip
  assert again.fingerprint() == loaded.train.fingerprint()


def test_responses_that_were_dropped_are_not_exported(saved, tmp_path):
  path = write_triplets(tmp_path / 't.jsonl')
  with open(path, 'a') as file:
    file.write(
      json.dumps({'question': 'say 0 \u2028', 'answer': 'x' * 99, 'thumbs': 'up', 'length': 1}) + '\n'
    )
  folder, _ = saved(path, overlong='drop')
  found = export(folder, tmp_path)
  assert sum(part['records'] for part in found.values()) == 60


def test_other_triplets_than_the_runs_are_refused(saved, tmp_path):
  path = tmp_path / 't.jsonl'
  folder, _ = saved(write_triplets(path))
  moved = tmp_path / 'elsewhere' / 't.jsonl'
  moved.parent.mkdir()
  path.rename(moved)
  with pytest.raises(
    UsageError, match=r'there is no such file\. The run read .*t\.jsonl.*pass --triplets=FILE'
  ):
    export(folder, tmp_path)
  assert export(folder, tmp_path, triplets=str(moved))['train']['records'] > 0
  moved.write_text(moved.read_text().replace('word 7', 'word 77'))
  with pytest.raises(UsageError, match='part was made of other records than lie there now'):
    export(folder, tmp_path, triplets=str(moved))


def test_what_says_nothing_of_triplets_is_refused(tmp_path, saved):
  folder = tmp_path / 'imported'
  described = {'model': dataclasses.asdict(CONFIG), 'vocabulary': 'bytes'}
  orbax.save_params(folder, {'w': np.zeros(1)}, described)
  with pytest.raises(UsageError, match='does not say which triplets it read'):
    export(str(folder), tmp_path)
  folder, _ = saved(write_triplets(tmp_path / 't.jsonl'))
  with pytest.raises(UsageError, match=r'num_prompts=0 \(PROMPTS\) leaves no prompt'):
    export(folder, tmp_path, num_prompts=0)


def test_the_command_takes_the_run_without_a_flag(saved, tmp_path, capsys):
  folder, loaded = saved(write_triplets(tmp_path / 't.jsonl'))
  settings = ['--set', 'RESPONSES=false', '--set', f'CACHE_DIR={tmp_path / "tables"}', '--json']
  assert main.main(['export_split', folder, f'--output={tmp_path / "out"}', *settings]) == 0
  assert json.loads(capsys.readouterr().out)['test']['prompts'] == loaded.report['test_prompts']
  assert main.main(['export_split', folder]) == 2
  assert 'pass output=FOLDER, or --output=FOLDER' in capsys.readouterr().err
