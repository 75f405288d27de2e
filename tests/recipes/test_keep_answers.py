import json

import pytest

from dro_jax.data import triplets
from dro_jax.errors import UsageError
from dro_jax.files import json_lines
from dro_jax.recipes.keep_answers import keep_answers


def write(path, *responses):
  lines = (
    json.dumps({'id': f'{i}', 'prompt': 'p', 'response': text, 'logp': -1.5, 'reward': 1})
    for i, text in enumerate(responses)
  )
  path.write_text(''.join(line + '\n' for line in lines))
  return str(path)


def test_blank_answers_and_those_with_nul_are_left_out_and_the_rest_trains(tmp_path):
  file = write(tmp_path / 'a.jsonl', 'x', '', ' \n', 'a\0b', 'y')
  assert keep_answers(file, str(tmp_path / 'b.jsonl')) == {
    'output': str(tmp_path / 'b.jsonl'), 'answers': 5, 'kept': 2
  }  # fmt: skip
  assert [(r['id'], r['response'], r['logp']) for r in json_lines(tmp_path / 'b.jsonl')] == [
    ('0', 'x', -1.5), ('4', 'y', -1.5)
  ]  # fmt: skip
  load = {'validation_fraction': 0, 'cache_dir': str(tmp_path / 'cache'), 'vocabulary': 'bytes'}
  assert triplets.load_triplets(str(tmp_path / 'b.jsonl'), **load).train.rewards.tolist() == [1, 1]
  with pytest.raises(UsageError, match='blank'):
    triplets.load_triplets(file, **load)


def test_a_file_without_an_answer_that_can_train_is_refused(tmp_path):
  with pytest.raises(UsageError, match='none of 2 answers can train'):
    keep_answers(write(tmp_path / 'a.jsonl', '', ' '), str(tmp_path / 'b.jsonl'))


def test_a_blank_cell_is_a_blank_answer_and_the_input_is_not_replaced(tmp_path):
  file = tmp_path / 'a.csv'
  file.write_text('prompt,response\np,x\nq,\n')
  assert keep_answers(str(file), str(tmp_path / 'new' / 'b.jsonl'))['kept'] == 1
  with pytest.raises(UsageError, match='among the files to read'):
    keep_answers(str(tmp_path / 'new' / 'b.jsonl'), str(tmp_path / 'new' / 'b.jsonl'))
  with pytest.raises(UsageError, match='must end in .jsonl'):
    keep_answers(str(file), str(tmp_path / 'b.csv'))
  with pytest.raises(UsageError, match="no record has the field 'answer'"):
    keep_answers(str(file), str(tmp_path / 'b.jsonl'), columns='response=answer')
