"""Token tables on disk, found again by their sources and options."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from dro_jax import files
from dro_jax.data.sources.find import Source
from dro_jax.data.storage import buckets, fingerprints
from dro_jax.data.table import table
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import lost_text, vocabularies
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.parallel import processes

_NAME_LENGTH = 100  # Characters of a source that name its folder; file systems allow 255 bytes.


def build_table(
  source: Source, spec: str | Vocabulary, cache_dir: str | None = None, **options: Any
) -> TokenTable:
  """The source's token table in the cache, built if it is not there; options as `table.build`."""
  vocabulary = vocabularies.vocabulary(spec) if isinstance(spec, str) else spec
  remote = cache_dir if cache_dir and files.is_remote(cache_dir) else None
  name = table_name(source, vocabulary, options)
  directory = os.path.join(local_root(cache_dir), name)
  is_there = table.exists(directory) or (remote is not None and table.fetch(f'{remote}/{name}', directory))
  built = table.build(
    source.records(),
    vocabulary,
    directory,
    rates=source.rates,
    source_fingerprint=source.fingerprint,
    **options,
  )
  if remote and processes.is_first():
    buckets.put(directory, f'{remote}/{name}', description=table.DESCRIPTION, always=not is_there)
  _log_cuts(source.name, built.report, options)
  for sentence in lost_text.sentences(built.report.get('lost', {}), vocabulary):
    logging.getLogger(__name__).warning('%s: %s', source.name, sentence)
  return built


def local_root(cache_dir: str | None) -> str:
  """The folder of tables on this machine."""
  is_here = cache_dir and not files.is_remote(cache_dir)
  return os.path.expanduser(cache_dir) if is_here else buckets.default_root()


def table_name(source: Source, vocabulary: Vocabulary, options: Mapping[str, Any]) -> str:
  """The folder in a cache that holds a source's table, built with these options."""
  mark = fingerprints.fingerprint(source.fingerprint, vocabulary.fingerprint, sorted(options.items()))
  return f'{source.name.partition(".jsonl")[0][:_NAME_LENGTH]}-{mark[:12]}'


def _log_cuts(name: str, report: Mapping[str, Any], options: Mapping[str, Any]) -> None:
  """Logs how many texts were too long, and whether they were cut or left out."""
  log = logging.getLogger(__name__)
  if report['overlong_responses']:
    fate = 'left out' if report['dropped_responses'] else 'cut, without EOS'
    examples = ', '.join(report['overlong_response_examples'])
    log.warning(
      '%s: %d of %d responses are longer than %d tokens and %s (%s, ...)', name, report['overlong_responses'],
      report['records'] + report['dropped_responses'], options['response_length'], fate, examples,
    )  # fmt: skip
  if apart := report.get('tokenised_apart'):
    log.warning(
      '%s: %d of %d responses are tokenised apart from their prompts, because a token would span both; end '
      'the prompts or begin the responses with a blank', name, apart, report['records'],
    )  # fmt: skip
  if report['truncated_prompts']:
    log.warning(
      '%s: %d of %d prompts are longer than %d tokens and cut', name, report['truncated_prompts'],
      report['prompts'], options['prompt_length'],
    )  # fmt: skip
