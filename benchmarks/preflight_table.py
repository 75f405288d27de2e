"""Preflight of T5 base … XXL × DRO-V, KTO, DPO on TPU slices, one `dro_jax preflight` each, as Markdown.

  python benchmarks/preflight_table.py [--models large,xl] [--algorithms dro_v] [--slices v5e:4x4] [--json]
  python benchmarks/preflight_table.py --scaling          # T5 large's bytes a chip, 4 to 256 chips, by mesh
  python benchmarks/preflight_table.py --causal           # decoder-only models, the cells of CAUSAL

Every cell compiles for minutes. Cells are kept in --cache as they come, but for those that fail, and are made
again only for another command, jax or libtpu: after a change of the code that they measure, remove them.
"""

import argparse
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import time

# The slices on which each model is tried, least first; T5-XXL does not fit the smaller ones.
SLICES = {
  'base': ('v5e:2x4', 'v5p:2x2x1', 'v6e:2x2'),
  'large': ('v5e:4x4', 'v5p:2x2x2', 'v6e:2x4'),
  'xl': ('v5e:4x8', 'v5p:2x2x4', 'v6e:4x4'),
  'xxl': ('v5e:16x16', 'v5p:4x4x4', 'v6e:8x8'),
}
ALGORITHMS = ('dro_v', 'kto', 'dpo')
SETTINGS = ('DTYPE=bfloat16', 'REMAT=dots', 'CHUNK_SIZE=0', 'REMEDIES=False')
# Rows are cut by data and fsdp: 32 of them at most 32 ways, what is left of 256 chips cuts matrices.
LARGEST = 32
# Kinds of memory that a chip holds between steps.
STATE = ('parameters', 'optimizer', 'reference', 'initial_policy', 'frozen_base')
FAMILIES = ('data', 'fsdp', 'data_fsdp', 'model', 'fsdp_model')
# Decoder-only models: the model, a slice, and the run's own flags.
TRUST_REGION = (
  '--gin_file=algorithms/dpo.gin', '--gin_file=references/soft.gin', '--gin_file=optimizers/adamw.gin'
)  # fmt: skip
CAUSAL = (
  ('pythia_6_9b', 'v5e:4x8', (*TRUST_REGION, '--set=BATCH=32')),
  ('llama_3_8b', 'v5e:8x8', ('--set=BATCH=64',)),
  ('llama_3_8b', 'v5e:8x8', ('--set=BATCH=64', '--set=make_mesh.data=2', '--set=make_mesh.fsdp=32')),
  (
    'llama_3_8b', 'v5e:8x8',
    ('--set=BATCH=64', '--set=make_mesh.data=1', '--set=make_mesh.fsdp=32', '--set=make_mesh.model=2'),
  ),
  ('llama_3_8b', 'v5e:8x8', ('--set=BATCH=128', '--set=make_mesh.data=2', '--set=make_mesh.fsdp=32')),
  ('llama_3_8b', 'v5e:4x4', ('--set=BATCH=16', '--set=LORA_RANK=16')),
  ('gemma_3_4b', 'v5e:4x8', ('--set=BATCH=32',)),
  (
    'gemma_3_4b', 'v5e:4x8',
    ('--set=BATCH=32', '--set=make_mesh.data=1', '--set=make_mesh.fsdp=16', '--set=make_mesh.model=2'),
  ),
  ('gemma_3_4b', 'v5e:4x8', ('--set=BATCH=64',)),
  ('qwen3_0_6b', 'v5e:2x4', ('--set=BATCH=16',)),
  ('qwen3_8b', 'v5e:8x8', ('--set=BATCH=128', '--set=make_mesh.data=2', '--set=make_mesh.fsdp=32')),
  ('llama_3_8b', 'v5e:2x2', ('--gin_file=adapters/qlora.gin', '--set=BATCH=4')),
  ('t5gemma2_1b', 'v5e:4x4', ('--set=BATCH=32',)),
)  # fmt: skip


