"""One training step of dro_jax beside transformers' T5 in PyTorch and T5X's network, on this machine.

  python benchmarks/peers.py [--t5x=FOLDER] [--methods=sft,dro_v,kto] [--dtypes=float32,bfloat16] [--json]

All take the same step: the same T5 1.1, weights and batch, AdamW, one response a row, nothing padded. DRO-V
trains a policy and a value (an encoder) and scores a frozen reference; KTO decodes mismatched pairs on the
same encoder states, in the policy without a gradient. The losses of the first steps must agree before
anything is timed. Sides take turns within one process; see `timing` for what a ratio is.

T5X is not on PyPI: FOLDER is a checkout of github.com/google-research/t5x. Of it t5x/examples/t5/{network,
layers}.py are run in a plain JAX step with optax (t5x), and the step of its own trainer (t5x_trainer, SFT).
Two modules that T5X imports are not on PyPI either, airio and jestimator; a step uses neither, and empty
modules stand in for them. Its trainer also needs cached_property and fiddle.
"""

import argparse
import contextlib
import functools
import gc
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import timing
from arguments import pair

THREADS = len(os.sched_getaffinity(0))
LEARNING_RATE, TAU = 1e-4, 1.0
# Of the second step in float32: DRO-V's ρ² is 17,000 there, and torch's compiled step differs by 1.5e-4.
LOSS_TOLERANCE = {'float32': 5e-4, 'bfloat16': 3e-2}
STEPS_COMPARED = 2  # The second step's loss depends on every gradient and on the optimiser.


class Case(NamedTuple):
  """What every side is given: a method, sizes, weights as T5X names them, and rows."""

  method: str
  dtype: str
  config: Any
  params: Mapping[str, Any]
  rows: Any


Step = Callable[[], float]


# --- dro_jax ------------------------------------------------------------------------------------------------


def make_case(method: str, dtype: str, options: argparse.Namespace) -> Case:
  """Random weights and full rows, the same whatever the method."""
  import jax
  import numpy as np
  from flax import linen as nn

  from dro_jax.models.policy import smallest_rows
  from dro_jax.models.t5.config import T5Config
  from dro_jax.models.t5.network import T5
  from dro_jax.types import Mismatched, Rows

  config = T5Config(
    vocab_size=options.vocab, emb_dim=options.width, num_heads=options.heads, mlp_dim=2 * options.width,
    num_encoder_layers=options.layers, num_decoder_layers=options.layers, dtype=dtype,
  )  # fmt: skip
  params = jax.jit(lambda key: nn.unbox(T5(config).init(key, smallest_rows())['params']))(jax.random.key(0))
  rng, (S, T) = np.random.default_rng(0), options.lengths
  ones = lambda length: np.ones((options.batch, length), np.int32)  # noqa: E731
  places = lambda length: np.arange(length, dtype=np.int32)[None] * ones(length)  # noqa: E731
  words = lambda length: rng.integers(2, options.vocab, (options.batch, length), dtype=np.int32)  # noqa: E731
  responses = words(T)
  valid = np.ones((options.batch, 1), bool)
  mismatched = Mismatched(np.roll(responses, 1, axis=0), ones(T), places(T), ones(T), valid)
  rows = Rows(
    words(S), ones(S), places(S), responses, ones(T), places(T), ones(T),
    rewards=rng.normal(size=(options.batch, 1)).astype(np.float32),
    example_id=np.arange(options.batch, dtype=np.int32)[:, None], valid=valid,
    mismatched=mismatched if method == 'kto' else None,
  )  # fmt: skip
  return Case(method, dtype, config, jax.device_get(params), rows)


def dro_jax_step(case: Case) -> Step:
  """The step that `dro_jax train` compiles."""
  import jax

  from dro_jax import algorithms
  from dro_jax.models import scoring
  from dro_jax.parallel import partitioning
  from dro_jax.run import networks
  from dro_jax.step import optimizers, reference, train_step
  from dro_jax.step import state as train_state

  algorithm = getattr(algorithms, case.method)()
  nets = networks.build(case.config, uses_value=algorithm.uses_value)
  params = networks.initial_params(nets, partitioning.make_mesh(), 0, None)
  params['policy'] = jax.tree.map(jax.numpy.array, case.params)
  if nets.value is not None:
    params['value'] = networks.start_from_policy(params['value'], params['policy'])
  txs = {name: optimizers.adamw(LEARNING_RATE) for name in params}
  ref = reference.Frozen().build(scoring.make_score(nets.policy)) if algorithm.uses_reference else None
  score = scoring.make_score(nets.policy, nets.value)
  step = train_step.make_train_step(score, algorithm, txs, ref)
  state = train_state.create(params, txs, uses_reference=ref is not None)
  return _jax_loop(step, state, case.rows, lambda output: output.metrics['loss'])


