"""The door: what a command line becomes, what it refuses, how it exits. On commands made for the purpose."""

import ast
import itertools
import json
import pathlib
import subprocess
import sys
import textwrap
import typing

import gin
import pytest

import dro_jax
from dro_jax import main
from dro_jax.cli import bindings, flags, registry, tables
from dro_jax.cli import help as usage
from dro_jax.cli.bindings import command_line_bindings, configure, known_parameters, register
from dro_jax.cli.values import _annotations, gin_line
from dro_jax.configs import effects, parameters
from dro_jax.configs import text as config_text
from dro_jax.errors import UsageError, did_you_mean

_COMMANDS_MODULE = """
  import dataclasses
  from dro_jax.errors import Interrupted, Stopped, UsageError

  __all__ = ['mild', 'firm', 'Config', 'fit', 'stop', 'interrupt', 'press', 'break_down', 'refuse', 'exhaust']

  def mild(tau=5.0):
    return ('mild', tau)

  def firm(tau=1.0):
    return ('firm', tau)

  @dataclasses.dataclass(frozen=True)
  class Config:
    width: int = 8

  def fit(triplets, algorithm, steps, batch_size: int = 1, model_dir=None, columns=None, rewards=None,
          config=None, extra=None, configs=None):
    print('a line that is no result')
    result = dict(triplets=triplets, algorithm=algorithm(), steps=steps, batch_size=batch_size,
                  model_dir=model_dir, columns=columns, rewards=rewards, extra=extra, nan=float('nan'))
    if config is not None:
      result['config'] = dataclasses.asdict(config) | {'same': config == Config(config.width)}
    if configs is not None:
      result['configs'] = configs()
    return result

  def stop():
    raise Stopped('stopped at step 3, saved')

  def interrupt():
    raise Interrupted('stopped at step 4, saved')

  def press():
    raise KeyboardInterrupt

  def break_down():
    raise RuntimeError('a bug')

  def refuse():
    raise UsageError('data.jsonl:3: field "reward" is text')

  def exhaust():
    import jax.numpy
    return jax.numpy.zeros((1 << 50,), 'int8')
"""

_DEFAULTS = """
  # The defaults of fit.
  STEPS = 100  # optimiser steps
  BATCH = 4
  ALGORITHM = @firm
  MODEL_DIR = None
  COLUMNS = None
  MAP_REWARD = None

  fit.steps = %STEPS
  fit.batch_size = %BATCH
  fit.algorithm = %ALGORITHM
  fit.model_dir = %MODEL_DIR
  fit.triplets = %TRIPLETS
  fit.columns = %COLUMNS
  fit.rewards = %MAP_REWARD
"""


@pytest.fixture(scope='session')
def commands_module(tmp_path_factory):
  """A module of commands; gin registers once per process, so there is one for all tests."""
  folder = tmp_path_factory.mktemp('commands')
  (folder / 'door_commands.py').write_text(textwrap.dedent(_COMMANDS_MODULE))
  sys.path.append(str(folder))
  yield 'door_commands'
  sys.path.remove(str(folder))


@pytest.fixture
def commands(commands_module):
  def command(name):
    return tables.Command(commands_module, name, f'{name}s a model', configurables=(commands_module,))

  return {
    name: command(name) for name in ('fit', 'stop', 'interrupt', 'press', 'break_down', 'refuse', 'exhaust')
  }


@pytest.fixture
def packaged(tmp_path, monkeypatch):
  """Gin files as the package has them, in their own folder."""
  folder = tmp_path / 'gin_configs'
  (folder / 'runs').mkdir(parents=True)
  (folder / 'algorithms').mkdir()
  (folder / 'runs' / 'fit.gin').write_text(textwrap.dedent(_DEFAULTS))
  (folder / 'algorithms' / 'mild.gin').write_text('fit.algorithm = @mild\n')
  monkeypatch.setattr(tables, 'GIN_CONFIGS', folder)
  monkeypatch.chdir(tmp_path)
  return folder


@pytest.fixture
def fit(commands, packaged, capsys):
  """Runs `fit` on one triplet file and returns its result."""

  def run(*arguments):
    code = main.main(['fit', '--json', '--triplets=a.jsonl', *arguments], commands)
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out)

  return run


@pytest.fixture
def refused(commands, packaged, capsys):
  """Runs a command line that is refused and returns the message: one line, exit code 2, no result."""

  def run(*arguments):
    code = main.main(list(arguments), commands)
    output = capsys.readouterr()
    assert (code, output.out) == (2, '')
    *shown, message = output.err.splitlines()
    assert all(line.startswith('gin: ') for line in shown)
    assert message.startswith('dro_jax: ')
    return message

  return run


