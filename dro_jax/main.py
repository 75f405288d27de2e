"""The door: `dro_jax COMMAND [flags]`. Absl reads the flags, gin binds them, nothing below knows of either.

Bindings are read in this order, the last one wins: `gin_configs/runs/COMMAND.gin`, every `--gin_file`, every
`--gin.NAME=VALUE`, every `--set NAME=VALUE`, the plain flags (each is a macro: `--model_dir` is MODEL_DIR).

Exit codes: 0 done, 1 failed, 2 bad usage or bad data, 75 stopped by a signal after saving, 130 ended by
Ctrl-C with nothing to save, or by a second one at once.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import logging
import os
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from absl import flags

from dro_jax import __version__, config_files, configs
from dro_jax.cli import configs_command as config_tables
from dro_jax.cli import help as usage
from dro_jax.errors import Failed, Interrupted, Stopped, UsageError, did_you_mean
from dro_jax.parallel import interrupts, machine
from dro_jax.parallel import processes as cluster
from dro_jax.printing import result as printing

DONE, FAILED, BAD_USAGE, STOPPED = 0, 1, 2, 75
UNREAD = 141  # As shells call a program that SIGPIPE ended.

_HERE = pathlib.Path(__file__).resolve().parent
# Installed, the gin files are inside the package; in a checkout they are beside it.
_PLACES = (_HERE / 'gin_configs', _HERE.parent / 'gin_configs')
GIN_CONFIGS = next((place for place in _PLACES if place.is_dir()), _PLACES[0])


# Gin's names are public and stay when code moves: the module where something is defined, and the module by
# which gin files and command lines know it.
_GIN_MODULES = {
  'dro_jax.arena.arena': 'dro_jax.arena.run',
  'dro_jax.arena.exact.suite': 'dro_jax.arena.exact',
  'dro_jax.arena.exact.world': 'dro_jax.arena.exact_world',
  'dro_jax.arena.human.suite': 'dro_jax.arena.human',
  'dro_jax.arena.text.suite': 'dro_jax.arena.text',
  'dro_jax.checkpoints.export_checkpoint': 'dro_jax.exporters',
  'dro_jax.checkpoints.import_checkpoint': 'dro_jax.importers',
  'dro_jax.data.batches.groups': 'dro_jax.data.units',
  'dro_jax.evaluation.check': 'dro_jax.check',
  'dro_jax.evaluation.report': 'dro_jax.report',
  'dro_jax.parallel.partitioning': 'dro_jax.partitioning',
  'dro_jax.recipes.a_lol': 'dro_jax.a_lol',
  'dro_jax.recipes.build_table': 'dro_jax.build_table',
  'dro_jax.recipes.cache_reference': 'dro_jax.cache_reference',
  'dro_jax.recipes.fit_value': 'dro_jax.fit_value',
  'dro_jax.recipes.train_vocabulary': 'dro_jax.train_vocabulary',
  'dro_jax.run.batches': 'dro_jax.feeds',
  'dro_jax.run.sampling.rollouts': 'dro_jax.online',
  'dro_jax.step.optimizers': 'dro_jax.optimizers',
  'dro_jax.step.reference': 'dro_jax.reference',
}


class Command(NamedTuple):
  """What a word after `dro_jax` runs.

  configurables  what else gin may bind: a MODULE's public names, or MODULE:NAME.
  bare           the flag that arguments without a flag belong to.
  usage          lines for its help.
  own            the door does it itself, and gin binds nothing to it.
  """

  module: str
  function: str
  summary: str
  configurables: tuple[str, ...] = ()
  bare: str | None = None
  usage: tuple[str, ...] = ()
  own: bool = False


_MODEL = ('dro_jax.models.t5:T5Config', 'dro_jax.parallel.partitioning')
_DATA = ('dro_jax.data.tasks:load_triplets',)

_ALGORITHMS = 'dro_jax.algorithms'
_TRAIN = (
  *_MODEL,
  *_DATA,
  'dro_jax.algorithms',
  'dro_jax.step.optimizers',
  'dro_jax.step.reference',
  'dro_jax.data.batches.groups:UnitOptions',
  'dro_jax.run.sampling.rollouts',
  'dro_jax.rewards',
  'dro_jax.run.batches',
  'dro_jax.train',
)

COMMANDS = {
  'train': Command(
    'dro_jax.train',
    'train',
    'aligns a policy with (prompt, response, reward) triplets, or resumes a run',
    _TRAIN,
  ),
  'cache_reference': Command(
    'dro_jax.recipes.cache_reference',
    'cache_reference',
    "takes a reference's log-probs once, for any run",
    _TRAIN,
  ),
  'fit_value': Command(
    'dro_jax.recipes.fit_value',
    'fit_value',
    'fits V(x) on other prompts, for methods that read a value',
    _TRAIN,
  ),
  'a_lol': Command(
    'dro_jax.recipes.a_lol',
    'a_lol_stages',
    'A-LoL in its stages: fits a value, keeps what beats it, trains on that',
    (*_TRAIN, 'dro_jax.recipes.fit_value'),
  ),
  'preflight': Command(
    'dro_jax.preflight',
    'preflight',
    'compiles a run for a TPU slice that need not be here: does it fit, how fast can it be',
    _TRAIN,
  ),
  'evaluate': Command(
    'dro_jax.evaluate',
    'evaluate',
    'scores a triplet file: statistics, ranking accuracy, baselines',
    (*_MODEL, *_DATA),
  ),
  'inspect': Command(
    'dro_jax.inspection',
    'inspect_triplets',
    'says what a triplet file holds, which methods it admits, and how to train on it',
    bare='triplets',
  ),
  'train_vocabulary': Command(
    'dro_jax.recipes.train_vocabulary',
    'train_vocabulary',
    'trains a SentencePiece model on the texts of triplets',
    bare='triplets',
  ),
  'build_table': Command(
    'dro_jax.recipes.build_table',
    'build_table',
    'tokenises triplets once, on this machine or by Apache Beam on many, for runs that read them',
    bare='triplets',
  ),
  'generate': Command('dro_jax.generate', 'generate', 'samples responses to prompts', _MODEL),
  'arena': Command(
    'dro_jax.arena.arena',
    'arena',
    'holds methods to a known optimum, and to each other',
    (
      *_MODEL,
      'dro_jax.arena.bandit',
      'dro_jax.arena.exact.suite',
      'dro_jax.arena.exact.world:ExactSettings',
      'dro_jax.arena.text.suite',
      'dro_jax.arena.human.suite',
    ),
  ),
  'report': Command(
    'dro_jax.evaluation.report',
    'report',
    'compares runs: settings, curves, metrics with paired intervals',
    bare='runs',
  ),
  'import_checkpoint': Command(
    'dro_jax.checkpoints.import_checkpoint',
    'import_checkpoint',
    'brings in a T5 of Hugging Face or T5X, for --init_from',
  ),
  'export_checkpoint': Command(
    'dro_jax.checkpoints.export_checkpoint', 'export_checkpoint', 'writes a policy for transformers or T5X'
  ),
  'check': Command(
    'dro_jax.evaluation.check',
    'check',
    'shows that a checkpoint scores and answers: ρ = 0 against itself, five answers',
  ),
  'configs': Command(
    'dro_jax.main',
    'main',
    'lists gin files; shows every setting, whence it comes and what it means; says what differs',
    bare='words',
    usage=(
      'configs list [FOLDER]                 the packaged gin files',
      'configs show COMMAND [flags]          what a command line would run with, given its own flags',
      'configs show MODEL_DIR|FILE           what a run was made with, or what a file binds',
      'configs diff A B                      of runs, files or commands; and whether A may be resumed as B',
      '',
    ),
    own=True,
  ),
}


class Flag(NamedTuple):
  """A plain flag: the macro that it becomes.

  macro   the macro's name.
  help    what it means.
  joined  several are one text, joined by commas.
  bare    its value is read as `--set` reads one: a number, a configurable's name, or else text.
  alone   its value where the flag stands alone.
  """

  macro: str
  help: str
  joined: bool = False
  bare: bool = False
  alone: str | None = None


FLAGS = {
  'model_dir': Flag('MODEL_DIR', "the run's folder: metrics, checkpoints, configuration"),
  'triplets': Flag('TRIPLETS', 'triplet files, or names of data sets, separated by commas', joined=True),
  'eval_triplets': Flag('EVAL_TRIPLETS', 'triplet files held out for validation', joined=True),
  'init_from': Flag('INIT_FROM', "where parameters come from: a run's or an imported folder"),
  'columns': Flag('COLUMNS', "your files' own names: prompt=question,reward=thumbs", joined=True),
  'columns_from': Flag('COLUMNS_FROM', "folders of fit_value's, whose values join the data", joined=True),
  'map_reward': Flag('MAP_REWARD', "numbers for your rewards' words: up=1,down=0", joined=True),
  'runs': Flag('RUNS', "runs' folders; `dro_jax report RUN ...` takes them without the flag", joined=True),
  'words': Flag('WORDS', 'what to list, show or compare; `dro_jax configs` takes it without the flag'),
  'beam_options': Flag('BEAM_OPTIONS', "Apache Beam's own flags: '--runner=DataflowRunner --project=...'"),
  'output': Flag('OUTPUT', 'where the result is written'),
  'suite': Flag('SUITE', "the arena's suite: bandit, exact, text or human", bare=True),
  'algorithms': Flag('ALGORITHMS', 'who competes, separated by commas', joined=True),
  'seeds': Flag('SEEDS', 'repetitions, numbered from 0', bare=True),
  'replay': Flag('REPLAY', 'goes again to a batch whose loss was not finite: MODEL_DIR/nonfinite/STEP'),
  'topology': Flag('TOPOLOGY', 'the slice to compile for: v5e:4x8, or 2xv5e:4x8 for two of them'),
  'sweep': Flag('SWEEP', 'tries every mesh that divides the slice', bare=True, alone='True'),
  'widen': Flag('WIDEN', "steps by which every method's grid is extended", bare=True, alone='1'),
}


def run() -> None:
  """The console script."""
  _prepare_process()
  with cluster.failing_at_once(), interrupts.second_ends():
    sys.exit(_until_unread(sys.argv[1:]))


def _until_unread(argv: Sequence[str]) -> int:
  """Runs a command line; whoever reads its output may stop reading, as `head` does."""
  try:
    code = main(argv)
    sys.stdout.flush()
    return code
  except BrokenPipeError:
    # Python would write what is left as it exits, and fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD


def _prepare_process() -> None:
  """Logs go to standard error, ours only; gin files may import from the current folder."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format='%(message)s')
  logging.getLogger('dro_jax').setLevel(logging.INFO)
  # What they call errors is raised to us as well, and would be said for every array.
  for third_party in ('absl', 'asyncio'):
    logging.getLogger(third_party).setLevel(logging.CRITICAL)
  # Gin looks for an included file in several places, and reports each where it is not.
  logging.getLogger().handlers[0].addFilter(lambda record: not str(record.msg).startswith('Path not found'))
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())