def flops_of(case: Case) -> float:
  """Operations of the step, counted; every side has to do them."""
  import steps

  from dro_jax import algorithms

  return steps.make(case.config, getattr(algorithms, case.method)()).flops(case.rows)


def _jax_loop(step: Callable, state: Any, rows: Any, loss_of: Callable) -> Step:
  import jax

  from dro_jax.parallel import partitioning

  mesh, rows = partitioning.make_mesh(), jax.device_put(rows)
  compiled = jax.jit(step, donate_argnums=0, compiler_options=partitioning.COMPILER_OPTIONS)
  held = [state]

  def run() -> float:
    with partitioning.use_mesh(mesh):
      held[0], output = compiled(held[0], rows)
    jax.block_until_ready(held[0])
    return float(loss_of(output))

  return run


# --- T5X's network ------------------------------------------------------------------------------------------


def load_t5x(folder: str) -> types.ModuleType:
  """T5X's network, from its two files alone: what t5x itself imports is not all on PyPI."""
  for package in ('t5x', 't5x.examples', 't5x.examples.t5'):
    sys.modules.setdefault(package, types.ModuleType(package))
  for name in ('layers', 'network'):
    path = pathlib.Path(folder) / 't5x' / 'examples' / 't5' / f'{name}.py'
    if not path.is_file():
      raise SystemExit(
        f'--t5x={folder}: there is no {path}: pass a checkout of github.com/google-research/t5x.'
      )
    full = f't5x.examples.t5.{name}'
    spec = importlib.util.spec_from_file_location(full, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    setattr(sys.modules['t5x.examples.t5'], name, module)
    spec.loader.exec_module(module)
  for full in [name for name in sys.modules if name.split('.')[0] == 't5x']:
    del sys.modules[full]  # The trainer imports the whole package.
  return module


def t5x_step(case: Case, *, folder: str) -> Step:
  """T5X's network in a plain JAX step: cross entropy over whole logits, optax's AdamW."""
  import jax
  import jax.numpy as jnp
  import optax

  loss_of = _t5x_loss(case, load_t5x(folder))
  params = {'policy': jax.tree.map(jnp.array, case.params)}
  if case.method == 'dro_v':
    trunk = {name: params['policy'][name] for name in ('token_embedder', 'encoder')}
    head = {'kernel': jnp.zeros(case.config.emb_dim), 'bias': jnp.zeros(())}
    params['value'] = {'trunk': jax.tree.map(jnp.array, trunk), 'head': head}
  reference = None if case.method == 'sft' else jax.tree.map(jnp.array, case.params)
  tx = optax.adamw(LEARNING_RATE, weight_decay=0.0)

  def step(state, rows):
    params, opt_state, reference = state
    loss, gradients = jax.value_and_grad(loss_of)(params, reference, rows)
    updates, opt_state = tx.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, reference), loss

  return _jax_loop(step, (params, tx.init(params), reference), case.rows, lambda loss: loss)


def _t5x_network(case: Case, network: types.ModuleType) -> Any:
  import jax.numpy as jnp

  cfg = case.config
  return network.Transformer(
    network.T5Config(
      vocab_size=cfg.vocab_size, dtype=jnp.dtype(cfg.dtype), emb_dim=cfg.emb_dim, num_heads=cfg.num_heads,
      num_encoder_layers=cfg.num_encoder_layers, num_decoder_layers=cfg.num_decoder_layers,
      head_dim=cfg.head_dim, mlp_dim=cfg.mlp_dim, mlp_activations=cfg.mlp_activations, dropout_rate=0.0,
    )
  )  # fmt: skip


