"""What is exported, transformers loads with the same logits, and our own readers to the bit."""

import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import traverse_util

from dro_jax.checkpoints import export_checkpoint as exporters
from dro_jax.checkpoints import folders, orbax
from dro_jax.checkpoints import import_checkpoint as importers
from dro_jax.checkpoints.huggingface import t5 as t5_format
from dro_jax.checkpoints.huggingface import write as huggingface
from dro_jax.checkpoints.t5x import read as t5x
from dro_jax.data.text import tokenizer_json, vocabularies
from dro_jax.errors import UsageError
from dro_jax.models.stacks import convert_layers
from dro_jax.models.t5 import names
from dro_jax.models.t5.config import T5Config
from tests.data.text.test_vocabularies import train
from tests.torch_t5 import (
  KINDS,
  logits,
  make_rows,
  make_torch,
  relative_error,
  torch,
  torch_logits,
  transformers,
)

KEPT = {'byte_fallback': True, 'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False}
CONFIG = T5Config(
  vocab_size=384, emb_dim=16, num_heads=3, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=3,
  relative_attention_num_buckets=8, relative_attention_max_distance=20,
)  # fmt: skip


def random_tree(config=CONFIG):
  rng = np.random.default_rng(0)
  flat = {path: 0.3 * rng.normal(size=shape) for path, shape in names.shapes(config).items()}
  return traverse_util.unflatten_dict({path: x.astype(np.float32) for path, x in flat.items()})


def save(folder, config=CONFIG, vocabulary='bytes', **metadata):
  """A folder as `import_checkpoint` writes it; returns its parameters."""
  params = random_tree(config)
  saved = {'model': dataclasses.asdict(config), 'vocabulary': vocabulary} | metadata
  orbax.save_params(folder, params, saved)
  return params


def export(source, output, *arguments, **settings):
  return exporters.export_checkpoint(str(source), str(output), *arguments, **settings)


def load_torch(folder, kind=transformers.T5ForConditionalGeneration):
  model, info = kind.from_pretrained(folder, output_loading_info=True)
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info
  return model.eval()


def tensors(folder):
  found = {}
  for file in folder.glob('*.safetensors'):
    found |= safetensors.numpy.load_file(file)
  return found


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('kind', list(KINDS))
def test_import_from_and_export_to_hugging_face_are_bit_equal(tmp_path, kind, dtype):
  make_torch(kind).to(dtype).save_pretrained(tmp_path / 'theirs')
  importers.import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'ours'), 'bytes')
  export(tmp_path / 'ours', tmp_path / 'back')
  expected, actual = tensors(tmp_path / 'theirs'), tensors(tmp_path / 'back')
  assert actual.keys() == expected.keys()
  for name, weight in expected.items():
    assert actual[name].dtype == weight.dtype
    np.testing.assert_array_equal(actual[name], weight)
  model = load_torch(tmp_path / 'back')
  assert model.dtype == dtype
  written = json.loads((tmp_path / 'back' / 'config.json').read_text())
  theirs = json.loads((tmp_path / 'theirs' / 'config.json').read_text())
  sizes = ('d_model', 'd_kv', 'd_ff', 'num_heads', 'num_layers', 'num_decoder_layers', 'vocab_size')
  assert {key: written[key] for key in sizes} == {key: theirs[key] for key in sizes}


@pytest.mark.parametrize('per_layer', [False, True], ids=['T5', 'UMT5'])
def test_logits_equal_torch(tmp_path, per_layer):
  """transformers' umT5 is an independent account of a bias in each layer."""
  config = dataclasses.replace(CONFIG, scan_layers=True, relative_bias_per_layer=per_layer)
  params = save(tmp_path / 'ours', config)
  export(tmp_path / 'ours', tmp_path / 'theirs')
  kind = transformers.UMT5ForConditionalGeneration if per_layer else transformers.T5ForConditionalGeneration
  model, rows = load_torch(tmp_path / 'theirs', kind), make_rows([30, 7], [30, 3])
  model.config.tie_word_embeddings = False  # transformers 5 would scale an umT5's logits.
  expected = torch_logits(model, rows)
  assert expected.std() > 0.1
  assert relative_error(logits(config, params, rows), expected, rows) < 1e-5
  again = importers.huggingface.load(tmp_path / 'theirs')[1]
  jax.tree.map(np.testing.assert_array_equal, again, convert_layers(params, scan=False))