def main(argv: Sequence[str], commands: Mapping[str, Command] = COMMANDS) -> int:
  """Runs one command line and returns its exit code; what nobody foresaw is raised."""
  try:
    return _dispatch(list(argv), commands)
  except UsageError as error:
    print(f'dro_jax: {_own_words(error)}', file=sys.stderr)
    return BAD_USAGE
  except Failed as failed:
    print(f'dro_jax: {_own_words(failed)}', file=sys.stderr)
    return FAILED
  except (Stopped, Interrupted) as stopped:
    print(f'dro_jax: {_own_words(stopped)}', file=sys.stderr)
    return STOPPED
  except KeyboardInterrupt:
    print(
      'dro_jax: stopped by Ctrl-C. Nothing is half-written: the same command begins again, or goes on from '
      'what was saved before.',
      file=sys.stderr,
    )
    return interrupts.ENDED


def _dispatch(argv: list[str], commands: Mapping[str, Command]) -> int:
  if not argv:
    raise UsageError('which command? ' + usage.listed(commands) + '; `dro_jax --help` says what they do')
  name, *arguments = argv
  if name in ('--help', '-h', 'help'):
    print(usage.overview(commands))
    return DONE
  if name == '--version':
    print(f'dro_jax {__version__}')
    return DONE
  if name not in commands:
    if name.startswith('-'):
      raise UsageError(
        f'the command comes first: dro_jax COMMAND {name} ... The commands: {usage.listed(commands)}'
      )
    raise UsageError(
      f'no command {name!r}{did_you_mean(name, commands)}. The commands: {usage.listed(commands)}'
    )
  if {'--help', '-h'} & set(arguments):
    print(usage.of_command(name, commands[name], FLAGS, GIN_CONFIGS))
    return DONE
  values = _parse_flags(name, arguments, commands[name].bare)
  if commands[name].own:
    printing.print_result(_answer_configs(values, commands), as_json=values['json'].value)
    return DONE
  command = _configure(name, commands[name], values)
  cluster.join()
  machine.refuse_missing_devices()
  with machine.memory(_less_memory()):
    result = _call(name, command)
  if cluster.is_first():
    printing.print_result(result, as_json=values['json'].value)
  return DONE


