import pytest

from dro_jax.recipes.reproduce import a_lol, a_lol_hh, a_lol_tasks
from dro_jax.recipes.reproduce.a_lol import METHODS

JUDGE = ('REWARD=graded_match',)


@pytest.mark.parametrize('scale', ['paper', 'small'])
@pytest.mark.parametrize('make, tasks', [(a_lol_hh.reproduction, 1), (a_lol_tasks.reproduction, None)])
def test_advantages_are_over_one_value_that_all_methods_of_a_task_share(make, tasks, scale):
  stages = make(scale, JUDGE).stages
  values = {stage.name for stage in stages if stage.command[0] == 'fit_value'}
  assert len(values) == (tasks or {'paper': 4, 'small': 2}[scale])
  for stage in stages:
    reads = [argument for argument in stage.command if argument.startswith('--set=COLUMNS_FROM=')]
    key = next(
      (key for key in sorted(METHODS, key=len, reverse=True) if stage.name.endswith(f'-{key}')), None
    )
    if stage.command[0] == 'train' and key:
      assert bool(reads) == METHODS[key].reads_value == bool(values & {*stage.needs})


def test_weights_by_rewards_are_not_negative():
  """A reward model's scores may be."""
  for stage in a_lol_hh.reproduction('small', JUDGE).stages:
    key = stage.name.removeprefix('hha-')
    if key in METHODS:
      scaling = 'minmax' if METHODS[key].weighs else 'none'
      assert f'--set=REWARD_SCALING={scaling}' in stage.command


def test_answers_are_decoded_as_the_code_decodes_them():
  stages = {stage.name: stage for stage in a_lol_tasks.reproduction('paper', ()).stages}
  answered = stages['comet-answers-a_lol'].command
  assert {'--set=BEAMS=2', '--set=REPETITION_PENALTY=2.5', '--set=MAX_LENGTH=30'} <= {*answered}
  assert '--set=BEAMS=2' not in stages['comet-a_lol'].command
  down = stages['reddit_downvoted-sft'].command
  assert down.index('--gin_file=data/reddit_downvoted.gin') > down.index(
    '--gin_file=experiments/a_lol/reddit_sft.gin'
  )


def test_preferences_are_over_both_answers_of_a_pair():
  stages = {stage.name: stage for stage in a_lol_hh.reproduction('paper', JUDGE).stages}
  assert '--gin_file=data/hh_rewarded.gin' in stages['hha-dpo'].command
  assert '--gin_file=data/hh_rewarded.gin' not in stages['hha-a_lol'].command
  assert a_lol.method_of('pro').name == 'PRO'
