"""Prompts as a run's policy reads them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.data.text import chat, templates, tokenise
from dro_jax.data.text.vocabularies import Vocabulary


def tokenise_prompts(
  texts: Sequence[str],
  vocabulary: Vocabulary,
  options: Mapping[str, Any],
  template: str | None = None,
  by_chat: bool | None = None,
) -> list[np.ndarray]:
  """The tokens of prompts, in the run's template, and cut as in training.

  Args:
    texts: without the template.
    vocabulary: the policy's.
    options: how the run read its data (`data.options` of its metadata).
    template: the prompt's text around each; `None` takes the run's.
    by_chat: whether the model's own chat template writes them; `None` is as in the run.

  Raises:
    UsageError: a template without a place for the prompt, or a prompt that the model's own does not take.
  """
  template = templates.check_template(template or options.get('template', templates.PLAIN))
  by_chat = uses_chat(vocabulary, options) if by_chat is None else by_chat
  framed = [tokenise.framed(text, template, by_chat) for text in texts]
  length = options.get('prompt_length', templates.PROMPT_LENGTH)
  # Runs that do not say kept the start.
  keep = options.get('keep', 'start' if options else 'auto')
  keeps = [templates.kept_end(keep, chat.is_rendered(text)) for text in texts]
  cut = tokenise.prompts(framed, vocabulary, by_chat=by_chat, length=length, keeps=keeps)
  if count := sum(was_cut for _, was_cut in cut):
    logging.getLogger(__name__).warning(
      '%d prompts are over %d tokens, and cut as in training', count, length
    )
  return [ids for ids, _ in cut]


def uses_chat(
  vocabulary: Vocabulary,
  options: Mapping[str, Any],
  requested: bool | None = None,
  chat_template: str | None = None,
) -> bool:
  """Whether the model's own chat template writes a run's prompts; an imported model has read none yet.

  Args:
    vocabulary: the policy's.
    options: how the run read its data; empty for an imported model.
    requested: by the user; `None` is as in the run.
    chat_template: of turns, where the user chose one.

  Raises:
    UsageError: as `tokenise.uses_chat`.
  """
  saved = options.get('chat')
  return tokenise.uses_chat(vocabulary, saved if requested is None else requested, chat_template)
