"""Imported T5s give transformers' torch logits; what cannot be imported says why."""

import json
import shutil

import jax
import numpy as np
import pytest
import sentencepiece

from dro_jax.checkpoints import folders, orbax
from dro_jax.checkpoints import import_checkpoint as importers
from dro_jax.checkpoints.huggingface import read as huggingface
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from dro_jax.models.t5.network import T5
from tests.torch_t5 import KINDS, edit_config, logits, make_rows, make_torch, relative_error, torch_logits

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


@pytest.fixture(scope='module', params=list(KINDS))
def saved(request, tmp_path_factory):
  model = make_torch(request.param)
  folder = tmp_path_factory.mktemp('hf') / 't5'
  model.save_pretrained(folder)
  return model, folder


def test_logits_equal_torch(saved):
  model, folder = saved
  config, params = huggingface.load(folder)
  rows = make_rows([30, 7, 1], [30, 3, 11])
  actual = logits(config, params, rows)
  expected = torch_logits(model, rows)
  assert expected.std() > 0.1
  assert relative_error(actual, expected, rows) < 1e-5


def test_an_imported_tree_has_the_shapes_of_the_network(saved):
  _, folder = saved
  config, params = huggingface.load(folder)
  own = jax.eval_shape(T5(config).init, jax.random.key(0), make_rows([2], [2]))['params']
  own = jax.tree.map(lambda box: box.value, own, is_leaf=lambda x: hasattr(x, 'names'))
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, own)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_shards_torch_files_and_safetensors_give_equal_weights(saved, tmp_path):
  model, folder = saved
  model.save_pretrained(tmp_path / 'shards', max_shard_size='8KB')
  assert (tmp_path / 'shards' / 'model.safetensors.index.json').exists()
  (tmp_path / 'bin').mkdir()
  (tmp_path / 'bin' / 'config.json').write_bytes((folder / 'config.json').read_bytes())
  torch.save(model.state_dict(), tmp_path / 'bin' / 'pytorch_model.bin')
  _, expected = huggingface.load(folder)
  for other in ('shards', 'bin'):
    _, params = huggingface.load(tmp_path / other)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_bfloat16_weights_become_float32(tmp_path):
  model = make_torch('1.1').to(torch.bfloat16)
  model.save_pretrained(tmp_path / 't5')
  _, params = huggingface.load(tmp_path / 't5')
  embedding = params['token_embedder']['embedding']
  assert embedding.dtype == np.float32
  np.testing.assert_array_equal(embedding, model.shared.weight.detach().float().numpy())


def test_files_of_transformers_4_with_aliases_are_read(tmp_path):
  """transformers 4 says `tie_word_embeddings: false`, and its files repeat the embedding thrice."""
  model = make_torch('1.1')
  model.save_pretrained(tmp_path)
  (tmp_path / 'model.safetensors').unlink()
  state = dict(model.state_dict())
  unread = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  torch.save(state | {unread: torch.zeros(8, 3)}, tmp_path / 'pytorch_model.bin')
  edit_config(tmp_path, scale_decoder_outputs=None, tie_word_embeddings=False)
  config, params = huggingface.load(tmp_path)
  rows = make_rows([5], [6])
  actual = logits(config, params, rows)
  assert relative_error(actual, torch_logits(model, rows), rows) < 1e-5
  torch.save(
    {name: x for name, x in state.items() if name != 'lm_head.weight'}, tmp_path / 'pytorch_model.bin'
  )
  with pytest.raises(UsageError, match=r'lacks 1 weights of its config.json, the first is lm_head\.weight'):
    huggingface.load(tmp_path)


def test_logits_tied_without_a_scale_get_their_own_weights(tmp_path):
  """transformers 5 ties every new T5, 1.1 ones too, and leaves lm_head out of the file."""
  config = transformers.T5Config(
    vocab_size=384, d_model=16, d_kv=6, d_ff=24, num_layers=1, num_heads=2, feed_forward_proj='gated-gelu',
    tie_word_embeddings=False, decoder_start_token_id=0,
  )  # fmt: skip
  model = transformers.T5ForConditionalGeneration(config).eval()
  model.save_pretrained(tmp_path)
  imported, params = huggingface.load(tmp_path)
  rows = make_rows([4], [5])
  actual = logits(imported, params, rows)
  assert relative_error(actual, torch_logits(model, rows), rows) < 1e-5


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model_type': 'bart'}, "model_type is 'bart'"),
    ({'architectures': ['T5EncoderModel']}, 'has no decoder with logits'),
    ({'feed_forward_proj': 'gated-mish'}, "feed_forward_proj is 'gated-mish'"),
    ({'feed_forward_proj': 'gelu'}, "feed_forward_proj is 'gelu'"),
    ({'feed_forward_proj': 'gated-gelu'}, r'lacks .*the first is decoder.*wi_0'),
    ({'d_model': None}, 'd_model is None'),
    ({'d_ff': 25}, r'DenseReluDense\.wi\.weight has shape \(24, 16\)'),
    ({'layer_norm_epsilon': 1e-5}, 'layer_norm_epsilon is 1e-05'),
    ({'eos_token_id': 2}, 'eos_token_id is 2'),
    ({'num_layers': 1}, r'its config\.json does not describe, the first is encoder\.block\.1'),
    ({'num_layers': 3}, r'lacks .*the first is encoder\.block\.2'),
  ],
)
def test_a_config_that_is_not_a_t5s_is_refused(tmp_path, changes, message):
  make_torch('1.0').save_pretrained(tmp_path)
  edit_config(tmp_path, **changes)
  with pytest.raises(UsageError, match=message):
    huggingface.load(tmp_path)


