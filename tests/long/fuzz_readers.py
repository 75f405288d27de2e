"""Feeds damaged and odd files to whatever reads a user's files; only UsageErrors may come out, and no hang.

    python tests/long/fuzz_readers.py --minutes=15          # prints cases, failures and what was accepted
    python tests/long/fuzz_readers.py --seed=123 --cases=1  # one case again; a failure is kept under --output

A case follows from its seed alone: triplet files (jsonl, json, csv, tsv, gz, parquet) with --columns,
--map_reward and chat templates, through the readers or the whole way to a table; the token table's own files;
column stores, and reference stores. What is read must be sound, what was not damaged must be read as it was
written, and a damaged table or store must be refused or say what it said before. Cases run in a process of
their own, so that one which crashes or hangs the interpreter is a failure like others.
"""

import argparse
import collections
import csv
import gzip
import io
import json
import logging
import math
import os
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from dro_jax.data.records import readers  # noqa: E402
from dro_jax.data.records import triplets as sources  # noqa: E402
from dro_jax.data.table import column_store, table  # noqa: E402
from dro_jax.data.text.vocabularies import vocabulary  # noqa: E402
from dro_jax.data.triplets import (  # noqa: E402
  Triplets,
  load_triplets,
  require_rewards,
  with_missing_rewards_zero,
)
from dro_jax.errors import UsageError  # noqa: E402

HANG = 60  # Seconds without a new case.
MEMORY = 12 * 2**30  # Bytes of address space; what a file asks for beyond is a MemoryError, and a failure.
FORMATS = ('.jsonl', '.json', '.csv', '.tsv', '.jsonl.gz', '.json.gz', '.csv.gz', '.tsv.gz', '.parquet')
NAMES = (
  'prompt', 'response', 'reward', 'id', 'messages', 'label', 'behaviour_logprob', 'behaviour_logps',
  'behaviour_sampler', 'question', 'thumbs', 'hter', '../x', 'a/b', '', 'ü', '\ud800',
)  # fmt: skip
WORDS = (
  'up', 'Up ', 'down', 'true', 'False', '1', '1.0', '1_0', 'nan', '-inf', '★★★☆☆', '4/5', '3 stars', '👍',
  '❤️', '👍🏽', '', ' ', '\0', 'x' * 200, '\ud800', '9' * 400, 'user', 'assistant',
)  # fmt: skip
TOKENS = (
  b'\0', b'\xff', b'\xef\xbb\xbf', b'\xff\xfe', b'\r', b'\r\n', b'\n', b'"', b'""', b',', b'\t', b'{', b'}',
  b'[' * 2000, b']', b'NaN', b'Infinity', b'9' * 5000, b'\\ud800', b'\\u0000', b'null', b'true', b'-',
  b'PK\x03\x04', b'\x1f\x8b', b'PAR1', b'<html>', b'"reward":', b'x' * 10000, b'\xf0\x9f\x91\x8d', b'1e999',
)  # fmt: skip
COLUMNS = (
  'label=,id=',
  'prompt=a.0.b',
  'reward=thumbs[0],prompt=messages.-1.content',
  'reward=label',
  'messages=messages',
  'prompt=',
  'response=question,reward=thumbs',
  {'id': 'hter'},
)
MAPS = ('numbers', 'stars', 'numbers,stars', 'up=1,down=0', 'stars,up=x', {'up': 1, 'a,b': 2.5}, 'true=1')
TEMPLATES = ('{content}', '{role}{content}', '{role}', '{', '{content:>{role}}', '{0}')
# How errors begin that are about options, or about all records and no single one.
GENERAL = ('columns', 'map_reward', 'chat template', 'all ', 'reward scaling', 'holding out')


# --- what is written ----------------------------------------------------------------------------------------


def _leaf(rng: random.Random):
  return rng.choice(
    [
      rng.choice(WORDS), rng.random(), rng.randrange(-5, 5), 10**rng.randrange(30), True, False, None,
      math.nan, math.inf, -0.0, [], {}, [1, 'x'], {'a': 1},
    ]
  )  # fmt: skip


