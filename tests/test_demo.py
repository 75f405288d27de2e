import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from dro_jax import demo
from dro_jax.data.worlds import toy
from dro_jax.parallel import partitioning

WORLD = toy.World(alphabets=('bd', 'ae', 'lm'))
SETTINGS = demo.Settings(
  world=WORLD, demonstrations=60, triplets=60, reference_steps=2, steps=2, batch_size=8, tau=0.5
)


one_device = functools.partial(partitioning.make_mesh, devices=jax.devices()[:1])


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_files_hold_the_triplets_and_every_answer_to_every_heldout_prompt(tmp_path):
  files = demo.write_files(tmp_path / 'data', SETTINGS)
  assert len(lines(files['demonstrations'])) == len(lines(files['feedback'])) == 60
  heldout = lines(files['heldout'])
  prompts, words = toy.prompts(WORLD, 'heldout'), toy.responses(WORLD)
  assert [(record['prompt'], record['response']) for record in heldout] == [
    (x, y) for x in prompts for y in words
  ]
  np.testing.assert_array_equal(
    [record['reward'] for record in heldout], toy.expected_reward(WORLD, prompts)[:, :-1].ravel()
  )
  asked = {name: {toy.parse(record['prompt'])[0] for record in lines(file)} for name, file in files.items()}
  assert not asked['heldout'] & (asked['feedback'] | asked['demonstrations'])
  assert not asked['feedback'] & asked['demonstrations']


def test_runs_of_other_settings_are_cleared_and_nothing_else(tmp_path):
  folder = demo.prepare(tmp_path, SETTINGS)
  for name in ('runs/DRO-V', 'data', 'mine'):
    (folder / name).mkdir(parents=True)
  demo.prepare(tmp_path, SETTINGS)
  assert (folder / 'runs' / 'DRO-V').exists()
  demo.prepare(tmp_path, dataclasses.replace(SETTINGS, tau=0.6))
  assert sorted(path.name for path in folder.iterdir()) == ['mine', 'settings.json']


def example():
  """The toy world's own policies, as the demo would judge them."""
  prompts = toy.prompts(WORLD, 'heldout')
  rewards = toy.expected_reward(WORLD, prompts)
  reference = toy.complete(toy.demonstration_logps(WORLD, prompts) - 0.01)
  best, values = toy.optimum(reference, rewards, 0.4)
  return prompts, rewards, reference, best, values


def test_figures_of_the_optimum_the_reference_and_the_frontier():
  _, rewards, reference, best, values = example()
  row = demo.figures(best, reference, best, rewards, 0.4)
  assert row['regret'] == pytest.approx(0, abs=1e-12)
  assert row['kl_to_optimum'] == pytest.approx(0, abs=1e-12)
  assert row['reward'] - 0.4 * row['kl_to_reference'] == pytest.approx(values.mean())
  start = demo.figures(reference, reference, best, rewards, 0.4)
  assert start['kl_to_reference'] == 0
  assert start['regret'] == pytest.approx(0.4 * start['kl_to_optimum'])
  assert start['no_word'] == pytest.approx(1 - np.exp(-0.01))
  kl, reward = demo.frontier(reference, rewards, 0.4)
  assert np.interp(row['kl_to_reference'], kl[::-1], reward[::-1]) == pytest.approx(row['reward'], abs=1e-2)


def test_reports_and_plots(tmp_path):
  prompts, rewards, reference, best, values = example()
  halfway = np.log((np.exp(reference) + np.exp(best)) / 2)
  policies = {'SFT': reference, 'DRO-V': halfway, 'optimum': best}
  table = {name: demo.figures(logps, reference, best, rewards, 0.4) for name, logps in policies.items()}
  moods = np.array([toy.parse(prompt)[1] for prompt in prompts])
  judged = demo.Judged(table, demo.frontier(reference, rewards, 0.4), moods, values + 0.25, values)
  closed = 1 - table['DRO-V']['regret'] / table['SFT']['regret']
  assert f'{closed:.0%}' in demo.conclusion(judged)
  assert 'off by 0.25 stars' in demo.conclusion(judged)
  assert demo.rendered(judged).row_count == 3
  demo.plot(judged, tmp_path / 'plot.png')
  assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')


def test_from_files_to_table_and_again_without_training(tmp_path, monkeypatch):
  """One small method stands for all; a second call finds the runs complete."""
  small = dataclasses.replace(demo.MODEL, emb_dim=8, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1)
  methods = demo.methods(SETTINGS)
  monkeypatch.setattr(demo, 'MODEL', small)
  monkeypatch.setattr(demo, 'methods', lambda settings: {'DRO-V': methods['DRO-V']})
  monkeypatch.setattr(partitioning, 'make_mesh', one_device)
  table = demo.main(str(tmp_path), SETTINGS)
  assert list(table) == ['logging policy', 'SFT', 'DRO-V', 'optimum']
  assert table['optimum']['regret'] == table['SFT']['kl_to_reference'] == 0
  assert table['DRO-V']['kl_to_reference'] > 0
  assert json.loads((tmp_path / 'table.json').read_text()) == table
  assert (tmp_path / 'demo.png').exists()
  metrics = tmp_path / 'runs' / 'DRO-V' / 'metrics.jsonl'
  before = metrics.read_text()
  assert demo.main(str(tmp_path), SETTINGS) == table
  assert metrics.read_text() == before
