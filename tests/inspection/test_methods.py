import json

import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import UsageError
from dro_jax.inspection import methods as admission
from dro_jax.models.t5.config import T5Config
from dro_jax.run import batches
from tests import runs


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """Writes records to a file: 40 prompts of `responses` each, and what else a record has."""
  folder = tmp_path_factory.mktemp('files')

  def write(name, responses=1, reward=lambda i: i % 3 - 1.0, **columns):
    path = folder / f'{name}.jsonl'
    records = [
      {'prompt': f'p{i // responses}', 'response': f'r{i}', 'reward': reward(i), **columns}
      for i in range(40 * responses)
    ]
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return str(path), str(folder / 'cache')

  return write


def asked(written, **options):
  path, cache = written
  triplets = load_triplets(path, cache_dir=cache, validation_fraction=0.2)
  return {found.method: found for found in admission.admissions(triplets, **options)}


def test_methods_has_every_algorithm_that_trains_a_policy_and_no_labels():
  methods = admission.methods()
  assert {'dro_v', 'kto', 'dpo', 'a_lol', 'rloo_online'} <= set(methods)
  assert not {'regression', 'column_labels', 'zero_baseline'} & set(methods)


def test_single_responses_admit_no_pairs_and_no_groups(file):
  found = asked(file('single'))
  assert found['dro_v'].admitted and found['dro_v'].settings == ()
  assert 'every prompt has one response' in found['dpo'].reason and not found['copg'].admitted
  # What another part of the algorithm makes possible is said, with the setting.
  assert found['qrpo'] == admission.Admission('qrpo', True, ('qrpo.quantiles=data_quantiles',))
  assert found['awr'].settings == ('awr.baseline=minibatch_mean_baseline',)
  assert found['gold'].settings == ('REWARD_SCALING=minmax',)


def test_groups_with_propensities_and_values_admit_everything(file):
  written = file(
    'all', 2, lambda i: float(i % 5), behaviour_logprob=-2.0, behaviour_sampler='sampled', value=1.0
  )
  found = asked(written)
  assert [method for method, answer in found.items() if not answer.admitted] == []
  assert found['dpo'].units['units'] == 40 - held_out_prompts(written)
  assert found['oreo'].settings == ('VALUE_READOUT=token',)


def held_out_prompts(written):
  path, cache = written
  triplets = load_triplets(path, cache_dir=cache, validation_fraction=0.2)
  return len(np.unique(triplets.eval.prompt_index))


def test_without_rewards_only_imitation_and_labels_are_left(file):
  found = asked(file('labels', label=True), rewards_problem='a.jsonl:1: no reward')
  admitted = {name: answer.settings for name, answer in found.items() if answer.admitted}
  assert admitted['sft'] == () and admitted['kto'] == ('kto.labels=column_labels',)
  assert found['dro_v'].reason == 'a.jsonl:1: no reward'


def test_pairs_that_the_held_out_prompts_do_not_make_are_refused(file):
  path, cache = file('ties', 2, lambda i: float(i % 2))
  triplets = load_triplets(path, cache_dir=cache, validation_fraction=0.2)
  tied = triplets._replace(eval=triplets.eval.subset(triplets.eval.raw_rewards > 0))
  answers = {answer.method: answer for answer in admission.admissions(tied)}
  assert answers['dpo'].reason.startswith('of the responses held out')


@pytest.mark.parametrize('name', ['dpo', 'a_lol', 'topr', 'weighted_bc', 'kto', 'gold'])
def test_train_refuses_an_algorithm_with_the_reason_that_inspect_gives(file, name, tmp_path, monkeypatch):
  """`train` itself, up to where it has looked at its data."""
  path, cache = written = file('single')

  class Accepted(Exception):
    pass

  def data(**options):
    return load_triplets(path, cache_dir=cache, validation_fraction=0.2, **options)

  formed = batches._formed

  def look(triplets, algorithm, rows, unit_options, **_):
    formed(triplets.train, algorithm.unit, unit_options)
    raise Accepted

  monkeypatch.setattr(batches, 'make_loaders', look)
  try:
    model = T5Config(vocab_size=None, emb_dim=16, num_heads=8, head_dim=4, mlp_dim=32)
    runs.train(str(tmp_path / 'run'), data, getattr(algorithms, name), model=model)
  except UsageError as error:
    said = str(error)
  except Accepted:
    said = ''
  found = asked(written)[name]
  assert (found.reason or bool(found.settings)) if said else found == admission.Admission(name, True)
  if found.reason:
    assert found.reason == said