def test_folders_without_a_whole_checkpoint_are_refused(tmp_path):
  with pytest.raises(UsageError, match='is not a folder'):
    huggingface.load(tmp_path / 'absent')
  with pytest.raises(UsageError, match=r'has no config\.json'):
    huggingface.load(tmp_path)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(UsageError, match='not JSON'):
    huggingface.load(tmp_path)
  make_torch('1.0').config.save_pretrained(tmp_path)
  with pytest.raises(UsageError, match=r'neither model\.safetensors nor pytorch_model\.bin'):
    huggingface.load(tmp_path)
  (tmp_path / 'pytorch_model.bin').write_bytes(b'nonsense')
  with pytest.raises(UsageError, match='torch cannot load'):
    huggingface.load(tmp_path)
  (tmp_path / 'model.safetensors').write_bytes(b'nonsense')
  with pytest.raises(UsageError, match='not a safetensors file'):
    huggingface.load(tmp_path)


@pytest.mark.parametrize('shard', ['../model.safetensors', '/model.safetensors', '..', ''])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, shard):
  make_torch('1.0').config.save_pretrained(tmp_path)
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'shared.weight': shard}}))
  with pytest.raises(UsageError, match='which is not a file name in this folder'):
    huggingface.load(tmp_path)
  index.write_text(json.dumps({'weight_map': {'shared.weight': 'absent.safetensors'}}))
  with pytest.raises(UsageError, match='which is missing'):
    huggingface.load(tmp_path)


def test_no_pickle_is_run(tmp_path):
  class Harm:
    def __reduce__(self):
      return (open, (str(tmp_path / 'harm'), 'w'))

  make_torch('1.0').config.save_pretrained(tmp_path)
  torch.save({'shared.weight': Harm()}, tmp_path / 'pytorch_model.bin')
  with pytest.raises(UsageError, match='torch cannot load .* as weights only'):
    huggingface.load(tmp_path)
  assert not (tmp_path / 'harm').exists()


def test_a_hub_name_is_downloaded(saved, monkeypatch):
  _, folder = saved
  asked = []

  def snapshot_download(name, allow_patterns):
    asked.append(name)
    return str(folder)

  monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
  huggingface.load('google/t5-v1_1-small')
  assert asked == ['google/t5-v1_1-small']


