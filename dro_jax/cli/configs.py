"""The command `configs`: list, show, diff."""

import functools
from collections.abc import Mapping, Sequence

from absl import flags

from dro_jax.cli import configs_command, tables
from dro_jax.cli.bindings import command_line_bindings, configure, known_parameters, register
from dro_jax.cli.checks import how_to_set
from dro_jax.cli.tables import Command
from dro_jax.configs import files as config_files
from dro_jax.configs import parameters, settings, text
from dro_jax.errors import UsageError, did_you_mean
from dro_jax.printing import result


def answer_configs(values: flags.FlagValues, commands: Mapping[str, Command]) -> result.Sections:
  """`configs list`, `configs show` and `configs diff`."""
  arguments, values['words'].value = values['words'].value, []
  subcommand, *rest = arguments or ['']
  subcommands = ('list', 'show', 'diff')
  if subcommand not in subcommands:
    hint = (
      f', and {subcommand!r} is none of them{did_you_mean(subcommand, subcommands)}' if subcommand else ''
    )
    raise UsageError(
      f'configs needs a subcommand, list, show or diff{hint}: pass list [FOLDER], '
      'show COMMAND|MODEL_DIR|FILE, or diff A B.'
    )
  if subcommand == 'show':
    return _show(rest, values, commands)
  _refuse_settings(values)
  if subcommand == 'list':
    summaries = {name: command.summary for name, command in commands.items()}
    return configs_command.listed(tables.GIN_CONFIGS, rest, summaries)
  return configs_command.compared(
    tables.GIN_CONFIGS, rest, commands, functools.partial(_parameters_of_runs, commands)
  )


def _show(
  arguments: Sequence[str], values: flags.FlagValues, commands: Mapping[str, Command]
) -> result.Sections:
  if len(arguments) != 1:
    raise UsageError(
      f'configs show takes one command, folder or file, not {len(arguments)}: `dro_jax configs show train`'
    )
  [name] = arguments
  if name in commands and not commands[name].own:
    configure(name, commands[name], values, complete=False)
    bindings = _sources(name, values)
    return configs_command.shown(bindings, [commands[name].function], known_parameters(), how_to_set)
  _refuse_settings(values)
  bindings = configs_command.bindings_of(tables.GIN_CONFIGS, name, commands)
  return configs_command.shown(bindings, settings.ROOTS, {}, how_to_set)


def _sources(name: str, values: flags.FlagValues) -> list[text.Binding]:
  """Every binding of a command line, in the order of gin, with its origin."""
  paths = [tables.GIN_CONFIGS / 'runs' / f'{name}.gin']
  paths = [path for path in paths if path.exists()]
  paths += [config_files.find(file, tables.GIN_CONFIGS) for file in values['gin_file'].value]
  bindings = [binding for path in paths for binding in config_files.read_file(path, tables.GIN_CONFIGS)]
  for typed, line in command_line_bindings(values):
    bindings += [binding._replace(origin=typed) for binding in text.read(line, typed)]
  return bindings


def _parameters_of_runs(commands: Mapping[str, Command]) -> dict[str, dict[str, parameters.Parameter]]:
  for command in commands.values():
    if command.function in settings.ROOTS:
      register(command)
  return known_parameters()


def _refuse_settings(values: flags.FlagValues) -> None:
  files = [f'--gin_file={file}' for file in values['gin_file'].value]
  for typed in [*files, *(typed for typed, _ in command_line_bindings(values))]:
    raise UsageError(f'{typed}: a setting needs a command: pass `dro_jax configs show train {typed}`')
