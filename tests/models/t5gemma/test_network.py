"""T5Gemma and T5Gemma 2 against transformers' own, on random weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dro_jax.errors import UsageError
from dro_jax.models import beam_search, policy, sampling, scoring
from dro_jax.models.t5gemma.config import T5GemmaConfig
from dro_jax.parallel import partitioning
from dro_jax.run import networks
from tests.examples import Example, layout
from tests.models.causal.test_network import (
  EXAMPLES,
  PROMPTS,
  check_packed_and_grouped,
  check_ways_to_compute,
  prompts_of,
  shared_rows,
)  # fmt: skip
from tests.models.t5gemma import tiny
from tests.tiers import long, tiers

KINDS = tuple(tiny.KINDS)
BOTH = ('t5gemma', 't5gemma2')
RNG = np.random.default_rng(0)


def torch_token_logps(kind, example):
  """Log-probs of a response's tokens, by one pass of transformers' model over it."""
  inputs = torch.tensor(np.concatenate([[2], example.response[:-1]])[None])
  prompt, response = torch.tensor(example.prompt[None]), torch.tensor(example.response)
  ones = torch.ones_like(prompt), torch.ones_like(inputs)
  logits = tiny.torch_model(kind)(
    input_ids=prompt, attention_mask=ones[0], decoder_input_ids=inputs, decoder_attention_mask=ones[1]
  ).logits[0]
  return torch.log_softmax(logits, -1)[torch.arange(len(response)), response]


@functools.cache
def torch_logps(kind, i):
  with torch.no_grad():
    return torch_token_logps(kind, EXAMPLES[i]).numpy()


@functools.cache
def network(kind, **changes):
  return policy.make_network(dataclasses.replace(tiny.config(kind), **changes))


@functools.cache
def compiled(kind, **changes):
  return jax.jit(scoring.make_score(network(kind, **changes)))


def score(kind, rows, rng=None, **changes):
  return compiled(kind, **changes)({'policy': tiny.params(kind)}, rows, rng)


@pytest.mark.parametrize('kind', KINDS)
def test_log_probs_equal_transformers_in_packed_and_grouped_rows(kind):
  check_packed_and_grouped(
    functools.partial(score, kind), [torch_logps(kind, i) for i in range(len(EXAMPLES))]
  )


@pytest.mark.parametrize('kind', long('t5gemma2', 't5gemma'))
def test_scanned_and_rematerialised_layers_give_the_same_scores_and_gradients(kind):
  check_ways_to_compute(
    tiny.config(kind), tiny.params(kind), ({'scan_layers': True, 'remat': True}, {'remat': 'dots'})
  )


@pytest.mark.parametrize('kind', BOTH)
def test_gradients_equal_torchs(kind):
  model = tiny.torch_model(kind)
  function, rows = scoring.make_score(network(kind)), shared_rows()
  gradients = jax.jit(jax.grad(lambda tree: function({'policy': tree}, rows, None).logps.sum()))(
    tiny.params(kind)
  )
  model.zero_grad()
  sum(torch_token_logps(kind, example).sum() for example in EXAMPLES).backward()
  decoder, ours = model.model.decoder.layers[0], gradients['decoder']['layers_0']
  # The merged keys and values have gradients of the response and of the prompt.
  pairs = [
    (getattr(decoder.self_attn, f'{its}_proj').weight.grad.T, ours['attention'][name]['kernel'])
    for its, name in (('q', 'query'), ('k', 'key'), ('v', 'value'), ('o', 'out'))
  ]
  encoder = model.model.encoder if kind == 't5gemma' else model.model.encoder.text_model
  mlp = gradients['encoder']['layers_1']['mlp']['wi_0']['kernel']
  pairs += [
    (encoder.layers[1].mlp.gate_proj.weight.grad.T, mlp),
    (model.model.decoder.embed_tokens.weight.grad, gradients['token_embedder']['embedding']),
  ]
  if kind == 't5gemma':
    cross = ours['cross_attention']['key']['kernel']
    table = gradients['prompt_embedder']['embedding']
    pairs += [(decoder.cross_attn.k_proj.weight.grad.T, cross), (encoder.embed_tokens.weight.grad, table)]
  for expected, got in pairs:
    expected = expected.numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  model.zero_grad(set_to_none=True)


@pytest.mark.parametrize('kind', tiers(BOTH, KINDS))
def test_greedy_decoding_equals_transformers(kind):
  samples = sampling.sample(
    network(kind), tiny.params(kind), prompts_of(PROMPTS), 12, jax.random.key(0), temperature=0.0
  )
  for row, prompt in enumerate(PROMPTS):
    ids = torch.tensor(prompt[None])
    out = tiny.torch_model(kind).generate(
      ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
      decoder_start_token_id=2, eos_token_id=1, pad_token_id=0,
    )[0, 1:].numpy()  # fmt: skip
    length = int(samples.lengths[row])
    np.testing.assert_array_equal(samples.tokens[row, :length], out[:length])
    assert length == min(len(out), 12)
    with torch.no_grad():
      expected = torch_token_logps(kind, Example(prompt, np.array(samples.tokens[row, :length]), 0.0)).sum()
    np.testing.assert_allclose(samples.logps[row], expected, rtol=1e-4)


@pytest.mark.parametrize('kind', BOTH)
def test_copies_share_their_prompts_keys_and_score_like_whole_responses(kind):
  net, params, prompts = network(kind), tiny.params(kind), prompts_of(PROMPTS)
  tokens = RNG.integers(3, 99, (6, 8))
  start = jax.jit(functools.partial(policy.start, net, max_length=8, copies=2))
  advance = jax.jit(functools.partial(policy.advance, net))
  states, cache = start(params, prompts=prompts)
  assert cache.prompt.keys.shape[1] == 3 and cache.response.keys.shape[1] == 6
  logps = []
  for i in range(8):
    logps.append(jax.nn.log_softmax(policy.next_logits(net, params, states))[np.arange(6), tokens[:, i]])
    if i == 2:  # From here on each response has its prompt's keys to itself.
      cache = policy.select(net, cache, jnp.arange(6))
      assert cache.prompt.keys.shape[1] == 6
    states, cache = advance(params, cache, jnp.asarray(tokens[:, i]), jnp.asarray(i + 1))
  for row in range(6):
    with torch.no_grad():
      expected = torch_token_logps(kind, Example(PROMPTS[row // 2], tokens[row], 0.0))
    np.testing.assert_allclose([step[row] for step in logps], expected, rtol=1e-4)


@pytest.mark.long
def test_a_beam_search_of_one_beam_is_greedy():
  model = network('t5gemma2'), tiny.params('t5gemma2'), prompts_of(PROMPTS), 6
  greedy = sampling.sample(*model, jax.random.key(0), temperature=0.0)
  np.testing.assert_array_equal(beam_search.search(*model, beams=1).tokens, greedy.tokens)


def test_a_mismatched_response_is_scored_with_the_other_prompt():
  examples = [Example(PROMPTS[i], EXAMPLES[i].response, 0.0) for i in range(3)]
  rows = layout(examples, 3, 1, (16, 16), mismatches=[2, 0, 1])
  logps = score('t5gemma2', rows).mismatched_logps
  for i, j in enumerate([2, 0, 1]):
    with torch.no_grad():
      expected = torch_token_logps('t5gemma2', Example(PROMPTS[j], EXAMPLES[i].response, 0.0)).sum()
    np.testing.assert_allclose(logps[(i - 1) % 3, 0], expected, rtol=1e-5)


def test_a_mesh_that_cuts_heads_finer_than_keys_have_them_computes_the_same():
  kind, rows = 't5gemma2', layout(EXAMPLES, 4, 1, (16, 16))
  mesh = partitioning.make_mesh(2, 1, 4, rules={'vocab': None})
  where = networks.shardings(networks.build(tiny.config(kind), uses_value=False), mesh)['policy']
  function = scoring.make_score(network(kind))
  logps = partitioning.jit_on(mesh, lambda tree, rows: function({'policy': tree}, rows, None).logps)(
    jax.device_put(tiny.params(kind), where), partitioning.place_rows(mesh, rows)
  )
  np.testing.assert_allclose(logps, score(kind, rows).logps, rtol=1e-5)


def test_bfloat16_stays_near_float32():
  exact = score('t5gemma2', shared_rows()).logps
  half = score('t5gemma2', shared_rows(), dtype='bfloat16').logps
  np.testing.assert_allclose(half, exact, rtol=0.05)
  assert half.dtype == jnp.float32


def test_dropout_acts_where_a_key_is_passed():
  plain = score('t5gemma', shared_rows()).logps
  dropped = score('t5gemma', shared_rows(), jax.random.key(0), dropout_rate=0.5).logps
  assert np.abs(plain - dropped)[0, :4].min() > 1e-3


def test_a_table_without_a_size_is_refused():
  with pytest.raises(UsageError, match='vocab_size is None'):
    policy.make_network(T5GemmaConfig()).init(jax.random.key(0), policy.smallest_rows())
