"""The `inspect` command: what a file of triplets holds, which methods it admits, and how to train on it."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dro_jax import admission, derived, inspection_tables, networks, survey
from dro_jax.data import scaling as scalings
from dro_jax.data import tasks
from dro_jax.data.batches import groups as units
from dro_jax.data.batches import packing as layout
from dro_jax.data.batches import plan
from dro_jax.data.records import reward_words
from dro_jax.data.records import triplets as sources
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import chat, lost_text, vocabularies
from dro_jax.errors import UsageError
from dro_jax.printing.result import Sections
from dro_jax.printing.tables import text
from dro_jax.run import batches as feeds
from dro_jax.statistics import ties

_FRACTIONS = (0.05, 0.1, 0.2, 0.5)  # Shares of the prompts to hold out: the first that holds out some.
_SCANNED = 64  # Batches at most that are laid out in each kind of rows,
_EPOCHS = 4  # of that many epochs at most.
_TRIED = 4  # Lengths of rows that are tried.
_ROWS = (128, 256, 512, 1024)  # Tokens of a row's side, beside the longest text's.
_WORTH = 0.02  # Fill by which rows must be better than those that fit the data by themselves.

# Where a warning begins.
_OFF_CENTRE = 0.1  # |mean| / sd: from here on V, which starts at zero, has something to learn first.
_ODD_SCALE = 3.0  # sd, or 1 / sd: from here on the default temperature means something else.
_LENGTH = 0.3  # |correlation| of length and reward.
_LONGER = 0.1  # How far from one half the longer response wins.
_CUT = 0.01  # Share of texts that are cut.
_OUTLIER = 8.0  # Standard deviations.
_DOMINANT = 0.2  # Share of the records that one prompt has.


# What a run takes by itself: what is no different is left out of the command.
DEFAULTS = {
  'VOCABULARY': None,
  'TEMPLATE': '{prompt}',
  'CHAT_TEMPLATE': chat.TEMPLATE,
  'PROMPT_LENGTH': 512,
  'RESPONSE_LENGTH': 512,
  'KEEP': 'auto',
  'BATCH': 32,
  'TAU': 1.0,
  'REWARD_SCALING': 'none',
  'VALIDATION_FRACTION': 0.05,
  'PACKED': True,
  'ROW_COVERAGE': 1.0,
  'ROW_PROMPT_LENGTH': None,
  'ROW_RESPONSE_LENGTH': None,
  'DATA_DIR': None,
  'CACHE_DIR': None,
}
MACROS = {
  'packed': 'PACKED',
  'coverage': 'ROW_COVERAGE',
  'prompt_length': 'ROW_PROMPT_LENGTH',
  'response_length': 'ROW_RESPONSE_LENGTH',
}
USUAL = 'dro_v'  # What a run takes by itself.
_IMITATION = 'sft'
_PREFERRED = (USUAL, 'dro_v_binary', _IMITATION)


class Read(NamedTuple):
  """Triplets as read.

  whole     all of them.
  triplets  split as `train` would split them.
  fraction  of the prompts held out; None where that part has its own files.
  problem   why rewards cannot be read, if they cannot.
  words     texts that stand for rewards and that --map_reward did not read, with how often each occurs.
  proposed  what --map_reward might say of them; what it says where it can be guessed.
  """

  whole: TokenTable
  triplets: tasks.Triplets
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
  template: str = '{prompt}',
  chat_template: str = chat.TEMPLATE,
  init_from: str | None = None,
  vocabulary: str | None = None,
  prompt_length: int = 512,
  response_length: int = 512,
  keep: str = 'auto',
  batch_size: int = 32,
  scaling: str | Literal['none'] | None = None,
  temperature: float | int = 1.0,
  columns_from: str | Sequence[str] | None = None,
  data_dir: str | None = None,
  cache_dir: str | None = None,
) -> Sections:
  """Looks at triplets as `train` would read them, by the same token table.

  Args:
    triplets: as `data.tasks.load_triplets`; so are `eval_triplets`, `columns`, `map_reward`, `template`,
      `chat_template`, `prompt_length`, `response_length`, `keep`, `columns_from`, `data_dir` and `cache_dir`.
    init_from: a checkpoint to start from, whose vocabulary is taken.
    vocabulary: 'bytes', or a SentencePiece model; None takes the checkpoint's, or else bytes.
    batch_size: responses of a batch.
    scaling: of rewards; None proposes one.
    temperature: τ.

  Returns:
    Plain JSON by section; `command` is the train command to copy.

  Raises:
    UsageError: prompts or responses cannot be read. Rewards that cannot are a finding.
  """
  words = _vocabulary(vocabulary, init_from)
  files = {'columns': columns, 'map_reward': map_reward, 'columns_from': columns_from}
  texts = {'template': template, 'chat_template': chat_template, 'data_dir': data_dir, 'cache_dir': cache_dir}
  limits = {'prompt_length': prompt_length, 'response_length': response_length}
  read = _read(triplets, words, eval_triplets=eval_triplets, keep=keep, **files, **texts, **limits)
  files |= {'map_reward': read.proposed.map_reward} if read.proposed else {}
  chosen, unscaled = _chosen_scaling(read, scaling)
  batch_size = min(batch_size, len(read.triplets.train))  # A larger one would hold records several times.
  asked = admission.admissions(read.triplets, scaling=chosen, rewards_problem=read.problem)
  found = surveyed(read, words, **limits) | {
    'init_from': init_from,
    'scaling': read.problem is None and _scaling(read.triplets, chosen, temperature),
    'batch': {'size': batch_size, 'batches_an_epoch': len(read.triplets.train) / batch_size},
    'rows': packing(read.triplets.train, batch_size),
    'methods': [method._asdict() for method in asked],
    'judged': units.are_comparisons(read.whole),
    'labels': None if read.problem else _labels(read.triplets),
    'unscaled': unscaled,
    'reward_words': read.proposed and {
      'words': read.words, 'map_reward': read.proposed.map_reward, 'complete': read.proposed.complete,
    },
  }  # fmt: skip
  macros = texts | limits | {
    'vocabulary': vocabulary, 'keep': keep, 'batch': batch_size, 'tau': temperature, 'reward_scaling': chosen,
    'validation_fraction': read.fraction,
  }  # fmt: skip
  flags = {'triplets': triplets, 'eval_triplets': eval_triplets, **files, 'init_from': init_from}
  if read.proposed and not read.proposed.complete:  # A run is proposed once the rewards are numbers.
    command = ['dro_jax', 'inspect', *_flags(flags)]
  else:
    settings = {name.upper(): value for name, value in macros.items()} | found['rows']['settings']
    command = train_command(asked, _PREFERRED, flags, settings)
  found |= {'warnings': list(warnings(found)), 'command': shlex.join(command)}
  return Sections(found, dict(inspection_tables.tables(found)), verbatim=folded(command))


def _vocabulary(spec: str | None, init_from: str | None) -> vocabularies.Vocabulary:
  if init_from is not None:
    return networks.vocabulary_of(init_from, spec)
  return vocabularies.vocabulary(spec or 'bytes')


def _read(triplets: Any, words: vocabularies.Vocabulary, **options) -> Read:
  load = functools.partial(tasks.load_triplets, triplets, vocabulary=words, validation_fraction=0, **options)
  try:
    return _split(load())
  except UsageError as error:
    problem = str(error)
  # Whatever else is wrong is raised again.
  unread = _split(load(rewards_required=False))._replace(problem=problem)
  spoken = _words(triplets, options)
  if not spoken:
    return unread
  proposed = reward_words.propose(spoken, options['map_reward'])
  found = unread
  if proposed.complete:
    with contextlib.suppress(UsageError):  # Of some other record the reward is missing, too.
      found = _split(load(map_reward=proposed.map_reward))
  return found._replace(words=spoken, proposed=proposed)


def _split(loaded: tasks.Triplets) -> Read:
  """Held out as `train` would; none where those to train on would be left with one reward of several."""
  if loaded.eval is not None:
    return Read(loaded.train, loaded, None, None)
  whole = loaded.train
  for fraction in _FRACTIONS:
    try:
      train, held_out = tasks.hold_out(whole, fraction)
    except UsageError:  # So few prompts that none, or all, would be held out.
      continue
    if ties.is_constant(train.raw_rewards) and not ties.is_constant(whole.raw_rewards):
      break  # A larger share holds out the same prompts, and more.
    return Read(whole, loaded._replace(train=train, eval=held_out), fraction, None)
  return Read(whole, loaded, 0, None)


def _words(triplets: Any, options: Mapping[str, Any]) -> dict[str, int]:
  """Rewards that are words, of all files; data sets by name have none."""
  counts: collections.Counter[str] = collections.Counter()
  for name in filter(None, (triplets, options['eval_triplets'])):
    if sources.is_files(name):
      counts.update(sources.reward_words_of(name, options['columns'], options['map_reward']))
  return dict(counts)


def _chosen_scaling(read: Read, asked: str | None) -> tuple[str, str | None]:
  """The scaling that is asked for, or one that suits the rewards to train on; why the former cannot be."""
  rewards = read.triplets.train.raw_rewards
  if read.problem:
    return 'none', None
  if asked is None:
    return proposed_scaling(rewards), None
  try:
    scalings.fit(asked, rewards)
    return asked, None
  except UsageError as error:
    return 'none', str(error)


def _labels(triplets: tasks.Triplets) -> dict[str, Any]:
  """What makes the labels of methods that learn from thumbs, unless they are told another rule."""
  try:
    return derived.above_minibatch_mean(triplets).report(triplets.train)
  except UsageError as error:
    return {'rule': None, 'said': str(error), 'labels': 0, 'desirable': 0}


# --- what is found ------------------------------------------------------------------------------------------


def surveyed(
  read: Read, words: vocabularies.Vocabulary, prompt_length: int, response_length: int
) -> dict[str, Any]:
  """What the whole table holds (see `survey`)."""
  table = read.whole
  lengths = survey.whole_lengths(table, words, prompt_length)
  rewarded = {'rewards': None, 'variance': None, 'comparisons': None}
  if read.problem is None:
    rewards, prompts = table.raw_rewards, table.prompt_index
    rewarded = {
      'rewards': survey.rewards(rewards),
      'variance': survey.variance(rewards, prompts),
      'comparisons': survey.comparisons(rewards, table.response_lengths.astype(np.float64), prompts),
    }
  return {
    'records': len(table),
    'prompts': table.report['prompts'],
    'held_out': {'fraction': read.fraction, 'records': len(read.triplets.eval) if read.triplets.eval else 0},
    'rewards_problem': read.problem,
    'without_reward': table.report['without_reward'],
    'eval_prompts_in_train': read.triplets.report.get('eval_prompts_in_train', 0),
    'responses_per_prompt': survey.responses_per_prompt(table.prompt_index),
    'extra_columns': survey.extra_columns(table),
    'vocabulary': {
      'name': words.spec,
      'size': words.size,
      'unknown_share': survey.unknown_share(table),
      'lost': table.report.get('lost', {}),
      'losses': list(lost_text.sentences(table.report.get('lost', {}), words)),
    },
    'lengths': {name: survey.spread(x) for name, x in lengths._asdict().items()},
    'truncation': {
      'prompt': survey.truncation(lengths.prompt_tokens, prompt_length),
      'response': survey.truncation(lengths.response_tokens, response_length),
    },
    **rewarded,
    'duplicates': survey.duplicates(table),
  }


def proposed_scaling(rewards: np.ndarray) -> str:
  """'standardise' where rewards are off centre, or in units in which τ = 1 is far from usual; else 'none'."""
  if ties.is_constant(rewards):
    return 'none'
  sd = float(rewards.std())
  usual = 1 / _ODD_SCALE <= sd <= _ODD_SCALE and abs(rewards.mean()) <= _OFF_CENTRE * sd
  return 'none' if usual else 'standardise'


def _scaling(triplets: tasks.Triplets, kind: str, temperature: float | int) -> dict[str, Any]:
  fitted = scalings.fit(kind, triplets.train.raw_rewards, triplets.train.prompt_index)
  return fitted.to_json(temperature) | {'temperature': temperature, 'knots': []}


def packing(table: TokenTable, batch_size: int) -> dict[str, Any]:
  """How full rows of several kinds are, and which settings fill them best.

  Returns:
    `kinds`: the rows that a run takes by itself, padded ones, then others; `settings`: what to set, nothing
    where the first are as good.
  """
  order = plan.Plan.of(table, batch_size, 0)
  batches = [order.batch(step) for step in range(min(_SCANNED, -(-_EPOCHS * len(table) // batch_size)))]
  own, tried = dataclasses.asdict(feeds.RowOptions()), [{'packed': False}, {'coverage': 0.9}]
  tried += [dict(zip(('prompt_length', 'response_length'), sides)) for sides in _promising(table, batches)]
  found = [_packed(table, order, batches, own, {})]
  found += [_packed(table, order, batches, own, given, scan=len(batches)) for given in tried]
  # Another number of rows is another shape to compile.
  best = max(found, key=lambda kind: kind['total'] - _WORTH * (len(kind['rows']) - 1))
  worth = best['total'] > found[0]['total'] + _WORTH
  return {'kinds': found, 'settings': best['settings'] if worth else {}}


def _promising(table: TokenTable, batches: Sequence[np.ndarray]) -> list[tuple[int, int]]:
  """Lengths of rows that could be full, were the batches' texts cut as one likes: the best of them."""
  totals = []
  for batch in batches:
    first = np.unique(table.prompt_index[batch], return_index=True)[1]
    totals.append((table.prompt_lengths[batch][first].sum(), table.response_lengths[batch].sum()))

  def fill(sides: tuple[int, int]) -> float:
    rows = np.ceil((totals / np.array(sides)).max(1))
    return float(np.sum(totals) / (rows.sum() * sum(sides)))

  longest = int(table.prompt_lengths.max()), int(table.response_lengths.max())
  sides = [{-(-length // 8) * 8, *(size for size in _ROWS if size >= length)} for length in longest]
  return sorted(sorted(itertools.product(*sides)), key=fill)[-_TRIED:]


def _packed(
  table: TokenTable, order: plan.Plan, batches: list, own: Mapping, given: Mapping, **options
) -> dict[str, Any]:
  rows = layout.Layout.fit(table, order, **own | given, **options)
  fill = layout.fill(table, rows, batches)
  return {
    'settings': {MACROS[name]: value for name, value in given.items()},
    'prompt_length': rows.prompt_length, 'response_length': rows.response_length, **fill._asdict(),
  }  # fmt: skip


def warnings(found: Mapping[str, Any]) -> Iterator[str]:
  """What to mind before training, in the order of its weight."""
  yield from _of_words(found.get('reward_words'), found['rewards_problem'])
  if not found['rewards_problem']:
    if found['unscaled']:
      yield f'The scaling that was asked for cannot be had: {found["unscaled"]}.'
    yield from _of_one_kind(found['labels'])
    judged = found.get('judged', False)
    yield from _of_rewards(found['rewards'], found['scaling'], found['duplicates'], judged)
    yield from _of_comparisons(found['comparisons'], found['variance'], found['records'], judged)
  yield from _of_prompts(found)
  yield from _of_texts(found)


def _of_words(words: Mapping | None, problem: str | None) -> Iterator[str]:
  if words:
    counted = ', '.join(f'{word} ({count})' for word, count in words['words'].items())
    said = words['map_reward']
    flag = f'--map_reward={said}' if isinstance(said, str) else f'--set MAP_REWARD="{said}"'
    guess = (
      'a guess that the command below makes: check it'
      if words['complete']
      else 'with a number for each NUMBER'
    )
    yield f'Rewards are words: {counted}. Pass {flag}, {guess}.'
  if problem and not (words and not words['complete']):
    yield f'Rewards cannot be read: {problem}'


def _of_one_kind(labels: Mapping) -> Iterator[str]:
  if labels['rule'] == 'binary' and labels['desirable'] in (0, labels['labels']):
    up = labels['desirable']
    kind, does = ('desirable', 'only imitate them') if up else ('undesirable', 'only push them away')
    yield f'All {labels["labels"]} responses to train on are {kind}: kto and bco can {does}.'


def _of_rewards(rewards: Mapping, scaling: Mapping, duplicates: Mapping, judged: bool) -> Iterator[str]:
  mean, sd = rewards['mean'], rewards['sd']
  if sd == 0:
    yield f'All rewards are {text(mean)}: only imitation has something to learn.'
    return
  if abs(mean) > _OFF_CENTRE * sd:
    centred = ': REWARD_SCALING=standardise centres it' if scaling['kind'] == 'standardise' else ''
    yield (
      f'The mean reward, {text(mean)}, is {text(abs(mean) / sd)} sd from 0, where V starts{centred}. Until V '
      'has learnt it, the policy moves mass to texts that nobody logged.'
    )
  effective = scaling['effective_temperature']
  if effective is not None:
    yield (
      f'τ = {scaling["temperature"]:g} is {text(float(effective))} in the rewards’ own units (sd '
      f'{text(sd)}): at DRO’s optimum that much reward is worth a nat of log-ratio.'
    )
  furthest = max(rewards['max'] - mean, mean - rewards['min']) / sd
  if furthest > _OUTLIER:
    yield (
      f'A reward is {text(furthest)} sd from the mean, and a squared loss listens to it: look at it, or '
      'pass --set REWARD_SCALING=quantile.'
    )
  if count := duplicates['texts_with_conflicting_rewards']:
    others = (
      'groups their mean, and pairs stay as they were judged' if judged else 'pairs and groups their mean'
    )
    yield (
      f'{count} texts (same prompt, same response) have several rewards, up to '
      f'{text(duplicates["largest_conflict"])} apart (such as {", ".join(duplicates["examples"])}): losses '
      f'by response see each, {others}.'
    )


def _of_comparisons(comparisons: Mapping, variance: Mapping, records: int, judged: bool) -> Iterator[str]:
  watch = 'watch the length of samples (eval/sample_tokens).'
  correlation, longer = comparisons['length_correlation'] or 0.0, comparisons['longer_is_better']
  if abs(correlation) > max(_LENGTH, 2 / records**0.5):
    kind = 'Longer' if correlation > 0 else 'Shorter'
    yield f'{kind} responses are rewarded more (rank correlation {text(correlation)}): {watch}'
  decided = comparisons['pairs'] - comparisons['tied_pairs']
  if decided and abs(longer - 0.5) > max(_LONGER, 1 / decided**0.5):
    yield f'The longer of two responses to one prompt is the better one in {longer:.0%} of the pairs: {watch}'
  if not judged and 0.5 < (comparisons['share_tied'] or 0.0) < 1:
    yield (
      f'{comparisons["share_tied"]:.0%} of the comparisons within prompts are ties, of which pairs learn '
      'nothing; losses by response still learn from them.'
    )
  if variance['share_within'] == 0:
    yield 'Rewards differ between prompts only: there is nothing to prefer among the responses to a prompt.'


def _of_prompts(found: Mapping[str, Any]) -> Iterator[str]:
  per_prompt, records, prompts = found['responses_per_prompt'], found['records'], found['prompts']
  if records == prompts:
    yield (
      'Every prompt has one response: V(x) is learnt across prompts, never from several responses to one, '
      'and how far the reward varies within a prompt cannot be told.'
    )
  if per_prompt['max'] > max(_DOMINANT * records, 1) and prompts > 1:
    yield f'One prompt has {per_prompt["max"]} of the {records} records.'
  if prompts == 1:
    yield 'There is one prompt only: nothing can be held out, and V is one number (VALUE_READOUT=scalar).'
  if found['held_out']['fraction'] == 0:
    yield (
      'There are too few prompts to hold some out by their hash and keep rewards to tell apart: nothing is '
      'validated.'
    )
  if shared := found['eval_prompts_in_train']:
    yield f'{shared} prompts of the held-out files are in the training files too.'
  if found['batch']['batches_an_epoch'] == 1:
    yield f'A batch holds every record to train on ({found["batch"]["size"]}).'


def _of_texts(found: Mapping[str, Any]) -> Iterator[str]:
  for side, cut in found['truncation'].items():
    if cut['share_cut'] > _CUT:
      what = ', and lose their EOS' if side == 'response' else ''
      yield (
        f'{cut["share_cut"]:.1%} of the {side}s are cut at {cut["limit"]} tokens{what}: a reward was given '
        f'to the whole text. --set {side.upper()}_LENGTH={cut["limit_for_99_percent"]} keeps 99 %.'
      )
  vocabulary = found['vocabulary']
  yield from vocabulary['losses']
  if vocabulary['name'] == 'bytes' and found['init_from'] is None:
    yield 'Lengths are in bytes: with --init_from or --set VOCABULARY they are in the model’s own tokens.'
  if left_out := found['extra_columns']['left_out']:
    yield f'Columns that only some records have are left out: {", ".join(left_out)}.'


# --- the command --------------------------------------------------------------------------------------------


def train_command(
  asked: Sequence[admission.Admission],
  preferred: Sequence[str],
  flags: Mapping[str, Any],
  macros: Mapping[str, Any],
) -> list[str]:
  """The words of a `dro_jax train` that reads the data as it was inspected, and runs as it stands.

  Args:
    asked: what the algorithms say.
    preferred: their names: the first that the data admits is taken.
    flags: by name; None is left out.
    macros: by name; what is a run's default is left out.
  """
  admitted = {method.method: method for method in asked if method.admitted}
  method = next(admitted[name] for name in preferred if name in admitted)
  words = ['dro_jax', 'train', *_flags(flags), f'--model_dir={_free(f"runs/{method.method}")}']
  if flags['init_from'] is None:
    words.append('--gin_file=models/t5_1_1_tiny.gin')
  chosen = [] if method.method == USUAL else [f'ALGORITHM={method.method}']
  changed = [
    f'{name}={_typed(macros[name])}'
    for name, usual in DEFAULTS.items()
    if macros.get(name) not in (None, usual)
  ]
  return words + [word for setting in (*chosen, *method.settings, *changed) for word in ('--set', setting)]


def _typed(value: Any) -> Any:
  """A value as `--set` reads it: text that quotes, blanks, % or None's name would change stands in quotes."""
  changes = isinstance(value, str) and (value != value.strip('\'" \t\n%') or value.lower() == 'none')
  return repr(value) if changes else value


def _flags(flags: Mapping[str, Any]) -> Iterator[str]:
  for name, value in flags.items():
    if isinstance(value, Mapping):
      yield from ('--set', f'{name.upper()}={dict(value)}')
    elif value is not None:
      yield f'--{name}={value if isinstance(value, str) else ",".join(map(str, value))}'


def _free(folder: str) -> str:
  """A folder that is not there yet: in one that is, a run would be resumed, or refused."""
  names = itertools.chain([folder], (f'{folder}_{i}' for i in itertools.count(2)))
  return next(name for name in names if not os.path.exists(name))


def folded(command: Sequence[str]) -> str:
  """The command on several lines, a flag on each, as a shell reads it."""
  lines = [shlex.join(command[:2])]
  for word in command[2:]:
    if lines[-1].startswith('--set') and ' ' not in lines[-1]:
      lines[-1] += f' {shlex.quote(word)}'
    else:
      lines.append(shlex.quote(word))
  return ' \\\n  '.join(lines)


__all__ = ['inspect_triplets']
