"""Differences between two configurations."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.configs.settings import Setting, settings
from dro_jax.configs.text import Config, is_same, split


class Difference(NamedTuple):
  """A setting that is not the same in two configurations.

  Attributes:
    name: SCOPE/CONFIGURABLE.PARAMETER.
    then, now: values; None where no binding is known.
    macro: the macro to which it is bound in both; None if there is none.
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
  """Settings that both runs read and that differ.

  A setting that only one of them reads follows from another difference, so it is left out. Where no root is
  bound, or a user's modules may read settings, all settings count.

  Args:
    then: a configuration.
    now: another.
    roots: the configurables that a run calls.
    defaults: of unbound parameters, for each of the two.
  """
  bound = {split(name)[1] for config in (then, now) for name in config.last}
  every = (
    then.own_modules or now.own_modules or not any(is_same(root, name) for root in roots for name in bound)
  )
  a, b = (settings(config, roots, known, every) for config, known in zip((then, now), defaults))
  keys = [key for key in {**a, **b} if every or (key in a and key in b)]
  pairs = (_difference(key, name, a, b) for key in keys for name in {**a.get(key, {}), **b.get(key, {})})
  return [difference for difference in pairs if difference.then != difference.now]


def _difference(key: str, name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
  then, now = (settings_of.get(key, {}).get(name, Setting(None)) for settings_of in (a, b))
  macro = then.macro if then.macro == now.macro else None
  return Difference(f'{key}.{name}', then.value, now.value, macro)
