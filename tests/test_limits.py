import ast
import pathlib
import re

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


@pytest.mark.parametrize('value', ['0.3', True])
def test_what_can_never_be_a_number_is_refused(value):
  for check in (limits.at_least_zero, lambda *owner, **values: limits.within(*owner, 0, 1, '', **values)):
    with pytest.raises(UsageError, match=f'dro_v: tau={value!r} is not a number; pass .*--set TAU=NUMBER'):
      check('dro_v', tau=value)


def test_at_least_zero_accepts_zero_and_refuses_negative_numbers():
  limits.at_least_zero('rloo', beta=0)
  with pytest.raises(UsageError, match='rloo: beta=-0.1 must be 0 or more'):
    limits.at_least_zero('rloo', beta=-0.1)


def test_a_range_is_half_open():
  limits.within('dpo', 0, 0.5, '', label_smoothing=0)
  with pytest.raises(UsageError, match='label_smoothing=0.5 must be at least 0 and below 0.5'):
    limits.within('dpo', 0, 0.5, '', label_smoothing=0.5)


def _checked(source):
  """The names OWNER.PARAMETER of the numbers that a module's calls of limits check."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call) and ast.unparse(node.func) in _CHECKS:
      yield from (f'{node.args[0].value}.{keyword.arg}' for keyword in node.keywords)


_CHECKS = ('limits.above_zero', 'limits.at_least_zero', 'limits.within')
_ROOT = pathlib.Path(limits.__file__).resolve().parents[1]


def test_an_error_names_the_setting_that_exists_or_none():
  bound = {}
  for file in (_ROOT / 'gin_configs' / 'runs').glob('*.gin'):
    bound |= dict(re.findall(r'^(\w+\.\w+) = %(\w+)', file.read_text(), re.MULTILINE))
  checked = {name for file in (_ROOT / 'dro_jax').rglob('*.py') for name in _checked(file.read_text())}
  # Those of the endpoint that are passed as a mapping.
  checked |= {f'Endpoint.{name}' for name in ('max_length', 'concurrency', 'requests_per_minute')}
  assert {'dpo.beta', 'kto.beta', 'judge.folds', 'Endpoint.timeout'} < checked
  for name in checked:
    owner, _, parameter = name.partition('.')
    with pytest.raises(UsageError) as caught:
      limits.at_least_zero(owner, **{parameter: -1})
    assert re.findall(r'--set (\w+)=NUMBER\.$', str(caught.value)) == [*filter(None, [bound.get(name)])]
    assert ('TAU' in str(caught.value)) == (bound.get(name) == 'TAU')


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
