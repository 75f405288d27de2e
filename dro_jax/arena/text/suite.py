"""The `text` suite: answers that a program can check, on prompts that nothing was trained on.

An SFT policy that has seen few demonstrations answers each prompt K times, and its answers are rewarded: that
is the log, sampled, so its log-probs are propensities. Every method learns from it, from that policy, and is
judged by its own answers to other prompts. The log of those prompts says, without a new answer, what each
policy would earn (`off_policy`): held to the truth here.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax import files
from dro_jax.arena import training
from dro_jax.arena.cells import Cell
from dro_jax.arena.suite import Suite
from dro_jax.arena.text import answers
from dro_jax.arena.text.answers import Samples, Tools
from dro_jax.arena.text.report import report
from dro_jax.arena.trials import Range
from dro_jax.checkpoints.policy import vocabulary_of
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import Triplets, load_triplets
from dro_jax.data.worlds import exercises as verifiable
from dro_jax.data.worlds.exercises import Exercises as Exercises
from dro_jax.files import to_json
from dro_jax.models.family import Config
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.run import networks
from dro_jax.run.trained import load_run
from dro_jax.statistics import off_policy
from dro_jax.types import Params

USUAL = ('dro_v', 'kto', 'dpo', 'copg', 'filtered_sft')
RATES = Range(5e-5, 2.5e-4)
_PROMPT_LENGTH = 64


class TextWorld(NamedTuple):
  """The exercises, the policy that wrote the log, and all sizes.

  Attributes:
    exercises: see `data.verifiable`.
    demonstrations: right answers that the SFT policy is fitted to; few, so that it is mediocre.
    sft_steps: its optimiser steps.
    sft_learning_rate: their peak rate.
    prompts: of the log.
    samples: logged answers to each.
    validation_prompts: prompts that choose hyperparameters.
    test_prompts: prompts that are reported on.
    own_samples: answers of each policy to each of both, and of the log to compare with.
    response_length: tokens of an answer at most.
    seed: of the prompts.
  """

  exercises: verifiable.Exercises = verifiable.Exercises()
  demonstrations: int = 2000
  sft_steps: int = 400
  sft_learning_rate: float = 2e-3
  prompts: int = 4000
  samples: int = 4
  validation_prompts: int = 96
  test_prompts: int = 192
  own_samples: int = 8
  response_length: int = 12
  seed: int = 0


class Place(NamedTuple):
  """Folder, world, model and mesh of an arena."""

  folder: pathlib.Path
  world: TextWorld
  model: Config
  mesh: MeshSpec


class Logged(NamedTuple):
  """A seed's world, as cells share it.

  Attributes:
    data: the files to train on (see `training.fit`).
    reference: the SFT policy's parameters.
    tools: what answers and scores.
    heldout: the SFT policy's answers to validation and test prompts.
    predict: a reward model, fitted to the training log: from answers to q, `[N]`.
  """

  data: training.Data
  reference: Params
  tools: Tools
  heldout: Mapping[str, Samples]
  predict: Callable[[Samples], np.ndarray]


# --- the log ------------------------------------------------------------------------------------------------


def prepare(place: Place, seed: int) -> Logged:
  """The world of a seed; reads the parts that exist and makes the others."""
  reference = _reference(place)
  trained = load_run(reference, place.mesh.over())
  params, tools = trained.state.params['policy'], _tools(reference, place.mesh, place.world.response_length)
  logs = {split: _logged(place, tools, params, split, seed) for split in ('train', 'validation', 'test')}
  files = {split: place.folder / 'world' / f'{split}-{seed}-triplets.jsonl' for split in logs}
  for split, file in files.items():
    _write(file, representable(_records(logs[split], split), trained.vocabulary))
  load = functools.partial(
    _load, place, str(files['train']), eval_triplets=str(files['validation']), scaling='standardise'
  )
  model = off_policy.ridge(features(logs['train']), logs['train'].rewards)
  heldout = {split: logs[split] for split in ('validation', 'test')}
  return Logged(
    training.Data(load, reference), params, tools, heldout, lambda samples: model(features(samples))
  )


def _reference(place: Place) -> str:
  """The SFT policy's run, from demonstrations on prompts of their own."""
  world, file = place.world, place.folder / 'world' / 'demonstrations.jsonl'
  asked = verifiable.prompts(world.exercises, 'sft', world.demonstrations, world.seed)
  _write(file, verifiable.demonstrations(asked))
  return training.imitate(
    place.folder / 'world' / 'sft', functools.partial(_load, place, str(file), validation_fraction=0),
    place.model, vocabulary='bytes', steps=world.sft_steps, responses=64,
    learning_rate=world.sft_learning_rate, mesh=place.mesh,
  )  # fmt: skip


