"""A run, built: networks, step, loaders and samplers."""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dro_jax import algorithms
from dro_jax.checkpoints import orbax, policy
from dro_jax.data.batches import loader
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError
from dro_jax.models.family import Config
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import batches, best, networks
from dro_jax.run.folder import configs
from dro_jax.run.sampling import generation, policy_samples, rollouts
from dro_jax.run.schedule import Schedule
from dro_jax.step import reference, state

# Rows of a fresh embedding table: divides over meshes, as published models are padded to.
VOCABULARY_MULTIPLE = 128


class Samplers(NamedTuple):
  """What draws from the policy during a run.

  greedy     answers held-out prompts, for people to read.
  responder  makes an online algorithm's batches.
  draw       draws the samples to validate on.
  decoding   how it decodes.
  """

  greedy: generation.Generator
  responder: rollouts.Rollouts | None = None
  draw: policy_samples.Draw | None = None
  decoding: Mapping[str, Any] | None = None


class Run(NamedTuple):
  """All that the loop needs, built once."""

  model_dir: pathlib.Path
  mesh: Mesh
  networks: networks.Networks
  vocabulary: vocabularies.Vocabulary
  step: Callable
  train_loader: loader.Loader
  eval_loader: loader.Loader | None
  score_table: Callable
  samplers: Samplers
  best_metric: str | None
  algorithm: algorithms.Algorithm
  statistics_loader: loader.Loader | None = None
  score_statistics: Callable | None = None
  checkpoints: 'orbax.Checkpoints | None' = None
  measure: Callable | None = None
  notes: Sequence[str] = ()


class Rehearsal(NamedTuple):
  """A run that is built for devices that need not be here, and not run.

  devices  to lay the mesh out on.
  receive  gets the run and its state's shapes with shardings; what it returns, `train` returns.
  """

  devices: Sequence[Any]
  receive: Callable[[Run, state.TrainState], Any]


def read_as_before(
  data: Callable[..., Triplets], earlier: Mapping[str, Any] | None
) -> Callable[..., Triplets]:
  """The data, read as the run that is resumed, if one is, has read it: `run.folder.configs.data_options`."""
  return data if earlier is None else functools.partial(data, **configs.data_options(earlier))


def refuse_unmeasured(
  run: Run,
  evaluate_rows: Callable,
  abstract: state.TrainState,
  ref: reference.Reference | None,
  reward: Any,
) -> None:
  """Refuses a best metric that the run would not measure: only steps later would anyone find out."""
  if run.eval_loader is None or run.best_metric in (None, best.CRITERION):
    return
  terms, held_out = [], run.eval_loader
  if run.algorithm.online is None:
    with partitioning.use_mesh(run.mesh):
      terms = jax.eval_shape(evaluate_rows, abstract, held_out.rows(0))[2].terms
  names = best.measured_names(
    (run.statistics_loader or held_out).table, run.algorithm, terms,
    moves=ref is not None and ref.initial is not None, draws=run.samplers.draw is not None,
    draws_ratios=ref is not None and ref.is_kept, draws_rewards=reward is not None,
  )  # fmt: skip
  best.refuse_unmeasured(run.best_metric, names)


def prepare_triplets(
  data: Callable[..., Triplets],
  algorithm: algorithms.Algorithm,
  words: vocabularies.Vocabulary,
  timing: Schedule,
) -> tuple[Triplets, Schedule, int]:
  """The triplets with what the algorithm makes of them, when to validate, and the longest response."""
  triplets = data(vocabulary=words)
  longest = int(triplets.train.response_lengths.max())
  triplets = batches.admitted(triplets, algorithm)
  if triplets.eval is None:
    return triplets, dataclasses.replace(timing, eval_every=0), longest
  return triplets if timing.eval_every else triplets._replace(eval=None), timing, longest


def label_notes(report: Mapping[str, Any]) -> list[str]:
  """What made the labels, where the algorithm has such."""
  return [f'labels: {report["labels"]["said"]}'] if 'labels' in report else []


def make_samplers(
  nets: networks.Networks,
  algorithm: algorithms.Algorithm,
  ref: reference.Reference | None,
  mesh: Mesh,
  words: vocabularies.Vocabulary,
  options: rollouts.RolloutOptions,
  timing: Schedule,
  *,
  longest: int,
  seed: int,
  chunk_size: int | None,
) -> Samplers:
  responder, draw, decoding = None, None, None
  if algorithm.online is not None:
    responder = rollouts.make_rollouts(
      nets, algorithm, ref, mesh, words, options, max_length=longest, seed=seed, chunk_size=chunk_size
    )
  if timing.eval_every and timing.kl_prompts:
    draw, decoding = policy_samples.make_draw(
      nets, ref, mesh, words, timing.kl_prompts, max_length=options.max_length or longest,
      reward=options.reward, seed=seed, chunk_size=chunk_size,
    )  # fmt: skip
  most = longest if responder is None else responder.settings['max_length']
  greedy = generation.make_generator(
    nets.policy, mesh, max_length=most, temperature=0.0, batch_size=timing.sample_prompts
  )
  return Samplers(greedy, responder, draw, decoding)


def init_digest(init_from: str | None, folder: pathlib.Path) -> str | None:
  """The digest of the checkpoint that the run starts from, or did start from."""
  if init_from is None:
    return None
  started = orbax.run_metadata(folder).get('init_digest') if orbax.has_any(folder) else None
  return orbax.init_digest(init_from, started)


