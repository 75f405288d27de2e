"""One compilation of a run's step, and its report."""

import functools
import logging
import pathlib
import re
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dro_jax.costs import flops, roofline, slices
from dro_jax.errors import UsageError
from dro_jax.models import policy
from dro_jax.parallel import partitioning
from dro_jax.preflight.placeholders import without_store
from dro_jax.run import summary
from dro_jax.run.build import Run, build
from dro_jax.run.spec import RunSpec, replace
from dro_jax.step.state import TrainState
from dro_jax.types import Rows

log = logging.getLogger(__name__)


# Fields of a model's configuration in the report, of those that its family has.
_MODEL = ('emb_dim', 'num_encoder_layers', 'num_layers', 'dtype', 'remat', 'attention')


class Attempt(NamedTuple):
  """One way to run the step: whether it fits, and its report."""

  fits: bool
  report: dict[str, Any]


def rehearse(spec: RunSpec, where: slices.Slice) -> Run:
  """Builds the run for the devices of a slice, without compiling it; needs no reference store."""
  return build(without_store(spec), where.devices)


def try_compile(spec: RunSpec, where: slices.Slice) -> Attempt:
  """Compiles a run's step for a slice."""
  run = rehearse(spec, where)
  state, rows = run.abstract_state, abstract_rows(run)
  log.info('compiling for %s, mesh %s', where.name, dict(run.mesh.shape))
  report = _before(run, rows, where)
  config = run.networks.policy.config
  recomputes = config.remat or getattr(config, 'attention', 'dense') != 'dense'
  if spec.batches.microbatches > 1 or recomputes:
    dense = {'attention': 'dense'} if hasattr(config, 'attention') else {}
    plain = rehearse(replace(spec, batches={'microbatches': 1}, compute={'remat': False} | dense), where)
    report['flops']['useful'] = _count(plain, abstract_rows(plain))
  start = time.monotonic()
  try:
    compiled, text = compile_step(run, rows)
  except Exception as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return Attempt(False, report | _too_large(str(error), state, where, time.monotonic() - start))
  spent = time.monotonic() - start
  memory, after = _after(compiled, text, run, where, report)
  fits = memory['total'] <= where.chip.hbm
  return Attempt(fits, report | {'fits': fits, 'memory': memory} | after | {'compile_seconds': spent})


