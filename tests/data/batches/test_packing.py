import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dro_jax.data.batches.mismatched import mismatch
from dro_jax.data.batches.packing import Layout
from dro_jax.data.batches.placement import Placement
from dro_jax.data.batches.plan import Plan
from dro_jax.data.records.triplets import read_triplets
from dro_jax.data.table.table import build
from dro_jax.data.text.vocabularies import vocabulary
from tests.data.generated import Lengths, ratings, translations


def plan_of(data, batch_size: int = 32, seed: int = 0) -> Plan:
  return Plan(data.prompt_lengths, data.response_lengths, data.prompt_index, batch_size, seed)


def place(layout: Layout, data, batch: np.ndarray) -> Placement:
  return layout.place(data.prompt_lengths[batch], data.response_lengths[batch], data.prompt_index[batch])


def check(placement: Placement, layout: Layout, data: Lengths, batch: np.ndarray) -> None:
  """Every response lies in one row, apart from others, in order, with a copy of its own prompt beside it."""
  lengths, index = data.response_lengths[batch], data.prompt_index[batch]
  copies = {}
  for example, row, segment in zip(placement.prompt_example, placement.prompt_row, placement.prompt_segment):
    assert (row, segment) not in copies
    copies[row, segment] = index[example]
  for i in range(len(batch)):
    assert copies[placement.response_row[i], placement.response_prompt[i]] == index[i]
  for row in range(placement.rows):
    mine = np.flatnonzero(placement.response_row == row)
    assert len(mine) <= layout.slots
    mine = mine[np.argsort(placement.response_segment[mine])]
    np.testing.assert_array_equal(placement.response_segment[mine], np.arange(len(mine)) + 1)
    ends = np.cumsum(lengths[mine])
    np.testing.assert_array_equal(placement.response_start[mine], ends - lengths[mine])
    assert not len(mine) or ends[-1] <= layout.response_length
    prompts = np.flatnonzero(placement.prompt_row == row)
    sizes = data.prompt_lengths[batch[placement.prompt_example[prompts]]]
    np.testing.assert_array_equal(placement.prompt_segment[prompts], np.arange(len(prompts)) + 1)
    np.testing.assert_array_equal(placement.prompt_start[prompts], np.cumsum(sizes) - sizes)
    assert sizes.sum() <= layout.prompt_length


@settings(max_examples=60, deadline=None)
@given(
  seed=st.integers(0, 2**31),
  prompts=st.integers(1, 20),
  packed=st.booleans(),
  encode_once=st.booleans(),
  row_multiple=st.integers(1, 4),
  slots=st.integers(1, 40),
)
def test_every_batch_can_be_placed(seed, prompts, packed, encode_once, row_multiple, slots):
  data = ratings(prompts, seed)
  layout = Layout(70, 100, row_multiple, slots if packed else 1, packed, encode_once, row_multiple)
  batch = np.random.default_rng(seed).permutation(len(data.rewards))
  placement = place(layout, data, batch)
  assert placement.rows % row_multiple == 0
  check(placement, layout, data, batch)


def test_encode_once_shares_prompts_and_does_not_change_batches():
  data = ratings(60)
  plan = plan_of(data)
  once = Layout.fit(data, plan, prompt_length=256, response_length=512)
  each = Layout.fit(data, plan, prompt_length=256, response_length=512, encode_once=False)
  batch = plan.batch(0)
  shared, repeated = place(once, data, batch), place(each, data, batch)
  assert len(repeated.prompt_row) == 32
  assert len(np.unique(data.prompt_index[batch])) <= len(shared.prompt_row) < 16
  check(shared, once, data, batch)
  check(repeated, each, data, batch)
  assert once.rows <= each.rows


