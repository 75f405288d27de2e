"""The files of tokenizers, local or with a scheme such as gs://."""

import os
import posixpath

from dro_jax.errors import UsageError
from dro_jax.files import is_remote


def read_model(path: str) -> bytes:
  """A vocabulary's file.

  Raises:
    UsageError: the file cannot be read.
  """
  try:
    if is_remote(path):
      import tensorflow as tf

      with tf.io.gfile.GFile(path, 'rb') as file:
        return file.read()
    with open(os.path.expanduser(path), 'rb') as file:
      return file.read()
  except Exception as error:  # TensorFlow has its own exceptions for every scheme.
    raise UsageError(
      f"vocabulary '{path}': cannot read it ({error}); pass the path of a SentencePiece model, of a "
      "tokenizer.json or of the folder of a Hugging Face tokenizer ('bytes' is the vocabulary of models that "
      'embed bytes, such as ByT5)'
    ) from error


def is_folder(path: str) -> bool:
  """Whether a path is a folder's; False where it cannot be reached, which reading it will explain."""
  if is_remote(path):
    import tensorflow as tf

    try:
      return tf.io.gfile.isdir(path)
    except Exception:  # TensorFlow has its own exceptions for every scheme.
      return False
  return os.path.isdir(os.path.expanduser(path))


def read_folder(folder: str, names: tuple[str, ...]) -> dict[str, bytes]:
  """The contents of those files that a folder has, by name; empty where it is no folder."""
  if is_remote(folder):
    import tensorflow as tf

    exists = tf.io.gfile.exists
  else:
    exists = os.path.isfile
  paths = {name: posixpath.join(os.path.expanduser(folder), name) for name in names}
  try:
    return {name: read_model(path) for name, path in paths.items() if exists(path)}
  except UsageError:
    raise
  except Exception as error:  # As above.
    raise UsageError(f"vocabulary '{folder}': cannot look into it ({error})") from error