@functools.lru_cache(maxsize=1)
def _tools(reference: str, mesh: MeshSpec, response_length: int) -> Tools:
  """Compiled once for all seeds: policies differ in their parameters only."""
  policy = networks.build_policy(reference).policy
  return answers.make_tools(policy, vocabulary_of(reference), mesh.over(), response_length)


def _logged(place: Place, tools: Tools, params: Params, split: str, seed: int) -> Samples:
  """The SFT policy's answers to a split's prompts, as they were drawn."""
  world, file = place.world, place.folder / 'world' / f'{split}-{seed}.jsonl'
  if not file.exists():
    count = {'train': world.prompts, 'validation': world.validation_prompts, 'test': world.test_prompts}
    asked = verifiable.prompts(world.exercises, split, count[split], world.seed)
    num = world.samples if split == 'train' else world.own_samples
    _write(file, _records(tools.draw(params, asked, num, split, seed), split))
  return _read(file)


def _load(place: Place, triplets: str, **options: Any) -> Triplets:
  return load_triplets(
    triplets, prompt_length=_PROMPT_LENGTH, response_length=place.world.response_length,
    cache_dir=str(place.folder / 'world' / 'tables'), **options,
  )  # fmt: skip


def _records(samples: Samples, split: str) -> list[dict]:
  return [
    {
      'id': f'{split}-{i}', 'prompt': prompt, 'response': text, 'reward': float(reward),
      'behaviour_logprob': float(logp), 'behaviour_sampler': 'sampled', 'tokens': tokens.tolist(),
    }
    for i, (prompt, tokens, text, logp, reward) in enumerate(zip(*samples))
  ]  # fmt: skip


def representable(records: Sequence[dict], words: vocabularies.Vocabulary) -> list[dict]:
  """Records whose text is tokenised as it was sampled; others would not have the logged propensity.

  Random bytes are no text, and a triplet's response is never empty; an SFT policy samples few of either.
  """
  kept = []
  for record in records:
    sampled = [token for token in record['tokens'] if token != words.special.eos]
    if record['response'].strip() and words.encode(record['response']).tolist() == sampled:
      kept.append({name: value for name, value in record.items() if name != 'tokens'})
  return kept


def _write(file: pathlib.Path, records: Sequence[dict]) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(file, ''.join(map(files.json_line, records)))


def _read(file: pathlib.Path) -> Samples:
  records = list(files.json_lines(file))
  return Samples(
    [record['prompt'] for record in records],
    [np.array(record['tokens'], np.int32) for record in records],
    [record['response'] for record in records],
    np.array([record['behaviour_logprob'] for record in records]),
    np.array([record['reward'] for record in records]),
  )


def features(samples: Samples) -> np.ndarray:
  """Features of answers for a reward model, `[N, F]`: their shape beside the prompt's, by exercise."""
  kinds = ('sort', 'sort down', 'add', 'rewrite without', 'rewrite with', 'rewrite backwards')
  rows = []
  for prompt, text in zip(samples.prompts, samples.texts):
    is_kind = [verifiable.kind_of(prompt) == kind for kind in kinds]
    rows.append(np.outer(is_kind, _shape(verifiable.subject(prompt), text)).ravel())
  return np.array(rows)


