import math

import pytest

from dro_jax.checkpoints import bound
from dro_jax.errors import UsageError


@pytest.mark.parametrize(
  'text, metrics, keeps',
  [
    ('eval/kl<=2', {'eval/kl': 2.0}, True),
    ('eval/kl<=2', {'eval/kl': 2.1}, False),
    (' eval/mass_kept >= .5 ', {'eval/mass_kept': 0.5}, True),
    ('eval/mass_kept>=.5', {'eval/mass_kept': 0.4}, False),
    ('eval/kl<=2', {}, False),
    ('eval/kl<=2', {'eval/kl': math.nan}, False),
    ('eval/within_prompt_accuracy/log_ratio>=-1e-3', {'eval/within_prompt_accuracy/log_ratio': 0.0}, True),
  ],
)
def test_metrics_keep_a_bound_or_break_it(text, metrics, keeps):
  assert bound.parse(text).keeps(metrics) == keeps


def test_a_bound_is_read_as_it_is_written():
  one = bound.parse('eval/kl <= 0.1234567891')
  assert bound.parse(str(one)) == one == ('eval/kl', '<=', 0.1234567891)


@pytest.mark.parametrize(
  'text', ['eval/kl<2', 'eval/kl', 'eval/kl<=two', '<=2', 'eval/kl<=', 'eval/kl<=nan', '', 'a<=1<=2']
)
def test_other_texts_are_refused_with_an_example(text):
  with pytest.raises(UsageError, match="BEST_BOUND='eval/kl<=2'"):
    bound.parse(text)