def test_large_models_are_written_in_shards(tmp_path):
  params = random_tree()
  (tmp_path / 'theirs').mkdir()
  flat = traverse_util.flatten_dict(params)
  stream = lambda scan: iter(flat.items())  # noqa: E731
  huggingface.write(
    epath.Path(tmp_path / 'theirs'), stream, CONFIG, dtype='float32', vocabulary=None, shard_bytes=30_000
  )
  index = json.loads((tmp_path / 'theirs' / 'model.safetensors.index.json').read_text())
  files = sorted(tmp_path.glob('theirs/*.safetensors'))
  assert len(files) > 2
  assert {file.name for file in files} == set(index['weight_map'].values())
  assert all(file.stat().st_size < 30_000 + 8_000 for file in files)
  assert index['metadata']['total_size'] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  load_torch(tmp_path / 'theirs')
  jax.tree.map(np.testing.assert_array_equal, importers.huggingface.load(tmp_path / 'theirs')[1], params)


@pytest.mark.parametrize('scan', [False, True], ids=['unrolled', 'scanned'])
@pytest.mark.parametrize('theirs', [False, True], ids=['t5', 'scalable_t5'])
def test_export_to_and_import_from_t5x_are_bit_equal(tmp_path, scan, theirs):
  params = save(tmp_path / 'ours', dataclasses.replace(CONFIG, scan_layers=scan), step=5)
  export(tmp_path / 'ours', tmp_path / 'theirs', 't5x', scan_layers=theirs)
  file = t5x.find(epath.Path(tmp_path / 'theirs'))
  assert file == epath.Path(tmp_path / 'theirs' / 'checkpoint_5' / 'checkpoint')
  found, back, vocabulary = t5x.load(file)
  config = dataclasses.replace(CONFIG, scan_layers=theirs, relative_attention_max_distance=128)
  assert (found, vocabulary) == (config, 'bytes')
  jax.tree.map(np.testing.assert_array_equal, back, convert_layers(params, scan=theirs))
  kernel = tmp_path / 'theirs' / 'checkpoint_5' / 'target.encoder.encoder.attention.out.kernel' / '.zarray'
  if theirs:
    assert json.loads(kernel.read_text())['shape'] == [3, 2, 4, 16]  # Heads, layers, width, model.


def test_a_bytes_vocabulary_is_exported_as_byt5s_tokenizer(tmp_path):
  save(tmp_path / 'ours')
  export(tmp_path / 'ours', tmp_path / 'theirs')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'theirs')
  for text in ('Grüße, 你好', '</s> <pad> <extra_id_0>', '<unk>x'):
    assert tokenizer(text)['input_ids'] == [*vocabularies.vocabulary('bytes').encode(text), 1]
  assert len(tokenizer) == 384


@pytest.fixture(scope='module', params=[{}, {'byte_fallback': True}, KEPT], ids=['T5', 'bytes', 'blanks'])
def pieces(request, tmp_path_factory):
  """A SentencePiece model whose pieces spell what T5's do, bytes for the rest, or blanks too."""
  return train(tmp_path_factory.mktemp('pieces'), vocab_size=340, hard_vocab_limit=False, **request.param)


def test_transformers_tokenises_an_export_as_dro_jax_does(tmp_path, pieces):
  config = dataclasses.replace(CONFIG, vocab_size=460)
  save(tmp_path / 'ours', config, vocabulary=f'{pieces}#extra_ids=10')
  notes = export(tmp_path / 'ours', tmp_path / 'theirs')['notes']
  assert [note for note in notes if 'other ids' in note] == []
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'theirs')
  words = vocabularies.vocabulary(f'{pieces}#extra_ids=10')
  assert len(tokenizer) == words.size
  assert tokenizer.convert_tokens_to_ids('<extra_id_0>') == words.size - 1
  for text in (
    *tokenizer_json.PROBES.values(),
    '',
    '  ',
    '\n',
    '</s>',
    '<pad>',
    '<extra_id_0>',
    '🙂\n\n  x ',
  ):
    ids = [*words.encode(text), 1]
    assert tokenizer(text)['input_ids'] == ids, text
    if 2 not in ids:
      assert tokenizer.decode(ids, skip_special_tokens=True) == words.decode(ids)
  again = importers.import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'again'))
  assert folders.load_metadata(tmp_path / 'again')['vocabulary_fingerprint'] == words.fingerprint
  assert again['vocabulary'].endswith('spiece.model#extra_ids=10')


