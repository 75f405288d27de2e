"""Who competes in the `text` suite."""

from dro_jax import algorithms
from dro_jax.arena.methods import methods
from dro_jax.arena.training import Method
from dro_jax.arena.trials import Range

_ALL = methods(Range(3e-4, 1e-3), behaviour_sampler='sampled')
METHODS: dict[str, Method] = {
  **_ALL,
  # All right answers, and nothing else.
  'rft': _ALL['rft']._replace(algorithm=lambda t: algorithms.rft(threshold=1.0, share=1.0)),
}

USUAL = (
  'dro_v', 'dro_v+kl1', 'dro_v+kl3', 'dro_p', 'dro_group_mean', 'dro_group_leave_one_out_log_mean_exp', 'kto',
  'kto+kl.3', 'dpo', 'dpo+kl.3', 'copg', 'rft', 'filtered_sft', 'rloo', 'oreo',
)  # fmt: skip

__all__ = ['METHODS', 'USUAL']