# Flags


def _parse_flags(name: str, arguments: list[str], bare: str | None = None) -> flags.FlagValues:
  values = flags.FlagValues()
  values.set_gnu_getopt(True)  # Flags may follow what has no flag.
  for flag, help_text in {'gin_file': 'a gin file', 'gin_binding': 'a binding', 'set': 'a macro'}.items():
    flags.DEFINE_multi_string(flag, [], help_text, flag_values=values)
  for flag, about in FLAGS.items():
    flags.DEFINE_multi_string(flag, [], about.help, flag_values=values)
  flags.DEFINE_boolean('json', False, 'print the result as one JSON object', flag_values=values)
  try:
    _, *rest = values([name, *map(_as_gin_binding, arguments)])
  except flags.Error as error:
    problem = _misplaced_setting(name, str(error), arguments) or error
    raise UsageError(f'{problem}; `dro_jax {name} --help` lists the flags') from error
  if rest and bare:
    values[bare].value = [*values[bare].value, *rest]
  elif rest:
    raise UsageError(
      f'{rest[0]!r} is no flag: settings are --set NAME=VALUE, several files are joined by commas'
    )
  return values


def _misplaced_setting(name: str, message: str, arguments: Sequence[str]) -> str | None:
  """What to type instead, where an unknown flag is a setting."""
  unknown = re.search(r"Unknown command line flag '([^']+)'", message)
  macro = unknown[1].upper() if unknown else ''
  settings = re.findall(r'^([A-Z][A-Z0-9_]*) *=', usage.default_text(name, GIN_CONFIGS), re.MULTILINE)
  if macro not in settings:
    return None
  typed = next((text for text in arguments if text.lstrip('-').startswith(unknown[1])), '')
  return f'no flag --{unknown[1]}: it is a setting, --set {macro}={typed.partition("=")[2] or "VALUE"}'


