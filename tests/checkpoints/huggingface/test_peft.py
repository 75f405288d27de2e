"""PEFT's layout: to it, from it, and by peft itself where that is installed."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from flax import traverse_util

from dro_jax.checkpoints import adapters, orbax
from dro_jax.checkpoints.export_checkpoint import export_checkpoint
from dro_jax.checkpoints.huggingface import peft as layout
from dro_jax.checkpoints.import_checkpoint import import_checkpoint
from dro_jax.errors import UsageError
from dro_jax.models import lora, scoring
from dro_jax.models.causal import names
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.lora import Lora
from dro_jax.models.policy import config_metadata, make_network, saved_config
from dro_jax.models.stacks import convert_layers
from tests.checkpoints import tiny_tokenizer
from tests.examples import layout as rows_of
from tests.examples import random_examples
from tests.models.causal import tiny

LLAMA = CausalConfig(
  vocab_size=32, emb_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, num_layers=2,
  logits_via_embedding=True,
)  # fmt: skip
NEOX = dataclasses.replace(
  LLAMA, num_kv_heads=None, norm='layer', norm_place='parallel', mlp_activations=('gelu_exact',),
  qkv_bias=True, out_bias=True, mlp_bias=True,
)  # fmt: skip
GPT2 = dataclasses.replace(NEOX, norm_place='before', positions='learned', max_positions=64)
KINDS = {'llama': LLAMA, 'neox': NEOX, 'gpt2': GPT2}
ROWS = rows_of(random_examples(4), 2, 2)


def drawn(boxed, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), nn.unbox(boxed))


def save(folder, config, settings, scan=False):
  """A base, and an adapter on it: their trees, layer by layer."""
  boxed = adapters.abstract_policy(config)
  params, own = drawn(boxed, 1), drawn(lora.abstract_adapter(boxed, settings), 0)
  metadata = config_metadata(config) | {'vocabulary': 'bytes'}
  orbax.save_params(folder / 'base', params, metadata)
  entry = adapters.Saved(settings, str(folder / 'base'), adapters.fingerprint_of(str(folder / 'base')))
  stored = jax.tree.map(np.asarray, convert_layers(own, scan=True)) if scan else own
  metadata['model'] = metadata['model'] | {'scan_layers': scan}
  orbax.save_params(folder / 'adapter', stored, metadata | {'lora': entry.to_json()})
  return params, own


@pytest.mark.parametrize('kind', [*KINDS])
def test_what_is_exported_is_imported_as_the_same_policy(tmp_path, kind):
  config, settings = KINDS[kind], Lora(rank=3, alpha=12)
  _, own = save(tmp_path, config, settings, scan=True)
  export_checkpoint(str(tmp_path / 'adapter'), str(tmp_path / 'peft'))
  described = json.loads((tmp_path / 'peft' / 'adapter_config.json').read_text())
  fused = kind != 'llama'
  assert described['r'] == 3 and described['lora_alpha'] == 12 and bool(described['rank_pattern']) == fused
  if (
    fused
  ):  # Our own import refuses different ranks; the function is shown below, by the products of a and b.
    deltas = delta_of_peft(tmp_path / 'peft', config)
  else:
    import_checkpoint(str(tmp_path / 'peft'), str(tmp_path / 'back'), base=str(tmp_path / 'base'))
    back, _ = adapters.read_unrolled(str(tmp_path / 'back'))
    jax.tree.map(np.testing.assert_array_equal, back, own)
    assert adapters.saved_adapter(tmp_path / 'back').lora.scale == 4.0
    deltas = delta_of_peft(tmp_path / 'peft', config)
  flat = traverse_util.flatten_dict(own)
  for path, delta in deltas.items():
    np.testing.assert_allclose(delta, 4.0 * flat[*path, 'a'] @ flat[*path, 'b'], rtol=1e-5, atol=1e-6)
  assert {path[:-1] for path in flat} == {*deltas}


def delta_of_peft(folder, config):
  """What each of our kernels gets from a PEFT folder, by the layout of whole weights: W += s B A."""
  from safetensors.numpy import load_file

  arrays = load_file(str(folder / 'adapter_model.safetensors'))
  described = json.loads((folder / 'adapter_config.json').read_text())
  deltas = {}
  for stored in names.stored(config):
    name = stored.name.removesuffix('.weight')
    a = arrays.get(f'base_model.model.{name}.lora_A.weight')
    if a is None:
      continue
    b = arrays[f'base_model.model.{name}.lora_B.weight']
    scale = described['alpha_pattern'].get(name, described['lora_alpha']) / len(a)
    delta = scale * b @ a
    turned = delta.T if described['fan_in_fan_out'] else delta
    for path, part in zip(stored.paths, stored.layout.split(turned, config.num_heads)):
      deltas[path[:-1]] = part
  return deltas


@pytest.mark.parametrize('kind', ['neox', 'gpt2'])
def test_an_adapter_of_a_joint_product_is_three_of_ours_exactly(tmp_path, kind):
  config = KINDS[kind]
  save(tmp_path, config, Lora(rank=2))
  rng, arrays = np.random.default_rng(2), {}
  for i in range(config.num_layers):
    module = {
      'neox': f'gpt_neox.layers.{i}.attention.query_key_value',
      'gpt2': f'transformer.h.{i}.attn.c_attn',
    }[kind]
    for which, shape in (('A', (2, 16)), ('B', (48, 2))):
      arrays[f'base_model.model.{module}.lora_{which}.weight'] = rng.normal(size=shape).astype(np.float32)
  folder = tmp_path / 'peft'
  folder.mkdir()
  from safetensors.numpy import save_file

  save_file(arrays, str(folder / 'adapter_model.safetensors'))
  described = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 8, 'use_rslora': False, 'bias': 'none'}
  (folder / 'adapter_config.json').write_text(
    json.dumps(described | {'fan_in_fan_out': kind == 'gpt2', 'alpha_pattern': {}})
  )
  settings, own = layout.read(epath.Path(folder), config)
  assert (settings.rank, settings.scale, settings.targets) == (2, 4.0, ('key', 'query', 'value'))
  flat = traverse_util.flatten_dict(own)
  for path, delta in delta_of_peft(folder, config).items():
    np.testing.assert_allclose(delta, 4.0 * flat[*path, 'a'] @ flat[*path, 'b'], rtol=1e-5, atol=1e-6)


def test_an_adapter_that_names_another_base_is_imported_with_a_warning(tmp_path, caplog):
  save(tmp_path, LLAMA, Lora(rank=2, targets='query'))
  export_checkpoint(str(tmp_path / 'adapter'), str(tmp_path / 'peft'))
  file = epath.Path(tmp_path / 'peft' / 'adapter_config.json')
  for i, (named, warns) in enumerate((('hub/Base', False), ('hub/other', True), (None, False))):
    file.write_text(json.dumps(json.loads(file.read_text()) | {'base_model_name_or_path': named}))
    caplog.clear()
    import_checkpoint(str(tmp_path / 'peft'), str(tmp_path / f'new{i}'), base=str(tmp_path / 'base'))
    notes = [said for said in caplog.messages if said.startswith('note: the adapter')]
    assert len(notes) == warns
    assert not warns or ('hub/other' in notes[0] and f'LORA_BASE is {tmp_path / "base"}' in notes[0])


def test_a_folder_that_our_adapters_cannot_be_is_refused(tmp_path):
  save(tmp_path, LLAMA, Lora(rank=2, targets='query'))
  export_checkpoint(str(tmp_path / 'adapter'), str(tmp_path / 'peft'))
  file = epath.Path(tmp_path / 'peft' / 'adapter_config.json')
  described = json.loads(file.read_text())
  for change, message in (
    ({'use_dora': True}, 'has use_dora, which the adapters here do not have'),
    ({'peft_type': 'IA3'}, 'has peft_type=IA3'),
    ({'alpha_pattern': {'layers.0.self_attn.q_proj': 1}}, 'of several ranks or scales'),
  ):
    file.write_text(json.dumps(described | change))
    with pytest.raises(UsageError, match=message):
      layout.read(file.parent, LLAMA)
  file.write_text(json.dumps(described))
  with pytest.raises(UsageError, match='modules that the base does not have'):
    layout.read(file.parent, dataclasses.replace(LLAMA, num_layers=1))
  with pytest.raises(UsageError, match='--init_from=absent does not exist'):
    import_checkpoint('absent', str(tmp_path / 'new'), base=str(tmp_path / 'base'))
  with pytest.raises(UsageError, match='has no adapter_config.json, and LORA_BASE'):
    import_checkpoint(str(tmp_path / 'base'), str(tmp_path / 'new'), base=str(tmp_path / 'base'))
  with pytest.raises(UsageError, match='MERGED and LORA_BASE are of adapters'):
    export_checkpoint(str(tmp_path / 'base'), str(tmp_path / 'out'), merged=True)


@pytest.fixture(scope='module')
def on_an_import(tmp_path_factory):
  """An adapter on a Llama that was imported from a folder: (folder, source, parts of the policy)."""
  folder = tmp_path_factory.mktemp('imported')
  tiny.torch_model('llama').save_pretrained(folder / 'source')
  tiny_tokenizer.write(folder / 'source')
  import_checkpoint(str(folder / 'source'), str(folder / 'base'))
  params, metadata = orbax.load_params(folder / 'base')
  settings, config = Lora(rank=2), saved_config(metadata)
  own = drawn(lora.abstract_adapter(adapters.abstract_policy(config), settings), 0)
  entry = adapters.Saved(settings, str(folder / 'base'), adapters.fingerprint_of(str(folder / 'base')))
  kept = {name: metadata[name] for name in ('family', 'model', 'vocabulary')}
  orbax.save_params(folder / 'adapter', own, kept | {'lora': entry.to_json()})
  return folder, folder / 'source', (config, params, own)


def base_named(folder):
  return json.loads((folder / 'adapter_config.json').read_text())['base_model_name_or_path']


def test_an_export_names_what_its_base_was_imported_from_and_where_it_lies(on_an_import, tmp_path):
  folder, source, _ = on_an_import
  out = tmp_path / 'peft'
  notes = export_checkpoint(str(folder / 'adapter'), str(out))['notes']
  assert base_named(out) == str(source)
  assert f"peft.AutoPeftModelForCausalLM.from_pretrained('{out}')" in notes[0]
  export_checkpoint(str(folder / 'adapter'), str(tmp_path / 'named'), base_name='maker/llama')
  assert base_named(tmp_path / 'named') == 'maker/llama'
  with pytest.raises(UsageError, match='BASE_NAME=maker/llama names the base of an adapter'):
    export_checkpoint(str(folder / 'base'), str(tmp_path / 'whole'), base_name='maker/llama')


def test_an_export_on_a_base_of_unknown_origin_says_how_to_name_it(tmp_path):
  save(tmp_path, LLAMA, Lora(rank=2))
  out = tmp_path / 'peft'
  for _ in range(2):  # The base need not be there.
    notes = export_checkpoint(str(tmp_path / 'adapter'), str(out))['notes']
    assert base_named(out) is None
    assert f"peft.PeftModel.from_pretrained(model, '{out}')" in notes[0] and 'BASE_NAME=NAME' in notes[0]
    for lost in (out, tmp_path / 'base'):
      shutil.rmtree(lost, ignore_errors=True)


# --- peft itself --------------------------------------------------------------------------------------------


def torch_model(config, params):
  """transformers' model with these parameters, in float64."""
  transformers, torch = pytest.importorskip('transformers'), pytest.importorskip('torch')
  made = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
      num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=config.norm_epsilon,
    )
  )  # fmt: skip
  flat = traverse_util.flatten_dict(params)
  state = {
    stored.name: torch.tensor(
      np.ascontiguousarray(stored.layout.join([flat[path] for path in stored.paths], config.num_heads))
    )
    for stored in names.stored(config)
  }
  missing, unexpected = made.load_state_dict(state, strict=False)
  assert not unexpected and {*missing} <= {'lm_head.weight'}
  return made.double().eval()


