"""Prompts and responses as a model's tokens.

T5: a prompt and a response are tokenised apart, and both end in EOS.

A decoder-only model reads a prompt and its response as one text. So they are tokenised together, after what
the model wants before a prompt (BOS), and the response's tokens are those behind the prompt's own. Where a
token spans both, the response is tokenised apart: a policy that answers never meets such a token. A response
ends in EOS, a prompt does not.

A chat model's template writes the conversation: the prompt as it stands where the model is to answer, and the
response as the template goes on, to the token that ends the turn. A text prompt is one turn of the user.

A prompt that is too long loses tokens on one side. In a chat, what the template writes around turns stays
whole: the oldest turns go first, except the system's, and the rest begins with one of the user's; if the last
turns are still too long, the longest loses tokens, on one side.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dro_jax.data.text import chat, chat_templates, templates
from dro_jax.data.text.chat import Turn
from dro_jax.data.text.chat_templates import ChatTemplate, Job
from dro_jax.data.text.encoders import any_of
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError

_SHOWN = 40  # Letters of a text that an error shows.


class Responses(NamedTuple):
  """Responses' ids, uncut, each with its EOS, and how many were tokenised apart from their prompts."""

  ids: list[np.ndarray]
  apart: int


def uses_chat(vocabulary: Vocabulary, requested: bool | None, chat_template: str | None = None) -> bool:
  """Whether the model's own template writes prompts.

  Args:
    vocabulary: the model's.
    requested: None asks for the template where the model has one.
    chat_template: of turns, where the user chose one.

  Raises:
    UsageError: the model has no template, or both are to write the turns.
  """
  if requested and vocabulary.chat is None:
    raise UsageError(
      f'CHAT=true, but the vocabulary {vocabulary.spec!r} brings no chat template (chat_template.jinja, or '
      'chat_template in tokenizer_config.json): leave CHAT, or pass the vocabulary of a chat model'
    )
  used = vocabulary.chat is not None and requested is not False
  if used and chat_template not in (None, chat.TEMPLATE):
    raise UsageError(
      f'CHAT_TEMPLATE={chat_template!r}, but the model of the vocabulary {vocabulary.spec!r} has a chat '
      'template of its own, which writes the turns: leave CHAT_TEMPLATE, or pass --set CHAT=false'
    )
  return used


def chat_option(vocabulary: Vocabulary, by_chat: bool) -> dict[str, bool]:
  """The option of a table or run; those of a model without a template do not have it."""
  return {} if vocabulary.chat is None else {'chat': by_chat}


def turn_template(by_chat: bool, chat_template: str | None) -> str | None:
  """The template by which a reader writes turns as text; None where the model's own will write them."""
  return None if by_chat else chat_template or chat.TEMPLATE


def framed(prompt: str, template: str, by_chat: bool) -> str:
  """A prompt in the user's template.

  Raises:
    UsageError: the prompt is a conversation, which the model's own template writes.
  """
  if by_chat and template != templates.PLAIN and chat.turns_of(prompt) != [Turn('user', prompt)]:
    raise UsageError(
      f'TEMPLATE={template!r} stands around a text, but the prompt {prompt[:_SHOWN]!r}... is a conversation, '
      "which the model's own chat template writes: leave TEMPLATE, or pass --set CHAT=false"
    )
  return template.format(prompt=prompt)


# --- prompts ------------------------------------------------------------------------------------------------


