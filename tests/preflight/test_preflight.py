import dataclasses
import io
import re
import types

import jax
import numpy as np
import pytest
from rich import console

from dro_jax import algorithms
from dro_jax.algorithms.next_token_kl import NextTokenKl
from dro_jax.costs import slices
from dro_jax.data.batches import groups
from dro_jax.data.text import vocabularies
from dro_jax.data.worlds import placeholder
from dro_jax.errors import UsageError
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.t5.config import T5Config
from dro_jax.names import TOKEN_LOGPS
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.preflight import compilation, placeholders, preflight, remedies, sweep
from dro_jax.run import summary
from dro_jax.run.spec import Batches, Optimizers, Policy, RunSpec, Value, replace
from dro_jax.step import optimizers, reference, state

CONFIG = T5Config(
  vocab_size=384, emb_dim=64, num_heads=4, head_dim=16, mlp_dim=128, num_encoder_layers=2,
  num_decoder_layers=2, scan_layers=True,
)  # fmt: skip
SPEC = RunSpec(
  data=None,
  policy=Policy(config=CONFIG),
  algorithm=algorithms.dpo,
  optimizers=Optimizers(policy=optimizers.adamw),
  batches=Batches(4),
  mesh=MeshSpec(data=1, fsdp=4, model=2),
)
LENGTHS = {'prompt_length': 16, 'response_length': 16}


def here(**changes):
  """This machine's devices, said to be a slice."""
  return slices.Slice('here', 'v5e', (8,), 1, jax.devices())


@pytest.fixture(scope='module')
def report():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(slices, 'find', lambda name: here())
    return preflight.preflight(SPEC, 'here', **LENGTHS)


# What a device sends in a step, by kind of collective and size of its group: how often, bytes in all, and the
# largest. fsdp gathers parameters and reduces gradients among 4, model reduces activations among 2. What is
# more is laid out anew somewhere.
SENT = {
  ('all-gather', 4): (152, 1002816, 'f32[16,192]'),
  ('all-reduce', 4): (13, 681146, 'f32[2,16,16], f32[32,64], f32[64,32], 12 more'),
  ('all-reduce', 2): (35, 418736, 'f32[8,16,16], f32[8,16,16], f32[8,16,16], 1 more'),
  ('all-to-all', 4): (6, 36864, 'f32[1,2,16,16], f32[1,2,16,16], f32[1,2,16,16], 1 more'),
  ('all-gather', 2): (8, 1536, 's32[4,16,1]'),
  ('collective-permute', 2): (4, 512, 's32[2,16,1]'),
}  # fmt: skip
# Bytes that a device holds at once: an eighth of what is cut, all of what is not.
HELD = {
  'parameters': 124160, 'optimizer': 248324, 'reference': 124160, 'rows_and_padding': 2368,
  'activations': 743552, 'temporaries': 644656,
}  # fmt: skip


@pytest.mark.long
def test_the_collectives_of_a_small_step_are_unchanged(report):
  found = {(row['kind'], row['group']): row for row in report['bytes']['collectives']}
  assert found.keys() == SENT.keys()
  for (kind, size), (runs, sent, largest) in SENT.items():
    row = found[kind, size]
    assert (row['runs'], row['largest']) == (runs, f'{kind} of {largest} among {size}')
    assert row['sent_bytes'] == pytest.approx(sent, rel=0.02)


def test_the_memory_of_a_small_step_is_unchanged(report):
  assert {name: report['memory'][name] for name in HELD} == pytest.approx(HELD, rel=0.02)
  assert report['fits'] and report['memory']['available'] == slices.CHIPS['v5e'].hbm


def test_operations_are_those_of_the_jaxpr_and_near_the_rule_of_thumb(report):
  counted = report['flops']
  assert 8 * counted['per_chip'] == pytest.approx(counted['step'], rel=0.01)
  assert 1 < counted['ratio'] < 1.3
  policy = report['parameters']['policy']
  embedded = CONFIG.vocab_size * CONFIG.emb_dim
  # Policy 6, reference 2; eight responses of 16 tokens a side.
  assert counted['rule_of_thumb'] == pytest.approx(8 * (policy - embedded) * 128, rel=0.01)


def test_the_roofline_is_the_longest_resource_and_the_sum_hides_nothing(report):
  times = report['seconds']
  alone = [times[name] for name in ('compute', 'hbm', 'ici', 'dcn')]
  assert report['roofline_seconds'] == max(alone) == times[report['bound_by']]
  assert times['sum'] == pytest.approx(sum(alone))
  assert report['chip_hours'] == pytest.approx(1000 * max(alone) * 8 / 3600)
  assert report['tokens_per_second'] == pytest.approx(256 / max(alone))
  assert report['mfu'] == pytest.approx(report['flops']['useful'] / (max(alone) * 8 * 197e12))
  slower = sum(alone) / max(alone)
  least = {name: report[name] / slower for name in ('tokens_per_second', 'mfu')}
  assert report['nothing_hidden'] == pytest.approx(least | {'chip_hours': slower * report['chip_hours']})
  hours = f'at least {report["chip_hours"]:.2f}, {slower * report["chip_hours"]:.2f} with nothing hidden'
  assert hours in said(report)


