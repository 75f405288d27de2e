import jax
import pytest

from dro_jax import limits
from dro_jax.errors import UsageError
from dro_jax.evaluation import evaluate, generate, report
from dro_jax.run.spec import RunSpec


@pytest.mark.parametrize('value', [0, 0.0, -1, float('nan'), float('inf')])
def test_numbers_that_are_not_above_zero_are_refused(value):
  with pytest.raises(UsageError, match=r'kto: beta=.* must be above 0, because .*--gin\.kto\.beta=NUMBER'):
    limits.above_zero('kto', 'its gradient is 0 there', beta=value)
  limits.above_zero('kto', '', beta=1e-9, tau=3)


def test_at_least_zero_accepts_zero_and_refuses_negative_numbers():
  limits.at_least_zero('rloo', beta=0)
  with pytest.raises(UsageError, match='rloo: beta=-0.1 must be 0 or more'):
    limits.at_least_zero('rloo', beta=-0.1)


def test_a_range_is_half_open():
  limits.within('dpo', 0, 0.5, '', label_smoothing=0)
  with pytest.raises(UsageError, match='label_smoothing=0.5 must be at least 0 and below 0.5'):
    limits.within('dpo', 0, 0.5, '', label_smoothing=0.5)


def test_traced_numbers_pass():
  jax.eval_shape(lambda x: limits.above_zero('kto', '', beta=x) or x, 0.0)


@pytest.mark.parametrize('value', [-1, 2**63, 0.5, True, None])
def test_seeds_that_make_no_key_are_refused(value):
  with pytest.raises(UsageError, match='whole number from 0 to'):
    limits.seed(value)


def test_the_ends_of_seeds_make_keys():
  for value in (0, limits.LARGEST_SEED):
    limits.seed(value)
    jax.random.key(value)


@pytest.mark.parametrize(
  'command',
  [lambda _, **options: RunSpec(None, **options), evaluate.evaluate, generate.generate, report.report],
)
def test_every_command_with_a_seed_checks_it_first(command):
  with pytest.raises(UsageError, match='seed=-1 is out of range: pass a whole number'):
    command('nowhere', seed=-1)