def prompts(
  texts: Sequence[str],
  vocabulary: Vocabulary,
  *,
  by_chat: bool,
  length: int | None = None,
  keeps: Sequence[str] = (),
  places: Sequence[str] = (),
) -> list[tuple[np.ndarray, bool]]:
  """The ids of each prompt, and whether it was cut.

  Args:
    texts: of the prompts, in the user's template.
    vocabulary: the model's.
    by_chat: whether the model's own template writes them.
    length: the most ids; None cuts nothing.
    keeps: the end of each prompt to keep, 'start' or 'end'.
    places: file:line of each, for errors.

  Raises:
    UsageError: a text has no tokens, or the template does not take it.
  """
  places, keeps = places or [''] * len(texts), keeps or ['start'] * len(texts)
  if by_chat:
    return _chat_prompts(texts, vocabulary.chat, length, keeps, places)
  encoded = vocabulary.encode_batch(texts)
  _refuse_tokenless('prompt', texts, encoded, places)
  before = vocabulary.prefix
  after = (vocabulary.special.eos,) if vocabulary.ends_prompts else ()
  if length is not None and length < len(before) + len(after):
    raise UsageError(f'PROMPT_LENGTH={length} leaves no room for BOS: pass {len(before) + 1} or more')
  lengths = (length or len(ids) + len(before) + len(after) for ids in encoded)
  cut = zip(encoded, lengths, keeps)
  return [templates.cut_prompt(ids, n, keep, before=before, after=after) for ids, n, keep in cut]


def _refuse_tokenless(
  side: str, texts: Sequence[str], encoded: Sequence[np.ndarray], places: Sequence[str]
) -> None:
  """Raises a UsageError where a text has no tokens, such as a text of characters without width."""
  for place, text, ids in zip(places, texts, encoded):
    if not len(ids):
      raise UsageError(
        f'{_at(place)}the {side} {text[:_SHOWN]!a} is empty: the vocabulary has no tokens for it; remove the '
        'record or fill it in'
      )


def _at(place: str) -> str:
  return f'{place}: ' if place else ''


def _chat_prompts(
  texts: Sequence[str],
  template: ChatTemplate,
  length: int | None,
  keeps: Sequence[str],
  places: Sequence[str],
) -> list[tuple[np.ndarray, bool]]:
  conversations = [chat.turns_of(text) for text in texts]
  encoded = _asked(conversations, template, places)
  cut = [length is not None and len(ids) > length for ids in encoded]
  return [
    (_shortened(turns, template, length, keep, place) if over else ids, over)
    for turns, ids, over, keep, place in zip(conversations, encoded, cut, keeps, places)
  ]


def _asked(
  conversations: Sequence[list[Turn]], template: ChatTemplate, places: Sequence[str]
) -> list[np.ndarray]:
  """The ids of conversations up to the model's answer."""
  rendered, mark = chat_templates.render(template, [Job(turns, asks=True) for turns in conversations])
  texts = [chat_templates.checked(each, _at(place)) for each, place in zip(rendered, places)]
  return template.encode(texts, mark)


def _shortened(turns: list[Turn], template: ChatTemplate, length: int, keep: str, place: str) -> np.ndarray:
  """The ids of a conversation that is too long: without its oldest turns, or with one of them cut."""
  shorter = list(_endings(turns))
  encoded = _asked(shorter, template, [place] * len(shorter)) if shorter else []
  for ids in encoded:
    if len(ids) <= length:
      return ids
  return _with_one_cut(shorter[-1] if shorter else turns, template, length, keep, place)


def _endings(turns: list[Turn]) -> Iterator[list[Turn]]:
  """A conversation from each later turn of the user's on, with the system's turns; the longest first."""
  first = next((i for i, turn in enumerate(turns) if turn.role not in ('system', 'developer')), len(turns))
  for i in range(first + 1, len(turns)):
    if turns[i].role == 'user':
      yield [*turns[:first], *turns[i:]]


def _with_one_cut(
  turns: list[Turn], template: ChatTemplate, length: int, keep: str, place: str
) -> np.ndarray:
  [rendered], mark = chat_templates.render(template, [Job(turns, asks=True)])
  text = chat_templates.checked(rendered, _at(place))
  longest = max(turns, key=lambda turn: len(turn.content))
  content = chat_templates.marked(longest.content, template.control, mark).strip()
  before, found, after = text.rpartition(content)
  head, own, tail = template.encode([before, content, after], mark)
  if not found or len(head) + len(tail) >= length:
    least = f' ({len(head) + len(tail)} tokens)' if found else ''
    raise UsageError(
      f"{_at(place)}PROMPT_LENGTH={length} cannot hold what the model's chat template writes around the "
      f'longest turn{least}: pass a larger one'
    )
  return templates.cut_prompt(own, length, keep, before=head, after=tail)[0]


