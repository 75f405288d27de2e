import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.data.table import table
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.run import hooks
from dro_jax.run.folder.validation import Validation

OWN = """
def shortest(prompts, responses, rewards):
  return min(map(len, responses))

def both(prompts, responses, rewards):
  return {'named': float(prompts == ['p1', 'p0']), 'rewarded': sum(rewards or [-1.0])}
"""


@pytest.fixture
def validated(tmp_path):
  records = [{'prompt': f'p{i // 2}', 'response': str(i), 'reward': i} for i in range(4)]
  built = table.build(
    records, vocabularies.vocabulary('bytes'), tmp_path / 't', prompt_length=8, response_length=8
  )
  prompts = built.prompt_digests[[2, 0]]
  samples = np.array(['abc', 'ab'])
  return built, Validation(np.asarray(1.0), sample_prompts=prompts, samples=samples)


def test_metrics_of_ones_own_see_prompts_samples_and_rewards(tmp_path, validated):
  (tmp_path / 'own_metrics.py').write_text(OWN)
  path = tmp_path / 'own_metrics.py'
  own = hooks.make_hooks(metrics=f'{path}:shortest, {path}:both')
  built, responses = validated
  assert hooks.measure(own, built, responses) == {
    'eval/shortest': 2.0, 'eval/named': 1.0, 'eval/rewarded': -1.0
  }  # fmt: skip
  rewarded = responses._replace(sample_rewards=np.array([1.0, 2.0]))
  assert hooks.measure(own, built, rewarded)['eval/rewarded'] == 3.0


def test_a_metric_that_returns_no_number_is_refused(validated):
  with pytest.raises(UsageError, match="METRICS: wordy returned 'much', which is not a number"):
    hooks.measure(hooks.Hooks([wordy]), *validated)


def test_a_metric_takes_no_name_that_is_recorded_already(validated):
  def kl(prompts, responses, rewards):
    return -1.0

  with pytest.raises(UsageError, match='METRICS: kl gives eval/kl, which the run itself records'):
    hooks.measure(hooks.Hooks([kl]), *validated, {'eval/kl': 0.5})
  with pytest.raises(UsageError, match='METRICS: kl gives eval/kl, which another metric records'):
    hooks.measure(hooks.Hooks([kl, kl]), *validated)


def test_steps_that_a_run_does_not_have_cannot_be_profiled():
  with pytest.raises(UsageError, match='profile_steps=30,40: the run has 20 steps'):
    hooks.refuse_unreached(hooks.make_hooks(profile_steps='30,40'), 20)
  hooks.refuse_unreached(hooks.make_hooks(profile_steps='20,40'), 20)


@pytest.mark.parametrize('setting', ['metrics', 'trackers'])
def test_a_file_that_raises_while_it_is_imported_is_refused_in_words(tmp_path, setting):
  (tmp_path / 'own.py').write_text('def f(*_):\n  return 0\n\n1 / 0\n')
  said = rf'{setting.upper()}=.*own.py:f: importing .*own.py raised ZeroDivisionError.*own.py, line 4\)'
  with pytest.raises(UsageError, match=said):
    hooks.make_hooks(**{setting: f'{tmp_path / "own.py"}:f'})


def test_a_metric_that_raises_is_refused_with_its_line(validated):
  with pytest.raises(UsageError, match=r'METRICS: worst raised TypeError: .*test_hooks.py, line \d+\)'):
    hooks.measure(hooks.Hooks([worst]), *validated)


def worst(prompts, responses, rewards):
  return min(rewards)


def test_the_names_of_ones_own_metrics_are_known_before_anything_is_sampled(validated):
  seen = []

  def both(*call):
    seen.append(call)
    return {'one': 1, 'two': 2}

  table, _ = validated
  assert hooks.measured_names(hooks.Hooks([both, worst]), table, 8, rewarded=True) == {
    'eval/one', 'eval/two', 'eval/worst'
  }  # fmt: skip
  hooks.measured_names(hooks.Hooks([both]), table, 1, rewarded=False)
  [(prompts, responses, rewards), (some, _, unrewarded)] = seen
  assert sorted(zip(prompts, responses, rewards)) == [('p0', '0', 0.0), ('p1', '2', 2.0)]
  assert (len(some), unrewarded) == (1, None)


def wordy(prompts, responses, rewards):
  return 'much'


def test_metrics_of_a_run_that_draws_no_samples_are_refused():
  with pytest.raises(UsageError, match='KL_PROMPTS=64'):
    hooks.refuse_unsampled(hooks.Hooks([wordy]), draws=False)
  hooks.refuse_unsampled(hooks.Hooks([wordy]), draws=True)
  hooks.refuse_unsampled(hooks.Hooks(), draws=False)


@pytest.mark.parametrize('steps', ['10', '20,10', 'a,b', '0,3', (1, 2, 3), 7])
def test_profile_steps_that_are_no_first_and_last_are_refused(steps):
  with pytest.raises(UsageError, match='profile_steps=.*--set PROFILE_STEPS=10,20'):
    hooks.make_hooks(profile_steps=steps)
  assert hooks.make_hooks(profile_steps='10,20').profile_steps == (10, 20)
  assert hooks.make_hooks(profile_steps=(3, 3)).profile_steps == (3, 3)


def test_the_profiler_records_the_steps_that_are_named(tmp_path):
  profiler = hooks.Profiler(tmp_path, (2, 3))
  found = {}
  for step in range(1, 5):
    profiler.before(step)
    profiler.after(step, jax.jit(jnp.sin)(1.0))
    found[step] = bool(list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb')))
  profiler.close()
  assert found == {1: False, 2: False, 3: True, 4: True}


def test_a_run_that_is_stopped_among_the_steps_keeps_its_profile(tmp_path):
  profiler = hooks.Profiler(tmp_path, (2, 30))
  profiler.before(7)  # Resumed there.
  profiler.close()
  assert list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))
