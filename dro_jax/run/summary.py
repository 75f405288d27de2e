"""A built run (`run.build.Run`) in words: one line, and a table for a notebook."""

from collections.abc import Mapping
from typing import Any

import jax

from dro_jax.models import lora


def line(run: Any) -> str:
  """The run's algorithm, length, mesh, parameters and batches."""
  facts = _facts(run)
  return (
    f'Run({facts["algorithm"]}: {facts["steps"]} steps on {facts["mesh"]}; parameters: '
    f'{facts["parameters"]}; {facts["data"]}, {facts["a batch"]})'
  )


def table(run: Any) -> Any:
  """The same by name, and the run's notes, as rich shows them."""
  from dro_jax.printing import tables

  rows = [{' ': name, '  ': value} for name, value in _facts(run).items()]
  return tables.listing(rows + [{' ': 'note', '  ': note} for note in run.notes()])


def _facts(run: Any) -> dict[str, str | int]:
  train, layout = run.loaders.train, run.loaders.train.layout
  return {
    'algorithm': algorithm(run.spec),
    'steps': run.schedule.steps,
    'mesh': mesh(run.mesh.shape),
    'parameters': parameters(num_parameters(run.abstract_state)),
    'data': f'{len(train.table):,} records',
    'a batch': f'{train.plan.batch_size} {run.algorithm.unit}s a batch in {layout.rows} rows of '
    f'{layout.prompt_length} + {layout.response_length} tokens',
  }


def algorithm(spec: Any) -> str:
  """An algorithm, and what a run adds to its loss: `dro_v + 1 × next-token KL (reverse)`."""
  return f'{spec.algorithm.name} + {spec.next_token_kl}' if spec.next_token_kl.weight else spec.algorithm.name


def mesh(sizes: Mapping[str, int]) -> str:
  """A mesh's axes with their sizes: `data 2 × fsdp 4`."""
  return ' × '.join(f'{axis} {size}' for axis, size in sizes.items())


def num_parameters(state: Any) -> dict[str, int]:
  """How many parameters each network of a state trains, and their base has; shapes will do."""
  counts = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in state.params.items()}
  return counts if state.base is None else counts | {'frozen base': lora.num_parameters(state.base)}


def parameters(counts: Mapping[str, int]) -> str:
  """Networks with their numbers of parameters: `policy 1,234, value 567`."""
  return ', '.join(f'{name} {count:,}' for name, count in counts.items())