def _as_gin_binding(argument: str) -> str:
  """`--gin.NAME=VALUE`, and a flag that stands alone, as flags that absl can read."""
  if (flag := FLAGS.get(argument.lstrip('-'))) and argument.startswith('-') and flag.alone:
    return f'{argument}={flag.alone}'
  match = re.fullmatch(r'--?gin\.([^=]+)=(.*)', argument, re.DOTALL)
  if match:
    return f'--gin_binding={match[1]} = {match[2]}'
  if re.match(r'--?gin\.', argument):
    raise UsageError(f'{argument!r} has no value: pass {argument}=VALUE')
  return argument


# Gin


def _configure(
  name: str, command: Command, values: flags.FlagValues, *, complete: bool = True
) -> Callable[..., Any]:
  """Binds everything that the command line and its files say, and returns the command, bound.

  With `complete`, macros without a value are refused.
  """
  function = _register(command)
  gin.add_config_file_search_path(str(GIN_CONFIGS))
  # Gin would take a folder runs/ that is here for a package, and fail to read runs/train.gin in it.
  readers = gin.config._FILE_READERS
  readers[:] = [pair for pair in readers if pair[0] is not gin.resource_reader.system_path_reader]
  with gin.unlock_config():
    gin.clear_config()
    default = GIN_CONFIGS / 'runs' / f'{name}.gin'
    if default.exists():
      _read(gin.parse_config_file, str(default), origin=str(default))
    given = _read_files(values['gin_file'].value)
    for origin, line in _command_line_bindings(values):
      if origin.startswith('--set'):
        print(f'gin: {line}', file=sys.stderr)
      _read(gin.parse_config, line, origin=origin)
      given[line.partition('=')[0].strip()] = origin
    _refuse_unused_macros(name, given)
    _refuse_wrong_types(given)
    _refuse_settings_of_other_algorithms(command.function, given)
    if complete:
      _refuse_undefined_macros()
      gin.finalize()
  return function


def _register(command: Command) -> Callable[..., Any]:
  for entry in command.configurables:
    module, _, name = entry.partition(':')
    for public in [name] if name else _public_callables(module):
      _configurable(module, public)
  return _configurable(command.module, command.function)


def _public_callables(module_name: str) -> list[str]:
  """A module's `__all__`, else what it defines without a leading underscore."""
  module = importlib.import_module(module_name)
  own = [name for name, value in vars(module).items() if getattr(value, '__module__', '') == module_name]
  names = getattr(module, '__all__', [name for name in own if not name.startswith('_')])
  return [name for name in names if callable(getattr(module, name))]


@functools.cache
def _configurable(module: str, name: str) -> Callable[..., Any]:
  value = getattr(importlib.import_module(module), name)
  return gin.external_configurable(value, module=_GIN_MODULES.get(value.__module__, value.__module__))


