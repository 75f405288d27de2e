"""The page of a run's settings, from the classes and functions that a run is made of.

Fields, types, meanings and effects are those of the code. `runs/train.gin` gives fields the names of their
settings, and the defaults of the command line.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import optax

from dro_jax.cli import bindings, registry, tables
from dro_jax.configs import effects, files, parameters, text
from dro_jax.recipes.train import train
from dro_jax.run.spec import RunSpec

# The modules of the functions that make a field of RunSpec.
MAKERS = {
  'data': 'dro_jax.data.triplets',
  'algorithm': 'dro_jax.algorithms',
  'optimizers': 'dro_jax.step.optimizers',
}
ON_RESUME = {'numbers': 'refused', 'place': 'same contents', 'compared': 'same result'}
HEAD = ('setting', 'field', 'default', 'meaning', 'on resume')


class Field(NamedTuple):
  """A field of a dataclass, or a parameter of a function."""

  owner: Callable[..., Any]
  name: str

  @property
  def annotation(self) -> Any:
    return inspect.signature(self.owner).parameters[self.name].annotation

  @property
  def known(self) -> parameters.Parameter:
    return parameters.parameters(self.owner)[self.name]

  @property
  def on_resume(self) -> str:
    return ON_RESUME.get(self.known.effect.kind, 'free')

  def __str__(self) -> str:
    return f'{self.owner.__name__}.{self.name}'


def page() -> str:
  """A section for `train` itself, and one for each field of RunSpec."""
  bindings.register(tables.COMMANDS['train'])
  config = text.collect(files.read_file(tables.GIN_CONFIGS / 'runs/train.gin', tables.GIN_CONFIGS))
  owners = {name: registry.unwrapped(name) for name in bindings.known_parameters()}
  parts = _parts_of(RunSpec)
  settings = _bound(config, owners, parts) | _unbound(config, owners, parts)
  titles = {'train': 'The folder of the run, and tools that watch it'}
  titles |= {name: known.meaning for name, known in parameters.parameters(RunSpec).items()}
  lines = []
  for name, title in titles.items():
    own = {setting: fields for setting, fields in settings.items() if _section(fields[0], parts) == name}
    lines += [f'## {name}', '', f'{title[0].upper()}{_cell(title[1:])}'.rstrip('.') + '.', '']
    lines += _table(own, config)
  return '\n'.join(lines)


def _parts_of(owner: type, field: str = '') -> dict[type, str]:
  """The dataclasses in a dataclass, each with the outermost field that it belongs to."""
  found: dict[type, str] = {}
  for each in dataclasses.fields(owner):
    for kind in filter(dataclasses.is_dataclass, parameters.parts(each.type)):
      found |= {kind: field or each.name} | _parts_of(kind, field or each.name)
  return found


def _bound(
  config: text.Config, owners: Mapping[str, Callable], parts: Iterable[type]
) -> dict[str, list[Field]]:
  """The fields to which train.gin gives a setting, by the setting: those of RunSpec's dataclasses first."""
  settings: dict[str, list[Field]] = {}
  for binding in config.last.values():
    _, owner, name = text.split(binding.name)
    if owner and (setting := text.macro_of(binding.value)):
      settings.setdefault(setting, []).append(Field(owners[owner], name))
  return {
    setting: sorted(fields, key=lambda field: field.owner not in parts)
    for setting, fields in settings.items()
  }


def _unbound(
  config: text.Config, owners: Mapping[str, Callable], parts: Iterable[type]
) -> dict[str, list[Field]]:
  """All other fields of RunSpec's dataclasses, by the name that gin has for each."""
  found = {}
  for gin_name, owner in owners.items():
    for name, effect in effects.effects(owner).items() if owner in parts else ():
      if effect is not effects.PARTS and f'{gin_name}.{name}' not in config.last:
        found[f'{gin_name}.{name}'] = [Field(owner, name)]
  return found


def _section(field: Field, parts: Mapping[type, str]) -> str:
  if field.owner in (train, RunSpec):
    return 'train' if field.owner is train else field.name
  made = (name for name, module in MAKERS.items() if field.owner.__module__.startswith(module))
  return parts.get(field.owner) or next(made)


def _table(settings: Mapping[str, list[Field]], config: text.Config) -> Iterator[str]:
  yield from (f'| {" | ".join(HEAD)} |', f'|{" --- |" * len(HEAD)}')
  for setting, fields in settings.items():
    yield f'| {" | ".join(_row(setting, fields, config))} |'
  yield ''


def _row(setting: str, fields: list[Field], config: text.Config) -> tuple[str, ...]:
  first, bound = fields[0], config.last.get(setting)
  default = bound.value.lstrip('@') if bound else first.known.default
  others = [field for field in fields if field.on_resume != first.on_resume]
  exceptions = f' ({", ".join(map(_code, others))}: {others[0].on_resume})' if others else ''
  return (
    _code(setting),
    f'{", ".join(dict.fromkeys(map(_code, fields)))}: {_code(_type(first.annotation))}',
    _code(default) + _other_default(default, first) if default else 'none',
    _cell(first.known.meaning or bound.meaning).rstrip('.'),
    first.on_resume + exceptions,
  )


def _other_default(default: str, field: Field) -> str:
  """The default in Python, where it is another plain value than the command line's."""
  own = field.known.default
  is_plain = dataclasses.is_dataclass(field.owner) and own is not None and not own.startswith('@')
  return f' (in Python {_code(own)})' if is_plain and own != default else ''


def _type(annotation: Any) -> str:
  plain = inspect.formatannotation(effects.plain(annotation))
  plain = plain.replace(inspect.formatannotation(optax.Schedule), 'Schedule')
  return re.sub(r'\b(?:\w+\.)+(?=\w)', '', plain).replace("Float[Array, '']", 'Array')


def _code(value: Any) -> str:
  return f'`{value}`'.replace('|', '\\|')


def _cell(value: str) -> str:
  return value.replace('|', '\\|').replace('<', '&lt;').replace('*', '\\*')