def with_stand_ins(**changes):
  """A run on triplets that preflight makes, built."""
  spec = placeholders.with_texts_of_full_length(replace(SPEC, **changes), **LENGTHS)
  return compilation.rehearse(spec, here())


def test_a_batch_of_groups_has_groups_of_the_runs_size():
  units = groups.UnitOptions(group_size=4)
  run = with_stand_ins(
    algorithm=algorithms.rloo, batches={'size': 2, 'units': units}, mesh={'fsdp': 1, 'data': 2, 'model': 4}
  )
  assert run.loaders.train.rows(0).valid.sum() == 8


@pytest.mark.parametrize('algorithm', [algorithms.a_lol, algorithms.topr, algorithms.kto])
def test_placeholder_data_have_the_columns_that_algorithms_read(algorithm):
  run = with_stand_ins(algorithm=algorithm, value=Value('prompt'))
  assert len(run.loaders.train.table) >= SPEC.batches.size


EMPTY = {
  'topology': 'x', 'fits': True, 'mesh': {}, 'parameters': {}, 'model': {'remat': False}, 'memory': {},
  'batch': {'rows': 1, 'prompt_length': 1, 'response_length': 1, 'chunk_size': None},
}  # fmt: skip


def attempted(monkeypatch, fitting, held=1, remat=False, chunk_size=None, changes=(), **settings):
  """What a preflight finds whose compiler knows only which specs fit, and what was tried."""
  tried = []

  def attempt(spec, where):
    tried.append(spec)
    fits = fitting(spec)
    memory = {'parameters': held, 'optimizer': 1, 'total': None if held > 10 else 2**30, 'available': 10}
    seconds = {'roofline_seconds': float(len(tried))} if fits else {}
    model = {'remat': remat}
    batch = {'batch': EMPTY['batch'] | {'chunk_size': chunk_size}}
    report = EMPTY | batch | {'fits': fits, 'memory': memory, 'model': model} | seconds
    return compilation.Attempt(fits, report)

  monkeypatch.setattr(slices, 'find', lambda name: here())
  monkeypatch.setattr(compilation, 'try_compile', attempt)
  return preflight.preflight(replace(SPEC, **dict(changes)), 'here', **LENGTHS | settings), tried


def test_the_first_change_that_makes_a_step_fit_is_named(monkeypatch):
  found, tried = attempted(monkeypatch, lambda spec: spec.batches.microbatches >= 4)
  dots, chunks, parts = '--set REMAT=dots', '--set CHUNK_SIZE=64', '--set MICROBATCHES='
  mesh = '--gin_file=meshes/fsdp.gin --set make_mesh.fsdp=4 --set make_mesh.model=2'
  assert [row['change'] for row in found['tried']] == [
    dots, chunks, f'{dots} {chunks}', remedies._CACHED, mesh, f'{dots} {chunks} {mesh}',
    f'{dots} {chunks} {parts}2', f'{dots} {chunks} {parts}4',
  ]  # fmt: skip
  assert found['fits'] is False and found['remedy'] == found['tried'][-1]['change']
  changed = [(spec.compute.remat, spec.compute.chunk_size) for spec in tried[:4]]
  assert changed == [(None, None), ('dots', None), (None, 64), ('dots', 64)]
  assert isinstance(tried[4].reference, reference.Cached)
  assert dict(tried[5].mesh.over().shape) == {'data': 1, 'fsdp': 4, 'model': 2}


def test_changes_that_change_nothing_or_the_method_are_not_tried(monkeypatch):
  changes = {
    'batches': {'microbatches': 2}, 'compute': {'remat': 'dots', 'chunk_size': 32},
    'reference': reference.Soft,
  }  # fmt: skip
  found, _ = attempted(monkeypatch, lambda spec: False, remat='dots', chunk_size=32, changes=changes)
  changes = [row['change'] for row in found['tried']]
  mesh = '--gin_file=meshes/fsdp.gin --set make_mesh.fsdp=2 --set make_mesh.model=4'
  assert changes[:3] == [mesh, '--set MICROBATCHES=4', '--set MICROBATCHES=8']
  assert (
    not any(word in ' '.join(changes) for word in ('dots', 'CHUNK_SIZE', 'cached'))
    and found['remedy'] is None
  )