def _read_files(files: Iterable[str]) -> dict[str, str]:
  """Reads gin files in order; returns the macros that they bring, each with its file."""
  given = {}
  for file in files:
    before = _macros()
    path = config_files.find(file, GIN_CONFIGS)
    _read(gin.parse_config_file, str(path), origin=file)
    given.update(dict.fromkeys(_macros() - before, file))
  return given


def _command_line_bindings(values: flags.FlagValues) -> Iterator[tuple[str, str]]:
  """(what was typed, the gin line it is)."""
  for binding in values['gin_binding'].value:
    yield f'--gin.{binding.replace(" = ", "=", 1)}', binding
  for setting in values['set'].value:
    yield f'--set {setting}', _gin_line(setting)
  for flag, about in FLAGS.items():
    if texts := values[flag].value:
      text = ','.join(texts) if about.joined else texts[-1]
      yield f'--{flag}', f'{about.macro} = {_flag_value(flag, about, text)}'


def _flag_value(flag: str, about: Flag, text: str) -> str:
  if not about.bare:
    return repr(text)
  value = _gin_value(text)
  if value == repr(text):
    raise UsageError(f'--{flag}={text}: nothing here is called so{did_you_mean(text, _configurable_names())}')
  return value


def _gin_line(setting: str) -> str:
  """`--set`'s text as the gin line that it becomes."""
  name, equals, text = (part.strip() for part in setting.partition('='))
  if not (name and equals):
    raise UsageError(f'--set {setting}: pass --set NAME=VALUE')
  takes = _text_parts(name)
  value = _gin_value(text, takes)
  if takes:
    return f'{name} = {value}'
  if value == repr(text):
    _refuse_misplaced_word(setting, _bound(name), text)
  elif value.startswith('@'):
    _refuse_other_kind(setting, _bound(name), value)
  return f'{name} = {value}'


def _refuse_misplaced_word(setting: str, bound: Any, word: str) -> None:
  """A word where a number or a configurable stands so far is a slip: it would fail later, far from here."""
  if isinstance(bound, gin.config.ConfigurableReference):
    suggestion = did_you_mean(word, _configurable_names())
    raise UsageError(f'--set {setting}: nothing that gin can bind is called {word!r}{suggestion}')
  if isinstance(bound, (bool, int, float)):
    raise UsageError(f'--set {setting}: {word!r} is no number or boolean, and the value so far is {bound!r}')


def _refuse_other_kind(setting: str, bound: Any, reference: str) -> None:
  """An algorithm is no optimiser: of our own configurables, one takes another's place in its module only."""
  selector = reference.strip('@()').rpartition('/')[2]
  if not (isinstance(bound, gin.config.ConfigurableReference) and _is_configurable(selector)):
    return
  # By the names that gin has for them, which stay when code moves.
  here, there = (gin.config._REGISTRY.get_match(name).module for name in (bound.selector, selector))
  if here != there and here.startswith('dro_jax.') and there.startswith('dro_jax.'):
    raise UsageError(
      f'--set {setting}: {selector} is of {there}, and what stands there so far, {bound.selector}, of {here}'
    )


def _bound(name: str) -> Any | None:
  """What a macro, or CONFIGURABLE.PARAMETER, is bound to so far; macros are followed."""
  try:
    value = gin.query_parameter(name if '.' in name else f'{name}/gin.macro.value')
  except (ValueError, KeyError):
    return None
  macro = _macro_of(value)
  return _bound(macro) if macro else value


def _macro_of(value: Any) -> str | None:
  """The name of the macro that a value refers to, if it does."""
  if not isinstance(value, gin.config.ConfigurableReference) or value.selector != 'gin.macro':
    return None
  return value.scoped_selector.rpartition('/')[0]


def _text_parts(name: str) -> frozenset[Any]:
  """What the parameters of a macro, or CONFIGURABLE.PARAMETER, admit, where all of them admit text."""
  parts = [configs.parts(annotation) for annotation in _annotations(name)]
  return frozenset().union(*parts) if parts and all(str in of for of in parts) else frozenset()


def _annotations(name: str) -> Iterator[Any]:
  """Of the parameters that a macro feeds, straight or by other macros; or of CONFIGURABLE.PARAMETER."""
  _, selector, parameter = configs.split(name)
  if selector:
    with contextlib.suppress(ValueError, KeyError, AttributeError):
      if about := inspect.signature(_original(selector)).parameters.get(parameter):
        yield about.annotation
    return
  for (scope, selector), parameters in list(gin.config._CONFIG.items()):
    for parameter, value in parameters.items():
      if _macro_of(value) == name:
        yield from _annotations(scope if selector == 'gin.macro' else f'{selector}.{parameter}')


