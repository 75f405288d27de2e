"""Triplets as seqio tasks: their features, and the registration of files or of any stream of triplets."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dro_jax.data.records import comparisons
from dro_jax.data.records import triplets as sources
from dro_jax.data.storage import fingerprints
from dro_jax.data.text import chat
from dro_jax.errors import UsageError

_TEXTS = ('id', 'prompt', 'response')


def text_features() -> dict[str, Any]:
  """`output_features` for a seqio task of triplets: texts and a number, which the token table tokenises."""
  import seqio
  import tensorflow as tf

  def feature(dtype: tf.DType) -> Any:
    return seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, rank=0, dtype=dtype)

  return {'prompt': feature(tf.string), 'response': feature(tf.string), 'reward': feature(tf.float32)}


def register(
  name: str,
  files: Mapping[str, str | Sequence[str]],
  *,
  columns: str | Mapping[str, str] | None = None,
  map_reward: str | Mapping[str, float | int] | None = None,
  chat_template: str | None = chat.TEMPLATE,
  preprocessors: Sequence[Callable[..., Any]] = (),
) -> Any:
  """Registers triplet files as a seqio task, for mixtures and preprocessors.

  Args:
    name: the task's.
    files: by split: {'train': 'a.jsonl', 'validation': 'b.jsonl'}.
    columns, map_reward: as `triplets.load_triplets`.
    chat_template: of the turns of conversations; None keeps them for a model's own template (see
      `text.chat`).
    preprocessors: from a tf.data.Dataset of {id, prompt, response, reward, comparison} to another.
  """
  options = {'columns': columns, 'map_reward': map_reward, 'chat_template': chat_template}

  def triplets(split: str) -> Iterator[dict[str, Any]]:
    for record in sources.read_triplets(files[split], **options):
      fields = {field: getattr(record, field) for field in (*_TEXTS, 'reward')}
      yield fields | {comparisons.COLUMN: record.columns.get(comparisons.COLUMN, math.nan)}

  def fingerprint(split: str) -> str:
    return fingerprints.fingerprint(
      fingerprints.files_fingerprint(sources.expand(files[split])), sorted(options.items())
    )

  return add(
    name,
    triplets,
    fingerprint,
    splits=list(files),
    columns=(comparisons.COLUMN,),
    preprocessors=preprocessors,
  )


def add(
  name: str,
  triplets: Callable[[str], Iterator[Mapping[str, Any]]],
  fingerprint: Callable[[str], str],
  *,
  splits: Sequence[str],
  columns: Sequence[str] = (),
  preprocessors: Sequence[Callable[..., Any]] = (),
) -> Any:
  """Registers a stream of triplets as a seqio task.

  Args:
    name: the task's.
    triplets: from a split to its triplets: id, prompt, response, reward and the columns.
    fingerprint: from a split to a hash of its triplets; a new fingerprint gives a new token table.
    splits: names of the splits.
    columns: other numbers of every triplet; NaN where a triplet has none.
    preprocessors: from a tf.data.Dataset of triplets to another.
  """
  import seqio

  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(_dataset(triplets, fingerprint, columns), splits=list(splits)),
    preprocessors=list(preprocessors),
    output_features=text_features(),
  )


def _dataset(
  triplets: Callable[[str], Iterator[Mapping[str, Any]]],
  fingerprint: Callable[[str], str],
  columns: Sequence[str],
) -> Callable[..., Any]:
  """A function that makes the tf.data.Dataset of a split, for seqio."""
  import tensorflow as tf

  signature = {field: tf.TensorSpec((), tf.string) for field in _TEXTS}
  # Numbers of comparisons are too large for float32.
  types = {comparisons.COLUMN: tf.float64}
  signature |= {field: tf.TensorSpec((), types.get(field, tf.float32)) for field in ('reward', *columns)}

  def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
    del shuffle_files, seed  # The plan shuffles.
    dataset.error = None  # type: ignore[attr-defined]

    def examples() -> Iterator[Mapping[str, Any]]:
      try:
        yield from triplets(split)
      except UsageError as error:
        # tf.data would bury it in a long traceback; the reader of the task raises this error again.
        dataset.error = error  # type: ignore[attr-defined]
        raise

    return tf.data.Dataset.from_generator(examples, output_signature=signature)

  dataset.fingerprint, dataset.error = fingerprint, None  # type: ignore[attr-defined]
  return dataset
