"""T5X checkpoints, written here as T5X writes them, give the tree that was written, in every layout."""

import dataclasses
import logging
import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from etils import epath
from flax import serialization, traverse_util

from dro_jax.checkpoints import export_checkpoint as exporters
from dro_jax.checkpoints import import_checkpoint as importers
from dro_jax.checkpoints import orbax
from dro_jax.checkpoints.t5x import read as t5x
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.evaluation import check
from dro_jax.models.stacks import convert_layers
from dro_jax.models.t5 import names
from dro_jax.models.t5.config import T5Config

CONFIG = T5Config(
  vocab_size=384, emb_dim=16, num_heads=3, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=4,
  relative_attention_num_buckets=8,
)  # fmt: skip
PLAIN = dataclasses.replace(CONFIG, mlp_activations=('relu',), logits_via_embedding=True)


def random_tree(config=CONFIG, seed=0):
  rng = np.random.default_rng(seed)
  flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in names.shapes(config).items()}
  return traverse_util.unflatten_dict(flat)


def scalable(tree, axis=1):
  """A tree as examples/scalable_t5 has it: a bias in each layer, heads apart, layers stacked on `axis`."""
  flat = {}
  for path, x in traverse_util.flatten_dict(convert_layers(tree, scan=True)).items():
    layers = {'encoder': 2, 'decoder': 4}.get(path[0])
    if path[1:] == names.RELATIVE_BIAS:
      path, x = (path[0], *path), np.stack([x] * layers, axis=1)
    elif path[-1] == 'kernel' and path[-2] == 'out':
      x = np.stack([x[:, i].reshape(3, 4, 16) for i in range(layers)], axis=1)
    elif path[-1] == 'kernel' and path[0] == path[1] and 'attention' in path[2]:
      x = x.reshape(16, layers, 3, 4)
    flat[path] = np.moveaxis(x, 1, axis) if path[0] == path[1] else x
  return traverse_util.unflatten_dict(flat)


def slots(tree):
  """Adafactor's, which no import reads."""
  return jax.tree.map(lambda x: {'m': np.zeros(1, np.float32), 'v': np.zeros(x.shape, np.float32)}, tree)


def write_msgpack(file, target, leaves=None):
  state = {'step': np.int32(7), 'param_states': slots(target)}
  content = {'version': 3, 'optimizer': {'target': leaves or target, 'state': state}}
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(serialization.msgpack_serialize(content))
  return file


