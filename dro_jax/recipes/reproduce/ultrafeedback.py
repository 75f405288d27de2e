"""The stages of DRO's experiments at the paper's own scale: FLAN-T5 on UltraFeedback."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax.recipes.reproduce import stages
from dro_jax.recipes.reproduce.stages import Stage, Training, settings


class Size(NamedTuple):
  """A model's size: where its weights are, its steps, its slice, and the hours that the paper states."""

  source: str
  steps: int
  topology: str
  hours: float


SIZES: Mapping[str, Size] = {
  'l': Size('google/flan-t5-large', 40_000, 'v5e:4x4', 21.0),
  'xl': Size('google/flan-t5-xl', 20_000, 'v5e:4x8', 48.0),
}
# More than 5 folds of 1,000 prompts and those that choose a checkpoint; UltraFeedback has 64k prompts.
_TEST_FRACTION, _PROMPTS, _CHOOSE = 0.11, 6250, 0.2
_GIN = {'dro_v': 'dro/t5_{}.gin', 'kto': 'kto/t5_{}.gin'}


def imported(size: str) -> Stage:
  """FLAN's checkpoint: SFT, start and reference."""
  return stages.imported(f'flan-{size}', SIZES[size].source)


def train(
  algorithm: str,
  size: str,
  *,
  name: str | None = None,
  gin_file: str | None = None,
  steps: int | None = None,
  **values: Any,
) -> Stage:
  """A training cell by its experiment's gin file.

  Args:
    algorithm: dro_v or kto.
    size: l or xl.
    name: of the stage; `None` is ALGORITHM-SIZE.
    gin_file: in experiments/; `None` is the main table's.
    steps: of the gin file, where it is another one.
    values: settings beside it.
  """
  about = SIZES[size]
  steps = steps or about.steps
  training = Training(steps, about.topology, size, about.hours * steps / about.steps)
  gin_files = [f'experiments/{gin_file or _GIN[algorithm].format(size)}']
  more = settings({'TEST_FRACTION': _TEST_FRACTION, **values})
  return stages.trained(name or f'{algorithm}-{size}', gin_files, imported(size), training, *more)


def split() -> Stage:
  """The prompts that no run saw."""
  return stages.held_out('test-prompts', train('dro_v', 'l'))


def judged(
  name: str,
  runs: Mapping[str, Stage],
  size: str,
  judge: Sequence[str],
  *,
  against: str = 'all',
  last: bool = False,
) -> Stage:
  """Side by side: SFT, and of each run the checkpoint that wins most, or the `last`."""
  sft, prompts = imported(size), split()
  choice = {'PROMPTS': 5000} if last else {'CHOOSE': _CHOOSE, 'PROMPTS': _PROMPTS}
  values = {'AGAINST': against, **choice, 'FOLDS': 5, 'MAX_LENGTH': 512}
  file = prompts.at('split', 'test.jsonl')
  return stages.judged(name, sft.run, runs, file, [sft, prompts], values, judge, last=last)


NOTES = [
  'Stated by the paper: data, models, losses, rewards of mean 0 and variance 1, optimiser, rates, warm-up, '
  'batch, steps, τ, a checkpoint every 2,000 steps of which the best by win rate counts, 5 folds of 1,000 '
  'prompts.',
  'Ours: the judge, for PaLM 2 can be had no longer; its instructions; answers sampled at temperature 1 and '
  'of 512 tokens at most; 11 % of the prompts kept for tests, of which others choose the checkpoint than are '
  'reported on; and what the experiments’ gin files list under Ours.',
]
