import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from dro_jax.recipes.reproduce import curves
from dro_jax.run.folder import validation
from dro_jax.run.folder.validation import Validation


@pytest.fixture
def root(tmp_path):
  """A stage `a` whose run recorded a loss at every step and samples at two of them."""
  run = tmp_path / 'a' / 'run'
  run.mkdir(parents=True)
  records = [{'step': 1, 'loss': 3.0}, {'step': 2, 'loss': 2.0, 'eval/kl': 0.5}, {'step': 4, 'eval/kl': 1.5}]
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  for step, rewards in ((2, [0.0, 0.0, 0.0]), (4, [1.0, 2.0, 6.0])):
    samples = np.array(rewards)
    found = Validation(
      np.float64(1.0),
      sample_prompts=np.arange(3, dtype=np.uint64), sample_rewards=samples, sample_log_ratios=samples / 2,
      sample_lengths=np.ones(3),
    )  # fmt: skip
    validation.save(run, step, found)
  return tmp_path


def test_points_are_the_records_that_have_both(root):
  assert curves.points(root, 'a', 'eval/kl') == [(2, 0.5), (4, 1.5)]
  assert curves.points(root, 'a', 'loss', axis='eval/kl') == [(0.5, 2.0)]
  assert curves.latest(root, 'a', 'loss') == 2.0 and curves.latest(root, 'a', 'eval/none') is None


def test_the_last_value_has_an_interval_over_prompts(root):
  reward, kl = curves.last(root, 'a', 'sample_reward'), curves.last(root, 'a', 'kl')
  assert (reward.value, kl.value) == (3.0, 1.5)
  assert 1.0 <= reward.low < reward.value < reward.high <= 6.0


def test_a_figure_has_a_panel_for_each_key_and_a_curve_for_each_name():
  figure = Figure()
  of = {'CoPG': {'β 0.1': [(1, 2), (2, 3)], 'β 1': []}, 'DPO': {'β 0.1': [(1, 5)]}}
  curves.panels(figure, of, 'step', 'reward', logarithmic=True)
  assert [axes.get_title() for axes in figure.axes] == ['CoPG', 'DPO']
  assert [line.get_label() for line in figure.axes[0].lines] == ['β 0.1', 'β 1']
  assert figure.axes[0].get_xscale() == 'log' and figure.axes[0].get_ylabel() == 'reward'
  assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ['1', '2']