# What a command line becomes


def test_the_defaults_of_the_command_are_read(fit):
  result = fit()
  assert (result['steps'], result['batch_size'], result['algorithm']) == (100, 4, ['firm', 1.0])


@pytest.mark.parametrize(
  'arguments',
  [
    ['--gin.fit.algorithm=@mild'],
    ['--gin.ALGORITHM=@mild'],
    ['--gin_file=algorithms/mild.gin'],
    ['--set', 'ALGORITHM=mild'],
    ['--set=fit.algorithm=mild'],
  ],
)
def test_an_algorithm_is_chosen_in_any_way(fit, arguments):
  default, chosen = fit(), fit(*arguments)
  assert default.pop('configs') != chosen.pop('configs')
  assert chosen == {**default, 'algorithm': ['mild', 5.0]}


def test_later_sources_win(fit, tmp_path):
  (tmp_path / 'mine.gin').write_text('STEPS = 1\nBATCH = 1\nmild.tau = 1.0\n')
  result = fit('--set', 'BATCH=3', '--gin.BATCH=2', '--gin.STEPS=2', '--gin_file=mine.gin')
  assert (result['steps'], result['batch_size']) == (2, 3)


def test_a_flag_wins_over_everything(fit):
  assert fit('--model_dir=b', '--gin.MODEL_DIR="a"')['model_dir'] == 'b'


def test_gin_files_include_packaged_ones(fit, tmp_path):
  (tmp_path / 'mine.gin').write_text("include 'algorithms/mild.gin'\nmild.tau = 2.0\n")
  assert fit('--gin_file=mine.gin')['algorithm'] == ['mild', 2.0]


def test_a_folder_of_the_same_name_is_no_package_to_include_from(fit, tmp_path, monkeypatch):
  (tmp_path / 'algorithms').mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'mine.gin').write_text("include 'algorithms/mild.gin'\n")
  assert fit('--gin_file=mine.gin')['algorithm'][0] == 'mild'


@pytest.mark.parametrize(
  'text, gin_text, value',
  [
    ('3', '3', 3),
    ('-1e-4', '-1e-4', -1e-4),
    ('.5', '.5', 0.5),
    ('true', 'True', True),
    ('False', 'False', False),
    ('none', 'None', None),
    ('[1, 2]', '[1, 2]', [1, 2]),
    ('0,1.5', '(0,1.5)', [0, 1.5]),
    ('(0, 1)', '(0, 1)', [0, 1]),
    ('"quoted"', '"quoted"', 'quoted'),
    ('bytes', "'bytes'", 'bytes'),
    ('gs://bucket/a b=c', "'gs://bucket/a b=c'", 'gs://bucket/a b=c'),
    ("it's", '"it\'s"', "it's"),
    ('%BATCH', '%BATCH', 4),
    ('@mild()', '@mild()', ['mild', 5.0]),
  ],
)
def test_set_reads_bare_words(commands, packaged, capsys, text, gin_text, value):
  assert main.main(['fit', '--json', '--triplets=a', '--set', f'fit.extra={text}'], commands) == 0
  output = capsys.readouterr()
  assert f'gin: fit.extra = {gin_text}\n' in output.err
  assert json.loads(output.out)['extra'] == value


def test_a_flag_that_is_bare_is_read_like_set_and_may_stand_alone():
  def bindings(*arguments):
    return dict(command_line_bindings(flags.parse_flags('arena', ['--model_dir=x', *arguments])))

  register(tables.COMMANDS['arena'])
  assert bindings('--suite=bandit', '--seeds=3', '--widen') == {
    '--model_dir': "MODEL_DIR = 'x'",
    '--suite': 'SUITE = @bandit',
    '--seeds': 'SEEDS = 3',
    '--widen': 'WIDEN = 1',
  }
  assert bindings('--widen=2', '--algorithms=dro_v')['--widen'] == 'WIDEN = 2'
  assert bindings('--algorithms=dro_v,kto')['--algorithms'] == "ALGORITHMS = 'dro_v,kto'"
  with pytest.raises(UsageError, match=r'unknown name \(did you mean bandit\?\)'):
    bindings('--suite=bandti')


def test_plain_flags_become_macros(fit):
  result = fit(
    '--model_dir=runs/1',
    '--triplets=b.csv,c.csv',
    '--columns=prompt=q,reward=r',
    '--map_reward',
    'up=1,down=-.5',
  )
  assert result['model_dir'] == 'runs/1'
  assert result['triplets'] == 'a.jsonl,b.csv,c.csv'
  assert result['columns'] == 'prompt=q,reward=r'
  assert result['rewards'] == 'up=1,down=-.5'


