"""Held-out numbers do not depend on the order of the held-out file; groups and choices of responses."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import algorithms
from dro_jax.data.batches import groups
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import load_triplets
from dro_jax.errors import UsageError
from dro_jax.models import scoring
from dro_jax.parallel import partitioning
from dro_jax.run import batches, networks, table_scores
from dro_jax.step import reference
from dro_jax.step import state as train_state
from tests.examples import CONFIG
from tests.tiers import tiers

WORDS = vocabularies.vocabulary('bytes')
MODEL = dataclasses.replace(CONFIG, vocab_size=384, emb_dim=8)
mean_labels = algorithms.minibatch_mean_labels
ALGORITHMS = {
  'bco': algorithms.bco,
  'copg': algorithms.copg,
  'dpo': algorithms.dpo,
  'dro_p': algorithms.dro_p,
  'dro_v': algorithms.dro_v,
  'dro_v_batch': algorithms.dro_v,
  'dro_v_binary': functools.partial(algorithms.dro_v_binary, labels=mean_labels),
  'filtered_sft': functools.partial(algorithms.filtered_sft, labels=mean_labels),
  'kto': functools.partial(algorithms.kto, labels=mean_labels),
  'kto_balanced': functools.partial(algorithms.kto, balanced=True, labels=algorithms.column_labels),
  'reinforce': algorithms.reinforce,
}


def records():
  """Few prompts, ties, and duplicates that differ in their reward or in their label only."""
  rng = np.random.default_rng(0)
  found = [
    {
      'prompt': f'say {rng.integers(6)}', 'response': ''.join(rng.choice(list('abc'), rng.integers(1, 5))),
      'reward': float(rng.integers(4)), 'label': bool(rng.integers(2)),
    }
    for _ in range(26)
  ]  # fmt: skip
  twice = [found[0] | {'reward': 7.0}, found[1] | {'label': not found[1]['label']}]
  return found + twice


ORDERS = {
  'mixed': lambda some: [some[i] for i in np.random.default_rng(1).permutation(len(some))],
  'reversed': lambda some: some[::-1],
  'sorted by reward': lambda some: sorted(some, key=lambda record: record['reward']),
}


@pytest.fixture(scope='module')
def triplets(tmp_path_factory):
  """The same held-out records in files of other orders."""
  folder = tmp_path_factory.mktemp('held_out')

  def load(order):
    file = folder / f'{order.replace(" ", "_")}.jsonl'
    file.write_text(''.join(json.dumps(record) + '\n' for record in ORDERS[order](records())))
    return load_triplets(
      str(file), eval_triplets=str(file), prompt_length=16, response_length=8, vocabulary=WORDS,
      cache_dir=str(folder / 'cache'),
    )  # fmt: skip

  return {order: load(order) for order in ORDERS}


def one_device():
  return partitioning.make_mesh(devices=jax.devices()[:1])


def fed(triplets, algorithm, unit_options=groups.UnitOptions(), **settings):
  settings = {'batch_size': 4, 'seed': 0, 'multiple': 1, 'eval_examples': None} | settings
  return batches.make_loaders(
    batches.admitted(triplets, algorithm), algorithm, batches.RowOptions(), unit_options, **settings
  )


@functools.cache
def networks_of(readout):
  """(networks, parameters of a policy and a value that are not at their start, another policy's)."""
  nets = networks.build(MODEL, uses_value=readout is not None, readout=readout or 'prompt')
  params = networks.initial_params(nets, one_device(), 0, None)
  rng = np.random.default_rng(0)
  noisy = functools.partial(jax.tree.map, lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32))
  return nets, noisy(params), noisy(params['policy'])


class Scorer:
  """One policy, one reference, one value: scores by any algorithm."""

  def __init__(self, name, by_batch=False):
    self.algorithm = ALGORITHMS[name]()
    readout = 'batch' if name == 'dro_v_batch' else 'prompt'
    nets, params, other = networks_of(readout if self.algorithm.uses_value else None)
    statistics = {key: jnp.asarray(value) for key, value in self.algorithm.statistics.items()}
    frozen = reference.Frozen().build(scoring.make_score(nets.policy))
    frozen = frozen if self.algorithm.uses_reference else None
    other = other if self.algorithm.uses_reference else None
    self.state = train_state.TrainState(jnp.zeros((), jnp.int32), params, {}, other, statistics)
    self.score = table_scores.make_table_scorer(nets, self.algorithm, frozen, one_device(), by_batch=by_batch)

  def criterion(self, triplets, **settings):
    scored = self.score(self.state, fed(triplets, self.algorithm, **settings).eval)
    return scored.losses[self.algorithm.criterion]


