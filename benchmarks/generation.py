"""Tokens a second of sampling from SmolLM2-135M: dro_jax beside transformers' generate, on this machine.

  python benchmarks/generation.py [--batches=1,32] [--tokens=64] [--copies=1] [--json]

The same random weights, prompts of `--prompt` tokens, greedy, and no token that ends a response, so that all
sides decode the same number. Sides take turns within one process; see `timing` for what a ratio is.
"""

import argparse
import json
import os
import statistics

import numpy as np
import timing
from arguments import numbers

THREADS = len(os.sched_getaffinity(0))


def make_sides(options: argparse.Namespace, batch: int) -> dict:
  """Both sides as functions that decode one batch and return its tokens."""
  import causal_peers
  import jax
  import jax.numpy as jnp
  import torch
  import transformers

  from dro_jax.models import policy, sampling

  options.batch, options.lengths, options.lora = batch, (options.prompt, 1), None
  case = causal_peers.make_case('kto', options.dtype, 1, options)
  params = causal_peers.policy_params(case)
  # An id beyond the vocabulary ends no response.
  network = policy.make_network(case.config.__class__(**vars(case.config) | {'eos': options.vocab}))
  prompts = jnp.asarray(case.prompts), jnp.ones(case.prompts.shape, jnp.int32)
  model = transformers.LlamaForCausalLM(causal_peers.torch_config(case.config)).eval()
  model.load_state_dict(case.weights)
  model = model.to(getattr(torch, options.dtype))
  inputs = torch.tensor(case.prompts).long()

  def ours() -> np.ndarray:
    samples = sampling.sample(network, params, prompts, options.tokens, jax.random.key(0), temperature=0.0)
    return np.asarray(samples.tokens)

  def theirs() -> np.ndarray:
    out = model.generate(
      inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=options.tokens,
      min_new_tokens=options.tokens, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return out[:, inputs.shape[1] :].numpy()

  return {'dro_jax': ours, 'transformers': theirs}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batches', type=numbers, default=(1, 32))
  parser.add_argument('--tokens', type=int, default=64, help='decoded for each prompt')
  parser.add_argument('--prompt', type=int, default=64, help='tokens of a prompt')
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--vocab', type=int, default=49152)
  parser.add_argument('--width', type=int, default=576)
  parser.add_argument('--layers', type=int, default=30)
  parser.add_argument('--scan', action='store_true', help='one compiled layer for all')
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  results = []
  for batch in options.batches:
    sides = make_sides(options, batch)
    first = {name: side() for name, side in sides.items()}
    same = float(np.mean(first['dro_jax'] == first['transformers']))
    seconds = timing.interleaved(sides, options.rounds, warmups=0)
    rate = {name: batch * options.tokens / statistics.median(found) for name, found in seconds.items()}
    results.append({
      'batch': batch, 'equal_tokens': same, 'tokens_per_second': rate,
      'ratio': timing.ratio(seconds['transformers'], seconds['dro_jax']),
    })  # fmt: skip
    if not options.json:
      ratio = results[-1]['ratio']
      print(
        f'batch {batch}: dro_jax {rate["dro_jax"]:.0f}, transformers {rate["transformers"]:.0f} tokens/s: '
        f'{ratio["median"]:.2f} x ({ratio["low"]:.2f}-{ratio["high"]:.2f}); {same:.0%} of tokens equal'
      )
  if options.json:
    print(json.dumps({'threads': THREADS, 'results': results}))


if __name__ == '__main__':
  main()
