"""The `build_table` command: the token table of triplets, before a run asks for it."""

from collections.abc import Sequence
from typing import Any

from dro_jax.checkpoints import policy
from dro_jax.data.sources import find
from dro_jax.data.sources.task_modules import import_modules
from dro_jax.data.table import beam, cache
from dro_jax.data.text import tokenise
from dro_jax.data.text.chat import TEMPLATE
from dro_jax.data.text.templates import PLAIN, PROMPT_LENGTH, RESPONSE_LENGTH
from dro_jax.errors import UsageError


def build_table(
  triplets: str | Sequence[str],
  *,
  init_from: str | None = None,
  vocabulary: str | None = None,
  prompt_length: int = PROMPT_LENGTH,
  response_length: int = RESPONSE_LENGTH,
  overlong: str = 'truncate',
  keep: str = 'auto',
  template: str = PLAIN,
  chat_template: str = TEMPLATE,
  chat: bool | None = None,
  columns: str | None = None,
  map_reward: str | None = None,
  rewards_required: bool = True,
  data_dir: str | None = None,
  task_modules: str | Sequence[str] = (),
  cache_dir: str | None = None,
  beam_options: str | None = None,
  piece_megabytes: int = 64,
) -> dict[str, Any]:
  """Builds the token table that `train` reads for the same triplets and options.

  Args:
    triplets: files, also in a bucket, or (without Beam) names of data sets.
    init_from: a checkpoint whose vocabulary is taken.
    vocabulary: as for `data.triplets.load_triplets`; `None` is the checkpoint's, else bytes.
    prompt_length, response_length, overlong, keep, template, chat_template, chat, columns, map_reward,
      data_dir, task_modules, cache_dir: as for `data.triplets.load_triplets`.
    rewards_required: False accepts records without a reward, for algorithms that read none, such as SFT; the
      table is the same.
    beam_options: flags of Apache Beam; `None` builds on this machine, without it. The table is the same.
    piece_megabytes: of a file that Beam gives to one worker at a time.

  Raises:
    UsageError: files, fields or options are wrong, or Beam is not installed.
  """
  loaded_vocabulary = policy.find_vocabulary(vocabulary, init_from)
  by_chat = tokenise.uses_chat(loaded_vocabulary, chat, chat_template)
  turn = tokenise.turn_template(by_chat, chat_template)
  read = {'columns': columns, 'map_reward': map_reward, 'chat_template': turn}
  options = {
    'prompt_length': prompt_length, 'response_length': response_length, 'overlong': overlong, 'keep': keep,
    'template': template, **tokenise.chat_option(loaded_vocabulary, by_chat),
  }  # fmt: skip
  import_modules(task_modules)
  if beam_options is None:
    table = cache.build_table(
      find.find(triplets, data_dir=data_dir, **read), loaded_vocabulary, cache_dir, **options
    )
  else:
    if piece_megabytes < 1:
      raise UsageError(f'PIECE_MEGABYTES={piece_megabytes}: pass 1 or more')
    table = beam.build(
      triplets, loaded_vocabulary.spec, cache_dir, read=read, beam_options=beam_options,
      piece_bytes=piece_megabytes * 2**20, **options,
    )  # fmt: skip
  if rewards_required:
    table.require_rewards('REWARDS_REQUIRED=True')
  names = ('records', 'prompts', 'overlong_responses', 'truncated_prompts', 'text_megabytes', 'seconds')
  counts = {name: table.report[name] for name in names}
  return {'table': table.directory, 'fingerprint': table.fingerprint(), **counts}
