"""What adapters save in memory and in time, and which of their factors should start at 0.

  JAX_PLATFORMS=cpu python benchmarks/adapters.py memory [--layers 30] [--json]
  JAX_PLATFORMS=cpu python benchmarks/adapters.py seconds [--layers 6] [--rounds 5] [--json]
  JAX_PLATFORMS=cpu python benchmarks/adapters.py zero [--steps 60] [--json]

memory: a DRO-V step of SmolLM2-135M's shape (16 rows of 64 + 64 tokens, layers recomputed, bfloat16
activations), compiled and not run, as XLA allocates it: arguments (the state and the rows) and temporaries.
seconds: the same step in float32, with nothing computed again, run in turn on weights of 0.
zero: DPO's loss of a tiny model after some steps of AdamW, for nine learning rates and three orders of four
devices, with A = 0 and with B = 0 at the start; log 2 is where it starts. The best rate of each has a star.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import steps
import timing
from flax import linen as nn

from dro_jax import algorithms
from dro_jax.models import lora, scoring
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.lora import Lora
from dro_jax.models.policy import make_network, smallest_rows
from dro_jax.parallel import partitioning
from dro_jax.run import networks
from dro_jax.step import optimizers, train_step
from dro_jax.step import reference as references
from dro_jax.step import state as train_state
from dro_jax.types import Units

SMOLLM2 = CausalConfig(
  vocab_size=49152, emb_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536, num_layers=30,
  logits_via_embedding=True, scan_layers=True, remat=True, dtype='bfloat16',
)  # fmt: skip
CASES: dict[str, tuple[Lora | None, str]] = {
  'all parameters': (None, 'copied'),
  'adapters, a copied reference': (Lora(rank=16), 'copied'),
  'adapters, adapter off': (Lora(rank=16), 'off'),
  '  base in bfloat16': (Lora(rank=16, base_kernels='bfloat16'), 'off'),
  '  base in int8': (Lora(rank=16, base_kernels='int8'), 'off'),
  '  base in nf4': (Lora(rank=16, base_kernels='nf4'), 'off'),
}


def step_and_state(
  config: CausalConfig, settings: Lora | None, kind: str
) -> tuple[Any, train_state.TrainState]:
  """A DRO-V step, and its state's shapes, with the reference copied whole or the adapter switched off."""
  algorithm = algorithms.dro_v()
  nets = networks.build(config, uses_value=True, lora=settings)
  score = scoring.make_score(nets.policy)
  txs = {'policy': optimizers.adamw(), 'value': optimizers.adamw()}
  kept = lambda state, rows: jax.lax.stop_gradient(score({'policy': state.reference}, rows))  # noqa: E731
  copied = references.Frozen().build(score)._replace(scores=kept)
  reference = copied if kind == 'copied' else references.AdapterOff().build(score)
  whole = nn.unbox(networks.abstract_params(nets._replace(lora=None)))['policy']

  def state(params: Any, whole: Any) -> train_state.TrainState:
    made = train_state.create(params, txs, False, algorithm.statistics)
    return made._replace(reference=whole if kind == 'copied' else None)

  abstract = jax.eval_shape(state, nn.unbox(networks.abstract_params(nets)), whole)
  if settings is not None:
    abstract = abstract._replace(base=nn.unbox(networks.abstract_base(nets)))
  step = train_step.make_train_step(
    scoring.make_score(nets.policy, nets.value, chunk_size=64), algorithm, txs, reference
  )
  return step, abstract


def memory(options: argparse.Namespace) -> dict[str, dict[str, int]]:
  """Bytes of arguments and of temporaries of the compiled step, by case."""
  config = SMOLLM2.__class__(**{**SMOLLM2.__dict__, 'num_layers': options.layers})
  rows = steps.for_algorithm(steps.full_rows(config, 16, 64, 64), algorithms.dro_v())
  rows, found = steps.shapes(rows._replace(token_columns={})), {}
  for name, (settings, kind) in CASES.items():
    step, state = step_and_state(config, settings, kind)
    used = jax.jit(step, donate_argnums=0).lower(state, rows).compile().memory_analysis()
    found[name] = {'arguments': used.argument_size_in_bytes, 'temporaries': used.temp_size_in_bytes}
  return found


def seconds(options: argparse.Namespace) -> dict[str, dict[str, float]]:
  """The median seconds of the step by case, and its ratio to that with the adapter off."""
  changes = {'num_layers': options.layers, 'scan_layers': False, 'remat': False, 'dtype': 'float32'}
  config = SMOLLM2.__class__(**{**SMOLLM2.__dict__, **changes})
  rows = steps.for_algorithm(steps.full_rows(config, 16, 64, 64), algorithms.dro_v())
  rows, calls = jax.device_put(rows._replace(token_columns={})), {}
  for name, (settings, kind) in CASES.items():
    step, abstract = step_and_state(config, settings, kind)
    calls[name] = _call(jax.jit(step, donate_argnums=0), abstract, rows)
  found = timing.interleaved(calls, options.rounds)
  off = found['adapters, adapter off']
  return {
    name: {'seconds': statistics.median(each), **timing.ratio(each, off)} for name, each in found.items()
  }


def _call(jitted: Any, abstract: train_state.TrainState, rows: Any) -> Callable[[], None]:
  # Weights of 0 take as long as others.
  held = [jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)]

  def call() -> None:
    held[0], _ = jitted(held[0], rows)
    jax.block_until_ready(held[0])

  return call


# --- the factor that starts at 0 ----------------------------------------------------------------------------

