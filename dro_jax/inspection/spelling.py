"""How settings are written in advice: as the command line passes them, or as Python does."""

import ast
import re
from collections.abc import Callable
from typing import NamedTuple

# Settings whose argument in Python is not their name in small letters, or has an owner.
ARGUMENTS = {
  'REWARD_SCALING': ('', 'scaling'),
  'TAU': ('', 'temperature'),
  'BATCH': ('', 'batch_size'),
  'ALGORITHM': ('RunSpec', 'algorithm'),
  'VALUE_READOUT': ('Value', 'readout'),
  'REWARD': ('RolloutOptions', 'reward'),
  'PACKED': ('RowOptions', 'packed'),
  'ROW_COVERAGE': ('RowOptions', 'coverage'),
  'ROW_PROMPT_LENGTH': ('RowOptions', 'prompt_length'),
  'ROW_RESPONSE_LENGTH': ('RowOptions', 'response_length'),
  'PAIRS': ('UnitOptions', 'pairs'),
  'PAIR_MARGIN': ('UnitOptions', 'margin'),
  'GROUP_SIZE': ('UnitOptions', 'group_size'),
}
# The flags that are arguments of `inspect` too.
FLAGS = ('columns_from', 'columns', 'eval_triplets', 'init_from', 'map_reward', 'rewards')

_SETTING = r'--set (?P<setting>[A-Za-z_]+(?:\.\w+)?)'
_FLAG = rf'--(?P<flag>{"|".join(FLAGS)})\b'
# A setting alone has whatever value follows; in a sentence, a value ends where the sentence goes on.
_ALONE = re.compile(rf'(?:{_SETTING}|{_FLAG})(?:=(?P<value>.*))?', re.DOTALL)
_WITHIN = re.compile(
  rf'{_SETTING}(?:=(?P<of_setting>"[^"]*"|\.\.\.|[\w./:-]*\w))?|{_FLAG}'
  r'(?:[ =](?P<of_flag>[^\s;)]*?=[^\s;)]*?(?:,\.\.\.)?(?=[,.]?(?:[\s;)]|$))|numbers\b|stars\b))?'
)
# Of a remedy in both spellings, `scaling='none', or --set REWARD_SCALING=none`, the one for the command line.
_REPEATED = re.compile(rf'(?<=[)\']),? or {_SETTING}=(?:"[^"]*"|\.\.\.|[\w./:-]*\w)')


class Spelling(NamedTuple):
  """How texts for the command line are written for their reader.

  Attributes:
    setting: of a setting alone, such as `--set BATCH=8`.
    sentences: of sentences with settings in them.
  """

  setting: Callable[[str], str]
  sentences: Callable[[str], str]


def _setting(text: str) -> str:
  match = _ALONE.fullmatch(text)
  return _argument(match['setting'], match['flag'], match['value']) if match else text


def _sentences(text: str) -> str:
  return _WITHIN.sub(
    lambda match: _argument(match['setting'], match['flag'], match['of_setting'] or match['of_flag']),
    _REPEATED.sub('', text),
  )


def _argument(setting: str | None, flag: str | None, value: str | None) -> str:
  owner, _, name = (setting or flag or '').rpartition('.')
  if owner:  # A parameter of an algorithm.
    owner = f'algorithms.{owner}'
  elif setting:
    owner, name = ARGUMENTS.get(setting, ('', setting.lower()))
  if value is not None:
    name += f'={_value(setting, value) if setting else repr(value)}'
  return f'{owner}({name})' if owner else name


def _value(setting: str, value: str) -> str:
  """A setting's value as Python writes it: capitals stand for something of the reader's."""
  if setting == 'ALGORITHM':
    return f'algorithms.{value}()'
  if value.isupper() or _is_literal(value):
    return value.strip('"')
  return f'algorithms.{value}' if '.' in setting else repr(value)


def _is_literal(value: str) -> bool:
  """Whether a setting's text, without quotes around it, is a number, a truth value, a mapping or `...`."""
  try:
    ast.literal_eval(value.strip('"'))
  except (ValueError, SyntaxError):
    return False
  return True


COMMAND = Spelling(str, str)
PYTHON = Spelling(_setting, _sentences)  # `--set BATCH=8` is `batch_size=8`.