def _shape(subject: str, text: str) -> list[float]:
  """Letters and lengths, not the answer: what is in common, and in rising, falling or reversed order."""
  longer, steps = max(len(subject), len(text), 1), list(itertools.pairwise(text))
  return [
    1.0,
    len(text) / longer,
    abs(len(text) - len(subject)) / longer,
    sum(min(text.count(letter), subject.count(letter)) for letter in set(text)) / longer,
    sum(a <= b for a, b in steps) / max(len(steps), 1),
    sum(a >= b for a, b in steps) / max(len(steps), 1),
    float(text[:1] == subject[-1:]),
    float(text[-1:] == subject[:1]),
  ]


# --- a cell -------------------------------------------------------------------------------------------------


def run_cell(
  place: Place,
  methods: Mapping[str, training.Method],
  budget: training.Budget,
  world_of: Callable[[int], Logged],
  cell: Cell,
) -> dict[str, Any]:
  """Runs a cell: trains, and judges its last and best checkpoint on validation and test prompts."""
  logged, num = world_of(cell.seed), place.world.own_samples
  result = training.fit_and_judge(
    place.folder, methods[cell.algorithm], cell, logged.data, budget, place.mesh,
    lambda path: judge(logged, path, num, cell.seed),
  )  # fmt: skip
  log = logged.heldout['test']
  return result | {
    'log': answers.about(log, num) | {'rewards': log.rewards, 'predicted': logged.predict(log)}
  }


def judge(logged: Logged, checkpoint: str, num: int, seed: int) -> dict[str, Any]:
  """Measures of a policy's own answers by test prompt, `[P]`, and its ratios w on the log of these, `[N]`.

  `validation` is less for better: trials are chosen by the mean reward on validation prompts.
  """
  policy = load_run(checkpoint, logged.tools.mesh).state.params['policy']
  found = {}
  for split, log in logged.heldout.items():
    own = logged.tools.draw(policy, list(dict.fromkeys(log.prompts)), num, f'own {split}', seed)
    kl = own.logps - logged.tools.score(logged.reference, own)
    found[split] = answers.about(own, num) | {
      'win': answers.wins(own.rewards.reshape(-1, num), log.rewards.reshape(-1, num)),
      'kl': answers.by_prompt(kl, num),
      'expected': answers.by_prompt(logged.predict(own), num),
    }
  log = logged.heldout['test']
  return {
    'validation': -float(found['validation']['reward'].mean()),
    'test': found['test'],
    'ratios': off_policy.ratios(logged.tools.score(policy, log), log.logps),
  }


def text(
  folder: str,
  world: Callable[[], TextWorld] = TextWorld,
  *,
  model: Config = training.MODEL,
  steps: int = 400,
  batch_size: int = 64,
  evaluations: int = 4,
  mesh: MeshSpec = MeshSpec(),
) -> Suite:
  """Generation with a programmed reward.

  Args:
    folder: the arena's.
    world: what is asked, and the log.
    model: the policy's size.
    steps: of DRO-V; other methods take as many as cost the same FLOPs.
    batch_size: responses of a batch.
    evaluations: how often a run validates, to find its best checkpoint.
    mesh: devices' arrangement.
  """
  place = Place(pathlib.Path(folder).expanduser().absolute(), world(), model, mesh)
  competing = training.methods(RATES, 'sampled')
  budget = training.Budget(steps, batch_size, place.world.samples, evaluations)
  settings = {
    'world': place.world._asdict() | {'exercises': place.world.exercises._asdict()},
    'model': vars(model),
    'budget': budget._asdict(),
  }
  world_of = functools.lru_cache(maxsize=2)(functools.partial(prepare, place))
  return Suite(
    'text', to_json(settings), {name: method.grid for name, method in competing.items()}, ({},),
    functools.partial(run_cell, place, competing, budget, world_of),
    functools.partial(report, tuple(competing)),
    'About 3 minutes for each seed’s log and 1 to 2 minutes a cell, on two cores.', USUAL,
  )  # fmt: skip


__all__ = ['Exercises', 'TextWorld', 'text']