def write_zarr(folder, target, *, dtype=np.float32, driver='file'):
  """T5X's folder; the specs' driver is that of whoever wrote it."""
  specs = {}
  for path, x in traverse_util.flatten_dict(target).items():
    name, x = '.'.join(('target', *path)), np.asarray(x, dtype)
    metadata = {'chunks': [-(-n // 2) for n in x.shape], 'compressor': {'id': 'gzip'}, 'shape': [*x.shape]}
    spec = {'driver': 'zarr', 'dtype': x.dtype.name, 'metadata': metadata}
    here = {'driver': 'file', 'path': str(folder / name)}
    tensorstore.open(spec | {'kvstore': here}, create=True).result().write(x).result()
    there = {'driver': driver, 'path': f'{name}/'} | ({'bucket': 'theirs'} if driver == 'gcs' else {})
    specs[path] = spec | {'kvstore': there}
  return write_msgpack(folder / 'checkpoint', target, traverse_util.unflatten_dict(specs))


def write_placeholders(folder, target):
  """Orbax's folder, of T5X since 2023."""
  file = write_zarr(folder, target)
  flat = {path: f'PLACEHOLDER://target.{".".join(path)}' for path in traverse_util.flatten_dict(target)}
  content = {'target': traverse_util.unflatten_dict(flat), 'state': {'step': 'PLACEHOLDER://state.step'}}
  file.write_bytes(serialization.msgpack_serialize(content))


WRITERS = {
  'msgpack': lambda folder, tree: write_msgpack(folder / 'checkpoint_7', tree),
  'zarr': lambda folder, tree: write_zarr(folder / 'checkpoint_7', tree),
  'zarr by a bucket': lambda folder, tree: write_zarr(folder / 'checkpoint_7', tree, driver='gcs'),
  'orbax': lambda folder, tree: write_placeholders(folder / 'checkpoint_7' / 'state', tree),
  'scanned': lambda folder, tree: write_zarr(folder / 'checkpoint_7', scalable(tree)),
  'scanned msgpack on axis 0': lambda folder, tree: write_msgpack(folder / 'checkpoint_7', scalable(tree, 0)),
}


def equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('writer', list(WRITERS))
@pytest.mark.parametrize('config', [CONFIG, PLAIN], ids=['1.1', '1.0'])
def test_every_layout_gives_the_tree_that_was_written(tmp_path, writer, config):
  tree = random_tree(config)
  WRITERS[writer](tmp_path, tree)
  found, params, vocabulary = t5x.load(t5x.find(epath.Path(tmp_path)))
  scanned = writer.startswith('scanned')
  assert found == dataclasses.replace(config, scan_layers=scanned)
  assert vocabulary == 'bytes'
  equal(params, convert_layers(tree, scan=scanned))
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_the_newest_step_is_taken(tmp_path):
  for step in (9, 10):
    write_msgpack(tmp_path / f'checkpoint_{step}', random_tree(seed=step))
  _, params, _ = t5x.load(t5x.find(epath.Path(tmp_path)))
  equal(params, random_tree(seed=10))


def test_arrays_that_flax_cut_into_pieces_are_read_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(serialization, 'MAX_CHUNK_SIZE', 256)
  file = write_msgpack(tmp_path / 'checkpoint_0', random_tree())
  assert b'__msgpack_chunked_array__' in file.read_bytes()
  _, params, _ = t5x.load(epath.Path(file))
  equal(params, random_tree())


def test_biases_that_differ_by_layer_are_kept(tmp_path):
  config = dataclasses.replace(CONFIG, relative_bias_per_layer=True, scan_layers=True)
  write_zarr(tmp_path / 'checkpoint_0', random_tree(config))
  found, params, _ = t5x.load(t5x.find(epath.Path(tmp_path)))
  assert found == config
  equal(params, random_tree(config))


def test_an_import_logs_what_it_left_out_and_assumed(tmp_path, caplog):
  tree = random_tree()
  write_zarr(tmp_path / 'checkpoint_7', tree, dtype=ml_dtypes.bfloat16)
  with caplog.at_level(logging.INFO, 'dro_jax'):
    report = importers.import_checkpoint(str(tmp_path / 'checkpoint_7'), str(tmp_path / 'ours'))
  count = len(jax.tree.leaves(tree))
  assert f'{2 * count + 2} arrays of the optimiser are left out' in caplog.text
  assert "taken for ('gelu', 'linear')" in caplog.text
  assert report['check'] == f'dro_jax check --init_from={tmp_path / "ours"}'
  params, metadata = orbax.load_params(tmp_path / 'ours')
  equal(params, jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), tree))
  assert metadata['stored_dtype'] == 'bfloat16'
  assert metadata['vocabulary'] == report['vocabulary'] == 'bytes'


def test_a_gin_file_beside_a_checkpoint_names_activations_and_vocabulary(tmp_path, caplog):
  file = write_msgpack(tmp_path / 'checkpoint_0', random_tree())
  (tmp_path / 'model_config.gin').write_text(
    "# mlp_activations = ('relu', 'linear')\nnetwork.T5Config:\n  mlp_activations = ('silu', 'linear')\n"
    'seqio.SentencePieceVocabulary.sentencepiece_model_file = "there.model"\n'
    'seqio.SentencePieceVocabulary.extra_ids = 0\n'
  )
  with caplog.at_level(logging.INFO, 'dro_jax'):
    config, _, vocabulary = t5x.load(epath.Path(file))
  assert (config.mlp_activations, vocabulary) == (('silu', 'linear'), 'there.model#extra_ids=0')
  assert 'taken for' not in caplog.text
  chosen, _, _ = t5x.load(epath.Path(file), ('relu', 'linear'))
  assert chosen.mlp_activations == ('relu', 'linear')
  with pytest.raises(UsageError, match='its MLPs have 2 inputs, but 1 activations'):
    t5x.load(epath.Path(file), ('relu',))


@pytest.mark.parametrize('rows, address', [(32128, 'cc_all.32000'), (250112, 'mc4.250000'), (256384, 'umt5')])
def test_released_sizes_name_their_vocabulary(rows, address):
  source = t5x.Source(epath.Path('checkpoint'), {}, 0, '')
  assert address in t5x.vocabulary(source, dataclasses.replace(CONFIG, vocab_size=rows))
  assert t5x.vocabulary(source, dataclasses.replace(CONFIG, vocab_size=1000)) is None


def test_a_vocabulary_that_cannot_be_read_is_recorded_with_a_warning(tmp_path, caplog, monkeypatch):
  write_msgpack(tmp_path / 'checkpoint_0', random_tree())
  monkeypatch.setitem(t5x.VOCABULARIES, 384, 'absent://vocabulary.model')

  def refuse(spec):
    raise UsageError(f'{spec} is far away')

  monkeypatch.setattr(vocabularies, 'vocabulary', refuse)
  report = importers.import_checkpoint(str(tmp_path), str(tmp_path / 'ours'))
  assert report['vocabulary'] == 'absent://vocabulary.model'
  assert 'pass --set VOCABULARY=FILE' in caplog.text
  assert 'is far away' in caplog.text
  monkeypatch.delitem(t5x.VOCABULARIES, 384)
  with pytest.raises(
    UsageError, match='the vocabulary of its 384 rows is unknown: pass --set VOCABULARY=bytes'
  ):
    importers.import_checkpoint(str(tmp_path / 'checkpoint_0'), str(tmp_path / 'other'))
  assert not list(tmp_path.glob('*other*'))


def test_zarr_folders_of_a_bucket_are_opened_in_the_bucket():
  assert t5x.kvstore(epath.Path('gs://ours/t5/checkpoint_1/target.a')) == {
    'driver': 'gcs', 'bucket': 'ours', 'path': 't5/checkpoint_1/target.a/',
  }  # fmt: skip
  assert t5x.kvstore(epath.Path('/ours/target.a')) == {'driver': 'file', 'path': '/ours/target.a/'}


def test_a_bucket_that_cannot_be_reached_is_refused(tmp_path, monkeypatch):
  def exists(path):
    raise RuntimeError('no network')

  bucket = epath.Path('gs://ours/t5')
  plain = type(bucket).exists
  monkeypatch.setattr(type(bucket), 'exists', lambda path: exists(path) if path == bucket else plain(path))
  with pytest.raises(UsageError, match=r'cannot be reached from here \(no network\)'):
    importers.import_checkpoint('gs://ours/t5', str(tmp_path / 'ours'))


# What cannot be imported says why


def load(folder):
  return t5x.load(t5x.find(epath.Path(folder)))


def tampered(tree, change):
  flat = traverse_util.flatten_dict(tree)
  change(flat)
  return traverse_util.unflatten_dict(flat)


NORM = ('decoder', 'decoder_norm', 'scale')


@pytest.mark.parametrize(
  'change, message',
  [
    (
      lambda flat: flat.update({('decoder', 'adapter', 'kernel'): flat[NORM]}),
      'does not describe.*decoder/adapter',
    ),
    (lambda flat: flat.pop(NORM), 'lacks .*the first is decoder/decoder_norm/scale'),
    (lambda flat: flat.update({NORM: np.zeros(17, np.float32)}), r'scale has shape \(17,\)'),
    (lambda flat: flat.pop(('encoder', *names.RELATIVE_BIAS)), 'only encoder-decoder T5s'),
  ],
)
def test_weights_that_are_not_a_t5s_are_refused(tmp_path, change, message):
  write_msgpack(tmp_path / 'checkpoint_0', tampered(random_tree(PLAIN), change))
  with pytest.raises(UsageError, match=message):
    load(tmp_path)


def test_a_leaf_that_is_not_an_array_is_refused(tmp_path):
  leaves = tampered(random_tree(), lambda flat: flat.update({NORM: 'text'}))
  write_msgpack(tmp_path / 'checkpoint_0', random_tree(), leaves)
  with pytest.raises(UsageError, match='decoder_norm/scale is a str, not an array'):
    load(tmp_path)


def test_torn_files_are_refused(tmp_path):
  file = write_msgpack(tmp_path / 'checkpoint_0', random_tree())
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UsageError, match='is not a whole msgpack file'):
    load(tmp_path)
  file.write_bytes(b'\x81' * 5000)
  with pytest.raises(UsageError, match='is not a whole msgpack file'):
    load(tmp_path)
  file.write_bytes(b'plain text')
  with pytest.raises(UsageError, match='and no target'):
    load(tmp_path)
  file.write_text('model_checkpoint_path: "model.ckpt-0"')
  with pytest.raises(UsageError, match=r'convert_tf_checkpoint\.py'):
    load(tmp_path)


