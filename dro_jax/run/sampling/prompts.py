"""Prompts as a run's policy reads them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dro_jax.data.text import chat, templates
from dro_jax.data.text.vocabularies import Vocabulary


def tokenise_prompts(
  texts: Sequence[str], vocabulary: Vocabulary, options: Mapping[str, Any], template: str | None = None
) -> list[np.ndarray]:
  """The tokens of prompts, in the run's template, and cut as in training.

  Args:
    texts: without the template.
    vocabulary: the policy's.
    options: how the run read its data (`data.options` of its metadata).
    template: the prompt's text around each; `None` takes the run's.

  Raises:
    UsageError: a template without a place for the prompt.
  """
  template = templates.check_template(template or options.get('template', '{prompt}'))
  framed = [template.format(prompt=text) for text in texts]
  # Runs that do not say kept the start.
  length, keep = options.get('prompt_length', 512), options.get('keep', 'start' if options else 'auto')
  keeps = [templates.kept_end(keep, chat.is_rendered(text)) for text in texts]
  tokens = vocabulary.encode_batch(framed)
  cut = [templates.prompt_tokens(ids, length, end) for ids, end in zip(tokens, keeps)]
  if count := sum(was_cut for _, was_cut in cut):
    logging.getLogger(__name__).warning(
      '%d prompts are over %d tokens, and cut as in training', count, length
    )
  return [ids for ids, _ in cut]
