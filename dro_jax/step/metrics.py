"""Metrics of a step: scalars of its scores, losses, gradients and rows. Means are over valid responses."""

from collections.abc import Mapping

import jax.numpy as jnp
import optax

from dro_jax.names import NEXT_TOKEN_KL
from dro_jax.ops import masked
from dro_jax.types import Array, LossOutput, Params, Rows, Scores


def losses(terms: Mapping[str, Array]) -> dict[str, Array]:
  """The loss, and its parts by name (`loss/policy`, `loss/value`)."""
  return {'loss': sum(terms.values()), **{f'loss/{name}': value for name, value in terms.items()}}


# `statistics.agreement` has the same mean, spread and explained variance in numpy and float64. It resamples
# prompts of a whole table, and leaves out what is undefined. Here they are compiled into the step, over a
# sharded batch in float32, and 0 where undefined, since a number that is not finite would end the run.
# tests/step/test_metrics.py holds the two to each other.


def explained_variance(values: Array, rewards: Array, weights: Array) -> Array:
  """1 − Var(r − V) / Var(r): 1 for a perfect value, 0 for any constant; 0 where rewards do not vary."""
  varies, variance = masked.varies(rewards, weights), masked.weighted_variance(rewards, weights)
  unexplained = masked.weighted_variance(rewards - values, weights)
  return jnp.where(varies, 1 - unexplained / jnp.where(varies, variance, 1.0), 0.0)


def log_ratios(logps: Array, reference_logps: Array, valid: Array, ending: str = '') -> dict[str, Array]:
  """Statistics of ρ over a batch's responses (its mean is not a KL); `ending` ends their names."""
  rho_BR = logps - reference_logps
  return {
    f'log_ratio{ending}': masked.weighted_mean(rho_BR, valid),
    f'log_ratio_std{ending}': jnp.sqrt(masked.weighted_variance(rho_BR, valid)),
    f'log_ratio_max{ending}': jnp.max(jnp.where(valid, jnp.abs(rho_BR), 0.0)),
  }


def score_metrics(scores: Scores, reference: Scores | None, rows: Rows, ending: str = '') -> dict[str, Array]:
  """Statistics of one batch: reward, log-probs, log-ratio ρ, value, length, fill."""
  valid = rows.valid
  lengths_BR = masked.segment_sum(jnp.ones_like(scores.token_logps), rows.response_segments, valid.shape[1])
  result = {
    'responses': jnp.sum(valid).astype(jnp.float32),
    'reward': masked.weighted_mean(rows.rewards, valid),
    'reward_std': jnp.sqrt(masked.weighted_variance(rows.rewards, valid)),
    'logp': masked.weighted_mean(scores.logps, valid),
    'response_tokens': masked.weighted_mean(lengths_BR, valid),
    'prompt_fill': jnp.mean((rows.prompt_segments > 0).astype(jnp.float32)),
    'response_fill': jnp.mean((rows.response_segments > 0).astype(jnp.float32)),
    'tokens': jnp.sum(rows.prompt_segments > 0) + jnp.sum(rows.response_segments > 0),
  }
  if reference is not None:
    result |= log_ratios(scores.logps, reference.logps, valid, ending)
  if scores.values is not None:
    result['value'] = masked.weighted_mean(scores.values, valid)
    result['value_explained_variance'] = explained_variance(scores.values, rows.rewards, valid)
  return result


def norms(prefix: str, trees: Mapping[str, Params]) -> dict[str, Array]:
  """The global norm of every network's tree, by name."""
  return {f'{prefix}/{name}': optax.tree.norm(tree) for name, tree in trees.items()}


def nonfinite_ids(output: LossOutput, scalars: Mapping[str, Array], rows: Rows) -> Array:
  """Ids `[N]` of examples whose loss is not finite, −1 elsewhere.

  All valid ids where only a scalar is not finite: a statistic of the batch, or the norm of a gradient or of
  updated parameters.
  """
  example_id, valid = rows.example_id.reshape(-1), rows.valid.reshape(-1)
  nonfinite = jnp.zeros_like(valid)
  for name, term in output.terms.items():
    wrong = ~jnp.isfinite(term.per_example)
    if rows.units is None or name == NEXT_TOKEN_KL:
      nonfinite |= valid & wrong
    else:
      nonfinite = nonfinite.at[rows.units.index].max(rows.units.mask & wrong[:, None])
  finite = jnp.all(jnp.isfinite(jnp.stack([jnp.asarray(value, jnp.float32) for value in scalars.values()])))
  nonfinite = jnp.where(~finite & ~jnp.any(nonfinite), valid, nonfinite)
  return jnp.where(nonfinite, example_id, -1)