def test_a_configurable_class_gives_plain_instances(fit):
  assert fit('--gin.fit.config=@Config()', '--gin.Config.width=3')['config'] == {'width': 3, 'same': True}


def test_one_run_leaves_nothing_to_the_next(fit):
  fit('--set', 'STEPS=5', '--set', 'fit.extra=1')
  assert fit() == fit('--set', 'STEPS=100')


def test_the_configuration_is_handed_down_as_texts(fit, packaged):
  texts = fit('--set', 'STEPS=7')['configs']['texts']
  assert set(texts) == {'config.gin', 'operative_config.gin', 'defaults.gin'}
  assert 'STEPS = 7' in texts['config.gin']
  assert 'firm.tau = 1.0' in texts['operative_config.gin']
  assert 'firm.tau = 1.0' in texts['defaults.gin']
  assert 'mild.tau' not in texts['defaults.gin']
  (packaged / 'again.gin').write_text(texts['config.gin'])
  assert fit('--gin_file=again.gin')['steps'] == 7


def test_a_gin_file_brings_its_own_module(fit, tmp_path, monkeypatch):
  (tmp_path / 'door_own.py').write_text('import gin\n\n\n@gin.configurable\ndef own():\n  return "own", 1\n')
  (tmp_path / 'own.gin').write_text('import door_own\nfit.algorithm = @own\n')
  monkeypatch.syspath_prepend(tmp_path)
  assert fit('--gin_file=own.gin')['algorithm'] == ['own', 1]


def test_a_gin_file_registers_an_undecorated_function(fit, tmp_path, monkeypatch):
  (tmp_path / 'door_bare.py').write_text('def bare(tau=0):\n  return "bare", tau\n')
  (tmp_path / 'bare.gin').write_text(
    'from __gin__ import dynamic_registration\nimport door_bare\n'
    'import door_commands\ndoor_commands.fit.algorithm = @door_bare.bare\ndoor_bare.bare.tau = 2\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  assert fit('--gin_file=bare.gin')['algorithm'] == ['bare', 2]


# What it prints


def test_only_the_result_is_on_standard_output(commands, packaged, capsys):
  assert main.main(['fit', '--triplets=a', '--json'], commands) == 0
  output = capsys.readouterr()
  assert output.err == 'a line that is no result\n'
  assert json.loads(output.out)['nan'] is None


def test_without_json_the_result_is_lines(commands, packaged, capsys):
  assert main.main(['fit', '--triplets=a', '--gin.fit.extra={"accuracy": 0.123456789}'], commands) == 0
  lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
  assert lines['steps'] == ['100']
  assert lines['extra/accuracy'] == ['0.123457']


# What it refuses


def test_unknown_commands_and_flags(refused):
  assert 'did you mean fit?' in refused('fti')
  assert 'fit, stop, interrupt, press, break_down, refuse, exhaust' in refused()
  assert 'Did you mean: model_dir' in refused('fit', '--modle_dir=x')
  assert 'the command comes first: dro_jax COMMAND --triplets=a' in refused('--triplets=a', 'fit')
  assert "'b.jsonl' is not a flag" in refused('fit', '--triplets', 'a.jsonl', 'b.jsonl')


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--gin.fit.algoritm=@mild', "doesn't have a parameter named 'algoritm'. (did you mean algorithm?)"),
    ('--gin.fitt.steps=3', "No configurable matching 'fitt'. (did you mean fit?)"),
    ('--gin.fit.algorithm=@firn', "'@firn'. (did you mean firm?)"),
    ('--gin.STPES=3', '--gin.STPES=3: this command does not use STPES (did you mean STEPS?)'),
    ('--set=STPES=3', '--set STPES=3: this command does not use STPES (did you mean STEPS?)'),
    ('--set=fti.steps=3', '--set fti.steps=3: No configurable matching'),
    (
      '--gin.fit.steps=%STEP',
      'fit.steps needs STEP, which has no value: pass --set STEP=VALUE (did you mean STEPS?)',
    ),
    ('--gin.MODEL_DIR=text', 'text is not a valid gin value: quote strings'),
    ('--gin.STEPS', "'--gin.STEPS' has no value"),
    ('--set=STEPS', 'pass --set NAME=VALUE'),
    ('--set=ALGORITHM=milld', "gin has no configurable 'milld' (did you mean mild?)"),
    ('--set=fit.algorithm=milld', "gin has no configurable 'milld' (did you mean mild?)"),
    (
      '--set=ALGORITHM=my_loss.py',
      "no configurable 'my_loss.py'. For a function of your own pass my_loss.py:NAME",
    ),
    ('--set=STEPS=many', "'many' is not a number, as the current value 100 is"),
    (
      '--init_from=x',
      '--init_from: this command does not use INIT_FROM; `dro_jax fit --help` lists the settings',
    ),
    ('--steps=7', 'no flag --steps: it is a setting, so pass --set STEPS=7'),
    ('--set=BATCH=none', '--set BATCH=none: fit.batch_size takes a whole number, not None'),
    (
      '--gin.fit.batch_size=1.5',
      '--gin.fit.batch_size=1.5: fit.batch_size takes a whole number, not 1.5',
    ),
    ('--gin_file=algorithms/mil.gin', 'did you mean algorithms/mild.gin?'),
  ],
)
def test_unknown_gin_names_are_refused_with_a_suggestion(refused, argument, message):
  assert message in refused('fit', '--triplets=a', argument)


