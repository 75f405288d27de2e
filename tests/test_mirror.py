"""tests/ mirrors dro_jax/: a module has its own test file, or ELSEWHERE says which file tests it."""

import ast
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
PACKAGE = TESTS.parent / 'dro_jax'

# Modules without a test file of their own, by the file that tests them.
ELSEWHERE = {
  'evaluation/judge/test_judge.py': ('evaluation/judge/choosing',),
  'evaluation/test_report.py': ('evaluation/compared_run',),
  'checkpoints/test_orbax.py': ('checkpoints/folders', 'checkpoints/metadata', 'checkpoints/trees'),
  'data/text/test_vocabularies.py': ('data/text/model_files', 'names'),
  'recipes/test_train.py': ('run/replay',),
  'recipes/reproduce/test_a_lol.py': ('recipes/reproduce/a_lol_hh', 'recipes/reproduce/a_lol_tasks'),
  'algorithms/test_algorithms.py': (
    'algorithms/a_lol', 'algorithms/base', 'algorithms/dro', 'algorithms/groups', 'algorithms/kto',
    'algorithms/labels', 'algorithms/online', 'algorithms/oreo', 'algorithms/policy_gradient',
    'algorithms/preference', 'algorithms/quantile', 'algorithms/refusals', 'algorithms/settings',
    'algorithms/weighted',
  ),
  'arena/bandit/test_suite.py': (
    'arena/bandit/learning', 'arena/bandit/methods', 'arena/bandit/report', 'arena/bandit/world',
  ),
  'arena/exact/test_suite.py': (
    'arena/exact/in_memory', 'arena/exact/methods', 'arena/exact/report', 'arena/exact/world',
  ),
  'arena/human/test_suite.py': ('arena/human/report',),
  'arena/test_arena.py': ('arena/suite',),
  'arena/text/test_suite.py': (
    'arena/text/answers', 'arena/text/log', 'arena/text/methods', 'arena/text/worlds',
  ),
  'checkpoints/huggingface/test_read.py': (
    'checkpoints/huggingface/files', 'checkpoints/huggingface/format', 'checkpoints/huggingface/formats',
    'checkpoints/huggingface/t5', 'checkpoints/huggingface/vocabulary',
  ),
  'checkpoints/test_export_checkpoint.py': (
    'checkpoints/huggingface/write', 'checkpoints/huggingface/write_tokenizer',
    'checkpoints/import_checkpoint', 'checkpoints/t5x/write', 'models/t5/names',
  ),
  'cli/test_main.py': (
    'cli/bindings', 'cli/checks', 'cli/configs', 'cli/flags', 'cli/help', 'cli/own_algorithm', 'cli/registry',
    'cli/tables', 'cli/values', 'main',
  ),
  'configs/test_configs.py': (
    'configs/differences', 'configs/parameters', 'configs/settings', 'configs/table', 'configs/text',
  ),
  'configs/test_files.py': ('cli/configs_command',),
  'costs/hlo/test_hlo.py': (
    'costs/hlo/collectives', 'costs/hlo/loops', 'costs/hlo/memory', 'costs/hlo/operations',
    'costs/hlo/program',
  ),
  'data/batches/test_packing.py': ('data/batches/mismatched', 'data/batches/placement'),
  'data/batches/test_plan.py': ('data/batches/dealing',),
  'data/records/test_comparisons.py': ('data/sources/seqio_tasks',),
  'data/records/test_readers.py': (
    'data/records/delimited_files', 'data/records/file_names', 'data/records/json_files',
    'data/records/parquet_files', 'data/records/text_files',
  ),
  'data/records/test_triplets.py': (
    'data/records/fields', 'data/records/ids', 'data/records/numbers', 'data/records/texts',
  ),
  'data/sources/test_public.py': ('data/sources/public_records',),
  'data/table/test_table.py': ('data/storage/fingerprints', 'data/table/flat'),
  'data/table/test_beam.py': ('data/table/parts', 'data/table/writer'),
  'data/test_triplets.py': ('data/sources/task_modules', 'data/table/cache'),
  'recipes/reproduce/test_command.py': (
    'recipes/reproduce/dro', 'recipes/reproduce/dro_ablations', 'recipes/reproduce/laptop',
    'recipes/reproduce/planning', 'recipes/reproduce/ultrafeedback',
  ),
  'recipes/reproduce/test_running.py': ('recipes/reproduce/notes', 'recipes/reproduce/stages'),
  'evaluation/test_answers.py': ('evaluation/answer_files',),
  'evaluation/test_generate.py': (
    'evaluation/answering', 'run/sampling/generation', 'run/sampling/prompts',
  ),
  'inspection/test_inspect.py': (
    'inspection/command', 'inspection/packing', 'inspection/tables', 'inspection/warnings',
  ),
  'models/test_policy.py': ('models/family', 'models/t5/family'),
  'models/causal/test_names.py': ('models/stored',),
  'models/t5/test_network.py': ('models/stacks', 'models/t5/config'),
  'preflight/test_preflight.py': (
    'data/worlds/placeholder', 'preflight/compilation', 'preflight/placeholders', 'preflight/remedies',
    'preflight/sweep', 'preflight/tables',
  ),
  'recipes/test_cache_reference.py': ('run/reference_store',),
  'run/test_batches.py': ('run/table_scores',),
  'run/test_spec.py': ('run/exclusions', 'run/own_algorithm'),
  'run/test_train.py': (
    'run/best', 'run/build', 'run/data', 'run/folder/nonfinite', 'run/learner', 'run/loop', 'run/measure',
    'run/schedule', 'run/summary', 'run/trained',
  ),
  'step/test_train_step.py': ('step/state',),
}  # fmt: skip

