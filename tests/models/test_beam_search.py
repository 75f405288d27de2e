"""Beam search gives transformers' answers, and the best of all responses where beams hold them all."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dro_jax.checkpoints.huggingface import read as huggingface
from dro_jax.errors import UsageError
from dro_jax.models import beam_search, sampling
from dro_jax.models.causal.network import Causal
from dro_jax.models.policy import smallest_rows
from dro_jax.models.t5.network import T5
from dro_jax.ops import logprobs
from dro_jax.parallel import partitioning
from dro_jax.types import Rows
from tests.models.causal import tiny
from tests.models.test_sampling import CONFIG, EOS, SEGMENTS, TOKENS, params
from tests.torch_t5 import make_torch, torch

LENGTH = 9
PROMPT_LENGTHS = np.array([5, 3, 2, 4, 5, 1, 4, 3, 5, 2, 5, 4])
PROMPTS = np.random.default_rng(3).integers(2, 20, (12, 5)).astype(np.int32) * (
  np.arange(5) < PROMPT_LENGTHS[:, None]
)


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """A T5 of transformers whose answers end now and then within LENGTH, and the same here."""
  model, folder = make_torch('1.1', vocab_size=20), tmp_path_factory.mktemp('hf') / 't5'
  with torch.no_grad():
    weights = model.lm_head.weight
    weights[EOS] = 0.45 * (weights[5] + weights[19] + weights[8])
  model.save_pretrained(folder)
  return model, *huggingface.load(folder)


def by_transformers(model, **settings):
  """Its answers, zeros after EOS: what it fills shorter ones with is EOS itself."""
  tokens = model.generate(
    input_ids=torch.tensor(PROMPTS).long(), attention_mask=torch.tensor(PROMPTS > 0).long(),
    max_new_tokens=LENGTH, do_sample=False, eos_token_id=EOS, pad_token_id=0, **settings,
  ).numpy()[:, 1:]  # fmt: skip
  tokens = np.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1])))
  is_over = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS) > 0
  return np.where(is_over, 0, tokens)


def by_beams(config, tree, tokens=PROMPTS, length=LENGTH, **settings):
  prompts = jnp.asarray(tokens), jnp.asarray(tokens > 0, jnp.int32)
  return jax.device_get(beam_search.search(T5(config), tree, prompts, length, **settings))


def lengths(tokens):
  ends = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS)
  return (ends == 0).sum(axis=1)


@pytest.mark.parametrize(
  'beams, length_penalty, repetition_penalty',
  [(2, 1.0, 1.0), (4, 1.0, 2.5), (3, 0.0, 1.0), (3, 0.5, 1.5)],
)
def test_answers_equal_those_of_transformers(loaded, beams, length_penalty, repetition_penalty):
  model, config, tree = loaded
  expected = by_transformers(
    model, num_beams=beams, length_penalty=length_penalty, repetition_penalty=repetition_penalty
  )
  found = by_beams(
    config, tree, beams=beams, length_penalty=length_penalty, repetition_penalty=repetition_penalty
  )
  np.testing.assert_array_equal(found.tokens, expected)
  np.testing.assert_array_equal(found.lengths, lengths(expected))
  assert 1 <= found.lengths.min() < found.lengths.max() == LENGTH


CAUSAL_EOS = 2
CAUSAL_PROMPTS = [[5, 9, 30, 7], [11, 4], [60, 61, 62], [8, 8, 8, 90, 3], [17], [33, 21, 5]]


def causal_by_transformers(kind, **settings):
  """Answers and scores of a decoder-only model, with prompts padded on the left, as it wants them."""
  longest = max(map(len, CAUSAL_PROMPTS))
  tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in CAUSAL_PROMPTS])
  found = tiny.torch_model(kind).generate(
    input_ids=tokens, attention_mask=(tokens > 0).long(), max_new_tokens=LENGTH, do_sample=False,
    eos_token_id=CAUSAL_EOS, pad_token_id=0, return_dict_in_generate=True, output_scores=True, **settings,
  )  # fmt: skip
  tokens = found.sequences[:, longest:].numpy()
  tokens = np.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1])))
  is_over = np.cumsum(tokens == CAUSAL_EOS, axis=1) - (tokens == CAUSAL_EOS) > 0
  return np.where(is_over, 0, tokens), found


@pytest.mark.parametrize(
  'kind, settings',
  [
    ('smollm2', {'beams': 2, 'repetition_penalty': 2.5}),
    ('neox', {'beams': 2, 'repetition_penalty': 2.5}),
    ('gpt2', {'beams': 3, 'length_penalty': 0.5}),
    pytest.param('gemma3', {'beams': 2, 'repetition_penalty': 2.5}, marks=pytest.mark.long),
  ],
)
def test_a_decoder_only_models_answers_equal_those_of_transformers(kind, settings):
  expected, theirs = causal_by_transformers(
    kind, num_beams=settings['beams'], **{name: x for name, x in settings.items() if name != 'beams'}
  )
  longest = max(map(len, CAUSAL_PROMPTS))
  prompts = np.array([prompt + [0] * (longest - len(prompt)) for prompt in CAUSAL_PROMPTS], np.int32)
  segments = np.int32(prompts > 0)
  config = dataclasses.replace(tiny.config(kind), pad=0, eos=CAUSAL_EOS, scan_layers=False)
  found = jax.device_get(
    beam_search.search(
      Causal(config), tiny.params(kind), (jnp.asarray(prompts), jnp.asarray(segments)), LENGTH, **settings
    )
  )
  np.testing.assert_array_equal(found.tokens, expected)
  if 'repetition_penalty' not in settings:
    scores = found.logps / found.lengths ** settings['length_penalty']
    np.testing.assert_allclose(scores, theirs.sequences_scores.numpy(), rtol=1e-4)


def test_scores_equal_those_of_transformers(loaded):
  model, config, tree = loaded
  theirs = model.generate(
    input_ids=torch.tensor(PROMPTS).long(), attention_mask=torch.tensor(PROMPTS > 0).long(), num_beams=2,
    max_new_tokens=LENGTH, do_sample=False, eos_token_id=EOS, pad_token_id=0, output_scores=True,
    return_dict_in_generate=True,
  ).sequences_scores  # fmt: skip
  found = by_beams(config, tree, beams=2)
  np.testing.assert_allclose(found.logps / found.lengths, theirs.numpy(), rtol=1e-4)


def test_greedy_answers_with_a_penalty_equal_those_of_transformers(loaded):
  model, config, tree = loaded
  prompts = jnp.asarray(PROMPTS), jnp.asarray(PROMPTS > 0, jnp.int32)
  found = sampling.sample(
    T5(config), tree, prompts, LENGTH, jax.random.key(0), temperature=0.0, repetition_penalty=2.5
  )
  expected = by_transformers(model, num_beams=1, repetition_penalty=2.5)
  np.testing.assert_array_equal(found.tokens, expected)


@functools.cache
def forward(config):
  return jax.jit(T5(config).apply)


def score(config, tree, tokens, responses):
  """log π of each token of responses to one prompt, in one pass."""
  rows = len(responses)
  inside = (np.arange(responses.shape[1])[None] < lengths(responses)[:, None]).astype(np.int32)
  prompts = np.tile(tokens, (rows, 1))
  out = Rows(
    prompt_tokens=prompts, prompt_segments=np.int32(prompts > 0), prompt_positions=np.zeros_like(prompts),
    response_tokens=responses, response_segments=inside,
    response_positions=np.tile(np.arange(responses.shape[1], dtype=np.int32), (rows, 1)),
    response_prompt=inside, rewards=np.zeros((rows, 1), np.float32), example_id=np.zeros((rows, 1), np.int32),
    valid=np.ones((rows, 1), bool),
  )  # fmt: skip
  logits = forward(config)({'params': tree}, out)
  return np.asarray(logprobs.token_logps(logits, jnp.asarray(responses))) * inside


@pytest.mark.parametrize('length_penalty', [0.0, 1.0, 3.0])
def test_beams_that_hold_all_prefixes_find_the_best_of_all_responses(length_penalty):
  """Of 5 tokens and at most 3 of them: 16 prefixes go on at most, and 4³ + 21 responses are enumerated."""
  config = dataclasses.replace(CONFIG, vocab_size=5)
  shapes = nn.unbox(jax.eval_shape(T5(config).init, jax.random.key(0), smallest_rows())['params'])
  rng = np.random.default_rng(5)
  tree = jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape), jnp.float32), shapes)
  prompts = np.array([[2, 3, 4], [4, 1, 0], [3, 3, 0]], np.int32)
  found = by_beams(config, tree, prompts, length=3, beams=32, length_penalty=length_penalty)
  # Each response once: what follows EOS is 0.
  everything = np.array(list(itertools.product(range(5), repeat=3)), np.int32)
  ended = np.cumsum(everything == EOS, axis=1) - (everything == EOS) > 0
  everything = np.unique(np.where(ended, 0, everything), axis=0)
  for row, prompt in enumerate(prompts):
    logps = score(config, tree, prompt, everything).sum(axis=1)
    best = np.argmax(logps / lengths(everything) ** length_penalty)
    np.testing.assert_array_equal(found.tokens[row], everything[best])
    np.testing.assert_allclose(found.logps[row], logps[best], rtol=1e-5)


def test_log_probs_are_the_policys_own_with_penalties(loaded):
  _, config, tree = loaded
  found = by_beams(config, tree, beams=3, repetition_penalty=2.5)
  for prompt, tokens, logp in zip(PROMPTS[:3], found.tokens, found.logps):
    np.testing.assert_allclose(score(config, tree, prompt, tokens[None]).sum(), logp, rtol=1e-4)


def test_one_beam_is_greedy():
  prompts = jnp.asarray(TOKENS), jnp.asarray(SEGMENTS)
  greedy = sampling.sample(T5(CONFIG), params(), prompts, LENGTH, jax.random.key(0), temperature=0.0)
  found = beam_search.search(T5(CONFIG), params(), prompts, LENGTH, beams=1)
  np.testing.assert_array_equal(found.tokens, greedy.tokens)
  np.testing.assert_allclose(found.logps, greedy.logps, rtol=1e-5)


@pytest.mark.long
def test_batches_meshes_and_rows_of_padding_change_no_answer(loaded):
  _, config, tree = loaded
  together = by_beams(config, tree, beams=3, repetition_penalty=1.3)
  padded = np.concatenate([PROMPTS[4:7], np.zeros((1, 5), np.int32)])
  apart = by_beams(config, tree, padded, beams=3, repetition_penalty=1.3)
  np.testing.assert_array_equal(apart.tokens[:3], together.tokens[4:7])
  assert (apart.lengths[3], apart.logps[3]) == (0, 0.0) and not apart.tokens[3].any()
  with partitioning.use_mesh(partitioning.make_mesh(data=2, fsdp=2, model=2)):
    sharded = by_beams(config, tree, beams=3, repetition_penalty=1.3)
  np.testing.assert_array_equal(sharded.tokens, together.tokens)
  np.testing.assert_allclose(sharded.logps, together.logps, rtol=1e-4)


def test_penalties_follow_transformers_rule_and_1_changes_no_sample():
  scores, seen = jnp.array([[2.0, -1.0, 3.0, -4.0]]), jnp.array([[True, True, False, False]])
  np.testing.assert_allclose(sampling.penalised(scores, seen, 2.5), [[0.8, -2.5, 3.0, -4.0]], rtol=1e-6)
  prompts = jnp.asarray(TOKENS), jnp.asarray(SEGMENTS)
  sample = functools.partial(sampling.sample, T5(CONFIG), params(), prompts, LENGTH, jax.random.key(3))
  plain, same, other = sample(), sample(repetition_penalty=1.0), sample(repetition_penalty=5.0)
  np.testing.assert_array_equal(plain.tokens, same.tokens)
  repeated = lambda tokens: sum(len(row) - len(set(row)) for row in np.asarray(tokens).tolist())  # noqa: E731
  assert repeated(other.tokens) < repeated(plain.tokens)


@pytest.mark.parametrize(
  'settings', [{'beams': 0}, {'beams': 2, 'length': 0}, {'beams': 2, 'repetition_penalty': 0.0}]
)
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(UsageError, match='pass'):
    by_beams(CONFIG, {}, **settings)