# peft asks transformers for an attribute that it has renamed.
@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing` is deprecated:FutureWarning')
def test_peft_loads_an_export_and_agrees_in_logits_and_in_gradients(tmp_path):
  """The step's gradient of an adapter, by hand in float64: log-probs of responses by torch and peft."""
  peft, torch = pytest.importorskip('peft'), pytest.importorskip('torch')
  settings = Lora(rank=3, alpha=12)
  params, own = save(tmp_path, LLAMA, settings)
  export_checkpoint(str(tmp_path / 'adapter'), str(tmp_path / 'peft'))
  model = peft.PeftModel.from_pretrained(
    torch_model(LLAMA, params), str(tmp_path / 'peft'), is_trainable=True
  ).double()
  examples = random_examples(4)
  rows = rows_of(examples, 4, 1)
  base = lora.Base({'params': jax.tree.map(jnp.asarray, params)}, settings.scale)
  score = scoring.make_score(make_network(LLAMA))

  def logps(own):
    return score({'policy': lora.join_policy(base, own)}, rows).logps[:, 0]

  by_hand = []
  for example in examples:
    tokens = torch.tensor(np.concatenate([example.prompt, example.response]))[None]
    logits = model(input_ids=tokens).logits[0].log_softmax(-1)
    places = torch.arange(len(example.prompt) - 1, tokens.shape[1] - 1)
    by_hand.append(logits[places, tokens[0, places + 1]].sum())
  by_hand = torch.stack(by_hand)
  np.testing.assert_allclose(jax.jit(logps)(own), by_hand.detach().numpy(), rtol=1e-5, atol=1e-5)
  torch.sin(by_hand).sum().backward()
  found = jax.jit(jax.grad(lambda own: jnp.sum(jnp.sin(logps(own)))))(own)
  flat = traverse_util.flatten_dict(found)
  gradients = {name: p.grad.numpy().T for name, p in model.named_parameters() if p.grad is not None}
  assert len(gradients) == len(flat)
  for module in layout.modules(LLAMA):
    for which, ours in (('A', 'a'), ('B', 'b')):
      if (*module.paths[0], ours) in flat:
        theirs = gradients[f'base_model.model.{module.name}.lora_{which}.default.weight']
        np.testing.assert_allclose(flat[*module.paths[0], ours], theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing` is deprecated:FutureWarning')
def test_peft_finds_the_base_of_an_export_by_itself(on_an_import, tmp_path):
  peft, torch = pytest.importorskip('peft'), pytest.importorskip('torch')
  folder, _, (config, params, own) = on_an_import
  export_checkpoint(str(folder / 'adapter'), str(tmp_path / 'peft'))
  model = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / 'peft')).eval()
  [example] = random_examples(1)
  tokens = torch.tensor(np.concatenate([example.prompt, example.response]))[None]
  with torch.no_grad():
    logits = model(input_ids=tokens).logits[0].log_softmax(-1)
  places = torch.arange(len(example.prompt) - 1, tokens.shape[1] - 1)
  expected = float(logits[places, tokens[0, places + 1]].sum())
  base = lora.Base({'params': jax.tree.map(jnp.asarray, params)}, Lora(rank=2).scale)
  score = jax.jit(lambda own: scoring.make_score(make_network(config))(
    {'policy': lora.join_policy(base, own)}, rows_of([example], 1, 1)
  ).logps)  # fmt: skip
  np.testing.assert_allclose(score(own)[0, 0], expected, rtol=1e-4, atol=1e-4)
