"""What a decoder-only model gains where K responses share their prompt, against the bound and the FLOPs.

  python benchmarks/prompt_sharing.py [--responses=1,2,4,8] [--lengths=256,64] [--methods=dro_p,dro_v]

The step that `train` compiles, on rows of one prompt and all its responses, and on rows of one response with
a copy of its prompt. Both have the same responses. The bound of the gain is K(P + R) / (P + KR): tokens of
prompts (P) and responses (R) that a layer reads. A step gains less than the bound, since logits are those of
responses on both sides; `FLOPs` is what the traced steps say. DRO-P reads a policy and a reference, DRO-V a
value of each prompt as well. The model is a slice of SmolLM2-135M: some of its 30 layers, with as much less
vocabulary.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import packing
import steps
import timing
from arguments import numbers, pair

from dro_jax import algorithms
from dro_jax.models.causal.config import CausalConfig

LAYERS, VOCABULARY = 30, 49152


def smollm2(layers: int) -> CausalConfig:
  return CausalConfig(
    vocab_size=VOCABULARY * layers // LAYERS, emb_dim=576, num_heads=9, num_kv_heads=3, head_dim=64,
    mlp_dim=1536, num_layers=layers, rope_theta=100_000.0,
  )  # fmt: skip


def compare(method: str, responses: int, options: argparse.Namespace) -> dict[str, Any]:
  """Tokens, FLOPs and seconds of the step on rows with copies of the prompts, over those on shared rows."""
  config, algorithm = smollm2(options.layers), getattr(algorithms, method)()
  prompt, response = options.lengths
  lengths = packing.full(prompt, response, responses, prompts=options.batch)
  calls, tokens, flops = {}, {}, {}
  # A row holds one prompt: packing several, which `packing.py` measures, would be a gain of its own.
  whole = {'prompt_length': prompt, 'response_length': responses * response}
  for name, fit in {'shared': whole, 'copied': {'packed': False}}.items():
    fitted, rows = packing.batch_of(lengths, options.batch, **fit)
    subject = steps.make(config, algorithm)
    rows = steps.for_algorithm(rows, algorithm)
    calls[name], flops[name] = steps.compiled(subject, rows), subject.flops(rows)
    tokens[name] = len(rows.valid) * (fitted.prompt_length + fitted.response_length)
  seconds = timing.interleaved(calls, options.rounds, clock=options.clock)
  fewest = options.batch // responses * (prompt + responses * response)
  gain, flops_ratio = timing.ratio(seconds['copied'], seconds['shared']), flops['copied'] / flops['shared']
  return {
    'method': method, 'responses': responses,
    'bound': responses * (prompt + response) / (prompt + responses * response),
    'tokens_over_fewest': tokens['shared'] / fewest, 'tokens_ratio': tokens['copied'] / tokens['shared'],
    'flops_ratio': flops_ratio, 'gain': gain, 'off': gain['median'] / flops_ratio - 1,
  }  # fmt: skip


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
  for method in options.methods:
    for responses in options.responses:
      yield compare(method, responses, options)


def line(row: dict[str, Any]) -> str:
  gain = row['gain']
  return (
    f'{row["method"]:6} {row["responses"]:2}   {row["bound"]:5.2f}  {row["tokens_ratio"]:5.2f}  '
    f'{row["tokens_over_fewest"]:14.2f}  {row["flops_ratio"]:5.2f}  '
    f'{gain["median"]:5.2f} ({gain["low"]:.2f}-{gain["high"]:.2f})  {row["off"]:+6.1%}'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  words = lambda text: tuple(text.split(','))  # noqa: E731
  parser.add_argument('--methods', type=words, default=('dro_p', 'dro_v'))
  parser.add_argument('--responses', type=numbers, default=(1, 2, 4, 8), help='to each prompt')
  parser.add_argument('--batch', type=int, default=16, help='responses of a step')
  parser.add_argument('--lengths', type=pair, default=(256, 64), help='prompt,response tokens')
  parser.add_argument('--layers', type=int, default=6, help=f'of {LAYERS}')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--clock', choices=timing.CLOCKS, default='wall', help='cpu: of all cores together')
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  if options.json:
    print(json.dumps({'prompt_sharing': list(measure(options))}))
    return
  print('method  K   bound  tokens  tokens/fewest  FLOPs  gain (quartiles)   off by')
  for row in measure(options):
    print(line(row), flush=True)


if __name__ == '__main__':
  main()