def _t5x_loss(case: Case, network: types.ModuleType) -> Callable:
  import jax
  import jax.numpy as jnp

  from dro_jax import losses

  model = _t5x_network(case, network)
  apply = lambda params, *args, method: model.apply(  # noqa: E731
    {'params': params}, *args, enable_dropout=False, method=method
  )

  def encode(params, rows):
    return apply(params, rows.prompt_tokens, method=model.encode)

  def logps(params, encoded, rows, responses):
    inputs = jnp.pad(responses[:, :-1], ((0, 0), (1, 0)))
    logits = apply(params, encoded, rows.prompt_tokens, inputs, responses, method=model.decode)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), responses[:, :, None], axis=-1)
    return jnp.sum(chosen, axis=(1, 2))

  def value(params, rows):
    trunk = params['trunk']
    pooled = jnp.mean(encode(trunk, rows).astype(jnp.float32), axis=1)
    return pooled @ params['head']['kernel'] + params['head']['bias']

  def loss(params, reference, rows):
    rewards, policy = rows.rewards[:, 0], params['policy']
    encoded = encode(policy, rows)
    policy_logps = logps(policy, encoded, rows, rows.response_tokens)
    if case.method == 'sft':
      return -jnp.mean(policy_logps)
    reference_encoded = encode(reference, rows)
    reference_logps = logps(reference, reference_encoded, rows, rows.response_tokens)
    if case.method == 'dro_v':
      values = value(params['value'], rows)
      given = policy_logps, reference_logps, rewards, values, TAU
      return jnp.mean(losses.dro_v_policy(*given) + losses.dro_v_value(*given))
    other = rows.mismatched.response_tokens
    point = losses.kto_reference_point(
      jax.lax.stop_gradient(logps(policy, encoded, rows, other)),
      logps(reference, reference_encoded, rows, other),
      jnp.ones(len(rewards)),
    )
    return jnp.mean(losses.kto(policy_logps, reference_logps, rewards > rewards.mean(), point, beta=1.0))

  return loss


def t5x_trainer_step(case: Case, *, folder: str) -> Step:
  """The step that T5X's Trainer partitions, `train_with_lr`, on one device."""
  import jax
  import jax.numpy as jnp

  if case.method != 'sft':
    raise NotImplementedError('T5X trains by supervision only')
  models, network, optimizers, train_state, trainer = _import_t5x(folder)
  import seqio

  words = seqio.PassThroughVocabulary(case.config.vocab_size)
  tx = optimizers.adamw(LEARNING_RATE, weight_decay=0.0)
  model = models.EncoderDecoderModel(
    _t5x_network(case, network), words, words, tx, z_loss=0.0, loss_normalizing_factor=len(case.rows.valid)
  )
  state = train_state.FlaxOptimTrainState.create(tx, {'params': jax.tree.map(jnp.array, case.params)})

  def step(state, rows):
    targets = rows.response_tokens
    batch = {
      'encoder_input_tokens': rows.prompt_tokens, 'decoder_target_tokens': targets,
      'decoder_input_tokens': jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
      'decoder_loss_weights': jnp.ones(targets.shape),
    }  # fmt: skip
    return trainer.train_with_lr(state, batch, LEARNING_RATE, None, model, None)

  return _jax_loop(step, state, case.rows, lambda metrics: metrics['loss'].total)


def _import_t5x(folder: str) -> list[types.ModuleType]:
  """Its modules, with empty ones in place of what it imports for its data and for an optimiser."""

  class Nothing(type):
    def __getattr__(cls, name: str) -> type:
      if name.startswith('__'):
        raise AttributeError(name)
      return Nothing(name, (), {})

  for full in ('airio', 'airio.core', 'jestimator', 'jestimator.amos'):
    sys.modules.setdefault(full, Nothing(full, (), {}))
  sys.path.insert(0, str(folder))
  parts = ('models', 'examples.t5.network', 'optimizers', 'train_state', 'trainer')
  return [importlib.import_module(f't5x.{part}') for part in parts]


# --- PyTorch ------------------------------------------------------------------------------------------------


def torch_step(case: Case, *, compiled: bool = False) -> Step:
  """transformers' T5 (scaled-dot-product attention, fused cross entropy and AdamW), eager or compiled."""
  import torch

  policy = _torch_t5(case)
  value = _TorchValue(policy, case.config.emb_dim) if case.method == 'dro_v' else None
  reference = None if case.method == 'sft' else _torch_t5(case).requires_grad_(False)
  weights = [*policy.parameters(), *(value.parameters() if value else ())]
  optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
  batch = {name: torch.tensor(x).long() for name, x in case.rows._asdict().items() if name.endswith('tokens')}
  batch['rewards'] = torch.tensor(case.rows.rewards[:, 0])
  if case.method == 'kto':
    batch['mismatched'] = torch.tensor(case.rows.mismatched.response_tokens).long()
  loss_of = functools.partial(_TORCH_LOSSES[case.method], policy, reference, value)
  if compiled:
    loss_of = torch.compile(loss_of)

  def run() -> float:
    with torch.autocast('cpu', torch.bfloat16, enabled=case.dtype == 'bfloat16'):
      loss = loss_of(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())

  return run


