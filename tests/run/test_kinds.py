"""What a newcomer passes to a run in place of its parts, and what is said of it."""

import pathlib

import pytest

import dro_jax as dro
from dro_jax.errors import UsageError

RECORDS = [{'prompt': 'a', 'response': 'b', 'reward': 1}]


@pytest.mark.parametrize(
  'parts, message',
  [
    ({'data': 'f.jsonl'}, r"RunSpec\(data=dro.load_triplets\('f.jsonl'"),
    ({'data': pathlib.Path('f.jsonl')}, r"RunSpec\(data=dro.load_triplets\('f.jsonl'"),
    ({'data': RECORDS}, r'write the records to a file.*dro.load_triplets\('),
    ({'policy': 'ck/llama'}, r"RunSpec\(policy=dro.pretrained\('ck/llama'\)\)"),
    ({'policy': 3}, r'policy=3 is of type int: pass policy=dro.Policy\(...\)'),
    ({'batches': {'size': 8}}, r'is of type dict: pass batches=dro.Batches\(size=8\)'),
    ({'schedule': 100}, r'pass schedule=dro.Schedule\(...\)'),
    ({'optimizers': {}}, r'pass optimizers=dro.Optimizers\(\)'),
    ({'reference': 'soft'}, r"reference='soft' is not a reference: pass reference=dro.Frozen\(\)"),
    ({'algorithm': 'dro_v'}, r'pass dro.algorithms.dro_v\(\), or --set ALGORITHM=dro_v'),
    ({'algorithm': 'dro_w'}, r"ALGORITHM='dro_w' names no algorithm \(did you mean dro_v\?\)"),
    ({'polcy': None}, r'RunSpec has no field polcy \(did you mean policy\?\)'),
    ({'stepz': 3}, r'RunSpec has no field stepz'),
  ],
)
def test_a_part_of_another_kind_is_refused_with_what_to_pass(parts, message):
  with pytest.raises(UsageError, match=message):
    dro.RunSpec(**{'data': None} | parts)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: dro.Schedule(steps='10'), r"steps='10': pass a whole number, as Schedule\(steps=10\)"),
    (lambda: dro.Schedule(log_every=2.5), 'log_every=2.5: pass a whole number'),
    (lambda: dro.Batches(size='8'), r"size='8': pass a whole number, as Batches\(size=10\)"),
    (lambda: dro.Value(warmup_steps=None), 'warmup_steps=None: pass a whole number'),
    (lambda: dro.Compute(chunk_size='64'), "chunk_size='64': pass a whole number"),
    (lambda: dro.Keep(modes='max'), r'Keep has no field modes \(did you mean mode\?\)'),
  ],
)
def test_a_field_of_another_kind_or_name_is_refused(make, message):
  with pytest.raises(UsageError, match=message):
    make()


def test_a_misspelt_field_of_a_part_is_suggested_when_a_spec_is_changed():
  with pytest.raises(UsageError, match=r'Schedule has no field stepz \(did you mean steps\?\)'):
    dro.replace(dro.RunSpec(data=None), schedule={'stepz': 3})


def test_a_spec_must_be_built_before_it_trains():
  spec = dro.RunSpec(data=None)
  with pytest.raises(UsageError, match=r'is not a built run: pass dro.build\(spec\)'):
    dro.train(spec, 'r')
  with pytest.raises(UsageError, match=r'is not a built run: pass dro.build\(spec\)'):
    dro.replay(spec, 'r', 'r/nonfinite/3')
  with pytest.raises(UsageError, match=r'build needs one: pass dro.RunSpec\(data=...'):
    dro.build('r')


def test_misspelt_names_of_modules_are_suggested():
  for module, name, near in (
    (dro.algorithms, 'dro_w', 'dro_v'),
    (dro, 'RunSpecs', 'RunSpec'),
    (dro.losses, 'slicc', 'slic'),
  ):
    with pytest.raises(AttributeError, match=f'did you mean {near}'):
      getattr(module, name)


def test_records_in_memory_are_told_the_way_to_a_file():
  with pytest.raises(UsageError, match='records in memory.*one JSON object a line.*load_triplets'):
    dro.load_triplets(RECORDS)
