import functools
import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dro_jax.data.batches.loader import Loader, prefetch
from dro_jax.data.batches.packing import Layout
from dro_jax.data.batches.plan import Plan
from dro_jax.models.t5.config import T5Config
from dro_jax.models.t5.network import T5
from dro_jax.ops.logprobs import token_logps
from dro_jax.ops.masked import segment_sum
from dro_jax.types import Rows
from tests.data.generated import ratings, small_table

LAYOUTS = {
  'packed, encode once': functools.partial(Layout.fit, scan=6),
  'packed': functools.partial(Layout.fit, encode_once=False, scan=6),
  'short rows': functools.partial(Layout.fit, prompt_length=64, response_length=96, row_multiple=4, scan=6),
  'padded': functools.partial(Layout.fit, packed=False),
}
padded = LAYOUTS['padded']


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  return small_table(tmp_path_factory.mktemp('tables') / 't')


def loader_of(table, layout: str = 'packed, encode once', batch_size: int = 12, **options) -> Loader:
  plan = Plan.from_table(table, batch_size, 0)
  return Loader(table, plan, LAYOUTS[layout](table, plan), **options)


def responses_of(rows: Rows) -> dict[int, tuple]:
  """By example id: the prompt's and response's tokens, read back through segments and pointers."""
  found = {}
  for b, slot in zip(*np.nonzero(rows.valid)):
    where = rows.response_segments[b] == slot + 1
    pointer = np.unique(rows.response_prompt[b][where])
    assert len(pointer) == 1
    prompt = rows.prompt_segments[b] == pointer[0]
    np.testing.assert_array_equal(rows.response_positions[b][where], np.arange(where.sum()))
    np.testing.assert_array_equal(rows.prompt_positions[b][prompt], np.arange(prompt.sum()))
    found[int(rows.example_id[b, slot])] = (
      rows.prompt_tokens[b][prompt].tolist(),
      rows.response_tokens[b][where].tolist(),
      float(rows.rewards[b, slot]),
      float(rows.columns['label'][b, slot]),
    )
  return found


@pytest.mark.parametrize('layout', LAYOUTS)
def test_rows_hold_the_texts_and_numbers_of_the_table(table, layout):
  loader = loader_of(table, layout)
  for step in range(5):
    examples = loader.plan.batch(step)
    assert responses_of(loader.rows(step)) == {
      int(i): (
        table.prompt(i).tolist(),
        table.response(i).tolist(),
        float(np.float32(table.rewards[i])),
        float(table.columns['label'][i]),
      )
      for i in examples.tolist()
    }


@pytest.mark.parametrize('layout', LAYOUTS)
def test_padding_is_zero_and_arrays_have_the_types_of_rows(table, layout):
  rows = loader_of(table, layout, mismatched=True).rows(0)
  for side in ('prompt', 'response'):
    tokens, segments = getattr(rows, f'{side}_tokens'), getattr(rows, f'{side}_segments')
    assert tokens.dtype == segments.dtype == np.int32
    assert not tokens[segments == 0].any()
    assert not getattr(rows, f'{side}_positions')[segments == 0].any()
  assert not rows.response_prompt[rows.response_segments == 0].any()
  assert (rows.valid.sum(), rows.valid.dtype) == (12, bool)
  for values in (rows.rewards, rows.columns['label']):
    assert values.dtype == np.float32
    assert not values[~rows.valid].any()
  assert rows.example_id.dtype == np.int32


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_hosts_rows_are_the_single_hosts_rows(table, layout, hosts):
  """Each host has a loader of its own, knows only its range of rows, and all agree on the batch."""
  whole = loader_of(table, layout, mismatched=True)
  parts = [loader_of(table, layout, mismatched=True) for _ in range(hosts)]
  for step in (0, 3, 2):
    cuts = np.linspace(0, whole.num_rows(step), hosts + 1).astype(int).tolist()
    assert {part.num_rows(step) for part in parts} == {whole.num_rows(step)}
    shares = [part.rows(step, a, b) for part, (a, b) in zip(parts, itertools.pairwise(cuts))]
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *shares)
    jax.tree.map(np.testing.assert_array_equal, joined, whole.rows(step))


def test_membership_does_not_depend_on_the_layout(table):
  batches = [
    [sorted(responses_of(loader_of(table, layout).rows(step))) for step in range(4)] for layout in LAYOUTS
  ]
  assert all(batch == batches[0] for batch in batches)


def test_mismatched_responses_come_from_other_rows_under_other_prompts(tmp_path):
  table = small_table(tmp_path / 't', ratings(40, most=4))
  loader = loader_of(table, 'short rows', batch_size=24, mismatched=True)
  prompts = {tuple(table.response(i).tolist()): table.prompts[i] for i in range(len(table))}
  for step in range(4):
    rows, used = loader.rows(step), []
    other = rows.mismatched
    for b, slot in zip(*np.nonzero(other.valid)):
      where = other.response_segments[b] == slot + 1
      pointer = other.response_prompt[b][where][0]
      host = rows.prompt_tokens[b][rows.prompt_segments[b] == pointer]
      response = tuple(other.response_tokens[b][where].tolist())
      own = prompts[response]
      assert host.tolist() != [*(np.frombuffer(own.encode(), np.uint8) + 3).tolist(), 1]
      used.append(response)
    assert len(used) == len(set(used)) == 24  # All are paired, each once.


