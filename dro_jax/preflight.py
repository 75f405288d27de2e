"""The `preflight` command: a run's own step, compiled for a slice that need not be here, and its needs."""

import functools
import itertools
import logging
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dro_jax import algorithms
from dro_jax import train as training
from dro_jax.costs import flops
from dro_jax.costs import roofline as forecast
from dro_jax.costs import slices as chips
from dro_jax.data import tasks
from dro_jax.data.batches import groups as units
from dro_jax.data.table.table import Ragged, TokenTable
from dro_jax.data.worlds import placeholder as stand_in
from dro_jax.errors import UsageError
from dro_jax.models.scoring import Score
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import AXES, Grid
from dro_jax.printing import result as printing
from dro_jax.run import batches as feeds
from dro_jax.step import reference as references
from dro_jax.step.state import TrainState
from dro_jax.types import Rows

_log = logging.getLogger(__name__)

_CHUNK = 64  # Response tokens projected at once, as a remedy.
_CACHED = '--gin_file=references/cached.gin --set REFERENCE_STORE=DIR (of dro_jax cache_reference)'


def preflight(
  topology: str,
  data: Callable[..., tasks.Triplets] = tasks.load_triplets,
  algorithm: Callable[[], algorithms.Algorithm] = algorithms.dro_v,
  *,
  train: Callable[..., Any] = training.train,
  reference: Callable[[Score], references.Reference] = references.frozen,
  mesh: Callable[..., Grid] = partitioning.make_mesh,
  rows: Callable[[], feeds.RowOptions] = feeds.RowOptions,
  schedule: Callable[[], training.Schedule] = training.Schedule,
  unit_options: Callable[[], units.UnitOptions] = units.UnitOptions,
  triplets: str | None = None,
  prompt_length: int = 512,
  response_length: int = 512,
  batch_size: int = 32,
  num_microbatches: int = 1,
  chunk_size: int | None = None,
  remedies: bool = True,
  sweep: bool | int = False,
  sweep_limit: int | None = 12,
) -> dict[str, Any]:
  """Compiles a run's train step for a slice, and reports whether it fits and how fast it can be.

  Nothing is run or sent anywhere. Without `triplets` nothing is written, with them their token table is,
  where a run keeps it. A checkpoint need exist only where the run starts from one (`train`'s `init_from`).

  Args:
    topology: the slice, such as v5e:4x8, or 2xv5e:4x8 for two of them.
    data: the triplets and how to read them; not read without `triplets`.
    algorithm: what the run minimises.
    train: the run; its step is the one that is compiled.
    reference: the run's; a store need not be there.
    mesh: lays out devices, for the sweep.
    rows: how the run's batches are laid out.
    schedule: the run's length.
    unit_options: how the run forms pairs and groups.
    triplets: the run's; `None` stands for batches of texts of full length.
    prompt_length: prompt tokens of those.
    response_length: response tokens of those.
    batch_size: the run's.
    num_microbatches: the run's.
    chunk_size: the run's.
    remedies: where the step does not fit, look for the smallest change with which it does.
    sweep: try every mesh that divides the slice, the rows and the parameters.
    sweep_limit: compile for so many of them at most; `None` for all.

  Returns:
    Parameters, memory a chip by kind, operations, bytes, seconds, and what would make the step fit.

  Raises:
    UsageError: there is no such slice or no libtpu, or settings or data cannot make a run.
  """
  jax.config.update('jax_platforms', 'cpu')  # A machine with libtpu and no TPU would look for one.
  chosen, where = algorithm(), chips.find(topology)
  if chosen.online is not None:
    raise UsageError(
      f'{chosen.name} samples its responses, and preflight compiles steps on logged ones: pass its offline '
      'kin (--gin_file=algorithms/rloo.gin, copg.gin, ...), whose step is the same, without the sampling.'
    )
  if triplets is None:
    sizes = {'prompts': batch_size, 'prompt_length': prompt_length, 'response_length': response_length}
    sizes['responses'] = unit_options().group_size if chosen.unit == 'group' else 2
    columns = (*chosen.requires, *(_DERIVED_FROM if chosen.columns else ()))
    data = functools.partial(_stand_in, columns=columns, **sizes)
    rows = functools.partial(_filled, rows(), prompt_length, response_length)
  settings = {
    'model_dir': 'preflight', 'algorithm': algorithm, 'reference': reference, 'rows': rows,
    'batch_size': batch_size, 'num_microbatches': num_microbatches, 'chunk_size': chunk_size,
    'schedule': schedule, 'unit_options': unit_options,
  }  # fmt: skip
  asked = functools.partial(_asked, train, where, data, settings)
  if sweep:
    return _swept(asked, mesh, where, sweep_limit)
  first = _attempt(asked())
  if first.fits or not remedies:
    return _shown(first.report)
  held = chosen.uses_reference and _scheme(reference) == 'frozen'
  spread = functools.partial(_spread, mesh, where, first.report['mesh'], batch_size)
  ladder = _ladder(first.report['model'], settings, held, spread)
  tried = list(_remedies(asked, first, ladder))
  fitting = next((row for row in tried if row['fits']), None)
  return _shown(first.report | {'tried': tried, 'remedy': fitting and fitting['change']})


