"""Answers of sides that are policies: drawn once, and kept by what decides them."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dro_jax import files, limits
from dro_jax.checkpoints import folders, policy
from dro_jax.data.storage import hashes
from dro_jax.data.storage.journal import Journal
from dro_jax.data.text import tokenise
from dro_jax.evaluation.judge import sides
from dro_jax.evaluation.judge.prompts import Prompt
from dro_jax.evaluation.judge.sides import Side
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run import trained
from dro_jax.run.folder import reading
from dro_jax.run.sampling.decoding import Decoding, refuse_beams
from dro_jax.run.sampling.generation import make_generator
from dro_jax.run.sampling.prompts import tokenise_prompts, uses_chat


def check(decoding: Decoding) -> None:
  """Refuses settings that cannot work."""
  limits.seed(decoding.seed)
  limits.above_zero(
    'Decoding', 'there would be no answer', max_length=decoding.max_length, num_samples=decoding.num_samples,
    batch_size=decoding.batch_size, beams=decoding.beams,
  )  # fmt: skip
  refuse_beams(decoding)


def of_side(
  side: Side,
  prompts: Sequence[Prompt],
  folder: pathlib.Path,
  mesh: Callable[[], Mesh],
  decoding: Decoding,
  columns: str | Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
  """A side's answers by the prompt's text; prompts that a file does not answer are left out.

  Args:
    side: who answers.
    prompts: to answer.
    folder: where answers are kept, so that a second call draws nothing again.
    mesh: makes the devices' arrangement, which a file does without.
    decoding: how.
    columns: a file's names of fields.
  """
  if side.kind == sides.FILE:
    found = sides.read_answers(side.path, columns)
    # A chat model's answers name a conversation of one turn by that turn's text.
    given = {prompt.text: found.get(prompt.text, found.get(prompt.turns)) for prompt in prompts}
    return {text: answers for text, answers in given.items() if answers}
  # Resolved once: a run in progress may have a better step later.
  side = side._replace(path=str(folders.find_checkpoint(side.path)))
  digest = files.hash_parts([sides.checkpoint_digest(side).encode(), decoding.key().encode()])
  journal = Journal(folder / 'answers' / f'{digest}.jsonl')
  try:
    drawn = {(record['prompt'], record['sample']): record['response'] for record in journal.records}
    missing = [
      (prompt, k) for prompt in prompts for k in range(decoding.num_samples) if (prompt.text, k) not in drawn
    ]
    if missing:
      drawn |= _draw(side, missing, journal, mesh(), decoding)
  finally:
    journal.close()
  return {prompt.text: [drawn[prompt.text, k] for k in range(decoding.num_samples)] for prompt in prompts}


def _draw(
  side: Side, missing: Sequence[tuple[Prompt, int]], journal: Journal, mesh: Mesh, decoding: Decoding
) -> dict[tuple[str, int], str]:
  """Draws answers to (prompt, number) and writes each as it comes."""
  logging.getLogger(__name__).info('%s: %d answers to draw', side.name, len(missing))
  vocabulary = policy.vocabulary_of(side.path)
  options = reading.options_of(folders.load_metadata(side.path))
  turn = tokenise.turn_template(uses_chat(vocabulary, options), options.get('chat_template'))
  tokens = tokenise_prompts([prompt.by(turn) for prompt, _ in missing], vocabulary, options)
  load = trained.load_reference if side.kind == sides.REFERENCE else trained.load_network
  network = load(side.path, mesh)
  draw = make_generator(network.module, mesh, dataclasses.replace(decoding, num_samples=1))
  found = {}
  for (prompt, k), answer in zip(missing, draw(network.params, tokens, _ids(missing))):
    response = answer.decoded(vocabulary)
    about = {'id': prompt.id, 'prompt': prompt.text, 'sample': k}
    journal.append({**about, **response.record(), 'side': side.name})
    found[prompt.text, k] = response.text
  return found


def _ids(missing: Sequence[tuple[Prompt, int]]) -> list[int]:
  """Numbers by which random keys differ: of the prompt and the sample alone, not of the other prompts."""
  digests = hashes.digests(f'{k} {prompt.text}' for prompt, k in missing)
  return (digests & np.uint64(0x7FFFFFFF)).astype(np.int64).tolist()