# --- whole conversations ------------------------------------------------------------------------------------


def answered(prompts: Sequence[str], responses: Sequence[str], vocabulary: Vocabulary) -> list[np.ndarray]:
  """The ids of conversations with their last answers: all that the model's own template writes of them.

  What the template writes behind the end of the last turn, such as a line feed, is there too, as in
  transformers' `apply_chat_template`. A response may be blank.

  Raises:
    UsageError: the template does not take a conversation.
  """
  template = vocabulary.chat
  turns = [[*chat.turns_of(p), Turn('assistant', r)] for p, r in zip(prompts, responses)]
  rendered, mark = chat_templates.render(template, [Job(each, asks=False) for each in turns])
  return template.encode([chat_templates.checked(each, '') for each in rendered], mark)


# --- responses ----------------------------------------------------------------------------------------------


def responses(
  prompts: Sequence[str],
  responses: Sequence[str],
  vocabulary: Vocabulary,
  *,
  by_chat: bool,
  places: Sequence[str] = (),
) -> Responses:
  """The ids of responses to prompts; arguments and errors as `prompts`."""
  places = places or [''] * len(prompts)
  if by_chat:
    return _chat_responses(prompts, responses, vocabulary, places)
  end = np.array([vocabulary.special.eos], np.int32)
  if vocabulary.ends_prompts:
    encoded, apart = vocabulary.encode_batch(responses), 0
  else:
    joint = [prompt + response for prompt, response in zip(prompts, responses)]
    encoded, apart = _behind(prompts, joint, responses, vocabulary.encode_batch)
  _refuse_tokenless('response', responses, encoded, places)
  return Responses([np.concatenate((ids, end)) for ids in encoded], apart)


def _behind(
  prompts: Sequence[str],
  joint: Sequence[str],
  responses: Sequence[str],
  encode: Callable[[Sequence[str]], list[np.ndarray]],
) -> tuple[list[np.ndarray], int]:
  """Ids of joint texts behind those of their prompts, or of the responses alone where a token spans both."""
  unique = list(dict.fromkeys(prompts))
  own = dict(zip(unique, encode(unique)))
  encoded, apart = [], 0
  for prompt, whole, response in zip(prompts, encode(joint), responses):
    ids = own[prompt]
    if np.array_equal(whole[: len(ids)], ids):
      encoded.append(whole[len(ids) :])
    else:
      encoded.append(encode([response])[0])
      apart += 1
  return encoded, apart


def _chat_responses(
  prompts: Sequence[str], responses: Sequence[str], vocabulary: Vocabulary, places: Sequence[str]
) -> Responses:
  template, unique = vocabulary.chat, list(dict.fromkeys(prompts))
  conversations = {text: chat.turns_of(text) for text in unique}
  answered = [[*conversations[p], Turn('assistant', r)] for p, r in zip(prompts, responses)]
  jobs = [Job(conversations[text], asks=True) for text in unique]
  rendered, mark = chat_templates.render(template, jobs + [Job(turns, asks=False) for turns in answered])
  asked, control = dict(zip(unique, rendered)), any_of(template.control)
  starts, rests = [], []
  for prompt, whole, place in zip(prompts, rendered[len(unique) :], places):
    before = chat_templates.checked(asked[prompt], _at(place))
    whole_text = chat_templates.checked(whole, _at(place))
    rests.append(chat_templates.response_text(before, whole_text, template.end, _at(place)))
    # A control token cuts a text in two for the tokenizer: what stands before the last one changes nothing.
    starts.append(before[max((match.start() for match in control.finditer(before)), default=0) :])
  joint = [start + rest for start, rest in zip(starts, rests)]
  encoded, apart = _behind(starts, joint, rests, lambda texts: template.encode(texts, mark))
  _refuse_tokenless('response', responses, [ids[:-1] for ids in encoded], places)
  return Responses(encoded, apart)
