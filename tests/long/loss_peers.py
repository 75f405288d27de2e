"""TRL's and HALOs' losses beside dro_jax's on the same log-probs: `python tests/long/loss_peers.py [WORDS]`.

It needs TRL (`pip install --no-deps trl datasets`) or a checkout of github.com/ContextualAI/HALOs, whose
folder DRO_JAX_HALOS names (`pip install omegaconf wandb` for its imports). It says what is absent, and skips
without both (exit code 77). Their own loss functions run, on their trainer classes without a model: random
token log-probs of a policy and a reference, responses of several lengths with masked ends, float64. It
compares the mean loss of the batch and its gradient with respect to every token's log-prob, over seeds and
temperatures, prints a table, and fails where a row that must agree does not, or a row that must not does.
WORDS keep the rows whose names hold one of them.

TRL 1 has no BCOTrainer: name an older one (0.29) by PYTHONPATH, and the row by `BCOTrainer`.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).resolve().parent)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from peers import halos, trl  # noqa: E402
from peers.ours import Case, Row, make_case  # noqa: E402

SKIPPED = 77
SEEDS, BETAS = (0, 1, 2), (0.05, 0.5, 2.0)
TOLERANCE = 1e-5  # Some of theirs round to float32 on the way.
DIFFERENT = 1e-4


def differences(row: Row) -> tuple[float, float]:
  """Largest relative difference of the mean loss, and of its gradient."""
  found = [compare(row, make_case(seed, beta)) for seed in SEEDS for beta in BETAS]
  value, gradient = map(max, zip(*found))
  return 0.0 if row.by_gradient else value, gradient


def compare(row: Row, case: Case) -> tuple[float, float]:
  import torch

  policy = torch.tensor(case.policy, requires_grad=True)
  theirs = row.theirs_by(case, policy)
  theirs.backward()
  ours, slope = jax.value_and_grad(lambda p: jnp.mean(row.ours_by(case, p)))(jnp.asarray(case.policy))
  value, expected = theirs.item(), policy.grad.numpy()
  gradient = float(np.abs(expected - slope).max() / np.abs(expected).max())
  return abs(value - float(ours)) / max(abs(value), 1e-30), gradient


def is_right(row: Row, value: float, gradient: float) -> bool:
  worst = max(value, gradient)
  return worst < TOLERANCE if row.agrees else worst > DIFFERENT


def absent() -> Iterator[str]:
  """What is missing of the peers, in words; their modules are importable afterwards."""
  checkout = os.environ.get('DRO_JAX_HALOS', '')
  if checkout and pathlib.Path(checkout, 'train', 'trainers.py').is_file():
    import huggingface_hub

    huggingface_hub.HfFolder = getattr(huggingface_hub, 'HfFolder', None)  # HALOs' logins; gone since 1.0.
    sys.path.append(checkout)
  else:
    yield 'HALOs: DRO_JAX_HALOS names no checkout of it'
  if not importlib.util.find_spec('trl'):
    yield 'TRL: it is not installed (pip install --no-deps trl datasets)'


def main(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('words', nargs='*', help='keep the rows whose peer or loss holds one of them')
  parser.add_argument('--json', action='store_true', help='one JSON object a row')
  options = parser.parse_args(arguments)
  missing = list(absent())
  for words in missing:
    print(f'without {words}', file=sys.stderr)
  if len(missing) == 2:
    return SKIPPED
  jax.config.update('jax_enable_x64', True)
  rows = [row for row in (*trl.rows(), *halos.rows()) if not any(w.startswith(row.peer) for w in missing)]
  if options.words:
    rows = [row for row in rows if any(word in f'{row.peer} {row.loss}' for word in options.words)]
  elif not importlib.util.find_spec('trl.experimental.bco'):
    rows = [row for row in rows if row.loss != 'BCOTrainer']
  return print_table(rows, options.json)


def print_table(rows: Sequence[Row], as_json: bool) -> int:
  wrong = 0
  if not as_json:
    print('| peer | its loss | here | value | gradient | why |\n|---|---|---|---|---|---|')
  for row in rows:
    value, gradient = differences(row)
    right = is_right(row, value, gradient)
    wrong += not right
    note = row.why if right else f'WRONG: {row.why}'
    if as_json:
      print(
        json.dumps({'peer': row.peer, 'loss': row.loss, 'value': value, 'gradient': gradient, 'right': right})
      )
    else:
      values = 'not compared' if row.by_gradient else f'{value:.0e}'
      print(f'| {row.peer} | `{row.loss}` | {row.ours} | {values} | {gradient:.0e} | {note} |', flush=True)
  print(f'{len(rows)} rows, {wrong} wrong; {len(SEEDS)} seeds × β in {BETAS}', file=sys.stderr)
  return 1 if wrong or not rows else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
