"""How full the rows are: packs triplet files as `train` does, and reports fill, shapes and speed.

  python benchmarks/fill.py --vocabulary=t5.model --rows=512,384 train.jsonl.gz

Fill is the share of row positions that hold tokens, over whole epochs. A row count that occurs beside the
usual one is another shape, which costs one more compilation.
"""

import argparse
import json
import tempfile
import time
from typing import Any

from arguments import pair

from dro_jax.data.batches.packing import Layout, fill
from dro_jax.data.batches.plan import Plan
from dro_jax.data.sources.find import find
from dro_jax.data.table.cache import build_table
from dro_jax.data.text.vocabularies import vocabulary


def measure(path: str, options: argparse.Namespace) -> dict[str, Any]:
  """One file's numbers."""
  with tempfile.TemporaryDirectory() as cache:
    words = vocabulary(options.vocabulary)
    began = time.perf_counter()
    limits = {'prompt_length': options.limits[0], 'response_length': options.limits[1]}
    table = build_table(find(path, columns=options.columns), words, cache, **limits)
    built = time.perf_counter() - began
    plan = Plan.from_table(table, options.batch, options.seed)
    steps = int(options.epochs * plan.batches_per_epoch)
    began = time.perf_counter()
    batches = [plan.batch(step) for step in range(steps)]
    planned = time.perf_counter() - began
    layout = Layout.fit(
      table, plan, prompt_length=options.rows[0], response_length=options.rows[1], packed=not options.padded,
      encode_once=not options.repeat_prompts, row_multiple=options.row_multiple, coverage=options.coverage,
    )  # fmt: skip
    began = time.perf_counter()
    filled = fill(table, layout, batches)
    placed = time.perf_counter() - began
    report = table.report
    return {
      'file': path, 'records': len(table), 'prompts': report['prompts'],
      'mean_lengths': [round(report['mean_prompt_length'], 2), round(report['mean_response_length'], 2)],
      'overlong': [report['truncated_prompts'], report['overlong_responses']],
      'rows': filled.rows, 'row_lengths': [layout.prompt_length, layout.response_length],
      'slots': layout.slots, 'fill': [round(filled.prompt, 4), round(filled.response, 4)],
      'table_megabytes_a_second': round(report['text_megabytes'] / built, 1),
      'batches_planned_a_second': round(steps / planned), 'batches_placed_a_second': round(steps / placed),
    }  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('files', nargs='+', help='triplet files, each measured by itself')
  parser.add_argument('--vocabulary', default='bytes', help='bytes, or a SentencePiece model')
  parser.add_argument('--columns', help="the files' own names: response=post_edit")
  parser.add_argument('--batch', type=int, default=32, help='responses a batch')
  parser.add_argument('--limits', type=pair, default=(512, 512), help='longest prompt,response in tokens')
  parser.add_argument('--rows', type=pair, default=(None, None), help='prompt,response tokens of a row')
  parser.add_argument('--row_multiple', type=int, default=1, help='rows come in multiples of this')
  parser.add_argument('--coverage', type=float, default=1.0, help='share of batches that the row count holds')
  parser.add_argument('--padded', action='store_true', help='one response a row')
  parser.add_argument('--repeat_prompts', action='store_true', help='a copy of the prompt for each response')
  parser.add_argument('--epochs', type=float, default=2.0)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  for path in options.files:
    print(json.dumps(measure(path, options)))


if __name__ == '__main__':
  main()
