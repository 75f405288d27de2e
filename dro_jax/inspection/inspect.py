"""The `inspect` command: describes triplets, lists algorithms that can learn from them, proposes a run."""

import collections
import functools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dro_jax.algorithms.columns import above_minibatch_mean
from dro_jax.checkpoints import policy
from dro_jax.data import scaling as scalings
from dro_jax.data.batches import groups
from dro_jax.data.records import reward_words
from dro_jax.data.records import triplets as sources
from dro_jax.data.sources.find import as_texts
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import lost_text, tokenise, vocabularies
from dro_jax.data.text.chat import TEMPLATE
from dro_jax.data.text.templates import PLAIN, PROMPT_LENGTH, RESPONSE_LENGTH
from dro_jax.data.triplets import Triplets, hold_out, load_triplets, with_missing_rewards_zero
from dro_jax.errors import UsageError
from dro_jax.inspection import describe, methods
from dro_jax.inspection.command import USUAL, folded, train_command, typed_flags
from dro_jax.inspection.packing import packing
from dro_jax.inspection.spelling import PYTHON
from dro_jax.inspection.tables import tables
from dro_jax.inspection.warnings import OFF_CENTRE, warnings
from dro_jax.models.policy import fitting_lengths
from dro_jax.printing.result import Sections
from dro_jax.statistics import ties

_FRACTIONS = (
  0.05,
  0.1,
  0.2,
  0.5,
)  # Shares of the prompts to hold out; the first that holds out any is taken.
_ODD_SCALE = 3.0  # Above it, or below its inverse, the sd needs another temperature than the default.
_IMITATION = 'sft'
_PREFERRED = (USUAL, 'dro_v_binary', _IMITATION)


class Read(NamedTuple):
  """Triplets, split for a run.

  whole     all of them.
  triplets  split as `train` would split them.
  fraction  share of the prompts held out; None where files hold that part.
  problem   why rewards cannot be read; None if they can.
  words     rewards that are words and that --map_reward does not map, each with its count.
  proposed  a --map_reward for them, as far as it can be guessed.
  """

  whole: TokenTable
  triplets: Triplets
  fraction: float | None
  problem: str | None
  words: Mapping[str, int] = {}
  proposed: reward_words.Proposal | None = None


def inspect_triplets(
  triplets: str | Sequence[str],
  *,
  eval_triplets: str | Sequence[str] | None = None,
  columns: str | Mapping[str, str] | None = None,
  map_reward: str | Mapping[str, float | int] | None = None,
  rewards: str | Mapping[str, float | int] | None = None,
  template: str = PLAIN,
  chat_template: str = TEMPLATE,
  chat: bool | None = None,
  init_from: str | None = None,
  vocabulary: str | None = None,
  prompt_length: int = PROMPT_LENGTH,
  response_length: int = RESPONSE_LENGTH,
  keep: str = 'auto',
  batch_size: int = 32,
  scaling: str | Literal['none'] | None = None,
  validation_fraction: float | int | None = None,
  temperature: float | int = 1.0,
  columns_from: str | Sequence[str] | None = None,
  data_dir: str | None = None,
  cache_dir: str | None = None,
  task_modules: str | Sequence[str] = (),
) -> Sections:
  """Describes triplets as `train` would read them, from the same token table.

  Args:
    triplets: as `data.triplets.load_triplets`; so are `eval_triplets`, `columns`, `map_reward`, `rewards`,
      `template`, `chat_template`, `chat`, `prompt_length`, `response_length`, `keep`, `columns_from`,
      `data_dir`, `cache_dir` and `task_modules`.
    init_from: a checkpoint to start from; its vocabulary is the default.
    vocabulary: as `load_triplets`; None takes the checkpoint's, or else bytes.
    batch_size: responses of a batch.
    scaling: of rewards; None proposes one.
    validation_fraction: the share of prompts to hold out where `eval_triplets` is not given; None proposes
      one.
    temperature: τ.

  Returns:
    Plain JSON by section; `command` is the train command to copy.

  Raises:
    UsageError: prompts or responses cannot be read. Unreadable rewards are reported in the result.
  """
  triplets, eval_triplets = as_texts(triplets), as_texts(eval_triplets)
  loaded_vocabulary = policy.find_vocabulary(vocabulary, init_from)
  files = {'columns': columns, 'map_reward': map_reward, 'rewards': rewards, 'columns_from': columns_from}
  modules = {'task_modules': task_modules}
  texts = {
    'template': template, 'chat_template': chat_template, 'chat': chat, 'data_dir': data_dir,
    'cache_dir': cache_dir,
  }  # fmt: skip
  limits = {'prompt_length': prompt_length, 'response_length': response_length}
  load = functools.partial(
    _read, triplets, loaded_vocabulary, validation_fraction, eval_triplets=eval_triplets, keep=keep, **files,
    **texts, **modules,
  )  # fmt: skip
  read = load(**limits)
  positions = _positions(read.triplets, init_from)
  if positions:
    limits = positions['limits']
    read = load(**limits)
  files |= {'map_reward': read.proposed.map_reward} if read.proposed else {}
  chosen, unscaled = _chosen_scaling(read, scaling)
  batch_size = min(batch_size, len(read.triplets.train))  # A larger batch would repeat records.
  admissions = methods.admissions(read.triplets, scaling=chosen, rewards_problem=read.problem)
  by_chat = tokenise.uses_chat(loaded_vocabulary, chat)
  content = describe_table(read, loaded_vocabulary, by_chat=by_chat, **limits) | {
    'init_from': init_from,
    'tokens_of_a_model': not (vocabulary is None and init_from is None),
    'positions': positions,
    'scaling': read.problem is None and _scaling(read.triplets, chosen, temperature),
    'batch': {'size': batch_size, 'batches_an_epoch': len(read.triplets.train) / batch_size},
    'rows': packing(read.triplets.train, batch_size),
    'methods': [method._asdict() for method in admissions],
    'judged': groups.are_comparisons(read.whole),
    'labels': None if read.problem else _labels(read.triplets),
    'unscaled': unscaled,
    'reward_words': read.proposed and {
      'words': read.words, 'map_reward': read.proposed.map_reward, 'complete': read.proposed.complete,
    },
  }  # fmt: skip
  macros = texts | limits | modules | {
    'vocabulary': vocabulary, 'keep': keep, 'batch': batch_size, 'tau': temperature, 'reward_scaling': chosen,
    'validation_fraction': read.fraction,
  }  # fmt: skip
  flags = {'triplets': triplets, 'eval_triplets': eval_triplets, **files, 'init_from': init_from}
  if read.proposed and not read.proposed.complete:  # Rewards must be numbers before a run can be proposed.
    command = ['dro_jax', 'inspect', *typed_flags(flags)]
  else:
    settings = {name.upper(): value for name, value in macros.items()} | content['rows']['settings']
    command = train_command(admissions, _PREFERRED, flags, settings)
  content |= {'warnings': list(warnings(content)), 'command': shlex.join(command)}
  return Sections(content, dict(tables(content)), verbatim=folded(command))


