"""A T5 of transformers with random weights, what it says of some rows, and what ours says."""

import json

import jax
import numpy as np
import pytest

from dro_jax.models.t5.network import T5
from dro_jax.types import Rows

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

KINDS = {
  '1.0': {'feed_forward_proj': 'relu'},
  '1.1': {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
  'gated-silu': {'feed_forward_proj': 'gated-silu', 'tie_word_embeddings': False, 'num_decoder_layers': 1},
}


def make_torch(kind, **changes):
  """A random T5 whose every weight matters: norms away from 1, biases as large as attention logits."""
  config = transformers.T5Config(
    **{
      'vocab_size': 384, 'd_model': 16, 'd_kv': 6, 'd_ff': 24, 'num_layers': 2, 'num_heads': 3,
      'relative_attention_num_buckets': 8, 'relative_attention_max_distance': 20, 'decoder_start_token_id': 0,
    } | KINDS[kind] | changes
  )  # fmt: skip
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(config).eval()
  if kind != '1.0':
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(config.vocab_size, 16))
  with torch.no_grad():
    for name, weight in model.named_parameters():
      weight.copy_(torch.randn(weight.shape) * (1.0 if 'relative' in name or 'shared' in name else 0.3))
      if 'layer_norm' in name:
        weight.add_(1.0)
  return model


def make_rows(prompt_lengths, response_lengths, S=30, T=30):
  """One prompt and one response a row, padded to S and T."""
  rng = np.random.default_rng(0)
  prompt_segments = (np.arange(S)[None] < np.array(prompt_lengths)[:, None]).astype(np.int32)
  response_segments = (np.arange(T)[None] < np.array(response_lengths)[:, None]).astype(np.int32)
  rows = len(prompt_lengths)
  return Rows(
    prompt_tokens=rng.integers(1, 50, (rows, S), dtype=np.int32) * prompt_segments,
    prompt_segments=prompt_segments,
    prompt_positions=np.arange(S, dtype=np.int32)[None] * prompt_segments,
    response_tokens=rng.integers(1, 50, (rows, T), dtype=np.int32) * response_segments,
    response_segments=response_segments,
    response_positions=np.arange(T, dtype=np.int32)[None] * response_segments,
    response_prompt=response_segments,
    rewards=np.zeros((rows, 1), np.float32),
    example_id=np.zeros((rows, 1), np.int32),
    valid=np.ones((rows, 1), bool),
  )


def torch_logits(model, rows):
  inputs = np.where(rows.response_positions == 0, 0, np.pad(rows.response_tokens, ((0, 0), (1, 0)))[:, :-1])
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(rows.prompt_tokens).long(),
      attention_mask=torch.tensor(rows.prompt_segments),
      decoder_input_ids=torch.tensor(inputs).long(),
    )
  return out.logits.numpy()


def logits(config, params, rows):
  return np.asarray(jax.jit(T5(config).apply)({'params': params}, rows))


def relative_error(actual, expected, rows):
  mask = rows.response_segments > 0
  return np.abs(actual - expected)[mask].max() / np.abs(expected[mask]).max()


def edit_config(folder, **changes):
  config = json.loads((folder / 'config.json').read_text()) | changes
  (folder / 'config.json').write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
