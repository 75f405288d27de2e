"""Who competes in the `text` suite: a line for each method; `+kl3` adds next-token KL of weight 3."""

from dro_jax import algorithms as a
from dro_jax.arena.training import OPTIMIZERS, Method
from dro_jax.arena.trials import Range, Turns
from dro_jax.losses.groups import GROUP_VALUES
from dro_jax.run.spec import Value

RATES = Range(3e-4, 1e-3)
# Of rewards with variance 1, for temperatures in reward units; KTO's and DPO's are in units of their own.
TAUS = Range(0.1, 0.3)

_RATE = {'learning_rate': RATES, 'optimizer': Turns(tuple(sorted(OPTIMIZERS)))}


def _varied(temperatures: Range) -> dict[str, Range | Turns]:
  return {'temperature': temperatures, **_RATE}


def _held(method: Method, weight: float) -> Method:
  """The method with next-token KL, in multiples of its temperature."""
  return method._replace(algorithm=lambda t: a.with_next_token_kl(method.algorithm(t), weight))


def _dro_group(value: str) -> Method:
  return Method(lambda t: a.dro_group_value(tau=t, value=value), _varied(TAUS))


_ALONE: dict[str, Method] = {
  'dro_v': Method(lambda t: a.dro_v(tau=t), _varied(TAUS)),
  'dro_p': Method(lambda t: a.dro_p(tau=t), _varied(TAUS)),
  **{f'dro_group_{value}': _dro_group(value) for value in GROUP_VALUES},
  'dro_v_binary': Method(lambda t: a.dro_v_binary(tau=t), _varied(TAUS)),
  'kto': Method(lambda t: a.kto(beta=t), _varied(Range(1.0, 5.0))),
  'kto_prompt': Method(lambda t: a.kto(beta=t, labels=a.prompt_mean_labels), _varied(Range(1.0, 5.0))),
  'bco': Method(lambda t: a.bco(beta=t), _varied(Range(0.2, 1.0))),
  'dpo': Method(lambda t: a.dpo(beta=t), _varied(Range(0.3, 1.0))),
  'ipo': Method(lambda t: a.ipo(tau=t), _varied(Range(0.3, 1.0))),
  'copg': Method(lambda t: a.copg(beta=t), _varied(TAUS)),
  'agro': Method(lambda t: a.agro(beta=t), _varied(TAUS)),
  'rloo': Method(lambda t: a.rloo(beta=t), _varied(TAUS)),
  'reinforce': Method(lambda t: a.reinforce(beta=t), _varied(TAUS)),
  'rebel': Method(lambda t: a.rebel(eta=1 / t, behaviour_sampler='sampled'), _varied(TAUS)),
  'topr': Method(lambda t: a.topr(behaviour_sampler='sampled'), _RATE),
  'oreo': Method(lambda t: a.oreo(beta=t), _varied(TAUS), Value('token')),
  'filtered_sft': Method(lambda t: a.filtered_sft(), _RATE),
  # All right answers, and nothing else.
  'rft': Method(lambda t: a.rft(threshold=1.0, share=1.0), _RATE),
}

METHODS: dict[str, Method] = {
  **_ALONE,
  'dro_v+kl1': _held(_ALONE['dro_v'], 1.0),
  'dro_v+kl3': _held(_ALONE['dro_v'], 3.0),
  'kto+kl.3': _held(_ALONE['kto'], 0.3),
  'dpo+kl.3': _held(_ALONE['dpo'], 0.3),
}

USUAL = (
  'dro_v', 'dro_v+kl1', 'dro_v+kl3', 'dro_p', 'dro_group_mean', 'dro_group_leave_one_out_log_mean_exp', 'kto',
  'kto+kl.3', 'dpo', 'dpo+kl.3', 'copg', 'rft', 'filtered_sft', 'rloo', 'oreo',
)  # fmt: skip
