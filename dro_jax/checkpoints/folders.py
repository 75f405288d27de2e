"""Where checkpoints lie: the steps of a run, imported folders, and what is neither."""

import json
from collections.abc import Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from dro_jax import files
from dro_jax.checkpoints import bound
from dro_jax.checkpoints.metadata import BEST_BOUND, BEST_METRIC, BEST_MODE, DIGEST, read_metadata
from dro_jax.errors import UsageError

# Endings of files with another project's weights, whose folder also describes the model.
_WEIGHTS = ('.bin', '.safetensors', '.pt', '.pth', '.h5', '.msgpack')


def load_metadata(directory: str | epath.PathLike) -> dict[str, Any]:
  """The metadata of the parameters that `load_params` would read from `directory`."""
  return read_metadata(find_checkpoint(directory))


def init_digest(directory: str | epath.PathLike, started: str | None = None) -> str | None:
  """The digest of the checkpoint that `load_params` would read from `directory`.

  Args:
    directory: see `load_params`.
    started: the digest of the checkpoint from which a run started. It is returned where the folder's run
      still has that checkpoint, whichever of its steps is the best now.

  Returns:
    The digest; `None` for a checkpoint that an earlier version wrote without one.
  """
  folder = find_checkpoint(directory)
  beside = [folder.parent / str(step) for step in _steps(folder.parent)] if folder.name.isdigit() else []
  is_step_of_run = folder != absolute_path(directory)
  digests = [read_metadata(each).get(DIGEST) for each in (folder, *(beside if is_step_of_run else ()))]
  return started if started is not None and started in digests else digests[0]


def run_metadata(model_dir: str | epath.PathLike) -> dict[str, Any]:
  """The metadata of the newest checkpoint of a run's folder whose metadata can be read.

  Raises:
    UsageError: none can be read.
  """
  folder = absolute_path(model_dir) / 'checkpoints'
  for step in reversed(numbered_steps(folder)):
    try:
      return read_metadata(folder / str(step))
    except (OSError, ValueError):
      continue
  raise UsageError(f'no checkpoint in {folder} can be read. Restore a copy, or pass another --model_dir')


def newest_step(model_dir: str | epath.PathLike) -> int | None:
  """The newest complete checkpoint of a run's folder; `None` where there is none."""
  return max(_steps(absolute_path(model_dir) / 'checkpoints'), default=None)


def has_any(model_dir: str | epath.PathLike) -> bool:
  """Whether a run's folder holds checkpoints, intact or not."""
  return bool(numbered_steps(absolute_path(model_dir) / 'checkpoints'))


def find_checkpoint(directory: str | epath.PathLike) -> epath.Path:
  """The checkpoint of a folder: an imported one, one step, or a run's best step or else its newest."""
  name, directory = directory, absolute_path(directory)
  if _is_checkpoint(directory):
    return directory
  if problem := _other_projects(directory):
    raise UsageError(problem)
  for steps_folder in (directory / 'checkpoints', directory):
    steps = _steps(steps_folder)
    if steps:
      return steps_folder / str(_preferred_step(steps_folder, steps))
  hint = 'it does not exist'
  if str(name).count('/') == 1 and str(name)[0] not in '/.~' and not directory.exists():
    hint += f' (import a model of the Hugging Face Hub first: {_import_command(name)})'
  if directory.exists():
    names = sorted(path.name for path in directory.iterdir())[:8]
    hint = f'it holds {", ".join(names) or "nothing"}'
  raise UsageError(
    f"no checkpoint in {directory}: {hint}. Pass a run's model_dir, one of its checkpoints/STEP folders, "
    'or a folder written by `dro_jax import_checkpoint`'
  )


def find_steps(directory: str | epath.PathLike, steps: Sequence[int] | None = None) -> dict[int, epath.Path]:
  """The checkpoints of a run by their steps, in order.

  Args:
    directory: a run's folder, or its folder `checkpoints`.
    steps: those to find, in any order; `None` finds all that there are.

  Raises:
    UsageError: the folder holds no checkpoints of a run, or not those.
  """
  folder = absolute_path(directory)
  folder = folder / 'checkpoints' if (folder / 'checkpoints').is_dir() else folder
  found = _steps(folder)
  if not found:
    raise UsageError(
      f'{directory} holds no checkpoints of a run, of which steps=... (STEPS) chooses: pass the --model_dir '
      'of `dro_jax train`, or leave STEPS.'
    )
  if missing := sorted(set(steps or ()) - set(found)):
    raise UsageError(
      f'{directory} has no checkpoint of step {", ".join(map(str, missing))}: it has '
      f'{", ".join(map(str, found))}. A run keeps the newest and best: Keep(last=...) or --set KEEP_LAST=... '
      'of `dro_jax train` keeps more.'
    )
  return {step: folder / str(step) for step in (found if steps is None else sorted(set(steps)))}


def _other_projects(path: epath.Path) -> str | None:
  """The error for another project's file or folder, with its remedy; `None` for other paths."""
  if path.exists() and not path.is_dir():
    source = path.parent if path.suffix in _WEIGHTS else path
    return (
      f"{path} is a file, but a checkpoint is a folder: pass a run's model_dir, or import it first: "
      f'{_import_command(source)}'
    )
  if problem := adapter_problem(path):
    return problem
  if (path / 'config.json').exists() and not _is_checkpoint(path):
    return f'{path} is a folder of Hugging Face transformers. Import it first: {_import_command(path)}'
  return None


def adapter_problem(folder: epath.PathLike) -> str | None:
  """The error for a folder that holds an adapter instead of a whole model, with its remedy; else `None`."""
  if not (epath.Path(folder) / 'adapter_config.json').exists():
    return None
  return (
    f'{folder} holds an adapter (PEFT), which is not a whole model: import its base, and then '
    'the adapter on it: '
    f'{_import_command(folder)} --set LORA_BASE=BASE'
  )


def _import_command(source: epath.Path | str) -> str:
  name = epath.Path(source).name.removesuffix('.gguf') or 'imported'
  return f'dro_jax import_checkpoint --init_from={source} --model_dir=checkpoints/{name}'


def _is_checkpoint(folder: epath.Path) -> bool:
  holds = any((folder / item).exists() for item in ('params', 'state'))
  return holds and (folder / 'metadata').exists() and ocp.path.step.is_path_finalized(folder)


def _steps(folder: epath.Path) -> list[int]:
  return [step for step in numbered_steps(folder) if _is_checkpoint(folder / str(step))]


def numbered_steps(folder: epath.Path) -> list[int]:
  """The steps with a subfolder, complete or not."""
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _preferred_step(folder: epath.Path, steps: list[int]) -> int:
  """The best step whose metrics keep the run's bound, or else the newest."""
  newest = read_metadata(folder / str(steps[-1]))
  name, text = newest[BEST_METRIC], newest.get(BEST_BOUND)
  limit = None if text is None else bound.parse(text)
  found = {step: _read_metrics(folder / str(step)) for step in steps}
  measured = {
    step: metrics[name]
    for step, metrics in found.items()
    if metrics.get(name) is not None and (limit is None or limit.keeps(metrics))
  }
  if not measured:
    return steps[-1]
  sign = -1 if newest[BEST_MODE] == 'min' else 1
  return max(measured, key=lambda step: (sign * measured[step], step))


def _read_metrics(folder: epath.Path) -> dict[str, float]:
  file = folder / 'metrics' / 'metrics'
  metrics: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
  return metrics


def absolute_path(directory: str | epath.PathLike) -> epath.Path:
  return files.absolute(directory)
