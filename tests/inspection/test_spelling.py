import inspect

import pytest

import dro_jax as dro
from dro_jax.inspection import spelling
from dro_jax.inspection.command import DEFAULTS
from dro_jax.inspection.inspect import inspect_triplets
from dro_jax.inspection.spelling import COMMAND, PYTHON


@pytest.mark.parametrize(
  'text, said',
  [
    ('--set RESPONSE_LENGTH=41 keeps 99 %.', 'response_length=41 keeps 99 %.'),
    ('pass --set REWARD_SCALING=quantile.', "pass scaling='quantile'."),
    ('pass --init_from or --set VOCABULARY to count', 'pass init_from or vocabulary to count'),
    ('one number (--set VALUE_READOUT=scalar).', "one number (Value(readout='scalar'))."),
    ('--set REWARD=FUNCTION', 'RolloutOptions(reward=FUNCTION)'),
    ('--set PACKED=False', 'RowOptions(packed=False)'),
    ('(--set PAIRS=...)', '(UnitOptions(pairs=...))'),
    ('--set kto.labels=column_labels', 'algorithms.kto(labels=algorithms.column_labels)'),
    ("pass load_triplets(keep='end'), or --set KEEP=end.", "pass load_triplets(keep='end')."),
    ('as RunSpec(algorithm=sft) or --set ALGORITHM=sft.', 'as RunSpec(algorithm=sft).'),
    ('or pass --set ALGORITHM=kto.', 'or pass RunSpec(algorithm=algorithms.kto()).'),
    ('as in --set copg.beta=0.06).', 'as in algorithms.copg(beta=0.06)).'),
    ('Pass --set MAP_REWARD="{\'a, b\': 1}" or more', "Pass map_reward={'a, b': 1} or more"),
    ('with --map_reward WORD=NUMBER,... (for 3/5: --map_reward stars)',
     "with map_reward='WORD=NUMBER,...' (for 3/5: map_reward='stars')"),
    ('the number (--map_reward), or --columns a=B.', "the number (map_reward), or columns='a=B'."),
    ('ignore it with --columns id=, and ids', "ignore it with columns='id=', and ids"),
    ('rewards differ --- a little', 'rewards differ --- a little'),
  ],
)  # fmt: skip
def test_python_passes_arguments_where_sentences_say_settings(text, said):
  assert PYTHON.sentences(text) == said
  assert COMMAND.sentences(text) == text


@pytest.mark.parametrize(
  'text, said',
  [
    ('--set REWARD=FUNCTION', 'RolloutOptions(reward=FUNCTION)'),
    ('--map_reward=not ok=0,fine=NUMBER', "map_reward='not ok=0,fine=NUMBER'"),
    ('--set MAP_REWARD="{\'a "b": c\': 1}"', """map_reward={'a "b": c': 1}"""),
    ('--set KEEP=start', "keep='start'"),
    ('by default', 'by default'),
  ],
)
def test_a_setting_alone_may_have_any_value(text, said):
  assert PYTHON.setting(text) == said
  assert COMMAND.setting(text) == text


def test_every_setting_that_is_proposed_is_an_argument_in_python():
  here = inspect.signature(inspect_triplets).parameters
  for name in {*spelling.ARGUMENTS, *DEFAULTS} - {'VALIDATION_FRACTION'}:
    owner, argument = spelling.ARGUMENTS.get(name, ('', name.lower()))
    assert argument in (inspect.signature(getattr(dro, owner)).parameters if owner else here), name
  assert {*spelling.FLAGS} <= here.keys()
  assert 'validation_fraction' in inspect.signature(dro.load_triplets).parameters