def for_python(found: Sections) -> Sections:
  """What `inspect_triplets` returned, with advice that names arguments and no settings of the command line.

  `command` stays a command.
  """
  methods = [
    method | {'reason': PYTHON.sentences(method['reason'])} for method in map(dict, found['methods'])
  ]
  problem = found['rewards_problem'] and PYTHON.sentences(found['rewards_problem'])
  content = found | {'methods': methods, 'rewards_problem': problem}
  content |= {'warnings': list(warnings(content, PYTHON))}
  return Sections(content, dict(tables(content, PYTHON)), verbatim=found.verbatim)


def _read(
  triplets: Any, vocabulary: vocabularies.Vocabulary, fraction: float | int | None, **options: Any
) -> Read:
  load = functools.partial(load_triplets, triplets, vocabulary=vocabulary, validation_fraction=0, **options)
  loaded = load()
  problem = _rewards_problem(loaded)
  if problem is None:
    return _split(loaded, fraction)
  unread = _split(with_missing_rewards_zero(loaded), fraction)._replace(problem=problem)
  reward_counts = _reward_words(triplets, options)
  if not reward_counts:
    return unread
  proposed = reward_words.propose(reward_counts, options['map_reward'])
  split = unread
  if proposed.complete:
    mapped = load(map_reward=proposed.map_reward)
    if _rewards_problem(mapped) is None:  # Another record may have no reward at all.
      split = _split(mapped, fraction)
  return split._replace(words=reward_counts, proposed=proposed)


def _rewards_problem(triplets: Triplets) -> str | None:
  """Why the first record without a reward has none; None if all have one."""
  tables = [table for table in (triplets.train, triplets.eval) if table is not None]
  missing = (table for table in tables if np.isnan(table.raw_rewards).any())
  return next((table.report['reward_problem'] for table in missing), None)


def _split(loaded: Triplets, chosen: float | int | None) -> Read:
  """Splits triplets like `train`; where no share is chosen, it leaves different rewards to train on."""
  if loaded.eval is not None:
    return Read(loaded.train, loaded, None, None)
  whole = loaded.train
  if chosen is not None:
    train, held_out = hold_out(whole, chosen)
    return Read(whole, loaded._replace(train=train, eval=held_out), chosen, None)
  for fraction in _FRACTIONS:
    try:
      train, held_out = hold_out(whole, fraction)
    except UsageError:  # With so few prompts the share holds out none, or all.
      continue
    if ties.is_constant(train.raw_rewards) and not ties.is_constant(whole.raw_rewards):
      break  # A larger share holds out the same prompts, and more.
    return Read(whole, loaded._replace(train=train, eval=held_out), fraction, None)
  return Read(whole, loaded, 0, None)