def abstract_rows(run: Run, step: int = 0) -> Rows:
  """Shapes and shardings of a batch, as the loop would place it."""
  rows = run.loaders.train.rows(step)
  cut, whole = partitioning.rows_sharding(run.mesh), partitioning.replicated(run.mesh)

  def place(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  return place(rows._replace(units=None), cut)._replace(units=place(rows.units, whole))


def compile_step(run: Run, rows: Rows) -> tuple[jax.stages.Compiled, str]:
  """(the run's own jitted step, compiled for the devices of its mesh; its program's text)."""
  with partitioning.use_mesh(run.mesh), tempfile.TemporaryDirectory() as folder:
    dump = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
    compiled = run.jitted_step.lower(run.abstract_state, rows).compile(compiler_options=dump)
    return compiled, _text(compiled, pathlib.Path(folder))


def _text(compiled: jax.stages.Compiled, dump: pathlib.Path) -> str:
  """A compiled program's text, from the compiler's own dump where jaxlib cannot read the program.

  jaxlib 0.10.2 does not know the async-updates that libtpu 0.0.52 makes for v5p's and v6e's sparse cores.

  Raises:
    UsageError: the compiler left no dump either; the message has the memory of the step.
  """
  try:
    return compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    dumps = list(dump.glob('*.after_codegen.txt'))
    if len(dumps) == 1:
      return dumps[0].read_text()
    used = compiled.memory_analysis()
    memory = (used.argument_size_in_bytes + used.temp_size_in_bytes) / slices.GIB
    raise UsageError(
      f'the step compiles and takes {memory:.2f} GiB a chip, but this jaxlib cannot read the program that '
      f'libtpu made: {str(error).splitlines()[0]}. Pass another kind of chip to --topology, or install a jax '
      'and a libtpu that agree.'
    ) from error


def _count(run: Run, rows: Rows) -> float | int:
  with partitioning.use_mesh(run.mesh):
    return flops.count(run.jitted_step, run.abstract_state, rows)


def _before(run: Run, rows: Rows, where: slices.Slice) -> dict[str, Any]:
  """The report of a step before it is compiled."""
  layout, config = run.loaders.train.layout, run.networks.policy.config
  state = run.abstract_state
  tokens = (rows.prompt_tokens.size, rows.response_tokens.size)
  counted = _count(run, rows)
  estimate = roofline.rule_of_thumb(
    state, tokens, run.algorithm, policy.family_of(config), run.networks.value,
    run.reference is not None and run.reference.is_live,
  )  # fmt: skip
  held = {'reference': state.reference, 'initial_policy': state.initial}
  copies = {name: tree for name, tree in held.items() if tree is not None}
  held = summary.num_parameters(state) | summary.num_parameters(state._replace(params=copies, base=None))
  return {
    'topology': where.name, 'chips': len(where.devices), 'mesh': dict(run.mesh.shape),
    'algorithm': summary.algorithm(run.spec),
    'model': {name: getattr(config, name) for name in _MODEL if hasattr(config, name)},
    'parameters': held,
    'batch': {
      'rows': len(rows.valid), 'prompt_length': layout.prompt_length,
      'response_length': layout.response_length, 'tokens': sum(tokens),
    },
    'flops': {
      'step': counted, 'useful': counted, 'rule_of_thumb': estimate, 'ratio': counted / estimate,
    },
  }  # fmt: skip


def _after(
  compiled: jax.stages.Compiled,
  text: str,
  run: Run,
  where: slices.Slice,
  report: Mapping[str, Any],
) -> tuple[dict[str, float | int], dict[str, Any]]:
  """Returns the memory a chip by kind, and the work and times of a compiled step."""
  done = roofline.work(text, list(run.mesh.devices.flat), where)
  steps = run.schedule.steps
  memory = roofline.memory(run.abstract_state, compiled.memory_analysis(), done.kept_bytes)
  memory['available'] = where.chip.hbm
  times = roofline.seconds(done, where.chip)
  best = times['most']
  rates = functools.partial(_rates, where, steps, report['batch']['tokens'], report['flops']['useful'])
  return memory, {
    'flops': report['flops'] | {'per_chip': done.flops},
    'bytes': {
      'hbm': done.hbm_bytes, 'ici': done.traffic.ici_bytes, 'dcn': done.traffic.dcn_bytes,
      'collectives': roofline.by_kind(done.collectives),
    },
    'seconds': times, 'roofline_seconds': best, 'bound_by': roofline.bound_by(times),
    'compiler_seconds': done.estimated_cycles / where.chip.clock,
    'steps': steps, **rates(best), 'nothing_hidden': rates(times['sum']),
  }  # fmt: skip


def _rates(
  where: slices.Slice, steps: int, tokens: int, useful: float | int, seconds: float | int
) -> dict[str, float | int]:
  """Tokens a second, padding included, MFU and a run's chip-hours, from the time of a step."""
  count = len(where.devices)
  return {
    'tokens_per_second': tokens / seconds, 'mfu': useful / (seconds * where.chip.flops * count),
    'chip_hours': steps * seconds * count / 3600,
  }  # fmt: skip


def _too_large(message: str, state: TrainState, where: slices.Slice, spent: float | int) -> dict[str, Any]:
  """The report of a step that does not fit the memory of a chip.

  Raises:
    UsageError: the step exceeds another memory than HBM.
  """
  if not re.search('(memory on|memory space|available) hbm', message, re.IGNORECASE):
    raise UsageError(
      f'the compiler ran out of a memory other than HBM: {message.splitlines()[0]} Pass another mesh, '
      'DTYPE or COMPILER_OPTIONS.'
    )
  size = re.search(r'\(([\d.]+)([KMGT])\) exceeds available HBM', message) or re.search(
    r'[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm', message
  )
  scale = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
  total = float(size[1]) * scale[size[2]] if size else None
  memory = roofline.state_memory(state) | {'total': total, 'available': where.chip.hbm}
  return {'fits': False, 'memory': memory, 'compile_seconds': spent, 'compiler_says': message.splitlines()[0]}
