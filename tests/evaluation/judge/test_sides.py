import json

import pytest

from dro_jax.errors import UsageError
from dro_jax.evaluation.judge import sides
from dro_jax.evaluation.judge.sides import FILE, POLICY, REFERENCE, Side


def write(path, *records):
  path.parent.mkdir(exist_ok=True)
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def test_each_kind_of_side_is_known_by_its_form():
  found = sides.parse('reference,runs/dro_v,runs/kto/checkpoints/200,answers/human.jsonl')
  assert found == [
    Side('reference', REFERENCE, 'runs/dro_v'), Side('dro_v', POLICY, 'runs/dro_v'),
    Side('200', POLICY, 'runs/kto/checkpoints/200'), Side('human', FILE, 'answers/human.jsonl'),
  ]  # fmt: skip
  of_other = sides.parse('runs/dro_v,reference:runs/kto')[1]
  assert of_other == Side('reference', REFERENCE, 'runs/kto')


def test_names_may_be_given_and_equal_ones_become_paths(tmp_path):
  found = sides.parse('sft=runs/a/last,runs/b/last,runs/c/last')
  assert [side.name for side in found] == ['sft', 'runs/b/last', 'runs/c/last']
  folder = tmp_path / 'lr=1'
  folder.mkdir()
  assert sides.parse([str(folder), 'b'])[0] == Side('lr=1', POLICY, str(folder))
  with pytest.raises(UsageError, match='two sides are called a'):
    sides.parse('a=x,a=y')


def test_a_run_of_the_arena_is_called_by_its_algorithm(tmp_path):
  for digest, algorithm in (('0' * 20, 'kto'), ('a' * 20, 'dro_v')):
    (tmp_path / digest).mkdir()
    (tmp_path / digest / 'run.json').write_text(json.dumps({'algorithm': algorithm}))
  found = sides.parse([str(path) for path in sorted(tmp_path.iterdir())])
  assert [side.name for side in found] == ['kto', 'dro_v']


@pytest.mark.parametrize(
  'text, message',
  [
    ('', '0 side to judge: name two or more'),
    ('runs/a', '1 side to judge'),
    ('runs/a,b=runs/a', 'runs/a is named twice'),
  ],
)
def test_sides_that_cannot_be_compared_are_refused(text, message):
  with pytest.raises(UsageError, match=message):
    sides.parse(text)


def test_sides_that_are_not_there_are_refused(tmp_path):
  with pytest.raises(UsageError, match='Say of which, as reference:runs/dro_v'):
    sides.check(sides.parse([write(tmp_path / 'a.jsonl', {'prompt': 'p', 'response': 'r'}), 'reference']))
  with pytest.raises(UsageError, match=r'none\.jsonl'):
    sides.check([Side('a', FILE, str(tmp_path / 'none.jsonl'))])
  with pytest.raises(UsageError, match='no checkpoint'):
    sides.check([Side('a', POLICY, str(tmp_path / 'none'))])


def test_answers_are_read_by_prompt_in_order_and_may_be_empty(tmp_path):
  file = write(
    tmp_path / 'a.jsonl',
    {'id': '0#0', 'prompt': 'p', 'response': 'one'},
    {'id': '1', 'prompt': 'q', 'response': ''},
    {'id': '0#1', 'prompt': 'p', 'response': 'two'},
  )
  assert sides.read_answers(file) == {'p': ['one', 'two'], 'q': ['']}


def test_answers_may_have_other_fields_and_be_turns(tmp_path):
  spoken = (('user', 'hi'), ('assistant', 'ho'), ('user', 'so'))
  turns = [{'role': role, 'content': content} for role, content in spoken]
  file = write(tmp_path / 'a.jsonl', {'q': turns, 'a': {'role': 'assistant', 'content': 'well'}})
  expected = {'user: hi\nassistant: ho\nuser: so': ['well']}
  assert sides.read_answers(file, 'prompt=q,response=a') == expected
  ours = write(tmp_path / 'b.jsonl', {'prompt': 'p', 'response': 'r'})
  assert sides.read_answers(ours, 'prompt=q,response=a') == {'p': ['r']}  # As `generate` writes them.


def test_a_record_without_an_answer_is_named(tmp_path):
  file = write(tmp_path / 'a.jsonl', {'prompt': 'p', 'response': 'r'}, {'prompt': 'q'})
  with pytest.raises(UsageError, match=r"a\.jsonl:2: field 'response' is missing"):
    sides.read_answers(file)