def test_a_class_has_its_parameters():
  with pytest.raises(UsageError, match=r'did you mean log_every\?'):
    _configure('train', '--gin.Schedule.log_evry=3')
  with pytest.raises(UsageError, match='--set STEPS=1.5: Schedule.steps takes a whole number'):
    _configure('train', '--set=STEPS=1.5')
  assert known_parameters()['Schedule']['steps'] == ('1000', 'the length of the run.', effects.LENGTH)


def test_a_configurable_takes_the_place_of_its_own_kind():
  with pytest.raises(
    UsageError, match=r'ALGORITHM expects an algorithm such as dro_v; adafactor is an optimizer'
  ):
    _configure('train', '--set=ALGORITHM=adafactor')
  assert callable(_configure('train', '--set=ALGORITHM=kto', '--set=Optimizers.policy=@policy/adamw'))


_TEXTS = (
  'none', 'None', 'true', 'False', '3', '-1e-4', '1,2', '[1, 2]', '()', '...', 'train', 'generate', 'kto',
  'a b=c', 'Q: {prompt}\nA: ', "it's", '@someone', '@generate', '%TAU_', '%off', '((', '',
  'gs://a,b', '‘quoted’',
)  # fmt: skip


def _set(setting):
  """The value that gin is given for a setting: a literal's, or a reference in a list."""
  value = gin_line(setting).partition(' = ')[2]
  return [value] if value.startswith(('@', '%')) else ast.literal_eval(value)


def _text_settings():
  """Macros that feed text or nothing else, by command, with whether they may be unset."""
  for macro in sorted(registry.defined_macros() | set(registry.used_macros())):
    kinds = {part for annotation in _annotations(macro) for part in parameters.parts(annotation)}
    if str in kinds and kinds <= {str, type(None), typing.Literal['none']}:
      yield macro, type(None) in kinds


@pytest.mark.parametrize('name', [name for name, command in tables.COMMANDS.items() if not command.own])
def test_a_setting_of_text_takes_any_text(name):
  _configure(name)
  settings = dict(_text_settings())
  assert settings or name in ('evaluate', 'arena', 'report', 'import_checkpoint')
  for (macro, may_be_unset), text in itertools.product(settings.items(), _TEXTS):
    if text.lower() == 'none':
      wanted = None if may_be_unset and (text, macro) != ('none', 'REWARD_SCALING') else text
    else:
      wanted = text.strip()
    assert _set(f'{macro}={text}') == wanted, macro
    assert _set(f'{macro}="{macro} none"') == f'{macro} none'