def _torch_t5(case: Case) -> Any:
  import torch
  import transformers
  from flax import traverse_util

  from dro_jax.checkpoints.huggingface import write as huggingface
  from dro_jax.checkpoints.huggingface.read import is_transposed
  from dro_jax.models.t5 import names

  raw = huggingface.read_config(case.config, 'float32') | {'dropout_rate': 0.0}
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(**raw))
  if model.lm_head.weight is model.shared.weight:
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
  theirs, state = names.unrolled(case.config), {}
  for path, x in traverse_util.flatten_dict(case.params).items():
    state[theirs[path]] = torch.tensor(x.T if is_transposed(path) else x)
  missing, unexpected = model.load_state_dict(state, strict=False)
  if unexpected or [name for name in missing if 'embed_tokens' not in name]:
    raise SystemExit(f'this version of transformers names weights otherwise: {missing}, {unexpected}')
  return model.train()


def _TorchValue(policy: Any, width: int) -> Any:
  """An encoder of its own that starts as the policy's, a mean over the prompt, a linear head at zero."""
  import copy

  import torch

  class Value(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.encoder = copy.deepcopy(policy.encoder)
      self.head = torch.nn.Linear(width, 1)
      torch.nn.init.zeros_(self.head.weight)
      torch.nn.init.zeros_(self.head.bias)

    def forward(self, prompts, mask):
      states = self.encoder(input_ids=prompts, attention_mask=mask).last_hidden_state
      pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
      return self.head(pooled.float())[:, 0]

  return Value()


def _torch_encode(model, batch):
  mask = (batch['prompt_tokens'] > 0).long()
  return model.encoder(input_ids=batch['prompt_tokens'], attention_mask=mask), mask


def _torch_logps(model, encoded, mask, responses):
  import torch

  inputs = torch.nn.functional.pad(responses[:, :-1], (1, 0))
  logits = model(
    encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=inputs, use_cache=False
  ).logits.float()
  losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), responses.flatten(), reduction='none')
  return -losses.view(responses.shape).sum(1)


def _torch_sft(policy, reference, value, batch):
  return -_torch_logps(policy, *_torch_encode(policy, batch), batch['response_tokens']).mean()


def _torch_dro_v(policy, reference, value, batch):
  import torch

  responses, rewards = batch['response_tokens'], batch['rewards']
  encoded, mask = _torch_encode(policy, batch)
  logps = _torch_logps(policy, encoded, mask, responses)
  with torch.no_grad():
    rho = logps - _torch_logps(reference, *_torch_encode(reference, batch), responses)
  values = value(batch['prompt_tokens'], mask)
  # The gradient of τ/2 ρ² is τρ times that of log π, and ρ² itself has to be in the loss.
  squared = TAU / 2 * (logps - (logps - rho).detach()) ** 2
  policy_loss = -(rewards - values.detach()) * logps + squared
  return (policy_loss + 0.5 * (values - (rewards - TAU * rho)) ** 2).mean()


def _torch_kto(policy, reference, value, batch):
  import torch

  responses, other, rewards = batch['response_tokens'], batch['mismatched'], batch['rewards']
  encoded, mask = _torch_encode(policy, batch)
  logps = _torch_logps(policy, encoded, mask, responses)
  with torch.no_grad():
    theirs = _torch_encode(reference, batch)
    reference_logps = _torch_logps(reference, *theirs, responses)
    rho = _torch_logps(policy, encoded, mask, other) - _torch_logps(reference, *theirs, other)
    point = rho.mean().clamp(min=0)
  margins = logps - reference_logps - point
  return torch.where(rewards > rewards.mean(), torch.sigmoid(-margins), torch.sigmoid(margins)).mean()


_TORCH_LOSSES = {'sft': _torch_sft, 'dro_v': _torch_dro_v, 'kto': _torch_kto}


# --- timing -------------------------------------------------------------------------------------------------


def sides(options: argparse.Namespace) -> dict[str, Callable[[Case], Step]]:
  """What is timed, by name; dro_jax first."""
  known = {
    'dro_jax': dro_jax_step,
    'torch': torch_step,
    'torch_compiled': functools.partial(torch_step, compiled=True),
    't5x': functools.partial(t5x_step, folder=options.t5x),
    't5x_trainer': functools.partial(t5x_trainer_step, folder=options.t5x),
  }
  if options.t5x is None:
    del known['t5x'], known['t5x_trainer']
  return {name: make for name, make in known.items() if name == 'dro_jax' or name in options.peers}


