"""Who competes in the suites of text: a line for each method; `+kl3` adds next-token KL of weight 3."""

from collections.abc import Sequence

from dro_jax import algorithms as a
from dro_jax.arena.training import OPTIMIZERS, Method
from dro_jax.arena.trials import Grid, Range, Turns
from dro_jax.losses.groups import GROUP_VALUES
from dro_jax.run.spec import Value

# For rewards with variance 1. KTO's, BCO's and DPO's temperatures are in units of their own.
TAUS = Range(0.1, 0.3)


def methods(
  rates: Range, behaviour_sampler: str | None = None, optimizers: Sequence[str] = tuple(sorted(OPTIMIZERS))
) -> dict[str, Method]:
  """All methods that need triplets only, by name.

  Args:
    rates: learning rates, the same for all.
    behaviour_sampler: 'sampled' where the log's log-probs are known to be propensities.
    optimizers: names of `training.OPTIMIZERS`, tried in turn.
  """
  rate: Grid = {'learning_rate': rates, 'optimizer': Turns(tuple(optimizers))}

  def varied(temperatures: Range) -> Grid:
    return {'temperature': temperatures, **rate}

  def group(value: str) -> Method:
    return Method(lambda t: a.dro_group_value(tau=t, value=value), varied(TAUS))

  sampler = behaviour_sampler
  alone: dict[str, Method] = {
    'dro_v': Method(lambda t: a.dro_v(tau=t), varied(TAUS)),
    'dro_p': Method(lambda t: a.dro_p(tau=t), varied(TAUS)),
    **{f'dro_group_{value}': group(value) for value in GROUP_VALUES},
    'dro_v_binary': Method(lambda t: a.dro_v_binary(tau=t), varied(TAUS)),
    'kto': Method(lambda t: a.kto(beta=t), varied(Range(1.0, 5.0))),
    'kto_prompt': Method(lambda t: a.kto(beta=t, labels=a.prompt_mean_labels), varied(Range(1.0, 5.0))),
    'bco': Method(lambda t: a.bco(beta=t), varied(Range(0.2, 1.0))),
    'dpo': Method(lambda t: a.dpo(beta=t), varied(Range(0.3, 1.0))),
    'ipo': Method(lambda t: a.ipo(tau=t), varied(Range(0.3, 1.0))),
    'copg': Method(lambda t: a.copg(beta=t), varied(TAUS)),
    'agro': Method(lambda t: a.agro(beta=t), varied(TAUS)),
    'rloo': Method(lambda t: a.rloo(beta=t), varied(TAUS)),
    'reinforce': Method(lambda t: a.reinforce(beta=t), varied(TAUS)),
    'rebel': Method(lambda t: a.rebel(eta=1 / t, behaviour_sampler=sampler), varied(TAUS)),
    'topr': Method(lambda t: a.topr(behaviour_sampler=sampler), rate),
    'oreo': Method(lambda t: a.oreo(beta=t), varied(TAUS), Value('token')),
    'filtered_sft': Method(lambda t: a.filtered_sft(), rate),
    'rft': Method(lambda t: a.rft(), rate),
  }
  return {
    **alone,
    'dro_v+kl1': _held(alone['dro_v'], 1.0),
    'dro_v+kl3': _held(alone['dro_v'], 3.0),
    'kto+kl.3': _held(alone['kto'], 0.3),
    'dpo+kl.3': _held(alone['dpo'], 0.3),
  }


def _held(method: Method, weight: float) -> Method:
  """The method with next-token KL, in multiples of its temperature."""
  return method._replace(algorithm=lambda t: a.with_next_token_kl(method.algorithm(t), weight))


__all__ = ['TAUS', 'methods']
