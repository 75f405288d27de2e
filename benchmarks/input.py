"""The input's speed: building tables, feeding steps, and the seconds before a demo's first step.

  python benchmarks/input.py [--parts=table,loader,start] [--json]

table   megabytes of text a CPU second, all of a process's threads counted, and as a share of what
        SentencePiece alone does with the same texts; minimum of `--rounds` interleaved rounds each.
loader  rows loaded a second by one thread, against a step's need at ten times this machine's rate; and the
        share of time that a step of that length waits for its batch, prefetched as in training.
start   seconds from a process's start to its first step's end, of the demo: with an empty compilation cache,
        and with what that filled; and what each stage of it took.

DRO_JAX_DATA, a folder of FOLDER/*.train.jsonl.gz, gives real lengths; without it texts are generated.
DRO_JAX_VOCAB is a SentencePiece model; without it the vocabulary is bytes, and its figures are no aim's.
"""

import argparse
import gzip
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

# Seconds of a whole step on 2 cores, and its responses. T5 1.1 small, 8 x (128 + 128) tokens, AdamW, float32;
# and DRO-V's step of the demo's tiny model, on the demo's own words.
STEPS = {'t5_1_1_small': (3.5, 8), 'demo': (0.035, 128)}
FASTER = 10
STALL, MEGABYTES, START = 0.02, 4.0, 30.0  # The aims.
_WORDS = 'the of answer why some summary reads model light water very between grows small'.split()  # noqa: SIM905


# --- files --------------------------------------------------------------------------------------------------


def _generated(path: pathlib.Path, megabytes: float) -> None:
  """Triplets with the lengths of a feedback set: four responses to a prompt, log-normal."""
  rng, size = random.Random(0), 0
  with open(path, 'w') as file:
    while size < megabytes * 1e6:
      prompt = _text(rng, 4.2)
      for _ in range(4):
        record = {'prompt': prompt, 'response': _text(rng, 4.8), 'reward': rng.random()}
        size += file.write(json.dumps(record) + '\n')


def _text(rng: random.Random, log_mean: float) -> str:
  return ' '.join(rng.choices(_WORDS, k=1 + int(rng.lognormvariate(log_mean, 0.7)))) + f' {rng.random():.4f}'


def _files(folder: pathlib.Path, megabytes: float) -> dict[str, pathlib.Path]:
  """By name: real triplets where there are some, and generated ones."""
  found = {'generated': folder / 'generated.jsonl'}
  _generated(found['generated'], megabytes)
  for path in sorted(pathlib.Path(os.environ.get('DRO_JAX_DATA') or os.devnull).glob('*/*.train.jsonl.gz')):
    name = path.name.partition('.train')[0]
    found[name] = folder / f'{name}.jsonl'
    found[name].write_bytes(gzip.decompress(path.read_bytes()))
  return found


def _demo(folder: pathlib.Path) -> pathlib.Path:
  """The demo's own triplets, a quarter of them."""
  from dro_jax.data.worlds import toy

  path = folder / 'demo.jsonl'
  records = toy.sample_log(toy.World(), 16_000, 0)
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path


def _table(path: pathlib.Path, words, cache: str):
  from dro_jax.data.sources.find import find
  from dro_jax.data.table.cache import build_table

  return build_table(find(str(path)), words, cache, prompt_length=512, response_length=512)


# --- parts --------------------------------------------------------------------------------------------------


def measure_table(files: dict[str, pathlib.Path], words, rounds: int) -> Iterator[dict[str, Any]]:
  """Building beside tokenising, each in CPU seconds."""
  for name, path in files.items():
    built, tokenised, text = [], [], 0.0
    for _ in range(rounds):
      with tempfile.TemporaryDirectory() as cache:
        began = time.process_time()
        table = _table(path, words, cache)
        built.append(time.process_time() - began)
        text = table.report['text_megabytes']
        _, first = _np().unique(table.prompt_index, return_index=True)
        texts = [*table.responses[:], *(table.prompts[int(i)] for i in first)]
      began = time.process_time()
      for start in range(0, len(texts), 2048):
        words.encode_batch(texts[start : start + 2048])
      tokenised.append(time.process_time() - began)
    yield {
      'part': 'table', 'data': name, 'records': len(table), 'text_megabytes': text,
      'megabytes_a_cpu_second': text / min(built), 'tokenised_megabytes_a_cpu_second': text / min(tokenised),
      'share_of_tokenising': min(tokenised) / min(built), 'aim': MEGABYTES,
    }  # fmt: skip


def _np():
  import numpy as np

  return np