def test_torn_zarr_folders_are_refused(tmp_path):
  write_zarr(tmp_path / 'checkpoint_0', random_tree())
  folder = tmp_path / 'checkpoint_0' / 'target.encoder.encoder_norm.scale'
  (folder / '1').unlink()
  with pytest.raises(UsageError, match='encoder/encoder_norm/scale cannot be read.*chunk'):
    load(tmp_path)
  (folder / '.zarray').unlink()
  with pytest.raises(UsageError, match='cannot open the zarr folder'):
    load(tmp_path)
  shutil.rmtree(folder)
  with pytest.raises(UsageError, match='cannot open the zarr folder'):
    load(tmp_path)


@pytest.mark.parametrize('path', ['../elsewhere', '/etc/passwd', '..', 'a/b', '', 7])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, path):
  flat = traverse_util.flatten_dict(random_tree())
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': path}, 'metadata': {'shape': [16]}}
  write_msgpack(
    tmp_path / 'checkpoint_0' / 'checkpoint', random_tree(), traverse_util.unflatten_dict(flat | {NORM: spec})
  )
  with pytest.raises(UsageError, match='T5X keeps zarr folders beside the file'):
    load(tmp_path)


def test_folders_of_other_projects_are_refused_with_a_remedy(tmp_path):
  (tmp_path / 'notes.txt').write_text('nothing')
  with pytest.raises(UsageError, match=r'holds notes\.txt, and no checkpoint.*Hugging Face.*T5X'):
    importers.import_checkpoint(str(tmp_path), str(tmp_path / 'ours'))
  (tmp_path / 'model.ckpt-0.index').write_text('nothing')
  with pytest.raises(UsageError, match='TensorFlow checkpoint'):
    importers.import_checkpoint(str(tmp_path), str(tmp_path / 'ours'))
  own = tmp_path / 'own'
  orbax.save_params(own, {'x': np.zeros(2)}, {'model': {}})
  with pytest.raises(UsageError, match='pass it to --init_from as it is'):
    importers.import_checkpoint(str(own), str(tmp_path / 'ours'))


# A real one


def test_a_checkpoint_written_by_t5x_is_imported_and_exported(tmp_path):
  from tests.torch_t5 import logits, make_rows, relative_error, torch_logits, transformers

  if not os.environ.get('DRO_JAX_T5X_CHECKPOINT'):
    pytest.skip('set DRO_JAX_T5X_CHECKPOINT to a T5X checkpoint to run the test on real input')
  config, params, vocabulary = t5x.load(t5x.find(epath.Path(os.environ['DRO_JAX_T5X_CHECKPOINT'])))
  assert 'cc_all.32000' in vocabulary
  metadata = {'model': dataclasses.asdict(config), 'vocabulary': None}
  orbax.save_params(tmp_path / 'ours', params, metadata)
  exporters.export_checkpoint(str(tmp_path / 'ours'), str(tmp_path / 'theirs'))
  model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / 'theirs').eval()
  rows = make_rows([30, 7, 1], [30, 3, 11])
  expected = torch_logits(model, rows)
  assert expected.std() > 0.1
  assert relative_error(logits(config, params, rows), expected, rows) < 1e-5
  report = check.check(str(tmp_path / 'ours'), vocabulary='bytes', max_length=4)
  assert report['log_ratio'] == 0
