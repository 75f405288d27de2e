"""A run's checkpoint, loaded to score and to answer with."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from dro_jax.algorithms.base import NO_LOSS
from dro_jax.checkpoints import adapters, folders, orbax, policy
from dro_jax.data import scaling
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError
from dro_jax.models import lora, scoring
from dro_jax.parallel.partitioning import Mesh, MeshSpec
from dro_jax.run import batches, networks, reference_store, summary, table_scores
from dro_jax.run.folder import reading
from dro_jax.run.sampling.decoding import Decoding
from dro_jax.run.sampling.generation import Response, make_generator
from dro_jax.run.sampling.prompts import tokenise_prompts
from dro_jax.step import reference
from dro_jax.step import state as train_state
from dro_jax.types import Params


class Network(NamedTuple):
  """A network and its parameters; `module.apply(network.variables, ...)` calls it.

  `params` of a network with an adapter is `models.lora.Adapted`: base and adapter.
  """

  module: nn.Module
  params: Params

  @property
  def variables(self) -> Mapping[str, Params]:
    """The parameters by flax's collections."""
    return lora.variables_of(self.params)


class TrainedRun(NamedTuple):
  """A run's networks at one of its steps, and how it read its data.

  `scores` says of a reward model what its values are (see `algorithms.reward_models`); `None` of other runs.
  """

  networks: networks.Networks
  state: train_state.TrainState
  vocabulary: vocabularies.Vocabulary
  scaling: scaling.RewardScaling
  temperature: float
  data_options: Mapping[str, Any]
  read_options: Mapping[str, Any] = {}
  mesh: Mesh | None = None
  has_reference: bool = False
  scores: str | None = None

  def __repr__(self) -> str:
    trained = summary.parameters(summary.num_parameters(self.state))
    return f'TrainedRun(step {int(self.state.step):,}; parameters: {trained}; {self.vocabulary.spec!r})'

  @property
  def policy(self) -> Network:
    """π and its parameters."""
    return Network(self.networks.policy, self.state.networks['policy'])

  @property
  def value(self) -> Network | None:
    """V and its parameters; `None` where the algorithm has none."""
    return None if self.networks.value is None else Network(self.networks.value, self.state.networks['value'])

  def generate(
    self, prompts: str | Sequence[str], *, temperature: float = Decoding.temperature,
    max_length: int = Decoding.max_length, seed: int = Decoding.seed, **options: Any,
  ) -> list[Response]:  # fmt: skip
    """Answers prompts, which take the run's template and are cut as in training; `[0].text` is the first.

    Args:
      prompts: one prompt or several, without the template; a conversation is its list of turns, as JSON.
      temperature: the divisor of the logits; 0 takes the most probable token.
      max_length: tokens of a response at most.
      seed: decides, with a prompt's place, the sample for the prompt.
      options: other settings of `Decoding`: top_k, top_p, beams, batch_size, ...

    Raises:
      UsageError: settings exclude each other.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    tokens = tokenise_prompts(texts, self.vocabulary, self.data_options)
    decoding = Decoding(max_length=max_length, temperature=temperature, seed=seed, **options)
    draw = make_generator(self.networks.policy, self._on(), decoding)
    answers = draw(self.state.networks['policy'], tokens, range(len(tokens)))
    return [answer.decoded(self.vocabulary) for answer in answers]

  def score(self, data: Triplets | TokenTable, **options: Any) -> table_scores.ScoredTable:
    """Scores logged responses: `.logps`, `.log_ratio` (nats), `.values`, in the table's order.

    Args:
      data: a table such as `triplets.train`, or triplets, of which the held-out part is taken where one is.
      options: `batch_size` and `chunk_size`, as `score_table` has them.
    """
    table = (data.eval or data.train) if isinstance(data, Triplets) else data
    return score_table(self, table, self._on(), **options)

  def _on(self) -> Mesh:
    return self.mesh or MeshSpec().over()


def load_run(
  model_dir: str, mesh: Mesh, vocabulary: str | None = None, init_from: str | None = None
) -> TrainedRun:
  """A run's best or newest checkpoint: policy, value and reference, without its optimisers.

  An imported policy has no temperature, no value, no reference and no reward scaling of its own. A cached
  reference is the policy from which the run started: it is read from there, or from `init_from`. So is the
  base of adapters.

  Raises:
    UsageError: the checkpoint does not exist, the folder of the reference or of the base is missing, or it
      holds another base.
  """
  # Resolved once: a run in progress may have a better step later.
  model_dir = str(folders.find_checkpoint(model_dir))
  saved = folders.load_metadata(model_dir)
  value, adapter = saved.get('value') or {}, adapters.entry_of(saved)
  nets = networks.build(
    policy.config_of(model_dir), uses_value=bool(value), lora=adapter and adapter.lora, **value
  )
  base = None
  if adapter is not None:
    directory = adapters.find_base(model_dir, init_from)
    base, _ = networks.load_base(nets, mesh, directory, adapter.fingerprint)
  state = train_state.TrainState(
    step=jnp.asarray(saved.get('step', 0)),
    params={name: _restore_params(nets, name, model_dir, mesh) for name in networks.abstract_params(nets)},
    opt_state={},
    reference=_reference(model_dir, saved, init_from, nets, mesh),
    base=base,
  )
  data = saved.get('data', {})
  fitted = scaling.from_json(data['scaling']) if 'scaling' in data else scaling.RewardScaling()
  words = policy.vocabulary_of(model_dir, vocabulary)
  return TrainedRun(
    nets, state, words, fitted, saved.get('temperature', 1.0), reading.options_of(saved),
    reading.names_of(saved, model_dir), mesh, saved.get('reference') is not None,
    saved.get('scores'),
  )  # fmt: skip


def load_network(model_dir: str, mesh: Mesh) -> Network:
  """The policy of a checkpoint, alone.

  Raises:
    UsageError: the checkpoint is missing or does not fit, or the base of its adapter is another one.
  """
  model_dir = str(folders.find_checkpoint(model_dir))
  nets = networks.build_policy(model_dir)
  return Network(nets.policy, networks.load_policy(nets, model_dir, mesh))


def load_reference(
  model_dir: str, mesh: Mesh, init_from: str | None = None, base: lora.Base | None = None
) -> Network:
  """The policy against which a run is measured: its reference, or its initial policy where that moves.

  Args:
    model_dir: one of the run's checkpoints.
    mesh: where to.
    init_from: where the policy lies now from which the run started, if its reference was cached.
    base: of a run with adapters, its base, where that is loaded already.

  Raises:
    UsageError: the run has no reference, or did not keep it.
  """
  saved = folders.load_metadata(model_dir)
  settings, entry = saved.get('reference'), adapters.entry_of(saved)
  if settings is None or (settings.get('scheme') == 'moving' and not saved.get('keeps_initial')):
    lacks = 'has no reference policy' if settings is None else 'did not keep the policy from which it started'
    raise UsageError(
      f'the run of {model_dir} {lacks}: pass the folder of a policy to compare with, reference_logp=FOLDER '
      '(--set REFERENCE_LOGP=FOLDER) of generate, or a side of judge.'
    )
  nets = networks.build(policy.config_of(model_dir), uses_value=False, lora=entry and entry.lora)
  own = _reference(model_dir, saved, init_from, nets, mesh)
  base = base or networks.load_own_base(nets, model_dir, mesh)
  return Network(nets.policy, lora.join_policy(base, own))


def _reference(
  model_dir: str, saved: Mapping[str, Any], init_from: str | None, nets: networks.Networks, mesh: Mesh
) -> Params | None:
  """The reference's parameters, from the run or from the policy of its store.

  For a moving reference, those of the initial policy, against which the run was measured. With adapters
  `None` is the base with its adapter off, which is the initial policy whose log-probs a store has.
  """
  abstract = networks.abstract_on(nets, mesh)['policy']
  if saved.get('keeps_initial'):
    return orbax.load_part(model_dir, ('initial',), abstract)
  if saved.get('uses_reference'):
    return orbax.load_part(model_dir, ('reference',), abstract)
  if (saved.get('reference') or {}).get('scheme') != 'cached':
    return None
  if nets.lora is None:
    return reference_store.load_reference(saved, init_from, nets, mesh)
  # Else the adapter that the run began with: a fresh one is off.
  continues = adapters.entry_of(saved).continues
  return networks.load_own(nets, saved['init_from'], mesh) if continues else None


def _restore_params(nets: networks.Networks, name: str, model_dir: str, mesh: Mesh) -> Params:
  if name == 'policy':  # Imported folders have nothing else.
    return networks.load_own(nets, model_dir, mesh)
  return orbax.load_part(model_dir, ('params', name), networks.abstract_on(nets, mesh)[name])


def score_table(
  run: TrainedRun, table: TokenTable, mesh: Mesh, *, batch_size: int = 32, chunk_size: int | None = None
) -> table_scores.ScoredTable:
  """Scores every response of a table exactly once, as training does, but for the losses."""
  score = _make_scorer(
    run.networks,
    mesh,
    chunk_size,
    run.state.reference is not None or (run.state.base is not None and run.has_reference),
  )
  return score(run.state, batches.once(table, mesh, batch_size))


# One function for equal arguments, so that a second call compiles nothing again.
@functools.lru_cache(maxsize=16)
def _make_scorer(
  nets: networks.Networks, mesh: Mesh, chunk_size: int | None, has_reference: bool
) -> Callable[..., table_scores.ScoredTable]:
  frozen = None
  if has_reference:
    frozen = reference.Frozen().build(scoring.make_score(nets.policy, chunk_size=chunk_size))
  return table_scores.make_table_scorer(nets, NO_LOSS, frozen, mesh, chunk_size)