def measure_loader(
  files: dict[str, pathlib.Path], words, rounds: int, seconds: float
) -> Iterator[dict[str, Any]]:
  """Rows a second of one loader, and the stall of steps ten times as fast as this machine's."""
  from dro_jax.data.batches.loader import Loader
  from dro_jax.data.batches.packing import Layout
  from dro_jax.data.batches.plan import Plan

  for name, path in files.items():
    step = 'demo' if name == 'demo' else 't5_1_1_small'
    length, batch = STEPS[step]
    needed = length / FASTER
    with tempfile.TemporaryDirectory() as cache:
      table = _table(path, words, cache)
      plan = Plan.from_table(table, batch, 0)
      loader = Loader(table, plan, Layout.fit(table, plan))
      loaded, stalls = [], []
      for number in range(rounds):
        steps = range(number * 2000, number * 2000 + min(2000, max(20, int(seconds / needed))))
        began, rows = time.perf_counter(), 0
        for i in steps:
          rows += len(loader.rows(i).prompt_tokens)
        loaded.append(rows / (time.perf_counter() - began))
        stalls.append(_stall(loader, steps, needed))
    rows_a_step = loader.layout.rows
    yield {
      'part': 'loader', 'data': name, 'step': step, 'responses': batch, 'rows_a_step': rows_a_step,
      'step_seconds': needed, 'rows_a_second': statistics.median(loaded),
      'times_the_need': statistics.median(loaded) * needed / rows_a_step,
      'stall': statistics.median(stalls), 'aim': STALL,
    }  # fmt: skip


def _stall(loader, steps: range, seconds: float) -> float:
  """The share of time spent waiting for batches, the first one's wait left out."""
  from dro_jax.data.batches.loader import prefetch

  batches, waited = prefetch(loader, steps), 0.0
  next(batches)
  began = time.perf_counter()
  for _ in steps[1:]:
    time.sleep(seconds)  # As a device computes: without Python.
    asked = time.perf_counter()
    next(batches)
    waited += time.perf_counter() - asked
  batches.close()
  return waited / (time.perf_counter() - began)


_CHILD = """
import time
began = time.time()
import dataclasses, json, os, pathlib, sys
from dro_jax import demo
told = {'imports': time.time() - began}
sys.stdout.flush()
folder = pathlib.Path(sys.argv[1])
settings = demo.Settings(reference_steps=1, steps=1)
lap = time.time()
files = demo.write_files(demo.prepare(folder, settings) / 'data', settings)
told['writing the triplets'] = time.time() - lap
lap = time.time()
demo.fit(folder, settings, files['demonstrations'], 'SFT', demo.Method(demo.algorithms.sft, 3e-3), 1)
told['table, compilation, first step, checkpoint'] = time.time() - lap
print(json.dumps(told))
"""


def measure_start(rounds: int) -> Iterator[dict[str, Any]]:
  """Whole processes, the compilation cache cold and warm."""
  with tempfile.TemporaryDirectory() as cache:
    environment = os.environ | {
      'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }  # fmt: skip
    for number in range(rounds + 1):
      with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(
          [sys.executable, '-c', _CHILD, folder],
          env=environment,
          stdout=subprocess.PIPE,
          text=True,
          check=True,
        )
        seconds = time.perf_counter() - began
      stages = json.loads(done.stdout.splitlines()[-1])
      yield {
        'part': 'start', 'compilation_cache': 'warm' if number else 'cold', 'seconds': seconds, 'aim': START,
        'stages': {name: round(value, 2) for name, value in stages.items()},
      }  # fmt: skip


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
  """One result at a time."""
  from dro_jax.data.text.vocabularies import vocabulary

  parts = options.parts.split(',')
  words = vocabulary(os.environ.get('DRO_JAX_VOCAB') or 'bytes')
  with tempfile.TemporaryDirectory() as folder:
    files = _files(pathlib.Path(folder), options.megabytes) if {'table', 'loader'} & {*parts} else {}
    if 'table' in parts:
      yield from measure_table(files, words, options.rounds)
    if 'loader' in parts:
      yield from measure_loader(files, words, options.rounds, options.seconds)
      demo = {'demo': _demo(pathlib.Path(folder))}
      yield from measure_loader(demo, vocabulary('bytes'), options.rounds, options.seconds)
  if 'start' in parts:
    yield from measure_start(min(options.rounds, 2))


def _line(result: dict[str, Any]) -> str:
  shown = {name: f'{x:.4g}' if isinstance(x, float) else str(x) for name, x in result.items()}
  return '  '.join(f'{name} {text}' for name, text in shown.items())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--parts', default='table,loader,start', help='which to measure')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--megabytes', type=float, default=12, help='of the generated file')
  parser.add_argument('--seconds', type=float, default=4, help='of simulated steps, each round')
  parser.add_argument('--json', action='store_true', help='one JSON object, all results in it')
  options = parser.parse_args()
  results = []
  for result in measure(options):
    results.append(result)
    if not options.json:
      print(_line(result), flush=True)
  if options.json:
    print(json.dumps({'results': results}))


if __name__ == '__main__':
  main()
