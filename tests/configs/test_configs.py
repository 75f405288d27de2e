import dataclasses

import pytest

from dro_jax.configs import differences, parameters, table
from dro_jax.configs import settings as configs_settings
from dro_jax.configs.text import Binding, collect, read
from dro_jax.errors import UsageError

TEXT = """
# A comment above.
STEPS = 1e3   # optimiser steps
NAMES = ("a",
         'b%c')  # two
train.steps = %STEPS
package.train.seed = 0
policy/adam.rate = @policy/warm()
warm.peak = 3
policy/warm.peak = %STEPS
block:
  width = {'x': [1, %STEPS]}
other.loss = @a.b.unused
"""


def config(text, **files):
  return collect(read(text, 'f.gin', lambda name: (files[name], name)))


def test_a_text_is_read_with_its_lines_and_comments():
  found = {binding.name: binding for binding in read(TEXT, 'f.gin')}
  assert found['STEPS'] == Binding('STEPS', '1000.0', 'f.gin:3', 'optimiser steps')
  assert found['NAMES'][1:] == ("('a', 'b%c')", 'f.gin:4', 'two')
  assert found['policy/adam.rate'].value == '@policy/warm()'
  assert found['block.width'].value == "{'x': [1, %STEPS]}"
  assert found['other.loss'].value == '@a.b.unused'


def test_a_value_that_gin_printed_over_several_lines_is_read():
  printed = "load.columns = \\\n    {'prompt': 'a long name',\n     'reward': 'b'}\n"
  [binding] = read(printed, 'config.gin')
  assert binding.value == "{'prompt': 'a long name', 'reward': 'b'}"


def test_the_last_binding_holds_and_says_what_it_overrode():
  found = config(
    "include 'base'\nA = 2\nmod.f.x = 2\nimport mine\n", base='A = 1  # why\nB = 1\nf.x = 1\nf.y = %B\n'
  )
  assert found.last['A'] == Binding('A', '2', 'f.gin:2', 'why')
  assert found.overrode['A'].origin == 'base:1'
  assert found.last['f.x'].value == '2'
  assert 'B' not in found.overrode
  assert found.own_modules


@pytest.mark.parametrize('text', ['A = (1', 'a word', "A = 'open"])
def test_text_that_is_not_gin_is_refused(text):
  with pytest.raises(UsageError, match='mine.gin'):
    list(read(text, 'mine.gin'))


def test_settings_are_those_that_roots_refer_to_in_their_scopes():
  text = TEXT + 'train.optimizer = @policy/adam\nTEXT = "@block %STEPS"\ntrain.text = %TEXT\n'
  found = configs_settings.settings(config(text), ['train'], {'warm': {'peak': '0', 'steps': '150'}})
  values = {name: {key: setting.value for key, setting in of.items()} for name, of in found.items()}
  assert values == {
    'train': {
      'steps': '1000.0',
      'seed': '0',
      'optimizer': '@policy/adam',
      'text': "'@block %STEPS'",
    },
    'policy/adam': {'rate': '@policy/warm()'},
    'policy/warm': {'peak': '1000.0', 'steps': '150'},
  }
  assert found['policy/warm']['peak'].macro == 'STEPS'


def test_a_difference_is_of_what_both_read():
  base = 'T = 1\ntrain.algorithm = @{}\nkto.beta = %T\ndro.tau = %T\ntrain.steps = 3\n'
  dro, kto = config(base.format('dro')), config(base.format('kto'))
  assert differences.differences(dro, kto, ['train']) == [
    differences.Difference('train.algorithm', '@dro', '@kto', None)
  ]
  hotter = config(base.format('dro').replace('T = 1', 'T = 2'))
  assert differences.differences(dro, hotter, ['train']) == [differences.Difference('dro.tau', '1', '2', 'T')]
  # Modules of one's own may read anything.
  own = config('import mine\n' + base.format('dro').replace('T = 1', 'T = 2'))
  assert {found.name for found in differences.differences(dro, own, ['train'])} == {'dro.tau', 'kto.beta'}


def test_a_default_is_no_difference_to_its_own_value():
  unset, default, other = (config(f'train.steps = 3\n{more}') for more in ('', 'train.b = 1', 'train.b = 2'))
  known = {'train': {'b': '1'}}
  assert not differences.differences(unset, default, ['train'], (known, known))
  [found] = differences.differences(unset, other, ['train'], (known, known))
  assert (found.then, found.now) == ('1', '2')


def test_parameters_have_defaults_and_the_docstrings_words():
  def warm(peak, rule=len, steps: int = 3, odd=float('nan')):
    """A schedule.

    Args:
      peak: the largest, which
        is reached.
      rule, steps: of both.

    Raises:
      ValueError: never.
    """

  assert parameters.parameters(warm) == {
    'peak': parameters.Parameter(None, 'the largest, which is reached.'),
    'rule': parameters.Parameter('@len', 'of both.'),
    'steps': parameters.Parameter('3', 'of both.'),
    'odd': parameters.Parameter(None, ''),
  }

  @dataclasses.dataclass
  class Options:
    """Options.

    Args:
      width: of it.
    """

    width: int = 8

  assert parameters.parameters(Options) == {'width': parameters.Parameter('8', 'of it.')}


def test_defaults_are_written_and_read_again():
  known = {'train': parameters.parameters(lambda a=1, b=None, c=len, d=[]: 0), 'other': {}}
  text = parameters.defaults_text(config('train.a = 2'), ['train'], known)
  assert parameters.defaults_in(text) == {'train': {'a': '1', 'b': 'None', 'c': '@len', 'd': '[]'}}


def test_the_table_tells_origin_meaning_and_what_is_not_read():
  text = 'A = 1  # the first\ntrain.a = %A\ntrain.b = @f\ntrain.m = %M\nf.x = 3\n'
  text += 'B = 2\nunread.b = %B\nunread.c = 4\nA = 5\n'
  known = {'train': {'z': parameters.Parameter('0', 'last')}}
  found = table.table(config(text), ['train'], known, lambda macro: f'pass {macro}')
  settings = {row['setting']: row for row in found['settings']}
  assert settings['A'] == {
    'setting': 'A',
    'value': '5',
    'origin': 'f.gin:9',
    'overrode': {'value': '1', 'origin': 'f.gin:1'},
    'meaning': 'the first',
  }
  assert (settings['M']['value'], settings['M']['origin']) == (None, 'pass M')
  rows = {row['setting']: (row['value'], row['origin'], row['meaning']) for row in found['parameters']}
  assert rows == {
    'train.z': ('0', 'default', 'last'),
    'train.b': ('@f', 'f.gin:3', ''),
    'f.x': ('3', 'f.gin:5', ''),
  }
  assert [row['setting'] for row in found['bound_but_not_read']] == ['B', 'unread.c']