def test_the_t5_tokenizer_of_transformers_reads_plain_text_alike(tmp_path, pieces):
  """transformers 5 makes it of the pieces alone, without the rest of tokenizer.json, as the note says."""
  save(tmp_path / 'ours', dataclasses.replace(CONFIG, vocab_size=460), vocabulary=pieces)
  (note,) = export(tmp_path / 'ours', tmp_path / 'theirs')['notes']
  assert note.startswith('load its tokenizer with AutoTokenizer')
  tokenizer = transformers.T5TokenizerFast.from_pretrained(tmp_path / 'theirs')
  for text in ('A quick brown fox', 'fox A bad face', 'x <extra_id_0> fox'):
    assert tokenizer(text)['input_ids'] == [*vocabularies.vocabulary(pieces).encode(text), 1]


def test_tokens_that_transformers_reads_otherwise_are_noted(tmp_path, pieces, monkeypatch):
  monkeypatch.setattr(tokenizer_json, 'unlike', lambda ours, made: ['emoji', 'literal ▁'])
  save(tmp_path / 'ours', dataclasses.replace(CONFIG, vocab_size=460), vocabulary=pieces)
  assert export(tmp_path / 'ours', tmp_path / 'theirs')['notes'][1] == (
    'tokenizer.json gives other ids than dro_jax for emoji, literal ▁'
  )


def test_added_tokens_survive_export_and_import(tmp_path, pieces):
  content = pathlib.Path(pieces).read_bytes()
  size = vocabularies.vocabulary(pieces).size
  added = [{'id': size, 'content': '{'}, {'id': size + 1, 'content': '<|user|>'}]
  file = tmp_path / 'own.json'
  file.write_text(json.dumps(tokenizer_json.from_sentencepiece(content, 100, added)))
  save(tmp_path / 'ours', dataclasses.replace(CONFIG, vocab_size=480), vocabulary=str(file))
  export(tmp_path / 'ours', tmp_path / 'theirs')
  tokenizer, words = (
    transformers.AutoTokenizer.from_pretrained(tmp_path / 'theirs'),
    vocabularies.vocabulary(str(file)),
  )
  text = '<|user|> a{ fox } </s>'
  assert {size, size + 1} <= set(words.encode(text).tolist())
  assert tokenizer(text)['input_ids'] == [*words.encode(text), 1]
  again = importers.import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'again'))
  assert again['vocabulary'] == str(tmp_path / 'again' / 'tokenizer.json')
  assert folders.load_metadata(tmp_path / 'again')['vocabulary_fingerprint'] == words.fingerprint
  assert 'without its vocabulary' in export(tmp_path / 'again', tmp_path / 't5x', 't5x')['notes'][0]


def test_a_vocabulary_without_its_file_is_noted_as_left_out(tmp_path):
  save(tmp_path / 'ours', vocabulary=str(tmp_path / 'gone.model'))
  (note,) = export(tmp_path / 'ours', tmp_path / 'without')['notes']
  assert note.startswith('without a tokenizer')


def test_parts_that_are_left_out_are_noted_and_logged(tmp_path, caplog):
  save(tmp_path / 'ours', step=3, value={'readout': 'prompt'})
  with caplog.at_level(logging.INFO, 'dro_jax'):
    report = export(tmp_path / 'ours', tmp_path / 'theirs')
  assert report['notes'] == [
    'without the value network, which only dro_jax knows', 'without the optimisers and the reference',
  ]  # fmt: skip
  assert 'without the value network' in caplog.text


def test_settings_that_cannot_be_exported_are_refused(tmp_path):
  save(tmp_path / 'ours', dataclasses.replace(CONFIG, mlp_activations=('linear', 'gelu')))
  with pytest.raises(UsageError, match='one activation, alone or times a linear one'):
    export(tmp_path / 'ours', tmp_path / 'theirs')
  assert not (tmp_path / 'theirs').exists()
  tied = dataclasses.replace(CONFIG, relative_bias_per_layer=True, logits_via_embedding=True)
  with pytest.raises(UsageError, match='no umT5 of transformers ties'):
    t5_format.config_json(tied, 'float32')
  with pytest.raises(UsageError, match='pass one of'):
    export(tmp_path / 'ours', tmp_path / 'theirs', 'onnx')
  with pytest.raises(UsageError, match='is not a type for weights: pass one of'):
    export(tmp_path / 'ours', tmp_path / 'theirs', dtype='int8')
  (tmp_path / 'theirs').mkdir()
  with pytest.raises(UsageError, match='exists already'):
    export(tmp_path / 'ours', tmp_path / 'theirs')
