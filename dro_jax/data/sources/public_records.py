"""The records of public preference data as triplets: which fields each data set has, and what they mean.

Where the fields are described:
  ultrafeedback: README of github.com/OpenBMB/UltraFeedback, "Dataset Format"; the mean of the fine-grained
    ratings is `calculate_average_rating` in its fix_overall_score_issue.py (arXiv 2310.01377).
  hh: the card of huggingface.co/datasets/Anthropic/hh-rlhf (arXiv 2204.05862).
  hh_rewarded: README and train/hh_preprocess_data of github.com/AlibabaResearch/DAMO-ConvAI, folder PRO
    (arXiv 2306.17492); data_cleaning.py and lolrl_qlora_llama_hh.py of github.com/abaheti95/LoL-RL.
  tldr: README of github.com/openai/summarize-from-feedback, "Human feedback data" and "Reddit TL;DR dataset",
    and the loading script of huggingface.co/datasets/openai/summarize_from_feedback (arXiv 2009.01325).
  faithdial: the card of huggingface.co/datasets/McGill-NLP/FaithDial (arXiv 2204.10757).
  reddit, rewarded: README and preprocess_{reddit_comment_scores,wow,comet}_and_add_rewards.py of
    github.com/abaheti95/LoL-RL (A-LoL, arXiv 2305.14718).
  atomic10x: the last of these, and README of github.com/peterwestai2/symbolic-knowledge-distillation
    (arXiv 2110.07178).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_EOS = '<|endoftext|>'  # Ends a turn in A-LoL's files.
_MAX_WORDS = 100  # Of a Reddit comment and of its parent, as in A-LoL.


class Triplet(NamedTuple):
  """One of a record's triplets, the one with the name `part`; its reward is None where the data has none."""

  part: str
  prompt: str
  response: str
  reward: float | None
  columns: Mapping[str, float] = {}


class Gap(NamedTuple):
  """A known gap: data that some records of the data set lack."""

  reason: str


# From a record and its split to triplets.
Read = Callable[[Mapping[str, Any], str], Iterator[Triplet | Gap]]


class Malformed(Exception):
  """A field of a record is wrong; the message names it."""


# --- fields -------------------------------------------------------------------------------------------------
_KINDS = {str: 'text', list: 'a list', dict: 'an object', float: 'a number'}


def _get(record: Mapping[str, Any], path: str, kind: type) -> Any:
  """The value at a dotted path ('completions.0.response').

  Raises:
    Malformed: there is no value, or it has another type.
  """
  value: Any = record
  for key in path.split('.'):
    known = value
    value = _item(value, key)
    if value is None:
      held = ', '.join(map(str, known)) if isinstance(known, dict) else repr(known)
      raise Malformed(f"field '{path}' is missing; the place of '{key}' holds {held or 'nothing'}")
  if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
    raise Malformed(f"field '{path}' is {value!r}, a {type(value).__name__}; it must be {_KINDS[kind]}")
  return value


def _item(value: Any, key: str) -> Any:
  if isinstance(value, list):
    return value[int(key)] if int(key) < len(value) else None
  return value.get(key) if isinstance(value, dict) else None


def _number(value: Any, path: str) -> float | None:
  """A number, also as text; None for nothing, NaN and N/A."""
  if value is None or value in ('', 'N/A'):
    return None
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise Malformed(f"field '{path}' is {value!r}; it must be a number") from error
  return None if math.isnan(number) else number


def _numbers(fields: Mapping[str, Any], names: tuple[str, ...], path: str) -> dict[str, float]:
  """Some fields as numbers, NaN where one is missing."""
  numbers = {name: _number(fields.get(name), f'{path}{name}') for name in names}
  return {name: math.nan if number is None else number for name, number in numbers.items()}


# --- UltraFeedback ------------------------------------------------------------------------------------------


def overall(completion: Mapping[str, Any], path: str) -> float | None:
  return _number(completion.get('overall_score'), f'{path}.overall_score')


