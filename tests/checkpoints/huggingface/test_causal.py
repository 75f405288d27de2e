"""Decoder-only models come in from all forms of their files, and go out as transformers has them."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from flax import traverse_util

from dro_jax.checkpoints import export_checkpoint as exporters
from dro_jax.checkpoints import folders, orbax
from dro_jax.checkpoints import import_checkpoint as importers
from dro_jax.checkpoints.huggingface import read
from dro_jax.data.text import vocabularies
from dro_jax.errors import UsageError
from tests.checkpoints import tiny_tokenizer
from tests.models.causal import tiny
from tests.torch_t5 import edit_config


def check_equal_trees(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def save(kind, folder, rename=lambda name: name, **more):
  """A model's files with other names, and with further tensors."""
  model = tiny.torch_model(kind)
  model.config.save_pretrained(folder)
  weights = {rename(name): x.detach().numpy() for name, x in saved_weights(kind).items()}
  safetensors.numpy.save_file(weights | more, folder / 'model.safetensors')
  return folder


def saved_weights(kind):
  """A model's tensors by the names that transformers saves, each once."""
  model = tiny.torch_model(kind)
  weights = dict(model.state_dict())
  if model.config.tie_word_embeddings:
    del weights['lm_head.weight']
  if kind == 'neox':
    weights['embed_out.weight'] = weights.pop('lm_head.weight')
  return weights


def torch_logits(model, tokens):
  with torch.no_grad():
    return model(input_ids=torch.tensor(tokens)).logits.numpy()


@pytest.mark.parametrize('kind', list(tiny.KINDS))
def test_import_and_export_are_bit_equal_and_transformers_gives_the_same_logits(tmp_path, kind):
  theirs, model = tmp_path / 'theirs', tiny.torch_model(kind)
  model.save_pretrained(theirs)
  tiny_tokenizer.write(theirs)
  importers.import_checkpoint(str(theirs), str(tmp_path / 'ours'))
  params, metadata = orbax.load_params(tmp_path / 'ours')
  check_equal_trees(params, tiny.params(kind))
  assert {name: metadata['model'][name] for name in ('pad', 'start', 'eos')} == {
    'pad': 0, 'start': 1, 'eos': 2
  }  # fmt: skip
  exporters.export_checkpoint(str(tmp_path / 'ours'), str(tmp_path / 'back'))
  expected = safetensors.numpy.load_file(theirs / 'model.safetensors')
  check_equal_trees(safetensors.numpy.load_file(tmp_path / 'back' / 'model.safetensors'), expected)
  again, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'back', output_loading_info=True, attn_implementation='eager'
  )
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info
  tokens = np.random.default_rng(0).integers(3, 99, (2, 24))
  np.testing.assert_array_equal(torch_logits(again.eval(), tokens), torch_logits(model, tokens))


def test_a_tokenizer_travels_with_its_checkpoint_in_and_out(tmp_path):
  tiny_tokenizer.write(save('llama', tmp_path / 'theirs'))
  report = importers.import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'ours'))
  assert report['vocabulary'] == str(tmp_path / 'ours' / 'tokenizer')
  vocabulary = vocabularies.vocabulary(report['vocabulary'])
  assert folders.load_metadata(tmp_path / 'ours')['vocabulary_fingerprint'] == vocabulary.fingerprint
  exporters.export_checkpoint(str(tmp_path / 'ours'), str(tmp_path / 'back'))
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'back')
  assert tokenizer('a fox').input_ids == vocabulary.encode('a fox').tolist()
  assert tokenizer.chat_template == tiny_tokenizer.TEMPLATE
  assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_bfloat16_shards_and_torch_files_give_the_same_tree(tmp_path):
  model = transformers.AutoModelForCausalLM.from_config(tiny.KINDS['qwen3']()).to(torch.bfloat16)
  model.save_pretrained(tmp_path / 'shards', max_shard_size='8KB')
  assert len(list((tmp_path / 'shards').glob('*.safetensors'))) > 2
  assert read.stored_dtype(tmp_path / 'shards') == 'bfloat16'
  config, expected = read.load(tmp_path / 'shards')
  kernel = traverse_util.flatten_dict(expected)['decoder', 'layers_1', 'attention', 'query', 'kernel']
  weight = model.model.layers[1].self_attn.q_proj.weight.detach().float().numpy()
  np.testing.assert_array_equal(kernel, weight.T)
  model.config.save_pretrained(tmp_path / 'bin')
  names = list(model.state_dict())
  for number, half in enumerate((names[::2], names[1::2])):
    torch.save({name: model.state_dict()[name] for name in half}, tmp_path / 'bin' / f'{number}.bin')
  places = {name: f'{i % 2}.bin' for i, name in enumerate(names)}
  (tmp_path / 'bin' / 'pytorch_model.bin.index.json').write_text(json.dumps({'weight_map': places}))
  again, params = read.load(tmp_path / 'bin')
  assert again == config
  check_equal_trees(params, expected)


