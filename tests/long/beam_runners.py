"""`build_table` by Beam's runners, and by none: `python tests/long/beam_runners.py [NAME ...]`.

It needs Beam (`pip install '.[beam]'` in an environment of its own; `dask[distributed]` for Dask), and skips
without it (exit code 77). The tables of three files in several pieces must be equal to the byte, and a
repeated id must be refused in the same words.

    portable   a job service in a process of its own, to which the pipeline goes by Beam's portable protocol,
               and which starts workers in processes of their own: as Flink, Spark and Dataflow are spoken to
    processes  Beam's direct runner with two workers in processes of their own
    dask       a Dask cluster of two worker processes

Without a name it does all three, in some two minutes.
"""

import contextlib
import gzip
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # Dask's scheduler lives in this process.
SKIPPED = 77
RECORDS = 24_000
PYTHON = [sys.executable, '-m']


def main(folder: pathlib.Path, names: list[str]) -> int:
  if not importlib.util.find_spec('apache_beam'):
    print("skipped: apache-beam is not installed (pip install '.[beam]' in an environment of its own)")
    return SKIPPED
  files, repeated = write_files(folder)
  whole = built(folder / 'whole', files)
  refusal = refused(folder / 'whole', repeated)
  for name in names or RUNNERS:
    began = time.monotonic()
    with RUNNERS[name](folder) as options:
      if not options:
        print(f'{name}: skipped, it is not installed')
        continue
      table = built(folder / name, files, f'--beam_options={options}', '--set=PIECE_MEGABYTES=1')
      same = same_table(whole, table)
      expect(refused(folder / name, repeated, f'--beam_options={options}'), refusal, 'a refusal')
    print(
      f'{name}: {same} files equal to the byte, same refusal, {time.monotonic() - began:.0f} s', flush=True
    )
  return 0


def write_files(folder: pathlib.Path) -> tuple[str, str]:
  """Files of triplets of several formats, and the same with an id that comes twice."""
  rows = [
    {
      'prompt': f'{"ü" * (i % 23)} {i * i % 1700}',
      'response': 'word ' * (1 + i % 13),
      'reward': i / 7,
      'n': i,
    }
    for i in range(RECORDS)
  ]
  lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
  (folder / 'a.jsonl').write_text(''.join(lines))
  (folder / 'b.jsonl').write_text(''.join(lines[::-3]).removesuffix('\n'))
  (folder / 'c.jsonl.gz').write_bytes(gzip.compress(''.join(lines[:900]).encode()))
  twice = [json.dumps({'id': f'i{i % 300}'} | row) + '\n' for i, row in enumerate(rows[:301])]
  (folder / 'twice.jsonl').write_text(''.join(twice))
  names = [str(folder / name) for name in ('a.jsonl', 'b.jsonl', 'c.jsonl.gz')]
  return ','.join(names), str(folder / 'twice.jsonl')


def called(cache: pathlib.Path, files: str, *flags: str) -> subprocess.CompletedProcess[str]:
  sizes = ['--set=PROMPT_LENGTH=32', '--set=RESPONSE_LENGTH=48', f'--set=CACHE_DIR={cache}']
  line = [*PYTHON, 'dro_jax.main', 'build_table', f'--triplets={files}', '--json', *sizes, *flags]
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)


def built(cache: pathlib.Path, files: str, *flags: str) -> pathlib.Path:
  done = called(cache, files, *flags)
  expect(done.returncode, 0, done.stderr[-3000:])
  return pathlib.Path(json.loads(done.stdout)['table'])


def refused(cache: pathlib.Path, files: str, *flags: str) -> str:
  done = called(cache, files, *flags)
  expect(done.returncode, 2, done.stderr[-3000:])
  return next(line for line in done.stderr.splitlines() if line.startswith('dro_jax:'))


def same_table(one: pathlib.Path, other: pathlib.Path) -> int:
  """How many files two tables have, which must be equal but for the seconds in table.json."""
  names = sorted(path.name for path in one.iterdir())
  expect((other.name, sorted(path.name for path in other.iterdir())), (one.name, names), 'names')
  for name in names:
    if name != 'table.json':
      expect((other / name).read_bytes() == (one / name).read_bytes(), True, f'{name} is equal')
  expect(description(other), description(one), 'table.json')
  return len(names)


def description(table: pathlib.Path) -> dict:
  """table.json without what a clock says."""
  meta = json.loads((table / 'table.json').read_text())
  meta.pop('seal')
  meta['report'].pop('seconds')
  return meta


@contextlib.contextmanager
def portable(folder: pathlib.Path) -> Iterator[str]:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  worker = folder / 'worker.sh'
  worker.write_text(f'#!/bin/sh\nexec {sys.executable} -m apache_beam.runners.worker.sdk_worker_main\n')
  worker.chmod(0o755)
  service = [*PYTHON, 'apache_beam.runners.portability.local_job_service_main', f'--port={port}']
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  with open(folder / 'service.log', 'w') as log:
    server = subprocess.Popen(service, env=environment, stdout=log, stderr=log)
  try:
    wait_for(port, server)
    kind = '--environment_type=beam:env:harness_subprocess_python:v1'
    yield f'--runner=PortableRunner --job_endpoint=localhost:{port} {kind} --environment_config={worker}'
  finally:
    server.terminate()
    server.wait()


def wait_for(port: int, server: subprocess.Popen) -> None:
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline and server.poll() is None:
    with contextlib.suppress(OSError), socket.create_connection(('localhost', port), timeout=1):
      return
    time.sleep(0.1)
  sys.exit('FAILED: the job service does not answer')


@contextlib.contextmanager
def processes(folder: pathlib.Path) -> Iterator[str]:
  yield '--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing'


@contextlib.contextmanager
def dask(folder: pathlib.Path) -> Iterator[str]:
  if not importlib.util.find_spec('distributed'):
    yield ''
    return
  import distributed

  os.environ['PYTHONPATH'] = str(ROOT)
  with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
    runner = 'apache_beam.runners.dask.dask_runner.DaskRunner'
    yield f'--runner={runner} --dask_client_address={cluster.scheduler_address}'


RUNNERS = {'portable': portable, 'processes': processes, 'dask': dask}


def expect(found: object, wanted: object, what: str) -> None:
  if found != wanted:
    sys.exit(f'FAILED: {what}: {str(found)[:2000]}, and not {str(wanted)[:2000]}')


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as place:
    sys.exit(main(pathlib.Path(place), sys.argv[1:]))