def _stays_text(text: str, parts: Collection[Any]) -> bool:
  """Whether a setting that takes text takes these letters as they stand.

  Not where it admits what they spell, too: no text, true, a number, several, or something to call. A text in
  quotes is what the quotes hold, and %NAME the setting of that name.
  """
  calls = any(typing.get_origin(part) is Callable for part in parts)
  if text.startswith('%'):
    return text[1:] not in _macros()
  if text.startswith('@'):
    return not calls and not (text.endswith('()') and _is_configurable(text[1:-2]))
  if text.lower() == 'none':
    return type(None) not in parts or typing.Literal[text] in parts
  if text.lower() in ('true', 'false'):
    return bool not in parts
  literal = _literal(text)
  if isinstance(literal, list | tuple | dict) and text.startswith(('(', '[', '{')):
    return all(typing.get_origin(part) not in (Sequence, Mapping, list, tuple, dict) for part in parts)
  if literal is not None and not isinstance(literal, list | tuple | dict | str):
    return type(literal) not in parts
  return not isinstance(literal, str) and not (calls and _is_configurable(text))


def _gin_value(text: str, takes: Collection[Any] = ()) -> str:
  """Literals as they are, a configurable's name as a reference to it, anything else as a string.

  Args:
    text: as typed.
    takes: what the setting admits, if that is text; then text stays what it is (see `_stays_text`).
  """
  if takes and _stays_text(text, takes):
    return repr(text)
  if text.startswith(('@', '%')):
    return text
  words = {'true': 'True', 'false': 'False', 'none': 'None'}
  if text.lower() in words:
    return words[text.lower()]
  if (literal := _literal(text)) is not None:
    # Several, bare: gin wants the tuple's parentheses.
    return f'({text})' if isinstance(literal, tuple) and not text.startswith('(') else text
  return f'@{text}' if _is_configurable(text) else repr(text)


def _literal(text: str) -> Any | None:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return None


def _is_configurable(name: str) -> bool:
  if not re.fullmatch(r'[A-Za-z_][\w.]*', name):
    return False
  try:
    return gin.get_configurable(name) is not None
  except (ValueError, KeyError):
    return False


def _read(parse: Callable[[str], Any], source: str, *, origin: str) -> None:
  try:
    parse(source)
  except (ValueError, KeyError, TypeError, SyntaxError, ImportError, OSError) as error:
    lines = str(error).splitlines()
    if lines[0].startswith('malformed node'):
      lines[0] = f'{source.partition("=")[2].strip()} is no value of gin'
    bare = isinstance(error, SyntaxError) or 'is no value of gin' in lines[0]
    hint = '. In gin a text is quoted, and a configurable is @NAME; --set takes both bare' if bare else ''
    place = '' if origin.startswith('--') else ' ' + ' '.join(line.strip() for line in lines[1:])
    raise UsageError(f'{origin}: {lines[0]}{_suggest(lines[0])}{hint}{place}') from error


def _suggest(message: str) -> str:
  """A did-you-mean for what gin says that it does not know."""
  if match := re.search(r"doesn't have a parameter named '(\w+)'", message):
    configurable = re.search(r"Configurable '([\w.]+)'", message)[1]
    return did_you_mean(match[1], configs.parameters(_original(configurable)))
  if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", message):
    return _other_commands(match[1]) or did_you_mean(match[1], _configurable_names())
  return ''


def _other_commands(name: str) -> str:
  """Which commands take a configurable that this one lacks, or ''."""
  owners = [
    command for command, about in COMMANDS.items() if any(x.endswith(f':{name}') for x in about.configurables)
  ]
  return f' It belongs to other commands ({", ".join(owners)}): leave it out here.' if owners else ''


def _original(selector: str) -> Callable[..., Any]:
  """What gin wraps: a class that it wraps has lost its signature."""
  return gin.config._REGISTRY.get_match(selector).wrapped


def _configurable_names() -> list[str]:
  # Gin has no public list of what is registered.
  names = [selector.rsplit('.', 1)[-1] for selector, _ in gin.config._REGISTRY.items()]
  return sorted(set(names))


def _macros() -> set[str]:
  # Nor of what is bound.
  return {scope for scope, selector in gin.config._CONFIG if selector == 'gin.macro'}


