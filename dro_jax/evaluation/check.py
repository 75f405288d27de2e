"""The `check` command: describes a checkpoint, and checks that scoring and sampling agree."""

from typing import Any

import jax
import numpy as np

from dro_jax.algorithms.base import NO_LOSS
from dro_jax.checkpoints import folders, policy
from dro_jax.data.batches.rows import single_rows
from dro_jax.data.records import triplets
from dro_jax.data.text import tokenise
from dro_jax.models import scoring
from dro_jax.models.policy import family_of
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh, MeshSpec
from dro_jax.run import networks
from dro_jax.run.sampling import generation
from dro_jax.run.sampling.decoding import Decoding
from dro_jax.run.sampling.prompts import tokenise_prompts
from dro_jax.step import reference, train_step
from dro_jax.step import state as train_state
from dro_jax.types import Array, Params, Rows

# What each kind of model is used for. Tasks that T5 and FLAN were trained on:
TASKS = (
  'translate English to German: The house is wonderful.',
  'summarize: The river rose by two metres overnight. The bridge was closed, and children stayed at home.',
  'cola sentence: The course is jumping well.',
  'stsb sentence1: A man plays a flute. sentence2: A man is playing the flute.',
  'Question: Which city is the capital of France? Answer:',
)
# A person's turn, for a model with a chat template.
QUESTIONS = (
  'Which city is the capital of France?',
  'How many legs do two spiders have? Think step by step.',
  'Summarise in one sentence: The river rose by two metres overnight. The bridge was closed, and children '
  'stayed at home.',
  'Translate into German: The house is wonderful.',
  'Write two lines of verse about rain.',
)
# Texts to go on with, for a decoder-only model without one.
BEGINNINGS = (
  'The capital of France is',
  'Once upon a time, in a house by the sea,',
  'To make a cup of tea, first',
  'Question: How many legs does a spider have?\nAnswer:',
  'English: The house is wonderful.\nGerman:',
)


def check(
  init_from: str,
  prompts: str | None = None,
  *,
  columns: str | None = None,
  max_length: int = 32,
  dtype: str | None = None,
  vocabulary: str | None = None,
  mesh: MeshSpec = MeshSpec(),
  base: str | None = None,
) -> dict[str, Any]:
  """Answers five prompts greedily, and scores the answers with the checkpoint as policy and as reference.

  Args:
    init_from: an imported folder, a run's folder, or one checkpoint of it.
    prompts: a file of which the first five prompts are answered; `None` takes `QUESTIONS` for a model with a
      chat template, `BEGINNINGS` for another decoder-only model, and `TASKS` for an encoder-decoder.
    columns: names of the fields in the file: `prompt=question`.
    max_length: most tokens of an answer.
    dtype: activations' type; `None` takes the model's.
    vocabulary: where the checkpoint's lies now; `None` takes it from where it lay.
    mesh: devices' arrangement.
    base: of an adapter's checkpoint, where its base lies now; `None` takes it from where it lay.

  Returns:
    Parameters, vocabulary, `log_ratio`: the largest |ρ| = |log π − log π_ref|, which is 0;
    `sampled_and_scored`: the largest difference in nats between an answer's log-probs in sampling and in
    scoring; and the answers.

  Raises:
    UsageError: there is no checkpoint, or there are no prompts.
    RuntimeError: ρ is not 0 exactly.
  """
  device_mesh = mesh.over()
  init_from = str(folders.find_checkpoint(init_from))
  loaded_vocabulary, nets = (
    policy.vocabulary_of(init_from, vocabulary),
    networks.build_policy(init_from, dtype=dtype),
  )
  params = networks.load_policy(nets, init_from, device_mesh, base)
  by_chat = tokenise.uses_chat(loaded_vocabulary, None)
  turn = tokenise.turn_template(by_chat, None)
  own_kind = prompts_for(family_of(nets.policy.config).continues_prompts, by_chat)
  texts = _first_prompts(prompts, columns, turn) if prompts else own_kind
  tokens = tokenise_prompts(texts, loaded_vocabulary, {}, by_chat=by_chat)
  answer_prompts = generation.make_generator(
    nets.policy, device_mesh, Decoding(max_length, temperature=0.0, batch_size=len(tokens))
  )
  answers = list(answer_prompts(params, tokens, range(len(tokens))))
  logps, reference_logps = _score(nets, params, device_mesh, tokens, [answer.tokens for answer in answers])
  rho = float(np.abs(logps - reference_logps).max())
  if rho != 0:
    raise RuntimeError(f'{init_from}: the log-ratio of the policy to itself is {rho} nats, and must be 0')
  return {
    'checkpoint': init_from,
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'vocabulary': loaded_vocabulary.spec,
    'log_ratio': rho,
    'sampled_and_scored': float(np.abs(logps - [answer.logp for answer in answers]).max()),
    'answers': {
      text: loaded_vocabulary.decode(answer.tokens) for text, answer in zip(texts, answers, strict=True)
    },
  }


def prompts_for(continues_prompts: bool, by_chat: bool) -> tuple[str, ...]:
  """Five prompts of the kind that a model was made for.

  Args:
    continues_prompts: see `Family`.
    by_chat: whether a chat template writes its prompts.
  """
  if by_chat:
    return QUESTIONS
  return BEGINNINGS if continues_prompts else TASKS


def _first_prompts(file: str, columns: str | None, turn: str | None, count: int = 5) -> list[str]:
  """The first different prompts of a file."""
  texts = {}
  for _, text in triplets.read_prompts(file, columns, chat_template=turn):
    texts.setdefault(text)
    if len(texts) == count:
      break
  return list(texts)


def _score(
  nets: networks.Networks, params: Params, mesh: Mesh, prompts: list[np.ndarray], responses: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """Log-probs of responses by the policy, and by the same parameters as its reference."""
  score = scoring.make_score(nets.policy)
  evaluate = train_step.make_evaluate(score, NO_LOSS, reference.Frozen().build(score))

  def logps(state: train_state.TrainState, rows: Rows) -> tuple[Array, Array]:
    scores, reference_scores, _ = evaluate(state, rows)
    return scores.logps, reference_scores.logps

  state = train_state.TrainState(np.zeros((), np.int32), {'policy': params}, {}, reference=params)
  rows = single_rows(
    prompts, responses, num_rows=partitioning.divisible_rows(mesh, len(prompts)),
    prompt_length=max(map(len, prompts)), response_length=max(map(len, responses)),
  )  # fmt: skip
  arrays = jax.device_get(partitioning.jit_on(mesh, logps)(state, partitioning.place_rows(mesh, rows)))
  own, other = (array[: len(prompts), 0].astype(np.float64) for array in arrays)
  return own, other


__all__ = ['check']
