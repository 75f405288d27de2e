"""The `import_checkpoint` command: other projects' checkpoints as folders for `--init_from`."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from dro_jax import files
from dro_jax.checkpoints import adapters, folders, orbax
from dro_jax.checkpoints.huggingface import peft
from dro_jax.checkpoints.huggingface import read as huggingface
from dro_jax.checkpoints.huggingface import vocabulary as vocabulary_of
from dro_jax.checkpoints.t5x import read as t5x
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models.policy import config_metadata, saved_config
from dro_jax.models.t5.config import T5Config
from dro_jax.types import Params

_ACCEPTED = (
  'a Hugging Face folder (config.json and model.safetensors or pytorch_model.bin) or a name on its hub, or a '
  'T5X checkpoint: its msgpack file, or its folder checkpoint_STEP'
)

# The part of its base's metadata that an imported adapter has.
_OF_BASE = ('family', 'model', 'vocabulary', 'vocabulary_fingerprint')

_log = logging.getLogger(__name__)


class _Imported(NamedTuple):
  """Another project's model, the dtype of its stored weights, and its vocabulary, if known."""

  config: T5Config
  params: Params
  stored_dtype: str
  vocabulary: vocabulary_of.Tokenizer | None


def import_checkpoint(
  source: str,
  model_dir: str,
  vocabulary: str | None = None,
  mlp_activations: Sequence[str] | None = None,
  base: str | None = None,
) -> dict[str, Any]:
  """The `import_checkpoint` command: writes another project's T5 as a folder that `--init_from` takes.

  Args:
    source: a Hugging Face folder or name, or a T5X checkpoint, on disk or at gs://.
    model_dir: the folder to write, which must not exist.
    vocabulary: `bytes`, a SentencePiece file or a tokenizer.json; by default what the source names or its
      size implies. A file that the source names is copied beside the checkpoint, with added tokens.
    mlp_activations: of a T5X checkpoint, whose shapes do not imply them: `('gelu', 'linear')`.
    base: of a PEFT adapter, the folder into which its base was imported before.

  Raises:
    UsageError: the source cannot be imported, or the folder exists.
  """
  files.output_folder(model_dir, '--model_dir')
  target = files.absolute(model_dir)
  if target.exists():
    raise UsageError(f'{target} exists already: name a folder that does not, or remove it first.')
  if base is not None:
    return _import_adapter(source, base, target)
  imported = _load(source, mlp_activations)
  record = _find_vocabulary(source, imported, vocabulary)
  spec = str(target / record.file) + record.option if record.file else record.spec
  metadata = {
    **config_metadata(imported.config), 'vocabulary': spec,
    'vocabulary_fingerprint': record.fingerprint, 'stored_dtype': imported.stored_dtype,
  }  # fmt: skip
  with files.replacing(target) as staged:
    orbax.save_params(staged, imported.params, metadata)
    if record.file:
      (staged / record.file).write_bytes(record.content)
  return {
    'model_dir': str(target),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(imported.params)),
    'vocabulary': spec,
    'model': metadata['model'],
    'check': f'dro_jax check --init_from={target}',
  }


def _import_adapter(source: str, base: str, target: epath.Path) -> dict[str, Any]:
  """Writes a PEFT adapter as a folder that `--init_from` takes, with the place of its base."""
  folder, base = epath.Path(source).expanduser(), str(folders.find_checkpoint(base))
  if not (folder / peft.CONFIG).exists():
    raise UsageError(
      f'{source} has no {peft.CONFIG}, and LORA_BASE={base} is the base of an adapter: remove LORA_BASE, or '
      "pass the folder that peft's save_pretrained wrote."
    )
  if adapters.saved_adapter(base) is not None:
    raise UsageError(f'LORA_BASE={base} holds an adapter: pass the folder of a whole model.')
  saved = folders.load_metadata(base)
  settings, params = peft.read(folder, saved_config(saved))
  kept = {name: saved[name] for name in _OF_BASE if name in saved}
  kept['model'] = {**saved['model'], 'scan_layers': False}
  entry = adapters.Saved(settings, base, adapters.fingerprint_of(base), continues=True)
  with files.replacing(target) as staged:
    orbax.save_params(staged, params, kept | {adapters.ENTRY: entry.to_json()})
  return {
    'model_dir': str(target),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'rank': settings.rank, 'alpha': settings.alpha, 'targets': ','.join(settings.targets),
    'base': base,
    'check': f'dro_jax check --init_from={target}',
  }  # fmt: skip


