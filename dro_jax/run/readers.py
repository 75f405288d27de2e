"""Who reads each setting of a run: a setting that nothing reads would change nothing, silently."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from dro_jax.errors import UsageError
from dro_jax.run.spec import RunSpec
from dro_jax.step.reference import Cached, Hard, Soft


class Reader(NamedTuple):
  """What reads a setting.

  Attributes:
    reads: whether a run reads it.
    lacks: why a run does not, as a sentence with `{algorithm}` and `{reference}`.
    remedy: what to pass for a run that does.
  """

  reads: Callable[[RunSpec], bool]
  lacks: str
  remedy: str


# Every run reads it, or its own part refuses it, or it is a parameter of algorithms, which the command line
# compares with the chosen one.
EVERY = None


def _has_reference(*kinds: type) -> Callable[[RunSpec], bool]:
  """Whether a run has a reference of one of these kinds."""
  return lambda spec: spec.full_algorithm.uses_reference and isinstance(spec.reference, kinds)


_VALUE = Reader(
  lambda spec: spec.full_algorithm.uses_value,
  '{algorithm} has no value network',
  'RunSpec(algorithm=dro_v()), or --set ALGORITHM=dro_v',
)
_REFERENCE = Reader(
  lambda spec: spec.full_algorithm.uses_reference,
  '{algorithm} has no reference policy',
  'RunSpec(algorithm=dro_v()), or --set ALGORITHM=dro_v',
)
_SOFT = Reader(
  _has_reference(Soft),
  'the reference is {reference}, and only soft mixes the policy in',
  'RunSpec(reference=Soft()), or --set REFERENCE=soft',
)
_MOVING = Reader(
  _has_reference(Soft, Hard),
  'the reference is {reference}, which does not move',
  'RunSpec(reference=Soft()), or --set REFERENCE=soft, or hard',
)
_CACHED = Reader(
  _has_reference(Cached),
  'the reference is {reference}, which reads no store',
  'RunSpec(reference=Cached(STORE)), or --gin_file=references/cached.gin',
)
_PAIRS = Reader(
  lambda spec: spec.algorithm.unit == 'pair',
  '{algorithm} compares no pairs',
  'RunSpec(algorithm=dpo()), or --set ALGORITHM=dpo',
)
_GROUPS = Reader(
  lambda spec: spec.algorithm.unit == 'group',
  '{algorithm} compares no groups of responses',
  'RunSpec(algorithm=rloo()), or --set ALGORITHM=rloo',
)
_ONLINE = Reader(
  lambda spec: spec.algorithm.online is not None,
  '{algorithm} learns from the logged responses and samples none',
  'RunSpec(algorithm=rloo_online()), or --set ALGORITHM=rloo_online',
)
_PACKED = Reader(
  lambda spec: spec.batches.rows.packed and spec.algorithm.online is None,
  'each row holds one response or one prompt',
  'RowOptions(packed=True), or --set PACKED=True, with an algorithm that learns from logged responses',
)
_ROWS = Reader(
  lambda spec: spec.algorithm.online is None,
  '{algorithm} samples its responses, and each row holds one prompt',
  'an algorithm that learns from logged responses',
)
_LOGGED = Reader(
  lambda spec: spec.algorithm.online is None,
  '{algorithm} samples its responses, whose length is SAMPLE_LENGTH',
  'RolloutOptions(max_length=...), or --set SAMPLE_LENGTH=...',
)
_KL = Reader(
  lambda spec: bool(spec.next_token_kl.weight),
  'NEXT_TOKEN_KL is 0, so the loss has no such term',
  'NextTokenKl(weight=1.0), or --set NEXT_TOKEN_KL=1.0',
)

# Every name in capitals of gin_configs/runs/train.gin.
READERS: Mapping[str, Reader | None] = {
  **dict.fromkeys(
    (
      'VALUE_LEARNING_RATE', 'VALUE_OPTIMIZER', 'VALUE_SCHEDULE', 'VALUE_READOUT', 'VALUE_SHARED',
      'VALUE_FROZEN_TRUNK', 'VALUE_WARMUP_STEPS',
    ),
    _VALUE,
  ),
  **dict.fromkeys(('REFERENCE', 'REFERENCE_STORE'), _REFERENCE),
  'REFERENCE_TOLERANCE': _CACHED,
  'TRUST_REGION_ALPHA': _SOFT,
  'TRUST_REGION_EVERY': _MOVING,
  'NEXT_TOKEN_KL_DIRECTION': _KL,
  **dict.fromkeys(('PAIRS', 'PAIR_MARGIN'), _PAIRS),
  **dict.fromkeys(('GROUP_SIZE', 'RANKED'), _GROUPS),
  'TEMPERATURE': _ONLINE,
  **dict.fromkeys(('ROW_COVERAGE', 'ENCODE_ONCE'), _PACKED),
  'PACKED': _ROWS,
  'ROW_RESPONSE_LENGTH': _LOGGED,
  **dict.fromkeys(
    (
      'ALGORITHM', 'STEPS', 'BATCH', 'DEAL', 'TAU', 'POLICY_LEARNING_RATE', 'WARMUP_STEPS',
      'POLICY_OPTIMIZER', 'POLICY_SCHEDULE', 'MAX_GRADIENT_NORM', 'SEED', 'REPLAY', 'INIT_FROM',
      'NEXT_TOKEN_KL', 'LORA_RANK', 'LORA_ALPHA', 'LORA_TARGETS', 'LORA_ZERO', 'LORA_BASE_KERNELS',
      'LORA_BASE', 'REWARD', 'GROUP_SAMPLES', 'SAMPLE_LENGTH', 'EPOCHS_PER_BATCH', 'EVAL_TRIPLETS', 'COLUMNS',
      'MAP_REWARD', 'REWARDS', 'ROLE', 'TEMPLATE', 'CHAT_TEMPLATE', 'CHAT', 'VOCABULARY', 'PROMPT_LENGTH',
      'KEEP', 'RESPONSE_LENGTH', 'OVERLONG', 'REWARD_SCALING', 'VALIDATION_FRACTION', 'TEST_FRACTION',
      'COLUMNS_FROM',
      'TASK_MODULES', 'DATA_DIR', 'CACHE_DIR', 'BEHAVIOUR_SAMPLER', 'ROW_PROMPT_LENGTH', 'MICROBATCHES',
      'CHUNK_SIZE', 'DTYPE', 'SCAN_LAYERS', 'REMAT', 'ATTENTION', 'COMPILER_OPTIONS', 'DROPOUT_RATE',
      'LOG_EVERY', 'EVAL_EVERY', 'EVAL_EXAMPLES', 'SAMPLE_PROMPTS', 'KL_PROMPTS', 'CHECKPOINT_EVERY',
      'KEEP_LAST', 'KEEP_BEST', 'BEST_METRIC', 'BEST_MODE', 'BEST_BOUND', 'METRICS', 'TRACKERS',
      'PROFILE_STEPS',
    ),
    EVERY,
  ),
}  # fmt: skip


def unread(spec: RunSpec) -> set[str]:
  """The settings, by their names in capitals, that a run does not read."""
  return {name for name, reader in READERS.items() if reader is not None and not reader.reads(spec)}


def is_conditional(setting: str) -> bool:
  """Whether only some runs read a setting."""
  return READERS.get(setting) is not None


def refuse_unread(spec: RunSpec, asked: Iterable[tuple[str, str]]) -> None:
  """Refuses settings that were asked for and that the run does not read.

  Args:
    spec: the run.
    asked: each setting's name, and what the user typed.

  Raises:
    UsageError: a setting would change nothing; names it, why, and what to pass.
  """
  for setting, typed in asked:
    reader = READERS.get(setting)
    if reader is not None and not reader.reads(spec):
      lacks = reader.lacks.format(
        algorithm=spec.full_algorithm.name, reference=type(spec.reference).__name__.lower()
      )
      raise UsageError(
        f'{typed}: {lacks}, so {setting} would change nothing: leave it out, or pass {reader.remedy}.'
      )
