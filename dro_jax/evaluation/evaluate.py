"""The `evaluate` command: scores a triplet file with a run's policy and value."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dro_jax import limits
from dro_jax.algorithms.base import PREFERENCES, REWARDS
from dro_jax.data.batches import groups
from dro_jax.data.table.table import TokenTable
from dro_jax.data.triplets import Triplets, load_triplets, require_rewards
from dro_jax.errors import UsageError
from dro_jax.files import to_json
from dro_jax.parallel.partitioning import Mesh, MeshSpec
from dro_jax.run import table_scores
from dro_jax.run.trained import TrainedRun, load_run, score_table
from dro_jax.statistics import agreement, preferences


def evaluate(
  model_dir: str,
  data: Callable[..., Triplets] = load_triplets,
  *,
  template: str | None = None,
  chat_template: str | None = None,
  chat: bool | None = None,
  vocabulary: str | None = None,
  init_from: str | None = None,
  mesh: MeshSpec = MeshSpec(),
  batch_size: int = 32,
  chunk_size: int | None = None,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """Scores every response of a triplet file once, and measures how well scores and rewards agree.

  Args:
    model_dir: a run's folder (its best step, or the newest where no best was measured), or one checkpoint.
    data: the triplets (`data.triplets.load_triplets`), of which all that are not held out are scored. Without
      `columns` or `map_reward` of its own, it takes the run's.
    template: of the prompt text; `None` takes the run's.
    chat_template: of each turn where prompts are conversations; `None` takes the run's.
    chat: whether the model's own chat template writes the prompts; `None` is as in the run.
    vocabulary: where the run's lies now; `None` takes it from where it lay.
    init_from: where the checkpoint lies now from which the run started, if its reference was cached.
    mesh: devices' arrangement.
    batch_size: responses scored at once.
    chunk_size: response tokens projected to the vocabulary at once; 0 projects all, `None` chooses by memory.
    resamples: bootstrap draws of prompts for each 95 % interval.
    seed: of those draws.

  Returns:
    `statistics` as in training; `within_prompts` and `across_prompts` with intervals, for the run's own score
    and for the baselines log-prob, log-prob by token and length; of a reward model `pairs`, its accuracy,
    margin and calibration on pairs.

  Raises:
    UsageError: the checkpoint does not exist, or the data cannot be read as the run read its own.
  """
  limits.seed(seed)
  device_mesh = mesh.over()
  run = load_run(model_dir, device_mesh, vocabulary, init_from)
  texts = {'template': template, 'chat_template': chat_template, 'chat': chat}
  options = dict(run.data_options) | {name: text for name, text in texts.items() if text is not None}
  if any(run.read_options.values()):
    options['inherited'] = run.read_options
  triplets, draws = data(vocabulary=run.vocabulary, **options), {'resamples': resamples, 'seed': seed}
  require_rewards(triplets, 'evaluate')
  table = triplets.train.scaled(run.scaling)
  scored = score_table(run, table, device_mesh, batch_size=batch_size, chunk_size=chunk_size)
  return to_json(
    {
      'model_dir': str(model_dir),
      'step': int(run.state.step),
      'responses': len(table),
      'prompts': len(np.unique(table.prompt_index)),
      'temperature': run.temperature,
      'effective_temperature': run.scaling.effective_temperature(run.temperature),
      **report(scored, table, run.temperature, **draws, scores=run.scores),
      **({} if run.scores is None else _of_pairs(run, table, device_mesh, batch_size, **draws)),
    }
  )


def _of_pairs(
  run: TrainedRun, table: TokenTable, mesh: Mesh, batch_size: int, **draws: int
) -> dict[str, Any]:
  """How well a reward model's scores predict the table's pairs: as judged, or each prompt's best and worst.

  A model that was fitted to rewards has an accuracy and a margin in its (scaled) units, and no calibration.
  `draws` are `resamples` and `seed`.
  """
  try:
    formed = groups.form(table, 'pair', groups.UnitOptions())
  except UsageError:  # Every prompt has one response, or all rewards tie.
    return {}
  scores = score_table(run, formed.table, mesh, batch_size=batch_size).values
  chosen, rejected = formed.members.T
  prompts, prompt_P = np.unique(formed.table.prompt_index[chosen], return_inverse=True)
  measures = preferences.statistics(scores[chosen] - scores[rejected], prompt_P)
  names = preferences.NAMES if run.scores == PREFERENCES else preferences.NAMES[:2]
  estimates = {name: agreement.bootstrap(measures[name], len(prompts), **draws) for name in names}
  return {'pairs': {'pairs': len(formed.members), 'formed': formed.report['pairs'], **estimates}}


def report(
  scored: table_scores.ScoredTable,
  table: TokenTable,
  temperature: float,
  *,
  resamples: int = 1000,
  seed: int = 0,
  scores: str | None = None,
) -> dict[str, Any]:
  """Statistics of a scored table.

  Within a prompt, τρ ranks responses, which at DRO's optimum is an advantage; across prompts, V(x) + τρ ranks
  them. A run without a value ranks nothing across prompts. A reward model's `scores`, rewards or
  preferences, are its values, and rank responses to one prompt; rewards rank across prompts too.
  """
  draws = {'resamples': resamples, 'seed': seed}
  rewards, prompts, values = table.raw_rewards, table.prompt_index, scored.values
  baselines = agreement.baselines(scored.logps, scored.lengths)
  summary = {
    'reward': scored.rewards.mean(),
    'logp': scored.logps.mean(),
    'response_tokens': scored.lengths.mean(),
  }
  own_scores, across_scores = {}, {}
  if scores is not None:
    own_scores = {'score': values}
    # Only differences of a model of preferences count, within a prompt.
    across_scores = own_scores if scores == REWARDS else {}
  if scored.reference_logps is not None:
    rho = scored.logps - scored.reference_logps
    own_scores = {'tau_rho': temperature * rho}
    summary |= {'log_ratio': rho.mean(), 'log_ratio_std': rho.std()}
    if values is not None:
      across_scores = {'value_plus_tau_rho': values + temperature * rho}
  if values is not None:
    summary |= {'value': values.mean()}
    if scored.reference_logps is not None:
      summary |= {'residual': np.mean((scored.rewards - values - temperature * rho) ** 2) / 2}
    if scores != PREFERENCES:  # Logits explain no rewards.
      fit = agreement.value_fit(values, scored.rewards, prompts, **draws)
      summary |= {'value_explained_variance': fit}
  return {
    'statistics': summary,
    'within_prompts': agreement.within_prompts(own_scores | baselines, rewards, prompts, **draws),
    'across_prompts': agreement.across_prompts(across_scores | baselines, rewards, prompts, **draws),
  }
