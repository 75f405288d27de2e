"""The log of the `text` suite: the SFT policies, their answers, and the triplets that methods learn from.

A draw of a world remakes its prompts, demonstrations and SFT policies; a seed remakes the answers. Everything
is kept in files, and read where it exists.
"""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from dro_jax import files
from dro_jax.arena import training
from dro_jax.arena.text import answers
from dro_jax.arena.text.answers import Samples, Tools
from dro_jax.arena.text.ceilings import ceilings
from dro_jax.arena.text.worlds import TextWorld
from dro_jax.checkpoints.policy import vocabulary_of
from dro_jax.data.text import vocabularies
from dro_jax.data.triplets import Triplets, load_triplets
from dro_jax.data.worlds import exercises as verifiable
from dro_jax.data.worlds import habits
from dro_jax.data.worlds.habits import Hand
from dro_jax.errors import UsageError
from dro_jax.files import to_json
from dro_jax.models.family import Config
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.run import networks
from dro_jax.run.trained import load_run
from dro_jax.statistics import off_policy
from dro_jax.types import Params

_PROMPT_LENGTH = 64


class Place(NamedTuple):
  """The place of a draw of a world: its folder, and what it is made of."""

  folder: pathlib.Path
  world: TextWorld
  draw: int
  model: Config
  mesh: MeshSpec


class Logged(NamedTuple):
  """A draw of a world with a seed, as cells share it.

  Attributes:
    data: the files to train on (see `training.fit`).
    reference: the reference's parameters.
    tools: what answers and scores.
    heldout: the reference's answers to validation and test prompts.
    log: the answers to test prompts of the policy that wrote the log, which may be the reference.
    unlikely: 99 % of the reference's answers to test prompts have a greater log-prob under it.
    predict: a reward model, fitted to the training log: from answers to q, `[N]`.
    ceilings: policies without training (see `ceilings.ceilings`).
  """

  data: training.Data
  reference: Params
  tools: Tools
  heldout: Mapping[str, Samples]
  log: Samples
  unlikely: float
  predict: Callable[[Samples], np.ndarray]
  ceilings: Mapping[str, Any]


def prepare(place: Place, seed: int) -> Logged:
  """The world of a seed; reads the parts that exist and makes the others."""
  world = place.world
  run = _imitator(place, 'sft', world.hand)
  words, tools, reference = vocabulary_of(run), _tools(run, place), _params(run, place)
  name, logger = 'sft', reference
  if world.logger is not None:
    other = _imitator(place, 'logger', world.logger)
    name, logger = 'logger', tempered(_params(other, place), world.logger_temperature)
  answer = functools.partial(_answers, place, tools, seed)
  log = {split: answer(name, logger, split) for split in ('train', 'validation', 'test')}
  by_reference = world.logger is None
  heldout = {
    split: log[split] if by_reference else answer('sft', reference, split) for split in ('validation', 'test')
  }
  triplets = {split: _triplets(place, log[split], split, seed, words) for split in ('train', 'validation')}
  load = functools.partial(
    _load, place, triplets['train'], eval_triplets=triplets['validation'], scaling='standardise'
  )
  model = off_policy.ridge(features(log['train']), log['train'].rewards)
  return Logged(
    training.Data(load, run), reference, tools, heldout, log['test'],
    float(np.quantile(heldout['test'].logps, 0.01)), lambda samples: model(features(samples)),
    _ceilings(place, tools, reference, float(log['train'].rewards.std())),
  )  # fmt: skip


def _imitator(place: Place, name: str, hand: Hand) -> str:
  """The run of an SFT policy, from a hand's demonstrations on prompts that nothing else uses."""
  world, file = place.world, place.folder / f'demonstrations-{name}.jsonl'
  asked = verifiable.prompts(world.exercises, 'sft', world.demonstrations, place.draw)
  _write(file, habits.demonstrations(asked, hand, place.draw))
  return training.imitate(
    place.folder / name, functools.partial(_load, place, str(file), validation_fraction=0), place.model,
    vocabulary='bytes', steps=world.sft_steps, responses=64, learning_rate=world.sft_learning_rate,
    mesh=place.mesh, seed=place.draw,
  )  # fmt: skip