@pytest.mark.parametrize(
  'name, setting, value',
  [
    ('train', 'REWARD_SCALING=none', 'none'),
    ('train', 'load_triplets.scaling=none', 'none'),
    ('train', 'dro_jax.data.tasks.load_triplets.scaling=none', 'none'),
    ('inspect', 'REWARD_SCALING=none', 'none'),
    ('inspect', 'REWARD_SCALING=None', None),
    ('train', 'VOCABULARY=none', None),
    ('train', 'VOCABULARY=None', None),
    ('train', 'BEST_METRIC=None', None),
    ('train', 'DTYPE=none', None),
    ('train', 'EVAL_TRIPLETS=none', None),
    ('train', 'TRIPLETS=kto', 'kto'),
    ('train', "TRIPLETS=['a.csv', 'b.csv']", ['a.csv', 'b.csv']),
    ('train', 'TRIPLETS=1,2', '1,2'),
    ('train', 'COLUMNS={"prompt": "q"}', {'prompt': 'q'}),
    ('train', 'MAP_REWARD=stars', 'stars'),
    ('train', 'REMAT=true', True),
    ('train', 'REMAT=dots', 'dots'),
    ('train', 'REMAT=none', None),
    ('train', 'MODEL_DIR=3', '3'),
    ('train', 'TEMPLATE=%TAU', ['%TAU']),
    ('train', 'TEMPLATE=@sft()', ['@sft()']),
    ('train', 'TEMPLATE=%d', '%d'),
    ('train', 'TEMPLATE="none"', 'none'),
    ('train', 'REWARD=exact_match', ['@exact_match']),
    ('train', 'REWARD=mine.py:reward', 'mine.py:reward'),
    ('train', 'ALGORITHM=kto', ['@kto']),
    ('train', 'STEPS=3', 3),
    ('train', 'MICROBATCHES=none', None),
    ('train', 'policy/warmup_constant.peak_value=1e-3', 1e-3),
    ('generate', 'PROMPT=generate', 'generate'),
    ('generate', 'PROMPT=42', '42'),
    ('generate', 'PROMPT=true', 'true'),
    ('generate', 'PROMPT=@generate', "@generate"),
    ('generate', 'PROMPT=None', None),
    ('generate', 'PROMPT="None"', 'None'),
    ('arena', 'ALGORITHMS=kto', 'kto'),
    ('arena', 'SPREAD=0,1', (0, 1)),
    ('arena', 'WORLDS=habits', 'habits'),
    ('arena', 'WORLDS=habits,exercises', 'habits,exercises'),
    ('arena', 'TRIALS=2', 2),
    ('arena', 'POST_EDIT=text', 'text'),
  ],
)  # fmt: skip
def test_the_type_of_a_setting_decides_how_its_text_is_read(name, setting, value):
  _configure(name)
  assert _set(setting) == value


def test_a_setting_of_text_reaches_its_command():
  _configure('train', '--set=REWARD_SCALING=none', '--set=VALUE_READOUT=prompt')
  assert registry.bound_value('load_triplets.scaling') == 'none'
  _configure('generate', '--set=PROMPT=generate')
  assert registry.bound_value('generate.prompt') == 'generate'
  with pytest.raises(UsageError, match='BATCH=none: Batches.size takes a whole number, not None'):
    _configure('train', '--set=BATCH=none')


def test_a_setting_without_a_value_names_its_flag(refused):
  assert 'fit.triplets needs TRIPLETS, which has no value: pass --triplets' in refused('fit')


def test_a_required_argument_is_named(refused, packaged):
  (packaged / 'runs' / 'fit.gin').write_text('fit.steps = 3\n')
  assert "fit needs values for ['algorithm', 'triplets']" in refused('fit')


def test_a_gin_file_is_refused_with_its_line(refused, tmp_path):
  (tmp_path / 'mine.gin').write_text('STEPS = 3\nfit.stesp = 3\n')
  message = refused('fit', '--triplets=a', '--gin_file=mine.gin')
  assert 'did you mean steps?' in message
  assert 'mine.gin", line 2' in message
  (tmp_path / 'mine.gin').write_text('STPES = 3\n')
  assert refused('fit', '--triplets=a', '--gin_file=mine.gin').startswith(
    'dro_jax: mine.gin: this command does not use STPES'
  )
  (tmp_path / 'mine.gin').write_text('import no_such_module\n')
  assert "No module named 'no_such_module'" in refused('fit', '--triplets=a', '--gin_file=mine.gin')


# Configurations


@pytest.fixture
def asked(commands, packaged, capsys):
  """What `configs` answers, as JSON and as text."""

  def run(*arguments):
    house = commands | {'configs': tables.COMMANDS['configs']}
    answers = []
    for format in ([], ['--json']):
      assert main.main(['configs', *arguments, *format], house) == 0
      answers.append(capsys.readouterr().out)
    return json.loads(answers[1]), answers[0]

  return run


def test_configs_lists_the_packaged_files(asked):
  found, text = asked('list', 'runs')
  assert found['files'] == [
    {'file': 'runs/fit.gin', 'about': 'The defaults of `dro_jax fit`, which fits a model.'}
  ]
  assert 'runs/fit.gin' in text


