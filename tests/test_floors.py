"""A folder is a floor: it imports what stands above it in the list below, and itself, never in a circle."""

import ast
import functools
import graphlib
import pathlib
import sys
from collections.abc import Iterator, Mapping

import pytest

# A folder imports only what stands above it, and itself.
HOUSE = (
  'names', 'types', 'errors', 'files', 'limits',
  'ops', 'statistics', 'configs', 'parallel',
  'losses', 'models', 'data', 'printing',
  'algorithms',
  'step',
  'costs', 'checkpoints',
  'run',
  'evaluation', 'inspection', 'preflight', 'recipes',
  'arena',
  'cli',
  'demo', 'main',
  'api',
  'demo_lm',
)  # fmt: skip
FLOORS = {room: floor for floor, room in enumerate(HOUSE)}

# Who never imports whom, though the order would allow it.
NEVER = {
  'models': ('losses',),
  'data': ('models', 'losses'),
  'algorithms': ('models', 'data'),
  'step': ('data', 'losses'),
}

# Arrays only: what these may import beside the standard library and each other.
ONLY = dict.fromkeys(('types', 'errors', 'ops', 'losses'), ('jax', 'jaxtyping', 'numpy'))
# Third parties that a wing does without, and the door's own.
WITHOUT = {
  'data': ('flax', 'optax', 'orbax'),
  'models': ('seqio', 'tensorflow', 'tensorflow_datasets', 'optax'),
}
DOOR = ('gin', 'absl')

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / 'dro_jax'


def _sources() -> dict[str, str]:
  """Every module of the package by its dotted name without `dro_jax.`; the package itself is ''."""
  sources = {}
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    sources['.'.join(part for part in parts if part != '__init__')] = path.read_text(encoding='utf-8')
  return sources


@functools.cache
def _import_nodes(source: str) -> list[ast.Import | ast.ImportFrom]:
  return [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]


def _imports(source: str, modules: Mapping[str, str]) -> Iterator[str]:
  """What a module imports, anywhere in it: our modules as `dro_jax.NAME`, others by their full name."""
  for node in _import_nodes(source):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    else:
      base = '.' * node.level + (node.module or '')
      for alias in node.names:
        whole = f'{base}.{alias.name}'
        yield whole if whole.removeprefix('dro_jax.') in modules else base


def _room(module: str) -> str:
  return module.split('.')[0]


def _ours(imported: str) -> str | None:
  return imported.removeprefix('dro_jax').removeprefix('.') if _room(imported) == 'dro_jax' else None


def violations(sources: Mapping[str, str]) -> list[str]:
  """Every import that the house forbids, as a sentence."""
  found = list(_unplaced(sources))
  graph = {module: set() for module in sources}
  for module, source in sources.items():
    for imported in sorted(set(_imports(source, sources))):
      ours = _ours(imported)
      if ours is None:
        found.extend(_third_party(module, imported))
      elif ours and ours != module:
        graph[module].add(ours)
        found.extend(_inner(module, ours))
  return found + list(_circles(graph))


def _unplaced(sources: Mapping[str, str]) -> Iterator[str]:
  for module in sources:
    if module and _room(module) not in FLOORS:
      yield f'dro_jax/{module} has no place: add it to HOUSE in tests/test_floors.py'


def _inner(module: str, imported: str) -> Iterator[str]:
  here, there = _room(module), _room(imported)
  if FLOORS.get(there, 0) > FLOORS.get(here, 99):
    yield f'{module} imports {imported}: {there} stands below {here} in HOUSE'
  if there in NEVER.get(here, ()):
    yield f'{module} imports {imported}: {here} never imports {there}'


def _third_party(module: str, imported: str) -> Iterator[str]:
  here, there = _room(module), _room(imported)
  if imported.startswith('.'):
    yield f'{module} imports {imported!r}: imports are absolute here'
  elif there in DOOR and here not in ('cli', 'main'):
    yield f'{module} imports {imported}: only cli does'
  elif there in WITHOUT.get(here, ()):
    yield f'{module} imports {imported}: {here} does without {there}'
  elif here in ONLY and there not in ONLY[here] and there not in sys.stdlib_module_names:
    yield f'{module} imports {imported}: {here} imports nothing but {", ".join(ONLY[here])}'


def _circles(graph: Mapping[str, set[str]]) -> Iterator[str]:
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    yield f'imports in a circle: {" <- ".join(error.args[1])}'


def test_imports_point_down():
  assert violations(_sources()) == []


@pytest.mark.parametrize(
  'module, line, message',
  [
    (
      'losses.dro',
      'from dro_jax.step import metrics',
      'losses.dro imports step.metrics: step stands',
    ),
    ('ops.masked', 'import dro_jax.losses', 'ops.masked imports losses: losses stands below ops'),
    (
      'models.layers',
      'from dro_jax.data.batches.plan import Plan',
      'models.layers imports data.batches.plan',
    ),
    ('data.batches.plan', 'from dro_jax.models import layers', 'data never imports models'),
    ('step.train_step', 'from dro_jax.losses import kto', 'step never imports losses'),
    ('losses.kto', 'import optax', 'losses imports nothing but jax, jaxtyping, numpy'),
    ('data.table.table', 'from flax import linen as nn', 'data does without flax'),
    ('models.value', 'def f():\n  import tensorflow as tf', 'models does without tensorflow'),
    ('step.train_step', 'import gin', 'only cli does'),
    ('ops.masked', 'from . import types', 'imports are absolute here'),
    ('step.state', 'from dro_jax.step import reference', 'imports in a circle'),
    ('losses.weighted', 'from dro_jax.losses import sft', 'imports in a circle'),
    ('utils', '', 'dro_jax/utils has no place: add it to HOUSE in tests/test_floors.py'),
  ],
)
def test_a_planted_violation_is_caught(module, line, message):
  sources = _sources()
  planted = {**sources, module: f'{sources.get(module, "")}\n{line}\n'}
  assert any(message in violation for violation in violations(planted))


# --- what reads a file runs none of it

_UNPICKLES = ('dill', 'cloudpickle', 'joblib', 'shelve', 'marshal')


def unpickling(source: str) -> list[str]:
  """What in a module could run code that a data file or checkpoint holds."""
  found = [name for name in _imports(source, {}) if _room(name) in _UNPICKLES]
  for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
    name, options = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
    unsafe = (
      name in ('pickle.load', 'pickle.loads', 'pickle.Unpickler', 'eval', 'exec', 'yaml.load')
      or (name == 'torch.load' and options.get('weights_only') != 'True')
      or options.get('allow_pickle', 'False') != 'False'
      or name.endswith('read_pickle')
    )
    found += [name] if unsafe else []
  return found


def test_no_file_is_unpickled():
  assert {module: found for module, source in _sources().items() if (found := unpickling(source))} == {}


@pytest.mark.parametrize(
  'line',
  [
    'pickle.load(file)',
    'torch.load(file)',
    'torch.load(file, weights_only=False)',
    'np.load(file, allow_pickle=True)',
    'import joblib',
    'eval(text)',
    'pd.read_pickle(file)',
  ],
)
def test_a_planted_unpickling_is_caught(line):
  assert unpickling(line)
  assert not unpickling('torch.load(file, weights_only=True)\nnp.load(file)\nast.literal_eval(text)')
