import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.costs import flops
from dro_jax.costs.hlo import collectives, loops, memory, operations, program

LOOP = """HloModule loop

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%piece (p: bf16[8,16]) -> bf16[32,16] {
  %p = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather.2 = bf16[32,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%slice (stack: f32[10,4,4], i: s32[]) -> f32[4,4] {
  %stack = f32[10,4,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = f32[1,4,4]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,4,4}
  ROOT %flat = f32[4,4]{1,0} bitcast(%part)
}

%body (state: (s32[], f32[10,4,4], f32[4,4], bf16[8,16])) -> (s32[], f32[10,4,4], f32[4,4], bf16[8,16]) {
  %state = (s32[], f32[10,4,4]{2,1,0}, f32[4,4]{1,0}, bf16[8,16]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%at, %two)
  %all = f32[10,4,4]{2,1,0} get-tuple-element(%state), index=1
  %x = f32[4,4]{1,0} get-tuple-element(%state), index=2
  %b = bf16[8,16]{1,0} get-tuple-element(%state), index=3
  %w = f32[4,4]{1,0:S(1)} fusion(%all, %at), kind=kLoop, calls=%slice
  %in_loop = bf16[32,16]{1,0} fusion(%b), kind=kOutput, calls=%piece
  %y = f32[4,4]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %begin = f32[4,4]{1,0} all-reduce-start(%y), replica_groups={{0,2},{1,3},{4,6},{5,7}}, to_apply=%add
  %z = f32[4,4]{1,0} all-reduce-done(%begin)
  ROOT %out = (s32[], f32[10,4,4]{2,1,0}, f32[4,4]{1,0}, bf16[8,16]{1,0}) tuple(%next, %all, %z, %b)
}

%condition (state.1: (s32[], f32[10,4,4], f32[4,4], bf16[8,16])) -> pred[] {
  %state.1 = (s32[], f32[10,4,4]{2,1,0}, f32[4,4]{1,0}, bf16[8,16]{1,0}) parameter(0)
  %at.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(10)
  ROOT %less = pred[] compare(%at.1, %limit), direction=LT
}

ENTRY %main (w.1: f32[10,4,4], x.1: f32[4,4], b.1: bf16[8,16]) -> f32[4,4] {
  %w.1 = f32[10,4,4]{2,1,0} parameter(0)
  %x.1 = f32[4,4]{1,0} parameter(1)
  %b.1 = bf16[8,16]{1,0} parameter(2)
  %first = s32[] constant(0)
  %begun = bf16[32,16]{1,0} fusion(%b.1), kind=kCustom, calls=%piece.start
  %init = (s32[], f32[10,4,4]{2,1,0}, f32[4,4]{1,0}, bf16[8,16]{1,0}) tuple(%first, %w.1, %x.1, %b.1)
  %loop = (s32[], f32[10,4,4], f32[4,4], bf16[8,16]) while(%init), condition=%condition, body=%body
  ROOT %result = f32[4,4]{1,0} get-tuple-element(%loop), index=2
}
"""
# The other piece of the gather that hides in the loop: what starts it.
START = """%piece.start (q: bf16[8,16]) -> bf16[32,16] {
  %q = bf16[8,16]{1,0} parameter(0)
  ROOT %gather.1 = bf16[32,16]{1,0} all-gather(%q), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

"""


@pytest.fixture(scope='module', params=['ENTRY', '%piece'])
def module(request):
  return program.parse(LOOP.replace(f'\n{request.param}', f'\n{START}{request.param}', 1))


def test_a_loop_counts_by_its_start_step_and_limit(module):
  loop = module.computations['main'].instructions['loop']
  assert loops.trip_count(module, 'main', loop) == 5
  noted = loop._replace(attributes=loop.attributes + ', backend_config={"known_trip_count":{"n":"7"}}')
  assert loops.trip_count(module, 'main', noted) == 7


def test_products_in_a_loop_count_as_often_as_it_runs(module):
  assert operations.flops(module) == 5 * 2 * 4 * 4 * 4