def fill(layout: Layout, data, plan: Plan, steps: int) -> tuple[float, float, set]:
  """Mean fill of both sides, and the row counts that occurred."""
  prompt, response, rows = 0, 0, []
  for step in range(steps):
    batch = plan.batch(step)
    placement = place(layout, data, batch)
    prompt += data.prompt_lengths[batch[placement.prompt_example]].sum()
    response += data.response_lengths[batch].sum()
    rows.append(placement.rows)
  area = sum(rows)
  return prompt / area / layout.prompt_length, response / area / layout.response_length, set(rows)


@pytest.mark.parametrize('seed', [0, 1])
def test_translations_fill_two_rows(seed):
  data = translations(seed=seed)
  plan = plan_of(data, seed=seed)
  layout = Layout.fit(data, plan, prompt_length=512, response_length=384)
  prompt, response, rows = fill(layout, data, plan, 440)
  assert rows == {2}
  assert prompt >= 0.93
  assert response >= 0.93


def test_real_translations_fill_two_rows(data_dir, vocab_file, tmp_path):
  records = read_triplets(str(data_dir / 'mlqe_pe' / 'ro-en.train.jsonl.gz'))
  table = build(records, vocabulary(str(vocab_file)), tmp_path / 't', prompt_length=128, response_length=128)
  assert table.prompt_lengths.mean() == pytest.approx(30.72, abs=0.01)
  assert table.response_lengths.mean() == pytest.approx(22.62, abs=0.01)
  plan = Plan.from_table(table, 32, 0)
  layout = Layout.fit(table, plan, prompt_length=512, response_length=384)
  prompt, response, rows = fill(layout, table, plan, 440)
  assert rows == {2}
  assert prompt >= 0.93
  assert response >= 0.93


def test_batches_dealt_uniformly_fit_rows_of_one_shape():
  """Their totals vary as sums of random draws do: a fifth of the rows stays empty."""
  data = translations(2000)
  plan = Plan(data.prompt_lengths, data.response_lengths, data.prompt_index, 32, 0, deal='uniform')
  layout = Layout.fit(data, plan, row_multiple=4, scan=64)
  prompt, response, rows = fill(layout, data, plan, 124)
  assert len(rows) <= 2
  assert min(prompt, response) > 0.7


def test_lengths_are_chosen_to_fill_the_rows():
  data = translations(2000)
  plan = plan_of(data)
  layout = Layout.fit(data, plan, row_multiple=4)
  prompt, response, rows = fill(layout, data, plan, 62)
  assert rows == {4}
  assert min(prompt, response) > 0.9
  assert layout.slots >= 8
  assert layout.prompt_length % 8 == layout.response_length % 8 == 0


def test_rows_come_in_multiples_and_a_long_batch_gets_more_of_them():
  data = translations(2000)
  layout = Layout.fit(data, plan_of(data), prompt_length=128, response_length=128, row_multiple=4)
  assert layout.rows % 4 == 0
  longest = np.argsort(-data.prompt_lengths)[:32]
  placement = place(layout, data, longest)
  assert placement.rows > layout.rows
  assert placement.rows % 4 == 0
  check(placement, layout, data, longest)


def test_coverage_trades_rows_for_shapes():
  data = ratings(300)
  plan = plan_of(data)
  all_rows = Layout.fit(data, plan, prompt_length=64, response_length=96, scan=30).rows
  most = Layout.fit(data, plan, prompt_length=64, response_length=96, scan=30, coverage=0.5)
  assert most.rows < all_rows
  assert len({place(most, data, plan.batch(step)).rows for step in range(20)}) > 1


def test_padded_rows_hold_one_response_each():
  data = translations(100)
  layout = Layout.fit(data, plan_of(data, 30), packed=False, row_multiple=8)
  assert (layout.rows, layout.slots) == (32, 1)
  assert layout.prompt_length >= data.prompt_lengths.max()
  placement = place(layout, data, np.arange(30))
  np.testing.assert_array_equal(placement.response_row, np.arange(30))
  check(placement, layout, data, np.arange(30))


def test_a_text_longer_than_a_row_raises():
  data = translations(100)
  with pytest.raises(ValueError, match='rows hold 16 prompt'):
    Layout.fit(data, plan_of(data), prompt_length=16, response_length=128)


