import json
import types

import pytest

from dro_jax import algorithms
from dro_jax.run import reward_records
from dro_jax.run.sampling import rewards
from dro_jax.run.sampling.rollouts import RolloutOptions
from dro_jax.run.spec import RunSpec

PROXY = {'name': 'proxy', 'code': 'abc', 'role': 'proxy'}


class Model:
  """A reward model, as far as a record of it goes."""

  reward_name, reward_code, reward_role = 'proxy', 'abc', 'proxy'

  def __call__(self, prompts, responses):
    return [0.0] * len(responses)


def data(*scored_by):
  return types.SimpleNamespace(report={'scored_by': list(scored_by)} if scored_by else {})


def spec(reward=None, algorithm=algorithms.dro_v):
  return RunSpec(data=None, algorithm=algorithm, rollouts=RolloutOptions(reward=reward))


def test_an_online_run_records_what_it_trains_on_and_an_offline_one_what_scored_its_data():
  online = spec(Model(), algorithms.rloo_online)
  assert reward_records.entries(online, online.algorithm, data()) == {
    'rewards': {'trained_on': [PROXY], 'measured_by': PROXY}
  }
  offline = spec('contains')
  assert reward_records.entries(offline, offline.algorithm, data(PROXY)) == {
    'rewards': {'trained_on': [PROXY], 'measured_by': {'name': 'contains', 'code': None}}
  }
  plain = spec()
  assert reward_records.entries(plain, plain.algorithm, data()) == {}


def test_a_reward_model_records_its_role():
  gold = algorithms.bradley_terry(role='gold')
  assert reward_records.entries(spec(), gold, data()) == {'role': 'gold', 'scores': 'preferences'}


def test_measuring_by_the_model_that_scored_the_data_is_warned_about():
  run = spec(Model())
  note = reward_records.note(run, run.algorithm, data(PROXY))
  assert note.startswith('warning: proxy judges a policy that was trained on its own scores')
  assert reward_records.note(run, run.algorithm, data({**PROXY, 'code': 'other'})) == ''
  assert reward_records.note(run, run.algorithm, data()) == ''
  online = spec(Model(), algorithms.rloo_online)
  assert reward_records.note(online, online.algorithm, data(PROXY)) == ''


@pytest.mark.parametrize(
  'record, warned',
  [
    (PROXY, True), ({'name': 'moved', 'code': 'abc'}, True), ({'name': 'proxy', 'code': 'other'}, False),
    ({'name': 'contains', 'code': None}, False),
  ],
)  # fmt: skip
def test_a_judge_is_known_by_its_parameters(record, warned):
  """What `judge` and others ask of a run's metadata, as JSON has it."""
  metadata = json.loads(json.dumps({'rewards': {'trained_on': [PROXY], 'measured_by': None}}))
  assert bool(rewards.why_not_judge(record, metadata)) == warned
  assert rewards.why_not_judge(record, {}) == ''


def test_a_built_in_reward_may_judge_what_was_trained_on_it():
  record = rewards.record_of('exact_match')
  assert rewards.why_not_judge(record, {'rewards': {'trained_on': [record]}}) == ''
