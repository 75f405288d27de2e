"""The door: `dro_jax COMMAND [flags]`. Absl reads the flags, gin binds them, nothing below knows of either.

Bindings are read in this order, the last one wins: `gin_configs/runs/COMMAND.gin`, every `--gin_file`, every
`--gin.NAME=VALUE`, every `--set NAME=VALUE`, the plain flags (each is a macro: `--model_dir` is MODEL_DIR).

Exit codes: 0 done, 1 failed, 2 bad usage or bad data, 75 stopped by a signal after saving.
"""

import ast
import contextlib
import difflib
import functools
import importlib
import inspect
import json
import logging
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from absl import flags

from dro_jax import cluster
from dro_jax.errors import Stopped, UsageError

DONE, BAD_USAGE, STOPPED = 0, 2, 75

_HERE = pathlib.Path(__file__).resolve().parent
# Installed, the gin files are inside the package; in a checkout they are beside it.
_PLACES = (_HERE / 'gin_configs', _HERE.parent / 'gin_configs')
GIN_CONFIGS = next((place for place in _PLACES if place.is_dir()), _PLACES[0])


class Command(NamedTuple):
  """What a word after `dro_jax` runs.

  configurables  what else gin may bind: a MODULE's public names, or MODULE:NAME.
  bare           the flag that arguments without a flag belong to.
  """

  module: str
  function: str
  summary: str
  configurables: tuple[str, ...] = ()
  bare: str | None = None


_MODEL = ('dro_jax.models.t5:T5Config', 'dro_jax.partitioning')
_DATA = ('dro_jax.data.tasks:load_triplets',)

_TRAIN = (
  *_MODEL,
  *_DATA,
  'dro_jax.algorithms',
  'dro_jax.optimizers',
  'dro_jax.reference',
  'dro_jax.data.units:UnitOptions',
  'dro_jax.online',
  'dro_jax.rewards',
  'dro_jax.feeds',
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
    'dro_jax.cache_reference', 'cache_reference', "takes a reference's log-probs once, for any run", _TRAIN
  ),
  'fit_value': Command(
    'dro_jax.fit_value', 'fit_value', 'fits V(x) on other prompts, for methods that read a value', _TRAIN
  ),
  'a_lol': Command(
    'dro_jax.a_lol',
    'a_lol_stages',
    'A-LoL in its stages: fits a value, keeps what beats it, trains on that',
    (*_TRAIN, 'dro_jax.fit_value'),
  ),
  'evaluate': Command(
    'dro_jax.evaluate',
    'evaluate',
    'scores a triplet file: statistics, ranking accuracy, baselines',
    (*_MODEL, *_DATA),
  ),
  'generate': Command('dro_jax.generate', 'generate', 'samples responses to prompts', _MODEL),
  'arena': Command(
    'dro_jax.arena.run',
    'arena',
    'holds methods to a known optimum, and to each other',
    (
      *_MODEL,
      'dro_jax.arena.bandit',
      'dro_jax.arena.exact',
      'dro_jax.arena.exact_world:ExactSettings',
      'dro_jax.arena.text',
      'dro_jax.arena.human',
    ),
  ),
  'report': Command(
    'dro_jax.report', 'report', 'compares runs: settings, curves, metrics with paired intervals', bare='runs'
  ),
  'import_checkpoint': Command(
    'dro_jax.importers', 'import_checkpoint', 'brings in a Hugging Face T5 folder, for --init_from'
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
  'output': Flag('OUTPUT', 'where the result is written'),
  'suite': Flag('SUITE', "the arena's suite: bandit, exact, text or human", bare=True),
  'algorithms': Flag('ALGORITHMS', 'who competes, separated by commas', joined=True),
  'seeds': Flag('SEEDS', 'repetitions, numbered from 0', bare=True),
  'widen': Flag('WIDEN', "steps by which every method's grid is extended", bare=True, alone='1'),
}


def run() -> None:
  """The console script."""
  _prepare_process()
  with cluster.failing_at_once():
    sys.exit(main(sys.argv[1:]))