# --- what stands in for what is not there -------------------------------------------------------------------


# What algorithms derive columns from, where a record has them.
_DERIVED_FROM = ('value', 'behaviour_logps', 'behaviour_sampled')


def _stand_in(vocabulary: Any, rewards_required: bool = True, **sizes: Any) -> tasks.Triplets:
  return stand_in.triplets(vocabulary, **sizes)


def _filled(rows: feeds.RowOptions, prompt_length: int, response_length: int) -> feeds.RowOptions:
  """Rows that hold exactly one text of full length a side, where they are not said to be longer."""
  return feeds.RowOptions(
    **vars(rows) | {
      'prompt_length': rows.prompt_length or prompt_length,
      'response_length': rows.response_length or response_length,
    }
  )  # fmt: skip


def _without_store(reference: Callable[[Score], references.Reference]) -> Callable[[Score], Any]:
  return lambda score: reference(score)._replace(stored=None)


def _scheme(reference: Callable[[Score], references.Reference]) -> str:
  """What a reference is called."""
  return reference(lambda *_: None).settings['scheme']


def _with_reference(data: Callable[..., tasks.Triplets], **options: Any) -> tasks.Triplets:
  """Triplets with a reference's log-probs, as a store would bring them."""
  found = data(**options)

  def extended(table: TokenTable | None) -> TokenTable | None:
    if table is None:
      return None
    starts = np.cumsum(table.response_lengths) - table.response_lengths
    zeros = Ragged(np.zeros(int(table.response_lengths.sum()), np.float32), starts)
    pairs = {references.MISMATCHED_LOGPS: lambda prompts, responses: np.zeros(len(prompts))}
    return table.with_columns(token_columns={references.TOKEN_LOGPS: zeros}, pair_columns=pairs)

  return found._replace(train=extended(found.train), eval=extended(found.eval))


# --- one compilation ----------------------------------------------------------------------------------------


class Attempt(NamedTuple):
  """One way to run the step: whether it fits, and all that is known of it."""

  fits: bool
  report: dict[str, Any]


class Asked(NamedTuple):
  """What is compiled: `train`, the slice, the data, and the settings that `train` gets."""

  train: Callable[..., Any]
  where: chips.Slice
  data: Callable[..., tasks.Triplets]
  settings: Mapping[str, Any]


def _asked(
  train: Callable[..., Any],
  where: chips.Slice,
  data: Callable[..., tasks.Triplets],
  settings: Mapping[str, Any],
  **changes: Any,
) -> Asked:
  """A run with some changes; a reference that is not scored brings its log-probs."""
  settings = {**settings, **changes}
  settings['reference'] = _without_store(settings['reference'])
  kept = settings['reference'](lambda *_: None).is_kept
  return Asked(train, where, data if kept else functools.partial(_with_reference, data), settings)


def _rehearsed(asked: Asked, **changes: Any) -> tuple[training.Run, TrainState]:
  """The run, built but not compiled, and its state's shapes."""
  rehearsal = training.Rehearsal(asked.where.devices, lambda run, state: (run, state))
  return asked.train(data=asked.data, rehearsal=rehearsal, **{**asked.settings, **changes})


