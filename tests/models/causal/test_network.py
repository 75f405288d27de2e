"""Decoder-only networks against transformers' own, on random weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dro_jax.errors import UsageError
from dro_jax.models import beam_search, policy, sampling, scoring, stacks
from dro_jax.models.attention import splash, ways
from dro_jax.models.causal.config import CausalConfig
from dro_jax.parallel import partitioning
from tests.examples import Example, layout
from tests.models.causal import tiny
from tests.tiers import long, tiers

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 99, n) for n in (12, 1, 7)]
# Lengths beyond the windows of 8, a prompt of one token, and a prompt with two responses.
EXAMPLES = [
  Example(PROMPTS[prompt], RNG.integers(3, 99, n), 0.0) for prompt, n in ((0, 9), (0, 14), (1, 11), (2, 1))
]
KINDS = tuple(tiny.KINDS)


def torch_logits(kind, tokens):
  with torch.no_grad():
    return tiny.torch_model(kind)(torch.tensor(np.asarray(tokens)[None])).logits[0].numpy()


def torch_logps(kind, example):
  """Log-probs of a response's tokens, by one pass over the whole text."""
  logits = torch_logits(kind, np.concatenate([example.prompt, example.response]))
  logps = torch.log_softmax(torch.tensor(logits[len(example.prompt) - 1 : -1]), -1).numpy()
  return logps[np.arange(len(example.response)), example.response]


@functools.cache
def shared_rows():
  """One row in which the first two responses point at one prompt."""
  rows = layout(EXAMPLES, 1, 4, (48, 40))
  first, second = EXAMPLES[:2]
  np.testing.assert_array_equal(first.prompt, second.prompt)
  width = len(first.prompt)
  prompts = np.concatenate([np.arange(width), np.arange(2 * width, 48), np.arange(width, 2 * width)])
  side = {name: np.array(getattr(rows, name))[:, prompts] for name in rows._fields[:3]}
  pads = np.arange(48) >= 48 - width
  side = {name: np.where(pads, 0, array) for name, array in side.items()}
  renamed = np.array([0, 1, 1, 2, 3])
  rows = rows._replace(
    prompt_tokens=side['prompt_tokens'],
    prompt_segments=renamed[side['prompt_segments']],
    prompt_positions=side['prompt_positions'],
    response_prompt=renamed[np.array(rows.response_prompt)],
  )
  return jax.tree.map(jnp.asarray, rows)


@functools.cache
def network(kind, **changes):
  return policy.make_network(dataclasses.replace(tiny.config(kind), **dict(changes)))


def score(kind, rows, net=None, params=None):
  net, params = net or network(kind), params or tiny.params(kind)
  return jax.jit(scoring.make_score(net))({'policy': params}, rows, None)


def check_packed_and_grouped(score, token_logps):
  """Holds scores of EXAMPLES, in rows of every layout, to the log-probs of each example's tokens."""
  expected = np.concatenate(token_logps)
  for rows in (layout(EXAMPLES, 1, 4, (48, 40)), shared_rows()):
    np.testing.assert_allclose(score(rows).token_logps[0, : len(expected)], expected, rtol=1e-5, atol=1e-5)
  apart = score(layout(EXAMPLES, 4, 1, (16, 16)))
  sums = [logps.sum() for logps in token_logps]
  np.testing.assert_allclose(apart.logps[:, 0], sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_log_probs_equal_transformers_in_packed_and_grouped_rows(kind):
  check_packed_and_grouped(
    functools.partial(score, kind), [torch_logps(kind, example) for example in EXAMPLES]
  )


def check_ways_to_compute(config, params, changes_of_config):
  """Holds scores and gradients of other ways to compute a model's layers to its own."""
  rows = shared_rows()

  def loss(config):
    function = scoring.make_score(policy.make_network(config))
    return jax.jit(jax.value_and_grad(lambda tree: function({'policy': tree}, rows, None).logps.sum()))

  value, gradients = loss(config)(params)
  for changes in changes_of_config:
    scan = changes.get('scan_layers', False)
    other, others = loss(dataclasses.replace(config, **changes))(stacks.convert_layers(params, scan=scan))
    np.testing.assert_allclose(other, value, rtol=1e-6)
    unrolled = stacks.convert_layers(others, scan=False)
    assert jax.tree.structure(unrolled) == jax.tree.structure(gradients)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), unrolled, gradients)


