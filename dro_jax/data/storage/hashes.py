"""Hashes of texts, and splits of prompts by them, the same in every run and file."""

import hashlib
from collections.abc import Iterable

import numpy as np


def text_digest(text: str, size: int = 16) -> bytes:
  """A hash of a text, `size` bytes, the same on every machine."""
  return hashlib.blake2b(text.encode(), digest_size=size).digest()


def digests(prompts: Iterable[str]) -> np.ndarray:
  """64-bit hashes of texts, the same on every machine."""
  values = bytearray()  # A list would be six times as large.
  for prompt in prompts:
    values += text_digest(prompt, 8)
  return np.frombuffer(bytes(values), '<u8')


def by_prompt_hash(prompts: Iterable[str] | np.ndarray, fraction: float | int, salt: str = '') -> np.ndarray:
  """True for prompts that are held out, bool `[N]`; the same prompt is always on the same side.

  Args:
    prompts: texts, or their `digests`.
    fraction: share of prompts to hold out, in [0, 1); a larger one holds out a superset.
    salt: a different salt gives a different split.
  """
  if not 0 <= fraction < 1:
    raise ValueError(f'the held-out fraction must be at least 0 and below 1, got {fraction}')
  hashes = prompts if isinstance(prompts, np.ndarray) else digests(prompts)
  return mix(hashes ^ digests([salt])[0]) < np.uint64(int(fraction * 2**64))


def folds(prompt_digests: np.ndarray, num_folds: int, salt: str = 'fold') -> np.ndarray:
  """The fold 0..K−1 of each prompt, `[N]`, by its hash: the same in every run and file."""
  return (mix(prompt_digests ^ digests([salt])[0]) % np.uint64(num_folds)).astype(np.int64)


def mix(hashes: np.ndarray) -> np.ndarray:
  """64-bit numbers whose every bit depends on all bits of the input (splitmix64's finaliser)."""
  mixed = hashes.astype(np.uint64)
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
    mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
  return mixed
