"""The `fit_value` command: V(x) for every prompt, from networks that were not fitted on its rewards."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from dro_jax import algorithms
from dro_jax.checkpoints import folders
from dro_jax.configs.effects import ELSEWHERE, PARTS, PLACE
from dro_jax.data.storage import hashes
from dro_jax.data.table import column_store
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import Triplets, scaled
from dro_jax.errors import UsageError
from dro_jax.recipes.train import train
from dro_jax.run import trained
from dro_jax.run.folder import configs as resume
from dro_jax.run.folder import reading
from dro_jax.run.folder.configs import Recorded
from dro_jax.run.spec import RunSpec
from dro_jax.statistics import agreement

_LITTLE = 0.05  # Below this share of the rewards' variance, V explains almost nothing.


def fit_value(
  model_dir: Annotated[str, PLACE],
  spec: Annotated[RunSpec, PARTS],
  *,
  folds: int = 5,
  held_out: float | None = None,
  columns_dir: Annotated[str | None, PLACE] = None,
  score_batch_size: Annotated[int, ELSEWHERE] = 32,
  min_explained_variance: Annotated[float | None, ELSEWHERE] = None,
  configs: Callable[[], Recorded] = Recorded,
) -> dict[str, Any]:
  """Fits V by least squares, ½ (V(x) − r)², and writes the column `value` of every response's prompt.

  Cross-fitted: prompts fall into K folds by their hash, and the values of one fold come from a network that
  was fitted on the others. Prompts held out for validation choose each network's best checkpoint, and get the
  mean of all networks. Each network is a run in MODEL_DIR/fold_K, which resumes. A complete store that was
  made from the same data and checkpoint is kept. The policy is not trained. Rewards are standardised for the
  fit; values are written in reward units.

  Args:
    model_dir: the folder of the networks' runs, and of the store.
    spec: the run of each network; its data is split here, and its algorithm is `regression`, which adds no
      next-token KL.
    folds: K, 2 or more; K networks are trained.
    held_out: instead of folds, the share of prompts on which one network is fitted. The other prompts get
      values; joining the store to data leaves the fitted prompts out.
    columns_dir: the store's folder; `None` is MODEL_DIR/columns.
    score_batch_size: prompts whose values are predicted at once.
    min_explained_variance: share of the variance of unseen prompts' rewards below which V is refused; `None`
      warns below .05.
    configs: how the runs are configured, saved with them; a change makes the store again.

  Returns:
    By fold, the share of the variance of the rewards of unseen prompts that V explains; the store's folder.

  Raises:
    UsageError: the prompts are too few for the folds, settings or data cannot make a run, or V explains less
      than `min_explained_variance`.
  """
  if (held_out is None and folds < 2) or (held_out is not None and not 0 < held_out < 1):
    raise UsageError(
      f'folds={folds}, held_out={held_out}: pass 2 folds or more, or a share between 0 and 1 to fit on '
      '(--set FOLDS=5, --set HELD_OUT=0.5).'
    )
  if isinstance(spec.data, Triplets):
    spec = dataclasses.replace(spec, data=functools.partial(_as_read, spec.data))
  columns_dir = columns_dir or os.path.join(model_dir, 'columns')
  request = {'folds': folds, 'held_out': held_out, 'config': configs().texts.get('config.gin')}
  if (report := _complete(columns_dir, request, spec.data)) is not None:
    logging.getLogger(__name__).info('%s is complete: fit_value keeps it', columns_dir)
    return refuse_or_warn(report, min_explained_variance)
  if jax.process_index() == 0:
    column_store.refuse_place(columns_dir, 'columns_dir')
  spec = dataclasses.replace(spec, algorithm=algorithms.regression, next_token_kl=algorithms.NextTokenKl())
  fitted = []
  for part in _parts(folds, held_out):
    folder = os.path.join(model_dir, part.name)
    train(folder, dataclasses.replace(spec, data=_of_part(spec.data, part)), configs=configs)
    fitted.append(_predict(folder, spec, part, score_batch_size))
  report = refuse_or_warn({'columns': str(columns_dir), **_report(fitted)}, min_explained_variance)
  if jax.process_index() == 0:
    _write(columns_dir, fitted, {'request': request, 'report': report, 'made_of': fitted[0].made_of})
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('columns')
  return report


def _as_read(triplets: Triplets, **options: Any) -> Triplets:
  """Triplets in memory, whatever the options."""
  return triplets


def _complete(
  directory: str, request: Mapping[str, Any], data: Callable[..., Triplets]
) -> dict[str, Any] | None:
  """The report of a store that the same request made from the same data and checkpoint; None of any other.

  A store of an earlier version does not record its data: the same request is enough.
  """
  if not column_store.exists(directory):
    return None
  origin = column_store.read(directory).origin
  if origin.get('request') != request:
    return None
  before = origin.get('made_of')
  if before is None:
    return dict(origin['report'])
  triplets = data(**_reading(before['vocabulary'], before['read_as']))
  return (
    dict(origin['report']) if resume.alike(before, _inputs(before, triplets, before['read_as'])) else None
  )


def _reading(vocabulary: str, read_as: Mapping[str, Any]) -> dict[str, Any]:
  return {'vocabulary': vocabularies.vocabulary(vocabulary), **read_as}


def _inputs(described: Mapping[str, Any], triplets: Triplets, read_as: Mapping[str, Any]) -> dict[str, Any]:
  """Everything on which values depend: the contents of data and checkpoint, the place of the vocabulary."""
  init_from, digest = described.get('init_from'), described.get('init_digest')
  names = ('train_fingerprint', 'eval_fingerprint', 'train_columns', 'eval_columns')
  return {
    'data': {name: triplets.report.get(name) for name in names},
    'vocabulary': described['vocabulary'],
    'read_as': read_as,
    'init_from': init_from,
    'init_digest': init_from and folders.init_digest(init_from, digest),
  }


class _Part(NamedTuple):
  """One network: `fits` maps prompt digests `[N]` to whether it is fitted on them; else it predicts."""

  name: str
  fits: Callable[[np.ndarray], np.ndarray]


def _parts(folds: int, held_out: float | None) -> list[_Part]:
  if held_out is not None:
    return [_Part('held_out', lambda digests: hashes.by_prompt_hash(digests, held_out, 'fold'))]
  return [
    _Part(f'fold_{fold}', lambda digests, fold=fold: hashes.folds(digests, folds) != fold)
    for fold in range(folds)
  ]


def _of_part(data: Callable[..., Triplets], part: _Part) -> Callable[..., Triplets]:
  """The triplets of one network; prompts on which no network is fitted validate it."""

  def load(**options: Any) -> Triplets:
    triplets = data(**options)
    train = triplets.train.subset(_checked(part.fits(triplets.train.prompt_digests), part, triplets.train))
    # A mean of quantiles is not the quantile of a mean, so quantiles stay.
    kind = 'quantile' if triplets.scaling.kind == 'quantile' else 'standardise'
    return scaled(train, triplets.eval, kind, triplets.report | {'part': part.name})

  return load


def _checked(fits: np.ndarray, part: _Part, table: TokenTable) -> np.ndarray:
  if fits.all() or not fits.any():
    raise UsageError(
      f'{part.name}: splitting {len(np.unique(table.prompt_index))} prompts by their hash leaves none '
      'to fit on or none to predict: pass fewer FOLDS, or more prompts.'
    )
  return fits


class _Fitted(NamedTuple):
  """Values of one network: raw values `[N]`, NaN for prompts it was fitted on; and the held-out part's.

  `made_of` has everything on which they depend (see `_inputs`).
  """

  name: str
  triplets: Triplets
  values: np.ndarray
  eval_values: np.ndarray | None
  made_of: Mapping[str, Any]


def _predict(folder: str, spec: RunSpec, part: _Part, batch_size: int) -> _Fitted:
  mesh = spec.mesh.over()
  run = trained.load_run(folder, mesh)
  read_as = reading.keep_of({'data': {'options': run.data_options}})
  triplets = spec.data(**_reading(run.vocabulary.spec, read_as))
  unseen = np.flatnonzero(~part.fits(triplets.train.prompt_digests))

  def values_of(table: TokenTable) -> np.ndarray:
    _, firsts, prompt = np.unique(table.prompt_index, return_index=True, return_inverse=True)
    scored = trained.score_table(
      run, table.subset(firsts), mesh, batch_size=min(batch_size, len(firsts)),
      chunk_size=spec.compute.chunk_size,
    )  # fmt: skip
    return run.scaling.invert(scored.values)[prompt]

  values = np.full(len(triplets.train), np.nan)
  values[unseen] = values_of(triplets.train.subset(unseen))
  held_out = triplets.eval and values_of(triplets.eval)
  return _Fitted(
    part.name, triplets, values, held_out, _inputs(folders.load_metadata(folder), triplets, read_as)
  )


def _merged(fitted: list[_Fitted]) -> tuple[np.ndarray, np.ndarray | None]:
  """Values of the training part, each from the network that did not see the prompt; means of the rest."""
  values_by_fit = np.stack([fit.values for fit in fitted])
  values = np.where(np.isnan(values_by_fit).all(0), np.nan, np.nansum(values_by_fit, axis=0))
  held_out = None if fitted[0].eval_values is None else np.mean([fit.eval_values for fit in fitted], axis=0)
  return values, held_out


def _report(fitted: list[_Fitted]) -> dict[str, Any]:
  """Explained variance of the rewards of unseen prompts, by network and overall."""
  train, held_out = fitted[0].triplets.train, fitted[0].triplets.eval
  values, eval_values = _merged(fitted)
  report = {f'explained_variance/{fit.name}': _explained(fit.values, train) for fit in fitted}
  report['explained_variance/all'] = _explained(values, train)
  if held_out is not None:
    report['explained_variance/eval'] = _explained(eval_values, held_out)
  known = values[~np.isnan(values)]
  report |= {'responses': len(known), 'value_mean': float(known.mean()), 'value_sd': float(known.std())}
  for name, value in report.items():
    logging.getLogger(__name__).info('%s: %.4g', name, value)
  return report


def refuse_or_warn(report: dict[str, Any], least: float | None) -> dict[str, Any]:
  """Returns the report; refuses, or warns, where V explains too little of the rewards of unseen prompts."""
  explained = report['explained_variance/all']
  if explained >= (_LITTLE if least is None else least):
    return report
  problem = (
    f'V explains {explained:.3g} of the variance of rewards of prompts it was not fitted on, so advantages '
    'are almost the same as centred rewards. Fit V longer or faster (STEPS, in `a_lol` VALUE_STEPS, or '
    'VALUE_LEARNING_RATE). Where all prompts have the same mean reward, as with one pair of 1 and 0 each, '
    'V has nothing to explain, and A-LoL is fine-tuning on the chosen responses'
  )
  if least is not None:
    raise UsageError(
      f'{problem}. No store was written, because MIN_EXPLAINED_VARIANCE={least}: pass None to be warned only.'
    )
  logging.getLogger(__name__).warning('%s.', problem)
  return report


def _explained(values: np.ndarray, table: TokenTable) -> float:
  known = ~np.isnan(values)
  return float(
    agreement.explained_variance(values[known], table.raw_rewards[known], np.ones(int(known.sum())))
  )


def _write(directory: str, fitted: list[_Fitted], origin: Mapping[str, Any]) -> None:
  values, eval_values = _merged(fitted)
  tables = [(fitted[0].triplets.train, values)]
  if eval_values is not None:
    tables.append((fitted[0].triplets.eval, eval_values))
  column_store.write(
    directory, np.concatenate([column_store.keys(table) for table, _ in tables]),
    {'value': np.concatenate([column for _, column in tables])}, origin=origin,
  )  # fmt: skip


__all__ = ['fit_value']