def mesh_of(chips: int, batch: int, family: str = 'fsdp') -> dict[str, int]:
  """Sizes of a family's mesh, as many rows a chip as divide."""
  rows = min(chips, batch)
  return {
    'data': {'data': chips, 'fsdp': 1, 'model': 1},
    'fsdp': {'data': 1, 'fsdp': rows, 'model': chips // rows},
    'data_fsdp': {'data': max(chips // 16, 1), 'fsdp': min(chips, 16), 'model': 1},
    'model': {'data': 1, 'fsdp': 1, 'model': chips},
    'fsdp_model': {'data': 1, 'fsdp': chips // 4, 'model': 4},
  }[family]


def chips_of(topology: str) -> int:
  total = 1
  for size in topology.partition(':')[2].split('x'):
    total *= int(size)
  return total


def arguments(model: str, algorithm: str, topology: str, batch: int, family: str = 'fsdp') -> list[str]:
  """Of `dro_jax preflight`."""
  pairs = batch // 2 if algorithm == 'dpo' else batch
  # A mesh cuts rows at most as many ways as a batch has pairs.
  mesh = mesh_of(chips_of(topology), pairs, family)
  return [
    f'--gin_file=models/t5_1_1_{model}.gin', '--gin_file=meshes/fsdp.gin',
    f'--gin_file=algorithms/{algorithm}.gin', '--gin_file=compilers/tpu.gin', f'--topology={topology}',
    f'--set=BATCH={pairs}', *(f'--set={setting}' for setting in SETTINGS), '--json',
    *(f'--gin.make_mesh.{axis}={size}' for axis, size in mesh.items()),
  ]  # fmt: skip


def causal_arguments(model: str, topology: str, *flags: str) -> list[str]:
  """Of `dro_jax preflight`, for a decoder-only model."""
  return [
    f'--gin_file=models/{model}.gin', '--gin_file=meshes/fsdp.gin', '--gin_file=compilers/tpu.gin',
    f'--topology={topology}', *(f'--set={setting}' for setting in SETTINGS), '--json', *flags,
  ]  # fmt: skip


def preflight(given: list[str]) -> dict:
  """One command's JSON, or what it says to standard error where it fails."""
  start = time.monotonic()
  command = [sys.executable, '-m', 'dro_jax.main', 'preflight', *given]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  last = (done.stderr.strip().splitlines() or ['nothing said'])[-1]
  found = {'failed': f'exit {done.returncode}: {last}'} if done.returncode else json.loads(done.stdout)
  return found | {'seconds_in_all': time.monotonic() - start}


def kept(cache: pathlib.Path, *cell, arguments=arguments) -> dict:
  """A cell as it was made by the same command and versions, or made now; one that fails is not kept."""
  path = cache / ('-'.join(map(str, cell)).replace(':', '_').replace('/', '_') + '.json')
  given = arguments(*cell)
  made_with = {'arguments': given} | {name: importlib.metadata.version(name) for name in ('jax', 'libtpu')}
  found = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
  if found.get('made_with') == made_with:
    return found
  found = preflight(given) | {'model_name': cell[0], 'family': cell[4] if cell[4:] else 'fsdp'}
  if 'failed' not in found:
    cache.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found | {'made_with': made_with}), encoding='utf-8')
  return found


def row(cell: dict) -> dict[str, str]:
  """What the table shows of a cell."""
  if 'failed' in cell:
    return {'model': cell['model_name'], 'failed': cell['failed'][:100]}
  mesh = ' × '.join(f'{axis} {size}' for axis, size in cell['mesh'].items() if size > 1)
  memory = cell['memory']
  shown = {
    'model': cell['model_name'], 'method': cell['algorithm'], 'slice': cell['topology'], 'mesh': mesh,
    'fits': 'yes' if cell['fits'] else 'no',
    'GiB a chip': f'{(memory["total"] or 0) / 2**30:.2f} of {memory["available"] / 2**30:.2f}',
  }  # fmt: skip
  if 'seconds' not in cell:
    return shown
  times = cell['seconds']
  return shown | {
    **{name: f'{times[name]:.3f}' for name in ('compute', 'hbm', 'ici')},
    'roofline s': f'{cell["roofline_seconds"]:.3f}', 'bound by': cell['bound_by'],
    'sum s': f'{times["sum"]:.3f}', 'compiler s': f'{cell["compiler_seconds"]:.3f}',
    'MFU': f'{cell["mfu"]:.0%}', 'compiled in s': f'{cell["compile_seconds"]:.0f}',
  }  # fmt: skip


def causal_row(cell: dict) -> dict[str, str]:
  """What the table of decoder-only models shows of a cell: rows, and what a chip holds between steps, too."""
  shown = row(cell)
  if 'seconds' not in cell:
    return shown
  held = sum(cell['memory'].get(name, 0) for name in STATE)
  more = {'rows': str(cell['batch']['rows']), 'state': f'{held / 2**30:.2f}'}
  floor = {'compute of roofline': f'{cell["seconds"]["compute"] / cell["roofline_seconds"]:.0%}'}
  names = ('model', 'method', 'slice', 'mesh', 'rows', 'fits', 'GiB a chip', 'state', 'compute', 'hbm', 'ici')
  names = (*names, 'roofline s', 'bound by', 'sum s', 'MFU', 'compute of roofline')
  return {name: (shown | more | floor)[name] for name in names}


def scaling_row(cell: dict) -> dict[str, str]:
  """What the table of weak scaling shows of a cell."""
  if 'bytes' not in cell:
    return {
      'mesh': cell['family'],
      'chips': str(cell.get('chips', '')),
      'said': cell.get('failed', 'too large')[:90],
    }
  return {
    'mesh': cell['family'], 'chips': str(cell['chips']), 'rows': str(cell['batch']['rows']),
    'sent, MB a chip': f'{cell["bytes"]["ici"] / 1e6:.0f}',
    'HBM, GB a chip': f'{cell["bytes"]["hbm"] / 1e9:.2f}',
    **{name: f'{cell["seconds"][name]:.4f}' for name in ('compute', 'hbm', 'ici')},
    'bound by': cell['bound_by'],
  }  # fmt: skip


def markdown(rows: list[dict[str, str]]) -> str:
  columns = list(dict.fromkeys(name for one in rows for name in one))
  lines = [columns, ['---'] * len(columns), *([one.get(name, '') for name in columns] for one in rows)]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--models', default=','.join(SLICES))
  parser.add_argument('--algorithms', default=','.join(ALGORITHMS))
  parser.add_argument('--slices', help='these alone, instead of those of each model')
  parser.add_argument('--family', choices=FAMILIES, help='of meshes, instead of all fsdp')
  parser.add_argument('--causal', action='store_true', help='decoder-only models')
  parser.add_argument('--scaling', action='store_true', help='two rows a chip, 4 to 256 chips, by mesh')
  parser.add_argument('--sizes', default='2x2,4x4,8x8,16x16', help='of v5e slices, for --scaling')
  parser.add_argument('--families', default=','.join(FAMILIES), help='of meshes, for --scaling')
  parser.add_argument('--cache', type=pathlib.Path, default=pathlib.Path('preflight_cells'))
  parser.add_argument('--json', action='store_true')
  args = parser.parse_args()
  if args.scaling:
    cells = [
      ('large', 'dro_v', f'v5e:{size}', 2 * chips_of(f'v5e:{size}'), family)
      for family in args.families.split(',') for size in args.sizes.split(',')
    ]  # fmt: skip
  else:
    cells = [
      (model, algorithm, topology, LARGEST, *((args.family,) if args.family else ()))
      for model in args.models.split(',') for algorithm in args.algorithms.split(',')
      for topology in (args.slices.split(',') if args.slices else SLICES[model])
    ]  # fmt: skip
  found, make = [], arguments
  if args.causal:
    cells, make = [(model, topology, *flags) for model, topology, flags in CAUSAL], causal_arguments
  for cell in cells:
    print(*cell, file=sys.stderr)
    found.append(kept(args.cache, *cell, arguments=make))
  shown = scaling_row if args.scaling else causal_row if args.causal else row
  print(json.dumps(found) if args.json else markdown([shown(cell) for cell in found]))


if __name__ == '__main__':
  main()
