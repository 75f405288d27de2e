"""Names and ids that all floors share. No array: tables are read, and built, without jax."""

from typing import NamedTuple


class SpecialTokens(NamedTuple):
  """Ids that stand for no text; the defaults are T5's.

  Attributes:
    pad: fills rows; any id will do, because masks come from segments.
    eos: a text's end; of a chat model, the end of its turn.
    unknown: text without a piece; -1 where every text has pieces.
    start: a response's first input, where the prompt is no part of it.
  """

  pad: int = 0
  eos: int = 1
  unknown: int = 2
  start: int = 0


# The words by which a record says that the reference policy sampled its response.
SAMPLED = ('sampled', 'sampling', 'sample')

# The columns in which a store holds the reference's log-probs: by token, and of mismatched pairs.
TOKEN_LOGPS, MISMATCHED_LOGPS = 'reference_token_logps', 'reference_mismatched_logps'

# The term of a loss that is by response, also where the algorithm's own terms are by pair or group.
NEXT_TOKEN_KL = 'next_token_kl'
# Settings that change no shape: one preflight holds for all their values.
SAME_STEP = (
  'TAU', 'SEED', 'LEARNING_RATE', 'POLICY_LEARNING_RATE', 'VALUE_LEARNING_RATE', 'END_LEARNING_RATE',
  'WARMUP_STEPS', 'WEIGHT_DECAY', 'TEST_FRACTION',
)  # fmt: skip
