import dataclasses
import json

import pytest

from dro_jax.checkpoints import orbax
from dro_jax.data.text import chat
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import UsageError
from dro_jax.evaluation.judge import prompts
from dro_jax.evaluation.judge.prompts import Prompt
from dro_jax.parallel.partitioning import make_mesh
from dro_jax.run import networks
from tests.evaluation.judge.conftest import MODEL


def write(path, *records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def test_each_prompt_is_read_once_whatever_else_its_record_has(tmp_path):
  file = write(
    tmp_path / 'a.jsonl', {'id': 'x', 'q': 'one'}, {'id': 'y', 'q': 'two', 'r': 1}, {'id': 'z', 'q': 'one'}
  )
  assert prompts.read(file, 'prompt=q') == [Prompt('x', 'one', 'one'), Prompt('y', 'two', 'two')]


def test_a_conversation_is_text_for_a_judge_and_turns_for_a_model(tmp_path):
  turns = [
    {'role': 'user', 'content': 'hi'},
    {'role': 'assistant', 'content': 'ho'},
    {'role': 'user', 'content': 'so'},
  ]
  single = [{'role': 'user', 'content': 'well'}]
  file = write(tmp_path / 'a.jsonl', {'prompt': turns}, {'prompt': single}, {'prompt': 'plain'})
  several, one, plain = prompts.read(file)
  assert several.text == 'user: hi\nassistant: ho\nuser: so' and json.loads(several.by(None)) == turns
  assert (one.text, one.by(None), one.by('<{role}> {content}')) == ('user: well', 'well', '<user> well')
  assert plain.by(None) == plain.by(chat.TEMPLATE) == plain.by('<{role}> {content}') == 'plain'


def test_the_prompts_that_a_run_held_out_are_those_of_its_table(run, triplets, tmp_path):
  held = load_triplets(
    triplets, prompt_length=16, response_length=8, validation_fraction=0.4, cache_dir=str(tmp_path)
  ).eval
  found = [prompt.text for prompt in prompts.held_out(run, tmp_path / 'split')]
  assert prompts.is_run(run)
  assert sorted(found) == sorted({held.prompts[i] for i in range(len(held))}) and 8 < len(found) < 24


def test_a_checkpoint_that_held_out_nothing_asks_for_prompts(tmp_path):
  nets = networks.build(MODEL, uses_value=False)
  params = networks.initial_params(nets, make_mesh(), 0, None)['policy']
  described = {'model': dataclasses.asdict(MODEL), 'vocabulary': 'bytes'}
  orbax.save_params(tmp_path / 'imported', params, described)
  assert not prompts.is_run(str(tmp_path / 'imported'))
  with pytest.raises(UsageError, match='imported does not say which prompts it held out: .* --triplets=FILE'):
    prompts.held_out(str(tmp_path / 'imported'), tmp_path)


def test_a_part_of_the_prompts_is_the_same_from_any_file():
  every = [Prompt(str(i), f'prompt {i}', f'prompt {i}') for i in range(200)]
  few = prompts.fewest(every, 20)
  assert len(few) == 20 and few == [prompt for prompt in every if prompt in few]
  assert set(prompts.fewest(every[::-1], 20)) == set(few) < set(prompts.fewest(every, 40))
  assert prompts.fewest(every, None) == prompts.fewest(every, 999) == every
  choosers, others = prompts.apart(every, 0.3)
  assert 30 < len(choosers) < 90 and sorted(map(str, choosers + others)) == sorted(map(str, every))
