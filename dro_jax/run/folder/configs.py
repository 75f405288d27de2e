"""Whether a run may resume with other settings, and the record of its configurations.

A run's folder keeps `config.gin`, its first configuration, and a `config.STEP.gin` for each later one.
"""

import ast
import json
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from dro_jax import files
from dro_jax.configs import files as config_files
from dro_jax.configs import parameters, settings
from dro_jax.configs.differences import Difference
from dro_jax.configs.differences import differences as differences_between
from dro_jax.configs.effects import NUMBERS, Effect
from dro_jax.configs.renamed import read_saved
from dro_jax.configs.text import Config, collect, split
from dro_jax.errors import UsageError

CONFIG, DEFAULTS = 'config.gin', 'defaults.gin'
# The description of a run, and its entry for whether a checkpoint was ever on disk.
RUN, _HAS_SAVED = 'run.json', 'has_saved'
# Marks the metadata of a run in which 0 steps of warm-up mean the full rate: earlier they meant a rate of 0.
FULL_RATE = 'full rate'

# Kinds of changes across which a run may resume although the compared contents may differ.
_CAUSES = ('place', 'compared')

Effects = Mapping[str, Mapping[str, Effect]]


class Recorded(NamedTuple):
  """The configuration of a run; empty for a run made in Python.

  Attributes:
    texts: of the files to save, by file name.
    effects: of a change of each parameter on a resumed run, by configurable.
  """

  texts: Mapping[str, str] = {}
  effects: Effects = {}


_WHY = {
  'decay_steps': 'the learning rates so far decayed towards the earlier end',
  'scan_layers': 'the checkpoints hold layers in the other layout',
  'train_fingerprint': 'the run has trained on other records so far',
  'eval_fingerprint': 'the run has been measured on other held-out records so far',
  'init_from': 'the run started from this checkpoint; a moved folder must keep its name',
  'labels': 'an earlier version made the labels, which count thumbs-ups and ties as bad: start a new run',
  'init_digest': 'INIT_FROM holds other parameters than those from which the run started',
  'reward_code': "the reward function's file, or a file that it imports, holds other code than before",
  'algorithm_code': "the algorithm's file, or a file that it imports, holds other code than before",
}


def accepted(difference: Difference, effects: Effects) -> str | None:
  """Why a run may be resumed across a difference; None where it may not."""
  _, _, parameter = split(difference.name)
  if parameter == 'keep' and difference.now == repr('auto'):
    return 'the run keeps the same end of overlong prompts as before'
  if parameter == 'init_from' and _has_same_name(difference):
    return 'a folder of the same name: the run has started already'
  effect = _effect(difference, effects)
  return effect.why if effect.is_accepted else None


def _effect(difference: Difference, effects: Effects) -> Effect:
  _, selector, parameter = split(difference.name)
  return effects.get(selector.rpartition('.')[2], {}).get(parameter, NUMBERS)


def _has_same_name(difference: Difference) -> bool:
  then, now = (ast.literal_eval(value or 'None') for value in (difference.then, difference.now))
  return bool(then and now) and pathlib.PurePath(then).name == pathlib.PurePath(now).name


def why_not(difference: Difference) -> str:
  """Why a run may not be resumed across a difference."""
  _, _, parameter = split(difference.name)
  return _WHY.get(parameter, "decides the run's numbers")


def rows(differences: Sequence[Difference], effects: Effects) -> list[dict[str, Any]]:
  """Differences, each with whether a run may resume across it, and why; one row for a macro."""
  table = []
  for difference in differences:
    reason = accepted(difference, effects)
    row = {
      'setting': difference.macro or difference.name,
      'a': difference.then,
      'b': difference.now,
      'resumable': reason is not None,
      'why': reason or why_not(difference),
    }
    if row not in table:
      table.append(row)
  return table


def describe(folder: pathlib.Path, metadata: Mapping[str, Any], *, has_saved: bool) -> None:
  """Writes the description of a run, and whether it has saved a checkpoint."""
  text = files.json_text(dict(metadata) | {_HAS_SAVED: has_saved}, indent=2)
  files.write_atomically(folder / RUN, text + '\n')


def say_saved(folder: pathlib.Path) -> None:
  """Records that a checkpoint of the run is on disk: without any, it has lost them."""
  describe(folder, json.loads((folder / RUN).read_text(encoding='utf-8')), has_saved=True)


