"""What packing rows, and encoding a prompt once for all its responses, gain in a DRO-V step.

  python benchmarks/packing.py [--json]
  DRO_JAX_DATA=FOLDER DRO_JAX_VOCAB=t5.model python benchmarks/packing.py     (real lengths too)

1. Batches of real lengths, in rows as `train` packs them and padded to the file's longest kept example.
   Useful tokens are those of each response and of its prompt, so both layouts have the same. Real files are
   FOLDER's .jsonl.gz; a made-up one has the lengths of UltraFeedback: long, 4 responses a prompt.
2. 4 responses a prompt, of full length: encoded once, and with a copy of the prompt for each.

The T5 timed is one layer a side of T5-L's 24 at half its width, with as much less vocabulary: the same
products in the same proportions, but that attention weighs twice as much, to packing's disadvantage. Beside
each gain stand the FLOPs ratios of this T5's steps and of the whole T5-L's at the same layouts.
"""

import argparse
import dataclasses
import glob
import json
import os
import pathlib
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import steps
import timing

from dro_jax import algorithms
from dro_jax.data.batches import loader, packing
from dro_jax.data.batches.plan import Plan
from dro_jax.data.sources import find
from dro_jax.data.table.cache import build_table
from dro_jax.data.table.table import Ragged
from dro_jax.data.text import vocabularies
from dro_jax.types import Rows

LIMIT = 512  # Tokens of a prompt, and of a response.
TIMED = steps.slice_of(
  dataclasses.replace(steps.T5_LARGE, emb_dim=512, num_heads=8, mlp_dim=1408, vocab_size=16064)
)


@dataclasses.dataclass(frozen=True)
class Lengths:
  """A table of which only the lengths are real: the tokens are all the same."""

  prompt_lengths: np.ndarray
  response_lengths: np.ndarray
  prompt_index: np.ndarray
  weights: None = None
  columns: dict = dataclasses.field(default_factory=dict)
  token_columns: dict = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.prompt_index)

  @property
  def rewards(self) -> np.ndarray:
    return np.arange(len(self)) % 5.0

  def prompt_tokens(self, records: np.ndarray) -> Ragged:
    return _ones(self.prompt_lengths[records])

  def response_tokens(self, records: np.ndarray) -> Ragged:
    return _ones(self.response_lengths[records])


def _ones(lengths: np.ndarray) -> Ragged:
  return Ragged(np.ones(lengths.sum(), np.int32), np.concatenate([[0], np.cumsum(lengths)]))


def of_file(path: str, words: vocabularies.Vocabulary) -> Lengths:
  """The lengths of a triplet file's records."""
  with tempfile.TemporaryDirectory() as cache:
    found = find.find(path)
    table = build_table(found, words, cache, prompt_length=LIMIT, response_length=LIMIT)
    return Lengths(*map(np.array, (table.prompt_lengths, table.response_lengths, table.prompt_index)))


def like_ultrafeedback(prompts: int = 2000, responses: int = 4) -> Lengths:
  """Log-normal lengths, cut at 512: prompts of 90 tokens in the median and 160 in the mean, responses of 230
  and 250.
  """
  rng = np.random.default_rng(0)

  def draw(median: float, spread: float, count: int) -> np.ndarray:
    return np.clip(rng.lognormal(np.log(median), spread, count), 8, LIMIT).astype(np.int64)

  index = np.repeat(np.arange(prompts), responses)
  return Lengths(draw(90, 1.1, prompts)[index], draw(230, 0.8, len(index)), index)


def full(prompt_length: int, response_length: int, responses: int = 4, prompts: int = 64) -> Lengths:
  """Every prompt with as many responses, all of one length."""
  index = np.repeat(np.arange(prompts), responses)
  return Lengths(np.full(len(index), prompt_length), np.full(len(index), response_length), index)


def batch_of(lengths: Lengths, batch_size: int, **fit: Any) -> tuple[packing.Layout, Rows]:
  plan = Plan.from_table(lengths, batch_size, 0)
  fitted = packing.Layout.fit(lengths, plan, **fit)
  return fitted, loader.Loader(lengths, plan, fitted).rows(0)


def compare(
  lengths: Lengths, batch_size: int, few: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
  """The step on rows as `train` lays them out, and on rows laid out as `few` says."""
  calls, shapes, flops, flops_large = {}, {}, {}, {}
  for name, fit in {'packed': {}, 'other': few}.items():
    fitted, rows = batch_of(lengths, batch_size, **fit)
    subject = steps.make(TIMED, algorithms.dro_v())
    calls[name], flops[name] = steps.compiled(subject, rows), subject.flops(rows)
    flops_large[name] = steps.make(steps.T5_LARGE, algorithms.dro_v()).flops(rows)
    shapes[name] = [len(rows.valid), fitted.prompt_length, fitted.response_length]
  seconds = timing.interleaved(calls, options.rounds, clock=options.clock)
  useful = batch_size * float(np.mean(lengths.prompt_lengths + lengths.response_lengths))
  per_second = {name: useful / statistics.median(found) for name, found in seconds.items()}
  return {
    'gain': timing.ratio(seconds['other'], seconds['packed']),
    'flops_ratio': flops['other'] / flops['packed'],
    'flops_ratio_t5_large': flops_large['other'] / flops_large['packed'],
    'rows': shapes, 'useful_tokens_a_second': per_second,
  }  # fmt: skip


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
  one_a_row = {'packed': False}
  cases = {
    '4 responses a prompt, 512/128': (full(512, 128), 8, one_a_row),
    '4 responses a prompt, 512/512': (full(512, 512), 8, one_a_row),
    "UltraFeedback's lengths": (like_ultrafeedback(), 32, one_a_row),
  }
  folder, model = os.environ.get('DRO_JAX_DATA'), os.environ.get('DRO_JAX_VOCAB', 'bytes')
  if folder:
    words = vocabularies.vocabulary(model)
    for path in sorted(glob.glob(f'{folder}/*/*.jsonl.gz')):
      if '.dev.' not in path and '.test.' not in path:
        cases[pathlib.Path(path).name] = (of_file(path, words), 32, one_a_row)
  chosen = {name: case for name, case in cases.items() if options.only in name}
  for name, (lengths, size, few) in chosen.items():
    yield {'data': name, **compare(lengths, size, few, options)}


HEADING = f'{"":32} gain (quartiles)    FLOPs  of T5-L   useful tokens/s     rows'


def line(row: dict[str, Any]) -> str:
  gain, speed, rows = row['gain'], row['useful_tokens_a_second'], row['rows']
  return (
    f'{row["data"]:32} {gain["median"]:5.2f} ({gain["low"]:.2f}-{gain["high"]:.2f})  '
    f'{row["flops_ratio"]:6.2f}   {row["flops_ratio_t5_large"]:6.2f}   '
    f'{speed["packed"]:6.0f} for {speed["other"]:6.0f}   '
    f'{_by(rows["packed"])} for {_by(rows["other"])}'
  )


def _by(shape: list[int]) -> str:
  rows, prompt, response = shape
  return f'{rows} x ({prompt} + {response})'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--only', default='', help='data whose name holds this')
  parser.add_argument('--clock', choices=timing.CLOCKS, default='wall', help='cpu: of all cores together')
  parser.add_argument('--json', action='store_true', help='one JSON object on standard output')
  options = parser.parse_args()
  if options.json:
    print(json.dumps({'packing': list(measure(options))}))
    return
  print(HEADING)
  for row in measure(options):
    print(line(row), flush=True)


if __name__ == '__main__':
  main()
