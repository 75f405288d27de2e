"""Registers configurables with gin, reads the bindings of a command line and its files, and records them."""

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gin
from absl import flags

from dro_jax.cli import tables
from dro_jax.cli.checks import (
  refuse_settings_of_other_algorithms,
  refuse_undefined_macros,
  refuse_unread_settings,
  refuse_unused_macros,
  refuse_wrong_types,
)
from dro_jax.cli.own_algorithm import register_own_algorithm
from dro_jax.cli.registry import configurable_names, defined_macros, unwrapped
from dro_jax.cli.tables import Command
from dro_jax.cli.values import flag_value, gin_line
from dro_jax.configs import files as config_files
from dro_jax.configs import parameters as configs_parameters
from dro_jax.configs.renamed import new_name
from dro_jax.configs.text import collect, read
from dro_jax.errors import UsageError, did_you_mean

# Gin names are public and stay when code moves. From the module that defines a configurable to the module
# under which gin files and command lines know it.
_GIN_MODULES = {
  'dro_jax.algorithms.next_token_kl': 'dro_jax.train',
  'dro_jax.arena.arena': 'dro_jax.arena.run',
  'dro_jax.arena.bandit.suite': 'dro_jax.arena.bandit',
  'dro_jax.arena.exact.suite': 'dro_jax.arena.exact',
  'dro_jax.arena.exact.world': 'dro_jax.arena.exact_world',
  'dro_jax.arena.human.suite': 'dro_jax.arena.human',
  'dro_jax.arena.text.suite': 'dro_jax.arena.text',
  'dro_jax.arena.text.worlds': 'dro_jax.arena.text',
  'dro_jax.checkpoints.export_checkpoint': 'dro_jax.exporters',
  'dro_jax.checkpoints.import_checkpoint': 'dro_jax.importers',
  'dro_jax.data.batches.groups': 'dro_jax.data.units',
  'dro_jax.data.triplets': 'dro_jax.data.tasks',
  'dro_jax.evaluation.answers': 'dro_jax.answers',
  'dro_jax.evaluation.check': 'dro_jax.check',
  'dro_jax.evaluation.evaluate': 'dro_jax.evaluate',
  'dro_jax.evaluation.export_split': 'dro_jax.export_split',
  'dro_jax.evaluation.generate': 'dro_jax.generate',
  'dro_jax.run.sampling.decoding': 'dro_jax.judge',
  'dro_jax.evaluation.judge.endpoint': 'dro_jax.judge',
  'dro_jax.evaluation.judge.judge': 'dro_jax.judge',
  'dro_jax.evaluation.report': 'dro_jax.report',
  'dro_jax.inspection.inspect': 'dro_jax.inspection',
  'dro_jax.models.causal.config': 'dro_jax.models.causal',
  'dro_jax.models.lora': 'dro_jax.train',
  'dro_jax.models.t5.config': 'dro_jax.models.t5',
  'dro_jax.models.t5gemma.config': 'dro_jax.models.t5gemma',
  'dro_jax.parallel.partitioning': 'dro_jax.partitioning',
  'dro_jax.preflight.preflight': 'dro_jax.preflight',
  'dro_jax.recipes.a_lol': 'dro_jax.a_lol',
  'dro_jax.recipes.build_table': 'dro_jax.build_table',
  'dro_jax.recipes.cache_reference': 'dro_jax.cache_reference',
  'dro_jax.recipes.fit_value': 'dro_jax.fit_value',
  'dro_jax.recipes.keep_answers': 'dro_jax.keep_answers',
  'dro_jax.recipes.make_comparisons': 'dro_jax.make_comparisons',
  'dro_jax.recipes.make_world': 'dro_jax.make_world',
  'dro_jax.recipes.reproduce.command': 'dro_jax.reproduce',
  'dro_jax.recipes.score': 'dro_jax.score',
  'dro_jax.recipes.train': 'dro_jax.train',
  'dro_jax.recipes.train_vocabulary': 'dro_jax.train_vocabulary',
  'dro_jax.run.batches': 'dro_jax.feeds',
  'dro_jax.run.sampling.rewards': 'dro_jax.rewards',
  'dro_jax.run.sampling.rollouts': 'dro_jax.online',
  'dro_jax.run.schedule': 'dro_jax.train',
  'dro_jax.run.spec': 'dro_jax.train',
  'dro_jax.step.optimizers': 'dro_jax.optimizers',
  'dro_jax.step.reference': 'dro_jax.reference',
}
# Classes that were functions once, and the names under which gin still knows them.
_GIN_NAMES = {
  'MeshSpec': 'make_mesh',
  'Frozen': 'frozen',
  'Cached': 'cached',
  'Soft': 'soft',
  'Hard': 'hard',
  'AdapterOff': 'adapter_off',
}


