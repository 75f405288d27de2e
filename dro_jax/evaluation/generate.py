"""The `generate` command: responses to a file's prompts."""

import contextlib
import logging
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from dro_jax import files, limits
from dro_jax.checkpoints import folders, policy
from dro_jax.data.records import inheritance, triplets
from dro_jax.data.text import tokenise
from dro_jax.errors import UsageError
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.run import networks
from dro_jax.run.folder import configs
from dro_jax.run.sampling.generation import make_generator
from dro_jax.run.sampling.prompts import tokenise_prompts, uses_chat


def generate(
  model_dir: str,
  prompts: str | None = None,
  *,
  prompt: str | None = None,
  output: str | None = None,
  columns: str | None = None,
  template: str | None = None,
  chat_template: str | None = None,
  chat: bool | None = None,
  vocabulary: str | None = None,
  mesh: MeshSpec = MeshSpec(),
  max_length: int = 128,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  repetition_penalty: float = 1.0,
  beams: int = 1,
  length_penalty: float = 1.0,
  num_samples: int = 1,
  batch_size: int = 32,
  seed: int = 0,
  base: str | None = None,
) -> dict[str, Any]:
  """Answers prompts and writes one JSON object a line: id, prompt, response, logp, tokens, ended.

  The prompts are those of the file, without the template. Several samples get the ids ID#0, ID#1 and so on.
  With a reward added to each line, the output is a file of triplets.

  Args:
    model_dir: a run's folder (its best step, or the newest), one checkpoint, or an imported folder.
    prompts: a file whose records have a prompt (any triplet format; other fields are not needed); each prompt
      is answered once, however often it occurs.
    prompt: one prompt as text, instead of a file.
    output: the file to write, `None` for standard output.
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

  Raises:
    UsageError: there are no prompts or no checkpoint, or settings exclude each other.
  """
  limits.seed(seed)
  if beams > 1 and num_samples > 1:
    raise UsageError(
      f'num_samples={num_samples} with beams={beams}: a beam search gives one answer to a prompt. Pass --set '
      'SAMPLES=1, or --set BEAMS=1 and a temperature above 0 to draw several.'
    )
  target = None if output is None else _target(output)
  _refuse_input(target, prompts)
  grid = mesh.over()
  model_dir = str(folders.find_checkpoint(model_dir))
  loaded_vocabulary = policy.vocabulary_of(model_dir, vocabulary)
  saved = folders.load_metadata(model_dir)
  by_chat = uses_chat(loaded_vocabulary, _options(saved), chat, chat_template)
  turn = tokenise.turn_template(by_chat, chat_template or _options(saved).get('chat_template'))
  questions = _questions(model_dir, prompts, prompt, columns, turn)
  tokens = tokenise_prompts(
    [text for _, text in questions], loaded_vocabulary, _options(saved), template, by_chat
  )
  nets = networks.build_policy(model_dir)
  params = networks.load_policy(nets, model_dir, grid, base)
  run = make_generator(
    nets.policy, grid, max_length=max_length, temperature=temperature, top_k=top_k, top_p=top_p,
    repetition_penalty=repetition_penalty, beams=beams, length_penalty=length_penalty, batch_size=batch_size,
    seed=seed,
  )  # fmt: skip
  order = [(i, k) for i in range(len(tokens)) for k in range(num_samples)]
  answers = run(params, [tokens[i] for i, _ in order], range(len(order)))
  records = (
    {
      'id': questions[i][0] if num_samples == 1 else f'{questions[i][0]}#{k}', 'prompt': questions[i][1],
      'response': loaded_vocabulary.decode(answer.tokens), 'logp': answer.logp, 'tokens': len(answer.tokens),
      'ended': bool(answer.tokens[-1] == loaded_vocabulary.special.eos),
    }
    for (i, k), answer in zip(order, answers)
  )  # fmt: skip
  count = _write(_warn_of_unusable(records), target)
  # Standard output holds the answers, or what was written to a file: never both.
  return {} if output is None else {'prompts': len(tokens), 'responses': count, 'output': str(target)}


def _target(output: str) -> pathlib.Path:
  """The file to write, checked before the first answer; the first of several processes writes it."""
  return files.output_file(output) if jax.process_index() == 0 else pathlib.Path(output).expanduser()


def _refuse_input(target: pathlib.Path | None, prompts: str | None) -> None:
  """Refuses to replace the file of prompts by the answers."""
  if target is None or prompts is None:
    return
  for path in triplets.expand(prompts):
    if target.resolve() == pathlib.Path(path).resolve():
      raise UsageError(
        f'--output={target} holds the prompts, and the answers would replace it: pass another file.'
      )


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
  saved = folders.load_metadata(model_dir)
  read = configs.read_options(saved, pathlib.Path(model_dir))
  names = inheritance.options({'columns': read['columns']}, prompts, columns)['columns']
  first_id = {}
  for record_id, text in triplets.read_prompts(prompts, names, chat_template=turn):
    first_id.setdefault(text, record_id)
  return [(record_id, text) for text, record_id in first_id.items()]


def _options(saved: Mapping[str, Any]) -> dict[str, Any]:
  return saved.get('data', {}).get('options', {})


def _warn_of_unusable(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
  """Yields the records; warns at the end of those that a file of triplets may not have."""
  unusable = []
  for record in records:
    yield record
    if not record['response'].strip() or '\0' in record['response']:
      unusable.append(record['id'])
  if unusable:
    ids = ', '.join(unusable[:5]) + (', ...' if len(unusable) > 5 else '')
    logging.getLogger(__name__).warning(
      '%d responses are blank or hold a NUL character (%s): remove them before you train on this file',
      len(unusable), ids,
    )  # fmt: skip


def _write(records: Iterable[dict[str, Any]], target: pathlib.Path | None) -> int:
  """Writes JSON lines, a file whole or not at all; returns their number."""
  lines = map(files.json_line, records)
  primary = jax.process_index() == 0
  if target is None:
    return sum(sys.__stdout__.write(line) > 0 if primary else 1 for line in lines)
  place = files.replacing(target) if primary else contextlib.nullcontext(os.devnull)
  with place as path, open(path, 'w', encoding='utf-8') as file:
    return sum(file.write(line) > 0 for line in lines)


__all__ = ['generate']