def test_configs_shows_values_origins_and_meanings(asked, tmp_path):
  (tmp_path / 'mine.gin').write_text("include 'algorithms/mild.gin'\nSTEPS = 7\n")
  found, text = asked('show', 'fit', '--gin_file=mine.gin', '--set', 'BATCH=3', '--model_dir=x')
  rows = {row['setting']: row for part in found.values() for row in part}
  steps = rows['STEPS']
  assert (steps['value'], steps['origin'], steps['meaning']) == ('7', 'mine.gin:2', 'optimiser steps')
  assert steps['overrode'] == {'value': '100', 'origin': 'runs/fit.gin:3'}
  assert rows['BATCH']['origin'] == '--set BATCH=3'
  assert rows['MODEL_DIR']['origin'] == '--model_dir'
  assert rows['TRIPLETS'] | {'meaning': ''} == {
    'setting': 'TRIPLETS', 'value': None, 'origin': 'pass --triplets', 'overrode': None, 'meaning': '',
  }  # fmt: skip
  assert rows['fit.algorithm']['origin'] == 'algorithms/mild.gin:1'
  assert (rows['mild.tau']['value'], rows['mild.tau']['origin']) == ('5.0', 'default')
  assert 'firm.tau' not in rows
  assert 'mine.gin:2 (over 100, runs/fit.gin:3)' in text


def test_configs_refuses_what_it_does_not_know(commands, packaged, refused):
  commands['configs'] = tables.COMMANDS['configs']
  assert 'did you mean list?' in refused('configs', 'lst')
  assert 'pass list [FOLDER]' in refused('configs')
  assert 'did you mean fit?' in refused('configs', 'show', 'fti')
  assert 'did you mean STEPS?' in refused('configs', 'show', 'fit', '--set=STPES=3')
  assert 'a setting needs a command' in refused('configs', 'list', '--set=STEPS=3')
  assert 'takes one command' in refused('configs', 'show')
  assert 'takes two runs' in refused('configs', 'diff', 'fit')