@pytest.mark.parametrize('kind', ['gemma3', *long('smollm3', 'neox', 'gpt2')])
def test_scanned_and_rematerialised_layers_give_the_same_scores_and_gradients(kind):
  changes = {'scan_layers': True}, {'scan_layers': True, 'remat': True}, {'remat': 'dots'}
  check_ways_to_compute(tiny.config(kind), tiny.params(kind), changes)


@pytest.mark.parametrize(
  'kind, way', [pytest.param('mistral', 'blockwise', marks=pytest.mark.long), ('gemma2', 'splash')]
)
def test_every_way_of_attention_gives_the_same_scores_and_gradients(kind, way, monkeypatch):
  rows = jax.tree.map(lambda x: jnp.concatenate([x, x]), shared_rows())
  # The kernel's own program, run by jax instead of a TPU.
  monkeypatch.setitem(ways._FUNCTIONS, 'splash', functools.partial(splash.attend, interpret=True))
  monkeypatch.setattr(ways, '_device', lambda: ('tpu', 'TPU v5 lite'))

  def loss(way, changes, params):
    function = scoring.make_score(network(kind, attention=way, **changes))
    total = lambda tree: function({'policy': tree}, rows, None).token_logps.sum()  # noqa: E731
    return jax.jit(jax.value_and_grad(total))(params)

  scanned = {'scan_layers': True, 'remat': True}
  params = stacks.convert_layers(tiny.params(kind), scan=True)
  expected = loss('dense', scanned, params)
  with partitioning.use_mesh(partitioning.make_mesh(2, 1, 2, devices=jax.devices()[:4])):
    value, gradients = loss(way, scanned, params)
  np.testing.assert_allclose(value, expected[0], rtol=1e-6)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), gradients, expected[1])


def test_gradients_equal_torchs():
  kind = 'gemma3'
  model = tiny.torch_model(kind)
  function, rows = scoring.make_score(network(kind)), shared_rows()
  gradients = jax.jit(jax.grad(lambda tree: function({'policy': tree}, rows, None).logps.sum()))(
    tiny.params(kind)
  )
  model.zero_grad()
  for example in EXAMPLES:
    tokens = torch.tensor(np.concatenate([example.prompt, example.response])[None])
    logps = torch.log_softmax(model(tokens).logits[0], -1)[len(example.prompt) - 1 : -1]
    logps[torch.arange(len(example.response)), torch.tensor(example.response)].sum().backward()
  layer = model.model.layers[0]
  for name, ours in (('q_proj', 'query'), ('k_proj', 'key'), ('v_proj', 'value'), ('o_proj', 'out')):
    expected = getattr(layer.self_attn, name).weight.grad.numpy().T
    got = gradients['decoder']['layers_0']['attention'][ours]['kernel']
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  expected = model.model.embed_tokens.weight.grad.numpy()
  np.testing.assert_allclose(
    gradients['token_embedder']['embedding'], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
  )
  model.zero_grad(set_to_none=True)