def test_import_checkpoint_writes_a_folder_for_init_from(saved, tmp_path):
  _, source = saved
  config, expected = huggingface.load(source)
  with pytest.raises(
    UsageError, match='no spiece.model, tokenizer.model or tokenizer.json.*pass --set VOCABULARY=bytes'
  ):
    importers.import_checkpoint(str(source), str(tmp_path / 'plain'))
  assert not list(tmp_path.glob('*plain*'))
  report = importers.import_checkpoint(str(source), str(tmp_path / 'plain'), 'bytes')
  assert report['vocabulary'] == 'bytes'
  assert report['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(expected))
  params, metadata = orbax.load_params(tmp_path / 'plain')
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  assert type(config)(**metadata['model']) == config
  with pytest.raises(UsageError, match='exists already'):
    importers.import_checkpoint(str(source), str(tmp_path / 'plain'))


def sentencepiece_model(directory) -> str:
  corpus = directory / 'corpus.txt'
  corpus.write_text('\n'.join(f'a quick brown fox jumps {i} times over it' for i in range(400)))
  sentencepiece.SentencePieceTrainer.train(
    input=str(corpus), model_prefix=str(directory / 'tiny'), vocab_size=64, minloglevel=2,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
  )  # fmt: skip
  return str(directory / 'tiny.model')


def test_an_import_copies_the_vocabulary(tmp_path):
  source = tmp_path / 'source'
  make_torch('1.0').save_pretrained(source)
  (source / 'tokenizer_config.json').write_text('{"tokenizer_class": "ByT5Tokenizer"}')
  assert importers.import_checkpoint(str(source), str(tmp_path / 'bytes'))['vocabulary'] == 'bytes'
  shutil.copy(sentencepiece_model(tmp_path), source / 'spiece.model')
  report = importers.import_checkpoint(str(source), str(tmp_path / 'pieces'))
  assert report['vocabulary'] == str(tmp_path / 'pieces' / 'spiece.model')
  words = vocabularies.vocabulary(report['vocabulary'])
  assert folders.load_metadata(tmp_path / 'pieces')['vocabulary_fingerprint'] == words.fingerprint
  report = importers.import_checkpoint(str(source), str(tmp_path / 'named'), vocabulary='bytes')
  assert report['vocabulary'] == 'bytes'


def test_a_file_of_weights_and_an_adapter_are_refused_with_the_remedy(tmp_path):
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  with pytest.raises(UsageError, match=f'weights only: pass its folder, --init_from={tmp_path}'):
    importers.import_checkpoint(str(tmp_path / 'pytorch_model.bin'), str(tmp_path / 'imported'))
  (tmp_path / 'adapter_config.json').write_text('{}')
  with pytest.raises(UsageError, match='adapter'):
    importers.import_checkpoint(str(tmp_path), str(tmp_path / 'imported'))
  assert not (tmp_path / 'imported').exists()


def check_equal_ids(spec, folder, *texts):
  tokenizer, words = transformers.AutoTokenizer.from_pretrained(folder), vocabularies.vocabulary(spec)
  assert words.size == len(tokenizer)
  for text in texts:
    assert [*words.encode(text), 1] == tokenizer(text)['input_ids'], text
    assert words.decode(words.encode(text)) == tokenizer.decode(tokenizer(text)['input_ids'][:-1])
  return words


def test_a_tokenizer_that_transformers_5_saved_is_read_with_its_added_tokens(tmp_path):
  source = tmp_path / 'source'
  make_torch('1.0').save_pretrained(source)
  model = sentencepiece_model(tmp_path)
  shutil.copy(model, tmp_path / 'spiece.model')
  tokenizer = transformers.T5TokenizerFast.from_pretrained(tmp_path)
  size = len(tokenizer)
  tokenizer.add_tokens(['{', '}'])
  tokenizer.save_pretrained(source)
  (source / 'spiece.model').unlink(missing_ok=True)
  report = importers.import_checkpoint(str(source), str(tmp_path / 'ours'))
  assert report['vocabulary'] == str(tmp_path / 'ours' / 'tokenizer.json')
  words = check_equal_ids(
    report['vocabulary'], source, 'a {quick} fox', 'jumps {over} {it}', '<extra_id_0> fox'
  )
  assert [i for i in words.encode('a {quick} fox') if i >= size] == [size, size + 1]
  assert not {0, 1} & set(words.encode('a </s> fox</s> <pad>').tolist())


def test_tokens_that_were_added_to_a_sentencepiece_model_are_kept(tmp_path):
  """As transformers 4 saves a slow tokenizer: spiece.model, added_tokens.json, no tokenizer.json."""
  source = tmp_path / 'source'
  make_torch('1.0').save_pretrained(source)
  shutil.copy(sentencepiece_model(tmp_path), source / 'spiece.model')
  plain = vocabularies.vocabulary(str(source / 'spiece.model'))
  size = plain.size
  decoder = {str(i): {'content': name} for i, name in enumerate(('<pad>', '</s>', '<unk>'))}
  decoder |= {str(size): {'content': '{'}, str(size + 1): {'content': '}', 'lstrip': True}}
  (source / 'tokenizer_config.json').write_text(json.dumps({'added_tokens_decoder': decoder}))
  (source / 'added_tokens.json').write_text(json.dumps({'{': size, '}': size + 1}))
  report = importers.import_checkpoint(str(source), str(tmp_path / 'ours'))
  assert report['vocabulary'] == str(tmp_path / 'ours' / 'tokenizer.json')
  words = vocabularies.vocabulary(report['vocabulary'])
  assert words.encode('a quick fox').tolist() == plain.encode('a quick fox').tolist()
  ids = words.encode('{a quick } fox').tolist()
  assert ids == [size, *plain.encode('a quick'), size + 1, *plain.encode('fox')]
  assert folders.load_metadata(tmp_path / 'ours')['vocabulary_fingerprint'] == words.fingerprint
  (source / 'added_tokens.json').write_text(json.dumps({'}': size + 1}))
  (source / 'tokenizer_config.json').unlink()
  with pytest.raises(UsageError, match='its added tokens cannot be kept: .*without gaps'):
    importers.import_checkpoint(str(source), str(tmp_path / 'gap'))
  assert not (tmp_path / 'gap').exists()


def test_bytes_are_not_offered_to_a_checkpoint_of_32000_rows(tmp_path):
  make_torch('1.0').save_pretrained(tmp_path / 'source')
  config, params = huggingface.load(tmp_path / 'source')
  imported = importers._Imported(config.__class__(vocab_size=32128), params, 'float32', None)
  with pytest.raises(UsageError, match='--set VOCABULARY=FILE') as caught:
    importers._find_vocabulary('source', imported, None)
  assert 'bytes' not in str(caught.value)
