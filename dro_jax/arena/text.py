"""The `text` suite: answers that a program can check, on prompts that nothing was trained on.

An SFT policy that has seen few demonstrations answers each prompt K times, and its answers are rewarded: that
is the log, sampled, so its log-probs are propensities. Every method learns from it, from that policy, and is
judged by its own answers to other prompts. The log of those prompts says, without a new answer, what each
policy would earn (`off_policy`): held to the truth here.
"""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dro_jax import (
  evaluate,
  generate,
  networks,
  off_policy,
  partitioning,
  rewards,
  scoring,
  statistics,
  writers,
)
from dro_jax.arena import training
from dro_jax.arena.cells import Cell, Finished, file_of, plain
from dro_jax.arena.suite import Report, Suite
from dro_jax.arena.tables import Table
from dro_jax.arena.trials import Range
from dro_jax.data import tasks, verifiable, vocabularies
from dro_jax.models.t5 import T5, T5Config
from dro_jax.statistics import Estimate
from dro_jax.types import Params, Rows

MODEL = T5Config(
  emb_dim=64, num_heads=4, head_dim=16, mlp_dim=128, num_encoder_layers=2, num_decoder_layers=2
)
METHODS = ('dro_v', 'kto', 'dpo', 'copg', 'filtered_sft')
RATES = Range(3e-4, 1e-3)
GRAMS = (1, 2, 3)
_BATCH = 256  # Prompts answered, and responses scored, at once.
_DRAWS = 100_000  # Samples of a purpose at most, each with a number of its own.
_PURPOSES = ('train', 'validation', 'test', 'own validation', 'own test')


