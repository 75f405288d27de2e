"""The `generate` command: responses to a file's prompts."""

import dataclasses
import functools
import itertools
import logging
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dro_jax import files, limits
from dro_jax.checkpoints import folders, policy
from dro_jax.data.records import inheritance, triplets
from dro_jax.data.records.answers import can_train
from dro_jax.data.storage.partial import Partial
from dro_jax.data.text import tokenise
from dro_jax.errors import UsageError
from dro_jax.evaluation import answering
from dro_jax.parallel import partitioning, processes
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.run import networks
from dro_jax.run.folder import reading
from dro_jax.run.sampling.decoding import Decoding, refuse_beams
from dro_jax.run.sampling.generation import make_generator
from dro_jax.run.sampling.prompts import tokenise_prompts, uses_chat


def generate(
  model_dir: str,
  prompts: str | None = None,
  *,
  prompt: str | None = None,
  output: str | None = None,
  steps: str | Sequence[int] | None = None,
  columns: str | None = None,
  template: str | None = None,
  chat_template: str | None = None,
  chat: bool | None = None,
  vocabulary: str | None = None,
  mesh: MeshSpec = MeshSpec(),
  max_length: int = Decoding.max_length,
  temperature: float = Decoding.temperature,
  top_k: int = Decoding.top_k,
  top_p: float = Decoding.top_p,
  repetition_penalty: float = Decoding.repetition_penalty,
  beams: int = Decoding.beams,
  length_penalty: float = Decoding.length_penalty,
  num_samples: int = Decoding.num_samples,
  batch_size: int = Decoding.batch_size,
  seed: int = Decoding.seed,
  base: str | None = None,
  reference_logp: str | None = None,
  init_from: str | None = None,
) -> dict[str, Any]:
  """Answers prompts and writes one JSON object a line: id, prompt, response, logp, tokens, ended.

  The prompts are those of the file, without the template. Several samples get the ids ID#0, ID#1 and so on.
  With a reward added to each line, the output is a file of triplets. Answers of chosen steps have `step`, and
  the ids ID@STEP.

  A call that was killed goes on where it stopped, once it is made again: the answers so far lie in
  OUTPUT.partial. The file is then the same, to the byte, as that of an undisturbed call on the same machine
  and with the same batches. Of several processes each answers its part of a batch, and the first writes.

  Args:
    model_dir: a run's folder (its best step, or the newest), one checkpoint, or an imported folder.
    prompts: a file whose records have a prompt (any triplet format; other fields are not needed); each prompt
      is answered once, however often it occurs.
    prompt: one prompt as text, instead of a file.
    output: the file to write, `None` for standard output.
    steps: the run's steps to answer with, one after the other: '100,200', or 'all' that it kept; `None` takes
      the best or newest alone.
    columns: names of the fields in the file: `prompt=question`; `None` takes the run's, if the
      file has those.
    template: the prompt's text around the file's; `None` takes the run's.
    chat_template: of each turn where the file's prompts are conversations; `None` takes the run's.
    chat: whether the model's own chat template writes the prompts; `None` is as in the run.
    vocabulary: where the run's lies now; `None` takes it from where it lay.
    mesh: devices' arrangement.
    max_length: most tokens of a response.
    temperature: divides the logits; 0 takes the most probable token.
    top_k: keep the k most probable tokens; 0 keeps all.
    top_p: keep the fewest tokens whose mass reaches p; 1 keeps all.
    repetition_penalty: penalises tokens that the response has already, and of a decoder-only model its prompt
      too; 1 does not.
    beams: prefixes that a beam search keeps, at temperature 0; 1 is no search.
    length_penalty: exponent of the length by which that search divides a response's log-prob.
    num_samples: responses to each prompt.
    batch_size: prompts at once.
    seed: decides the samples.
    base: of a run with adapters, where their base lies now; `None` takes it from where it lay.
    reference_logp: the policy under which each answer is scored too, as `reference_logp` in nats: `run` is
      the run's own reference (its initial policy, where that moves), anything else a checkpoint's folder;
      `None` scores none.
    init_from: with `run`, where the policy lies now from which the run started, if its reference was cached.

  Raises:
    UsageError: there are no prompts or no checkpoint, settings exclude each other, or the answers so far are
      those of other settings.
  """
  limits.seed(seed)
  decoding = Decoding(
    max_length=max_length, temperature=temperature, top_k=top_k, top_p=top_p,
    repetition_penalty=repetition_penalty, beams=beams, length_penalty=length_penalty,
    num_samples=num_samples, batch_size=batch_size, seed=seed,
  )  # fmt: skip
  refuse_beams(decoding)
  _refuse_unread(reference_logp, init_from)
  target = None if output is None else _target(output)
  if target is not None and prompts is not None:
    files.refuse_input(target, triplets.expand(prompts))
  checkpoints = _checkpoints(model_dir, steps)
  first, grid = next(iter(checkpoints.values())), mesh.over()
  loaded_vocabulary = policy.vocabulary_of(first, vocabulary)
  options = reading.options_of(folders.load_metadata(first))
  by_chat = uses_chat(loaded_vocabulary, options, chat, chat_template)
  turn = tokenise.turn_template(by_chat, chat_template or options.get('chat_template'))
  questions = _questions(first, prompts, prompt, columns, turn)
  tokens = tokenise_prompts([text for _, text in questions], loaded_vocabulary, options, template, by_chat)
  nets = networks.build_policy(first)
  run = make_generator(nets.policy, grid, dataclasses.replace(decoding, num_samples=1))
  work = answering.Work(
    checkpoints, questions, tokens, num_samples, partitioning.divisible_rows(grid, batch_size)
  )
  policies = answering.Policies(nets, grid, base)
  reference = reference_logp and functools.partial(
    answering.make_reference, reference_logp, first, policies, loaded_vocabulary, init_from=init_from,
    max_length=max_length, batch_size=batch_size,
  )  # fmt: skip
  answer = functools.partial(answering.answer, work, run, policies, reference, loaded_vocabulary)
  if target is None:
    # Standard output holds the answers, or what was written to a file: never both.
    _print(_warn_of_unusable(itertools.chain.from_iterable(answer())))
    return {}
  settings = {
    **decoding.distribution(), 'seed': seed, 'samples': num_samples,
    'vocabulary': loaded_vocabulary.fingerprint,
    'checkpoints': {str(step): answering.digest_of(folder) for step, folder in checkpoints.items()},
    'prompts': _digest_of_prompts(questions, tokens),
    'reference': answering.reference_digest(reference_logp, first),
  }  # fmt: skip
  drawn = _write(target, settings, work.ids, answer)
  chosen = {} if steps is None else {'steps': list(checkpoints)}
  return {
    'prompts': len(tokens), 'responses': len(work.ids), **chosen, 'drawn': drawn, 'output': str(target)
  }  # fmt: skip