def kernel_rate(case: Case, *, uses_torch: bool, repeats: int = 5) -> float:
  """Operations a second of this machine's matrix kernels: the vocabulary projection, by jax or by torch."""
  import jax
  import jax.numpy as jnp

  rows, width, vocab = case.rows.response_tokens.size, case.config.emb_dim, case.config.vocab_size
  x, kernel = jnp.ones((rows, width), case.dtype), jnp.ones((width, vocab), case.dtype)
  product = jax.jit(jnp.matmul)
  calls = {'jax': lambda: product(x, kernel).block_until_ready()}
  if uses_torch:
    import torch

    theirs = [torch.ones(shape, dtype=getattr(torch, case.dtype)) for shape in (x.shape, kernel.shape)]
    calls['torch'] = lambda: torch.matmul(*theirs)
  seconds = timing.interleaved(calls, repeats)
  return 2 * rows * width * vocab / min(map(min, seconds.values()))


def compare(
  case: Case, made: Mapping[str, Callable[[Case], Step]], rounds: int, clock: str
) -> dict[str, Any]:
  """Losses, seconds and ratios of one method at one precision; sides whose losses differ are refused."""
  steps, losses, failed = {}, {}, {}
  for name, make in made.items():
    with _reported(name, failed):
      step = make(case)
      losses[name] = [step() for _ in range(STEPS_COMPARED)]
      steps[name] = step
  for found in losses.values():
    for ours, theirs in zip(losses['dro_jax'], found):
      if abs(ours - theirs) > LOSS_TOLERANCE[case.dtype] * max(abs(ours), 1.0):
        raise SystemExit(f'{case.method} in {case.dtype}: the losses differ, so nothing is timed: {losses}')
  seconds = timing.interleaved(steps, rounds, warmups=0, clock=clock)
  return {
    'method': case.method, 'dtype': case.dtype, 'losses': losses, 'failed': failed,
    'flops': flops_of(case), 'kernel_flops_per_second': kernel_rate(case, uses_torch='torch' in steps),
    'median_seconds': {name: statistics.median(found) for name, found in seconds.items()},
    'least_seconds': {name: min(found) for name, found in seconds.items()},
    'ratio_to_dro_jax': {name: timing.ratio(found, seconds['dro_jax']) for name, found in seconds.items()},
  }  # fmt: skip


@contextlib.contextmanager
def _reported(name: str, failed: dict[str, str]):
  """torch.compile does not work everywhere: a peer that cannot run is reported, and the others go on."""
  try:
    yield
  except Exception as error:
    if name == 'dro_jax':
      raise
    failed[name] = f'{type(error).__name__}: {str(error)[:300]}'


def show(found: Mapping[str, Any]) -> None:
  print(f'{found["method"]} in {found["dtype"]}; losses {found["losses"]["dro_jax"]}')
  floor = found['flops'] / found['kernel_flops_per_second']
  print(f'  {found["flops"] / 1e9:.0f} GFLOP a step; {floor:.2f} s at the rate of its largest product alone')
  for name, seconds in found['median_seconds'].items():
    least, ratio = found['least_seconds'][name], found['ratio_to_dro_jax'][name]
    print(
      f'  {name:16} median {seconds:6.2f} s, least {least:6.2f} s, {ratio["median"]:5.2f} x dro_jax '
      f'({ratio["low"]:.2f}-{ratio["high"]:.2f})'
    )
  for name, why in found['failed'].items():
    print(f'  {name:16} failed: {why}')


def _words(text: str) -> Sequence[str]:
  return tuple(text.split(','))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--t5x', help="a checkout of T5X; without it T5X's network is left out")
  parser.add_argument('--methods', type=_words, default=('sft', 'dro_v', 'kto'))
  parser.add_argument('--dtypes', type=_words, default=('float32', 'bfloat16'), help='of activations')
  parser.add_argument('--peers', type=_words, default=('torch', 'torch_compiled', 't5x', 't5x_trainer'))
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--batch', type=int, default=8, help='rows')
  parser.add_argument('--lengths', type=pair, default=(128, 128), help='prompt,response tokens of a row')
  parser.add_argument('--vocab', type=int, default=32128)
  parser.add_argument('--width', type=int, default=512)
  parser.add_argument('--heads', type=int, default=6)
  parser.add_argument('--layers', type=int, default=8, help='of the encoder, and of the decoder')
  parser.add_argument(
    '--clock', choices=[*timing.CLOCKS], default='wall', help='cpu: where others use the machine'
  )
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = str(THREADS)
  results = []
  for dtype in options.dtypes:
    for method in options.methods:
      results.append(
        compare(make_case(method, dtype, options), sides(options), options.rounds, options.clock)
      )
      gc.collect()
      if not options.json:
        show(results[-1])
  if options.json:
    print(json.dumps({'threads': THREADS, 'clock': options.clock, 'results': results}))


if __name__ == '__main__':
  main()
