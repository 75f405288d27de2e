"""Every setting says who reads it, and none that nobody reads passes silently."""

import pytest

from dro_jax import algorithms
from dro_jax.algorithms.next_token_kl import NextTokenKl
from dro_jax.cli import tables
from dro_jax.configs.text import read
from dro_jax.errors import UsageError
from dro_jax.run import readers
from dro_jax.run.batches import RowOptions
from dro_jax.run.spec import Batches, RunSpec
from dro_jax.step.reference import Hard, Soft


def test_every_setting_of_a_run_says_who_reads_it():
  """A new setting has to be listed."""
  bindings = read((tables.GIN_CONFIGS / 'runs/train.gin').read_text(encoding='utf-8'), 'train.gin')
  names = {binding.name for binding in bindings if binding.name and binding.name.isupper()}
  assert names == readers.READERS.keys()


CASES = [
  ('VALUE_SHARED', {'algorithm': algorithms.kto}, 'kto has no value network', {}),
  ('VALUE_READOUT', {'algorithm': algorithms.kto}, 'kto has no value network', {}),
  ('VALUE_LEARNING_RATE', {'algorithm': algorithms.sft}, 'sft has no value network', {}),
  (
    'REFERENCE', {'algorithm': algorithms.sft}, 'sft has no reference policy',
    {'algorithm': algorithms.sft, 'next_token_kl': NextTokenKl(weight=1.0)},
  ),
  ('GROUP_SIZE', {'algorithm': algorithms.dpo}, 'dpo compares no groups', {'algorithm': algorithms.rloo}),
  ('PAIRS', {}, 'dro_v compares no pairs', {'algorithm': algorithms.dpo}),
  ('TRUST_REGION_ALPHA', {}, 'the reference is frozen', {'reference': Soft()}),
  ('TRUST_REGION_ALPHA', {'reference': Hard()}, 'only soft mixes', {'reference': Soft()}),
  ('TRUST_REGION_EVERY', {}, 'the reference is frozen, which does not move', {'reference': Hard()}),
  ('REFERENCE_TOLERANCE', {}, 'reads no store', None),
  ('NEXT_TOKEN_KL_DIRECTION', {}, 'NEXT_TOKEN_KL is 0', {'next_token_kl': NextTokenKl(weight=1.0)}),
  ('ROW_COVERAGE', {'batches': Batches(rows=RowOptions(packed=False))}, 'each row holds one response', {}),
  ('TEMPERATURE', {}, 'dro_v learns from the logged responses', {'algorithm': algorithms.rloo_online}),
  ('ROW_RESPONSE_LENGTH', {'algorithm': algorithms.rloo_online}, 'samples its responses', {}),
]  # fmt: skip


@pytest.mark.parametrize('setting, idle, why, reads', CASES)
def test_a_setting_that_nothing_reads_is_refused_and_one_that_is_read_passes(setting, idle, why, reads):
  with pytest.raises(UsageError, match=f'--set {setting}=x: .*{why}.*leave it out, or pass '):
    readers.refuse_unread(RunSpec(data=None, **idle), [(setting, f'--set {setting}=x')])
  if reads is not None:
    readers.refuse_unread(RunSpec(data=None, **reads), [(setting, f'--set {setting}=x')])
