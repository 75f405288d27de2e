import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.data.triplets import load_triplets
from dro_jax.models import policy
from dro_jax.names import SpecialTokens
from dro_jax.run import networks
from dro_jax.run.schedule import Schedule
from dro_jax.step import optimizers
from tests import runs
from tests.models.t5gemma import test_network, tiny
from tests.run.test_train import one_device, write_triplets
from tests.tiers import long


def sizes(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('kind', ['t5gemma', 't5gemma2'])
def test_parameters_met_count_each_sides_layers_and_the_logits_table(kind):
  params = tiny.params(kind)
  encoder, decoder = sizes(params['encoder']), sizes(params['decoder'])
  met = policy.FAMILIES['t5gemma'].parameters_met
  assert met(params, False) == (encoder, decoder)
  assert met(params, True) == (encoder, decoder + 99 * 32)


def test_special_tokens_are_the_configurations():
  assert policy.special_tokens(test_network.network('t5gemma2')) == SpecialTokens(pad=0, eos=1, start=2)


def test_a_configuration_survives_its_metadata():
  for kind in tiny.KINDS:
    saved = json.loads(json.dumps(policy.config_metadata(tiny.config(kind))))
    assert policy.saved_config(saved) == tiny.config(kind)


def test_a_prompts_value_has_the_encoders_width():
  nets = networks.build(tiny.config('unequal'), uses_value=True, shared=True)
  assert networks.abstract_params(nets)['value']['head']['kernel'].value.shape == (48,)
  nets = networks.build(tiny.config('unequal'), uses_value=True, readout='token', shared=True)
  assert networks.abstract_params(nets)['value']['head']['kernel'].value.shape == (32,)


@pytest.fixture(scope='module')
def triplets(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  load = functools.partial(
    load_triplets, write_triplets(folder / 'triplets.jsonl'), prompt_length=32, response_length=16,
    validation_fraction=0.2, cache_dir=str(folder / 'cache'),
  )  # fmt: skip
  return load


ALGORITHMS = ('dro_v', 'kto', 'copg', 'sft')


@pytest.mark.parametrize('case', long(*itertools.product(('t5gemma', 't5gemma2'), ALGORITHMS)), ids='-'.join)
def test_algorithms_train(triplets, tmp_path, case):
  kind, name = case
  model = dataclasses.replace(tiny.config(kind), vocab_size=None, scan_layers=True)
  result = runs.train(
    tmp_path, triplets, getattr(algorithms, name), model=model, mesh=one_device, batch_size=8,
    policy_optimizer=functools.partial(optimizers.adamw, 1e-3),
    value_optimizer=functools.partial(optimizers.adafactor, 1e-2),
    schedule=functools.partial(Schedule, steps=3, log_every=1, eval_every=0, checkpoint_every=0),
  )  # fmt: skip
  assert result['step'] == 3
  records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  losses = [record['loss'] for record in records if 'loss' in record]
  assert len(losses) == 3 and np.all(np.isfinite(losses)) and len({*losses}) > 1
  assert records[-1]['gradient_norm/policy'] > 0
