"""The Python API, where it is more than the names of the house: `import dro_jax as dro`."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dro_jax.checkpoints import folders
from dro_jax.checkpoints import policy as saved_policies
from dro_jax.data.triplets import Triplets, read_again
from dro_jax.errors import UsageError
from dro_jax.evaluation.report import report as report_runs
from dro_jax.inspection.inspect import for_python, inspect_triplets
from dro_jax.models.policy import make_config
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.printing.result import Report, Sections
from dro_jax.run import outcome as outcomes
from dro_jax.run.outcome import Outcome
from dro_jax.run.spec import Policy
from dro_jax.run.trained import TrainedRun, load_run

# Arguments of `read_parts` that `inspect_triplets` does without: it splits by itself, as `train` would.
_UNINSPECTED = (
  'overlong', 'task_split', 'eval_task_split', 'validation_fraction', 'test_fraction', 'split_salt'
)  # fmt: skip


def pretrained(folder: str | os.PathLike[str], vocabulary: str | None = None) -> Policy:
  """The policy of a checkpoint: its configuration and vocabulary are read now, its weights when a run starts.

  Args:
    folder: an imported checkpoint, a run's folder (its best step, or the newest) or one of its checkpoints.
    vocabulary: where the checkpoint's lies now; `None` takes it from where it lay.

  Raises:
    UsageError: there is no checkpoint, or it has another vocabulary.

  Example:
    >>> policy = dro.pretrained('checkpoints/tiny')
    >>> policy.config.emb_dim, policy.vocabulary.size
    (16, 259)
  """
  directory = str(folders.find_checkpoint(os.fspath(folder)))
  return Policy(
    init_from=directory,
    config=saved_policies.config_of(directory),
    vocabulary=saved_policies.vocabulary_of(directory, vocabulary),
  )


def fresh(family: str = 't5', vocabulary: str = 'bytes', **size: Any) -> Policy:
  """A policy that starts at random.

  Args:
    family: the kind of model.
    vocabulary: `bytes`, a SentencePiece model, a tokenizer.json or a tokenizer's folder.
    size: fields of the family's configuration, such as `emb_dim`.

  Raises:
    UsageError: there is no such family or vocabulary, or a size is out of its range.

  Example:
    >>> dro.fresh(emb_dim=32, num_heads=2, head_dim=16).config.emb_dim
    32
  """
  words = saved_policies.find_vocabulary(vocabulary, None)
  return Policy(config=make_config(family, **size), vocabulary=words)


def inspect(triplets: Triplets | str | Sequence[str], **options: Any) -> Sections:
  """Says what triplets hold, which algorithms they admit, and what to mind before training.

  Args:
    triplets: files, or triplets that `load_triplets` read from files, which are read as it read them.
    options: as `load_triplets` has them, and `scaling`, `temperature` and `batch_size` of a run.

  Returns:
    Plain values by section, each an attribute too: `.warnings`, `.methods`, `.rewards`, `.command`.

  Raises:
    UsageError: the files cannot be read, or the triplets come from no file.

  Example:
    >>> found = dro.inspect(data)
    >>> {method['method']: method['admitted'] for method in found.methods}['dro_v']
    True
  """
  if isinstance(triplets, Triplets):
    return for_python(inspect_triplets(**(_reading(triplets) | options)))
  return for_python(inspect_triplets(triplets, **options))


def _reading(triplets: Triplets) -> dict[str, Any]:
  """How triplets were read, as `inspect_triplets` takes it."""
  report = triplets.report
  if 'triplets' not in report or 'options' not in report:
    raise UsageError(
      'these triplets were made in memory, and inspect reads the files that triplets come from: pass the '
      'path of a file, or triplets of load_triplets.'
    )
  reading = {name: value for name, value in read_again(report).items() if name not in _UNINSPECTED}
  return reading | {
    'task_modules': tuple(reading.get('task_modules', ())), 'vocabulary': triplets.train.vocabulary,
    'scaling': report['scaling']['kind'],
    'validation_fraction': report.get('split', {}).get('fraction'),
  }  # fmt: skip


def load(folder: str | os.PathLike[str], mesh: MeshSpec = MeshSpec(), **options: Any) -> TrainedRun:
  """A trained run: its best checkpoint, or the newest, to answer and to score with.

  Args:
    folder: a run's folder, one of its checkpoints, or an imported checkpoint.
    mesh: the devices' arrangement.
    options: `vocabulary` and `init_from`, where these lie now.

  Raises:
    UsageError: there is no such checkpoint, or its reference is not where it lay.

  Example:
    >>> trained = dro.load('runs/dro_v')
    >>> [answer] = trained.generate(['Say hi.'], temperature=0.0, max_length=4)
    >>> isinstance(answer.text, str), answer.logp < 0
    (True, True)
    >>> trained.score(data.eval).log_ratio.shape == (len(data.eval),)
    True
  """
  return load_run(os.fspath(folder), mesh.over(), **options)


def report(*runs: str | os.PathLike[str], **options: Any) -> Report:
  """Compares runs on the prompts that all held out: settings, spending, metrics with intervals.

  Args:
    runs: two folders or more; differences are from the first.
    options: `output` (a folder for report.md, report.json and curves.png), `resamples` and `seed`.

  Raises:
    UsageError: a folder is no run's, or the runs cannot be compared.

  Example:
    >>> compared = dro.report('runs/dro_v', 'runs/other', resamples=20)
    >>> sorted(compared.runs)
    ['dro_v', 'other']
  """
  return report_runs([os.fspath(folder) for folder in runs], **options)


def outcome(folder: str | os.PathLike[str]) -> Outcome:
  """Whether a run worked: its metrics before and after with intervals, answers before and after, a verdict.

  Args:
    folder: the run's.

  Raises:
    UsageError: it is no run's folder, or it has no validation of its first policy or of a later one.

  Example:
    >>> found = dro.outcome('runs/dro_v')
    >>> found.table.columns
    ['metric', 'before', 'after', 'change']
  """
  directory = pathlib.Path(folder)
  result = outcomes.read(directory) if (directory / 'metrics.jsonl').exists() else None
  if result is None:
    raise UsageError(
      f'{directory} has no validations of a first and a later policy to compare: pass the folder of a run '
      'that held prompts out (validation_fraction, eval_every).'
    )
  return result


__all__ = ['fresh', 'inspect', 'load', 'outcome', 'pretrained', 'report']
