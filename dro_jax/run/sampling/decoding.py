"""The settings by which a policy answers."""

import dataclasses
from typing import Any

from dro_jax import files
from dro_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How policies answer.

  Attributes:
    max_length: tokens of an answer at most.
    temperature: divides the logits; 0 takes the most probable token.
    top_k: the number of most probable tokens to draw from; 0 draws from all.
    top_p: draws from the fewest tokens with a total probability of p; 1 draws from all.
    repetition_penalty: on tokens that the text has already (see `models.sampling.penalised`); 1 is none.
    beams: prefixes that a beam search keeps (see `models.beam_search.search`), at temperature 0; 1 does not
      search.
    length_penalty: the exponent of the length that divides a response's log-prob in a beam search.
    num_samples: answers to each prompt.
    batch_size: prompts at once; changes no answer.
    seed: decides, with the prompt, the answers.

  Example:
    >>> dro.Decoding(temperature=0.0).max_length
    128
  """

  max_length: int = 128
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0
  beams: int = 1
  length_penalty: float = 1.0
  num_samples: int = 1
  batch_size: int = 32
  seed: int = 0

  def distribution(self) -> dict[str, Any]:
    """The settings that decide how probable each answer is."""
    return {name: x for name, x in vars(self).items() if name not in ('num_samples', 'batch_size', 'seed')}

  def key(self) -> str:
    """A hash of all that decides an answer, but for the number of answers."""
    decisive = {**self.distribution(), 'seed': self.seed}
    if self.beams == 1:  # No search: the key is that of earlier versions, which had none.
      decisive = {name: x for name, x in decisive.items() if name not in ('beams', 'length_penalty')}
    return files.hash_parts([files.json_text(decisive, sort_keys=True).encode()])


def refuse_beams(decoding: Decoding) -> None:
  """Refuses a beam search that is to draw."""
  beams, temperature, top_k, top_p = decoding.beams, decoding.temperature, decoding.top_k, decoding.top_p
  if beams > 1 and decoding.num_samples > 1:
    raise UsageError(
      f'beams={beams} with num_samples={decoding.num_samples}: a beam search finds one answer to a prompt. '
      'Pass num_samples=1 (--set SAMPLES=1), or beams=1 (--set BEAMS=1) and a temperature above 0 to draw '
      'several.'
    )
  if beams > 1 and (temperature != 0 or top_k or top_p != 1):
    raise UsageError(
      f'beams={beams} with temperature={temperature}, top_k={top_k}, top_p={top_p}: a beam search looks for '
      'the most probable response and draws nothing. Pass temperature=0 (--set TEMPERATURE=0) and '
      'leave top_k and top_p, or beams=1 (--set BEAMS=1) to draw.'
    )
