"""The `train_vocabulary` command: trains a SentencePiece model on your data, with the conventions of T5."""

import io
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from dro_jax import files
from dro_jax.data.sources import find
from dro_jax.data.sources.task_modules import import_modules
from dro_jax.data.text import chat, vocabularies
from dro_jax.errors import UsageError
from dro_jax.names import SpecialTokens

_T5 = SpecialTokens()
_THREADS = 16  # Changes the result: each thread sums its part.
_TOO_MANY = re.compile(r'Vocabulary size too high .* a value <= (\d+)')
_TOO_FEW = re.compile(r'Vocabulary size is smaller than required_chars\. \d+ vs (\d+)')
_MEASURED = 10_000  # At most so many texts are encoded to measure characters by token.


def train_vocabulary(
  triplets: str | Sequence[str],
  output: str,
  *,
  size: int = 8000,
  keep_whitespace: bool = False,
  columns: str | None = None,
  chat_template: str = chat.TEMPLATE,
  data_dir: str | None = None,
  task_modules: str | Sequence[str] = (),
) -> dict[str, Any]:
  """Trains a unigram SentencePiece model on every distinct prompt and response, and writes it, whole.

  Pad is 0, EOS 1, unknown 2, there is no BOS, and text without a piece is spelt in bytes. The same texts make
  the same file.

  Args:
    triplets: files, or names of data sets, as for `train`; rewards are not read.
    output: the new file, NAME.model.
    size: pieces. Reading the file adds 100 extra ids to them, as T5 does.
    keep_whitespace: decoding returns the same text, with line breaks and blanks; T5's vocabulary turns each
      run of them into a blank, and unifies look-alike characters (NFKC).
    columns: the files' own names: 'prompt=question,response=answer'.
    chat_template: of each turn of a prompt that is a conversation.
    data_dir: folder of public data sets got by hand.
    task_modules: your modules that register seqio tasks.

  Returns:
    The file, the amount of text, and characters by token.

  Raises:
    UsageError: the file exists or cannot be written, the data cannot be read, or its text makes no vocabulary
      of that size; the message names a possible size.
  """
  target = _target(output)
  import_modules(task_modules)
  source = find.find(triplets, columns=columns, chat_template=chat_template, data_dir=data_dir)
  texts = list(_texts(source))
  if not texts:
    raise UsageError(f'{source.name} has no records, and a vocabulary needs text: pass other triplets.')
  model = _fit(texts, size, keep_whitespace)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(target, model)
  except OSError as error:
    raise UsageError(f'{target} cannot be written ({error}): pass another --output.') from error
  vocabulary = vocabularies.vocabulary(str(target))
  measured = texts[:_MEASURED]
  tokens, characters = sum(map(len, vocabulary.encode_batch(measured))), sum(map(len, measured))
  return {
    'vocabulary': str(target), 'pieces': size, 'ids': vocabulary.size, 'fingerprint': vocabulary.fingerprint,
    'texts': len(texts), 'characters': sum(map(len, texts)),
    'characters_per_token': characters / max(tokens, 1), 'use': f'--set VOCABULARY={output}',
  }  # fmt: skip


def _target(output: str) -> pathlib.Path:
  """The model's file, checked before the training."""
  if '#' in output or ',' in output:
    raise UsageError(f'--output={output}: the name has # or a comma: pass NAME.model without either.')
  target = files.output_file(output)
  if target.exists() or target.is_symlink():
    raise UsageError(
      f'--output={output} exists, and replacing it would change the ids of runs that read it: pass another '
      'name, or remove it.'
    )
  return target


def _texts(source: find.Source) -> Iterator[str]:
  """Every distinct prompt, as a model reads it, and every response."""
  seen = set()
  for record in source.records():
    if record.prompt not in seen:
      seen.add(record.prompt)
      yield record.prompt
    yield record.response


def _fit(texts: Sequence[str], size: int, keep_whitespace: bool) -> bytes:
  try:
    return _sentencepiece(texts, size, keep_whitespace)
  except RuntimeError as error:
    about = f'VOCABULARY_SIZE={size}: these {len(texts)} texts ({sum(map(len, texts))} characters)'
    if needed := _TOO_FEW.search(str(error)):
      raise UsageError(
        f'{about} need {needed[1]} pieces at least: 256 bytes, 3 for padding, end and unknown, and one for '
        f'each character but the rarest. Pass --set VOCABULARY_SIZE={needed[1]} or more.'
      ) from error
    if not _TOO_MANY.search(str(error)):
      raise UsageError(f'{about} make no vocabulary: {error}') from error
    largest = _largest(texts, error, keep_whitespace)
    raise UsageError(
      f'{about} make {largest} pieces at most: pass --set VOCABULARY_SIZE={largest} or fewer, or more text.'
    ) from error


def _largest(texts: Sequence[str], error: RuntimeError, keep_whitespace: bool) -> int:
  """The largest possible size: tries the size that the trainer names, at which it may name a smaller one."""
  largest = int(_TOO_MANY.search(str(error))[1])
  try:
    _sentencepiece(texts, largest, keep_whitespace)
  except RuntimeError as again:
    if named := _TOO_MANY.search(str(again)):
      return largest if int(named[1]) >= largest else _largest(texts, again, keep_whitespace)
  return largest


def _sentencepiece(texts: Sequence[str], size: int, keep_whitespace: bool) -> bytes:
  import sentencepiece

  # The trainer takes no sentence with a line break in it.
  lines = (line for text in texts for line in text.splitlines() if line.strip())
  kept = {'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False} if keep_whitespace else {}
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.Train(
    sentence_iterator=lines, model_writer=model, vocab_size=size, model_type='unigram', byte_fallback=True,
    pad_id=_T5.pad, eos_id=_T5.eos, unk_id=_T5.unknown, bos_id=-1, num_threads=_THREADS, minloglevel=2,
    max_sentence_length=2**30, **kept,
  )  # fmt: skip
  return model.getvalue()