def _talk(rng: random.Random) -> list:
  roles = ['user', 'assistant', 'system', 'tool', 'User', 3, None]
  contents = ['hi', '', 'a {x} b', None, 3, [{'type': 'text', 'text': 'part'}], [{'type': 'image'}], ['x']]
  weights = [20, 20, 5, 2, 1, 1, 1], [20, 2, 5, 1, 1, 3, 1, 1]
  beside = [{}, {'tool_calls': [{'id': 'x'}]}, {'name': None, 'id': 'y'}, {'reasoning': 'z'}]
  turns = [
    {'role': rng.choices(roles, weights[0])[0], 'content': rng.choices(contents, weights[1])[0]}
    | rng.choices(beside, [9, 1, 3, 1])[0]
    for _ in range(rng.randrange(5))
  ]
  return turns if rng.random() < 0.9 else [*turns, _leaf(rng)]


def _written(talk: list, rng: random.Random):
  """A conversation as it is, or as text of some kind."""
  kind = rng.randrange(6)
  if kind == 0:
    return json.dumps(talk)
  if kind == 1:
    return repr(talk)
  if kind == 2:
    return repr(talk)[: rng.randrange(len(repr(talk)) + 1)]
  return {'messages': talk, 'tools': rng.choice([[], 'x'])} if kind == 3 else talk


def sane(rng: random.Random) -> list[dict]:
  """Records that every format holds."""
  letters = 'ab\n",\t;ß日👍 \'{}\\'

  def text() -> str:
    return ''.join(rng.choices(letters, k=rng.randrange(1, 20))) + 'z'

  return [
    {'id': f'r{i}', 'prompt': text(), 'response': text(), 'reward': rng.randrange(-9, 9) / 4, 'hter': i / 8}
    for i in range(rng.randrange(1, 9))
  ]


def odd(rng: random.Random) -> list[dict]:
  """Records with a little of everything."""
  records = sane(rng)
  for record in records:
    while rng.random() < 0.5:
      record[rng.choice(NAMES)] = _written(_talk(rng), rng) if rng.random() < 0.3 else _leaf(rng)
    if rng.random() < 0.15:
      record.pop(rng.choice(list(record)))
  return records