# --- what decides the answers -------------------------------------------------------------------------------


def _refuse_unread(reference_logp: str | None, init_from: str | None) -> None:
  if init_from is not None and reference_logp != answering.OWN:
    raise UsageError(
      f'--init_from={init_from} says where the reference of the run lies now, which only --set '
      'REFERENCE_LOGP=run reads: pass that too, or leave --init_from.'
    )


def _checkpoints(model_dir: str, steps: str | Sequence[int] | None) -> dict[int | None, str]:
  """The checkpoints to answer with, by their steps; one that was not chosen by its step has none."""
  if steps is None:
    return {None: str(folders.find_checkpoint(model_dir))}
  chosen = None if steps == 'all' else _numbers(steps)
  return {step: str(folder) for step, folder in folders.find_steps(model_dir, chosen).items()}


def _numbers(steps: str | Sequence[int]) -> list[int]:
  parts = steps.split(',') if isinstance(steps, str) else steps
  try:
    numbers = [int(part) for part in parts]
  except ValueError:
    numbers = []
  if not numbers:
    raise UsageError(f"steps={steps!r} (STEPS) names no steps: pass them as '100,200', or 'all'.")
  return numbers


def _digest_of_prompts(questions: Sequence[tuple[str, str]], tokens: Sequence[np.ndarray]) -> str:
  """A hash of the prompts: ids, texts, and the tokens that the model reads."""
  texts = (files.json_text(question).encode() for question in questions)
  return files.hash_parts(
    part for text, ids in zip(texts, tokens) for part in (text, np.ascontiguousarray(ids, '<i4').tobytes())
  )


def _target(output: str) -> pathlib.Path:
  """The file to write, checked before the first answer; the first of several processes writes it."""
  return files.output_file(output) if jax.process_index() == 0 else pathlib.Path(output).expanduser()


def _questions(
  model_dir: str, prompts: str | None, prompt: str | None, columns: str | None, turn: str | None
) -> list[tuple[str, str]]:
  """Returns (id, text) of every prompt to answer, each text once; reads them as the run read its own."""
  if (prompts is None) == (prompt is None):
    raise UsageError(
      'generate needs prompts from one place: pass --triplets=FILE, or a single prompt as --set PROMPT=TEXT.'
    )
  if prompt is not None:
    return [('0', prompt)]
  own = reading.names_of(folders.load_metadata(model_dir), model_dir)
  names = inheritance.options({'columns': own['columns']}, prompts, columns)['columns']
  first_id = {}
  for record_id, text in triplets.read_prompts(prompts, names, chat_template=turn):
    first_id.setdefault(text, record_id)
  return [(record_id, text) for text, record_id in first_id.items()]


# --- where they go ------------------------------------------------------------------------------------------


def _write(
  target: pathlib.Path,
  settings: Mapping[str, Any],
  ids: Sequence[str],
  batches: Callable[[int], Iterable[list[dict[str, Any]]]],
) -> int:
  """Writes what is missing of a file, which is there whole or not at all; returns how much was missing.

  The first process writes, and tells the others how many records there are.
  """
  made: list[Partial] = []

  def begin() -> int:
    made.append(Partial(target, settings, ids, 'answers'))
    return made[0].count

  count = processes.from_first(begin)
  if count and made:
    logging.getLogger(__name__).info('%s: %d of %d answers are there already', target, count, len(ids))
  try:
    for records in batches(count):
      for each in made:
        each.add(records)
    for each in made:
      each.finish()
      for _ in _warn_of_unusable(files.json_lines(target)):
        pass
  finally:
    for each in made:
      each.close()
  return len(ids) - count


def _warn_of_unusable(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """Yields the records; warns at the end of those that a file of triplets may not have."""
  unusable = []
  for record in records:
    yield record
    if not can_train(record['response']):
      unusable.append(record['id'])
  if unusable:
    ids = ', '.join(unusable[:5]) + (', ...' if len(unusable) > 5 else '')
    logging.getLogger(__name__).warning(
      '%d responses are blank or hold a NUL character (%s): remove them before you train on this file',
      len(unusable), ids,
    )  # fmt: skip


def _print(records: Iterable[dict[str, Any]]) -> None:
  """Writes JSON lines to standard output."""
  for line in map(files.json_line, records):
    if jax.process_index() == 0:
      sys.__stdout__.write(line)


__all__ = ['generate']
