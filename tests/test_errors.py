import ast
import pathlib
import re

import pytest

import dro_jax
from dro_jax import errors

NAMES = ('STEPS', 'LOG_EVERY', 'EVAL_EVERY', 'POLICY_LEARNING_RATE', 'VALUE_LEARNING_RATE', 'Beta')

PACKAGE = pathlib.Path(errors.__file__).parent
RUNS = [PACKAGE.parent / f'gin_configs/runs/{name}.gin' for name in ('train', 'generate')]
# What raises while a run is described, built or trained, which a notebook does without gin.
BUILDS = ('run', 'step', 'algorithms', 'models', 'parallel', 'data/batches', 'limits.py')


@pytest.mark.parametrize(
  'word, hint',
  [
    ('STEPZ', 'STEPS'),
    ('beta', 'Beta'),
    ('learning_rate', 'POLICY_LEARNING_RATE or VALUE_LEARNING_RATE'),
    ('policy_learning_rate', 'POLICY_LEARNING_RATE'),
  ],
)
def test_the_nearest_candidates_are_suggested(word, hint):
  assert errors.did_you_mean(word, NAMES) == f' (did you mean {hint}?)'


def test_a_word_that_resembles_no_candidate_gets_no_suggestion():
  assert errors.did_you_mean('xyzzy', NAMES) == ''
  assert errors.did_you_mean('STEPS', ()) == ''


def test_a_long_value_is_shown_shortened():
  assert errors.shown('a' * 5) == "'aaaaa'"
  assert len(errors.shown('a' * 10**6)) <= 80
  nested = []
  for _ in range(10**4):
    nested = [nested]
  assert len(errors.shown(nested)) <= 80
  assert len(errors.shown(list(range(10**6)))) <= 80


def test_each_exit_has_its_own_exception():
  """Callers catch `ValueError` and `KeyboardInterrupt`; a stopped or failed run is neither."""
  assert issubclass(errors.UsageError, ValueError)
  assert issubclass(errors.NotFinite, errors.Failed) and issubclass(errors.NotFinite, FloatingPointError)
  assert issubclass(errors.Interrupted, KeyboardInterrupt)
  assert not issubclass(errors.Failed, ValueError) and not issubclass(errors.Stopped, errors.Failed)


def _texts(node):
  """The texts in an expression, joined; what is formatted into them is left out."""
  if isinstance(node, ast.JoinedStr):
    return ''.join(part.value for part in node.values if isinstance(part, ast.Constant))
  return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ''


def test_errors_of_a_run_name_the_argument_of_python_beside_the_setting():
  """`--set BATCH=32` means nothing in a notebook: the message has `size=` too."""
  fields = {}
  for file in RUNS:
    for field, macro in re.findall(r'^[\w./]+\.(\w+) = %(\w+)', file.read_text(encoding='utf-8'), re.M):
      fields.setdefault(macro, set()).add(field)
  found, silent = 0, []
  for path in (file for part in BUILDS for file in sorted({PACKAGE / part, *(PACKAGE / part).rglob('*.py')})):
    for call in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if path.is_file() else ():
      for text in map(_texts, call.args if isinstance(call, ast.Call) else ()):
        for macro in re.findall(r'--set ([A-Z]+(?:_[A-Z]+)*)=', text):
          found += 1
          names = fields.get(macro, {macro.lower()})
          if not any(re.search(rf'\b{name}=', text) for name in names):
            silent.append(f'{path.relative_to(PACKAGE)}: {macro}')
  assert found > 40 and not silent


def test_what_errors_spell_in_python_is_there():
  """`RunSpec(reference=frozen())` would send a reader to a name that Python does not have."""
  paths = [path for part in BUILDS for path in (PACKAGE / part, *(PACKAGE / part).rglob('*.py'))]
  texts = [_texts(node) for path in paths if path.is_file() for node in ast.walk(ast.parse(path.read_text()))]
  spelt = {name for text in texts for name in re.findall(r'\breference=(?:dro\.)?(\w+)\(', text)}
  spelt |= {name for text in texts for name in re.findall(r'(?:as|or) ([A-Z]\w+)\(\w+=', text)}
  assert len(spelt) > 8 and spelt <= {*dro_jax.__all__}
