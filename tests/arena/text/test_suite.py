import functools
import json

import numpy as np
import pytest

from dro_jax.arena import arena as run
from dro_jax.arena import cells, trials
from dro_jax.arena.text import answers, worlds
from dro_jax.arena.text import log as text_log
from dro_jax.arena.text import suite as text
from dro_jax.arena.text.methods import METHODS, USUAL
from dro_jax.arena.text.report import log_of
from dro_jax.arena.text.worlds import Hand, TextWorld
from dro_jax.data.text import vocabularies
from dro_jax.data.worlds import exercises
from dro_jax.errors import InUse, UsageError
from dro_jax.models.t5.config import T5Config
from dro_jax.run.folder import lock
from dro_jax.statistics import off_policy

MODEL = T5Config(emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1)
WORLD = TextWorld(
  exercises.Exercises(kinds=('sort', 'add'), letters='abcd', length=(1, 3)), demonstrations=40, sft_steps=60,
  sft_learning_rate=0.02, prompts=16, samples=4, validation_prompts=4, test_prompts=8, own_samples=4,
  ceiling_samples=5, response_length=5,
)  # fmt: skip


@pytest.fixture(scope='module')
def suite(tmp_path_factory, one_device):
  """A small world's folder, and what makes its suite."""
  folder = tmp_path_factory.mktemp('text') / 'arena'
  settings = {'steps': 3, 'batch_size': 8, 'evaluations': 1, 'mesh': one_device, 'model': MODEL}
  return folder, functools.partial(text.text, str(folder), {'exercises': lambda: WORLD}, **settings)


@pytest.fixture(scope='module')
def results(suite):
  """A run of methods by response and by pair, and for one of them copies in the place of its other trials."""
  folder, make = suite
  made, found = make(), {}
  cells.claim(folder, 'text', made.settings)
  for name in ('filtered_sft', 'dro_v', 'dpo'):
    tried = trials.make_trials(made.grids, 2)[name]
    cell = cells.Cell('text', name, tried[0], 0, made.axes[0])
    found[name] = made.run(cell)
    for trial in tried if name == 'filtered_sft' else tried[:1]:
      cells.write(folder, cells.Finished(cell._replace(hyperparameters=trial), found[name], 1.0))
  return found


@pytest.fixture(scope='module')
def logged(suite, results):
  return suite[1]().run.args[-1]('exercises', 0, 0)


@pytest.mark.long
def test_all_algorithms_spend_equal_flops(suite, results):
  """Up to half a step."""
  finished = cells.read_all(suite[0])
  assert {each.cell.algorithm for each in finished} == {'filtered_sft', 'dro_v', 'dpo'}
  spent = {each.cell.algorithm: each.result for each in finished}
  for result in spent.values():
    half = result['flops'] / result['steps'] / 2
    assert abs(result['flops'] - spent['dro_v']['flops']) <= half * 1.0001
  assert spent['filtered_sft']['steps'] > spent['dpo']['steps'] >= spent['dro_v']['steps'] == 3


@pytest.mark.long
def test_a_finished_cell_is_never_run_again(suite, results, monkeypatch):
  folder, make = suite
  monkeypatch.setattr(text.training, 'fit', None)
  assert run.arena(str(folder), make, algorithms='filtered_sft', seeds=1)['cells_run'] == 0


@pytest.mark.long
def test_answers_are_told_with_intervals(suite, results):
  folder, make = suite
  report = run.save(folder, 'text', make().report(cells.read_all(folder)))
  assert report == ['results.json', 'results.md', 'frontier.png', 'values.png']
  over, scores, ceilings, kinds, differences, shapes, values, trust, choices = json.loads(
    (folder / 'results.json').read_text()
  )['tables']
  methods = ['SFT (reference)', 'dro_v', 'dpo', 'filtered_sft']
  assert [row['method'].removesuffix(' †') for row in scores['rows']] == methods
  for row in scores['rows'][1:]:
    assert row['reward']['low'] <= row['reward']['value'] <= row['reward']['high']
    assert 0 <= row['win rate']['value'] <= 1
  assert [row['method'] for row in shapes['rows']] == methods == [row['method'] for row in kinds['rows']]
  assert [row['method'] for row in over['rows']] == methods[1:]
  assert [row['policy'] for row in ceilings['rows']][:2] == ['greedy decoding', 'best of 4']
  assert set(kinds['rows'][0]) == {'method', 'sort', 'add'}
  assert [row['trials'] for row in choices['rows']] == [1, 1, 4]
  assert [row['method'] for row in differences['rows']] == ['dpo', 'filtered_sft']
  assert {'truth', 'IPS', 'self-normalised', 'doubly robust', 'effective samples'} <= values['rows'][0].keys()
  assert len(trust['rows']) == 4
  assert '6 policies' in trust['title']