def refuse_lost(folder: pathlib.Path, checkpoint_every: int, steps: int) -> None:
  """Refuses to start again where the checkpoints of a run are missing.

  A run that was killed before its first checkpoint starts again.

  Args:
    folder: the run's, without checkpoints.
    checkpoint_every: steps between checkpoints.
    steps: the run's length.

  Raises:
    UsageError: the checkpoints are missing.
  """
  described, metrics = folder / RUN, folder / 'metrics.jsonl'
  last = max((record['step'] for record in files.json_lines(metrics)), default=0) if metrics.exists() else 0
  description = json.loads(described.read_text(encoding='utf-8')) if described.exists() else {}
  has_saved = description.get(_HAS_SAVED)
  if has_saved is None:  # A run of an earlier version does not record it; its metrics show how far it came.
    has_saved = last >= min((every for every in (checkpoint_every, steps) if every), default=math.inf)
  if has_saved:
    raise UsageError(
      f'{folder} holds the records of a run up to step {last}, but its checkpoints are missing, and starting '
      'again would overwrite those records. Restore the checkpoints, move or remove the folder, or pass '
      'another --model_dir.'
    )


def refuse_other_run(
  folder: pathlib.Path,
  saved: Mapping[str, Any],
  metadata: Mapping[str, Any],
  recorded: Recorded,
  unread: Set[str] = frozenset(),
) -> None:
  """Refuses to resume with settings that would alter the results.

  Args:
    folder: the run's.
    saved: the metadata of its newest checkpoint.
    metadata: the metadata of this start, with the contents of data and vocabularies.
    recorded: the configuration of this start.
    unread: settings, by their names in capitals, that the run does not read: they are not compared.

  Raises:
    UsageError: the runs differ; names each setting with both values, and the remedy.
  """
  _refuse_unmoved(folder, saved)
  differences = [each for each in differing(folder, recorded.texts) if each.macro not in unread]
  starts = [described.get('init_digest') for described in (saved, metadata)]
  if starts[0] is not None and starts[0] == starts[1]:  # The same parameters under another name.
    differences = [each for each in differences if split(each.name)[2] != 'init_from']
  effects = recorded.effects
  refused = [difference for difference in differences if accepted(difference, effects) is None]
  now = json.loads(json.dumps(metadata))
  seen = [*_described(identity(saved), identity(now)), *_labelled_otherwise(saved, now)]
  if not refused and seen:
    # The changes that may have caused the difference; pairs are compared by their report.
    causes = _CAUSES if any(each.name.startswith('data.units') for each in seen) else _CAUSES[:1]
    refused = [each for each in differences if _effect(each, effects).kind in causes] + seen
  if refused:
    raise UsageError(
      f'{folder} holds a run with other settings, and resuming would mix two different runs (then → now):\n'
      f'{listed(refused)}\n{_remedy(refused)}'
    )


def _refuse_unmoved(folder: pathlib.Path, saved: Mapping[str, Any]) -> None:
  """Refuses a run that was made when 0 steps of warm-up were a learning rate of 0."""
  text = newest_text(folder, CONFIG)
  if text is None or saved.get('zero_warmup') == FULL_RATE:
    return
  for name, bound in settings.settings(collect(read_saved(text, CONFIG)), settings.ROOTS, {}).items():
    if name.endswith('warmup_constant') and 'warmup_steps' in bound and bound['warmup_steps'].value == '0':
      raise UsageError(
        f'{folder}: the run was made with {name}.warmup_steps = 0 when that meant a learning rate of 0 '
        'throughout, so it has trained nothing so far. Now 0 means the full rate at once: start the run '
        'again in another --model_dir.'
      )


def differing(folder: pathlib.Path, texts: Mapping[str, str]) -> list[Difference]:
  """Settings that differ from the run's newest configuration; none where either has no configuration."""
  newest = newest_text(folder, CONFIG)
  if newest is None or CONFIG not in texts:
    return []
  then, now = (collect(read_saved(text, CONFIG)) for text in (newest, texts[CONFIG]))
  known = parameters.defaults_in(texts.get(DEFAULTS, ''))
  # A setting that the earlier version did not have had the value of today's default.
  earlier = parameters.defaults_in(newest_text(folder, DEFAULTS) or '')
  before = {name: known.get(name, {}) | earlier.get(name, {}) for name in known | earlier}
  return between(then, now, (before, known))


def between(then: Config, now: Config, defaults: tuple[Any, Any]) -> list[Difference]:
  """Differences of two runs without their folders; see `configs.differences.differences`."""
  differences = differences_between(then, now, settings.ROOTS, defaults)
  return [difference for difference in differences if not difference.name.endswith('.model_dir')]