def configure(
  name: str, command: Command, values: flags.FlagValues, *, complete: bool = True
) -> Callable[..., Any]:
  """Applies every binding of the command line and its files, and returns the command, bound.

  With `complete`, refuses macros without a value.
  """
  function = register(command)
  gin.add_config_file_search_path(str(tables.GIN_CONFIGS))
  # Gin would take a folder runs/ of the current directory for a package, and look for runs/train.gin there.
  readers = gin.config._FILE_READERS
  readers[:] = [pair for pair in readers if pair[0] is not gin.resource_reader.system_path_reader]
  with gin.unlock_config():
    gin.clear_config()
    # A gin file may bind the parameters of a user's algorithm, so gin must know the algorithm first.
    for setting in values['set'].value:
      register_own_algorithm(setting)
    default = tables.GIN_CONFIGS / 'runs' / f'{name}.gin'
    if default.exists():
      _read(gin.parse_config_file, str(default), origin=str(default))
    origins = _read_files(values['gin_file'].value)
    for origin, line in command_line_bindings(values):
      if origin.startswith('--set'):
        print(f'gin: {line}', file=sys.stderr)
      _read(gin.parse_config, line, origin=origin)
      origins[line.partition('=')[0].strip()] = origin
    refuse_unused_macros(name, origins)
    refuse_wrong_types(origins)
    refuse_settings_of_other_algorithms(origins)
    if complete:
      refuse_undefined_macros(name, command.bare)
      refuse_unread_settings(name, origins)
      gin.finalize()
  return function


def register(command: Command) -> Callable[..., Any]:
  for entry in command.configurables:
    module, _, name = entry.partition(':')
    for public in [name] if name else _public_callables(module):
      _configurable(module, public)
  return _configurable(command.module, command.function)


def _public_callables(module_name: str) -> list[str]:
  """A module's `__all__`, else the names that it defines without a leading underscore."""
  module = importlib.import_module(module_name)
  defined = [name for name, value in vars(module).items() if getattr(value, '__module__', '') == module_name]
  names = getattr(module, '__all__', [name for name in defined if not name.startswith('_')])
  return [name for name in names if callable(getattr(module, name))]


@functools.cache
def _configurable(module: str, name: str) -> Callable[..., Any]:
  value = getattr(importlib.import_module(module), name)
  return gin.external_configurable(value, _GIN_NAMES.get(name, name), module=_GIN_MODULES.get(module, module))


def _read_files(files: Iterable[str]) -> dict[str, str]:
  """Reads gin files in order; returns the macros that they define, each with its file."""
  origins = {}
  for file in files:
    before = defined_macros()
    path = config_files.find(file, tables.GIN_CONFIGS)
    _read(gin.parse_config_file, str(path), origin=file)
    origins.update(dict.fromkeys(defined_macros() - before, file))
  return origins


def command_line_bindings(values: flags.FlagValues) -> Iterator[tuple[str, str]]:
  """Yields each argument as typed, and the gin line that it becomes."""
  for binding in values['gin_binding'].value:
    yield f'--gin.{binding.replace(" = ", "=", 1)}', binding
  for setting in values['set'].value:
    yield f'--set {setting}', gin_line(setting)
  for flag, about in tables.FLAGS.items():
    if texts := values[flag].value:
      text = ','.join(texts) if about.joined else texts[-1]
      yield f'--{flag}', f'{about.macro} = {flag_value(flag, about, text)}'


def _read(parse: Callable[[str], Any], source: str, *, origin: str) -> None:
  try:
    parse(source)
  except (ValueError, KeyError, TypeError, SyntaxError, ImportError, OSError) as error:
    lines = str(error).splitlines()
    if lines[0].startswith('malformed node'):
      lines[0] = f'{source.partition("=")[2].strip()} is not a valid gin value'
    bare = isinstance(error, SyntaxError) or 'is not a valid gin value' in lines[0]
    hint = ': quote strings, and write a configurable as @NAME (--set takes both bare)' if bare else ''
    place = '' if origin.startswith('--') else ' ' + ' '.join(line.strip() for line in lines[1:])
    raise UsageError(f'{origin}: {lines[0]}{_suggest(lines[0])}{hint}{place}') from error


def _suggest(message: str) -> str:
  """A did-you-mean for the name that gin does not know."""
  if match := re.search(r"doesn't have a parameter named '(\w+)'", message):
    configurable = re.search(r"Configurable '([\w.]+)'", message)[1]
    if renamed := new_name(f'{configurable}.{match[1]}'):
      return f' (it is called {renamed} now)'
    return did_you_mean(match[1], configs_parameters.parameters(unwrapped(configurable)))
  if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", message):
    return _other_commands(match[1]) or did_you_mean(match[1], configurable_names())
  return ''


def _other_commands(name: str) -> str:
  """Names the commands that take a configurable which this one lacks; '' if there are none."""
  owners = [
    command
    for command, about in tables.COMMANDS.items()
    if any(x.endswith(f':{name}') for x in about.configurables)
  ]
  return f' It belongs to other commands ({", ".join(owners)}): leave it out here.' if owners else ''


def recorded(root: str) -> Any:
  """The configuration that a run saves: all bindings, the used bindings, and the defaults of the rest.

  Returns a `run.folder.configs.Recorded`.
  """
  from dro_jax.run.folder.configs import Recorded  # Imports jax, which `--help` does without.

  bound = gin.config_str()
  config = collect(read(bound, 'config.gin'))
  known = known_parameters()
  texts = {
    'config.gin': bound,
    'operative_config.gin': gin.operative_config_str(),
    'defaults.gin': configs_parameters.defaults_text(config, [root], known),
  }
  return Recorded(texts, configs_parameters.effects_of(known))


def known_parameters() -> dict[str, dict[str, configs_parameters.Parameter]]:
  """The parameters of every configurable, by the shortest name that gin takes for it."""
  registry = gin.config._REGISTRY
  selectors = [selector for selector, _ in registry.items() if not selector.startswith('gin.')]
  known = {
    registry.minimal_selector(selector): configs_parameters.parameters(unwrapped(selector))
    for selector in selectors
  }
  for parameters in known.values():
    parameters.pop('configs', None)  # main.py passes it.
  return known
