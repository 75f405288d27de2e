"""Which algorithms some data admits: each is asked itself, as a run would ask it before its first step."""

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
  """Whether data admits an algorithm.

  Attributes:
    method: the algorithm's name, for `--set ALGORITHM=`.
    admitted: whether it can learn from the data, with `settings`.
    settings: NAME=VALUE each, that it needs beside its name.
    reason: why not, and what to do.
    units: how many pairs or groups there are to train on, where it learns from such.
  """

  method: str
  admitted: bool
  settings: tuple[str, ...] = ()
  reason: str = ''
  units: Mapping[str, Any] | None = None


class _Variant(NamedTuple):
  """One way to make an algorithm, and the settings that say so."""

  make: Callable[[], algorithms.Algorithm]
  settings: tuple[str, ...] = ()


def methods() -> dict[str, Callable[..., algorithms.Algorithm]]:
  """What can be named as a run's algorithm, and trains a policy."""
  public = {name: getattr(algorithms, name) for name in algorithms.__all__}
  made = {name: f for name, f in public.items() if _returns(f) is algorithms.Algorithm}
  return {name: f for name, f in made.items() if f().trains_policy}


def admissions(
  triplets: Triplets,
  *,
  scaling: str = 'none',
  rewards_problem: str | None = None,
) -> list[Admission]:
  """Every algorithm's answer; pairs and groups are formed as by default.

  One that refuses the data as it is by default is asked again with its other labels, baselines or quantiles,
  and with the other scalings of rewards.

  Args:
    triplets: of which both tables hold all that the files have.
    scaling: of the rewards, to be tried first.
    rewards_problem: why rewards cannot be read, if they cannot.
  """
  form = functools.cache(lambda unit: _formed(triplets, unit))  # Slow, and alike for many.
  scaled = functools.cache(lambda kind: _scaled(triplets, kind))
  kinds = [scaling, *(kind for kind in scalings.KINDS if kind != scaling)]
  kinds = kinds[:1] if rewards_problem else kinds

  def ask(algorithm: algorithms.Algorithm, kind: str) -> Mapping[str, Any] | None:
    if rewards_problem and algorithm.uses_rewards:
      raise UsageError(rewards_problem)
    batches.admitted(scaled(kind), algorithm)
    return _or_raise(form(algorithm.unit)) if algorithm.unit in ('pair', 'group') else None

  return [_admission(name, make, kinds, ask) for name, make in methods().items()]


def _admission(name: str, make: Callable, kinds: Sequence[str], ask: Callable) -> Admission:
  """The first variant that is not refused; else why the algorithm as it is by default is."""
  reason = ''
  for kind, variant in itertools.product(kinds, _variants(name, make)):
    algorithm = variant.make()
    try:
      found = ask(algorithm, kind)
    except UsageError as error:
      reason = reason or str(error)
      continue
    changed = () if kind == kinds[0] else (f'REWARD_SCALING={kind}',)
    return Admission(name, True, (*variant.settings, *changed, *_settings(algorithm)), units=found)
  return Admission(name, False, reason=reason)


def _settings(algorithm: algorithms.Algorithm) -> tuple[str, ...]:
  """What an algorithm asks of a run, not of the data."""
  readout = ('VALUE_READOUT=token',) if algorithm.uses_token_values else ()
  return (*readout, *(('REWARD=FUNCTION',) if algorithm.online else ()))


def _variants(name: str, make: Callable[..., algorithms.Algorithm]) -> Iterator[_Variant]:
  """An algorithm by default, and with each other maker of labels, baselines or quantiles that fits in."""
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


def _returns(function: Callable) -> Any:
  return inspect.signature(function).return_annotation


def _scaled(triplets: Triplets, kind: str) -> Triplets:
  fitted = scalings.fit(kind, triplets.train.raw_rewards, triplets.train.prompt_index)
  held_out = triplets.eval and triplets.eval.scaled(fitted)
  return triplets._replace(train=triplets.train.scaled(fitted), eval=held_out, scaling=fitted)


def _formed(triplets: Triplets, unit: str) -> Mapping[str, Any] | UsageError:
  """The report of the pairs or groups to train on, or why there are none there or among those held out."""
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


def _or_raise(found: Mapping[str, Any] | UsageError) -> Mapping[str, Any]:
  if isinstance(found, UsageError):
    raise found
  return found
