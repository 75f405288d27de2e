import json
import logging

import pytest

from dro_jax.configs import differences, effects
from dro_jax.data.batches.groups import UnitOptions
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import UsageError
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.recipes.a_lol import a_lol_stages
from dro_jax.recipes.fit_value import fit_value
from dro_jax.recipes.train import train
from dro_jax.run.batches import RowOptions
from dro_jax.run.folder import configs
from dro_jax.run.sampling.rollouts import RolloutOptions
from dro_jax.run.schedule import Schedule
from dro_jax.run.spec import Batches, Compute, Keep, Optimizers, Policy, RunSpec, Value
from dro_jax.step import reference

TEXT = """
STEPS = {steps}
RATE = {rate}
MODEL_DIR = '{folder}'
INIT_FROM = '{init}'
train.model_dir = %MODEL_DIR
train.init_from = %INIT_FROM
train.schedule = @Schedule
train.policy_optimizer = @policy/adam
train.num_microbatches = {microbatches}
Schedule.steps = %STEPS
policy/adam.learning_rate = @policy/warmup_cosine()
warmup_cosine.peak_value = %RATE
warmup_cosine.decay_steps = {decay}
"""


CONFIGURABLES = (
  RunSpec, Policy, Compute, Value, Optimizers, Batches, Keep, MeshSpec, RowOptions, UnitOptions,
  RolloutOptions, Schedule, reference.Frozen, reference.Cached, reference.Soft, reference.Hard, load_triplets,
  train, fit_value, a_lol_stages,
)  # fmt: skip
EFFECTS = {part.__name__: effects.effects(part) for part in CONFIGURABLES}


def texts(defaults='', steps=10, rate=1e-4, microbatches=1, decay=100, folder='a', init='/data/t5', more=''):
  values = {'steps': steps, 'rate': rate, 'microbatches': microbatches, 'decay': decay}
  return {'config.gin': TEXT.format(folder=folder, init=init, **values) + more, 'defaults.gin': defaults}


def metadata(seed=0, fingerprint='x', **model):
  data = {'train_fingerprint': fingerprint, 'scaling': {'kind': 'none', 'shift': 0.0, 'scale': 1.0}}
  return {'seed': seed, 'model': {'emb_dim': 8, 'remat': False} | model, 'data': data}


@pytest.fixture
def refusal(tmp_path):
  """What resuming a run made with the first texts with the second ones is refused for, or None."""

  def check(before, now, saved=None, described=None):
    configs.record(tmp_path, before, 0)
    try:
      configs.refuse_other_run(
        tmp_path, saved or metadata(), described or metadata(), configs.Recorded(now, EFFECTS)
      )
    except UsageError as error:
      return str(error)
    return None

  return check


def test_resume_accepts_changes_of_length_microbatches_and_folders(refusal):
  assert refusal(texts(), texts(steps=20, microbatches=2, folder='b')) is None


def test_another_learning_rate_is_refused_with_both_values_and_what_to_do(refusal):
  message = refusal(texts(), texts(rate=3e-4, steps=20))
  assert '\n  RATE: 0.0001 → 0.0003\n' in message
  assert 'Set them back (--set RATE=0.0001), or train into another folder (--model_dir).' in message
  assert 'STEPS' not in message


def test_a_longer_run_is_another_where_its_learning_rate_decays_to_the_end(refusal):
  message = refusal(texts(decay='%STEPS'), texts(decay='%STEPS', steps=20))
  assert 'STEPS: 10 → 20  (the learning rates so far decayed towards the earlier end)' in message


def test_a_setting_that_the_run_does_not_read_is_not_compared(tmp_path, refusal):
  shared = [texts(more=f'SHARED = {x}\nRunSpec.value = @Value()\nValue.shared = %SHARED') for x in (0, 1)]
  assert 'SHARED: 0 → 1' in refusal(*shared)
  configs.refuse_other_run(
    tmp_path, metadata(), metadata(), configs.Recorded(shared[1], EFFECTS), unread={'SHARED'}
  )


