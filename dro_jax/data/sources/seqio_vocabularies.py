"""Every vocabulary as seqio's, for tasks and mixtures whose features are tokens.

dro_jax tokenises the text of a task itself (see `seqio_tasks`): where a task has tokenised it, its
`prompt_pretokenized` and `response_pretokenized` are read.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from dro_jax.data.text import vocabularies
from dro_jax.data.text.vocabularies import Vocabulary


def seqio_vocabulary(spec: str | Vocabulary) -> Any:
  """A `seqio.Vocabulary` with the ids of the vocabulary that `vocabularies.vocabulary` names."""
  return _class()(vocabularies.vocabulary(spec) if isinstance(spec, str) else spec)


def _encode_bytes(vocabulary: Vocabulary, text: Any) -> np.ndarray:
  """Ids of a text that TensorFlow passes: bytes in eager mode, an array of one in a dataset."""
  return vocabulary.encode(np.asarray(text, object).item().decode())


def _decode_rows(vocabulary: Vocabulary, rows: np.ndarray) -> np.ndarray:
  """The text of each row of ids, as TensorFlow's bytes."""
  texts = [vocabulary.decode(row).encode() for row in rows.reshape(-1, rows.shape[-1])]
  return np.array(texts, object).reshape(rows.shape[:-1])


@functools.cache
def _class() -> type:
  import seqio
  import tensorflow as tf

  def mapped(function: Callable[[Any], Any], x: Any, dtype: Any) -> Any:
    return tf.numpy_function(function, [x], dtype, stateful=False)

  class SeqioVocabulary(seqio.Vocabulary):
    """A vocabulary of dro_jax's."""

    def __init__(self, vocabulary: Vocabulary):
      super().__init__()
      self._vocabulary = vocabulary

    @property
    def bos_id(self) -> int | None:
      return self._vocabulary.prefix[0] if self._vocabulary.prefix else None

    @property
    def eos_id(self) -> int:
      return self._vocabulary.special.eos

    @property
    def pad_id(self) -> int:
      return self._vocabulary.special.pad

    @property
    def unk_id(self) -> int | None:
      return None if self._vocabulary.special.unknown < 0 else self._vocabulary.special.unknown

    @property
    def _base_vocab_size(self) -> int:
      return self._vocabulary.size

    def _encode(self, s: str) -> list[int]:
      return self._vocabulary.encode(s).tolist()

    def _decode(self, ids: Any) -> str:
      return self._vocabulary.decode(ids)

    def _encode_tf(self, s: Any) -> Any:
      encode = functools.partial(_encode_bytes, self._vocabulary)
      return tf.ensure_shape(mapped(encode, s, tf.int32), [None])

    def _decode_tf(self, ids: Any) -> Any:
      decode = functools.partial(_decode_rows, self._vocabulary)
      return tf.ensure_shape(mapped(decode, ids, tf.string), ids.shape[:-1])

    def __eq__(self, other: Any) -> bool:
      return type(other) is type(self) and other._vocabulary.fingerprint == self._vocabulary.fingerprint

    def __hash__(self) -> int:
      return hash(self._vocabulary.fingerprint)

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
      return seqio_vocabulary, (self._vocabulary.spec,)

  return SeqioVocabulary


__all__ = ['seqio_vocabulary']