class _Use(NamedTuple):
  """A binding that refers to a macro: of a configurable's parameter, or of another macro, its scope."""

  macro: str
  scope: str
  selector: str
  parameter: str


def _uses() -> Iterator[_Use]:
  """Every place where a binding refers to a macro."""
  for (scope, selector), parameters in gin.config._CONFIG.items():
    for parameter, value in parameters.items():
      for reference in gin.config.iterate_references([value]):
        if macro := _macro_of(reference):
          yield _Use(macro, scope, selector, parameter)


def _macros_used() -> dict[str, str]:
  """Every macro that some binding refers to, and one such binding."""
  return {
    use.macro: use.scope
    if use.selector == 'gin.macro'
    else f'{use.selector.rsplit(".", 1)[-1]}.{use.parameter}'
    for use in _uses()
  }


def _refuse_undefined_macros() -> None:
  for macro, reader in _macros_used().items():
    if macro not in _macros():
      raise UsageError(f'{reader} needs {macro}, which has no value: {_remedy(macro)}')


def _remedy(macro: str) -> str:
  flag = next((f'--{flag}' for flag, about in FLAGS.items() if about.macro == macro), None)
  return f'pass {flag}' if flag else f'pass --set {macro}=VALUE{did_you_mean(macro, _macros())}'


def _refuse_unused_macros(name: str, given: Mapping[str, str]) -> None:
  """Gin takes a misspelled macro without a word, and the run would go on with the old value."""
  used = _macros_used()
  for macro in given.keys() & _macros():
    if macro not in used:
      hint = did_you_mean(macro, used) or f'; `dro_jax {name} --help` lists the settings'
      raise UsageError(f'{given[macro]}: nothing here uses {macro}{hint}')


def _refuse_wrong_types(given: Mapping[str, str]) -> None:
  """Numbers, booleans and texts that an annotation does not admit would fail later, far from here."""
  for (_, selector), parameters in gin.config._CONFIG.items():
    if selector == 'gin.macro':
      continue
    signature = inspect.signature(_original(selector)).parameters
    for parameter, value in parameters.items():
      macro = _macro_of(value)
      value = _bound(macro) if macro else value
      kinds = configs.kinds(signature[parameter].annotation) if parameter in signature else None
      known = macro is None or macro in _macros()
      if kinds and known and not configs.admits(kinds, value):
        name = f'{selector.rsplit(".", 1)[-1]}.{parameter}'
        origin = given.get(macro) or given.get(name) or f'{macro or name}={value!r}'
        takes = ' or '.join(configs.KINDS[kind] for kind in kinds)
        raise UsageError(f'{origin}: {name} takes {takes}, and not {value!r}')


def _refuse_settings_of_other_algorithms(command: str, given: Mapping[str, str]) -> None:
  """A setting that only algorithms read, and not the chosen one, would change nothing, without a word."""
  chosen = _bound(f'{command}.algorithm') or _bound('train.algorithm')
  if not isinstance(chosen, gin.config.ConfigurableReference):
    return
  selector = gin.config._REGISTRY.get_match(chosen.selector).selector  # Whole: it may have been typed short.
  name = selector.rpartition('.')[2]
  own = [f'{name}.{parameter}' for parameter in configs.parameters(_original(selector))]
  for macro, origin in given.items():
    readers = {use.selector for use in _uses() if use.macro == macro} - {'gin.macro'}
    are_algorithms = all(_original(reader).__module__ == _ALGORITHMS for reader in readers)
    if origin.startswith('--set') and readers and are_algorithms and selector not in readers:
      others = ', '.join(sorted(reader.rpartition('.')[2] for reader in readers))
      instead = f'its own are {", ".join(own)} (--set {own[0]}=VALUE)' if own else 'it has none of its own'
      raise UsageError(f'{origin}: {macro} is a setting of {others}, and {name} does not read it; {instead}')


# Running


def _call(name: str, function: Callable[..., Any]) -> Any:
  """Runs the command; standard output is the result's alone."""
  wants_configs = 'configs' in inspect.signature(function).parameters
  arguments = {'configs': functools.partial(_config_texts, function.__name__)} if wants_configs else {}
  try:
    with contextlib.redirect_stdout(sys.stderr):
      return function(**arguments)
  except (TypeError, RuntimeError) as error:
    missing = re.search(
      r'(?:No values supplied by Gin or caller for arguments|Required bindings for .*): (\[.*\])', str(error)
    )
    if not missing:
      raise
    raise UsageError(f'{name} needs values for {missing[1]}: bind them with --gin.NAME=VALUE') from error