@pytest.mark.parametrize('more', ['RunSpec.unheard_of = 1', 'policy/adam.b1 = 0.5', 'adam.b1 = 0.5'])
def test_resume_refuses_a_change_of_an_unclassified_setting(refusal, more):
  name = more.split(' ')[0].replace('policy/', '').replace('adam', 'policy/adam')
  assert f'{name}: not set → ' in refusal(texts(), texts(more=more))


def test_a_parameter_that_a_later_version_adds_is_accepted_at_its_default(refusal):
  known = 'RunSpec.unheard_of = 1\n'
  assert refusal(texts(), texts(known, more='RunSpec.unheard_of = 1')) is None
  assert 'unheard_of: 1 → 2' in refusal(texts(), texts(known, more='RunSpec.unheard_of = 2'))


def test_another_default_of_a_later_version_is_refused(refusal):
  assert 'RunSpec.seed: 0 → 1' in refusal(texts('train.seed = 0'), texts('train.seed = 1'))


@pytest.mark.parametrize(
  'description', [{'has_saved': True}, {}, None], ids=['said', 'of an earlier version', 'gone too']
)
def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(tmp_path, description):
  if description is not None:
    (tmp_path / 'run.json').write_text(json.dumps(description))
  (tmp_path / 'metrics.jsonl').write_text('{"step": 500}\n{"step": 510}\n')
  with pytest.raises(UsageError, match='up to step 510, but its checkpoints are missing'):
    configs.refuse_lost(tmp_path, 500, 1000)


def test_run_json_decides_whether_checkpoints_are_missing_not_the_records(tmp_path):
  """One that was stopped early has saved, and one that was killed as it saved has not."""
  configs.describe(tmp_path, {}, has_saved=True)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 10}\n')
  with pytest.raises(UsageError, match='up to step 10, but its checkpoints are missing'):
    configs.refuse_lost(tmp_path, 500, 1000)
  configs.describe(tmp_path, {}, has_saved=False)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 510}\n')
  configs.refuse_lost(tmp_path, 500, 1000)


@pytest.mark.parametrize('description', [None, {'has_saved': False}, {}])
def test_a_run_that_was_killed_before_it_saved_begins_again(tmp_path, description):
  configs.refuse_lost(tmp_path, 500, 1000)
  if description is not None:
    (tmp_path / 'run.json').write_text(json.dumps(description))
  (tmp_path / 'metrics.jsonl').write_text('{"step": 490}\n{"ste')
  configs.refuse_lost(tmp_path, 500, 1000)


def test_run_json_has_saved_becomes_true_with_the_first_checkpoint(tmp_path):
  configs.describe(tmp_path, {'seed': 3}, has_saved=False)
  assert json.loads((tmp_path / 'run.json').read_text()) == {'seed': 3, 'has_saved': False}
  configs.say_saved(tmp_path)
  assert json.loads((tmp_path / 'run.json').read_text()) == {'seed': 3, 'has_saved': True}


def test_resume_refuses_a_run_whose_zero_warmup_meant_a_rate_of_zero(refusal):
  more = 'policy/adam.learning_rate = @warmup_constant()\nN = 0\nwarmup_constant.warmup_steps = %N\n'
  then = texts(more=more)
  assert 'it has trained nothing so far' in refusal(then, then)
  since = metadata() | {'zero_warmup': 'full rate'}
  assert refusal(then, then, since, since) is None
  some = texts(more=more.replace('N = 0', 'N = 5'))
  assert refusal(some, some) is None


def test_a_start_that_was_moved_keeps_its_name(refusal):
  assert refusal(texts(), texts(init='/elsewhere/t5')) is None
  assert "INIT_FROM: '/data/t5' → '/data/t6'" in refusal(texts(), texts(init='/data/t6'))


def test_resume_compares_the_contents_of_models_and_data(refusal):
  message = refusal({}, {}, metadata(emb_dim=8), metadata(emb_dim=16, remat=True))
  assert 'model.emb_dim: 8 → 16' in message
  assert 'remat' not in message
  place = "train.data = @load_triplets\nload_triplets.triplets = '{}'\n"
  files = [texts(more=place.format(name)) for name in ('a', 'b')]
  assert refusal(*files) is None
  message = refusal(*files, described=metadata(fingerprint='y'))
  assert "load_triplets.triplets: 'a' → 'b'" in message
  assert 'the run has trained on other records so far' in message


