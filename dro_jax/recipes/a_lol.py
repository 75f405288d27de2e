"""The `a_lol` command: A-LoL in its stages (arXiv 2305.14718), each resumed, none run twice.

MODEL_DIR/value      the value networks, one for each fold of prompts: `fit_value`
MODEL_DIR/columns    their values, frozen: every prompt's is from a network that never saw its rewards
MODEL_DIR/policy     the policy, trained on the responses of positive advantage: `train`
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dro_jax import algorithms
from dro_jax.data.triplets import Triplets, load_triplets, with_columns
from dro_jax.errors import UsageError
from dro_jax.recipes import fit_value
from dro_jax.run import train as run_train


def a_lol_stages(
  model_dir: str,
  data: Callable[..., Triplets] = load_triplets,
  algorithm: Callable[[], algorithms.Algorithm] = algorithms.a_lol,
  *,
  fit: Callable[..., Mapping[str, Any]] = fit_value.fit_value,
  train: Callable[..., Mapping[str, Any]] = run_train.train,
  configs: Callable[[], Mapping[str, str]] = dict,
) -> dict[str, Any]:
  """Fits V, freezes it, takes every response's advantage once, drops A ≤ 0, and trains on the rest.

  Args:
    model_dir: the stages' folder.
    data: the triplets and how to read them.
    algorithm: `a_lol`, `a_lol_ref_free`, `a_lol_kl` or `a_lol_sequence`, or another that reads advantages;
      with `priority` responses are drawn in proportion to theirs.
    fit: how the value is fitted (see `fit_value`).
    train: how the policy is trained; its model_dir, data and algorithm are chosen here.
    configs: texts to save with the runs, by file name.

  Returns:
    What each stage found: the value's explained variance, how many advantages are positive, the policy's last
    metrics.

  Raises:
    UsageError: the algorithm reads no advantages, no advantage is positive, or a stage cannot run.
    Stopped: SIGTERM came; what was done is saved.
  """
  chosen = algorithm()
  if 'advantage' not in chosen.columns:
    raise UsageError(
      f'{chosen.name} reads no advantages over a fitted value, so the stages would be for nothing: pass '
      '--set ALGORITHM=a_lol (or a_lol_ref_free, a_lol_kl, a_lol_sequence), or run it with `dro_jax train`.'
    )
  folder = {stage: os.path.join(model_dir, stage) for stage in ('value', 'columns', 'policy')}
  value = fit(model_dir=folder['value'], data=data, columns_dir=folder['columns'], configs=configs)
  advantages = {}

  def joined(**options: Any) -> Triplets:
    triplets = with_columns(data(**options), [folder['columns']])
    advantages.update(_summary(triplets))
    return triplets

  policy = train(model_dir=folder['policy'], data=joined, algorithm=algorithm, configs=configs)
  return {'value': dict(value), 'advantages': advantages, 'policy': dict(policy)}


def _summary(triplets: Triplets) -> dict[str, float | int]:
  """Of the training responses' advantages, in the rewards' own units."""
  advantages = triplets.train.raw_rewards - triplets.train.columns['value']
  found = {
    'responses': len(advantages),
    'positive': int(np.sum(advantages > 0)),
    'mean': float(advantages.mean()),
    'sd': float(advantages.std()),
  }
  logging.getLogger(__name__).info(
    '%d of %d responses have a positive advantage', found['positive'], found['responses']
  )
  return found


__all__ = ['a_lol_stages']