def test_a_store_is_no_remedy_for_next_token_kl_and_the_report_names_the_term(monkeypatch):
  changes = {'next_token_kl': NextTokenKl(2.0, 'forward')}
  found, tried = attempted(monkeypatch, lambda spec: False, changes=changes)
  assert found['tried'] and not any('cached' in row['change'] for row in found['tried'])
  assert summary.algorithm(tried[-1]) == 'dpo + 2 × next-token KL (forward)'


def test_parameters_that_are_too_large_leave_other_meshes_to_try(monkeypatch):
  found, _ = attempted(monkeypatch, lambda spec: False, held=20)
  assert found['tried'] and all('make_mesh.fsdp=' in row['change'] for row in found['tried'])
  text = said(found)
  assert 'no change that preflight tried: take more chips' in text and re.search(
    r'make_mesh\.model=2 +no', text
  )


def said(result) -> str:
  """What people see."""
  out = io.StringIO()
  console.Console(file=out, width=200).print(result)
  return out.getvalue()


def test_the_mesh_that_a_run_has_is_no_change():
  assert remedies.spread_mesh(SPEC, here(), {'data': 1, 'fsdp': 4, 'model': 2}, 1) == []
  [spread] = remedies.spread_mesh(SPEC, here(), {'data': 1, 'fsdp': 4, 'model': 2}, 2)
  assert dict(spread.fields['mesh'].over().shape) == {'data': 1, 'fsdp': 2, 'model': 4}


def test_a_sweep_compiles_meshes_that_may_fit_and_ranks_those_that_do(monkeypatch):
  """Of ten meshes one does not divide, one holds too much, and one is beyond the limit."""

  def rehearse(spec, where):
    if spec.mesh.model == 8:
      raise UsageError('8 heads')
    shape = jax.ShapeDtypeStruct((2**42 if spec.mesh.data == 8 else 1,), 'int8', sharding=REPLICATED)
    return types.SimpleNamespace(abstract_state=state.TrainState(np.zeros(()), {'policy': shape}, {}, None))

  monkeypatch.setattr(compilation, 'rehearse', rehearse)
  found, tried = attempted(monkeypatch, lambda spec: spec.mesh.model < 4, sweep=True, sweep_limit=7)
  rows = found['meshes']
  assert len(rows) == 10 and len(tried) == 7
  assert all(row['data'] * row['fsdp'] * row['model'] == 8 for row in rows)
  assert [row['fits'] for row in rows if row['fits']] == [row['fits'] for row in rows[:6]] == [True] * 6
  fitting = [row['roofline_seconds'] for row in rows[:6]]
  assert fitting == sorted(fitting) and (rows[0]['data'], rows[0]['fsdp']) == (1, 8)
  refused = {(row['data'], row['fsdp'], row['model']): row['refused'] for row in rows if 'refused' in row}
  assert refused == {
    (1, 1, 8): '8 heads', (8, 1, 1): 'parameters, optimizer and reference alone exceed the memory of a chip',
    (2, 1, 4): 'not compiled: pass --set SWEEP_LIMIT=8',
  }  # fmt: skip
  text = said(found)
  assert re.search(r'1 +8 +1 +yes +1\.000 GiB +1 s', text) and re.search(r'1 +1 +8 +no +8 heads', text)


REPLICATED = partitioning.replicated(partitioning.make_mesh())


def test_a_sweep_of_slices_joins_them_either_way():
  found = sweep._meshes(2, 2)
  assert len(found) == 6 and found[0] == {'data': 1, 'fsdp': 2, 'model': 1, 'dcn_data': 2, 'dcn_fsdp': 1}
  assert found[2] == {'data': 1, 'fsdp': 2, 'model': 1, 'dcn_data': 1, 'dcn_fsdp': 2}


def test_preflight_refuses_online_algorithms(monkeypatch):
  monkeypatch.setattr(slices, 'find', lambda name: here())
  with pytest.raises(UsageError, match='samples its responses'):
    preflight.preflight(replace(SPEC, algorithm=algorithms.rloo_online), 'here', **LENGTHS)


@pytest.mark.parametrize(
  'said, gib',
  [
    ('the total memory required for HLO temporaries (20.50G) exceeds available HBM (15.75G).', 20.5),
    ('Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm.', 0.5),
    ('CompileTimeHbmOom: Ran out of memory on HBM.', None),
  ],
)
def test_the_compilers_message_gives_the_memory_of_a_step_that_is_too_large(said, gib):
  found = compilation._too_large(said, STATELESS, here(), 1.0)
  assert found['memory']['total'] == (None if gib is None else gib * 2**30)
  assert found['fits'] is False


FULL = (
  'RESOURCE_EXHAUSTED: Ran out of memory in memory space {0}. Used 20.00{1} of 16.00{1} {0}. Program hbm '
  'requirement 1.00G.'
)