def test_resume_refuses_labels_that_an_earlier_version_made_by_another_rule(refusal):
  def labelled(**labels):
    described = metadata()
    described['data']['labels'] = {
      'rule': 'binary', 'said': 'the rewards 0 and 1 are labels themselves', 'desirable': 5, 'labels': 8,
      'least_batch': 1, 'unlike_earlier': 8,
    } | labels  # fmt: skip
    return described

  message = refusal({}, {}, metadata(), labelled())
  assert 'labels: by a mean, whatever the rewards → the rewards 0 and 1 are labels themselves' in message
  assert (
    'count thumbs-ups and ties as bad' in message and 'train into another folder (--model_dir)' in message
  )
  # Where no label is another, an earlier run goes on; so does one of the same rule.
  assert refusal({}, {}, metadata(), labelled(rule='dataset mean', unlike_earlier=0)) is None
  assert refusal({}, {}, labelled(), labelled(said='in other words')) is None
  assert "data.labels.rule: 'dataset mean' → 'binary'" in refusal(
    {}, {}, labelled(rule='dataset mean'), labelled()
  )


def described(**changes):
  return metadata() | changes


def test_other_code_columns_or_parameters_at_the_start_are_refused(refusal):
  data = metadata()['data']
  for name, then, now, message in (
    (
      'online',
      {'reward_code': 'x'},
      {'reward_code': 'y'},
      "the reward function's file, or a file that it imports",
    ),
    ('decoding', {'reward_code': 'x'}, {'reward_code': 'y'}, "samples.reward_code: 'x' → 'y'"),
    ('code', {'algorithm_code': 'x'}, {'algorithm_code': 'y'}, "the algorithm's file"),
    ('data', data | {'train_columns': {'label': 'x'}}, data | {'train_columns': {'label': 'y'}}, 'label'),
    ('init_digest', 'x', 'y', 'INIT_FROM holds other parameters than those from which the run started'),
  ):
    assert message in refusal({}, {}, described(**{name: then}), described(**{name: now}))
    # An earlier version recorded none.
    assert refusal({}, {}, metadata(), described(**{name: now})) is None
  # How many prompts are sampled to measure is no part of the run.
  assert refusal({}, {}, described(decoding={'prompts': 1}), described(decoding={'prompts': 2})) is None


def test_a_start_that_holds_the_same_parameters_may_have_another_name(refusal):
  other = texts(init='/data/t6')
  assert refusal(texts(), other, described(init_digest='x'), described(init_digest='x')) is None
  assert 'INIT_FROM' in refusal(texts(), other, described(init_digest='x'), described(init_digest='y'))


def test_resume_ignores_a_name_that_the_saved_metadata_lack(refusal):
  assert refusal({}, {}, metadata(fingerprint=None), metadata()) is None


def test_a_run_without_a_saved_deal_counts_as_dealt_together(refusal):
  assert refusal({}, {}, metadata(), metadata() | {'deal': 'together'}) is None
  assert "deal: 'together' → 'uniform'" in refusal({}, {}, metadata(), metadata() | {'deal': 'uniform'})
  known = "train.deal = 'together'\n"
  dealt = 'DEAL = {!r}\ntrain.deal = %DEAL\n'
  assert refusal(texts(), texts(known, more=dealt.format('together'))) is None
  assert "deal: 'together' → 'uniform'" in refusal(texts(), texts(known, more=dealt.format('uniform')))


