import itertools

import pytest

from dro_jax.data.worlds import exercises
from dro_jax.errors import UsageError
from dro_jax.files import json_lines
from dro_jax.recipes.make_world import make_world
from dro_jax.run.sampling.rewards import exact_match


def test_no_prompt_is_in_two_files_and_demonstrations_are_partly_right(tmp_path):
  result = make_world(
    str(tmp_path), demonstrations=400, log_prompts=60, judged_prompts=50, test_prompts=40, seed=3
  )
  records = {name: list(json_lines(tmp_path / f'{name}.jsonl')) for name in list(result)[1:]}
  assert {name: len(each) for name, each in records.items()} == {
    'demonstrations': 400, 'log': 60, 'judged': 50, 'test': 40
  }  # fmt: skip
  prompts = {name: {record['prompt'] for record in each} for name, each in records.items()}
  assert all(not one & other for one, other in itertools.combinations(prompts.values(), 2))
  assert all(exercises.answer(prompt) for each in prompts.values() for prompt in each)
  taught = records['demonstrations']
  right = exact_match([record['prompt'] for record in taught], [record['response'] for record in taught])
  assert 0.28 < sum(right) / len(right) < 0.42  # The hand of habits is right in .35 of cases.


def test_an_unknown_world_is_refused_with_the_nearest_name(tmp_path):
  with pytest.raises(UsageError, match="no world 'habit' .did you mean habits"):
    make_world(str(tmp_path / 'new'), world='habit')
  assert not (tmp_path / 'new').exists()


def test_counts_that_cannot_be_had_are_refused_at_once(tmp_path):
  with pytest.raises(UsageError, match='log_prompts=-5 must be above 0.*--set LOG_PROMPTS'):
    make_world(str(tmp_path / 'new'), log_prompts=-5)
  few = {'kinds': ('sort',), 'length': (2, 2)}
  with pytest.raises(UsageError, match='hardly more than'):
    exercises.prompts(exercises.Exercises(**few), 'train', 10**8, 0)