class World(NamedTuple):
  """What is asked, who wrote the log, and how large everything is.

  Attributes:
    exercises: see `data.verifiable`.
    demonstrations: right answers that the SFT policy is fitted to; few, so that it is mediocre.
    sft_steps: its optimiser steps.
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
  sft_steps: int = 600
  prompts: int = 1500
  samples: int = 4
  validation_prompts: int = 96
  test_prompts: int = 192
  own_samples: int = 8
  response_length: int = 12
  seed: int = 0


class Samples(NamedTuple):
  """K answers to each of P prompts, those to one prompt next to each other: N = P·K."""

  prompts: list[str]
  tokens: list[np.ndarray]
  texts: list[str]
  logps: np.ndarray
  rewards: np.ndarray


class Tools(NamedTuple):
  """What answers and scores, compiled once.

  Attributes:
    draw: from parameters, prompts, K, a purpose and a seed to samples.
    score: from parameters and samples to log π(y|x), `[N]`.
    mesh: where parameters live.
  """

  draw: Callable[..., Samples]
  score: Callable[[Params, Samples], np.ndarray]
  mesh: Mesh


class Logged(NamedTuple):
  """A seed's world: the files to train on, who wrote them, and what held-out prompts were answered.

  Attributes:
    data: for `training.fit`.
    reference: the SFT policy's parameters.
    tools: see `Tools`.
    heldout: the SFT policy's answers to validation and test prompts.
    predict: a reward model, fitted to the training log: from samples to q, `[N]`.
  """

  data: training.Data
  reference: Params
  tools: Tools
  heldout: Mapping[str, Samples]
  predict: Callable[[Samples], np.ndarray]


# --- the log ------------------------------------------------------------------------------------------------


def make_tools(policy: T5, words: vocabularies.Vocabulary, mesh: Mesh, response_length: int) -> Tools:
  """Answers and scores of any policy of this kind, at temperature 1 without truncation."""
  answer = generate.make_generator(policy, mesh, max_length=response_length, batch_size=_BATCH)

  def draw(params: Params, prompts: Sequence[str], num: int, purpose: str, seed: int) -> Samples:
    asked = [prompt for prompt in prompts for _ in range(num)]
    first = (seed * len(_PURPOSES) + _PURPOSES.index(purpose)) * _DRAWS
    answers = list(answer(params, _prompt_tokens(words, asked), range(first, first + len(asked))))
    texts = [words.decode(each.tokens) for each in answers]
    logps = np.array([each.logp for each in answers])
    rewarded = np.array(rewards.graded_match(asked, texts))
    return Samples(asked, [each.tokens for each in answers], texts, logps, rewarded)

  return Tools(draw, _make_score(policy, words, mesh, response_length), mesh)


def _prompt_tokens(words: vocabularies.Vocabulary, prompts: Sequence[str]) -> list[np.ndarray]:
  return [np.append(ids, vocabularies.EOS) for ids in words.encode_batch(prompts)]


def _make_score(policy: T5, words: vocabularies.Vocabulary, mesh: Mesh, response_length: int) -> Callable:
  """Scores tokens as they were sampled: text that is tokenised again need not be the same."""
  score = jax.jit(
    lambda params, rows: scoring.make_score(policy)({'policy': params}, rows, None).logps,
    out_shardings=partitioning.replicated(mesh), compiler_options=partitioning.COMPILER_OPTIONS,
  )  # fmt: skip

  def logps(params: Params, samples: Samples) -> np.ndarray:
    found, asked = [], _prompt_tokens(words, samples.prompts)
    length = -(-max(map(len, asked)) // 16) * 16
    for start in range(0, len(asked), _BATCH):
      part = slice(start, start + _BATCH)
      rows = _rows(asked[part], samples.tokens[part], _BATCH, length, response_length)
      with partitioning.use_mesh(mesh):
        found.append(jax.device_get(score(params, partitioning.global_batch(mesh, rows, _BATCH)))[:, 0])
    return np.concatenate(found)[: len(asked)].astype(np.float64)

  return logps


def _rows(
  prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], num_rows: int, length: int, width: int
) -> Rows:
  """One prompt and one response a row; rows beyond them are padding."""

  def laid_out(texts: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, ...]:
    tokens, segments, positions = np.zeros((3, num_rows, length), np.int32)
    for row, text in enumerate(texts):
      tokens[row, : len(text)], segments[row, : len(text)] = text, 1
      positions[row, : len(text)] = np.arange(len(text))
    return tokens, segments, positions

  answers = laid_out(responses, width)
  valid = (np.arange(num_rows) < len(prompts))[:, None]
  return Rows(
    *laid_out(prompts, length), *answers, answers[1], np.zeros((num_rows, 1), np.float32),
    np.zeros((num_rows, 1), np.int32), valid,
  )  # fmt: skip


def prepare(
  folder: pathlib.Path, world: World, model: T5Config, mesh: Callable[[], Mesh], seed: int
) -> Logged:
  """A seed's world: what of it is there is read, the rest is made."""
  reference = _reference(folder, world, model, mesh)
  run = evaluate.load_run(reference, mesh())
  tools, params = _tools(reference, mesh, world.response_length), run.state.params['policy']
  asked = {
    split: verifiable.prompts(world.exercises, split, num, world.seed)
    for split, num in (
      ('train', world.prompts), ('validation', world.validation_prompts), ('test', world.test_prompts),
    )
  }  # fmt: skip
  logs = {}
  for split, prompts in asked.items():
    num = world.samples if split == 'train' else world.own_samples
    file = folder / 'world' / f'{split}-{seed}.jsonl'
    if not file.exists():
      _write(file, _records(tools.draw(params, prompts, num, split, seed), split))
    logs[split] = _read(file)
  files = {split: folder / 'world' / f'{split}-{seed}-triplets.jsonl' for split in ('train', 'validation')}
  for split, file in files.items():
    _write(file, _representable(_lines(folder / 'world' / f'{split}-{seed}.jsonl'), run.vocabulary))
  load = functools.partial(
    _load, folder, world, str(files['train']), eval_triplets=str(files['validation']), scaling='standardise'
  )
  predict = off_policy.ridge(features(logs['train']), logs['train'].rewards)
  return Logged(
    training.Data(load, reference), params, tools, {split: logs[split] for split in ('validation', 'test')},
    lambda samples: predict(features(samples)),
  )  # fmt: skip


def _reference(folder: pathlib.Path, world: World, model: T5Config, mesh: Callable[[], Mesh]) -> str:
  """The SFT policy's run, from demonstrations on prompts of their own."""
  file = folder / 'world' / 'demonstrations.jsonl'
  asked = verifiable.prompts(world.exercises, 'sft', world.demonstrations, world.seed)
  _write(file, verifiable.demonstrations(asked))
  load = functools.partial(_load, folder, world, str(file), validation_fraction=0)
  return training.imitate(
    folder / 'world' / 'sft', load, model, vocabulary='bytes', steps=world.sft_steps, responses=64,
    learning_rate=2e-3, mesh=mesh,
  )  # fmt: skip


@functools.lru_cache(maxsize=1)
def _tools(reference: str, mesh: Callable[[], Mesh], response_length: int) -> Tools:
  policy = networks.build(networks.config_of(reference), uses_value=False).policy
  return make_tools(policy, networks.vocabulary_of(reference), mesh(), response_length)