def _prepare_process() -> None:
  """Logs go to standard error, of third parties only errors; gin files may import from the current folder."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format='%(message)s')
  logging.getLogger('dro_jax').setLevel(logging.INFO)
  logging.getLogger('absl').setLevel(logging.ERROR)
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
  except Stopped as stopped:
    print(f'dro_jax: {_own_words(stopped)}', file=sys.stderr)
    return STOPPED


def _dispatch(argv: list[str], commands: Mapping[str, Command]) -> int:
  if not argv:
    raise UsageError('which command? ' + _listed(commands) + '; `dro_jax --help` says what they do')
  name, *arguments = argv
  if name in ('--help', '-h', 'help'):
    print(_overview(commands))
    return DONE
  if name not in commands:
    raise UsageError(f'no command {name!r}{_did_you_mean(name, commands)}. The commands: {_listed(commands)}')
  if {'--help', '-h'} & set(arguments):
    print(_command_help(name, commands[name]))
    return DONE
  values = _parse_flags(name, arguments, commands[name].bare)
  command = _configure(name, commands[name], values)
  cluster.join()
  result = _call(name, command)
  if cluster.is_first():
    _print_result(result, as_json=values['json'].value)
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
    raise UsageError(f'{error}; `dro_jax {name} --help` lists the flags') from error
  if rest and bare:
    values[bare].value = [*values[bare].value, *rest]
  elif rest:
    raise UsageError(
      f'{rest[0]!r} is no flag: settings are --set NAME=VALUE, several files are joined by commas'
    )
  return values


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


def _configure(name: str, command: Command, values: flags.FlagValues) -> Callable[..., Any]:
  """Binds everything that the command line and its files say, and returns the command, bound."""
  function = _register(command)
  gin.add_config_file_search_path(str(GIN_CONFIGS))
  with gin.unlock_config():
    gin.clear_config()
    default = GIN_CONFIGS / 'runs' / f'{name}.gin'
    if default.exists():
      _read(gin.parse_config_file, str(default), origin=str(default))
    given = _read_files(values['gin_file'].value)
    for origin, line in _command_line_bindings(values):
      _read(gin.parse_config, line, origin=origin)
      given[line.partition('=')[0].strip()] = origin
    _refuse_undefined_macros()
    _refuse_unused_macros(given)
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
  return gin.external_configurable(value, module=value.__module__)


def _read_files(files: Iterable[str]) -> dict[str, str]:
  """Reads gin files in order; returns the macros that they bring, each with its file."""
  given = {}
  for file in files:
    before = _macros()
    path = _find_gin_file(file)
    _read(gin.parse_config_file, str(path), origin=file)
    given.update(dict.fromkeys(_macros() - before, file))
  return given


def _find_gin_file(file: str) -> pathlib.Path:
  """A gin file as named from here, else among the packaged ones."""
  for path in (pathlib.Path(file), GIN_CONFIGS / file):
    if path.is_file():
      return path
  packaged = [str(path.relative_to(GIN_CONFIGS)) for path in sorted(GIN_CONFIGS.rglob('*.gin'))]
  raise UsageError(f'no gin file {file!r} here or in {GIN_CONFIGS}{_did_you_mean(file, packaged)}')


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
    raise UsageError(
      f'--{flag}={text}: nothing here is called so{_did_you_mean(text, _configurable_names())}'
    )
  return value


def _gin_line(setting: str) -> str:
  """`--set`'s text as the gin line that it becomes, which is shown."""
  name, equals, text = (part.strip() for part in setting.partition('='))
  if not (name and equals):
    raise UsageError(f'--set {setting}: pass --set NAME=VALUE')
  value = _gin_value(text)
  if value == repr(text):
    _refuse_misplaced_word(setting, _bound(name), text)
  line = f'{name} = {value}'
  print(f'gin: {line}', file=sys.stderr)
  return line


def _refuse_misplaced_word(setting: str, bound: Any, word: str) -> None:
  """A word where a number or a configurable stands so far is a slip: it would fail later, far from here."""
  if isinstance(bound, gin.config.ConfigurableReference):
    suggestion = _did_you_mean(word, _configurable_names())
    raise UsageError(f'--set {setting}: nothing that gin can bind is called {word!r}{suggestion}')
  if isinstance(bound, (bool, int, float)):
    raise UsageError(f'--set {setting}: {word!r} is no number or boolean, and the value so far is {bound!r}')


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


def _gin_value(text: str) -> str:
  """Literals as they are, a configurable's name as a reference to it, anything else as a string."""
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
  except (ValueError, SyntaxError):
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
    hint = '. In gin a text is quoted; --set takes it bare' if isinstance(error, SyntaxError) else ''
    lines = str(error).splitlines()
    place = '' if origin.startswith('--') else ' ' + ' '.join(line.strip() for line in lines[1:])
    raise UsageError(f'{origin}: {lines[0]}{_suggest(lines[0])}{hint}{place}') from error


def _suggest(message: str) -> str:
  """A did-you-mean for what gin says that it does not know."""
  if match := re.search(r"doesn't have a parameter named '(\w+)'", message):
    configurable = gin.get_configurable(re.search(r"Configurable '([\w.]+)'", message)[1])
    return _did_you_mean(match[1], inspect.signature(configurable).parameters)
  if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", message):
    return _did_you_mean(match[1], _configurable_names())
  return ''


def _configurable_names() -> list[str]:
  # Gin has no public list of what is registered.
  names = [selector.rsplit('.', 1)[-1] for selector, _ in gin.config._REGISTRY.items()]
  return sorted(set(names))


def _macros() -> set[str]:
  # Nor of what is bound.
  return {scope for scope, selector in gin.config._CONFIG if selector == 'gin.macro'}


def _macros_used() -> dict[str, str]:
  """Every macro that some binding refers to, and one such binding."""
  used = {}
  for (scope, selector), parameters in gin.config._CONFIG.items():
    for parameter, value in parameters.items():
      reader = scope if selector == 'gin.macro' else f'{selector.rsplit(".", 1)[-1]}.{parameter}'
      for reference in gin.config.iterate_references([value]):
        used[_macro_of(reference)] = reader
  used.pop(None, None)
  return used