@pytest.mark.parametrize('name', tiers(('dpo', 'dro_v', 'kto'), ALGORITHMS))
def test_the_criterion_of_a_policy_is_the_same_in_every_order_of_the_file(triplets, name):
  scorer = Scorer(name)
  found = [scorer.criterion(of) for of in triplets.values()]
  assert found[0] != 0
  np.testing.assert_allclose(found, found[0], rtol=1e-5)


@pytest.mark.parametrize('name', ['dro_p', 'dro_v_batch'])
def test_no_batch_size_decides_a_statistic_of_the_held_out_part(triplets, name):
  scorer = Scorer(name)
  found = [scorer.criterion(triplets['mixed'], batch_size=size) for size in (4, 28)]
  np.testing.assert_allclose(found, found[0], rtol=1e-5)


def test_a_batch_value_is_the_mean_over_the_whole_held_out_part(triplets):
  algorithm, (nets, params, other) = algorithms.dro_v(), networks_of('batch')
  per_prompt = nets._replace(value=dataclasses.replace(nets.value, readout='prompt'))
  state = train_state.TrainState(jnp.zeros((), jnp.int32), params, {}, other)
  loader = fed(triplets['mixed'], algorithm).eval
  frozen = reference.Frozen().build(scoring.make_score(nets.policy))
  whole, each = (
    table_scores.make_table_scorer(some, algorithm, frozen, one_device())(state, loader).values
    for some in (nets, per_prompt)
  )
  assert each.std() > 0.01
  np.testing.assert_allclose(whole, each.mean(), rtol=1e-5)


def test_a_run_of_an_earlier_version_keeps_its_files_order(triplets):
  scorer = Scorer('dro_p', by_batch=True)
  found = [scorer.criterion(of, in_file_order=True) for of in triplets.values()]
  assert np.ptp(found) > 0.01


def test_which_responses_are_held_out_does_not_depend_on_the_order(triplets):
  tables = [of.eval.subset(batches.by_content(of.eval)) for of in triplets.values()]
  for table in tables:
    assert list(table.responses) == list(tables[0].responses)
    for name in ('prompt_digests', 'rewards'):
      np.testing.assert_array_equal(getattr(table, name), getattr(tables[0], name))
    np.testing.assert_array_equal(table.columns['label'], tables[0].columns['label'])


def test_a_run_validates_on_the_first_of_that_order(triplets):
  found = fed(triplets['mixed'], algorithms.dro_v(), eval_examples=9).eval.table
  expected = triplets['reversed'].eval
  expected = expected.subset(batches.by_content(expected)[:9])
  assert list(found.responses) == list(expected.responses)
  np.testing.assert_array_equal(found.rewards, expected.rewards)


def written(tmp_path, answers):
  """Triplets of prompts with so many answers each, whose rewards differ."""
  records = [
    {'prompt': f'say {prompt}', 'response': 'abcdefghi'[answer], 'reward': float(answer - prompt)}
    for prompt, count in enumerate(answers)
    for answer in range(count)
  ]
  (tmp_path / 'some.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  return load_triplets(
    str(tmp_path / 'some.jsonl'), validation_fraction=0, vocabulary=WORDS, prompt_length=16,
    response_length=8, cache_dir=str(tmp_path / 'cache'),
  )  # fmt: skip


def test_groups_that_must_be_whole_are_not_split(tmp_path):
  some = written(tmp_path, [9, 2, 1])
  with pytest.raises(UsageError, match=r'rpo sums over .* has 9: pass UnitOptions\(group_size=9\)'):
    fed(some, algorithms.rpo())
  whole = fed(some, algorithms.rpo(), unit_options=groups.UnitOptions(group_size=9))
  assert (whole.units['units'], whole.units['prompts_without']) == (2, 1)
  assert fed(some, algorithms.dro_group_value()).units['units'] == 3


@pytest.mark.parametrize('name', ['rpo', 'dro_group_value'])
def test_one_answer_to_each_prompt_is_refused_by_methods_of_groups(tmp_path, name):
  with pytest.raises(UsageError, match='responses to each prompt have equal rewards'):
    fed(written(tmp_path, [1, 1]), getattr(algorithms, name)())


def test_rft_trains_on_the_best_answers_alone_and_counts_the_prompts_that_it_skips(tmp_path):
  some = written(tmp_path, [4, 2, 1])
  chosen = batches.admitted(some, algorithms.rft(threshold=0))
  kept = zip(chosen.train.prompt_index.tolist(), chosen.train.raw_rewards.tolist())
  assert sorted(kept) == [(0, 3), (1, 0)]
  assert chosen.report['selected_records'] == 2
  assert '1 of 3 prompts have none and are skipped; 2 of 7' in chosen.report['labels']['said']
