import pytest

from dro_jax import errors

NAMES = ('STEPS', 'LOG_EVERY', 'EVAL_EVERY', 'POLICY_LEARNING_RATE', 'VALUE_LEARNING_RATE', 'Beta')


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