# Annotations only, and the old places of modules, which import the new ones.
UNTESTED = ('data/public', 'data/tasks', 'types')

# Folders that mirror what stands beside dro_jax/, and test files that are about no module in particular.
BESIDE = ('docs', 'gin_configs', 'launch', 'long')
ABOUT_ALL = (
  'losses/test_contract.py', 'run/test_saved_runs.py', 'test_benchmarks.py', 'test_floors.py',
  'test_mirror.py', 'test_notebooks.py', 'test_plain.py', 'test_requirements.py', 'test_wheel.py',
  'test_workflow.py',
)  # fmt: skip


def _modules() -> dict[str, str]:
  """The source of every module by its path without `.py`."""
  return {str(path.relative_to(PACKAGE).with_suffix('')): path.read_text() for path in PACKAGE.rglob('*.py')}


def _tests() -> dict[str, str]:
  """The source of every test file by its path."""
  return {str(path.relative_to(TESTS)): path.read_text() for path in TESTS.rglob('test_*.py')}


def _mirror(module: str) -> str:
  folder, _, name = module.rpartition('/')
  return f'{folder}/test_{name}.py'.lstrip('/')


def faults(
  modules: Mapping[str, str],
  tests: Mapping[str, str],
  elsewhere: Mapping[str, Sequence[str]],
  untested: Sequence[str] = (),
) -> list[str]:
  """Every module that no file tests, every wrong entry of the lists, and every test of no module."""
  listed = {module: test for test, names in elsewhere.items() for module in names}
  return [
    *_without_test(modules, tests, {*listed, *untested}),
    *_wrong_entries(modules, tests, elsewhere),
    *_wrong_exceptions(modules, tests, untested),
    *_without_module(modules, tests, elsewhere),
  ]


def _without_test(modules: Mapping[str, str], tests: Mapping[str, str], listed: set[str]) -> Iterator[str]:
  for module in modules:
    # A folder's `__init__` is its face: all that import the folder test it.
    if _mirror(module) not in tests and module not in listed and not module.endswith('__init__'):
      yield (
        f'dro_jax/{module}.py has no tests/{_mirror(module)}: write it, or list the module in ELSEWHERE of '
        'tests/test_mirror.py under the file that tests it'
      )


