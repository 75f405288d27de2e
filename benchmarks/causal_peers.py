"""One training step of a decoder-only model by dro_jax beside TRL's trainers and PyTorch, on this machine.

  python benchmarks/causal_peers.py [--methods=kto,dpo,dro_v] [--responses=1,4] [--dtypes=float32] [--lora=16]

Needs `pip install trl peft`. All take the same step: the size of SmolLM2-135M with the same random weights,
the same prompts and responses, AdamW, nothing padded. With `--lora=RANK` all train the same adapter of all
layers' products instead, which starts from the same A, and the reference is the base with the adapter off.

TRL's sides are its KTOTrainer and DPOTrainer: their own collators and `training_step`, then their optimiser.
DRO-V, which TRL has not, is written in plain PyTorch. With several responses a prompt, dro_jax encodes the
prompt once for all of them. The losses of the first steps must agree before anything is timed. Sides take
turns within one process; see `timing` for what a ratio is.
"""

import argparse
import contextlib
import gc
import json
import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import timing
from arguments import numbers, pair

THREADS = len(os.sched_getaffinity(0))
LEARNING_RATE, TAU, BETA = 1e-5, 1.0, 0.1
TOLERANCE = {'float32': 1e-3, 'bfloat16': 5e-2}
Step = Callable[[], float]


class Case(NamedTuple):
  """What every side is given: a method, the model's size, PyTorch's weights, and texts as ids."""

  method: str
  dtype: str
  config: Any
  weights: Mapping[str, Any]
  prompts: np.ndarray
  responses: np.ndarray
  rewards: np.ndarray
  lora: int | None = None

  @property
  def labels(self) -> np.ndarray:
    """Which responses are desirable."""
    return self.rewards > 0