def _load(folder: pathlib.Path, world: World, triplets: str, **options: Any) -> tasks.Triplets:
  return tasks.load_triplets(
    triplets, prompt_length=64, response_length=world.response_length,
    cache_dir=str(folder / 'world' / 'tables'), **options,
  )  # fmt: skip


def _records(samples: Samples, split: str) -> list[dict]:
  return [
    {
      'id': f'{split}-{i}', 'prompt': prompt, 'response': text, 'reward': float(reward),
      'behaviour_logprob': float(logp), 'behaviour_sampler': 'sampled', 'tokens': tokens.tolist(),
    }
    for i, (prompt, tokens, text, logp, reward) in enumerate(zip(*samples))
  ]  # fmt: skip


def _representable(records: Sequence[dict], words: vocabularies.Vocabulary) -> list[dict]:
  """Records whose text is tokenised as it was sampled; others would not have the logged propensity.

  Random bytes are no text, and a triplet's response is never empty; an SFT policy samples few of either.
  """
  kept = []
  for record in records:
    again = words.encode(record['response']).tolist()
    sampled = [token for token in record['tokens'] if token != vocabularies.EOS]
    if record['response'].strip() and again == sampled:
      kept.append({name: value for name, value in record.items() if name != 'tokens'})
  return kept


def _write(file: pathlib.Path, records: Sequence[dict]) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  writers.write_atomically(file, ''.join(json.dumps(record) + '\n' for record in records))


def _lines(file: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]


def _read(file: pathlib.Path) -> Samples:
  records = _lines(file)
  return Samples(
    [record['prompt'] for record in records],
    [np.array(record['tokens'], np.int32) for record in records],
    [record['response'] for record in records],
    np.array([record['behaviour_logprob'] for record in records]),
    np.array([record['reward'] for record in records]),
  )


def features(samples: Samples) -> np.ndarray:
  """What a reward model may see of an answer, `[N, F]`: its shape against the prompt's, by exercise.

  Of what is asked about it sees the letters, not the answer: length, letters in common, letters in rising and
  in falling order, whether the first and last letters are the prompt's last and first.
  """
  kinds = sorted({verifiable.kind_of(prompt) for prompt in samples.prompts})
  rows = []
  for prompt, text in zip(samples.prompts, samples.texts):
    one = np.array(_shape(verifiable.subject(prompt), text))
    rows.append(np.outer([verifiable.kind_of(prompt) == kind for kind in kinds], one).ravel())
  return np.array(rows, np.float64)


def _shape(subject: str, text: str) -> list[float]:
  longer = max(len(subject), len(text), 1)
  steps = list(itertools.pairwise(text))
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


def run(
  folder: pathlib.Path,
  methods: Mapping[str, training.Method],
  budget: training.Budget,
  mesh: Callable[[], Mesh],
  world_of: Callable[[int], Logged],
  own_samples: int,
  cell: Cell,
) -> dict[str, Any]:
  """A cell: trains, and judges the last and the best checkpoint on validation and on test prompts."""
  logged = world_of(cell.seed)
  place = folder / 'runs' / file_of(folder, cell).stem
  trained = training.fit(place, methods[cell.algorithm], cell, logged.data, budget, mesh)
  saved = training.saved(trained['model_dir'])
  checkpoints = {name: judge(logged, path, own_samples, cell.seed) for name, path in saved.items()}
  log = logged.heldout['test']
  return {
    'steps': trained['steps'], 'flops': trained['flops'], **checkpoints,
    'log': about(log, own_samples) | {'rewards': log.rewards, 'predicted': logged.predict(log)},
  }  # fmt: skip


def judge(logged: Logged, checkpoint: str, own_samples: int, seed: int) -> dict[str, Any]:
  """What a policy's own answers are worth: by prompt, `[P]`; and how it sees the logged ones, `[N]`."""
  policy = evaluate.load_run(checkpoint, logged.tools.mesh).state.params['policy']
  found = {}
  for split, log in logged.heldout.items():
    own = logged.tools.draw(policy, _distinct_prompts(log), own_samples, f'own {split}', seed)
    kl = own.logps - logged.tools.score(logged.reference, own)
    found[split] = about(own, own_samples) | {
      'win': wins(own.rewards.reshape(-1, own_samples), log.rewards.reshape(-1, own_samples)),
      'kl': _by_prompt(kl, own_samples),
      'expected': _by_prompt(logged.predict(own), own_samples),
    }
  log = logged.heldout['test']
  ratios = off_policy.ratios(logged.tools.score(policy, log), log.logps)
  return {**found, 'ratios': ratios}