def _wrong_entries(
  modules: Mapping[str, str], tests: Mapping[str, str], elsewhere: Mapping[str, Sequence[str]]
) -> Iterator[str]:
  for test, names in elsewhere.items():
    if test not in tests:
      yield f'ELSEWHERE names tests/{test}, which does not exist: name the file that tests {", ".join(names)}'
      continue
    reached = _reached(tests[test], modules)
    for module in names:
      if module not in modules:
        yield f'ELSEWHERE lists {module}, but there is no dro_jax/{module}.py: remove the entry'
      elif _mirror(module) in tests:
        yield f'ELSEWHERE lists {module}, but tests/{_mirror(module)} exists: remove the entry'
      elif module not in reached:
        yield f'ELSEWHERE lists {module} under {test}, but no import of that file leads to the module'


def _wrong_exceptions(
  modules: Mapping[str, str], tests: Mapping[str, str], untested: Sequence[str]
) -> Iterator[str]:
  for module in untested:
    if module not in modules or _mirror(module) in tests:
      yield f'UNTESTED lists {module}, which does not exist or has a test file: remove the entry'


def _without_module(
  modules: Mapping[str, str], tests: Mapping[str, str], elsewhere: Mapping[str, Sequence[str]]
) -> Iterator[str]:
  known = {*map(_mirror, modules), *elsewhere, *ABOUT_ALL}
  for test in tests:
    if test not in known and test.partition('/')[0] not in BESIDE:
      yield f'tests/{test} mirrors no module: move it, or list it in tests/test_mirror.py'


@functools.cache
def _imports(source: str) -> frozenset[str]:
  """Paths below dro_jax of all that a source may import: modules, folders, and names in them."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      names.update((str(node.module), *(f'{node.module}.{alias.name}' for alias in node.names)))
  paths = (name.removeprefix('dro_jax.').replace('.', '/') for name in names if name.startswith('dro_jax.'))
  return frozenset(path + ending for path in paths for ending in ('', '/__init__'))


def _reached(source: str, modules: Mapping[str, str]) -> set[str]:
  """The modules that a source imports, and those that they import."""
  reached, sources = set(), [source]
  while sources:
    new = (_imports(sources.pop()) & modules.keys()) - reached
    reached |= new
    sources += map(modules.__getitem__, new)
  return reached


def test_every_module_has_a_test_file():
  assert faults(_modules(), _tests(), ELSEWHERE, UNTESTED) == []
  assert [test for test in ABOUT_ALL if not (TESTS / test).exists()] == []
  assert [folder for folder in BESIDE if not (TESTS / folder).is_dir()] == []


# A small house without faults; `ops/returns` is tested with `ops/masked`, which imports it.
HOUSE = {'ops/__init__': '', 'ops/masked': 'from dro_jax.ops import returns', 'ops/returns': '', 'types': ''}
FILES = {'ops/test_masked.py': 'from dro_jax.ops import masked', 'launch/test_sweep.py': ''}
LISTED = {'ops/test_masked.py': ('ops/returns',)}


def test_a_house_without_faults_passes():
  assert faults(HOUSE, FILES, LISTED, ('types',)) == []


@pytest.mark.parametrize(
  'modules, tests, elsewhere, message',
  [
    ({'ops/planted': ''}, {}, {}, 'dro_jax/ops/planted.py has no tests/ops/test_planted.py'),
    ({'planted': ''}, {}, {}, 'dro_jax/planted.py has no tests/test_planted.py'),
    ({}, {}, {'ops/test_masked.py': ('ops/returns', 'ops/gone')}, 'there is no dro_jax/ops/gone.py'),
    ({}, {}, {'ops/test_gone.py': ()}, 'ELSEWHERE names tests/ops/test_gone.py, which does not exist'),
    (
      {},
      {'ops/test_returns.py': ''},
      {},
      'ELSEWHERE lists ops/returns, but tests/ops/test_returns.py exists',
    ),
    ({'ops/masked': ''}, {}, {}, 'ops/returns under ops/test_masked.py, but no import of that file leads'),
    ({}, {'ops/test_planted.py': ''}, {}, 'tests/ops/test_planted.py mirrors no module'),
    ({}, {'test_types.py': ''}, {}, 'UNTESTED lists types, which does not exist or has a test file'),
  ],
)
def test_a_planted_fault_is_caught(modules, tests, elsewhere, message):
  [fault] = faults({**HOUSE, **modules}, {**FILES, **tests}, {**LISTED, **elsewhere}, ('types',))
  assert message in fault
