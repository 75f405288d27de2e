"""A checkpoint against itself: ρ is 0, and what it answers is what it scores."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from dro_jax.checkpoints import orbax
from dro_jax.evaluation import check
from dro_jax.models.t5 import names
from dro_jax.models.t5.config import T5Config
from dro_jax.step import reference

CONFIG = T5Config(
  vocab_size=259, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)


@pytest.fixture
def saved(tmp_path):
  rng = np.random.default_rng(0)
  flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in names.shapes(CONFIG).items()}
  metadata = {'model': dataclasses.asdict(CONFIG), 'vocabulary': 'bytes'}
  orbax.save_params(tmp_path / 'saved', traverse_util.unflatten_dict(flat), metadata)
  return tmp_path / 'saved'


def test_a_checkpoint_against_itself(saved):
  report = check.check(str(saved), max_length=6)
  assert report['log_ratio'] == 0.0
  assert 0 <= report['sampled_and_scored'] < 1e-4
  assert report['vocabulary'] == 'bytes'
  assert list(report['answers']) == list(check.TASKS)
  params, _ = orbax.load_params(saved)
  assert report['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_each_kind_of_model_is_asked_what_it_was_made_for():
  kinds = [(goes_on, by_chat) for goes_on in (0, 1) for by_chat in (0, 1)]
  asked = {kind: check.prompts_for(*kind) for kind in kinds}
  assert asked[0, 0] == check.TASKS and asked[1, 0] == check.BEGINNINGS
  assert asked[0, 1] == asked[1, 1] == check.QUESTIONS
  assert {len(texts) for texts in asked.values()} == {5}


def test_first_prompts_of_a_file(tmp_path):
  file = tmp_path / 'prompts.jsonl'
  file.write_text(''.join(json.dumps({'question': f'q{i // 2}'}) + '\n' for i in range(20)))
  assert check._first_prompts(str(file), 'prompt=question', '{role}: {content}') == [
    'q0',
    'q1',
    'q2',
    'q3',
    'q4',
  ]


def test_a_ratio_that_is_not_0_fails(saved, monkeypatch):
  class Worse(reference.Frozen):
    def build(self, score):
      own = super().build(score)
      shifted = lambda scores: scores._replace(logps=scores.logps - 1e-3)  # noqa: E731
      return own._replace(scores=lambda state, rows: shifted(own.scores(state, rows)))

  monkeypatch.setattr(reference, 'Frozen', Worse)
  with pytest.raises(RuntimeError, match='the log-ratio of the policy to itself is'):
    check.check(str(saved), max_length=6)