def test_recomputed_layers_do_not_count_as_useful_flops(monkeypatch):
  def compile_step(*_):
    raise RuntimeError(FULL.format('hbm', 'G'))

  monkeypatch.setattr(slices, 'find', lambda name: here())
  monkeypatch.setattr(compilation, 'compile_step', compile_step)
  spec = replace(SPEC, algorithm=algorithms.sft, compute={'remat': True})
  found = preflight.preflight(spec, 'here', remedies=False, **LENGTHS)
  assert found['memory']['total'] == 20 * 2**30 and 'Used 20.00G of 16.00G hbm' in said(found)
  # All layers' forward passes, a third of a step; not the vocabulary's projection.
  assert 1.2 < found['flops']['step'] / found['flops']['useful'] < 4 / 3


def test_running_out_of_another_memory_than_hbm_is_refused():
  with pytest.raises(UsageError, match='a memory other than HBM: .* 16.00M vmem'):
    compilation._too_large(FULL.format('vmem', 'M'), STATELESS, here(), 1.0)


STATELESS = state.TrainState(np.zeros(()), {}, {}, None)


def test_stand_ins_are_of_full_length_and_make_pairs():
  found = placeholder.triplets(
    vocabularies.vocabulary('bytes'), prompts=3, prompt_length=5, response_length=7
  )
  table = found.train
  assert (table.prompt_lengths == 5).all() and (table.response_lengths == 7).all() and len(table) == 6
  assert not np.array_equal(table.response(0), table.response(1))
  assert table.rewards.tolist() == [0, 1] * 3 and len(set(table.prompt_digests.tolist())) == 3


def test_a_cached_reference_brings_its_log_probs():
  run = with_stand_ins(reference=reference.Cached(), batches={'size': 4})
  assert not run.reference.is_kept and run.abstract_state.reference is None
  assert run.loaders.train.table.token_column(TOKEN_LOGPS, 3).tolist() == [0] * 16


@pytest.mark.parametrize(
  'triplets, expected',
  [
    (None, False),
    ('ultrafeedback', False),
    ('a.jsonl', True),
    (['a.jsonl', 'hh'], False),
    ('a.csv,b.csv', True),
  ],
)
def test_only_files_are_read_and_names_of_data_sets_are_not(triplets, expected):
  assert placeholders.are_local_files(triplets) is expected


def test_neither_weights_nor_a_vocabulary_need_be_here(tmp_path):
  absent = Policy(str(tmp_path / 'flan'), CONFIG, str(tmp_path / 'words.model'))
  assert placeholders.without_weights(replace(SPEC, policy=absent)).policy == Policy(config=CONFIG)
  with pytest.raises(UsageError, match='no checkpoint in'):
    with_stand_ins(policy=Policy(str(tmp_path / 'flan')))


def test_recomputing_all_but_products_is_named_or_refused():
  assert dataclasses.replace(CONFIG, remat='dots').remat == 'dots'
  with pytest.raises(UsageError, match="remat='dotz'"):
    dataclasses.replace(CONFIG, remat='dotz')


class Unread(jax.stages.Compiled):
  """A step whose program jaxlib cannot read."""

  def __init__(self):
    pass

  def as_text(self):
    raise jax.errors.JaxRuntimeError('INTERNAL: RET_CHECK failure\nelsewhere')

  def memory_analysis(self):
    return types.SimpleNamespace(argument_size_in_bytes=2**30, temp_size_in_bytes=2**29)


def test_a_program_that_jaxlib_cannot_read_is_read_from_the_compilers_dump(tmp_path):
  (tmp_path / 'module_0000.jit_train_step.after_codegen.txt').write_text('HloModule here')
  assert compilation._text(Unread(), tmp_path) == 'HloModule here'


def test_the_error_for_an_unreadable_program_gives_its_memory(tmp_path):
  with pytest.raises(UsageError, match=r'takes 1\.50 GiB a chip.*RET_CHECK failure\. Pass another'):
    compilation._text(Unread(), tmp_path)


@pytest.mark.long
def test_a_causal_models_useful_work_is_that_of_dense_attention(monkeypatch):
  monkeypatch.setattr(slices, 'find', lambda name: here())
  config = CausalConfig(
    vocab_size=384, emb_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=32, attention='blockwise'
  )
  spec = replace(SPEC, policy=Policy(config=config), algorithm=algorithms.sft, mesh=MeshSpec(fsdp=4, model=2))
  found = preflight.preflight(spec, 'here', **LENGTHS)
  assert found['model'] | {'num_layers': 1, 'attention': 'blockwise'} == found['model']
  assert 0 < found['flops']['useful'] < found['flops']['step']