def test_a_response_that_cannot_be_mismatched_has_no_weight_and_no_prompt(table):
  one = table.subset(table.prompt_index == table.prompt_index[0])
  plan = Plan.sequential(len(one), len(one))
  rows = Loader(one, plan, padded(one, plan), mismatched=True).rows(0)
  assert rows.valid.all()
  assert not rows.mismatched.valid.any()
  assert not rows.mismatched.response_prompt.any()


def test_a_short_last_batch_has_the_same_rows(table):
  plan = Plan.sequential(len(table), 16)
  for layout in (Layout.fit, padded):
    loader = Loader(table, plan, layout(table, plan))
    shapes = {loader.rows(step).response_tokens.shape for step in range(plan.num_batches)}
    assert len(shapes) == 1
    count = sum(loader.rows(step).valid.sum() for step in range(plan.num_batches))
    assert count == len(table)


def test_a_batch_that_does_not_fit_gets_more_rows_and_is_logged_once(table, caplog):
  plan = Plan.from_table(table, 12, 0)
  layout = Layout(64, 96, 2, 12, row_multiple=2)
  loader = Loader(table, plan, layout)
  with caplog.at_level('INFO', 'dro_jax.data.batches.loader'):
    counts = [loader.num_rows(step) for step in range(20)]
  assert max(counts) > 2
  assert all(count % 2 == 0 for count in counts)
  assert len(caplog.records) == len(set(counts) - {2})
  assert responses_of(loader.rows(int(np.argmax(counts)))).keys() == set(plan.batch(int(np.argmax(counts))))


def test_fill_is_the_share_of_positions_with_tokens(table):
  for layout in LAYOUTS:
    loader = loader_of(table, layout)
    rows = loader.rows(0)
    shares = (rows.prompt_segments > 0).mean(), (rows.response_segments > 0).mean()
    np.testing.assert_allclose(loader.fill(0), shares)


def test_rows_outside_the_batch_raise(table):
  loader = loader_of(table)
  with pytest.raises(ValueError, match=r'rows 0\.\.99 of batch'):
    loader.rows(0, 0, 99)


def test_a_plan_of_another_table_raises(table):
  plan = Plan.sequential(3, 2)
  with pytest.raises(ValueError, match='is for 3 records'):
    Loader(table, plan, Layout(64, 96, 4, 8))


def logps_by_example(loader: Loader, model: T5, params) -> dict[int, float]:
  @jax.jit
  def score(rows: Rows) -> jax.Array:
    logps_BT = token_logps(model.apply({'params': params}, rows), rows.response_tokens)
    return segment_sum(logps_BT, rows.response_segments, rows.valid.shape[1])

  found = {}
  for step in range(loader.plan.num_batches):
    rows = loader.rows(step)
    logps_BR = np.asarray(score(jax.tree.map(jnp.asarray, rows)))
    found |= dict(zip(rows.example_id[rows.valid].tolist(), logps_BR[rows.valid].tolist()))
  return found


def test_packed_equals_padded_equals_one_by_one(table):
  few = table.subset(np.arange(24))
  layers = {'num_encoder_layers': 1, 'num_decoder_layers': 1}
  config = T5Config(vocab_size=260, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, **layers)
  model = T5(config)
  batched, single = Plan.sequential(24, 24), Plan.sequential(24, 1)
  loaders = [
    Loader(few, batched, layout(few, batched)) for name, layout in LAYOUTS.items() if name != 'short rows'
  ]
  loaders.append(Loader(few, single, padded(few, single)))
  params = nn.unbox(
    jax.jit(model.init)(jax.random.key(0), jax.tree.map(jnp.asarray, loaders[0].rows(0)))['params']
  )
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
  results = [logps_by_example(loader, model, params) for loader in loaders]
  for result in results[:-1]:
    assert result.keys() == results[-1].keys() == set(range(24))
    np.testing.assert_allclose([result[i] for i in range(24)], [results[-1][i] for i in range(24)], rtol=1e-5)


# --- prefetch


def test_prefetch_gives_the_same_rows_in_order(table):
  loader = loader_of(table, 'padded')
  found = list(prefetch(loader, range(2, 6), lambda rows: (2, rows), size=2))
  assert [step for step, _ in found] == [2, 3, 4, 5]
  for step, rows in found:
    jax.tree.map(np.testing.assert_array_equal, rows, loader.rows(step, 2))


class _Failing(Loader):
  """Fails at step 2."""

  def __init__(self):  # Nothing of a real loader is needed.
    self.loaded = []

  def num_rows(self, step: int) -> int:
    return 1

  def rows(self, step: int, start: int = 0, stop: int | None = None):
    if step == 2:
      raise RuntimeError('disk gone')
    self.loaded.append(step)
    return step


def test_prefetch_raises_the_loaders_exception_at_its_step():
  rows = prefetch(_Failing(), range(9))
  found = [next(rows)[0], next(rows)[0]]
  with pytest.raises(RuntimeError, match='disk gone'):
    next(rows)
  assert found == [0, 1]


def test_prefetch_raises_an_exception_of_its_steps():
  def steps():
    yield 0
    raise KeyError('steps')

  with pytest.raises(KeyError, match='steps'):
    list(prefetch(_Failing(), steps()))


def test_closing_prefetch_ends_its_thread():
  loader = _Failing()
  rows = prefetch(loader, itertools.repeat(1), size=2)
  next(rows)
  rows.close()
  time.sleep(0.3)
  assert not any(thread.name == 'prefetch' for thread in threading.enumerate())
  assert len(loader.loaded) <= 5  # Two ahead and those in hand, not the whole endless stream.
