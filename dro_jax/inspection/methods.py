"""Finds the algorithms that can learn from data, by the checks that a run makes before its first step."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from dro_jax import algorithms
from dro_jax.data import scaling as scalings
from dro_jax.data.batches import groups
from dro_jax.data.triplets import Triplets
from dro_jax.errors import UsageError
from dro_jax.run import batches


class Admission(NamedTuple):
  """Whether an algorithm can learn from the data.

  Attributes:
    method: the algorithm's name, for `--set ALGORITHM=`.
    admitted: whether it can learn from the data, with `settings`.
    settings: the settings that it needs besides its name, NAME=VALUE each.
    reason: why it cannot learn from the data, and what to pass.
    units: how many pairs or groups there are to train on; None for algorithms of single responses.
  """

  method: str
  admitted: bool
  settings: tuple[str, ...] = ()
  reason: str = ''
  units: Mapping[str, Any] | None = None


# From an algorithm and a scaling to its units, if it has any; raises where it cannot learn.
_Check = Callable[[algorithms.Algorithm, str], Mapping[str, Any] | None]


class _Variant(NamedTuple):
  """One way to make an algorithm, and the settings that say so."""

  make: Callable[[], algorithms.Algorithm]
  settings: tuple[str, ...] = ()


def methods() -> dict[str, Callable[..., algorithms.Algorithm]]:
  """The algorithms that train a policy, by name."""
  public = {name: getattr(algorithms, name) for name in algorithms.__all__}
  made = {name: f for name, f in public.items() if _returns(f) is algorithms.Algorithm}
  return {name: f for name, f in made.items() if f().trains_policy}


def admissions(
  triplets: Triplets,
  *,
  scaling: str = 'none',
  rewards_problem: str | None = None,
) -> list[Admission]:
  """Checks every algorithm against the data, with pairs and groups formed by default.

  Where the default of an algorithm refuses the data, tries its other labels, baselines or quantiles, and the
  other scalings of rewards.

  Args:
    triplets: with all records of the files.
    scaling: of the rewards, tried first.
    rewards_problem: the reason why rewards cannot be read; None if they can.
  """
  form = functools.cache(lambda unit: _formed(triplets, unit))  # Slow, and the same for many algorithms.
  scaled = functools.cache(lambda kind: _scaled(triplets, kind))
  kinds = [scaling, *(kind for kind in scalings.KINDS if kind != scaling)]
  kinds = kinds[:1] if rewards_problem else kinds

  def check(algorithm: algorithms.Algorithm, kind: str) -> Mapping[str, Any] | None:
    if rewards_problem and algorithm.uses_rewards:
      raise UsageError(rewards_problem)
    batches.admitted(scaled(kind), algorithm)
    return _or_raise(form(algorithm.unit)) if algorithm.unit in ('pair', 'group') else None

  return [_admission(name, make, kinds, check) for name, make in methods().items()]


def _admission(
  name: str, make: Callable[..., algorithms.Algorithm], kinds: Sequence[str], check: _Check
) -> Admission:
  """The first variant that can learn from the data; else the refusal of the default."""
  reason = ''
  for kind, variant in itertools.product(kinds, _variants(name, make)):
    algorithm = variant.make()
    try:
      units = check(algorithm, kind)
    except UsageError as error:
      reason = reason or str(error)
      continue
    changed = () if kind == kinds[0] else (f'REWARD_SCALING={kind}',)
    return Admission(name, True, (*variant.settings, *changed, *_settings(algorithm)), units=units)
  return Admission(name, False, reason=reason)


def _settings(algorithm: algorithms.Algorithm) -> tuple[str, ...]:
  """The settings that an algorithm needs whatever the data."""
  readout = ('VALUE_READOUT=token',) if algorithm.uses_token_values else ()
  return (*readout, *(('REWARD=FUNCTION',) if algorithm.online else ()))


def _variants(name: str, make: Callable[..., algorithms.Algorithm]) -> Iterator[_Variant]:
  """An algorithm by default, and with each other rule of labels, baselines or quantiles that fits it."""
  yield _Variant(make)
  public = [(other, getattr(algorithms, other)) for other in algorithms.__all__]
  for parameter in inspect.signature(make).parameters.values():
    if not callable(parameter.default):
      continue
    _, wanted = get_args(parameter.annotation)
    for other, part in public:
      if _returns(part) == wanted and part is not parameter.default:
        yield _Variant(
          functools.partial(make, **{parameter.name: part}), (f'{name}.{parameter.name}={other}',)
        )


def _returns(function: Callable[..., Any]) -> Any:
  return inspect.signature(function).return_annotation


def _scaled(triplets: Triplets, kind: str) -> Triplets:
  fitted = scalings.fit(kind, triplets.train.raw_rewards, triplets.train.prompt_index)
  held_out = triplets.eval and triplets.eval.scaled(fitted)
  return triplets._replace(train=triplets.train.scaled(fitted), eval=held_out, scaling=fitted)


def _formed(triplets: Triplets, unit: str) -> Mapping[str, Any] | UsageError:
  """The report of the pairs or groups to train on, or why the data, or its held-out part, has none."""
  part, options = '', groups.UnitOptions()
  try:
    options = groups.resolved(options, triplets.train) if unit == 'pair' else options
    report = groups.form(triplets.train, unit, options).report
    if triplets.eval is not None:
      part = 'of the responses held out: '
      groups.form(triplets.eval, unit, options)
    return report
  except UsageError as error:
    return UsageError(f'{part}{error}')


def _or_raise(report: Mapping[str, Any] | UsageError) -> Mapping[str, Any]:
  if isinstance(report, UsageError):
    raise report
  return report
