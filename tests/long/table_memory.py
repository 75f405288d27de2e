"""Builds the token table of a file larger than the memory that it may use: thrice the records take no more.

  python tests/long/table_memory.py --megabytes=2200 --limit=300

The memory is the process's own (`RssAnon` and `RssShmem`, sampled), and limited (`RLIMIT_DATA`): what the
system may page out, as the files and the hashes of ids and prompts, is told apart (`RssFile`). The end of a
build takes some 30 MB more than what comes before, whatever the file's size.
DRO_JAX_VOCAB, a SentencePiece model, makes it as slow as in use; without it the vocabulary is bytes.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time

_WORDS = 'the of answer why some summary reads model light water very between grows small'.split()  # noqa: SIM905
_MORE = 8e6  # Bytes that the larger file may take beyond the smaller: allocators are no accountants.
_TENTHS = 10


def generate(path: pathlib.Path, megabytes: float) -> int:
  """Writes triplets, four to a prompt, of lengths between a sentence and a page; returns how many."""
  rng, size, count, prompt = random.Random(0), 0, 0, ''
  text = ' '.join(rng.choices(_WORDS, k=2**20))
  with open(path, 'w') as file:
    while size < megabytes * 1e6:
      if count % 4 == 0:
        prompt = _cut(rng, text, 100)
      size += file.write(
        json.dumps({'prompt': prompt, 'response': _cut(rng, text, 350), 'reward': rng.random(), 'hter': 0.5})
      )
      size += file.write('\n')
      count += 1
  return count


def _cut(rng: random.Random, text: str, mean: int) -> str:
  start = rng.randrange(len(text) - 20 * mean)
  return f'{start} {text[start : start + 20 + min(19 * mean, int(rng.expovariate(1 / mean)))]}'


def _memory() -> tuple[float, float]:
  """Megabytes of this process: its own, and of files."""
  with open('/proc/self/status') as file:
    lines = dict(line.split(':', 1) for line in file if line.startswith('Rss'))
  anonymous, files, shared = (
    int(lines[f'Rss{kind}'].split()[0]) / 1024 for kind in ('Anon', 'File', 'Shmem')
  )
  return anonymous + shared, files


def _build(path: str, cache: str, limit: float) -> None:
  """In a process of its own: builds a table, and prints what it took."""
  from dro_jax.data.sources.find import find
  from dro_jax.data.table import table as tables
  from dro_jax.data.table.cache import build_table
  from dro_jax.data.text.vocabularies import vocabulary

  words = vocabulary(os.environ.get('DRO_JAX_VOCAB') or 'bytes')
  words.encode_batch(['warm'])
  if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e6),) * 2)
  samples, done, written = [_memory()], threading.Event(), []
  load = tables.load

  def opened(directory: str):
    written.append(len(samples))
    return load(directory)

  tables.load = opened

  def watch() -> None:
    while not done.wait(0.25):
      samples.append(_memory())

  thread = threading.Thread(target=watch)
  thread.start()
  wall, cpu = time.perf_counter(), time.process_time()
  table = build_table(find(path), words, cache, prompt_length=512, response_length=512)
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  done.set()
  thread.join()
  samples.append(_memory())
  opening = (max(own for own, _ in samples[written[0] - 1 :]) - samples[written[0] - 1][0]) * 2**20
  own, files = zip(*samples[: written[0]])
  cuts = [len(own) * i // _TENTHS for i in range(_TENTHS + 1)]
  report = {
    'records': len(table), 'prompts': table.report['prompts'], 'seconds': wall, 'cpu_seconds': cpu,
    'file_megabytes_a_cpu_second': os.path.getsize(path) / 1e6 / cpu,
    'text_megabytes_a_cpu_second': table.report['text_megabytes'] / cpu,
    'own_megabytes_by_tenths': [max(own[a : b + 1]) for a, b in itertools.pairwise(cuts)],
    'file_megabytes_at_most': max(files), 'opening_bytes_a_record': opening / len(table),
  }  # fmt: skip
  print(json.dumps({name: _rounded(value) for name, value in report.items()}))


def _rounded(value):
  return [round(x, 1) for x in value] if isinstance(value, list) else round(value, 1)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--megabytes', type=float, default=2200)
  parser.add_argument('--limit', type=float, default=300, help='megabytes of own memory; 0: no limit')
  parser.add_argument('--folder', help='for the files; three times the megabytes are needed')
  parser.add_argument('--build', help=argparse.SUPPRESS)
  parser.add_argument('--cache', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.build:
    return _build(options.build, options.cache, options.limit)
  small, whole = (_measured(size, options) for size in (options.megabytes / 3, options.megabytes))
  print(json.dumps(whole, indent=1))
  peaks = [max(found['own_megabytes_by_tenths']) for found in (small, whole)]
  print(
    f'own memory: {peaks[0]} MB for {options.megabytes / 3:.0f} MB of file, {peaks[1]} for thrice as much'
  )
  if (peaks[1] - peaks[0]) * 1e6 > _MORE:
    sys.exit('own memory grows with the records')


def _measured(megabytes: float, options: argparse.Namespace) -> dict:
  """What the table of a file of this size takes."""
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    path = pathlib.Path(folder) / 'triplets.jsonl'
    generate(path, megabytes)
    command = [sys.executable, __file__, f'--build={path}', f'--cache={folder}', f'--limit={options.limit}']
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


if __name__ == '__main__':
  main()