@pytest.mark.long
def test_no_prompt_is_in_two_splits(suite, logged):
  folder, _ = suite
  asked = {
    split: {
      json.loads(line)['prompt']
      for line in (folder / 'worlds/exercises-0' / f'{split}.jsonl').read_text().splitlines()
    }
    for split in ('demonstrations-sft', 'sft-train-0', 'sft-validation-0', 'sft-test-0')
  }
  assert sum(map(len, asked.values())) == len(set().union(*asked.values()))


@pytest.mark.long
def test_the_training_log_has_its_propensities(suite, logged):
  """The column that a method reads is what the policy gives the text that it trains on."""
  words = vocabularies.vocabulary('bytes')
  table = logged.data.load(vocabulary=words).train
  assert 32 < len(table) <= 64
  samples = answers.Samples(
    list(table.prompts), [table.response(i) for i in range(len(table))], list(table.responses),
    table.columns['behaviour_logps'], table.raw_rewards,
  )  # fmt: skip
  scored = logged.tools.score(logged.reference, samples)
  np.testing.assert_allclose(scored, table.columns['behaviour_logps'], atol=1e-4)


@pytest.mark.long
def test_the_reference_itself_is_no_better_than_its_log(suite, logged):
  """KL 0, every w 1, and then every estimate but the reward model's own is the log's mean reward."""
  judged = text.judge(logged, logged.data.init_from, 4, 0)
  np.testing.assert_allclose(judged['test']['kl'], 0, atol=1e-4)
  np.testing.assert_allclose(judged['ratios'], 1, atol=1e-3)
  np.testing.assert_array_equal(judged['kept'], judged['ratios'])
  log = logged.heldout['test']
  made = {'last': judged, 'log': {'rewards': log.rewards, 'predicted': logged.predict(log)}}
  estimates = off_policy.estimates(log_of([made]), resamples=10)
  assert estimates['ips'].value == pytest.approx(log.rewards.mean(), abs=1e-3)


@pytest.mark.long
def test_judging_a_policy_twice_gives_the_same_answers(logged):
  one, other = (text.judge(logged, logged.data.init_from, 4, 0) for _ in range(2))
  np.testing.assert_array_equal(one['test']['reward'], other['test']['reward'])


def test_answers_that_do_not_encode_to_their_tokens_are_dropped():
  words = vocabularies.vocabulary('bytes')
  records = [
    {'response': 'ab', 'tokens': [100, 101, 1]},
    {'response': 'ab', 'tokens': [100, 101]},
    {'response': '', 'tokens': [1]},
    {'response': 'a', 'tokens': [100, 200, 1]},
    {'response': 'a\0', 'tokens': [100, 3, 1]},
  ]
  kept = text_log.representable(records, words)
  assert kept == [{'response': 'ab'}] * 2


def test_wins_count_ties_half():
  own, other = np.array([[1.0, 0.0], [2.0, 2.0]]), np.array([[0.0, 0.5], [3.0, 2.0]])
  np.testing.assert_array_equal(answers.wins(own, other), [(1 + 1 + 0.5 + 0) / 4, (0 + 0.5) / 2])


def test_a_reward_model_sees_no_answer_and_tells_something():
  """Sorted answers rise; the right exercise's features are the ones that are filled."""
  prompts = ['sort: cab', 'sort: cab', 'add: 5 + 6']
  samples = answers.Samples(prompts, [], ['abc', 'cba', '11'], np.zeros(3), np.zeros(3))
  rising, falling, sum_ = text_log.features(samples)
  assert (rising != falling).any()
  assert not (sum_ * rising).any()


# --- worlds -------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def strange(tmp_path_factory, one_device):
  """A world whose log is by another policy than the reference, at another temperature."""
  world = WORLD._replace(
    exercises=exercises.Exercises(kinds=('sort', 'backwards'), letters='abcd', length=(2, 3)), hand=Hand(),
    logger=Hand(rule=1), logger_temperature=2.0, sft_steps=2, prompts=8, validation_prompts=2, test_prompts=4,
  )  # fmt: skip
  place = text_log.Place(tmp_path_factory.mktemp('strange'), world, 0, MODEL, one_device)
  return place, text_log.prepare(place, 0)


