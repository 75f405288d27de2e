"""A checkpoint's policy: parameters, configuration, vocabulary."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from dro_jax.checkpoints import folders, orbax, trees
from dro_jax.checkpoints.metadata import REWARD_MODEL
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models.family import Config
from dro_jax.models.policy import saved_config
from dro_jax.models.stacks import Path, convert_leaves, in_stack
from dro_jax.types import Params


def load_policy(directory: str, config: Config, abstract: Params) -> Params:
  """The policy saved in `directory`, scanned or not, laid out as `abstract` says."""
  saved = policy_metadata(directory).get('model', {})
  if saved.get('scan_layers', False) == config.scan_layers:
    return orbax.load_params(directory, abstract)[0]
  target, placed = traverse_util.flatten_dict(abstract), {}
  for path, x in stream_policy(directory, scan=config.scan_layers):
    fits = path in target and target[path].shape == x.shape
    # Not device_put, which would first compare all hosts' copies.
    placed[path] = jax.make_array_from_callback(x.shape, target[path].sharding, x.__getitem__) if fits else x
  params = traverse_util.unflatten_dict(placed)
  trees.refuse_other_tree(directory, params, abstract)
  return params


def stream_policy(directory: str, *, scan: bool) -> Iterator[tuple[Path, np.ndarray]]:
  """The parameters of the policy saved in `directory`, scanned or not, without holding all at once."""
  together = lambda path: (in_stack(path) or (path,))[0] if scan else path  # noqa: E731
  for part in orbax.stream_params(directory, together):
    yield from convert_leaves(part, scan=scan)


def config_of(directory: str) -> Config:
  """The model configuration saved beside a checkpoint."""
  return saved_config(policy_metadata(directory))


def policy_metadata(directory: str) -> dict[str, Any]:
  """The metadata of a checkpoint that has a policy.

  Raises:
    UsageError: it is a reward model.
  """
  saved = folders.load_metadata(directory)
  if saved.get(REWARD_MODEL):
    raise UsageError(
      f'{directory} is a reward model, which gives texts a score and has no next-token probabilities: pass '
      'the checkpoint of a language model.'
    )
  return saved


def find_vocabulary(
  spec: str | vocabularies.Vocabulary | None, init_from: str | None
) -> vocabularies.Vocabulary:
  """The vocabulary that is named, or read already; else that of the checkpoint; else bytes.

  Raises:
    UsageError: see `vocabulary_of`.
  """
  if isinstance(spec, vocabularies.Vocabulary):
    return spec
  return vocabularies.vocabulary(spec or 'bytes') if init_from is None else vocabulary_of(init_from, spec)


def vocabulary_of(directory: str, spec: str | None = None) -> vocabularies.Vocabulary:
  """The vocabulary of a checkpoint: the one that `spec` names, or else the one that its metadata names.

  Raises:
    UsageError: none is named, or `spec` is not the vocabulary that the checkpoint was made with.
  """
  saved = folders.load_metadata(directory)
  if spec is None and saved.get('vocabulary') is None:
    raise UsageError(
      f'the checkpoint {directory} does not say which vocabulary it was made with: pass '
      f'{vocabularies.offer(saved["model"]["vocab_size"])} that it was trained with.'
    )
  vocabulary = vocabularies.vocabulary(spec or saved['vocabulary'])
  rows, mark = saved['model']['vocab_size'], saved.get('vocabulary_fingerprint')
  if mark is not None and mark != vocabulary.fingerprint:
    raise UsageError(
      f'the checkpoint {directory} was made with the vocabulary {saved["vocabulary"]!r}, not with '
      f'{vocabulary.spec!r}: its ids would stand for other text. Pass --set VOCABULARY={saved["vocabulary"]}.'
    )
  if vocabulary.size > rows:
    raise UsageError(
      f'the vocabulary {vocabulary.spec!r} has {vocabulary.size} ids, but the checkpoint {directory} embeds '
      f'{rows}: choose the vocabulary that it was trained with (--set VOCABULARY=...).'
    )
  return vocabulary