def find_vocabulary(spec: str | None, init_from: str | None) -> vocabularies.Vocabulary:
  """The vocabulary that is named, else the checkpoint's, else bytes."""
  if init_from is not None:
    return policy.vocabulary_of(init_from, spec)
  return vocabularies.vocabulary(spec or 'bytes')


def find_model_config(
  model: Config | None, init_from: str | None, words: vocabularies.Vocabulary, **changes
) -> Config:
  """The run's model: as given, or as the checkpoint's, with the vocabulary's size and what changes."""
  if model is None and init_from is None:
    raise UsageError(
      'no model: start from a checkpoint (--init_from=DIR), or name a size to start at random '
      '(--gin_file=models/t5_1_1_tiny.gin).'
    )
  if init_from is not None:
    saved = policy.config_of(init_from)
    model = saved if model is None else dataclasses.replace(model, vocab_size=saved.vocab_size)
  if model.vocab_size is None:
    size = VOCABULARY_MULTIPLE * math.ceil(words.size / VOCABULARY_MULTIPLE)
    model = dataclasses.replace(model, vocab_size=size)
  if model.vocab_size < words.size:
    raise UsageError(
      f'the vocabulary {words.spec!r} has {words.size} ids, but {type(model).__name__}.vocab_size is '
      f'{model.vocab_size}: leave it unset, or pass at least as many.'
    )
  return dataclasses.replace(model, **{name: value for name, value in changes.items() if value is not None})


def saved_readout(readout: str, folder: pathlib.Path, earlier: Mapping[str, Any] | None) -> str:
  """How V is read: a run that an earlier version made keeps what it meant by `batch`."""
  saved = (earlier or {}).get('value') or {}
  if readout != 'batch' or saved.get('readout') != 'scalar' or orbax.saved_format(earlier) >= 2:
    return readout
  logging.getLogger(__name__).warning(
    '%s was made when VALUE_READOUT=batch was one learned number, which is called scalar now: the run goes '
    'on with that. A new run with batch reads a network.', folder,
  )  # fmt: skip
  return 'scalar'


def measured_as_before(
  ref: reference.Reference | None, folder: pathlib.Path, earlier: Mapping[str, Any] | None
) -> reference.Reference | None:
  """The reference; a run that kept no initial policy goes on being measured against that which moves."""
  if ref is None or ref.initial is None or earlier is None or earlier.get('keeps_initial'):
    return ref
  logging.getLogger(__name__).warning(
    '%s was made by a version that kept no initial policy where the reference moves: its KL, log-ratios and '
    'best checkpoint are measured against the moving reference, as before. A new run is measured against the '
    'initial policy.', folder,
  )  # fmt: skip
  return ref._replace(initial=None)


def refuse_settings(
  algorithm: algorithms.Algorithm, dropout_rate: float | int, readout: str, num_microbatches: int
) -> None:
  if num_microbatches < 1:
    raise UsageError(f'num_microbatches={num_microbatches}: pass 1 or more (--set MICROBATCHES=1).')
  if not algorithm.temperature >= 0:  # NaN is refused too.
    raise UsageError(
      f'{algorithm.name} has temperature {algorithm.temperature}, and below 0 the policy is driven from '
      'its reference: pass 0 or more (--set TAU=1.0, or its own, as in --set copg.beta=0.06).'
    )
  if dropout_rate > 0 and (algorithm.uses_reference or algorithm.uses_value):
    raise UsageError(
      'dropout is for supervised fine-tuning: with it, an alignment loss would compare log-probs of two '
      'different networks. Pass --set DROPOUT_RATE=0.'
    )
  if algorithm.uses_token_values and readout != 'token':
    raise UsageError(
      f'{algorithm.name} reads a value for each token, and the value is read out by {readout}: pass --set '
      'VALUE_READOUT=token (or --gin_file=values/token.gin).'
    )


def compile_step(
  step: Callable, abstract: state.TrainState, mesh: Mesh, options: Mapping[str, Any] | None
) -> Callable:
  where = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(where, partitioning.replicated(mesh)),
    compiler_options=partitioning.COMPILER_OPTIONS | dict(options or {}),
  )


def compile_on_mesh(function: Callable, mesh: Mesh) -> Callable:
  """Compiled, with the whole result on every device."""
  return jax.jit(
    function, out_shardings=partitioning.replicated(mesh), compiler_options=partitioning.COMPILER_OPTIONS
  )


def abstract_state(create: Callable, nets: networks.Networks, mesh: Mesh) -> state.TrainState:
  """Shapes and shardings of the state."""
  abstract, where = jax.eval_shape(create, networks.abstract_on(nets, mesh)), networks.shardings(nets, mesh)
  return networks.with_shardings(abstract, partitioning.state_shardings(abstract, where, mesh))


def fresh_state(
  create: Callable, nets: networks.Networks, mesh: Mesh, abstract: Any, seed: int, init_from: str | None
) -> state.TrainState:
  """Shapes first, then shardings, then arrays born sharded."""
  where = jax.tree.map(lambda x: x.sharding, abstract)
  create = jax.jit(create, donate_argnums=0, out_shardings=where)
  return create(networks.initial_params(nets, mesh, seed, init_from))