def _params(run: str, place: Place) -> Params:
  return load_run(run, place.mesh.over()).policy.params


@functools.lru_cache(maxsize=2)
def _tools(run: str, place: Place) -> Tools:
  """Compiled once for all policies and seeds: they differ in their parameters only."""
  policy = networks.build_policy(run).policy
  return answers.make_tools(policy, vocabulary_of(run), place.mesh.over(), place.world.response_length)


def tempered(params: Params, temperature: float) -> Params:
  """The policy whose logits are divided by a temperature, by way of the weights that make them.

  So its log-probs are those at which it answers, and the log has its propensities.

  Raises:
    UsageError: the logits have no weights of their own.
  """
  flat = traverse_util.flatten_dict(params)
  heads = [path for path in flat if path[-2:] == ('logits_dense', 'kernel')]
  if not heads:
    raise UsageError(
      f'temperature={temperature}: the logits of this model have no weights of their own (they are tied to '
      'the embedding), which a temperature would scale. Pass --gin.another_hand.temperature=1.0, or another '
      'model.'
    )
  return traverse_util.unflatten_dict(flat | {path: flat[path] / temperature for path in heads})


def _answers(place: Place, tools: Tools, seed: int, name: str, params: Params, split: str) -> Samples:
  """A policy's answers to a split's prompts, as they were drawn."""
  file = place.folder / f'{name}-{split}-{seed}.jsonl'
  if not file.exists():
    num = place.world.samples if split == 'train' else place.world.own_samples
    _write(file, _records(tools.draw(params, _asked(place, split), num, split, seed), split))
  return _read(file)


def _asked(place: Place, split: str) -> list[str]:
  world = place.world
  count = {'train': world.prompts, 'validation': world.validation_prompts, 'test': world.test_prompts}
  return verifiable.prompts(world.exercises, split, count[split], place.draw)


def _ceilings(place: Place, tools: Tools, reference: Params, scale: float) -> dict[str, Any]:
  """The ceilings of a draw, from the reference's answers to test prompts; the same for all seeds."""
  file, asked = place.folder / 'ceilings.json', _asked(place, 'test')
  if not file.exists():
    greedy = tools.decode(reference, asked)
    drawn = tools.draw(reference, asked, place.world.ceiling_samples, 'ceilings', 0)
    found = ceilings(drawn.rewards.reshape(len(asked), -1), greedy.rewards, greedy.logps, scale)
    files.write_atomically(file, files.json_text(to_json(found)))
  return json.loads(file.read_text(encoding='utf-8'))


def _triplets(place: Place, samples: Samples, split: str, seed: int, words: vocabularies.Vocabulary) -> str:
  file = place.folder / f'{split}-{seed}-triplets.jsonl'
  _write(file, representable(_records(samples, split), words))
  return str(file)


def _load(place: Place, triplets: str, **options: Any) -> Triplets:
  return load_triplets(
    triplets, prompt_length=_PROMPT_LENGTH, response_length=place.world.response_length,
    cache_dir=str(place.folder / 'tables'), **options,
  )  # fmt: skip


def _records(samples: Samples, split: str) -> list[dict[str, Any]]:
  return [
    {
      'id': f'{split}-{i}', 'prompt': prompt, 'response': text, 'reward': float(reward),
      'behaviour_logprob': float(logp), 'behaviour_sampler': 'sampled', 'tokens': tokens.tolist(),
    }
    for i, (prompt, tokens, text, logp, reward) in enumerate(zip(*samples))
  ]  # fmt: skip


def representable(records: Sequence[dict[str, Any]], words: vocabularies.Vocabulary) -> list[dict[str, Any]]:
  """Records whose text is tokenised as it was sampled; others would not have the logged propensity.

  Random bytes are no text, a triplet's response is never empty, and NUL ends a text for some programs; an SFT
  policy samples few of these.
  """
  kept = []
  for record in records:
    sampled = [token for token in record['tokens'] if token != words.special.eos]
    text = record['response']
    if text.strip() and '\0' not in text and words.encode(text).tolist() == sampled:
      kept.append({name: value for name, value in record.items() if name != 'tokens'})
  return kept


def _write(file: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
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