TINY = CausalConfig(
  vocab_size=64, emb_dim=64, num_heads=4, head_dim=16, mlp_dim=128, num_layers=2, logits_via_embedding=True,
  scan_layers=True,
)  # fmt: skip
RATES = tuple(10.0**exponent for exponent in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0))
ORDERS = ((0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0))
PAIRS = 32


def pairs(seed: int, batches: int) -> Any:
  """Batches of pairs: most tokens of the chosen response are of the vocabulary's lower half."""
  rng = np.random.default_rng(seed)
  rows = steps.full_rows(TINY, 2 * PAIRS * batches, 8, 8)
  rows = rows._replace(mismatched=None, token_columns={}, columns={})
  prompts, responses = np.repeat(rows.prompt_tokens[::2], 2, axis=0), rows.response_tokens
  chosen = (np.arange(len(prompts)) % 2 == 0)[:, None] & (rng.random(responses.shape) < 0.8)
  rows = rows._replace(prompt_tokens=prompts, response_tokens=np.where(chosen, responses // 2, responses))
  cut = jax.tree.map(lambda x: jnp.asarray(x).reshape(batches, 2 * PAIRS, *x.shape[1:]), rows)
  index = jnp.broadcast_to(jnp.arange(2 * PAIRS).reshape(1, PAIRS, 2), (batches, PAIRS, 2))
  return cut._replace(units=Units(index, jnp.ones(index.shape, bool)))


def make_losses(zero: str, order: tuple[int, ...]) -> Any:
  """Returns `losses(batches, learning rate, seed)`: DPO's loss of every step, on devices in this order."""
  algorithm, settings = algorithms.dpo(), Lora(rank=8, alpha=16, zero=zero)
  score = scoring.make_score(make_network(TINY))
  reference = references.AdapterOff().build(score)
  mesh = partitioning.make_mesh(devices=[jax.devices()[i] for i in order])
  own = lora.abstract_adapter(
    jax.eval_shape(make_network(TINY).init, jax.random.key(0), smallest_rows())['params'], settings
  )

  def losses(batches: Any, rate: Any, seed: Any) -> Any:
    txs = {'policy': optax.chain(optax.scale_by_adam(), optax.scale(-rate))}
    step = train_step.make_train_step(score, algorithm, txs, reference)
    base = nn.unbox(make_network(TINY).init(jax.random.key(7), smallest_rows())['params'])
    # A base of larger weights than at its start, or all logits would be nearly alike.
    base = jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, base)
    params = {'policy': lora.init_adapter(own, jax.random.key(seed), zero)}
    state = train_state.create(params, txs, False, algorithm.statistics)
    state = state._replace(base=lora.Base({'params': base}, settings.scale))

    def one(state: Any, rows: Any) -> tuple[Any, Any]:
      state, output = step(state, rows)
      return state, output.metrics['loss']

    return jax.lax.scan(one, state, batches)[1]

  compiled = partitioning.jit_on(mesh, losses)
  where = jax.sharding.NamedSharding(mesh.mesh, jax.sharding.PartitionSpec(None, ('data', 'fsdp')))
  whole = partitioning.replicated(mesh)

  def placed(batches: Any) -> Any:
    rows = jax.device_put(batches._replace(units=None), where)
    return rows._replace(units=jax.device_put(batches.units, whole))

  return lambda batches, rate, seed: compiled(placed(batches), rate, seed)


def zero(options: argparse.Namespace) -> dict[str, Any]:
  """The mean loss of the last ten steps: by factor and learning rate, one for each order of devices."""
  batches, found = pairs(0, options.steps), {}
  for factor in 'ba':
    runs = [make_losses(factor, order) for order in ORDERS]
    found[factor] = {
      rate: [float(np.mean(run(batches, rate, seed)[-10:])) for seed, run in enumerate(runs)]
      if options.seeds
      else [float(np.mean(run(batches, rate, 0)[-10:])) for run in runs]
      for rate in RATES
    }
  return found


def show_memory(found: dict[str, dict[str, int]]) -> None:
  for name, one in found.items():
    total = sum(one.values())
    parts = '  '.join(f'{part} {size / 2**20:7.0f} MiB' for part, size in one.items())
    print(f'{name:30} {parts}  together {total / 2**20:7.0f} MiB')


def show_seconds(found: dict[str, dict[str, float]]) -> None:
  for name, one in found.items():
    print(f'{name:30} {one["seconds"]:6.2f} s  {one["median"]:5.2f} x ({one["low"]:.2f}-{one["high"]:.2f})')


def show_zero(found: dict[str, Any]) -> None:
  print(f'DPO loss at the end, by order of the devices; at the start {math.log(2):.4f}')
  for factor, by_rate in found.items():
    best = min(by_rate, key=lambda rate: np.mean(np.nan_to_num(by_rate[rate], nan=math.inf)))
    for rate, losses in by_rate.items():
      star = ' *' if rate == best else ''
      print(f'{factor.upper()} = 0  rate {rate:8.2g}  ' + '  '.join(f'{loss:8.4f}' for loss in losses) + star)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('what', choices=('memory', 'seconds', 'zero'))
  parser.add_argument('--layers', type=int, default=30)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=60)
  parser.add_argument('--seeds', action='store_true', help='another seed of the adapter with each order')
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  if options.what == 'zero':
    jax.config.update('jax_num_cpu_devices', len(ORDERS[0]))
  found, show = {
    'memory': (memory, show_memory), 'seconds': (seconds, show_seconds), 'zero': (zero, show_zero)
  }[options.what]  # fmt: skip
  measured = found(options)
  print(json.dumps(measured)) if options.json else show(measured)


if __name__ == '__main__':
  main()
