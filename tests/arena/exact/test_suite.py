import functools
import json

import jax
import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.arena import arena as run
from dro_jax.arena.cells import Cell
from dro_jax.arena.exact import enumeration
from dro_jax.arena.exact import methods as exact_methods
from dro_jax.arena.exact import suite as exact
from dro_jax.arena.exact import world as exact_world
from dro_jax.arena.exact.report import LADDER
from dro_jax.arena.exact.world import ExactSettings, Place, Point
from dro_jax.data.worlds import toy
from dro_jax.errors import InUse, UsageError
from dro_jax.models.t5.config import T5Config
from dro_jax.run.folder import lock
from tests.tiers import long

TINY = T5Config(
  vocab_size=384, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1
)
SETTINGS = ExactSettings(
  letters=('bd', 'ae', 'lm'), records=64, demonstrations=64, validation_words=1, test_words=1,
  reference_steps=2, value_steps=2, steps=4, batch_size=16, measurements=2, model=TINY,
)  # fmt: skip


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return Place(SETTINGS, Point(), 0, tmp_path_factory.mktemp('exact'))


def test_the_world_is_big_enough_by_default():
  settings = ExactSettings()
  world = exact_world.world_at(settings, Point())
  validation, test = exact_world.held_out(settings, world)
  records = exact_world.draw_log(settings, Point(), 0)
  logged = {record['prompt'] for record in records}
  assert len(toy.responses(world)) == 1000
  assert len(logged) == 4096 and len(records) == 16_384
  assert len(validation.texts) == 65 and len(test.texts) == 130
  words = [{toy.parse(text)[0] for text in texts} for texts in (logged, validation.texts, test.texts)]
  sft = {toy.parse(text)[0] for text in toy.prompts(world, 'sft')}
  assert not any(a & b for a, b in ((words[0], words[1]), (words[0], words[2]), (words[1], words[2])))
  assert not sft & (words[0] | words[1] | words[2])


def test_axes_do_what_they_say():
  def log(**axes):
    return exact_world.draw_log(SETTINGS, Point(**axes), 0)

  def of(name, **axes):
    return [record[name] for record in log(**axes)]

  assert len(set(of('prompt', responses=1))) == 64 and len(set(of('prompt', responses=16))) == 4
  assert set(of('response', coverage=0.0)) == {'bal'}
  assert len(set(of('response'))) > 4
  assert set(of('reward')) <= {1, 2, 3, 4, 5}
  world = exact_world.world_at(SETTINGS, Point())
  for record in log(noise=0.0):
    y = toy.responses(world).index(record['response'])
    assert record['reward'] == pytest.approx(toy.expected_reward(world, [record['prompt']])[0, y])
  ease = [exact_world.world_at(SETTINGS, Point(spread=spread)).ease for spread in (0.0, 1.0)]
  assert len(set(ease[0])) == 1 and ease[1] == pytest.approx(toy.World().ease)


@pytest.mark.long
def test_the_reference_of_a_shared_folder_is_read_not_fitted_again(place):
  before = exact_world.reference_params(SETTINGS, 0, place.shared)
  files = {file.name: file.stat().st_mtime_ns for file in place.shared.iterdir()}
  after = exact_world.reference_params(SETTINGS, 0, place.shared)
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert files == {file.name: file.stat().st_mtime_ns for file in place.shared.iterdir()}


def test_a_reference_that_another_command_fits_is_in_use(tmp_path):
  with lock.locked(tmp_path / 'shared'), pytest.raises(InUse, match='shared'):
    exact_world.reference_params(SETTINGS, 0, tmp_path / 'shared')


def test_columns_belong_to_their_records(place):
  lab, feed = exact_world.laboratory(place), exact_world.log_feed(place, 'group')
  logged = feed.triplets.train
  values = exact_methods.oracle_value(place, feed, {'temperature': 0.3})
  texts = [logged.prompts[i] for i in range(len(logged))]
  prompts = exact_world.prompts_of(lab.world, texts)
  reference = exact_world.enumerate_words(SETTINGS, lab.reference, prompts)
  _, expected = toy.optimum(reference, prompts.rewards_PZ, 0.3)
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  labels = exact_methods.best_share(place, feed, {'share': 0.25})
  assert labels.min() == 0 and logged.raw_rewards[labels > 0].min() > logged.raw_rewards[labels == 0].max()
  assert exact_methods.best_share(place, feed, {'share': 3.0}).all()


def test_a_regressed_value_never_saw_its_own_prompts_rewards(place, monkeypatch):
  lab = exact_world.laboratory(place)
  found = exact_methods._regressed.__wrapped__(place)[0]
  table = lab.triplets.train
  seen = table.prompt_index[exact_world.log_feed(place, 'response').batch(0).example_id.max()]
  changed = table.rewards - 100 * (table.prompt_index == seen)
  triplets = lab.triplets._replace(train=exact_world.dataclasses.replace(table, rewards=changed))
  feed = exact_world.feed_of(SETTINGS, triplets, 'response', 0, 4)
  monkeypatch.setattr(exact_world, 'log_feed', lambda *_: feed)
  again = exact_methods._regressed.__wrapped__(place)[0]
  mine = np.searchsorted(np.unique(table.prompt_index), seen)
  assert again[mine] == found[mine]
  assert np.abs(again - found).max() > 0


