"""How many response tokens of a row are projected to the vocabulary at once."""

import math

from dro_jax.models import layers

# Most bytes of the float32 logits of one device that are projected at once, unless a number is asked for: a
# twelfth of the memory of the smallest chip that preflight knows. So two rows of 512 tokens of the largest
# vocabulary, Gemma's, are one chunk. Each chunk costs its forward pass again, and a mesh that cuts parameters
# gathers the vocabulary's table and reduces its gradient once a chunk, so that few large chunks are best
# (docs/results/performance.md).
MOST_BYTES = 5 * 2**28


def choose_chunk_size(
  asked: int | None, rows: int, length: int, vocab_size: int, policies: int = 1
) -> int | None:
  """The response tokens of each row that are projected at once, on the mesh in use.

  Args:
    asked: this number; 0 for all of them; `None` for the fewest equal chunks whose logits take at most
      MOST_BYTES of a device.
    rows: rows of the batch, over all devices.
    length: response tokens of a row.
    vocab_size: logits of a token.
    policies: how many have their logits there at once: 2 with next-token KL, whose reference has them too.

  Returns:
    `None` where all are projected at once.
  """
  if asked is not None:
    return asked or None
  row_shards, vocab_shards = layers.num_parts('activation_batch', 'activation_vocab')
  token_bytes = 4 * policies * math.ceil(rows / row_shards) * math.ceil(vocab_size / vocab_shards)
  chunks = math.ceil(length / max(MOST_BYTES // token_bytes, 1))
  return None if chunks <= 1 else math.ceil(length / chunks)
