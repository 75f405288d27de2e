"""The `evaluate` command: what a run's policy and value say of any triplet file."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dro_jax import algorithms, limits, networks
from dro_jax.checkpoints import orbax as checkpoints
from dro_jax.data import scaling, tasks
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import vocabularies
from dro_jax.models import scoring
from dro_jax.models.t5 import T5Config
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Grid
from dro_jax.plain import plain
from dro_jax.run import batches as feeds
from dro_jax.run import reference_store
from dro_jax.run.folder import configs as resume
from dro_jax.statistics import agreement as statistics
from dro_jax.step import reference
from dro_jax.step import state as train_state
from dro_jax.types import LossOutput, Params


class TrainedRun(NamedTuple):
  """A run's networks at one of its steps, and how it read its data."""

  networks: networks.Networks
  state: train_state.TrainState
  vocabulary: vocabularies.Vocabulary
  scaling: scaling.RewardScaling
  temperature: float
  data_options: Mapping[str, Any]
  read_options: Mapping[str, Any] = {}


def evaluate(
  model_dir: str,
  data: Callable[..., tasks.Triplets] = tasks.load_triplets,
  *,
  template: str | None = None,
  chat_template: str | None = None,
  vocabulary: str | None = None,
  init_from: str | None = None,
  mesh: Callable[[], Grid] = partitioning.make_mesh,
  batch_size: int = 32,
  chunk_size: int | None = None,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """Scores every response of a triplet file once, and says how well scores and rewards agree.

  Args:
    model_dir: a run's folder (its best step, or the newest where no best was measured), or one checkpoint.
    data: the triplets; all of what is not held out is scored (see `data.tasks.load_triplets`). Where it does
      not say `columns` or `map_reward`, the run's own hold.
    template: of the prompt text; `None` takes the run's.
    chat_template: of each turn where prompts are conversations; `None` takes the run's.
    vocabulary: where the run's lies now; `None` takes it from where it lay.
    init_from: where the checkpoint lies now from which the run started, if its reference was cached.
    mesh: devices' arrangement.
    batch_size: responses scored at once.
    chunk_size: response tokens projected to the vocabulary at once; `None` for all.
    resamples: draws of prompts behind each 95 % interval.
    seed: of those draws.

  Returns:
    `statistics` as in training; `within_prompts` and `across_prompts` with intervals, for the run's own score
    and for the baselines log-prob, log-prob by token and length.

  Raises:
    UsageError: there is no such checkpoint, or data that cannot be read as the run read its own.
  """
  limits.seed(seed)
  grid = mesh()
  run = load_run(model_dir, grid, vocabulary, init_from)
  texts = {'template': template, 'chat_template': chat_template}
  options = dict(run.data_options) | {name: text for name, text in texts.items() if text is not None}
  if any(run.read_options.values()):
    options['inherited'] = run.read_options
  triplets = data(vocabulary=run.vocabulary, rewards_required=True, **options)
  table = triplets.train.scaled(run.scaling)
  scored = score(run, table, grid, batch_size=batch_size, chunk_size=chunk_size)
  return plain(
    {
      'model_dir': str(model_dir),
      'step': int(run.state.step),
      'responses': len(table),
      'prompts': len(np.unique(table.prompt_index)),
      'temperature': run.temperature,
      'effective_temperature': run.scaling.effective_temperature(run.temperature),
      **report(scored, table, run.temperature, resamples=resamples, seed=seed),
    }
  )


def load_run(
  model_dir: str, mesh: Grid, vocabulary: str | None = None, init_from: str | None = None
) -> TrainedRun:
  """A run's best or newest checkpoint: policy, value and reference, without its optimisers.

  An imported policy has no temperature, no value, no reference and no reward scaling of its own. A cached
  reference is the policy from which the run started: it is read from there, or from `init_from`.

  Raises:
    UsageError: there is no such checkpoint, or the reference is not where it lay.
  """
  # Found once: a run that goes on may have a better step the next time one looks.
  model_dir = str(checkpoints.find_checkpoint(model_dir))
  saved = checkpoints.load_metadata(model_dir)
  config, value = T5Config(**saved['model']), saved.get('value') or {}
  nets = networks.build(config, uses_value=bool(value), **value)
  abstract = networks.abstract_on(nets, mesh)
  state = train_state.TrainState(
    step=jnp.asarray(saved.get('step', 0)),
    params={name: _restore(model_dir, ('params', name), tree) for name, tree in abstract.items()},
    opt_state={},
    reference=_reference(model_dir, saved, init_from, config, abstract['policy']),
  )
  data = saved.get('data', {})
  fitted = scaling.from_json(data['scaling']) if 'scaling' in data else scaling.RewardScaling()
  words = networks.vocabulary_of(model_dir, vocabulary)
  return TrainedRun(
    nets, state, words, fitted, saved.get('temperature', 1.0), data.get('options', {}),
    resume.read_options(saved, pathlib.Path(model_dir)),
  )  # fmt: skip


def _reference(
  model_dir: str, saved: Mapping[str, Any], init_from: str | None, config: T5Config, abstract: Params
) -> Params | None:
  """The reference's parameters as the run kept them, or as its store was made of them.

  Of one that moves, those of the initial one, by which the run was measured too.
  """
  if saved.get('keeps_initial'):
    return _restore(model_dir, ('initial',), abstract)
  if saved.get('uses_reference'):
    return _restore(model_dir, ('reference',), abstract)
  if (saved.get('reference') or {}).get('scheme') == 'cached':
    return reference_store.load_reference(saved, init_from, config, abstract)
  return None


def _restore(model_dir: str, path: tuple[str, ...], abstract: Params) -> Params:
  if path == ('params', 'policy'):
    return checkpoints.load_params(model_dir, abstract)[0]  # Imported folders have nothing else.
  return checkpoints.load_part(model_dir, path, abstract)


def score(
  run: TrainedRun, table: TokenTable, mesh: Grid, *, batch_size: int = 32, chunk_size: int | None = None
) -> networks.ScoredTable:
  """Scores every response of a table exactly once, as training does, but for the losses."""
  frozen = None
  if run.state.reference is not None:
    frozen = reference.frozen(scoring.make_score(run.networks.policy, chunk_size=chunk_size))
  score_table = networks.make_scorer(run.networks, NO_LOSS, frozen, mesh, chunk_size)
  return score_table(run.state, feeds.once(table, mesh, batch_size))


NO_LOSS = algorithms.Algorithm('none', lambda batch: LossOutput({}))


def report(
  scored: networks.ScoredTable, table: TokenTable, temperature: float, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
  """Statistics of a scored table.

  Within a prompt responses are ranked by τρ, which at DRO's optimum is an advantage; across prompts only by
  V(x) + τρ, and not at all by a run without a value.
  """
  draws = {'resamples': resamples, 'seed': seed}
  rewards, prompts, values = table.raw_rewards, table.prompt_index, scored.values
  baselines = statistics.baselines(scored.logps, scored.lengths)
  summary = {
    'reward': scored.rewards.mean(),
    'logp': scored.logps.mean(),
    'response_tokens': scored.lengths.mean(),
  }
  own, levelled = {}, {}
  if scored.reference_logps is not None:
    rho = scored.logps - scored.reference_logps
    own = {'tau_rho': temperature * rho}
    summary |= {'log_ratio': rho.mean(), 'log_ratio_std': rho.std()}
    if values is not None:
      levelled = {'value_plus_tau_rho': values + temperature * rho}
  if values is not None:
    summary |= {'value': values.mean()}
    if scored.reference_logps is not None:
      summary |= {'residual': np.mean((scored.rewards - values - temperature * rho) ** 2) / 2}
    summary |= {'value_explained_variance': statistics.value_fit(values, scored.rewards, prompts, **draws)}
  return {
    'statistics': summary,
    'within_prompts': statistics.within_prompts(own | baselines, rewards, prompts, **draws),
    'across_prompts': statistics.across_prompts(levelled | baselines, rewards, prompts, **draws),
  }