def _less_memory() -> str:
  """The command's own settings that make it use less memory."""
  settings = {
    'MICROBATCHES': '--set MICROBATCHES=2 (parts of a batch one after another)',
    'REMAT': '--set REMAT=true (states are computed again in the backward pass)',
    'DTYPE': '--set DTYPE=bfloat16',
    'BATCH': 'a smaller BATCH',
  }
  own = [text for macro, text in settings.items() if macro in _macros()]
  return f'pass {", ".join(own)}' if own else 'pass less data at once'


def _config_texts(root: str) -> dict[str, str]:
  """What a run saves of its configuration: what was bound, what was used so far, and what else holds."""
  bound = gin.config_str()
  config = configs.collect(configs.read(bound, 'config.gin'))
  return {
    'config.gin': bound,
    'operative_config.gin': gin.operative_config_str(),
    'defaults.gin': configs.defaults_text(config, [root], _known_parameters()),
  }


def _known_parameters() -> dict[str, dict[str, configs.Parameter]]:
  """The parameters of all that gin may bind, by the shortest name that gin takes for it."""
  registry = gin.config._REGISTRY
  selectors = [selector for selector, _ in registry.items() if not selector.startswith('gin.')]
  known = {
    registry.minimal_selector(selector): configs.parameters(_original(selector)) for selector in selectors
  }
  for parameters in known.values():
    parameters.pop('configs', None)  # The door's own to pass.
  return known


def _own_words(error: BaseException) -> str:
  """An error's message without the trail that gin adds to it."""
  return str(error).split('\n  In call to configurable')[0]


# The command `configs`


def _answer_configs(values: flags.FlagValues, commands: Mapping[str, Command]) -> printing.Sections:
  """`configs list`, `configs show` and `configs diff`."""
  words, values['words'].value = values['words'].value, []
  word, *rest = words or ['']
  subwords = ('list', 'show', 'diff')
  if word not in subwords:
    asked = f'there is no {word!r}{did_you_mean(word, subwords)}' if word else 'what of them?'
    raise UsageError(f'configs: {asked} Pass list [FOLDER], show COMMAND|MODEL_DIR|FILE, or diff A B')
  if word == 'show':
    return _show(rest, values, commands)
  _refuse_settings(values)
  if word == 'list':
    summaries = {name: command.summary for name, command in commands.items()}
    return config_tables.listed(GIN_CONFIGS, rest, summaries)
  return config_tables.compared(GIN_CONFIGS, rest, commands, functools.partial(_parameters_of_runs, commands))


def _show(
  words: Sequence[str], values: flags.FlagValues, commands: Mapping[str, Command]
) -> printing.Sections:
  if len(words) != 1:
    raise UsageError(
      f'configs show takes one command, folder or file, not {len(words)}: `dro_jax configs show train`'
    )
  [name] = words
  if name in commands and not commands[name].own:
    _configure(name, commands[name], values, complete=False)
    bindings = _sources(name, values)
    return config_tables.shown(bindings, [commands[name].function], _known_parameters(), _remedy)
  _refuse_settings(values)
  bindings = config_tables.bindings_of(GIN_CONFIGS, name, commands)
  return config_tables.shown(bindings, configs.ROOTS, {}, _remedy)


def _sources(name: str, values: flags.FlagValues) -> list[configs.Binding]:
  """Every binding of a command line, in gin's order, with the place where it stands."""
  paths = [GIN_CONFIGS / 'runs' / f'{name}.gin']
  paths = [path for path in paths if path.exists()]
  paths += [config_files.find(file, GIN_CONFIGS) for file in values['gin_file'].value]
  bindings = [binding for path in paths for binding in config_files.of_file(path, GIN_CONFIGS)]
  for typed, line in _command_line_bindings(values):
    bindings += [binding._replace(origin=typed) for binding in configs.read(line, typed)]
  return bindings


def _parameters_of_runs(commands: Mapping[str, Command]) -> dict[str, dict[str, configs.Parameter]]:
  for command in commands.values():
    if command.function in configs.ROOTS:
      _register(command)
  return _known_parameters()


def _refuse_settings(values: flags.FlagValues) -> None:
  files = [f'--gin_file={file}' for file in values['gin_file'].value]
  for typed in [*files, *(typed for typed, _ in _command_line_bindings(values))]:
    raise UsageError(f'{typed}: settings belong to a command: `dro_jax configs show train {typed}`')


if __name__ == '__main__':
  run()