def _reward_words(triplets: Any, options: Mapping[str, Any]) -> dict[str, int]:
  """Counts of rewards that are words, in all files; data sets by name have none."""
  counts: collections.Counter[str] = collections.Counter()
  for name in filter(None, (triplets, options['eval_triplets'])):
    if sources.is_files(name):
      counts.update(sources.reward_words_of(name, options['columns'], options['map_reward']))
  return dict(counts)


def _positions(triplets: Triplets, init_from: str | None) -> dict[str, Any] | None:
  """The learned positions of a checkpoint that has too few for the texts, and limits that fit; else None."""
  if init_from is None:
    return None
  config = policy.config_of(init_from)
  tables = [table for table in (triplets.train, triplets.eval) if table is not None]
  longest = [
    max(int(getattr(table, f'{side}_lengths').max()) for table in tables) for side in ('prompt', 'response')
  ]
  fitting = fitting_lengths(config, *longest)
  if sum(fitting) == sum(longest):
    return None
  limits = {'prompt_length': fitting[0], 'response_length': fitting[1]}
  # The last token is only predicted, and needs no position.
  return {'learned': sum(fitting) - 1, 'longest': longest, 'limits': limits}


def _chosen_scaling(read: Read, requested: str | None) -> tuple[str, str | None]:
  """The requested scaling, or one that suits the rewards; and why the requested one is impossible, if so."""
  rewards = read.triplets.train.raw_rewards
  if read.problem:
    return 'none', None
  if requested is None:
    return proposed_scaling(rewards), None
  try:
    scalings.fit(requested, rewards)
    return requested, None
  except UsageError as error:
    return 'none', str(error)


def _labels(triplets: Triplets) -> dict[str, Any]:
  """The default rule of labels, for algorithms that learn from thumbs up and down."""
  try:
    return above_minibatch_mean(triplets).report(triplets.train)
  except UsageError as error:
    return {'rule': None, 'said': str(error), 'labels': 0, 'desirable': 0}


def describe_table(
  read: Read, vocabulary: vocabularies.Vocabulary, prompt_length: int, response_length: int, by_chat: bool
) -> dict[str, Any]:
  """A description of the whole table (see `inspection.describe`)."""
  table = read.whole
  lengths = describe.whole_lengths(table, vocabulary, prompt_length, by_chat)
  rewarded = {'rewards': None, 'variance': None, 'comparisons': None}
  if read.problem is None:
    rewards, prompts = table.raw_rewards, table.prompt_index
    rewarded = {
      'rewards': describe.rewards(rewards),
      'variance': describe.variance(rewards, prompts),
      'comparisons': describe.comparisons(rewards, table.response_lengths.astype(np.float64), prompts),
    }
  return {
    'records': len(table),
    'prompts': table.report['prompts'],
    'held_out': {
      'fraction': read.fraction, 'records': len(read.triplets.eval) if read.triplets.eval else 0,
      'prompts': len(np.unique(read.triplets.eval.prompt_index)) if read.triplets.eval else 0,
    },
    'rewards_problem': read.problem,
    'without_reward': table.report['without_reward'],
    'eval_prompts_in_train': read.triplets.report.get('eval_prompts_in_train', 0),
    'responses_per_prompt': describe.responses_per_prompt(table.prompt_index),
    'extra_columns': describe.extra_columns(table),
    'vocabulary': {
      'name': vocabulary.spec,
      'size': vocabulary.size,
      'chat': by_chat,
      'unknown_share': describe.unknown_share(table, vocabulary.special.unknown),
      'lost': table.report.get('lost', {}),
      'losses': list(lost_text.sentences(table.report.get('lost', {}), vocabulary)),
    },
    'lengths': {name: describe.spread(x) for name, x in lengths._asdict().items()},
    'truncation': {
      'prompt': describe.truncation(lengths.prompt_tokens, prompt_length),
      'response': describe.truncation(lengths.response_tokens, response_length),
    },
    **rewarded,
    'tokenised_apart': table.report.get('tokenised_apart', 0),
    'duplicates': describe.duplicates(table),
  }  # fmt: skip


def proposed_scaling(rewards: np.ndarray) -> str:
  """'standardise' where rewards are off centre, or in units in which τ = 1 is far from usual; else 'none'."""
  if ties.is_constant(rewards):
    return 'none'
  sd = float(rewards.std())
  is_usual = 1 / _ODD_SCALE <= sd <= _ODD_SCALE and abs(rewards.mean()) <= OFF_CENTRE * sd
  return 'none' if is_usual else 'standardise'


def _scaling(triplets: Triplets, kind: str, temperature: float | int) -> dict[str, Any]:
  fitted = scalings.fit(kind, triplets.train.raw_rewards, triplets.train.prompt_index)
  return fitted.to_json(temperature) | {'temperature': temperature, 'knots': []}


__all__ = ['inspect_triplets']