MASK = np.ones((1, 1, 8, 8), bool)
OLDER = {
  # GPT-2 of the hub: without a prefix, with its masks.
  'gpt2': (
    lambda name: name.removeprefix('transformer.'),
    {f'h.{i}.attn.{mask}': MASK for i in range(2) for mask in ('bias', 'masked_bias')},
  ),
  # Pythia of the hub.
  'neox': (
    lambda name: name,
    {
      f'gpt_neox.layers.{i}.attention.{mask}': MASK
      for i in range(2)
      for mask in ('bias', 'masked_bias', 'rotary_emb.inv_freq')
    },
  ),
  # A tied head, saved all the same.
  'smollm2': (lambda name: name, {'lm_head.weight': None}),
  # A model without a prefix; Llama of 2023.
  'gemma2': (lambda name: name.removeprefix('model.'), {}),
  'llama': (lambda name: name, {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(4, np.float32)}),
}


@pytest.mark.parametrize('kind', list(OLDER))
def test_older_files_and_files_of_bare_models_give_the_same_tree(tmp_path, kind):
  rename, more = OLDER[kind]
  table = tiny.torch_model(kind).get_input_embeddings().weight.detach().numpy()
  save(kind, tmp_path, rename, **{name: table.copy() if x is None else x for name, x in more.items()})
  check_equal_trees(read.load(tmp_path)[1], tiny.params(kind))


def test_the_names_of_transformers_5_for_pythias_head_are_read_too(tmp_path):
  save('neox', tmp_path, lambda name: name.replace('embed_out', 'lm_head'))
  check_equal_trees(read.load(tmp_path)[1], tiny.params('neox'))


@pytest.mark.parametrize('prefix', ['language_model.model.', 'model.language_model.'])
def test_a_model_that_reads_images_gives_its_text_model(tmp_path, prefix):
  image = {'vision_tower.a.weight': MASK, 'multi_modal_projector.b': MASK}
  save('gemma3', tmp_path, lambda name: prefix + name.removeprefix('model.'), **image)
  text = json.loads((tmp_path / 'config.json').read_text())
  whole = {'model_type': 'gemma3', 'architectures': ['Gemma3ForConditionalGeneration'], 'text_config': text}
  (tmp_path / 'config.json').write_text(json.dumps({**whole, 'eos_token_id': [5, 7]}))
  config, params = read.load(tmp_path)
  check_equal_trees(params, tiny.params('gemma3'))
  assert config == tiny.config('gemma3', eos_token_id=5)


def test_fields_that_the_text_model_of_gemma_3_leaves_out_are_those_of_transformers():
  theirs = transformers.Gemma3Config(text_config={}).to_dict()
  assert theirs['text_config']['model_type'] == 'gemma3_text'
  path = read.Path('folder')
  short = read.format_of({'model_type': 'gemma3'}, path).read_config({'model_type': 'gemma3'}, path)
  assert short == read.format_of(theirs, path).read_config(theirs, path)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model_type': 'mamba'}, "its model_type is 'mamba', but only t5, .*llama"),
    ({'num_hidden_layers': 3}, r'lacks 9 weights .*the first is model\.layers\.2'),
    (
      {'num_hidden_layers': 1},
      r'has 9 weights that its config\.json does not describe, the first is model\.layers\.1.*: '
      'pass the checkpoint of a decoder-only language model',
    ),
    ({'tie_word_embeddings': True}, r'lm_head\.weight differs from model\.embed_tokens\.weight'),
    ({'vocab_size': 128}, r'embed_tokens\.weight has shape \(99, 32\), but by its config\.json .*128'),
    ({'num_key_value_heads': 4}, r'k_proj\.weight has shape \(16, 32\), but by its config\.json it has \(32'),
    ({'num_key_value_heads': 3}, 'does not divide num_heads=4'),
  ],
)
def test_weights_that_config_json_does_not_describe_are_refused(tmp_path, changes, message):
  save('llama', tmp_path)
  edit_config(tmp_path, **changes)
  with pytest.raises(UsageError, match=message):
    read.load(tmp_path)


def test_a_vocabulary_larger_than_the_table_is_refused(tmp_path):
  save('llama', tmp_path / 'theirs')
  with pytest.raises(UsageError, match='has no spiece.model, tokenizer.model or tokenizer.json'):
    importers.import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'ours'))
  with pytest.raises(UsageError, match="'bytes' has 259 ids, but .* embeds 99"):
    importers.import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'ours'), 'bytes')


def test_only_a_t5_goes_to_t5x(tmp_path):
  tiny_tokenizer.write(save('llama', tmp_path / 'theirs'))
  importers.import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'ours'))
  with pytest.raises(UsageError, match="FORMAT='t5x' is for T5 models.*'causal'.*FORMAT=huggingface"):
    exporters.export_checkpoint(str(tmp_path / 'ours'), str(tmp_path / 'x'), 't5x')


def test_commands_refuse_a_folder_with_the_command_that_imports_it(tmp_path):
  save('llama', tmp_path / 'Llama-3.2')
  with pytest.raises(UsageError, match=r'--init_from=.*/Llama-3\.2 --model_dir=checkpoints/Llama-3\.2$'):
    folders.find_checkpoint(tmp_path / 'Llama-3.2')