def make_case(method: str, dtype: str, num_responses: int, options: argparse.Namespace) -> Case:
  """Random weights and ids: `batch` responses, `num_responses` to each prompt."""
  import torch
  import transformers

  from dro_jax.models.causal.config import CausalConfig

  config = CausalConfig(
    vocab_size=options.vocab, emb_dim=options.width, num_heads=options.width // 64,
    num_kv_heads=options.width // 192, mlp_dim=options.width * 8 // 3, num_layers=options.layers,
    rope_theta=100_000.0, dtype=dtype, max_positions=8192, scan_layers=options.scan,
  )  # fmt: skip
  torch.manual_seed(0)
  weights = transformers.LlamaForCausalLM(torch_config(config)).state_dict()
  rng, (S, T) = np.random.default_rng(0), options.lengths
  prompts = rng.integers(3, options.vocab, (options.batch // num_responses, S), dtype=np.int32)
  if method == 'dpo' and num_responses == 1:  # A pair shares its prompt, which is encoded twice then.
    prompts = np.repeat(prompts[::2], 2, axis=0)
  responses = rng.integers(3, options.vocab, (options.batch, T), dtype=np.int32)
  # Not balanced within a prompt: Adam would turn gradients that cancel into steps of random signs.
  rewards = np.where(np.arange(options.batch) % 2 == 0, 1.0, -1.0) * rng.uniform(0.5, 2.0, options.batch)
  return Case(method, dtype, config, weights, prompts, responses, rewards.astype(np.float32), options.lora)


def torch_config(config: Any) -> Any:
  import transformers

  from dro_jax.checkpoints.huggingface import causal_config

  return transformers.AutoConfig.for_model(**causal_config.config_json(config, 'float32'))


# --- dro_jax ------------------------------------------------------------------------------------------------


def dro_jax_step(case: Case) -> Step:
  """The step that `dro_jax train` compiles, on rows of one prompt and all its responses."""
  import jax

  from dro_jax import algorithms
  from dro_jax.models import lora, scoring
  from dro_jax.parallel import partitioning
  from dro_jax.run import networks
  from dro_jax.step import optimizers, reference, train_step
  from dro_jax.step import state as train_state

  settings = {'tau': TAU} if case.method == 'dro_v' else {'beta': BETA}
  algorithm = getattr(algorithms, case.method)(**settings)
  nets = networks.build(case.config, uses_value=algorithm.uses_value, lora=adapter_settings(case))
  params, base = networks.initial_params(nets, partitioning.make_mesh(), 0, None), None
  if nets.lora is None:
    params['policy'] = policy_params(case)
    if nets.value is not None:
      params['value'] = networks.start_from_policy(params['value'], params['policy'])
  else:
    base = lora.Base({'params': policy_params(case)}, nets.lora.scale)
  txs = {name: optimizers.adamw(LEARNING_RATE) for name in params}
  scheme = reference.Frozen() if nets.lora is None else reference.AdapterOff()
  fixed = scheme.build(scoring.make_score(nets.policy))
  step = train_step.make_train_step(scoring.make_score(nets.policy, nets.value), algorithm, txs, fixed)
  where = partitioning.replicated(partitioning.make_mesh())
  state = train_state.create(params, txs, uses_reference=nets.lora is None)._replace(base=base)
  held = [jax.device_put(state, where)]
  del params, base, state
  rows, mesh = jax.device_put(make_rows(case, algorithm), where), partitioning.make_mesh()
  compiled = jax.jit(
    step, donate_argnums=0, out_shardings=where, compiler_options=partitioning.COMPILER_OPTIONS
  )

  def run() -> float:
    with partitioning.use_mesh(mesh):
      held[0], output = compiled(held[0], rows)
    jax.block_until_ready(held[0])
    return float(output.metrics['loss'])

  return run


def adapter_settings(case: Case) -> Any:
  from dro_jax.models.lora import Lora

  return None if case.lora is None else Lora(rank=case.lora)


def policy_params(case: Case) -> Any:
  """The weights as the tree of the case's configuration."""
  import jax
  from flax import traverse_util

  from dro_jax.models import stacks
  from dro_jax.models.causal import names

  flat = {}
  for stored in names.stored(case.config):
    arrays = stored.layout.split(case.weights[stored.name].numpy(), case.config.num_heads)
    flat.update(zip(stored.paths, arrays, strict=True))
  params = stacks.convert_layers(traverse_util.unflatten_dict(flat), scan=case.config.scan_layers)
  return jax.tree.map(jax.numpy.array, params)


def make_rows(case: Case, algorithm: Any) -> Any:
  """A row for each prompt, with its responses one after the other."""
  from dro_jax.types import Mismatched, Rows, Units

  count, length = case.prompts.shape
  each, size = len(case.responses) // count, case.responses.shape[1]
  by_row = lambda x: x.reshape(count, each * size)  # noqa: E731
  ones = np.ones((count, length), np.int32)
  places = np.broadcast_to(np.arange(length, dtype=np.int32), (count, length))
  segments = np.broadcast_to(np.repeat(np.arange(1, each + 1, dtype=np.int32), size), (count, each * size))
  positions = np.broadcast_to(np.tile(np.arange(size, dtype=np.int32), each), (count, each * size))
  pointers, valid = np.ones((count, each * size), np.int32), np.ones((count, each), bool)
  mismatched = Mismatched(by_row(np.roll(case.responses, 1, axis=0)), segments, positions, pointers, valid)
  rows = Rows(
    case.prompts, ones, places, by_row(case.responses), segments, positions, pointers,
    rewards=case.rewards.reshape(count, each),
    example_id=np.arange(len(case.responses), dtype=np.int32).reshape(count, each), valid=valid,
    columns={name: case.labels.astype(np.float32).reshape(count, each) for name in algorithm.columns},
    mismatched=mismatched if algorithm.uses_mismatched else None,
  )  # fmt: skip
  if case.method != 'dpo':
    return rows
  index = np.arange(len(case.responses), dtype=np.int32).reshape(-1, 2)
  return rows._replace(units=Units(index, np.ones(index.shape, bool)))


# --- TRL and PyTorch ----------------------------------------------------------------------------------------


def _torch_model(case: Case, *, adapted: bool = False) -> Any:
  import transformers

  model = transformers.LlamaForCausalLM(torch_config(case.config))
  model.load_state_dict(case.weights)
  return _with_adapter(case, model) if adapted and case.lora else model


def _with_adapter(case: Case, model: Any) -> Any:
  """The model with dro_jax's first adapter, through the folder that dro_jax exports for PEFT."""
  import jax
  import peft
  from etils import epath

  from dro_jax.checkpoints.huggingface import peft as peft_folder
  from dro_jax.models import stacks
  from dro_jax.parallel import partitioning
  from dro_jax.run import networks

  settings, folder = adapter_settings(case), tempfile.mkdtemp()
  nets = networks.build(case.config, uses_value=False, lora=settings)
  adapter = networks.initial_params(nets, partitioning.make_mesh(), 0, None)['policy']
  adapter = jax.tree.map(np.asarray, stacks.convert_layers(adapter, scan=False))
  peft_folder.write(epath.Path(folder), adapter, settings, case.config, 'base')
  return peft.PeftModel.from_pretrained(model, folder, is_trainable=True)


def _torch_reference(case: Case) -> Any:
  """TRL's copy of the reference; `None` has it switch the adapter off."""
  return None if case.lora else _torch_model(case)


def trl_step(case: Case) -> Step:
  """TRL's trainer: its collator, `training_step` and optimiser."""
  import torch

  trainer, examples = (_kto_trainer if case.method == 'kto' else _dpo_trainer)(case)
  batch = trainer.data_collator(examples)
  trainer.create_optimizer()
  trainer.current_gradient_accumulation_steps = 1  # Its training loop sets it.
  model = trainer.model.train()

  def run() -> float:
    loss = trainer.training_step(model, dict(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)

  return run


def _prompt_of(case: Case, response: int) -> list[int]:
  return case.prompts[response * len(case.prompts) // len(case.responses)].tolist()


def _trainer_settings(case: Case) -> dict[str, Any]:
  return {
    'output_dir': tempfile.mkdtemp(), 'use_cpu': True, 'bf16': case.dtype == 'bfloat16', 'report_to': [],
    'learning_rate': LEARNING_RATE, 'beta': BETA, 'max_length': None, 'max_grad_norm': 0.0,
    'gradient_checkpointing': False, 'lr_scheduler_type': 'constant', 'optim': 'adamw_torch_fused',
  }  # fmt: skip


def _kto_trainer(case: Case) -> tuple[Any, list[dict[str, Any]]]:
  import datasets
  import trl

  count = len(case.responses)
  texts = {'prompt': ['a b'] * count, 'completion': ['c d'] * count, 'label': case.labels.tolist()}
  trainer = trl.KTOTrainer(
    model=_torch_model(case, adapted=True), ref_model=_torch_reference(case),
    args=trl.KTOConfig(**_trainer_settings(case), per_device_train_batch_size=count),
    train_dataset=datasets.Dataset.from_dict(texts), processing_class=_tokenizer(case),
  )  # fmt: skip
  other = np.roll(case.responses, 1, axis=0)
  return trainer, [
    {
      'prompt_ids': _prompt_of(case, i), 'completion_ids': case.responses[i].tolist(),
      'KL_completion_ids': other[i].tolist(), 'label': bool(case.labels[i]),
    }
    for i in range(count)
  ]  # fmt: skip


def _dpo_trainer(case: Case) -> tuple[Any, list[dict[str, Any]]]:
  import datasets
  import trl

  count = len(case.responses) // 2
  texts = {'prompt': ['a b'] * count, 'chosen': ['c d'] * count, 'rejected': ['e f'] * count}
  trainer = trl.DPOTrainer(
    model=_torch_model(case, adapted=True), ref_model=_torch_reference(case),
    args=trl.DPOConfig(**_trainer_settings(case), per_device_train_batch_size=count),
    train_dataset=datasets.Dataset.from_dict(texts), processing_class=_tokenizer(case),
  )  # fmt: skip
  return trainer, [
    {
      'prompt_ids': _prompt_of(case, 2 * i), 'chosen_ids': case.responses[2 * i].tolist(),
      'rejected_ids': case.responses[2 * i + 1].tolist(),
    }
    for i in range(count)
  ]  # fmt: skip


def _tokenizer(case: Case) -> Any:
  """A tokenizer, which the trainers ask for: the batches are ids already."""
  import tokenizers
  import transformers

  words = {word: i for i, word in enumerate(['<pad>', '<s>', '</s>', 'a', 'b', 'c', 'd', 'e', 'f'])}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='a'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, pad_token='<pad>', bos_token='<s>', eos_token='</s>', unk_token='a'
  )


def torch_step(case: Case) -> Step:
  """DRO-V in plain PyTorch: transformers' models, fused cross entropy and AdamW, each response whole."""
  import torch

  policy = _torch_model(case, adapted=True).train()
  reference = policy if case.lora else _torch_model(case).requires_grad_(False)
  switched_off = policy.disable_adapter if case.lora else contextlib.nullcontext
  # A second network: of an adapted one, a second adapter.
  trunk = _torch_model(case, adapted=True).train()
  head = torch.nn.Linear(case.config.emb_dim, 1)
  torch.nn.init.zeros_(head.weight)
  torch.nn.init.zeros_(head.bias)
  trunk_states = (trunk.get_base_model() if case.lora else trunk).model
  weights = [*policy.parameters(), *trunk_states.parameters(), *head.parameters()]
  weights = [weight for weight in weights if weight.requires_grad]
  optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
  each = len(case.responses) // len(case.prompts)
  prompts = torch.tensor(np.repeat(case.prompts, each, axis=0)).long()
  responses = torch.tensor(case.responses).long()
  rewards, width = torch.tensor(case.rewards), case.prompts.shape[1]

  def logps(model: Any) -> Any:
    whole = model.get_base_model() if case.lora else model
    states = whole.model(torch.cat([prompts, responses], 1), use_cache=False).last_hidden_state
    logits = whole.lm_head(states[:, width - 1 : -1]).float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), responses.flatten(), reduction='none')
    return -losses.view(responses.shape).sum(1)

  def run() -> float:
    with torch.autocast('cpu', torch.bfloat16, enabled=case.dtype == 'bfloat16'):
      chosen = logps(policy)
      with torch.no_grad(), switched_off():
        rho = chosen - logps(reference)
      # One value a prompt: the trunk reads each prompt once.
      states = trunk_states(prompts[::each], use_cache=False).last_hidden_state[:, -1]
      values = head(states.float())[:, 0].repeat_interleave(each)
    # The gradient of τ/2 ρ² is τρ times that of log π, and ρ² itself has to be in the loss.
    policy_loss = -(rewards - values.detach()) * chosen + TAU / 2 * (chosen - (chosen - rho).detach()) ** 2
    loss = (policy_loss + 0.5 * (values - (rewards - TAU * rho)) ** 2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())

  return run


# --- timing -------------------------------------------------------------------------------------------------


def compare(
  case: Case, rounds: int, clock: str, sides: Mapping[str, Callable[[Case], Step]]
) -> dict[str, Any]:
  """Losses, seconds and ratios of one method; sides whose losses differ are refused."""
  steps = {name: make(case) for name, make in sides.items()}
  losses = {name: [step(), step()] for name, step in steps.items()}
  first = next(iter(losses))
  for name, found in losses.items():
    for ours, other in zip(losses[first], found):
      if abs(ours - other) > TOLERANCE[case.dtype] * max(abs(ours), 1.0):
        raise SystemExit(f'{case.method}: the losses of {name} differ, so nothing is timed: {losses}')
  seconds = timing.interleaved(steps, rounds, warmups=0, clock=clock)
  each = len(case.responses) // len(case.prompts)
  return {
    'method': case.method, 'dtype': case.dtype, 'responses_a_prompt': each, 'losses': losses,
    'median_seconds': {name: statistics.median(found) for name, found in seconds.items()},
    'ratio_to_first': {name: timing.ratio(found, seconds[first]) for name, found in seconds.items()},
    'peak_memory_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
  }  # fmt: skip


def show(found: Mapping[str, Any]) -> None:
  print(
    f'{found["method"]}, {found["dtype"]}, K = {found["responses_a_prompt"]}; losses {found["losses"]}; '
    f'peak memory {found["peak_memory_gib"]:.2f} GiB'
  )
  for name, seconds in found['median_seconds'].items():
    ratio = found['ratio_to_first'][name]
    print(f'  {name:8} {seconds:6.2f} s, {ratio["median"]:5.2f} x ({ratio["low"]:.2f}-{ratio["high"]:.2f})')


def main() -> None:
  words = lambda text: tuple(text.split(','))  # noqa: E731
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--methods', type=words, default=('kto', 'dpo', 'dro_v'))
  parser.add_argument(
    '--sides', type=words, default=('dro_jax', 'peer'), help='one of them alone, for its memory'
  )
  parser.add_argument('--dtypes', type=words, default=('float32',), help='of activations')
  parser.add_argument('--responses', type=numbers, default=(1, 4), help='responses a prompt')
  parser.add_argument('--batch', type=int, default=16, help='responses of a step')
  parser.add_argument('--lengths', type=pair, default=(64, 64), help='prompt,response tokens')
  parser.add_argument('--lora', type=int, default=None, help='the rank of adapters; none: all parameters')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--vocab', type=int, default=49152)
  parser.add_argument('--width', type=int, default=576)
  parser.add_argument('--layers', type=int, default=30)
  parser.add_argument('--scan', action='store_true', help='one compiled layer for all')
  parser.add_argument(
    '--clock', choices=[*timing.CLOCKS], default='wall', help='cpu: where others use the machine'
  )
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  os.environ['HF_DATASETS_DISABLE_PROGRESS_BARS'] = '1'
  os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = str(THREADS)
  results = []
  for dtype in options.dtypes:
    for method in options.methods:
      for count in options.responses:
        peer = torch_step if method == 'dro_v' else trl_step
        sides = {'dro_jax': dro_jax_step, 'torch' if method == 'dro_v' else 'trl': peer}
        sides = {
          side: sides[side] for side in sides if ('dro_jax' if side == 'dro_jax' else 'peer') in options.sides
        }
        case = make_case(method, dtype, count, options)
        results.append(compare(case, options.rounds, options.clock, sides))
        gc.collect()
        if not options.json:
          show(results[-1])
  if options.json:
    print(json.dumps({'threads': THREADS, 'clock': options.clock, 'results': results}))


if __name__ == '__main__':
  main()
