import dataclasses

import numpy as np
import pytest

from dro_jax.data import triplets
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models import scoring
from dro_jax.parallel import partitioning
from dro_jax.run import networks
from dro_jax.run.sampling import policy_samples
from dro_jax.step import reference
from dro_jax.step import state as train_state
from tests.examples import CONFIG
from tests.run.test_train import write_triplets

CONFIG = dataclasses.replace(CONFIG, vocab_size=384, num_heads=2)


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  folder = tmp_path_factory.mktemp('own')
  return triplets.load_triplets(
    write_triplets(folder / 't.jsonl'), prompt_length=16, response_length=8, validation_fraction=0,
    cache_dir=str(folder / 'cache'),
  ).train  # fmt: skip


@pytest.fixture(scope='module')
def mesh():
  return partitioning.make_mesh(data=-1)


@pytest.fixture(scope='module')
def nets():
  return networks.build(CONFIG, uses_value=False)


def state_of(nets, mesh, seed, other):
  policy, ref = (networks.initial_params(nets, mesh, s, None)['policy'] for s in (seed, other))
  return train_state.TrainState(np.zeros((), np.int32), {'policy': policy}, {}, ref)


def make(nets, mesh, count=6, **changes):
  frozen = reference.Frozen().build(scoring.make_score(nets.policy))
  options = {'max_length': 5} | changes
  return policy_samples.make_draw(nets, frozen, mesh, vocabularies.vocabulary('bytes'), count, **options)


@pytest.fixture(scope='module')
def usual(nets, mesh):
  """Keeps the answers of the first reference that it sees: that of seed 1 in all tests."""
  return make(nets, mesh)


def test_a_policy_is_nothing_away_from_itself(nets, mesh, table, usual):
  draw, settings = usual
  drawn = draw(state_of(nets, mesh, 1, 1), table)
  assert (drawn.log_ratios == 0).all()
  assert len(drawn.prompts) == len(np.unique(drawn.prompts)) == 6
  assert (drawn.reference_log_ratios == 0).all() and drawn.reference_log_ratios.shape == (6, 4)
  measured = policy_samples.summary(drawn)
  assert measured.keys() == {'sample_tokens', 'kl', 'mass_kept', 'mass_kept_effective_size'}
  assert (measured['mass_kept'], measured['mass_kept_effective_size']) == (1, 24)
  expected = {'prompts': 6, 'temperature': 1.0, 'max_length': 5, 'reward': None, 'reward_code': None}
  assert settings == expected


def test_kl_is_that_of_the_samples_and_rewards_are_the_functions(nets, mesh, table):
  """A mean of log π(y)/π_ref(y) over samples y of π, here by scoring what was drawn anew."""
  draw, settings = make(nets, mesh, reward='length_reward')
  state = state_of(nets, mesh, 0, 1)
  drawn = draw(state, table)
  assert settings['reward'] == 'length_reward'
  np.testing.assert_allclose(drawn.rewards, [-abs(len(text) - 40) / 40 for text in drawn.responses])
  assert policy_samples.summary(drawn)['kl'] > 0
  again = draw(state, table.subset(np.arange(len(table))[::-1]))
  assert (again.responses == drawn.responses).all()  # Whatever the table's order.
  np.testing.assert_allclose(again.log_ratios, drawn.log_ratios, rtol=1e-5)


def test_mass_is_measured_on_answers_of_the_reference_that_stay_the_same(nets, mesh, table, usual):
  draw, _ = usual
  apart = draw(state_of(nets, mesh, 0, 1), table)
  rho = apart.reference_log_ratios
  # −E_ref[ρ] is KL(π_ref‖π), and E_π[ρ], of the policy's own samples, KL(π‖π_ref).
  assert rho.mean() < 0 < apart.log_ratios.mean()
  measured = policy_samples.summary(apart)
  assert measured['mass_kept'] == pytest.approx(np.exp(rho).mean())
  assert measured['mass_kept_effective_size'] == pytest.approx(np.exp(rho).sum() ** 2 / np.exp(2 * rho).sum())
  # Another policy is scored on the same answers, and a process that resumes the run draws them again.
  assert (draw(state_of(nets, mesh, 1, 1), table).reference_log_ratios == 0).all()
  resumed = make(nets, mesh)[0](state_of(nets, mesh, 0, 1), table)
  np.testing.assert_array_equal(resumed.reference_log_ratios, rho)


def test_without_the_parameters_of_a_reference_there_is_no_kl_and_no_mass(nets, mesh, table):
  draw, _ = policy_samples.make_draw(nets, None, mesh, vocabularies.vocabulary('bytes'), 6, max_length=5)
  drawn = draw(state_of(nets, mesh, 0, 1), table)
  assert drawn.log_ratios is None and drawn.reference_log_ratios is None
  assert policy_samples.summary(drawn).keys() == {'sample_tokens'}


@pytest.mark.long
def test_kl_to_a_reference_that_moves_is_named_apart(nets, mesh, table, usual):
  state = state_of(nets, mesh, 0, 0)._replace(initial=state_of(nets, mesh, 0, 1).reference)
  soft = reference.Soft().build(scoring.make_score(nets.policy))
  draw, _ = policy_samples.make_draw(nets, soft, mesh, vocabularies.vocabulary('bytes'), 6, max_length=5)
  drawn = draw(state, table)
  found, against_initial = policy_samples.summary(drawn), usual[0](state_of(nets, mesh, 0, 1), table)
  assert found['kl_moving'] == 0
  assert found['kl'] == pytest.approx(policy_samples.summary(against_initial)['kl'], rel=1e-5)
  # Mass is kept on the answers of the initial policy.
  np.testing.assert_allclose(drawn.reference_log_ratios, against_initial.reference_log_ratios, rtol=1e-5)


@pytest.mark.parametrize(
  'reward, said',
  [
    ('exactmatch', r'is not a reward function \(did you mean exact_match\?\): pass one of'),
    ('absent.py:f', 'cannot import absent.py'),
  ],
)
def test_a_reward_that_is_not_there_is_refused_in_words(nets, mesh, reward, said):
  with pytest.raises(UsageError, match=said):
    make(nets, mesh, reward=reward)


def test_a_few_prompts_are_always_the_same(table):
  few, more = policy_samples.chosen(table, 3), policy_samples.chosen(table, 5)
  assert set(few) < set(more)
  assert len(policy_samples.chosen(table, 1000)) == len(np.unique(table.prompt_index))