def fine_grained(completion: Mapping[str, Any], path: str) -> float | None:
  """The mean of the ratings (1 to 5) of the aspects that have one."""
  aspects = _get(completion, 'annotations', dict)
  ratings = [
    _number(aspect.get('Rating'), f'{path}.annotations.{name}.Rating')
    for name, aspect in aspects.items()
    if aspect
  ]
  ratings = [rating for rating in ratings if rating is not None]
  return sum(ratings) / len(ratings) if ratings else None


def ultrafeedback(score: Callable[[Mapping[str, Any], str], float | None]) -> Read:
  def triplets(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
    del split
    prompt = _get(record, 'instruction', str)
    completions = _get(record, 'completions', list)
    if not completions:
      yield Gap('no completions')
    for i, completion in enumerate(completions):
      response = _get(record, f'completions.{i}.response', str)
      reward = score(completion, f'completions.{i}')
      yield Gap('no score') if reward is None else Triplet(str(i), prompt, response, reward)

  return triplets


# --- Anthropic HH -------------------------------------------------------------------------------------------


def hh(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
  """The last turn of a dialogue is the response: 1 for the chosen one, 0 for the rejected."""
  del split
  for side, reward in (('chosen', 1.0), ('rejected', 0.0)):
    prompt, turn, response = _get(record, side, str).rpartition('\n\nAssistant:')
    if not turn:
      raise Malformed(f"field '{side}' has no turn that begins with '\\n\\nAssistant:'")
    if '\n\nHuman:' in response:
      yield Gap("a last turn that is not the assistant's")
    else:
      yield Triplet(side, prompt + turn, response, reward)


_TURNS = {'<|prompter|>': '\n\nHuman: ', '<|assistant|>': '\n\nAssistant: '}
HH_REWARDED_COLUMNS = ('score',)


def hh_rewarded(sides: tuple[int, ...]) -> Read:
  """PRO's pairs, the better answer first by a reward model; the reward is the sigmoid of its score.

  A-LoL leaves out training pairs with an answer that ends in a colon: its text was cut.

  Args:
    sides: 0 for the better answer of a pair, 1 for the other.
  """

  def triplets(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
    answers = [_get(record, f'suffix.{side}', str) for side in (0, 1)]
    if split == 'train' and any(answer.endswith(':') for answer in answers):
      yield Gap('an answer of the pair that ends in a colon')
      return
    for side in sides:
      turns = _get(record, f'prefix.{side}', list)
      score = float(_get(record, f'reward.{side}', float))
      prompt = ''.join(_get(record, f'prefix.{side}.{i}', str) for i in range(len(turns)))
      for role, text in _TURNS.items():
        prompt = prompt.replace(role, text)
      yield Triplet(str(side), prompt.rstrip(), answers[side], _sigmoid(score), {'score': score})

  return triplets


def _sigmoid(score: float) -> float:
  return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


# --- TL;DR --------------------------------------------------------------------------------------------------

_TLDR_SPLITS = {'train': ('train',), 'validation': ('valid1', 'valid2'), 'test': ('test',)}
TLDR_AXES = ('accuracy', 'coverage', 'coherence')


def _tldr_prompt(record: Mapping[str, Any], place: str = 'info.') -> str:
  subreddit, title, post = (_get(record, f'{place}{name}', str) for name in ('subreddit', 'title', 'post'))
  return f'SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:'


def on_posts(triplets: Callable[[Mapping[str, Any]], Iterator[Triplet | Gap]]) -> Read:
  """Keeps a split's records on Reddit posts; the others are on news articles."""

  def chosen(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
    if _get(record, 'split', str) not in _TLDR_SPLITS[split]:
      return  # The authors' own files hold all splits.
    if _get(record, 'info', dict).get('post') is None:
      yield Gap('a news article, not a post')
    else:
      yield from triplets(record)

  return chosen


def tldr_comparisons(record: Mapping[str, Any]) -> Iterator[Triplet | Gap]:
  """Reward 1 for the preferred summary, 0 for the other."""
  prompt, choice = _tldr_prompt(record), _get(record, 'choice', float)
  if choice not in (0, 1) or len(_get(record, 'summaries', list)) != 2:
    raise Malformed(
      f"field 'choice' is {choice} of {len(record['summaries'])} summaries; it must be 0 or 1 of 2"
    )
  for i in range(2):
    yield Triplet(str(i), prompt, _get(record, f'summaries.{i}.text', str), float(choice == i))


def tldr_axis(record: Mapping[str, Any]) -> Iterator[Triplet | Gap]:
  """The overall rating, 1 to 7, is the reward."""
  axes = _get(record, 'summary.axes', dict)
  reward = _number(axes.get('overall'), 'summary.axes.overall')
  if reward is None:
    yield Gap('no overall rating')
  else:
    columns = _numbers(axes, TLDR_AXES, 'summary.axes.')
    yield Triplet('0', _tldr_prompt(record), _get(record, 'summary.text', str), reward, columns)


def tldr_sft(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
  """The summary that the post's own author wrote, without a reward."""
  del split
  yield Triplet('0', _tldr_prompt(record, place=''), _get(record, 'summary', str), None)


# --- A-LoL's Reddit and dialogue ----------------------------------------------------------------------------

REDDIT_REWARDS = ('fluency', 'depth', 'updown', 'safe', 'tfidf')
DIALOGUE_REWARDS = ('fluency', 'faithdial', 'depth', 'tfidf')


def reddit(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
  """A comment on its parent: reward 1 for more votes up than down, otherwise 0."""
  del split
  missing = [name for name in ('text', 'parent_text') if record.get(name) is None]
  prompt, response = (' '.join((record.get(name) or '').split()) for name in ('parent_text', 'text'))
  votes = _number(record.get('score'), 'score')
  if missing:
    yield Gap(f'no {missing[0]}')
  elif votes is None:
    raise Malformed(f"field 'score' is missing; the record has {', '.join(map(str, record))}")
  elif max(len(prompt.split()), len(response.split())) > _MAX_WORDS:
    yield Gap(f'more than {_MAX_WORDS} words')
  else:
    yield Triplet('0', prompt, response, float(votes > 0), _numbers(record, ('score', 'parent_score'), ''))


def a_lol(names: tuple[str, ...]) -> Read:
  """A-LoL's own files: the reward is the sum of its classifiers' scores, which become columns."""

  def triplets(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
    del split
    prompt, response = (_get(record, name, str) for name in ('prompt_or_input_text', 'references'))
    reward = float(_get(record, 'reward_components.final_reward', float))
    columns = _numbers(record['reward_components'], names, 'reward_components.')
    yield Triplet(
      '0', '\n'.join(prompt.removesuffix(_EOS).split(_EOS)), response.removesuffix(_EOS), reward, columns
    )

  return triplets


def faithdial(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
  """Reward 1 for the faithful response, 0 for the unfaithful response that it replaced.

  The prompt is A-LoL's: the knowledge, then the turns so far, one a line.
  """
  del split
  turns = record.get('utterances', [record])  # Whole dialogues, or one turn a row.
  for i, turn in enumerate(turns):
    history = [_get(turn, f'history.{j}', str) for j in range(len(_get(turn, 'history', list)))]
    prompt = '\n'.join([f'Knowledge: {_get(turn, "knowledge", str).strip()}', *history])
    yield Triplet(f'{i}/response', prompt, _get(turn, 'response', str), 1.0)
    if turn.get('original_response') and set(turn.get('BEGIN') or ()) != {'Entailment'}:
      yield Triplet(f'{i}/original', prompt, _get(turn, 'original_response', str), 0.0)


# --- ATOMIC10x ----------------------------------------------------------------------------------------------

COMET_REWARDS = ('p_valid_model',)
_ATOMIC_SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}


def atomic10x(record: Mapping[str, Any], split: str) -> Iterator[Triplet | Gap]:
  """The tail of a head and a relation; the reward is its probability of being valid, by COMET's critic.

  The prompt is that of COMET-distill.
  """
  if _get(record, 'split', str) != _ATOMIC_SPLITS[split]:
    return  # One file holds all splits.
  head, relation, tail = (_get(record, name, str) for name in ('head', 'relation', 'tail'))
  reward = _number(record.get('p_valid_model'), 'p_valid_model')
  if reward is None:
    yield Gap("no critic's probability")
  else:
    yield Triplet(
      '0', f'<head> {head.strip()} </head> <relation> {relation} </relation> [GEN] ', tail, reward
    )
