"""Steps of `train` on made-up rows, for the other files here to time and to count."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import linen as nn

from dro_jax import algorithms, names
from dro_jax.costs import flops
from dro_jax.models import scoring
from dro_jax.models.t5.config import T5Config
from dro_jax.parallel import partitioning
from dro_jax.run import networks
from dro_jax.step import optimizers, train_step
from dro_jax.step import reference as step_reference
from dro_jax.step import state as train_state
from dro_jax.types import Mismatched, Rows

T5_LARGE = T5Config(
  vocab_size=32128, emb_dim=1024, num_heads=16, mlp_dim=2816, num_encoder_layers=24, num_decoder_layers=24,
  scan_layers=True,
)  # fmt: skip


def slice_of(config: T5Config, layers: int = 1) -> T5Config:
  """A T5 of few layers, with as much less vocabulary: every part keeps its share of the FLOPs."""
  share = layers / config.num_decoder_layers
  return dataclasses.replace(
    config, num_encoder_layers=layers, num_decoder_layers=layers,
    vocab_size=round(config.vocab_size * share / 64) * 64, scan_layers=False,
  )  # fmt: skip


class Subject(NamedTuple):
  """A step and what makes its first state."""

  step: Callable[[train_state.TrainState, Rows], Any]
  state: Callable[[], train_state.TrainState]

  def flops(self, rows: Rows) -> float:
    """Of one step, by `dro_jax.costs.flops`."""
    return flops.count(self.step, jax.eval_shape(self.state), shapes(rows))


def make(
  config: T5Config,
  algorithm: algorithms.Algorithm,
  *,
  cached: bool = False,
  chunk_size: int | None = None,
  value: Mapping[str, Any] = {},
  optimizer: Callable[[], optax.GradientTransformation] = optimizers.adamw,
) -> Subject:
  """The step that `train` makes of these settings; `value` as `run.networks.build` takes it."""
  nets = networks.build(config, uses_value=algorithm.uses_value, **value)
  direction = algorithm.kl_direction
  score = scoring.make_score(nets.policy, nets.value, chunk_size=chunk_size, kl_direction=direction)
  txs = {'policy': optimizer()} | ({'value': optimizer()} if algorithm.uses_value else {})
  reference = None
  if algorithm.uses_reference:
    scored = scoring.make_score(nets.policy, chunk_size=chunk_size, keeps_states=direction is not None)
    reference = (step_reference.Cached('rows bring it') if cached else step_reference.Frozen()).build(scored)

  def state() -> train_state.TrainState:
    params = nn.unbox(networks._init(nets, jax.random.key(0)))
    is_kept = reference is not None and reference.is_kept
    return train_state.create(params, txs, is_kept, algorithm.statistics)

  return Subject(train_step.make_train_step(score, algorithm, txs, reference), state)


def compiled(subject: Subject, rows: Rows) -> Callable[[], None]:
  """The step as `train` compiles it (state donated), to be called again and again on the same rows."""
  mesh = partitioning.make_mesh()
  # All in one place from the start, or the second call would compile again.
  where = partitioning.replicated(mesh)
  rows, held = jax.device_put(rows, where), [jax.jit(subject.state, out_shardings=where)()]
  jitted = jax.jit(
    subject.step, donate_argnums=0, out_shardings=where, compiler_options=partitioning.COMPILER_OPTIONS
  )

  def run() -> None:
    with partitioning.use_mesh(mesh):
      held[0], _ = jitted(held[0], rows)
    jax.block_until_ready(held[0])

  return run


def full_rows(config: T5Config, batch: int, prompt_length: int, response_length: int) -> Rows:
  """Rows of one prompt and one response each, full to the last token, with all that any algorithm reads."""
  rng = np.random.default_rng(0)

  def side(length: int) -> tuple[np.ndarray, ...]:
    shape = batch, length
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    return rng.integers(2, config.vocab_size, shape, dtype=np.int32), np.ones(shape, np.int32), positions

  responses = *side(response_length), np.ones((batch, response_length), np.int32)
  valid = np.ones((batch, 1), bool)
  logps = np.zeros((batch, response_length), np.float32)
  return Rows(
    *side(prompt_length), *responses, rewards=rng.normal(size=(batch, 1)).astype(np.float32),
    example_id=np.arange(batch, dtype=np.int32)[:, None], valid=valid,
    columns={names.MISMATCHED_LOGPS: logps[:, :1]}, token_columns={names.TOKEN_LOGPS: logps},
    mismatched=Mismatched(*(np.roll(x, 1, axis=0) for x in responses), valid),
  )  # fmt: skip


def for_algorithm(rows: Rows, algorithm: algorithms.Algorithm) -> Rows:
  """Rows as the loader brings them: with what is derived, and mismatched pairs if they are read."""
  columns = dict(rows.columns) | {
    name: np.zeros(rows.rewards.shape, np.float32) for name in algorithm.columns
  }
  return rows._replace(columns=columns, mismatched=rows.mismatched if algorithm.uses_mismatched else None)


def shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