def _distinct_prompts(samples: Samples) -> list[str]:
  return list(dict.fromkeys(samples.prompts))


def _by_prompt(x_N: np.ndarray, num: int) -> np.ndarray:
  return np.asarray(x_N, np.float64).reshape(-1, num).mean(1)


def wins(own_PK: np.ndarray, other_PK: np.ndarray) -> np.ndarray:
  """Share of a prompt's (own, other) pairs of answers that the own one wins, ties half, `[P]`."""
  margin_PKK = own_PK[:, :, None] - other_PK[:, None, :]
  return ((np.sign(margin_PKK) + 1) / 2).mean((1, 2))


def about(samples: Samples, num: int) -> dict[str, Any]:
  """What a table tells of answers, K to a prompt: means by prompt, `[P]`, and of all, distinct-n."""
  exact = np.array(rewards.exact_match(samples.prompts, samples.texts))
  different = [len(set(samples.texts[i : i + num])) / num for i in range(0, len(samples.texts), num)]
  return {
    'reward': _by_prompt(samples.rewards, num),
    'best': samples.rewards.reshape(-1, num).max(1),
    'exact': _by_prompt(exact, num),
    'length': _by_prompt(np.array([len(tokens) for tokens in samples.tokens]), num),
    'different': np.array(different),
    **{f'distinct_{n}': distinct(samples.tokens, n) for n in GRAMS},
  }


def distinct(responses: Sequence[np.ndarray], n: int) -> float:
  """distinct-n (arXiv 1510.03055): different n-grams of tokens over all n-grams, in all responses."""
  grams = [tuple(tokens[i : i + n].tolist()) for tokens in responses for i in range(len(tokens) - n + 1)]
  return len(set(grams)) / len(grams) if grams else float('nan')


# --- what is told -------------------------------------------------------------------------------------------

DRAWS = 1000


def _mean(results: Sequence[Mapping[str, Any]], path: Sequence[str]) -> np.ndarray:
  """An array of the results, averaged over seeds."""
  found = [functools.reduce(lambda at, name: at[name], path, each) for each in results]
  return np.mean(np.array(found, np.float64), axis=0)


def over_prompts(x_P: np.ndarray) -> Estimate:
  """A mean over prompts and its interval."""
  return statistics.bootstrap(lambda weights_P: float(weights_P @ x_P / weights_P.sum()), len(x_P), DRAWS, 0)


def validation_reward(result: Mapping[str, Any]) -> float:
  """What trials are chosen by: the last checkpoint's mean reward on validation prompts."""
  return float(np.mean(result['last']['validation']['reward']))


def score_table(chosen: Mapping[str, training.Choice]) -> Table:
  """Each method's answers to test prompts, beside the reference's."""
  log = next(iter(chosen.values())).results
  rows = [_reference_row(log)] + [_row(name, choice) for name, choice in chosen.items()]
  return Table(
    'Answers to test prompts', rows,
    'reward: 1 − edits to the right answer / length. win rate: against an SFT answer to the same prompt, '
    'ties half. KL: log π − log π_ref of own answers, nats. Trials are chosen by the reward on validation '
    'prompts; 95 % intervals over prompts; ≤, ≥: the best value was at an end of what was tried.',
  )  # fmt: skip


