import dataclasses
import json

import numpy as np
import pytest

from dro_jax import demo_lm
from dro_jax.data.worlds import requests
from dro_jax.run.sampling.generation import Response
from tests.checkpoints import tiny_tokenizer
from tests.models.causal import tiny

SETTINGS = demo_lm.Settings(
  prompts=8, answers=2, heldout=3, max_length=6, steps=2, batch_size=8, rank=2, learning_rate=0.1
)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A tiny Llama with random weights and a chat template, as its files."""
  folder = tmp_path_factory.mktemp('source')
  tiny.torch_model('llama').save_pretrained(folder)
  return str(tiny_tokenizer.write(folder))


@pytest.mark.long
def test_the_demo_collects_a_log_trains_adapters_and_judges_both_policies(source, tmp_path, monkeypatch):
  settings = dataclasses.replace(SETTINGS, source=source)
  # A random model's answers are neither short sentences nor end: their letters' mean is a reward that varies.
  mean = lambda text: sum(map(ord, text)) / len(text) / 100 if text else 0.0  # noqa: E731
  monkeypatch.setattr(demo_lm, 'rated', lambda prompts, answers: [mean(answer.text) for answer in answers])
  found = demo_lm.main(str(tmp_path), settings)
  assert {*found['rewards']} == {'SmolLM2', 'DRO-V'}
  assert all(len(rewards) == 3 for rewards in found['rewards'].values())
  log = [json.loads(line) for line in (tmp_path / 'feedback.jsonl').read_text().splitlines()]
  assert {record['prompt'] for record in log} <= {*requests.split(3)[0]}
  assert 'KL(π‖π_ref)' in found['lines'][0]
  # Once more: what is there is taken, and the same is found.
  before = (tmp_path / 'feedback.jsonl').stat().st_mtime_ns
  assert demo_lm.main(str(tmp_path), settings)['rewards'] == found['rewards']
  assert (tmp_path / 'feedback.jsonl').stat().st_mtime_ns == before


def test_an_answer_that_the_limit_cut_earns_nothing():
  answers = [Response('It boils water.', -1.0, np.zeros(3), ended) for ended in (True, False)]
  assert demo_lm.rated(['any', 'any'], answers) == [1.0, 0.0]


def test_other_settings_keep_the_model_and_drop_the_rest(tmp_path):
  folder = demo_lm.prepare(tmp_path, SETTINGS)
  for name in ('model', 'runs', 'tables'):
    (folder / name).mkdir()
  (folder / 'feedback.jsonl').write_text('')
  demo_lm.prepare(tmp_path, SETTINGS)
  assert (folder / 'runs').exists() and (folder / 'feedback.jsonl').exists()
  demo_lm.prepare(tmp_path, dataclasses.replace(SETTINGS, tau=0.5))
  assert sorted(path.name for path in folder.iterdir()) == ['model', 'settings.json']