def prompts_of(examples, length=16):
  tokens = np.zeros((len(examples), length), np.int32)
  segments = np.zeros_like(tokens)
  for row, prompt in enumerate(examples):
    tokens[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 1
  return jnp.asarray(tokens), jnp.asarray(segments)


@pytest.mark.parametrize('kind', tiers(('llama', 'gemma3', 'neox', 'gpt2'), KINDS))
def test_greedy_decoding_equals_transformers(kind):
  samples = sampling.sample(
    network(kind), tiny.params(kind), prompts_of(PROMPTS), 12, jax.random.key(0), temperature=0.0
  )
  for row, prompt in enumerate(PROMPTS):
    ids = torch.tensor(prompt[None])
    out = tiny.torch_model(kind).generate(
      ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
      eos_token_id=2, pad_token_id=0,
    )[0, len(prompt) :].numpy()  # fmt: skip
    length = int(samples.lengths[row])
    np.testing.assert_array_equal(samples.tokens[row, :length], out[:length])
    assert length == min(len(out), 12)
    example = Example(prompt, np.array(samples.tokens[row, :length]), 0.0)
    np.testing.assert_allclose(samples.logps[row], torch_logps(kind, example).sum(), rtol=1e-4)


@pytest.mark.parametrize('beams', [1, 3])
def test_repetition_penalties_count_the_prompt_as_transformers_does(beams):
  net, params, prompts = network('llama'), tiny.params('llama'), prompts_of(PROMPTS)
  sample = functools.partial(sampling.sample, net, params, prompts, 12, jax.random.key(0), temperature=0.0)
  search = functools.partial(beam_search.search, net, params, prompts, 12, beams=beams)
  samples = (sample if beams == 1 else search)(repetition_penalty=1.8)
  differs = False
  for row, prompt in enumerate(PROMPTS):
    ids = torch.tensor(prompt[None])
    generate = functools.partial(
      tiny.torch_model('llama').generate, ids, attention_mask=torch.ones_like(ids), max_new_tokens=12,
      do_sample=False, num_beams=beams, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    expected = generate(repetition_penalty=1.8)[0, len(prompt) :].numpy()
    length = int(samples.lengths[row])
    np.testing.assert_array_equal(samples.tokens[row, :length], expected[:length])
    of_response = transformers.RepetitionPenaltyLogitsProcessor(1.8, prompt_ignore_length=len(prompt))
    other = generate(logits_processor=[of_response])[0, len(prompt) :].numpy()
    differs |= not np.array_equal(other, expected)
  assert differs  # Without the prompt's tokens the answers would be others.


@pytest.mark.parametrize('kind', [*long('gemma2'), 'qwen3'])
def test_copies_share_their_prompts_keys_and_score_like_whole_responses(kind):
  net, params, prompts = network(kind), tiny.params(kind), prompts_of(PROMPTS)
  tokens = RNG.integers(3, 99, (6, 5))
  states, cache = policy.start(net, params, prompts, 5, copies=2)
  assert cache.prompt.keys.shape[1] == 3 and cache.response.keys.shape[1] == 6
  logps = []
  for i in range(5):
    logps.append(jax.nn.log_softmax(policy.next_logits(net, params, states))[np.arange(6), tokens[:, i]])
    if i == 2:  # A permutation within each prompt's copies, and all rows of a cache, in another order.
      order = jnp.array([1, 0, 3, 2, 5, 4])
      swapped = policy.select(net, cache, order, same_prompts=True)
      apart = policy.select(net, swapped, order)
      assert apart.prompt.keys.shape[1] == 6
      cache = apart
    states, cache = policy.advance(net, params, cache, jnp.asarray(tokens[:, i]), jnp.asarray(i + 1))
  for row in range(6):
    expected = torch_logps(kind, Example(PROMPTS[row // 2], tokens[row], 0.0))
    np.testing.assert_allclose([step[row] for step in logps], expected, rtol=1e-4)


def test_a_mismatched_response_is_scored_after_the_other_prompt():
  examples = [Example(PROMPTS[i], EXAMPLES[i].response, 0.0) for i in range(3)]
  rows = layout(examples, 3, 1, (16, 16), mismatches=[2, 0, 1])
  logps = score('llama', rows).mismatched_logps
  for i, j in enumerate([2, 0, 1]):
    expected = torch_logps('llama', Example(PROMPTS[j], EXAMPLES[i].response, 0.0)).sum()
    np.testing.assert_allclose(logps[(i - 1) % 3, 0], expected, rtol=1e-5)


def test_bfloat16_stays_near_float32():
  exact = score('qwen3', shared_rows()).logps
  half = score('qwen3', shared_rows(), network('qwen3', dtype='bfloat16')).logps
  np.testing.assert_allclose(half, exact, rtol=0.05)
  assert half.dtype == jnp.float32


def test_a_table_without_a_size_is_refused():
  with pytest.raises(UsageError, match='vocab_size is None'):
    policy.make_network(CausalConfig()).init(jax.random.key(0), policy.smallest_rows())
