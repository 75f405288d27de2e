"""The description of a run: plain data and functions, without devices, and before any file is read.

Each setting's annotation names the effect of a change on a resumed run (`configs.effects`). A setting without
an effect decides the run's numbers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import optax

from dro_jax import algorithms, files, limits
from dro_jax.algorithms.next_token_kl import NextTokenKl
from dro_jax.checkpoints.bound import parse as parse_bound
from dro_jax.configs.effects import KEEPING, PARTS, PLACE, SPEED
from dro_jax.data.batches.groups import UnitOptions
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError, did_you_mean, suggests_fields
from dro_jax.models.attention.ways import WAYS
from dro_jax.models.family import Config
from dro_jax.models.lora import Lora
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.run import exclusions, kinds
from dro_jax.run.batches import RowOptions
from dro_jax.run.own_algorithm import explained, import_algorithm, refuse_other_kinds
from dro_jax.run.sampling.rollouts import RolloutOptions
from dro_jax.run.schedule import Schedule
from dro_jax.step.optimizers import adafactor
from dro_jax.step.reference import Frozen, References


@suggests_fields
@dataclasses.dataclass(frozen=True)
class Policy:
  """The policy that a run starts from, which is its reference too.

  Args:
    init_from: the checkpoint with the first policy; `None` starts from random parameters.
    config: family and size of the model; `None` takes the checkpoint's.
    vocabulary: `bytes`, a SentencePiece model, a tokenizer.json, or a vocabulary that is read already; `None`
      takes the checkpoint's, or bytes where there is none.
    lora: the adapters that train in place of all parameters; `None`, or one without a rank, has none.

  Example:
    >>> dro.Policy(init_from='checkpoints/tiny').config is None  # The checkpoint's.
    True
  """

  init_from: str | None = None
  config: Config | None = None
  vocabulary: Annotated[str | Vocabulary | None, PLACE] = None
  lora: Annotated[Lora | None, PARTS] = None

  def __post_init__(self) -> None:
    if self.lora is not None and self.lora.rank is None:
      object.__setattr__(self, 'lora', None)


@suggests_fields
@dataclasses.dataclass(frozen=True)
class Compute:
  """How networks are computed.

  Args:
    chunk_size: response tokens projected to the vocabulary at once; 0 projects all, `None` all too unless
      their logits would take more than 1.25 GiB of a device (see `models.chunks`).
    dtype: the activations' type, `float32` or `bfloat16`; `None` takes the model's.
    scan_layers: whether one compiled layer is run over all layers' parameters; `None` takes the model's.
    remat: recomputes in the backward pass: True recomputes layers, 'dots' all but matrix products; `None`
      takes the model's.
    attention: 'auto' (by length and device), 'dense', 'blockwise', 'splash', 'cudnn', or a T5's 'fused' (see
      `models.attention.ways`); `None` takes the model's.
    dropout_rate: the rate of dropout in training, for supervised fine-tuning only.
    compiler_options: the compiler's options for the step, by name; each kind of device has its own.

  Example:
    >>> dro.replace(spec, compute=dro.Compute(dtype='bfloat16', remat=True)).compute.dtype
    'bfloat16'
  """

  chunk_size: Annotated[int | None, SPEED] = None
  dtype: str | None = None
  scan_layers: bool | None = None
  remat: Annotated[bool | str | None, SPEED] = None
  attention: Annotated[str | None, SPEED] = None
  dropout_rate: float | int = 0.0
  compiler_options: Annotated[Mapping[str, Any] | None, SPEED] = None

  def __post_init__(self) -> None:
    if self.chunk_size is not None:
      limits.whole('Compute', chunk_size=self.chunk_size)
    if self.chunk_size is not None and self.chunk_size < 0:
      raise UsageError(
        f'chunk_size={self.chunk_size}: pass a number of response tokens, 0 for all at once, or None, which '
        'chooses by the size of their logits: Compute(chunk_size=64), or --set CHUNK_SIZE=64.'
      )
    if self.attention not in (None, *WAYS):
      raise UsageError(
        f'attention={self.attention!r} is unknown{did_you_mean(str(self.attention), WAYS)}: pass one of '
        f'{", ".join(WAYS)}, as Compute(attention=...) or --set ATTENTION=..., or None for that of '
        'the model.'
      )


@suggests_fields
@dataclasses.dataclass(frozen=True)
class Value:
  """The value network of an algorithm that has one.

  Args:
    readout: one value for each prompt (`prompt`, `attention`), token (`token`) or batch (`batch`), one number
      for all (`scalar`), or a reward model's score (`response`); see `models.value.ValueNetwork`.
    shared: whether the value reads the policy's own trunk.
    frozen_trunk: whether only the layers above the trunk are fitted, not the trunk.
    warmup_steps: steps in which the value alone is trained. Then the policy starts, with its own warm-up of
      the learning rate.

  Raises:
    UsageError: the steps are less than 0.

  Example:
    >>> dro.replace(spec, value=dro.Value(readout='attention', shared=True)).value.shared
    True
  """

  readout: str = 'prompt'
  shared: bool = False
  frozen_trunk: bool = False
  warmup_steps: int = 0

  def __post_init__(self) -> None:
    limits.whole('Value', warmup_steps=self.warmup_steps)
    if self.warmup_steps < 0:
      raise UsageError(
        f'warmup_steps={self.warmup_steps}: pass 0 or more steps, as Value(warmup_steps=100) or --set '
        'VALUE_WARMUP_STEPS=100; with 0, policy and value start together.'
      )


@suggests_fields
@dataclasses.dataclass(frozen=True)
class Optimizers:
  """One optimiser for each network: nothing couples them.

  Args:
    policy: the policy's optimiser (see `step.optimizers`), or a function that makes it.
    value: the value network's optimiser, or a function that makes it.

  Example:
    >>> optimizers = dro.Optimizers(policy=dro.adafactor(1e-4), value=dro.adamw(1e-3))
    >>> dro.replace(spec, optimizers=optimizers).optimizers.value.learning_rate
    0.001
  """

  policy: optax.GradientTransformation | Callable[[], optax.GradientTransformation] = adafactor
  value: optax.GradientTransformation | Callable[[], optax.GradientTransformation] = adafactor

  def __post_init__(self) -> None:
    _make_parts(self, 'policy', 'value')
    for name in ('policy', 'value'):
      if not isinstance(optimizer := getattr(self, name), optax.GradientTransformation):
        raise UsageError(
          f'Optimizers: {name}={optimizer!r} is not an optimizer: pass one, as {name}=dro.adamw(1e-3).'
        )


@suggests_fields
@dataclasses.dataclass(frozen=True)
class Batches:
  """The contents of a batch, and their layout.

  Args:
    size: the exact number of responses in a batch, or of pairs, groups or prompts where the algorithm counts
      these.
    deal: `together` deals responses to one prompt to one batch; `uniform` draws a batch from all responses.
    microbatches: parts of a batch that are scored and pulled back one after another: less memory, the same
      numbers.
    rows: how a batch is laid out in rows.
    units: how pairs and groups are formed.

  Example:
    >>> dro.replace(spec, batches=dro.Batches(size=64, microbatches=4)).batches.size
    64
  """

  size: int = 32
  deal: str = 'together'
  microbatches: Annotated[int, SPEED] = 1
  rows: Annotated[RowOptions, PARTS] = RowOptions()
  units: Annotated[UnitOptions, PARTS] = UnitOptions()

  def __post_init__(self) -> None:
    limits.whole('Batches', size=self.size, microbatches=self.microbatches)
    if self.size < 1:
      raise UsageError(
        f'size={self.size}: a batch must hold something to learn from: pass 1 or more, as Batches(size=32) '
        'or --set BATCH=32.'
      )
    if self.microbatches < 1:
      raise UsageError(
        f'microbatches={self.microbatches}: pass 1 or more, as Batches(microbatches=1) or --set '
        'MICROBATCHES=1.'
      )


@suggests_fields
@dataclasses.dataclass(frozen=True)
class Keep:
  """Which checkpoints are kept.

  Args:
    last: how many of the newest; where the newest is damaged, the run resumes from the one before.
    best: how many of the best.
    metric: the metric of validation that chooses the best; `None` keeps the newest only.
    mode: `min` or `max`, whichever value of the metric is best.
    bound: a bound that the best must keep: a metric of validation, <= or >=, and a number, as 'eval/kl<=2'.
      `None` sets none. Where no checkpoint keeps it there is no best, and the newest is taken.

  Raises:
    UsageError: a number is out of its range, the bound is not one, or nothing chooses a best that it could
      bound.

  Example:
    >>> dro.replace(spec, keep=dro.Keep(last=1, bound='eval/kl<=2')).keep.best
    1
  """

  last: Annotated[int, KEEPING] = 2
  best: Annotated[int, KEEPING] = 1
  metric: Annotated[str | None, KEEPING] = 'eval/criterion'
  mode: Annotated[str, KEEPING] = 'min'
  bound: Annotated[str | None, KEEPING] = None

  def __post_init__(self) -> None:
    limits.whole('Keep', last=self.last, best=self.best)
    for name, least in {'last': 1, 'best': 0}.items():
      if (value := getattr(self, name)) < least:
        raise UsageError(
          f'{name}={value}: pass {least} or more, as Keep({name}=...) or --set KEEP_{name.upper()}=...'
        )
    if self.bound is None:
      return
    parse_bound(self.bound)
    if self.metric is None:
      raise UsageError(
        f'bound={self.bound!r} bounds the best checkpoint, and without a metric none is the best: pass '
        "Keep(metric='eval/criterion') or --set BEST_METRIC=eval/criterion, or bound=None (--set "
        'BEST_BOUND=None).'
      )


_PARTS = {
  'compute': Compute, 'value': Value, 'next_token_kl': NextTokenKl, 'optimizers': Optimizers,
  'batches': Batches, 'rollouts': RolloutOptions, 'schedule': Schedule, 'keep': Keep, 'mesh': MeshSpec,
}  # fmt: skip


@suggests_fields
@dataclasses.dataclass(frozen=True)
class RunSpec:
  """The description of a run, before any part of the run exists.

  An algorithm, a reference and optimisers may be given as functions that make them, as gin gives them.

  Args:
    data: triplets, or a function that reads them with a vocabulary (see `data.triplets.load_triplets`).
    policy: the policy that the run starts from.
    algorithm: the algorithm (see `algorithms`); 'FILE.py:NAME' or 'MODULE:NAME' calls your own function.
    compute: how networks are computed.
    value: the value network, where the algorithm has one.
    reference: the source of the reference's log-probs, and how the reference moves.
    next_token_kl: the KL to the reference over each next token, added to any algorithm's loss.
    optimizers: the optimisers of the policy and of the value network.
    batches: the contents of a batch, and their layout.
    rollouts: how an online algorithm gets its responses and rewards.
    schedule: the length of the run, and the steps at which it logs, validates and saves.
    keep: the checkpoints to keep.
    mesh: the arrangement of devices.
    seed: the seed of initial parameters, batches and random keys.

  Raises:
    UsageError: a setting is out of its range, or two do not go together.

  Example:
    >>> spec = dro.RunSpec(data=data, policy=policy, algorithm=dro.algorithms.dro_v(tau=0.3))
    >>> spec.algorithm.name, spec.reference
    ('dro_v', Frozen(store=None))
  """

  data: Triplets | Callable[..., Triplets]
  policy: Annotated[Policy, PARTS] = Policy()
  algorithm: algorithms.Algorithm | Callable[[], algorithms.Algorithm] | str = algorithms.dro_v
  compute: Annotated[Compute, PARTS] = Compute()
  value: Annotated[Value, PARTS] = Value()
  reference: References | Callable[[], References] = Frozen()
  next_token_kl: Annotated[NextTokenKl, PARTS] = NextTokenKl()
  optimizers: Annotated[Optimizers, PARTS] = dataclasses.field(default_factory=Optimizers)
  batches: Annotated[Batches, PARTS] = Batches()
  rollouts: Annotated[RolloutOptions, PARTS] = RolloutOptions()
  schedule: Annotated[Schedule, PARTS] = Schedule()
  keep: Annotated[Keep, PARTS] = Keep()
  mesh: Annotated[MeshSpec, PARTS] = MeshSpec()
  seed: int = 0

  def __post_init__(self) -> None:
    limits.seed(self.seed)
    kinds.refuse_other_data(self.data)
    kinds.refuse_other_policy(self.policy, Policy)
    for name, kind in _PARTS.items():
      kinds.refuse_other_part(name, getattr(self, name), kind)
    source = self.algorithm
    if isinstance(source, str):
      object.__setattr__(self, 'algorithm', import_algorithm(source))
    code = files.source_of(self.algorithm if callable(self.algorithm) else getattr(source, 'loss', None))
    _make_parts(self, 'algorithm', 'reference')
    kinds.refuse_other_reference(self.reference)
    refuse_other_kinds(self.algorithm, source)
    made = self.algorithm._replace(code=self.algorithm.code or code)
    object.__setattr__(self, 'algorithm', made if code is None else explained(made))
    exclusions.refuse(self)

  @property
  def full_algorithm(self) -> algorithms.Algorithm:
    """The algorithm, with next-token KL where the run adds it."""
    added = self.next_token_kl
    if not added.weight:
      return self.algorithm
    return algorithms.with_next_token_kl(self.algorithm, added.weight, added.direction)


def replace(spec: RunSpec, **changes: Any) -> RunSpec:
  """The spec with some fields changed; a mapping changes fields of a part: compute={'chunk_size': 64}.

  Example:
    >>> kto = dro.replace(spec, algorithm=dro.algorithms.kto(beta=0.1), batches={'size': 16})
    >>> kto.algorithm.name, kto.batches.size
    ('kto', 16)
  """
  parts = {
    name: dataclasses.replace(getattr(spec, name), **change) if isinstance(change, Mapping) else change
    for name, change in changes.items()
  }
  return dataclasses.replace(spec, **parts)


def _make_parts(owner: Any, *names: str) -> None:
  """Replaces functions that make parts by the parts."""
  for name in names:
    if callable(part := getattr(owner, name)):
      object.__setattr__(owner, name, part())


__all__ = ['Batches', 'Compute', 'Keep', 'Optimizers', 'Policy', 'RunSpec', 'Value']