def test_collectives_are_counted_once_however_many_pieces_they_are_written_in(module):
  reduce, gather = collectives.collectives(module, 8)
  assert len(module.computations) == 7
  assert (reduce.kind, reduce.count, reduce.bytes, reduce.sent) == ('all-reduce', 5, 64, 64)
  assert reduce.groups == ((0, 2), (1, 3), (4, 6), (5, 7))
  # Written at its start and in the loop that hides it, and run once.
  assert (gather.kind, gather.count, gather.bytes, gather.sent) == ('all-gather', 1, 256, 3 * 256)
  assert gather.groups == ((0, 1, 2, 3), (4, 5, 6, 7))
  assert gather.describe() == 'all-gather of bf16[8,16] among 4'


def test_memory_counts_a_slice_as_a_slice_and_on_chip_memory_as_nothing(module):
  slice_read = 16 * 4 + 4
  product = 2 * 64
  gather_read_and_written = 256 + 1024
  reduced = 64 + 64
  counter, condition = 3 * 4, 2 * 4 + 1
  once = gather_read_and_written
  assert memory.memory_bytes(module) == once + 5 * (
    slice_read + product + gather_read_and_written + reduced + counter + condition
  )


@pytest.mark.parametrize(
  'text, groups',
  [
    ('{{0,1},{2,3}}, x', ((0, 1), (2, 3))),
    ('{}, x', ((0, 1, 2, 3),)),
    ('[2,2]<=[4], x', ((0, 1), (2, 3))),
    ('[2,2]<=[2,2]T(1,0), x', ((0, 2), (1, 3))),
    ("mesh['a'=2,'b'=2] {'b'}, x", ((0, 1), (2, 3))),
    ("mesh['a'=2,'b'=2] {'a'}, x", ((0, 2), (1, 3))),
    ("mesh['a'=2,'b'=2] {'a','b'}, x", ((0, 1, 2, 3),)),
    ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", ((0, 2), (1, 3))),
  ],
)
def test_groups_are_read_in_every_form(text, groups):
  assert collectives.replica_groups(text, 4) == groups


def test_a_permutation_sends_its_operands_once():
  text = """HloModule p

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %s = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %d = f32[4]{0} collective-permute-done(%s)
}
"""
  [found] = collectives.collectives(program.parse(text), 2)
  assert (found.groups, found.sent, found.count) == (((0, 1), (1, 0)), 16, 1)


def test_transfers_to_other_slices_go_over_the_network():
  text = """HloModule s

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %t = token[] after-all()
  %s = (f32[64]{0}, u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %y = f32[64]{0} copy(%x)
}
"""  # noqa: E501
  [found] = collectives.collectives(program.parse(text), 8)
  assert (found.kind, found.network, found.groups, found.sent) == ('all-reduce', True, ((1, 2),), 256)
  assert found.describe() == 'all-reduce of f32[64], token[] among 2 slices'


def test_a_convolution_made_from_a_product_has_its_operations():
  text = """HloModule c

ENTRY %main (x: f32[2,8,16], w: f32[2,16,32]) -> f32[2,8,32] {
  %x = f32[2,8,16]{2,1,0} parameter(0)
  %w = f32[2,16,32]{2,1,0} parameter(1)
  ROOT %y = f32[2,8,32] convolution(%x, %w), window={size=2 stride=1 lhs_dilate=2}, dim_labels=0bf_0io->0bf
}
"""
  # Two products [8, 16] · [16, 32], a batch axis as a dilated spatial one.
  assert operations.flops(program.parse(text)) == 2 * 2 * 8 * 16 * 32


def test_a_compiled_scan_has_the_operations_of_its_jaxpr():
  def f(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  args = jax.ShapeDtypeStruct((5, 32, 32), np.float32), jax.ShapeDtypeStruct((16, 32), np.float32)
  compiled = jax.jit(f).lower(*args).compile()
  assert operations.flops(program.parse(compiled.as_text())) == flops.count(f, *args) == 5 * 2 * 16 * 32 * 32


def test_a_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match='compiled.as_text'):
    program.parse('nothing')