def _load(source: str, mlp_activations: Sequence[str] | None) -> _Imported:
  """Reads whichever kind of checkpoint `source` is."""
  path = epath.Path(source).expanduser()
  _check_reach(source, path)
  if path.suffix in ('.bin', '.safetensors') and path.is_file():
    raise UsageError(f'{source} holds weights only: pass its folder, --init_from={path.parent}.')
  if problem := folders.adapter_problem(path):
    raise UsageError(problem)
  if (path / 'config.json').is_file() or not path.exists():
    if '://' in source:
      raise UsageError(f'{source}: there is no T5X checkpoint. Pass {_ACCEPTED}.')
    folder = huggingface.find_folder(source)
    config, params = huggingface.load(folder)
    return _Imported(config, params, huggingface.stored_dtype(folder), vocabulary_of.find(folder))
  file = t5x.find(path)
  if file is None:
    raise UsageError(f'{source} {_contents(path)}. Pass {_ACCEPTED}.')
  chosen = None if mlp_activations is None else tuple(mlp_activations)
  config, params, vocabulary = t5x.load(file, chosen)
  named = None if vocabulary is None else vocabulary_of.Tokenizer(vocabulary)
  return _Imported(config, params, t5x.stored_dtype(file), named)


def _check_reach(source: str, path: epath.Path) -> None:
  try:
    path.exists()
  except Exception as error:  # Every kind of storage raises its own class.
    raise UsageError(
      f'{source} cannot be reached from here ({error}): log in, or copy it to a disk and pass that folder.'
    ) from error


def _contents(folder: epath.Path) -> str:
  names = sorted(path.name for path in folder.iterdir())
  if {'params', 'metadata'} <= {*names} or 'checkpoints' in names:
    return 'is a checkpoint of dro_jax: pass it to --init_from as it is, without an import'
  if any('.ckpt' in name for name in names):
    return 'is a TensorFlow checkpoint: convert it with T5X (t5x/scripts/convert_tf_checkpoint.py)'
  return f'holds {", ".join(names[:8]) or "nothing"}, and no checkpoint that can be imported'


class _Vocabulary(NamedTuple):
  """A vocabulary to record: its spec, and the file to keep beside it, if the source named one."""

  spec: str
  fingerprint: str | None
  file: str | None = None
  content: bytes = b''
  option: str = ''


def _find_vocabulary(source: str, imported: _Imported, chosen: str | None) -> _Vocabulary:
  rows, named = imported.config.vocab_size, imported.vocabulary
  if chosen is None and named is None:
    raise UsageError(
      f'{source} has no {vocabulary_of.PIECES} or {vocabulary_of.TOKENIZER}, so the vocabulary of its {rows} '
      f'rows is unknown: pass {vocabularies.offer(rows)} that it was trained with.'
    )
  spec = chosen or named.spec
  try:
    vocabulary, record = _chosen(spec) if chosen or spec == 'bytes' else _named(named)
  except UsageError as error:
    if chosen or '://' not in spec:
      raise
    # The weights are useful without it, and a user may have it under another name.
    _log.warning(
      'the vocabulary of the source cannot be read here: pass --set VOCABULARY=FILE to this command, or to '
      'the commands that use the checkpoint (%s)', error,
    )  # fmt: skip
    return _Vocabulary(spec, None)
  if vocabulary.size > rows:
    raise UsageError(
      f'the vocabulary {spec!r} has {vocabulary.size} ids, but {source} embeds {rows}: pass the vocabulary '
      'that the source was trained with as --set VOCABULARY=FILE.'
    )
  return record


def _chosen(spec: str) -> tuple[vocabularies.Vocabulary, _Vocabulary]:
  vocabulary = vocabularies.vocabulary(spec)
  return vocabulary, _Vocabulary(spec, vocabulary.fingerprint)


def _named(named: vocabulary_of.Tokenizer) -> tuple[vocabularies.Vocabulary, _Vocabulary]:
  """The vocabulary that the source names, and its file."""
  spec = named.spec
  if named.made:
    vocabulary, content = vocabularies.from_json(named.made, spec), files.json_text(named.made).encode()
  else:
    vocabulary = vocabularies.vocabulary(spec)
    content = vocabularies.read_model(vocabularies.parse(spec)[0])
  if named.made or vocabularies.is_json(spec):
    return vocabulary, _Vocabulary(spec, vocabulary.fingerprint, vocabulary_of.TOKENIZER, content)
  _, mark, option = spec.partition('#')
  return vocabulary, _Vocabulary(spec, vocabulary.fingerprint, vocabulary_of.PIECES, content, mark + option)