def _reference_row(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  return {
    'method': 'SFT (reference)',
    'reward': over_prompts(_mean(results, ('log', 'reward'))),
    'win rate': 0.5,
    'right': _number(results, 'log', 'exact'),
    'KL': 0.0,
    **_shape_of(results, ('log',)),
    'reward at best checkpoint': None,
    'best of K': over_prompts(_mean(results, ('log', 'best'))),
  }


def _row(name: str, choice: training.Choice) -> dict[str, Any]:
  results, test = choice.results, ('last', 'test')
  return {
    'method': name,
    'reward': over_prompts(_mean(results, (*test, 'reward'))),
    'win rate': over_prompts(_mean(results, (*test, 'win'))),
    'right': _number(results, *test, 'exact'),
    'KL': over_prompts(_mean(results, (*test, 'kl'))),
    **_shape_of(results, test),
    'reward at best checkpoint': over_prompts(_mean(results, ('best', 'test', 'reward'))),
    'best of K': over_prompts(_mean(results, (*test, 'best'))),
    'chosen': ', '.join(f'{key} {value:g}' for key, value in choice.hyperparameters.items()),
    'at an edge': ', '.join(choice.edges),
    'trials': choice.trials,
    'steps': results[0]['steps'],
    'seeds': len(results),
  }


def _number(results: Sequence[Mapping[str, Any]], *path: str) -> float:
  return float(np.mean(_mean(results, path)))


def _shape_of(results: Sequence[Mapping[str, Any]], path: Sequence[str]) -> dict[str, float]:
  return {
    'tokens': _number(results, *path, 'length'),
    **{f'distinct-{n}': _number(results, *path, f'distinct_{n}') for n in GRAMS},
    'different of K': _number(results, *path, 'different'),
  }


def difference_table(chosen: Mapping[str, training.Choice]) -> Table:
  """Rewards less the first method's, paired by prompt."""
  (first, base), *others = chosen.items()
  base_P = _mean(base.results, ('last', 'test', 'reward'))
  rows = [
    {
      'method': name,
      f'reward less {first}’s': over_prompts(_mean(choice.results, ('last', 'test', 'reward')) - base_P),
    }
    for name, choice in others
  ]
  return Table(f'Against {first}, paired by prompt', rows, 'An interval that holds 0 tells no difference.')


def _log_of(results: Sequence[Mapping[str, Any]]) -> off_policy.Log:
  """What the log of the test prompts says of a policy: all seeds' logs, one after the other."""

  def joined(*path: str) -> np.ndarray:
    return np.concatenate([functools.reduce(lambda at, name: at[name], path, each) for each in results])

  rewards_N, expected_P = joined('log', 'rewards'), joined('last', 'test', 'expected')
  num = len(rewards_N) // len(expected_P)
  prompts = np.tile(np.arange(len(expected_P) // len(results)), len(results))
  return off_policy.Log(
    joined('last', 'ratios'), rewards_N, joined('log', 'predicted'), np.repeat(expected_P, num),
    np.repeat(prompts, num),
  )  # fmt: skip


def value_table(chosen: Mapping[str, training.Choice]) -> Table:
  """What the SFT policy's log says of each policy, and what is true."""
  rows = []
  for name, choice in chosen.items():
    log = _log_of(choice.results)
    size = off_policy.effective_sample_size(log.ratios)
    rows.append(
      {
        'method': name,
        'truth': over_prompts(_mean(choice.results, ('last', 'test', 'reward'))),
        **{_ESTIMATORS[key]: value for key, value in off_policy.estimates(log, resamples=DRAWS).items()},
        'effective samples': size,
        'of': len(log.ratios),
      }
    )
  return Table(
    'Value on test prompts, estimated from the SFT policy’s log', rows,
    'truth: mean reward of the policy’s own answers. The reward model is a ridge regression on the training '
    'log, on letters and lengths. Few effective samples: the log says little of this policy.',
  )  # fmt: skip


_ESTIMATORS = {
  'ips': 'IPS',
  'self_normalised': 'self-normalised',
  'direct': 'reward model',
  'doubly_robust': 'doubly robust',
}


def trust_table(finished: Sequence[Finished]) -> Table:
  """How far each estimate is off over all trials, and whether it ranks them as the truth does."""
  truths, found = [], {name: [] for name in _ESTIMATORS}
  for each in finished:
    truths.append(float(np.mean(each.result['last']['test']['reward'])))
    made = off_policy.estimates(_log_of([each.result]), resamples=1)
    for name in found:
      found[name].append(made[name].value)
  truth, rows = np.array(truths), []
  for name, values in found.items():
    off = np.array(values) - truth
    rows.append(
      {
        'estimate': _ESTIMATORS[name],
        'root mean square error': float(np.sqrt(np.mean(off**2))),
        'bias': float(off.mean()),
        'rank correlation with the truth': statistics.rank_correlation(
          np.array(values), truth, np.ones(len(truth))
        ),
      }
    )
  return Table(f'Estimates of {len(truth)} policies: every trial', rows)


def draw_frontier(finished: Sequence[Finished], chosen: Mapping[str, training.Choice], figure: Any) -> None:
  """Reward against KL on test prompts: every trial small, the chosen ones large."""
  figure.set_size_inches(7, 5)
  axes = figure.subplots()
  for name, choice in chosen.items():
    tried = [each.result for each in finished if each.cell.algorithm == name]
    points = [[_number([each], 'last', 'test', of) for of in ('kl', 'reward')] for each in tried]
    dots = axes.scatter(*np.array(points).T, s=15, alpha=0.5)
    best = [_number(choice.results, 'last', 'test', of) for of in ('kl', 'reward')]
    axes.scatter(*best, s=90, color=dots.get_facecolor()[0], alpha=1, label=name)
  log = next(iter(chosen.values())).results
  axes.scatter(0, _number(log, 'log', 'reward'), marker='s', color='0.3', label='SFT (reference)')
  axes.axhline(_number(log, 'log', 'best'), color='0.7', linestyle=':', label='SFT, best of K')
  axes.set(xlabel='KL(π‖π_ref), nats', ylabel='mean reward', title='Answers to test prompts')
  axes.legend(fontsize='small')


def draw_values(finished: Sequence[Finished], figure: Any) -> None:
  """Estimates against the truth, a panel each, every trial a dot."""
  figure.set_size_inches(12, 3.6)
  truth = [_number([each.result], 'last', 'test', 'reward') for each in finished]
  made = [off_policy.estimates(_log_of([each.result]), resamples=1) for each in finished]
  for axes, (name, title) in zip(figure.subplots(1, len(_ESTIMATORS), sharey=True), _ESTIMATORS.items()):
    axes.scatter(truth, [each[name].value for each in made], s=15)
    axes.plot([min(truth), max(truth)], [min(truth), max(truth)], color='0.6', zorder=0)
    axes.set(xlabel='true mean reward', title=title)


def report(order: Sequence[str], finished: Sequence[Finished]) -> Report:
  """The suite's tables and figures, methods in this order."""
  found = training.choose(finished, validation_reward)
  chosen = {name: found[name] for name in order if name in found}
  tables = [score_table(chosen), difference_table(chosen), value_table(chosen), trust_table(finished)]
  figures = {
    'frontier.png': functools.partial(draw_frontier, finished, chosen),
    'values.png': functools.partial(draw_values, finished),
  }
  return Report([table for table in tables if table.rows], figures)


def text(
  folder: str,
  *,
  exercises: Callable[[], verifiable.Exercises] = verifiable.Exercises,
  methods: Sequence[str] = METHODS,
  model: T5Config = MODEL,
  demonstrations: int = 2000,
  sft_steps: int = 600,
  prompts: int = 1500,
  samples: int = 4,
  validation_prompts: int = 96,
  test_prompts: int = 192,
  own_samples: int = 8,
  response_length: int = 12,
  steps: int = 400,
  batch_size: int = 64,
  mesh: Callable[[], Mesh] = partitioning.make_mesh,
) -> Suite:
  """Generation with a programmed reward.

  Args:
    folder: the arena's.
    exercises: what is asked (see `data.verifiable.Exercises`).
    methods: who competes (see `arena.training.methods`).
    model: the policy's size.
    demonstrations: right answers that the SFT policy is fitted to.
    sft_steps: its optimiser steps.
    prompts: of the log.
    samples: logged answers to each.
    validation_prompts: prompts that choose hyperparameters.
    test_prompts: prompts that are reported on.
    own_samples: answers of each policy to each of both.
    response_length: tokens of an answer at most.
    steps: of DRO-V; other methods take as many as cost the same FLOPs.
    batch_size: responses of a batch.
    mesh: devices' arrangement.

  Raises:
    UsageError: an unknown method.
  """
  world = World(
    exercises(), demonstrations, sft_steps, prompts, samples, validation_prompts, test_prompts, own_samples,
    response_length,
  )  # fmt: skip
  competing = training.chosen(training.methods(RATES), methods)
  budget = training.Budget(steps, batch_size, group_size=samples)
  place = pathlib.Path(folder).expanduser().absolute()
  world_of = functools.lru_cache(maxsize=2)(functools.partial(prepare, place, world, model, mesh))
  settings = {
    'world': world._asdict() | {'exercises': world.exercises._asdict()},
    'model': vars(model),
    'budget': budget._asdict(),
  }
  return Suite(
    'text', plain(settings), {name: method.grid for name, method in competing.items()}, ({},),
    functools.partial(run, place, competing, budget, mesh, world_of, own_samples),
    functools.partial(report, tuple(competing)),
    'A cell takes about 2 minutes on 2 cores.',
  )  # fmt: skip


__all__ = ['Exercises', 'text']
Exercises = verifiable.Exercises
