import re

import pytest

from dro_jax import algorithms
from dro_jax.data.batches import loader, packing, plan
from dro_jax.data.table import table
from dro_jax.data.text import vocabularies
from dro_jax.run import notes


@pytest.fixture
def build(tmp_path):
  """From a number of records to their table, 8 responses to a prompt."""

  def build(count):
    records = [{'prompt': f'p{i // 8}', 'response': str(i), 'reward': i} for i in range(count)]
    words = vocabularies.vocabulary('bytes')
    return table.build(records, words, tmp_path / 't', prompt_length=8, response_length=8)

  return build


@pytest.mark.parametrize(
  'deal, says', [('together', 'holds the responses to 4 prompts, .* --set DEAL=uniform'), ('uniform', '^$')]
)
def test_a_note_says_where_batches_of_few_prompts_mislead(build, deal, says):
  built = build(160)
  batches = plan.Plan.from_table(built, 32, 0, deal=deal)
  loaded = loader.Loader(built, batches, packing.Layout.fit(built, batches, scan=2))
  assert re.search(says, notes.few_prompts(loaded, algorithms.dro_p()))
  assert notes.few_prompts(loaded, algorithms.dro_v()) == ''


def test_a_batch_larger_than_the_data_is_said(build):
  built = build(60)
  small, large = (plan.Plan.from_table(built, size, 0) for size in (60, 61))
  assert notes.repeated(small, algorithms.sft()) == ''
  assert '61 responses is more than the 60' in notes.repeated(large, algorithms.sft())
