"""The `make_world` command: the files of a small world whose answers a program can check."""

from collections.abc import Sequence
from typing import Any

from dro_jax import files, limits
from dro_jax.data.worlds import exercises, habits
from dro_jax.data.worlds.exercises import Exercises
from dro_jax.data.worlds.habits import Hand
from dro_jax.errors import UsageError, did_you_mean

# What is asked, and who demonstrates: as in the arena's worlds of these names.
WORLDS = {
  'exercises': (Exercises(), habits.PERFECT),
  'habits': (habits.ASKED, Hand()),
}


def make_world(
  output: str,
  *,
  world: str = 'habits',
  demonstrations: int = 4000,
  log_prompts: int = 4000,
  judged_prompts: int = 2000,
  test_prompts: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """Writes OUTPUT/demonstrations.jsonl, log.jsonl, judged.jsonl and test.jsonl; no prompt is in two of them.

  Demonstrations have responses, as triplets of reward 1. The others hold prompts: of a log, of comparisons
  for a reward model, and of tests. Rewards `graded_match` and `exact_match` know the right answers.

  Args:
    output: the folder to write.
    world: exercises, demonstrated without mistakes, or habits, by a hand that can do them and does not
      always.
    demonstrations: how many.
    log_prompts: how many.
    judged_prompts: how many.
    test_prompts: how many.
    seed: of all draws.

  Raises:
    UsageError: there is no such world, or it has fewer prompts.
  """
  limits.seed(seed)
  counts = {
    'demonstrations': demonstrations, 'log_prompts': log_prompts, 'judged_prompts': judged_prompts,
    'test_prompts': test_prompts,
  }  # fmt: skip
  limits.whole('make_world', **counts)
  limits.above_zero('make_world', 'its file would be empty', **counts)
  if world not in WORLDS:
    raise UsageError(
      f'there is no world {world!r}{did_you_mean(world, WORLDS)}: choose from {", ".join(WORLDS)}.'
    )
  kinds, hand = WORLDS[world]
  folder = files.output_folder(output)
  train = exercises.prompts(kinds, 'train', log_prompts + judged_prompts, seed)
  taught = exercises.prompts(kinds, 'sft', demonstrations, seed)
  written = {
    'demonstrations': habits.demonstrations(taught, hand, seed),
    'log': _asked(train[:log_prompts], 'log'),
    'judged': _asked(train[log_prompts:], 'judged'),
    'test': _asked(exercises.prompts(kinds, 'test', test_prompts, seed), 'test'),
  }
  folder.mkdir(parents=True, exist_ok=True)
  for name, records in written.items():
    files.write_atomically(folder / f'{name}.jsonl', ''.join(map(files.json_line, records)))
  return {'output': str(folder), **{name: len(records) for name, records in written.items()}}


def _asked(prompts: Sequence[str], name: str) -> list[dict[str, Any]]:
  return [{'id': f'{name}-{i}', 'prompt': prompt} for i, prompt in enumerate(prompts)]


__all__ = ['make_world']