def test_tight_packing_is_repaired():
  # Greedy orders leave no room for the last of these; swaps do.
  data = Lengths(np.array([5, 5, 4, 4, 3, 3]), np.ones(6, int), np.arange(6), np.zeros(6))
  layout = Layout(12, 6, 2, 6)
  placement = place(layout, data, np.arange(6))
  assert placement.rows == 2
  check(placement, layout, data, np.arange(6))


# --- mismatches


def check_mismatch(placement: Placement, index: np.ndarray) -> int:
  """Each response is used once at most, and never under its own text; returns how many are paired."""
  found = mismatch(placement, index)
  np.testing.assert_array_equal(np.sort(found.source_row), np.arange(placement.rows))
  texts = {
    (row, segment): index[example]
    for example, row, segment in zip(placement.prompt_example, placement.prompt_row, placement.prompt_segment)
  }
  for host, source in enumerate(found.source_row):
    for i in np.flatnonzero(placement.response_row == source):
      if found.prompt[i]:
        assert texts[host, found.prompt[i]] != index[i]
  return int((found.prompt > 0).sum())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), prompts=st.integers(1, 12), packed=st.booleans(), rows=st.integers(1, 4))
def test_mismatched_pairs_never_share_a_prompt(seed, prompts, packed, rows):
  data = ratings(prompts, seed)
  layout = Layout(70, 100, rows, 40 if packed else 1, packed)
  batch = np.arange(len(data.rewards))
  placement = place(layout, data, batch)
  paired = check_mismatch(placement, data.prompt_index)
  assert (paired > 0) == (prompts > 1)


def test_batches_with_many_repeated_prompts_pair_every_response():
  # A plain shift by one would give 9 of 10 responses their own prompt here.
  data = Lengths(np.full(640, 8), np.full(640, 8), np.repeat(np.arange(64), 10), np.zeros(640))
  plan = plan_of(data)
  for packed in (True, False):
    layout = Layout.fit(data, plan, prompt_length=64, response_length=128, packed=packed)
    for step in range(20):
      batch = plan.batch(step)
      placement = place(layout, data, batch)
      assert check_mismatch(placement, data.prompt_index[batch]) == 32


def test_a_prompt_with_most_of_the_batch_is_paired_as_often_as_others_allow():
  data = Lengths(np.full(10, 4), np.full(10, 4), np.array([0] * 7 + [1, 2, 3]), np.zeros(10))
  placement = place(Layout(4, 4, 10, 1, packed=False), data, np.arange(10))
  assert (
    check_mismatch(placement, data.prompt_index) == 6
  )  # 3 others under it, and 3 of its own under others.


def test_empty_rows_are_not_mismatched():
  data = translations(3)
  placement = place(Layout(80, 80, 8, 1, packed=False, row_multiple=8), data, np.arange(3))
  assert check_mismatch(placement, data.prompt_index) == 3


def test_rows_are_longer_where_long_texts_could_not_share_them():
  rng, index = np.random.default_rng(0), np.repeat(np.arange(200), 4)
  prompts = np.clip(rng.lognormal(4.5, 1.1, 200), 8, 512).astype(int)[index]
  responses = np.clip(rng.lognormal(5.4, 0.8, 800), 8, 512).astype(int)
  data = Lengths(prompts, responses, index, np.zeros(800))
  layout = Layout.fit(data, plan_of(data), scan=25)
  assert layout.prompt_length > 512
  assert layout.response_length >= 900
  # Half of what one response a row takes.
  assert layout.rows * (layout.prompt_length + layout.response_length) < 32 * 1024 / 2


def test_four_full_responses_share_their_prompt():
  index = np.repeat(np.arange(16), 4)
  data = Lengths(np.full(64, 512), np.full(64, 128), index, np.zeros(64))
  layout = Layout.fit(data, plan_of(data, 8))
  assert (layout.rows, layout.prompt_length, layout.response_length) == (2, 512, 512)