COMPETING = exact_methods.methods(SETTINGS.tau)


@pytest.mark.parametrize('name', [*long('awr', 'filtered_sft', 'dpo'), 'dro_oracle_value+kl1'])
def test_methods_spend_one_budget(place, name):
  axes = place.point._asdict()
  trial = {axis: ends.low for axis, ends in COMPETING[name].grid.items()}
  result = exact.run_cell(SETTINGS, COMPETING, place.shared, Cell('exact', name, trial, 0, axes))
  budget = exact._budget(place)
  assert result['flops'] == pytest.approx(budget, abs=SETTINGS.measurements * result['flops_per_step'])
  assert result['last']['step'] == result['steps']
  assert set(result['last']['test']) == set(enumeration.MEASURES)
  assert all(np.isfinite(values).all() for values in result['last']['test'].values())


def test_a_step_with_thumbs_by_value_costs_the_same_without_noise(place):
  """No rating of this log is 1 or less, which once stood for every value."""
  noiseless = place._replace(point=Point(noise=0.0))
  costs = [
    exact._flops_per_step(each, COMPETING['kto_value'].algorithm, ('value',)) for each in (place, noiseless)
  ]
  assert exact_world.log_feed(noiseless, 'response').triplets.train.raw_rewards.min() > 1
  assert costs[0] == costs[1] > 0


def test_every_method_makes_its_algorithm():
  for method in COMPETING.values():
    if method.algorithm is not None:
      assert isinstance(method.algorithm(0.5), algorithms.Algorithm)
  assert {name for before, after, _ in LADDER for name in (before, after)} <= set(COMPETING)


def test_the_suite_runs_resumes_and_reports(tmp_path):
  folder = str(tmp_path / 'arena')
  suite = functools.partial(exact.exact, folder, settings=lambda: SETTINGS)
  chosen = {'algorithms': 'dro_v,best_of_n', 'seeds': 1}
  assert run.arena(folder, suite, **chosen)['cells_run'] == 8
  assert run.arena(folder, suite, **chosen)['cells_run'] == 0
  wider = functools.partial(suite, noise=(1.0, 0.0))
  assert run.arena(folder, wider, algorithms='best_of_n', seeds=1)['cells_run'] == 4
  tables = {
    table['title']: table['rows']
    for table in json.loads((tmp_path / 'arena/results.json').read_text())['tables']
  }
  here = 'spread 1, noise 1, responses 4, coverage 1'
  frontier = tables[f'Reward against divergence ({here})']
  assert {row['method'] for row in frontier} == {
    *chosen['algorithms'].split(','), '(reference)', '(logging policy)', '(optimum)',
  }  # fmt: skip
  regrets = {row['method']: row for row in tables[f'Regret J* − J ({here})']}
  assert regrets['dro_v']['V − V* (rms)'] > 0 and regrets['best_of_n']['V − V* (rms)'] is None
  assert {row['trials'] for row in tables[f'Trials ({here})']} == {4}
  assert len(tables['Regret over the axes']) == 2
  (ladder,) = tables['The V ladder']
  assert ladder['V of'] == 'dro_v' and ladder['V − V* (noise 1)'] == regrets['dro_v']['V − V* (rms)']
  assert (tmp_path / 'arena/frontier-0.png').exists()


def test_settings_that_make_no_world_are_refused(tmp_path):
  with pytest.raises(UsageError, match='alphabets of one size'):
    ExactSettings(letters=['ab', 'c'])
  with pytest.raises(UsageError, match='1 or more responses'):
    exact.exact(str(tmp_path), responses=(0, 2))


def test_methods_that_compare_answers_skip_a_log_of_one_answer_to_each_prompt(tmp_path):
  made = exact.exact(str(tmp_path), responses=(1, 4))
  assert [axes['responses'] for axes in made.axes] == [1, 4]
  skipped = [
    (name, axes['responses'])
    for name in made.grids
    for axes in made.axes
    if made.skips(Cell('exact', name, {}, 0, axes))
  ]
  assert sorted(skipped) == sorted((name, 1) for name in exact_methods.COMPARING)


def test_the_error_of_a_value_is_the_distance_to_the_best_one(place):
  trial = {'temperature': 0.3, 'learning_rate': 1e-3}
  errors = {
    name: exact_methods.value_error(place, COMPETING[name], trial)
    for name in ('dro_oracle_value', 'dro_regressed_value', 'dro_p', 'dro_group_mean', 'dro_v', 'kto')
  }
  assert errors['dro_oracle_value'] == 0 and errors['dro_v'] is None and errors['kto'] is None
  best = exact_methods.oracle_value(place, exact_world.log_feed(place, 'response'), trial)
  assert errors['dro_p'] == pytest.approx(best.std())
  logged = exact_world.laboratory(place).triplets.train
  means = [logged.raw_rewards[logged.prompt_index == prompt].mean() for prompt in logged.prompt_index]
  assert errors['dro_group_mean'] == pytest.approx(np.sqrt(np.mean((means - best) ** 2)))