def _attempt(asked: Asked) -> Attempt:
  where, settings = asked.where, asked.settings
  run, state = _rehearsed(asked)
  rows = abstract_rows(run)
  _log.info('compiling for %s, mesh %s', where.name, dict(run.mesh.shape))
  report = _before(run, state, rows, where)
  if settings['num_microbatches'] > 1 or run.networks.policy.config.remat:
    plain = _rehearsed(asked, num_microbatches=1, remat=False)
    report['flops']['useful'] = _count(*plain, abstract_rows(plain[0]))
  start = time.monotonic()
  try:
    compiled, text = compile_step(run, state, rows)
  except Exception as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return Attempt(False, report | _too_large(str(error), state, where, time.monotonic() - start))
  spent = time.monotonic() - start
  memory, after = _after(compiled, text, run, state, where, report, settings['schedule']().steps)
  fits = memory['total'] <= where.chip.hbm
  return Attempt(fits, report | {'fits': fits, 'memory': memory} | after | {'compile_seconds': spent})


def abstract_rows(run: training.Run, step: int = 0) -> Rows:
  """Shapes and shardings of a batch, as the loop would place it."""
  rows = run.train_loader.rows(step)
  cut, whole = partitioning.rows_sharding(run.mesh), partitioning.replicated(run.mesh)

  def place(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  return place(rows._replace(units=None), cut)._replace(units=place(rows.units, whole))


def compile_step(run: training.Run, state: TrainState, rows: Rows) -> tuple[jax.stages.Compiled, str]:
  """(the run's own jitted step, compiled for the devices of its mesh; its program's text)."""
  with partitioning.use_mesh(run.mesh), tempfile.TemporaryDirectory() as folder:
    dump = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
    compiled = run.step.lower(state, rows).compile(compiler_options=dump)
    return compiled, _text(compiled, pathlib.Path(folder))


def _text(compiled: jax.stages.Compiled, dump: pathlib.Path) -> str:
  """A compiled program's text, from the compiler's own dump where jaxlib cannot read the program.

  jaxlib 0.10.2 does not know the async-updates that libtpu 0.0.52 makes for v5p's and v6e's sparse cores.

  Raises:
    UsageError: the compiler left no dump either. What the step takes is known, and told.
  """
  try:
    return compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    found = list(dump.glob('*.after_codegen.txt'))
    if len(found) == 1:
      return found[0].read_text()
    used = compiled.memory_analysis()
    takes = (used.argument_size_in_bytes + used.temp_size_in_bytes) / chips.GIB
    raise UsageError(
      f'the step compiles and takes {takes:.2f} GiB a chip, but this jaxlib cannot read the program that '
      f'libtpu made: {str(error).splitlines()[0]}. Pass another kind of chip to --topology, or install a jax '
      'and a libtpu that agree.'
    ) from error


def _count(run: training.Run, state: TrainState, rows: Rows) -> float | int:
  with partitioning.use_mesh(run.mesh):
    return flops.count(run.step, state, rows)


def _before(run: training.Run, state: TrainState, rows: Rows, where: chips.Slice) -> dict[str, Any]:
  """What is known of a step before it is compiled."""
  layout, config = run.train_loader.layout, run.networks.policy.config
  tokens = (rows.prompt_tokens.size, rows.response_tokens.size)
  counted = _count(run, state, rows)
  value = run.networks.value
  estimate = forecast.rule_of_thumb(state, tokens, run.algorithm, value is not None and value.frozen_trunk)
  held = {'reference': state.reference, 'initial_policy': state.initial}
  networks = dict(state.params) | {name: tree for name, tree in held.items() if tree is not None}
  return {
    'topology': where.name, 'chips': len(where.devices), 'mesh': dict(run.mesh.shape),
    'algorithm': run.algorithm.name,
    'model': {name: getattr(config, name) for name in ('emb_dim', 'num_encoder_layers', 'dtype', 'remat')},
    'parameters': {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in networks.items()},
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
  run: training.Run,
  state: TrainState,
  where: chips.Slice,
  report: Mapping[str, Any],
  steps: int,
) -> tuple[dict[str, float | int], dict[str, Any]]:
  """(memory a chip by kind, what a compiled step does and takes)."""
  done = forecast.work(text, list(run.mesh.devices.flat), where)
  memory = forecast.memory(state, compiled.memory_analysis(), done.kept_bytes)
  memory['available'] = where.chip.hbm
  times = forecast.seconds(done, where.chip)
  best = times['most']
  rates = functools.partial(_rates, where, steps, report['batch']['tokens'], report['flops']['useful'])
  return memory, {
    'flops': report['flops'] | {'per_chip': done.flops},
    'bytes': {
      'hbm': done.hbm_bytes, 'ici': done.traffic.ici_bytes, 'dcn': done.traffic.dcn_bytes,
      'collectives': forecast.by_kind(done.collectives),
    },
    'seconds': times, 'roofline_seconds': best, 'bound_by': forecast.bound_by(times),
    'compiler_seconds': done.estimated_cycles / where.chip.clock,
    'steps': steps, **rates(best), 'nothing_hidden': rates(times['sum']),
  }  # fmt: skip


def _rates(
  where: chips.Slice, steps: int, tokens: int, useful: float | int, seconds: float | int
) -> dict[str, float | int]:
  """What a step's time makes of its tokens, padding included, its operations and a run's steps."""
  count = len(where.devices)
  return {
    'tokens_per_second': tokens / seconds, 'mfu': useful / (seconds * where.chip.flops * count),
    'chip_hours': steps * seconds * count / 3600,
  }  # fmt: skip


def _too_large(message: str, state: TrainState, where: chips.Slice, spent: float | int) -> dict[str, Any]:
  """What is known of a step that the compiler found too large.

  Raises:
    UsageError: for something else than a chip's main memory.
  """
  if not re.search('(memory on|memory space|available) hbm', message, re.IGNORECASE):
    raise UsageError(
      f'the compiler ran out of something else than HBM: {message.splitlines()[0]} Another mesh or DTYPE may '
      'do, or other COMPILER_OPTIONS.'
    )
  found = re.search(r'\(([\d.]+)([KMGT])\) exceeds available HBM', message) or re.search(
    r'[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm', message
  )
  scale = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
  total = float(found[1]) * scale[found[2]] if found else None
  memory = forecast.of_state(state) | {'total': total, 'available': where.chip.hbm}
  return {'fits': False, 'memory': memory, 'compile_seconds': spent, 'compiler_says': message.splitlines()[0]}


# --- what would make it fit, and what would be faster -------------------------------------------------------


class Remedy(NamedTuple):
  """A change of settings: how to ask for it, and what it is for `train`."""

  change: str
  settings: Mapping[str, Any]


def _ladder(
  model: Mapping[str, Any],
  settings: Mapping[str, Any],
  is_held: bool,
  spread: Callable[[int], list[Remedy]],
) -> list[Remedy]:
  """Changes in the order of what they cost, but for those that a run has made already.

  Args:
    model: the run's (see `_before`).
    settings: the run's.
    is_held: whether its reference stays as it is, and is scored.
    spread: from microbatches to the mesh that cuts parameters most, where the run has another.
  """
  parts, chunk_size = settings['num_microbatches'], settings['chunk_size'] or math.inf
  store = functools.partial(references.cached, store='rehearsed')
  dots = [] if model['remat'] else [Remedy('--set REMAT=dots', {'remat': 'dots'})]
  whole = [] if model['remat'] is True else [Remedy('--set REMAT=true', {'remat': True})]
  chunks = [Remedy(f'--set CHUNK_SIZE={_CHUNK}', {'chunk_size': _CHUNK})] if chunk_size > _CHUNK else []
  cached = [Remedy(_CACHED, {'reference': store})] if is_held else []
  counts = (2 * parts, 4 * parts, 8 * parts)
  more = [[Remedy(f'--set MICROBATCHES={m}', {'num_microbatches': m})] for m in counts]
  light, heavy, most = dots + chunks, whole + chunks, more[-1] + spread(8 * parts)
  rungs = [
    dots, chunks, light, cached, spread(parts), light + spread(parts), *(light + part for part in more),
    heavy, heavy + more[-1], light + most, heavy + most, heavy + most + cached,
  ]  # fmt: skip
  joined = [_joined(*rung) for rung in rungs if rung]
  return list({one.change: one for one in joined}.values())


def _joined(*some: Remedy) -> Remedy:
  settings = dict(itertools.chain.from_iterable(one.settings.items() for one in some))
  return Remedy(' '.join(one.change for one in some), settings)


def _spread(
  mesh: Callable[..., Grid], where: chips.Slice, now: Mapping[str, int], batch_size: int, parts: int
) -> list[Remedy]:
  """Parameters over as many chips of a slice as have rows, heads, MLP and vocabulary over the others."""
  size = len(where.devices) // where.num_slices
  fsdp = math.gcd(size, batch_size // (where.num_slices * parts))
  sizes = {'fsdp': fsdp, 'model': size // fsdp}
  layout = functools.partial(mesh, data=1, **sizes)
  if dict(layout(devices=where.devices).shape) == now:
    return []
  set_sizes = [f'--set make_mesh.{axis}={ways}' for axis, ways in sizes.items()]
  return [Remedy(' '.join(['--gin_file=meshes/fsdp.gin', *set_sizes]), {'mesh': layout})]


def _remedies(
  asked: Callable[..., Asked], first: Attempt, ladder: Sequence[Remedy]
) -> Iterator[dict[str, Any]]:
  """Tries changes until one makes the step fit."""
  held = sum(first.report['memory'].get(name, 0) for name in ('parameters', 'optimizer'))
  for remedy in ladder:
    # What lies there between steps is too much already, and stays.
    if held > first.report['memory']['available'] and 'mesh' not in remedy.settings:
      continue
    try:
      found = _attempt(asked(**remedy.settings))
    except UsageError as error:
      yield {'change': remedy.change, 'fits': False, 'refused': str(error)}
      continue
    yield {'change': remedy.change, 'fits': found.fits, **_summary(found.report)}
    if found.fits:
      return


def _summary(report: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'total_bytes': report['memory']['total'], 'roofline_seconds': report.get('roofline_seconds'),
    'bound_by': report.get('bound_by'),
  }  # fmt: skip


def _swept(
  asked: Callable[..., Asked], mesh: Callable[..., Grid], where: chips.Slice, limit: int | None
) -> printing.Sections:
  """Every mesh, those that fit first, the fastest of them first."""
  possible, rows = _sifted(asked, mesh, where)
  chosen = possible[:limit]
  for sizes in chosen:
    try:
      found = _attempt(asked(mesh=functools.partial(mesh, **sizes)))
    except UsageError as error:
      rows.append(sizes | {'fits': False, 'refused': str(error)})
      continue
    rows.append(sizes | {'fits': found.fits, **_summary(found.report)})
    _log.info('%s', _row(rows[-1]))
  left = f'not compiled: --set SWEEP_LIMIT={len(possible)} does'
  rows += [sizes | {'fits': None, 'refused': left} for sizes in possible[len(chosen) :]]
  rows.sort(key=lambda row: (not row['fits'], row.get('roofline_seconds') or math.inf))
  return printing.Sections({'topology': where.name, 'meshes': rows}, {where.name: list(map(_row, rows))})


def _sifted(
  asked: Callable[..., Asked], mesh: Callable[..., Grid], where: chips.Slice
) -> tuple[list[dict[str, int]], list[dict[str, Any]]]:
  """(sizes of meshes that may do, rows of those that cannot), as far as can be told without compiling."""
  possible, rows = [], []
  for sizes in _meshes(len(where.devices) // where.num_slices, where.num_slices):
    try:
      _, state = _rehearsed(asked(mesh=functools.partial(mesh, **sizes)))
    except UsageError as error:
      rows.append(sizes | {'fits': False, 'refused': str(error)})
      continue
    held = sum(forecast.of_state(state).values())
    if held > where.chip.hbm:
      why = 'parameters, optimizer and reference alone are too much'
      rows.append(sizes | {'fits': False, 'total_bytes': held, 'refused': why})
    else:
      possible.append(sizes)
  return possible, rows


def _meshes(size: int, slices: int) -> list[dict[str, int]]:
  """All meshes of slices of a size: what cuts rows most first, of those what cuts parameters most."""
  found = [
    {'data': data, 'fsdp': fsdp, 'model': size // (data * fsdp)}
    | ({'dcn_data': slices // across, 'dcn_fsdp': across} if slices > 1 else {})
    for data, fsdp, across in itertools.product(_divisors(size), _divisors(size), _divisors(slices))
    if size % (data * fsdp) == 0
  ]
  return sorted(found, key=lambda sizes: (sizes['model'], sizes.get('dcn_fsdp', 1), -sizes['fsdp']))


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


# --- for people ---------------------------------------------------------------------------------------------


def _shown(report: dict[str, Any]) -> printing.Sections:
  sections: dict[str, Sequence[Mapping[str, Any]]] = {
    report['topology']: _lines(
      {
        'mesh': ' × '.join(f'{axis} {size}' for axis, size in report['mesh'].items()),
        'batch': '{rows} rows of {prompt_length} + {response_length} tokens'.format(**report['batch']),
        'parameters': ', '.join(f'{name} {size:,}' for name, size in report['parameters'].items()),
        'fits': 'yes' if report['fits'] else 'no',
      }
      | ({'the compiler says': report['compiler_says']} if 'compiler_says' in report else {})
      | ({'would fit with': report['remedy'] or _NONE} if 'tried' in report else {})
    ),
    'memory a chip': _lines({name: _gib(size) for name, size in report['memory'].items()}),
  }
  if 'seconds' in report:
    sections |= _speed(report)
  if 'tried' in report:
    sections['what would make it fit'] = list(map(_row, report['tried']))
  return printing.Sections(report, sections, _NOTE if 'seconds' in report else '')


def _gib(size: float | int | None) -> str | None:
  return None if size is None else f'{size / 2**30:.3f} GiB'


def _row(row: Mapping[str, Any]) -> dict[str, str | int | None]:
  """A change or a mesh that was tried."""
  what = {name: row[name] for name in ('change', *AXES, 'dcn_data', 'dcn_fsdp') if name in row}
  best = row.get('roofline_seconds')
  return what | {
    'fits': {True: 'yes', False: 'no'}.get(row['fits']), 'memory a chip': _gib(row.get('total_bytes')),
    'roofline': None if best is None else f'{best:.4g} s', 'bound by': row.get('bound_by'),
    'refused': row.get('refused'),
  }  # fmt: skip


_NONE = 'nothing that was tried: take more chips, a smaller BATCH, or shorter texts'
_NOTE = (
  'roofline: the longest of compute, HBM, ICI and DCN, each alone at its peak, the rest hidden behind it; '
  "sum: nothing hidden; compiler: the compiler's own count of a core's cycles, communication left out. 6ND "
  'knows no attention, no recomputation, and not that cross-attention projects the prompt.'
)


def _speed(report: Mapping[str, Any]) -> dict[str, Sequence[Mapping[str, Any]]]:
  flops_, times = report['flops'], report['seconds']
  ends = lambda name: (report[name], report['nothing_hidden'][name])  # noqa: E731
  return {
    'a step': _lines(
      {
        'operations': f'{flops_["step"]:.4g}, {flops_["ratio"]:.2f} of 6ND ({flops_["rule_of_thumb"]:.4g})',
        'operations a chip, compiled': f'{flops_["per_chip"]:.4g}',
        'bytes a chip': ', '.join(
          f'{name} {report["bytes"][name] / 1e9:.3f} GB' for name in ('hbm', 'ici', 'dcn')
        ),
        'seconds': ', '.join(f'{name} {value:.4f}' for name, value in times.items() if name != 'most'),
        'roofline': f'{report["roofline_seconds"]:.4f} s, bound by {report["bound_by"]}',
        'compiler': f'{report["compiler_seconds"]:.4f} s',
        'tokens a second, padding included': 'at most {:,.0f}, {:,.0f} with nothing hidden'.format(
          *ends('tokens_per_second')
        ),
        'MFU': 'at most {:.1%}, {:.1%} with nothing hidden'.format(*ends('mfu')),
        'chip-hours': 'at least {:.2f}, {:.2f} with nothing hidden'.format(*ends('chip_hours')),
        'compilation': f'{report["compile_seconds"]:.0f} s',
      }
    ),
    'collectives': [
      row | {'runs': f'{row["runs"]:.0f}', 'sent_bytes': f'{row["sent_bytes"] / 1e6:.1f} MB'}
      for row in report['bytes']['collectives']
    ],
  }


def _lines(values: Mapping[str, Any]) -> list[dict[str, Any]]:
  return [{' ': name, '  ': value} for name, value in values.items()]


__all__ = ['preflight']