def test_configs_tells_whether_a_run_can_be_resumed_as_another(tmp_path, capsys):
  text = 'train.schedule = @Schedule\nSchedule.steps = {}\ntrain.model_dir = "{}"\ntrain.seed = {}\n'
  for name, settings in {'a': (1, 'a', 0), 'b': (2, 'b', 0), 'c': (1, 'c', 1)}.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.gin').write_text(text.format(*settings))

  def diff(*names):
    assert main.main(['configs', 'diff', *(str(tmp_path / name) for name in names), '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    return found['resumable'], [(row['setting'], row['a'], row['b']) for row in found['differences']]

  assert diff('a', 'a') == (True, [])
  assert diff('a', 'b') == (True, [('Schedule.steps', '1', '2')])
  assert diff('a', 'c') == (False, [('RunSpec.seed', '0', '1')])


# How it exits


def test_bad_data_is_two_with_its_own_words(refused):
  assert refused('refuse') == 'dro_jax: data.jsonl:3: field "reward" is text'


def test_stopped_after_saving_is_75(commands, packaged, capsys):
  assert main.main(['stop'], commands) == 75
  assert capsys.readouterr().err == 'dro_jax: stopped at step 3, saved\n'


def test_memory_that_is_refused_is_one_with_the_remedy(commands, packaged, capsys):
  (packaged / 'runs' / 'exhaust.gin').write_text('MICROBATCHES = 1\n')
  assert main.main(['exhaust'], commands) == 1
  message = capsys.readouterr().err
  assert message.startswith('dro_jax: out of memory (')
  assert 'pass --set MICROBATCHES=2' in message


def test_an_output_that_is_no_longer_read_ends_without_a_traceback():
  command = f'{sys.executable} -m dro_jax.main configs list | head -n 1; exit ${{PIPESTATUS[0]}}'
  process = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
  assert 'Traceback' not in process.stderr
  assert process.returncode in (0, 141)  # 0 where all was written before it was read.


def test_an_interrupt_is_75_where_the_run_was_saved_and_130_elsewhere(commands, packaged, capsys):
  assert main.main(['interrupt'], commands) == 75
  assert capsys.readouterr().err == 'dro_jax: stopped at step 4, saved\n'
  assert main.main(['press'], commands) == 130
  assert capsys.readouterr().err.startswith('dro_jax: stopped by Ctrl-C. No file is half-written')


def test_a_bug_is_raised(commands, packaged):
  with pytest.raises(RuntimeError, match='a bug'):
    main.main(['break_down'], commands)


def _python(code):
  return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy():
  for arguments in (['--help'], ['train', '--help']):
    process = _python(
      f'import sys; from dro_jax import main; code = main.main({arguments}); '
      "heavy = {'jax', 'flax', 'numpy', 'seqio', 'tensorflow', 'orbax', 'rich'} & set(sys.modules); "
      'assert not heavy, heavy; sys.exit(code)'
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith('dro_jax ')


def test_train_starts_without_scipy():
  """A fifth of its imports, for what few batches need."""
  process = _python(
    'import sys; from dro_jax.cli import bindings, tables; '
    "bindings.register(tables.COMMANDS['train']); assert 'scipy' not in sys.modules"
  )
  assert process.returncode == 0, process.stderr


def test_the_version_is_one_number_everywhere(capsys):
  assert main.main(['--version']) == 0
  assert capsys.readouterr().out == f'dro_jax {dro_jax.__version__}\n'
  root = pathlib.Path(dro_jax.__file__).resolve().parents[1]
  asked = subprocess.run(
    [sys.executable, 'setup.py', '--version'], cwd=root, capture_output=True, text=True, check=True
  )
  assert asked.stdout.splitlines()[-1] == dro_jax.__version__
  process = _python(
    "import sys, dro_jax; dro_jax.__version__; assert not {'jax', 'numpy', 'gin'} & set(sys.modules)"
  )
  assert process.returncode == 0, process.stderr


def test_help_lists_flags_and_settings(commands, packaged, capsys):
  assert main.main(['fit', '--help'], commands) == 0
  text = capsys.readouterr().out
  assert '--triplets' in text
  assert '--init_from' not in text
  assert 'STEPS=100' in text
  assert 'optimiser steps' in text


def test_help_lists_no_flag_whose_setting_only_begins_like_one_that_is_read(capsys):
  """REWARD_SCALING is no REWARD."""
  assert main.main(['inspect', '--help']) == 0
  text = capsys.readouterr().out
  assert '  --rewards ' in text and '  --reward ' not in text


# The house's own commands and gin files


def _configure(name, *arguments):
  """Binds a command of the house, every flag that it needs given."""
  text = usage.default_text(name, tables.GIN_CONFIGS)
  needed = [
    f'--{flag}={(about.alone or "1") if about.bare else "x"}'
    for flag, about in tables.FLAGS.items()
    if usage.reads(text, about.macro)
  ]
  return configure(name, tables.COMMANDS[name], flags.parse_flags(name, [*needed, *arguments]))


@pytest.mark.parametrize('name', [name for name, command in tables.COMMANDS.items() if not command.own])
def test_the_defaults_of_a_command_bind(name):
  assert callable(_configure(name))


@pytest.mark.parametrize('name', [name for name, command in tables.COMMANDS.items() if not command.own])
def test_a_command_registers_all_that_its_gin_file_names(name, monkeypatch):
  """Within one process other commands would have registered it."""
  known = set()
  monkeypatch.setattr(bindings, '_configurable', lambda module, public: known.add(public))
  register(tables.COMMANDS[name])
  known = {bindings._GIN_NAMES.get(public, public) for public in known}
  lines = list(config_text.read(usage.default_text(name, tables.GIN_CONFIGS), name))
  named = [config_text.split(line.name)[1] for line in lines if line.name]
  named += [selector for line in lines for _, selector in config_text.references(line.value)]
  assert {selector.rpartition('.')[2] for selector in named} - {''} <= known


_SHARED = [path.relative_to(tables.GIN_CONFIGS) for path in sorted(tables.GIN_CONFIGS.rglob('*.gin'))]


@pytest.mark.parametrize('file', [str(path) for path in _SHARED if path.parts[0] != 'runs'])
def test_a_packaged_gin_file_binds(file):
  assert callable(_configure('train', f'--gin_file={file}'))


@pytest.mark.parametrize(
  'argument', ['--gin.RunSpec.algorithm=@kto', '--gin_file=algorithms/kto.gin', '--set=ALGORITHM=kto']
)
def test_an_algorithm_is_one_run_however_it_is_chosen(argument):
  def bindings(*arguments):
    _configure('train', *arguments)
    values = gin.get_bindings('dro_jax.train.RunSpec')
    del values['optimizers']  # Functions, which are made anew.
    return {name: getattr(value, '__name__', value) for name, value in values.items()}

  assert bindings(argument) == {**bindings(), 'algorithm': 'kto'}


OWN_FILE = """
from dro_jax import algorithms

def mild_dro(tau=0.5, name='mild'):
  return algorithms.dro_v(tau)._replace(name=name)
"""


@pytest.mark.parametrize('decorated', [False, True])
def test_set_chooses_an_algorithm_of_the_users_file_and_gin_binds_it(tmp_path, monkeypatch, decorated):
  monkeypatch.chdir(tmp_path)
  text = OWN_FILE.replace('\ndef', '\nimport gin\n@gin.configurable\ndef') if decorated else OWN_FILE
  pathlib.Path('own_dro.py').write_text(text)
  pathlib.Path('own_dro.gin').write_text('mild_dro.name = "bound"\n')

  def chosen(*arguments):
    _configure('train', '--set=ALGORITHM=own_dro.py:mild_dro', *arguments)
    return gin.query_parameter('ALGORITHM/gin.macro.value').scoped_configurable_fn()

  assert (chosen().name, chosen().temperature) == ('mild', 0.5)
  algorithm = chosen('--gin.mild_dro.tau=0.3', '--gin_file=own_dro.gin')
  assert (algorithm.name, algorithm.temperature) == ('bound', 0.3)
  assert chosen('--set=mild_dro.tau=0.4').temperature == 0.4
  # A changed file is read again.
  pathlib.Path('own_dro.py').write_text(text.replace('0.5', '0.75'))
  assert chosen().temperature == 0.75
  monkeypatch.syspath_prepend(tmp_path)
  _configure('train', '--set=ALGORITHM=own_dro:mild_dro')
  assert gin.query_parameter('ALGORITHM/gin.macro.value').selector.endswith('own_dro.mild_dro')


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--set=ALGORITHM=absent.py:mild_dro', 'ALGORITHM=absent.py:mild_dro: cannot import absent.py'),
    ('--set=ALGORITHM=own_dro.py:wild_dro', "own_dro.py has no function 'wild_dro'"),
    ('--set=ALGORITHM=own_dro.py:dro_v', 'dro_jax has an algorithm dro_v, too'),
    ('--set=mild_dro.tua=0.3', r"parameter named 'tua'.*did you mean tau\?"),
    (
      '--set=TAU=0.3',
      r'TAU is a setting of .*mild_dro does not read it; pass one of its own settings, mild_dro.tau',
    ),
  ],
)
def test_a_missing_algorithm_of_the_users_file_is_refused(tmp_path, monkeypatch, argument, message):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('own_dro.py').write_text(OWN_FILE)
  with pytest.raises(UsageError, match=message):
    _configure('train', '--set=ALGORITHM=own_dro.py:mild_dro', argument)


def test_several_settings_that_hold_the_word_are_all_named():
  names = ['POLICY_LEARNING_RATE', 'VALUE_LEARNING_RATE', 'STEPS']
  assert did_you_mean('LEARNING_RATE', names) == (
    ' (did you mean POLICY_LEARNING_RATE or VALUE_LEARNING_RATE?)'
  )
  assert did_you_mean('STEP', names) == ' (did you mean STEPS?)'


def test_a_gin_file_of_other_commands_says_whose_it_is():
  # In a process of its own: what gin registered for one command stays.
  command = [sys.executable, '-m', 'dro_jax.main', 'inspect', 'x', '--gin_file=models/t5_1_1_tiny.gin']
  message = subprocess.run(command, capture_output=True, text=True).stderr
  assert "No configurable matching 'T5Config'. It belongs to other commands (train, " in message


def test_a_setting_that_the_chosen_algorithm_does_not_read_is_refused():
  with pytest.raises(
    UsageError,
    match=r'TAU is a setting of .*dro_v.*dpo does not read it; pass one of its own settings, dpo.beta',
  ):
    _configure('train', '--set=ALGORITHM=dpo', '--set=TAU=0.3')
  for algorithm in ('dro_v', 'kto'):
    assert callable(_configure('train', f'--set=ALGORITHM={algorithm}', '--set=TAU=0.3'))
  assert callable(_configure('train', '--set=ALGORITHM=dpo', '--set=dpo.beta=0.3', '--set=PAIRS=all'))


def test_a_command_that_lacks_its_arguments_shows_how_they_are_passed():
  with pytest.raises(UsageError, match='pass it without a flag, as `dro_jax report RUNS ...`, or as --runs='):
    configure('report', tables.COMMANDS['report'], flags.parse_flags('report', []))


def test_a_setting_that_the_run_does_not_read_is_refused_where_it_was_asked_for():
  with pytest.raises(UsageError, match='--set VALUE_SHARED=true: kto has no value network'):
    _configure('train', '--set=ALGORITHM=kto', '--set=VALUE_SHARED=true')
  # A gin file may set it for several algorithms.
  assert callable(_configure('train', '--gin_file=values/shared.gin', '--set=ALGORITHM=kto'))


def test_a_setting_that_only_a_stage_of_another_command_reads_passes():
  assert callable(_configure('a_lol', '--set=VALUE_SHARED=false'))