@pytest.mark.long
def test_the_log_has_the_propensities_of_the_policy_that_wrote_it(strange):
  place, logged = strange
  logger = text_log._params(str(place.folder / 'logger'), place)
  np.testing.assert_allclose(
    logged.tools.score(text_log.tempered(logger, 2.0), logged.log), logged.log.logps, atol=1e-4
  )
  for other in (logger, logged.reference, text_log.tempered(logged.reference, 2.0)):
    assert np.abs(logged.tools.score(other, logged.log) - logged.log.logps).max() > 0.05


@pytest.mark.long
def test_the_reference_answers_held_out_prompts_itself(strange):
  _, logged = strange
  theirs = logged.heldout['test']
  np.testing.assert_allclose(logged.tools.score(logged.reference, theirs), theirs.logps, atol=1e-4)
  assert theirs.prompts == logged.log.prompts and theirs.texts != logged.log.texts
  about = text.about_world(logged, 4)
  assert about['reference']['reward'].mean() == pytest.approx(theirs.rewards.mean())
  assert about['log']['reward'].mean() == pytest.approx(logged.log.rewards.mean())


@pytest.mark.long
def test_a_world_is_read_again_as_it_was_made(strange):
  place, logged = strange
  before = {file: file.stat().st_mtime_ns for file in place.folder.glob('*-0.jsonl')}
  again = text_log.prepare(place, 0)
  np.testing.assert_array_equal(again.log.logps, logged.log.logps)
  assert again.ceilings == logged.ceilings and again.unlikely == logged.unlikely
  assert before == {file: file.stat().st_mtime_ns for file in place.folder.glob('*-0.jsonl')} and before


def test_a_world_that_another_command_makes_is_in_use(tmp_path):
  suite = text.text(str(tmp_path))
  with lock.locked(tmp_path / 'worlds' / 'exercises-0'), pytest.raises(InUse, match='exercises-0'):
    suite.run(cells.Cell('text', 'dro_v', {'temperature': 0.3, 'learning_rate': 1e-3}, 0, suite.axes[0]))


def test_a_temperature_divides_logits():
  params = {'decoder': {'logits_dense': {'kernel': np.ones((2, 3))}}, 'encoder': {'kernel': np.ones(2)}}
  found = text_log.tempered(params, 4.0)
  np.testing.assert_array_equal(found['decoder']['logits_dense']['kernel'], np.full((2, 3), 0.25))
  np.testing.assert_array_equal(found['encoder']['kernel'], 1)
  with pytest.raises(UsageError, match='tied to the embedding'):
    text_log.tempered({'encoder': {'kernel': np.ones(2)}}, 2.0)


@pytest.mark.long
def test_junk_is_wrong_and_hardly_ever_given_by_the_reference(logged):
  logged = logged._replace(unlikely=-5.0)
  logps, rewards = np.array([-9.0, -9.0, -1.0, -1.0]), np.array([0.5, 1.0, 0.5, 1.0])
  np.testing.assert_array_equal(text._junk(logged, logps, rewards, 2), [0.5, 0.0])


def test_worlds_differ_in_what_they_say():
  habits, other = worlds.habits(), worlds.another_hand()
  assert other._replace(logger=None, logger_temperature=1.0) == habits
  assert other.logger.rule != habits.hand.rule and other.logger_temperature > 1
  assert habits.exercises.length == (4, 6) and habits.demonstrations == habits.prompts == 4000
  assert worlds.TextWorld().hand.right == 1


def test_every_draw_of_every_world_is_a_point_and_unknown_ones_are_refused(tmp_path):
  def made(**options):
    return text.text(str(tmp_path), **options).axes

  assert made(chosen='habits,another_hand', draws=2) == [
    {'world': name, 'draw': draw} for name in ('habits', 'another_hand') for draw in (0, 1)
  ]
  with pytest.raises(UsageError, match=r"no world 'habit' \(did you mean habits\?\)"):
    made(chosen='habit')
  with pytest.raises(UsageError, match='draws=0'):
    made(draws=0)


def test_a_folder_takes_more_worlds_and_draws(tmp_path):
  one, more = text.text(str(tmp_path / 'a')), text.text(str(tmp_path / 'a'), chosen='habits', draws=3)
  assert one.settings == more.settings


def test_the_usual_methods_exist():
  assert set(USUAL) <= set(METHODS)