def listed(differences: Sequence[Difference]) -> str:
  """A line for each setting: then → now; one line for a macro."""
  lines = {}
  for difference in differences:
    setting = difference.macro or difference.name
    _, _, parameter = split(difference.name)
    why = f'  ({_WHY[parameter]})' if parameter in _WHY else ''
    lines[f'  {setting}: {_shown(difference.then)} → {_shown(difference.now)}{why}'] = None
  return '\n'.join(lines)


def _shown(value: str | None) -> str:
  return 'not set' if value is None else value


def _remedy(differences: Sequence[Difference]) -> str:
  macros = {difference.macro: difference.then for difference in differences if difference.macro}
  back = ' '.join(f'--set {macro}={value}' for macro, value in macros.items() if value)
  return f'Set them back{f" ({back})" if back else ""}, or train into another folder (--model_dir).'


# Identity: the contents behind the settings


def identity(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a run's metadata that decides its numbers, by name."""
  model = {name: value for name, value in metadata['model'].items() if name not in ('scan_layers', 'remat')}
  names = (
    'train_records', 'train_prompts', 'train_fingerprint', 'eval_fingerprint', 'train_columns',
    'eval_columns', 'selected_records', 'units', 'options', 'columns_from',
  )  # fmt: skip
  data = {name: metadata['data'].get(name) for name in names}
  kept = (
    'algorithm', 'temperature', 'value', 'reference', 'vocabulary_fingerprint', 'batch_size', 'seed',
    'online', 'code', 'init_digest', 'lora',
  )  # fmt: skip
  labels = metadata['data'].get('labels')
  data['labels'] = labels and {name: labels[name] for name in ('rule', 'desirable', 'labels')}
  scaling = {name: metadata['data']['scaling'][name] for name in ('kind', 'shift', 'scale')}
  decisive = {name: metadata.get(name) for name in kept}
  # The contents of the base are compared by their fingerprint, once they are read.
  decisive['lora'] = {name: x for name, x in (metadata.get('lora') or {}).items() if name == 'lora'}
  decisive['deal'] = metadata.get('deal', 'together')  # Runs without the entry did so.
  decisive['next_token_kl'] = metadata.get('next_token_kl') or {'weight': 0.0}
  decisive['value_warmup_steps'] = metadata.get('value_warmup_steps', 0)
  # The frequency of samples may change; the code that scores them may not.
  decisive['samples'] = {'reward_code': (metadata.get('decoding') or {}).get('reward_code')}
  return decisive | {'model': model, 'data': data, 'reward scaling': scaling}


def _labelled_otherwise(saved: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[Difference]:
  """The difference of labels in a run of a version that recorded no rule for them."""
  then, now = saved['data'].get('labels'), metadata['data'].get('labels')
  if now and not then and now['unlike_earlier']:
    yield Difference('labels', 'by a mean, whatever the rewards', now['said'], None)


def alike(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
  """Whether two identities agree in all entries that both have."""
  return not any(_described(then, now))


def _described(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
  """Differences of two identities, in the entries that both have."""
  for name, value in now.items():
    before = then.get(name)
    if isinstance(before, Mapping) and isinstance(value, Mapping):
      for difference in _described(before, value):
        yield difference._replace(name=f'{name}.{difference.name}')
    elif None not in (before, value) and before != value:
      yield Difference(name, repr(before), repr(value), None)


# The record


def newest_text(folder: pathlib.Path, name: str) -> str | None:
  """The newest version of a text in a run's folder."""
  paths = config_files.records(folder, name)
  return paths[-1].read_text(encoding='utf-8') if paths else None


def record(folder: pathlib.Path, texts: Mapping[str, str], step: int) -> None:
  """Writes the texts of a run that starts, or resumes after `step`; logs the changes.

  The first texts stay; later texts that differ are written to NAME.STEP in the same folder.
  """
  differences = differing(folder, texts) if step else []
  if differences:
    changes = listed(differences)
    logging.getLogger(__name__).info(
      'resuming with other settings, which change no number so far:\n%s', changes
    )
  for name, text in texts.items():
    if not step:
      for stale in config_files.records(folder, name):
        stale.unlink()
    if newest_text(folder, name) != text:
      stem, _, suffix = name.rpartition('.')
      files.write_atomically(folder / (f'{stem}.{step}.{suffix}' if step else name), text)
