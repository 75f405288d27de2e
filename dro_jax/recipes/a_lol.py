"""The `a_lol` command: A-LoL in its stages (arXiv 2305.14718), each resumed, none run twice.

MODEL_DIR/value      the value networks, one for each fold of prompts: `fit_value`
MODEL_DIR/columns    their values, frozen: each from a network that never saw the rewards of the prompt
MODEL_DIR/policy     the policy, trained on the responses of positive advantage: `train`
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np

from dro_jax.configs.effects import PARTS, PLACE
from dro_jax.data.triplets import Triplets, with_columns
from dro_jax.errors import UsageError
from dro_jax.recipes.fit_value import fit_value
from dro_jax.recipes.train import train
from dro_jax.run.folder.configs import Recorded
from dro_jax.run.spec import RunSpec


def a_lol_stages(
  model_dir: Annotated[str, PLACE],
  spec: Annotated[RunSpec, PARTS],
  *,
  fit: Annotated[Callable[..., Mapping[str, Any]] | None, PARTS] = None,
  configs: Callable[[], Recorded] = Recorded,
) -> dict[str, Any]:
  """Fits V, freezes it, computes every advantage once, drops responses with A ≤ 0, and trains on the rest.

  Args:
    model_dir: the stages' folder.
    spec: the policy's run. Its algorithm is `a_lol`, `a_lol_ref_free`, `a_lol_kl` or `a_lol_sequence`, or
      another that reads advantages; with `priority` responses are drawn in proportion to their advantages.
    fit: how the value is fitted: `fit_value`, given its spec; `None` fits it by the policy's spec.
    configs: how the runs are configured, saved with them.

  Returns:
    The value's explained variance, how many advantages are positive, and the policy's last metrics.

  Raises:
    UsageError: the algorithm reads no advantages, no advantage is positive, or a stage cannot run.
    Stopped: SIGTERM came; the stages so far are saved.
  """
  if 'advantage' not in spec.algorithm.columns:
    raise UsageError(
      f'{spec.algorithm.name} reads no advantages over a fitted value, so it does not need the stages: pass '
      '--set ALGORITHM=a_lol (or a_lol_ref_free, a_lol_kl, a_lol_sequence), or use `dro_jax train`.'
    )
  folder = {stage: os.path.join(model_dir, stage) for stage in ('value', 'columns', 'policy')}
  fit = fit or functools.partial(fit_value, spec=spec)
  value = fit(folder['value'], columns_dir=folder['columns'], configs=configs)
  advantages = {}

  def joined(**options: Any) -> Triplets:
    triplets = spec.data if isinstance(spec.data, Triplets) else spec.data(**options)
    triplets = with_columns(triplets, [folder['columns']])
    advantages.update(_summary(triplets))
    return triplets

  policy = train(folder['policy'], dataclasses.replace(spec, data=joined), configs=configs)
  return {'value': dict(value), 'advantages': advantages, 'policy': dict(policy)}


def _summary(triplets: Triplets) -> dict[str, float | int]:
  """Statistics of the advantages of the training responses, in reward units."""
  advantages = triplets.train.raw_rewards - triplets.train.columns['value']
  statistics = {
    'responses': len(advantages),
    'positive': int(np.sum(advantages > 0)),
    'mean': float(advantages.mean()),
    'sd': float(advantages.std()),
  }
  logging.getLogger(__name__).info(
    '%d of %d responses have a positive advantage', statistics['positive'], statistics['responses']
  )
  return statistics


__all__ = ['a_lol_stages']