def _refuse_undefined_macros() -> None:
  for macro, reader in _macros_used().items():
    if macro not in _macros():
      flag = next((f'--{flag}' for flag, about in FLAGS.items() if about.macro == macro), None)
      remedy = f'pass {flag}' if flag else f'pass --set {macro}=VALUE{_did_you_mean(macro, _macros())}'
      raise UsageError(f'{reader} needs {macro}, which has no value: {remedy}')


def _refuse_unused_macros(given: Mapping[str, str]) -> None:
  """Gin takes a misspelled macro without a word, and the run would go on with the old value."""
  used = _macros_used()
  for macro in given.keys() & _macros():
    if macro not in used:
      raise UsageError(f'{given[macro]}: nothing here uses {macro}{_did_you_mean(macro, used)}')


def _did_you_mean(word: str, candidates: Iterable[str]) -> str:
  by_lower = {candidate.lower(): candidate for candidate in candidates}
  close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
  return f' (did you mean {by_lower[close[0]]}?)' if close else ''


# Running


def _call(name: str, function: Callable[..., Any]) -> Any:
  """Runs the command; standard output is the result's alone."""
  wants_configs = 'configs' in inspect.signature(function).parameters
  arguments = {'configs': _config_texts} if wants_configs else {}
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


def _config_texts() -> dict[str, str]:
  """What a run saves of its configuration: all that was bound, and all that was used so far."""
  return {'config.gin': gin.config_str(), 'operative_config.gin': gin.operative_config_str()}


def _own_words(error: Exception) -> str:
  """An error's message without the trail that gin adds to it."""
  return str(error).split('\n  In call to configurable')[0]


def _print_result(result: Any, *, as_json: bool) -> None:
  if not result:
    return
  if as_json:
    print(json.dumps(_plain(result), allow_nan=False))
  elif hasattr(result, '__rich__'):
    _print_rich(result)
  else:
    _print_table(result)


def _plain(value: Any) -> Any:
  """A result as JSON has it: arrays as lists, what is not finite as null."""
  if isinstance(value, Mapping):
    return {str(name): _plain(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _print_rich(result: Any) -> None:
  from rich.console import Console

  # What is piped has no width of its own.
  width = None if sys.stdout.isatty() else 200
  Console(file=sys.stdout, highlight=False, width=width).print(result)


def _print_table(result: Mapping[str, Any]) -> None:
  from rich.console import Console
  from rich.table import Table

  table = Table(box=None, show_header=False)
  for name, value in _flat(_plain(result)):
    table.add_row(name, f'{value:.6g}' if isinstance(value, float) else str(value))
  Console(file=sys.stdout, soft_wrap=True).print(table)


def _flat(result: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in result.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{name}/')
    else:
      yield prefix + name, value


# Help, which imports nothing


def _overview(commands: Mapping[str, Command]) -> str:
  width = max(map(len, commands))
  rows = '\n'.join(f'  {name:{width}}  {command.summary}' for name, command in commands.items())
  return f"""dro_jax COMMAND [--gin_file=F ...] [--gin.NAME=VALUE ...] [--set NAME=VALUE ...] [flags]

Commands (`dro_jax COMMAND --help` lists the flags and settings of one):
{rows}

Exit codes: 0 done, 1 failed, 2 bad usage or bad data, 75 stopped by a signal after saving."""


def _command_help(name: str, command: Command) -> str:
  text = default_text(name)
  taken = {flag: about for flag, about in FLAGS.items() if f'%{about.macro}' in text or not text}
  flag_rows = ''.join(f'  --{flag:22} {about.help}\n' for flag, about in taken.items())
  return f"""dro_jax {name}: {command.summary}

{flag_rows}  --set NAME=VALUE         a setting: a number, true, a word (a configurable's name, else text)
  --gin_file=F             a gin file, of yours or of {GIN_CONFIGS}
  --gin.NAME=VALUE         any gin binding, in gin's own syntax
  --json                   the result as one JSON object on standard output
{_settings(text)}"""


def default_text(name: str) -> str:
  """A command's own gin file, if it has one, with what it includes in place."""
  path = GIN_CONFIGS / 'runs' / f'{name}.gin'
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  included = lambda match: (GIN_CONFIGS / match[1]).read_text(encoding='utf-8')  # noqa: E731
  return re.sub(r"^include '(.*)'$", included, text, flags=re.MULTILINE)


def _settings(text: str) -> str:
  macros = re.findall(r'^([A-Z][A-Z0-9_]*) *= *(.*?) *(?:# *(.*))?$', text, re.MULTILINE)
  # What includes others' defaults may say its own after them.
  last = {name: (value, meaning) for name, value, meaning in macros}
  rows = ''.join(f'  {name + "=" + value:32} {meaning}\n' for name, (value, meaning) in last.items())
  return f'\nSettings and their defaults:\n{rows}' if rows else ''


def _listed(names: Iterable[str]) -> str:
  return ', '.join(names)


if __name__ == '__main__':
  run()