def encoded(records: list[dict], ending: str, rng: random.Random) -> bytes:
  """A file's bytes; what parquet cannot hold becomes text."""
  if ending == '.parquet':
    return _parquet(records, rng)
  if ending in ('.json', '.json.gz'):
    data = json.dumps(records, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
  elif ending.startswith('.jsonl'):
    data = ''.join(json.dumps(record, ensure_ascii=rng.random() < 0.5) + '\n' for record in records)
  else:
    file = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(file, names, delimiter='\t' if ending.startswith('.tsv') else ',')
    writer.writeheader()
    writer.writerows(records)
    data = file.getvalue()
  plain = data.encode('utf-8', 'surrogatepass')
  return gzip.compress(plain, mtime=0) if ending.endswith('.gz') else plain


def _parquet(records: list[dict], rng: random.Random) -> bytes:
  file = io.BytesIO()
  codec = rng.choice(['snappy', 'none', 'gzip', 'zstd'])
  try:
    found = pa.Table.from_pylist(records)
    pq.write_table(found, file, compression=codec, write_page_checksum=rng.random() < 0.5)
  except (pa.ArrowException, ValueError, TypeError, OverflowError):
    file = io.BytesIO()
    texts = [{str(k).encode('utf-8', 'replace').decode(): repr(v) for k, v in r.items()} for r in records]
    pq.write_table(pa.Table.from_pylist(texts), file, compression=codec)
  return file.getvalue()


def mutated(data: bytes, rng: random.Random, most: int = 6) -> bytes:
  """The same with some bytes flipped, cut, doubled, moved or put in."""
  found = bytearray(data)
  for _ in range(rng.randrange(1, most)):
    at, other = sorted(rng.randrange(len(found) + 1) for _ in range(2))
    kind = rng.randrange(7)
    if kind == 0 and at < len(found):
      found[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
      at = _at_a_value(found, at) if rng.random() < 0.5 else at
      found[at:at] = rng.choice(TOKENS)
    elif kind == 2:
      del found[at : min(other, at + rng.choice([1, 4, 10**9]))]
    elif kind == 3:
      found[at:at] = found[at : min(other, at + 1000)]
    elif kind == 4:
      del found[at:]
    elif kind == 5:
      found[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif at < len(found):
      found[at] = rng.choice([0, 255, 10, 13, 34, 44])
  return bytes(found)


def _at_a_value(data: bytearray, at: int) -> int:
  """The next place where a field of text begins."""
  found = [place for mark in (b': ', b', ', b',', b'\t', b'\n') if (place := data.find(mark, at)) >= 0]
  return min(found) + (2 if data[min(found) + 1 : min(found) + 2] == b' ' else 1) if found else at


def _pairs(names: tuple[str, ...], values: tuple[str, ...], rng: random.Random) -> str:
  return ','.join(f'{rng.choice(names)}={rng.choice(values)}' for _ in range(rng.randrange(4)))


def _options(rng: random.Random) -> dict:
  options = {}
  if rng.random() < 0.3:
    options['columns'] = rng.choice([_pairs(NAMES, NAMES, rng), *COLUMNS])
  if rng.random() < 0.4:
    options['map_reward'] = rng.choice([_pairs(WORDS, ('1', '0', '-1.5', 'nan', 'x', ''), rng), *MAPS])
  if rng.random() < 0.2:
    options['chat_template'] = rng.choice(TEMPLATES)
  return options


# --- what is tried ------------------------------------------------------------------------------------------


class Wrong(AssertionError):
  """Something was read that cannot be right, or an error that helps nobody."""


def _check(condition: bool, what: str) -> None:
  if not condition:
    raise Wrong(what)


def _check_record(record: sources.Record) -> None:
  for text in (record.prompt, record.response, record.id):
    _check(isinstance(text, str) and '\0' not in text, f'text {text!r}')
    text.encode()
  _check(bool(record.prompt.strip()) and bool(record.response.strip()), 'an empty text')
  numbers = [*record.columns.values(), 0.0 if record.reward is None else record.reward]
  _check(all(isinstance(x, float) and math.isfinite(x) for x in numbers), f'numbers {numbers}')


def try_files(rng: random.Random, folder: pathlib.Path) -> str:
  """Odd or damaged triplet files, through the readers."""
  ending, damaged = rng.choice(FORMATS), rng.random() < 0.7
  records = (sane if rng.random() < 0.5 else odd)(rng)
  data = encoded(records, ending, rng)
  path = folder / f't{ending if rng.random() < 0.95 else rng.choice(FORMATS)}'
  if damaged and ending.endswith('.gz') and rng.random() < 0.5:
    data = gzip.compress(mutated(gzip.decompress(data), rng), mtime=0)
  elif damaged:
    data = mutated(data, rng)
  path.write_bytes(data)
  options = _options(rng)
  required = rng.random() < 0.8
  how = rng.randrange(5)
  if how == 0:
    for _ in sources.read_prompts(
      str(path), options.get('columns'), chat_template=options.get('chat_template', '{role}: {content}')
    ):
      pass
    return 'prompts read'
  if how == 1:
    list(readers.located(str(path)))
    return 'fields read'
  if how == 2:
    found = load_triplets(
      str(path), cache_dir=str(folder / 'cache'), validation_fraction=rng.choice([0, 0.5]), prompt_length=16,
      response_length=rng.choice([1, 16]), overlong=rng.choice(['truncate', 'drop']),
      scaling=rng.choice(['none', 'standardise']), **options,
    )  # fmt: skip
    if required:
      require_rewards(found, 'this test')
    found = with_missing_rewards_zero(found)
    _check(np.isfinite(found.train.rewards).all(), 'rewards')
    _check(not set(os.listdir(folder)) - {path.name, 'cache'}, 'something outside')
    return 'table built'
  found = list(sources.read_triplets(str(path), rewards_required=required, **options))
  for record in found:
    _check_record(record)
  _check(len({record.id for record in found}) == len(found), 'two of one id')
  return 'triplets read'


def _exported(rng: random.Random):
  """An export of a chat product's, whole or with something odd put in."""
  names = [f'm{i}' for i in range(rng.randrange(1, 6))]
  parents = [
    rng.choice([None, *names]) if rng.random() < 0.2 else before for before, _ in zip([None, *names], names)
  ]
  webui = {
    name: {
      'id': name, 'parentId': parent, 'role': ('user', 'assistant')[i % 2], 'content': rng.choice(WORDS),
      'annotation': {'rating': rng.choice([1, -1, None])}, 'files': [],
    }
    for i, (name, parent) in enumerate(zip(names, parents))
  }  # fmt: skip
  libre = [
    {
      'messageId': name, 'parentMessageId': parent, 'isCreatedByUser': i % 2 == 0, 'text': rng.choice(WORDS),
      'feedback': {'rating': rng.choice(['thumbsUp', 'thumbsDown', None])},
    }
    for i, (name, parent) in enumerate(zip(names, parents))
  ]  # fmt: skip
  chat = {'id': 'c', 'chat': {'history': {'messages': webui}, 'params': {'system': rng.choice(WORDS)}}}
  rating = {'id': 'f', 'data': {'rating': 1}, 'meta': {'message_id': names[-1]}, 'snapshot': {'chat': chat}}
  found = rng.choice([[chat], [rating], libre, [{'conversationId': 'c', 'messages': libre}]])
  while rng.random() < 0.5:
    _put_in(found, _leaf(rng) if rng.random() < 0.8 else _talk(rng), rng)
  return found


def _put_in(found, odd, rng: random.Random) -> None:
  """Replaces something somewhere in nested lists and objects."""
  while True:
    keys = list(found) if isinstance(found, dict) else range(len(found))
    if not keys:
      return
    key = rng.choice(keys)
    if not isinstance(found[key], dict | list) or rng.random() < 0.2:
      found[key] = odd
      return
    found = found[key]


def try_products(rng: random.Random, folder: pathlib.Path) -> str:
  """Exports of chat products, whole and odd."""
  path = folder / 't.json'
  path.write_text(json.dumps(_exported(rng)))
  options = {'map_reward': rng.choice(['thumbsUp=1,thumbsDown=0', None])}
  found = list(sources.read_triplets(str(path), **options))
  for record in found:
    _check_record(record)
  return 'an export read' if found else 'nothing rated'


def try_round_trip(rng: random.Random, folder: pathlib.Path) -> str:
  """Sound records in every format: read as they were written."""
  ending, records = rng.choice(FORMATS), sane(rng)
  path = folder / f't{ending}'
  path.write_bytes(encoded(records, ending, rng))
  found = list(sources.read_triplets(str(path)))
  want = [(r['id'], r['prompt'], r['response'], r['reward'], {'hter': r['hter']}) for r in records]
  _check([tuple(r[:5]) for r in found] == want, f'{found} of {want}')
  return 'read as written'


def _damage(folder: pathlib.Path, rng: random.Random) -> None:
  path = rng.choice(sorted(folder.iterdir()))
  kind = rng.randrange(6)
  if kind == 0:
    path.unlink()
  elif kind == 1:
    other = rng.choice(sorted(folder.iterdir()))
    shutil.copy(other, folder / 'swap')
    os.replace(folder / 'swap', path)
  else:
    path.write_bytes(mutated(path.read_bytes(), rng, most=3))


def _said(found: table.TokenTable) -> list:
  n = range(len(found))
  numbers = [found.rewards.tolist(), {name: x.tolist() for name, x in found.columns.items()}]
  tokens = [(found.prompt(i).tolist(), found.response(i).tolist()) for i in n]
  return [
    list(found.ids),
    list(found.prompts),
    list(found.responses),
    numbers,
    tokens,
    found.truncated.tolist(),
  ]


def _small_table(rng: random.Random, folder: pathlib.Path, records: list[dict]) -> table.TokenTable:
  return table.build(records, vocabulary('bytes'), folder / 'table', prompt_length=16, response_length=16)


def try_table(rng: random.Random, folder: pathlib.Path) -> str:
  """A cached table one of whose files is damaged: refused, and built again, never wrong."""
  records = sane(rng)
  want = _said(_small_table(rng, folder, records))
  _damage(folder / 'table', rng)
  outcome = 'a damaged table refused'
  try:
    _check(_said(table.load(folder / 'table')) == want, 'a damaged table was read')
    outcome = 'a table as it was'
  except UsageError:
    pass
  try:
    _check(_said(_small_table(rng, folder, records)) == want, 'a table built again says something else')
  except UsageError as error:
    _check('holds something else' in str(error), f'not built again: {error}')
  return outcome


def try_store(rng: random.Random, folder: pathlib.Path) -> str:
  """A column store one of whose files is damaged: refused, or as it was."""
  built = _small_table(rng, folder, sane(rng))
  ragged = {'x': (np.arange(built.response_lengths.sum(), dtype=np.float32), built.response_lengths)}
  name = rng.choice(['value', '../../up', 'a/b'])
  pairs = column_store.Pairs(column_store.keys(built), {'logps': built.rewards})
  column_store.write(
    folder / 'store', column_store.keys(built), {name: built.rewards}, token_columns=ragged, pairs=pairs
  )
  _check(set(os.listdir(folder)) == {'table', 'store'}, 'something outside')

  def said() -> list:
    joined = column_store.join(built, column_store.read(folder / 'store')).table
    return [_said(joined), [joined.token_column('x', i).tolist() for i in range(len(joined))]]

  want = said()
  _damage(folder / 'store', rng)
  try:
    _check(said() == want, 'a damaged store was read')
  except UsageError:
    return 'a damaged store refused'
  return 'a store as it was'


def _json(rng: random.Random, depth: int = 0):
  if depth < 3 and rng.random() < 0.4:
    return {rng.choice(['parameters', 'model', 'data', 'plan', 'x']): _json(rng, depth + 1) for _ in range(3)}
  return rng.choice([None, 1, 'x', [1], {}, True, 'parameters'])


def try_reference_store(rng: random.Random, folder: pathlib.Path) -> str:
  """A store that is whole, and another's: it does not serve, and the run says why."""
  from dro_jax import algorithms
  from dro_jax.models.t5.config import T5Config
  from dro_jax.run import reference_store
  from dro_jax.step import reference

  built = _small_table(rng, folder, sane(rng))
  flat = np.zeros(built.response_lengths.sum(), np.float32)
  token_columns = {rng.choice([reference_store.TOKEN_LOGPS, 'x']): (flat, built.response_lengths)}
  words, config = vocabulary('bytes'), T5Config()
  report = {'options': {}}
  made_of = reference_store.fingerprint(config, words, {}) | {'parameters': 'p'}
  fits = rng.random() < 0.3
  if not fits:
    made_of = _json(rng) if rng.random() < 0.3 else {**made_of, rng.choice(list(made_of)): _json(rng)}
  column_store.write(
    folder / 'store', column_store.keys(built), token_columns=token_columns,
    fingerprint=made_of if isinstance(made_of, dict) else {'x': made_of}, origin={'plan': _json(rng)},
  )  # fmt: skip
  triplets = Triplets(built, None, None, report)
  opened = reference_store.open_for(
    reference.Cached(str(folder / 'store')).build(None), algorithms.dro_v(), config, words, triplets
  )
  opened.refuse_other_plan({'steps': 1})
  return 'a reference store that fits'


TRIALS = (
  (try_files, 65),
  (try_products, 5),
  (try_round_trip, 8),
  (try_table, 12),
  (try_store, 7),
  (try_reference_store, 3),
)


def run_case(seed: int, folder: pathlib.Path) -> str:
  """What a case came to; what is not a UsageError is raised."""
  rng = random.Random(seed)
  (trial,) = rng.choices([trial for trial, _ in TRIALS], [weight for _, weight in TRIALS])
  try:
    return f'{trial.__name__}: {trial(rng, folder)}'
  except UsageError as error:
    message = str(error)
    _check(len(message) < 2000, f'an error of {len(message)} letters')
    named = str(folder) in message or message.startswith(GENERAL)
    _check(named, f'an error that names no file: {message}')
    return f'{trial.__name__}: refused'


# --- the processes ------------------------------------------------------------------------------------------


def work(seed: int, cases: int, until: float, output: pathlib.Path) -> int:
  """Runs cases from a seed on; says each one's outcome on a line, and the seed before it begins."""
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  logging.disable(logging.WARNING)
  for case in range(seed, seed + cases):
    if time.time() > until:
      break
    print(f'begin {case}', flush=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix='fuzz-'))
    try:
      outcome = run_case(case, folder)
    except Exception:
      outcome = 'FAILED'
      keep(output, case, folder, traceback.format_exc())
    shutil.rmtree(folder, ignore_errors=True)
    print(f'end {outcome}', flush=True)
  print('done', flush=True)
  return 0


def keep(output: pathlib.Path, case: int, folder: pathlib.Path | None, why: str) -> None:
  """Saves a failing case: its files and what happened."""
  place = output / str(case)
  shutil.rmtree(place, ignore_errors=True)
  if folder is not None and folder.exists():
    shutil.copytree(folder, place)
  place.mkdir(parents=True, exist_ok=True)
  (place / 'why.txt').write_text(why, errors='backslashreplace')
  print(f'case {case} failed, see {place}: {why.strip().splitlines()[-1][:300]}', file=sys.stderr)


def watch(command: list[str], output: pathlib.Path, counts: collections.Counter) -> int | None:
  """Follows a working process; the seed to go on from where it died or hung, None where it is done."""
  import selectors

  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  waiting = selectors.DefaultSelector()
  waiting.register(process.stdout, selectors.EVENT_READ)
  case = None
  while waiting.select(HANG):
    line = process.stdout.readline().strip()
    word, _, rest = line.partition(' ')
    if word == 'begin':
      case = int(rest)
    elif word == 'end':
      counts[rest] += 1
    elif word == 'done':
      process.wait()
      return None
    else:
      break
  process.kill()
  code = process.wait()
  if case is None:
    raise SystemExit(f'the working process ended at once, with code {code}')
  keep(output, case, None, f'the process hung or died (code {code})')
  counts['FAILED'] += 1
  return case + 1


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--minutes', type=float, default=5)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--cases', type=int, default=10**9)
  parser.add_argument('--output', default=os.path.join(tempfile.gettempdir(), 'dro_jax_fuzz'))
  parser.add_argument('--worker', type=float, default=0, help=argparse.SUPPRESS)
  given = parser.parse_args()
  output = pathlib.Path(given.output)
  if given.worker:
    return work(given.seed, given.cases, given.worker, output)
  began, counts, seed = time.time(), collections.Counter(), given.seed
  until = began + 60 * given.minutes
  while seed is not None and time.time() < until and seed < given.seed + given.cases:
    arguments = [f'--seed={seed}', f'--cases={given.seed + given.cases - seed}', f'--output={output}']
    seed = watch([sys.executable, __file__, f'--worker={until}', *arguments], output, counts)
  for outcome, count in counts.most_common():
    print(f'{count:8d}  {outcome}')
  seconds = time.time() - began
  print(f'{counts.total()} cases from seed {given.seed} in {seconds:.0f} s, {counts["FAILED"]} failed')
  return int(counts['FAILED'] > 0)


if __name__ == '__main__':
  sys.exit(main())
