import ast
import dataclasses
import functools
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dro_jax import algorithms, models
from dro_jax.errors import UsageError
from dro_jax.models import beam_search, policy, sampling, scoring, stacks
from dro_jax.parallel import partitioning
from dro_jax.run import networks
from dro_jax.step import reference, train_step
from dro_jax.step import state as train_state
from tests.examples import CONFIG, Example, layout, random_examples
from tests.models import bag

BAG = bag.BagConfig(vocab_size=32)
EXAMPLES = random_examples(8)
PACKAGE = pathlib.Path(policy.__file__).resolve().parent.parent


@pytest.fixture
def added(monkeypatch):
  """The second family, by one row."""
  monkeypatch.setitem(policy.FAMILIES, 'bag', bag.FAMILY)


def initialised(readout='prompt', shared=False, uses_value=True):
  nets = networks.build(BAG, uses_value=uses_value, readout=readout, shared=shared)
  return nets, networks.initial_params(nets, partitioning.make_mesh(devices=jax.devices()[:1]), 0, None)


@pytest.mark.usefixtures('added')
def test_an_added_family_scores_packed_rows_like_rows_of_one_response():
  nets, params = initialised(uses_value=False)
  score = jax.jit(scoring.make_score(nets.policy))
  packed, apart = (
    score(params, layout(EXAMPLES, rows, slots), None).logps for rows, slots in ((4, 2), (8, 1))
  )
  np.testing.assert_allclose(packed.T.reshape(-1), apart[:, 0], rtol=1e-5)
  assert np.ptp(apart) > 0.1


@pytest.mark.usefixtures('added')
@pytest.mark.parametrize(
  'readout, shared',
  [('prompt', False), *(pytest.param('token', shared, marks=pytest.mark.long) for shared in (False, True))],
)
def test_an_added_family_trains_with_a_value_network(readout, shared):
  nets, params = initialised(readout, shared)
  score, algorithm = scoring.make_score(nets.policy, nets.value), algorithms.dro_v()
  optimizers = {name: optax.adam(0.05) for name in params}
  frozen = reference.Frozen().build(scoring.make_score(nets.policy))
  step = jax.jit(train_step.make_train_step(score, algorithm, optimizers, frozen, num_microbatches=2))
  state, rows = train_state.create(params, optimizers, True), layout(EXAMPLES, 4, 2)
  losses = []
  for _ in range(20):
    state, output = step(state, rows)
    losses.append(float(output.metrics['loss']))
  assert losses[-1] < losses[0] - 0.1
  assert float(output.metrics['gradient_norm/policy']) > 0 < float(output.metrics['gradient_norm/value'])


def decoded(decode):
  """Prompts, the responses that `decode(network, params, prompts)` finds, and their scores."""
  nets, params = initialised(uses_value=False)
  rows = layout(EXAMPLES, 8, 1)
  samples = decode(nets.policy, params['policy'], (rows.prompt_tokens, rows.prompt_segments))
  answers = [
    Example(example.prompt, np.asarray(tokens[:length]), 0.0)
    for example, tokens, length in zip(EXAMPLES, samples.tokens, samples.lengths)
  ]
  return samples, jax.jit(scoring.make_score(nets.policy))(params, layout(answers, 8, 1), None).logps[:, 0]


@pytest.mark.usefixtures('added')
@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_an_added_family_samples_with_the_log_probs_that_it_scores(temperature):
  samples, logps = decoded(
    lambda *model: sampling.sample(*model, 12, jax.random.key(3), temperature=temperature)
  )
  np.testing.assert_allclose(samples.logps, logps, rtol=1e-5)
  for tokens, length in zip(np.asarray(samples.tokens), samples.lengths):
    assert not np.any(tokens[: length - 1] == BAG.eos) and np.all(tokens[length:] == BAG.pad)
    assert length == 12 or tokens[length - 1] == BAG.eos
  assert temperature == 0 or np.min(samples.lengths) < 12


@pytest.mark.usefixtures('added')
def test_an_added_family_searches_with_the_log_probs_that_it_scores():
  samples, logps = decoded(lambda *model: beam_search.search(*model, 6, beams=3, repetition_penalty=1.2))
  np.testing.assert_allclose(samples.logps, logps, rtol=1e-5)


@pytest.mark.usefixtures('added')
@pytest.mark.parametrize('config', [CONFIG, BAG], ids=['t5', 'bag'])
def test_a_configuration_survives_its_metadata(config):
  saved = json.loads(json.dumps(policy.config_metadata(config)))
  assert policy.saved_config(saved) == config
  assert policy.make_network(config).config == config


def test_metadata_of_an_unknown_family_is_refused():
  with pytest.raises(UsageError, match="no model family 'bag', only t5, causal, t5gemma: pass one"):
    policy.saved_config({'family': 'bag', 'model': dataclasses.asdict(BAG)})


def test_a_field_that_a_configuration_lacks_is_refused_with_the_nearest():
  with pytest.raises(
    UsageError, match=r't5 has no field emb_dimm \(did you mean emb_dim\?\): it has vocab_size'
  ):
    policy.make_config('t5', emb_dimm=3)


def test_a_configuration_of_no_family_is_refused():
  with pytest.raises(UsageError, match='BagConfig is the configuration of no model .* pass one of T5Config'):
    networks.build(BAG, uses_value=False)


def test_every_family_names_its_stacks_as_optimizers_know_them():
  for family in policy.FAMILIES.values():
    assert set(family.stacks) <= set(stacks.STACKS)


def test_the_command_line_finds_every_familys_configuration():
  paths = [entry.split(':') for entry in models.CONFIGS]
  classes = [getattr(importlib.import_module(module), name) for module, name in paths]
  assert classes == [family.config for family in policy.FAMILIES.values()]


def test_only_models_and_checkpoints_import_a_family():
  importers = set()
  for path in PACKAGE.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      names = [node.module or ''] if isinstance(node, ast.ImportFrom) else []
      names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      if any(name.startswith(f'dro_jax.models.{family}') for name in names for family in policy.FAMILIES):
        importers.add(path.relative_to(PACKAGE).parts[0])
  assert importers == {'models', 'checkpoints'}


def test_a_selection_for_the_same_prompts_is_the_whole_selection():
  network = policy.make_network(CONFIG)
  params = jax.jit(network.init)(jax.random.key(0), policy.smallest_rows())['params']
  prompts = jnp.arange(8).reshape(2, 4), jnp.ones((2, 4), jnp.int32)
  start = jax.jit(functools.partial(policy.start, network, max_length=3, copies=2))
  _, cache = start(params, prompts=prompts)
  tokens = jnp.array([5, 6, 7, 8])  # The responses differ from here on.
  _, cache = jax.jit(functools.partial(policy.advance, network))(params, cache, tokens, jnp.array(1))
  rows = jnp.array([1, 1, 3, 2])
  whole, part = (policy.select(network, cache, rows, same_prompts=same) for same in (False, True))
  jax.tree.map(np.testing.assert_array_equal, whole, part)