def test_a_run_keeps_the_pairs_that_it_was_made_with_or_is_refused(refusal):
  """Runs of before the data decided say best_worst, on whatever data."""
  bound = 'PAIRS = {!r}\nUnitOptions.pairs = %PAIRS\ntrain.unit_options = @UnitOptions\n'
  before, now, said = (texts(more=bound.format(pairs)) for pairs in ('best_worst', None, 'best_worst'))

  def made(pairs):
    about = metadata()
    return about | {'data': about['data'] | {'units': {'unit': 'pair', 'pairs': pairs, 'margin': 0.0}}}

  # Of rewards: the pairs are the same.
  assert refusal(before, now, made('best_worst'), made('best_worst')) is None
  # Of comparisons: the default is another, and the run is resumed where its own is set.
  message = refusal(before, now, made('best_worst'), made('logged'))
  assert "PAIRS: 'best_worst' → None" in message
  assert "data.units.pairs: 'best_worst' → 'logged'" in message
  assert "Set them back (--set PAIRS='best_worst')" in message
  assert refusal(before, said, made('best_worst'), made('best_worst')) is None
  # Groups and single responses have no pairs.
  assert refusal(before, now) is None
  assert refusal(before, texts(more=bound.format('all')), made('best_worst'), made('all'))


def test_a_run_keeps_the_end_of_prompts_that_it_was_made_with(refusal):
  """Runs of before KEEP kept the start, and say so; auto takes what they have."""
  keep, known = (
    'KEEP = {!r}\nload_triplets.keep = %KEEP\ntrain.data = @load_triplets\n',
    'load_triplets.keep = {!r}\n',
  )
  before = texts(known.format('start'), more='train.data = @load_triplets\n')
  assert refusal(before, texts(known.format('auto'), more=keep.format('auto'))) is None
  assert "keep: 'start' → 'end'" in refusal(before, texts(known.format('auto'), more=keep.format('end')))


def test_a_resumed_run_keeps_its_first_texts_and_records_the_later_ones(tmp_path, caplog):
  caplog.set_level(logging.INFO, logger='dro_jax')
  configs.record(tmp_path, texts(), 0)
  configs.record(tmp_path, texts(), 5)
  assert not caplog.messages
  for _ in range(2):
    configs.record(tmp_path, texts(steps=20), 7)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['config.7.gin', 'config.gin', 'defaults.gin']
  assert 'STEPS = 10' in (tmp_path / 'config.gin').read_text()
  [message] = caplog.messages
  assert 'STEPS: 10 → 20' in message
  # A run that starts anew leaves nothing of the one before.
  configs.record(tmp_path, texts(steps=3), 0)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['config.gin', 'defaults.gin']
  assert 'STEPS = 3' in (tmp_path / 'config.gin').read_text()


def test_every_setting_of_a_run_says_what_changing_it_does():
  """Those that say nothing decide the numbers: here are all of them, to be looked at once more."""
  decisive = {
    f'{part.__name__}.{name}'
    for part in CONFIGURABLES
    for name, effect in effects.effects(part).items()
    if effect == effects.NUMBERS
  }
  assert decisive == {
    'RunSpec.data', 'RunSpec.algorithm', 'RunSpec.reference', 'RunSpec.seed', 'Policy.init_from',
    'Policy.config', 'Compute.dtype', 'Compute.scan_layers', 'Compute.dropout_rate', 'Value.readout',
    'Value.shared', 'Value.frozen_trunk', 'Value.warmup_steps',
    'Optimizers.policy', 'Optimizers.value', 'Batches.size',
    'Batches.deal', 'UnitOptions.margin', 'UnitOptions.group_size', 'UnitOptions.ranked',
    'RolloutOptions.reward', 'RolloutOptions.temperature', 'RolloutOptions.max_length', 'Cached.sample',
    'Soft.alpha', 'Soft.every', 'Hard.every',
    *(
      f'load_triplets.{name}'
      for name in (
        'columns', 'map_reward', 'rewards', 'template', 'chat_template', 'chat', 'prompt_length',
        'response_length', 'overlong', 'keep', 'scaling', 'validation_fraction', 'test_fraction',
        'split_salt', 'task_split', 'eval_task_split', 'task_modules',
      )
    ),
    'fit_value.folds', 'fit_value.held_out', 'fit_value.configs',
    'a_lol_stages.configs', 'train.configs',
  }  # fmt: skip


def test_where_stores_lie_is_a_place():
  for name in (reference.Frozen, reference.Soft, reference.Hard, reference.Cached):
    assert effects.effects(name)['store'] == effects.PLACE
  difference = differences.Difference('soft.alpha', '0.5', '0.6', None)
  assert configs.accepted(difference, EFFECTS) is None
