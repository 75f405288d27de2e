"""What differs between two configurations."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.configs.settings import Setting, settings
from dro_jax.configs.text import Config, is_same, split


class Difference(NamedTuple):
  """A setting that is not the same in two configurations.

  Attributes:
    name: SCOPE/CONFIGURABLE.PARAMETER.
    then, now: values, None where nothing is known to be bound.
    macro: the macro that it is in both, if it is.
  """

  name: str
  then: str | None
  now: str | None
  macro: str | None


def differences(
  then: Config,
  now: Config,
  roots: Sequence[str],
  defaults: tuple[Mapping[str, Mapping[str, str | None]], ...] = ({}, {}),
) -> list[Difference]:
  """Settings that differ in what both runs read.

  What only one of them reads follows from a difference above it, so it is left out; but where no root is
  bound, or modules of one's own may read it, everything counts.

  Args:
    then: a configuration.
    now: another.
    roots: configurables that are called.
    defaults: of parameters that are not bound, for each of the two.
  """
  bound = {split(name)[1] for config in (then, now) for name in config.last}
  every = (
    then.own_modules or now.own_modules or not any(is_same(root, name) for root in roots for name in bound)
  )
  a, b = (settings(config, roots, known, every) for config, known in zip((then, now), defaults))
  keys = [key for key in {**a, **b} if every or (key in a and key in b)]
  found = (_difference(key, name, a, b) for key in keys for name in {**a.get(key, {}), **b.get(key, {})})
  return [difference for difference in found if difference.then != difference.now]


def _difference(key: str, name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
  then, now = (of.get(key, {}).get(name, Setting(None)) for of in (a, b))
  macro = then.macro if then.macro == now.macro else None
  return Difference(f'{key}.{name}', then.value, now.value, macro)