STARTED = """HloModule started

%cut (g: bf16[32,16]) -> bf16[8,16] {
  %g = bf16[32,16]{1,0} parameter(0)
  %r = bf16[32,16]{1,0} all-reduce(%g), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  %i = s32[] constant(8)
  %o = s32[] constant(0)
  ROOT %mine = bf16[8,16]{1,0} dynamic-slice(%r, %i, %o), dynamic_slice_sizes={8,16}
}

ENTRY %main (x: f32[16,8], g.1: bf16[32,16]) -> bf16[8,16] {
  %x = f32[16,8]{1,0} parameter(0)
  %g.1 = bf16[32,16]{1,0} parameter(1)
  %s = ((f32[16,8]{1,0}), f32[4,8]{1,0:S(1)}, s32[]) slice-start(%x), slice={[0:4], [0:8]}
  %t = f32[4,8]{1,0:S(1)} slice-done(%s)
  %c = (f32[4,8]{1,0}, f32[4,8]{1,0:S(1)}, u32[]) copy-start(%t)
  %d = f32[4,8]{1,0} copy-done(%c)
  %a = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%d), replica_groups={{0,1,2,3}}, dimensions={0}
  %b = f32[16,8]{1,0} all-gather-done(%a)
  ROOT %f = bf16[8,16]{1,0} fusion(%g.1), kind=kCustom, calls=%cut
}
"""


def test_a_fetch_onto_the_chip_is_not_written_to_memory():
  fetched, put_back, gathered = 128, 128, 128 + 512
  reduced = 1024 + 256
  assert memory.memory_bytes(program.parse(STARTED)) == fetched + put_back + gathered + reduced


def test_a_reduction_that_is_only_sliced_is_a_reduce_scatter():
  gather, scatter = collectives.collectives(program.parse(STARTED), 4)
  assert (gather.kind, gather.sent) == ('all-gather', 3 * 128)
  assert (scatter.kind, scatter.bytes, scatter.sent) == ('reduce-scatter', 1024, 3 / 4 * 1024)
  read_again = STARTED.replace('ROOT %mine', '%twice = bf16[32,16]{1,0} negate(%r)\n  ROOT %mine')
  assert collectives.collectives(program.parse(read_again), 4)[1].kind == 'all-reduce'


def test_a_loop_that_cannot_be_counted_is_warned_about():
  text = LOOP.replace('constant(10)', 'get-tuple-element(%state.1), index=0')
  with pytest.warns(UserWarning, match='loop: the number of trips of this loop'):
    assert loops.runs(program.parse(text)).count['body'] == 1


def test_slices_are_read_in_every_form():
  def read(target):
    line = 'token[] send(%x), frontend_attributes={_xla_megascale_target=' + target + ',_x="y"}'
    return collectives._slices(program._instruction('s', line))

  assert read('"{1,2}x{0:3}"') == (1, 2) and read('"{1:4}x{0:3}"') == (1, 2, 3, 4)
  assert read('{{100000,100001,200000,200001}}') == (1, 2)
  assert read('{{100000,200000},{100001,200001}}') == (1, 2)
  with pytest.raises(ValueError, match='cannot read the slices'):
    read('all')


KERNEL = """HloModule kernel

ENTRY %main (q: bf16[9,1024,64], k: bf16[3,2048,64]) -> bf16[9,1024,64] {
  %q = bf16[9,1024,64]{2,1,0} parameter(0)
  %k = bf16[3,2048,64]{2,1,0} parameter(1)
  %s = s32[1,2,4]{2,1,0} constant({...})
  %splash_mha_fwd_residuals.1 = bf16[9,1024,64]{2,1,0} custom-call(%s, %s, %q, %k, %k), f={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="splash"}
  %splash_mha_dkv_no_residuals.1 = bf16[9,1024,64]{2,1,0} custom-call(%s, %s, %q, %k, %k)
  %other = bf16[9,1024,64]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %out = bf16[9,1024,64]{2,1,0} add(%splash_mha_fwd_residuals.1, %splash_mha_dkv_no_residuals.1)
}
"""


def test_a_kernels_products_count_and_its_metadata_may_have_lines():
  scores = 9 * 1024 * 2048
  assert operations.flops(program.parse(KERNEL)) == (2 + 4) * 2 * scores * 64
