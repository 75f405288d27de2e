import json

from dro_jax.evaluation.answers import compare_answers
from dro_jax.recipes.reproduce import a_lol, measured
from dro_jax.recipes.reproduce.stages import Stage


def test_a_table_has_a_row_for_each_side_of_the_report(tmp_path):
  """The report is what the stage's command writes, given the same files."""
  answered = {'reference': Stage('x', ()), 'nll': Stage('y', ())}
  for stage, response in zip(answered.values(), ('a b c d', 'a a a a')):
    (tmp_path / stage.name).mkdir()
    lines = [{'prompt': f'p{i}', 'response': response, 'tokens': 4 + i} for i in range(4)]
    file = tmp_path / stage.name / 'answers.jsonl'
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  stage = measured.stage('m', answered, {'reward': 'contains', 'grade': 'letter_share'}, None)
  verb, *arguments = stage.arguments(tmp_path)
  sides = [argument for argument in arguments if not argument.startswith('--')]
  flags = dict(argument[2:].split('=', 1) for argument in arguments if argument.startswith('--'))
  assert verb == 'answers' and set(flags) == {'reward', 'output'}
  compare_answers(sides, **flags)
  names = {'reference': 'Reference', 'nll': 'NLL'}
  table = measured.table(tmp_path, 'm', 'Answers', a_lol.COLUMNS, names)
  first, second = table.rows
  assert (first['policy'], second['policy']) == ('Reference', 'NLL')
  assert (first['reward'].value, second["world's grade"].value) == (0, 4 / 7)
  assert first['tokens'].value == 5.5 and first['distinct-1'].value > second['distinct-1'].value


def test_the_stage_needs_the_model_that_scores():
  model = Stage('reward-model', ())
  stage = measured.stage('m', {'a': Stage('x', ())}, {'reward': model.run}, model)
  assert stage.needs == ('x', 'reward-model') and '--reward=reward={root}/reward-model/run' in stage.command
