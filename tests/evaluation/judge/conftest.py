import dataclasses
import functools
import json

import pytest

from dro_jax.data.triplets import load_triplets
from dro_jax.data.worlds import exercises
from dro_jax.recipes.score import score
from dro_jax.run import schedule
from dro_jax.step import optimizers
from tests import runs
from tests.examples import CONFIG

MODEL = dataclasses.replace(CONFIG, vocab_size=384)
PROMPTS = exercises.prompts(exercises.Exercises(kinds=('sort',), length=(3, 4)), 'train', 40)


@pytest.fixture(scope='session')
def own_reward(tmp_path_factory):
  """A user's function, which scores the triplets."""
  path = tmp_path_factory.mktemp('reward') / 'mine.py'
  path.write_text(
    'from dro_jax.data.worlds.exercises import answer\n'
    'def right(prompts, responses):\n'
    '  return [float(response == answer(prompt)) for prompt, response in zip(prompts, responses)]\n'
  )
  return f'{path}:right'


@pytest.fixture(scope='session')
def triplets(own_reward, tmp_path_factory):
  """Two answers to each prompt, one of them right."""
  folder = tmp_path_factory.mktemp('triplets')
  records = [
    {'id': f't{i}{k}', 'prompt': prompt, 'response': exercises.answer(prompt) if k else 'abc'}
    for i, prompt in enumerate(PROMPTS)
    for k in (0, 1)
  ]
  (folder / 'answers.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  score(str(folder / 'answers.jsonl'), own_reward, str(folder / 'triplets.jsonl'))
  return str(folder / 'triplets.jsonl')


@pytest.fixture(scope='session')
def run(triplets, tmp_path_factory):
  """The folder of a run of four steps, with a reference, its checkpoints after steps 2 and 4."""
  folder = tmp_path_factory.mktemp('run') / 'dro_v'
  data = functools.partial(
    load_triplets, triplets, prompt_length=16, response_length=8, validation_fraction=0.4,
    cache_dir=str(tmp_path_factory.mktemp('cache')),
  )  # fmt: skip
  timing = schedule.Schedule(
    steps=4, log_every=4, eval_every=2, checkpoint_every=2, sample_prompts=0, kl_prompts=0
  )
  runs.train(
    folder, data, model=MODEL, batch_size=8, schedule=timing,
    keep_last=3, policy_optimizer=functools.partial(optimizers.adamw, 0.1),
    value_optimizer=functools.partial(optimizers.adamw, 0.1),
  )  # fmt: skip
  return str(folder)
