"""Comparisons of sides: who meets whom, what the judge sees, and the scores that come of it."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.errors import UsageError
from dro_jax.evaluation.judge.judges import Comparison, Judge, Judged
from dro_jax.evaluation.judge.prompts import Prompt
from dro_jax.evaluation.judge.verdicts import Verdict
from dro_jax.statistics import win_rates

Answers = Mapping[str, Sequence[str]]
_SAME = Verdict(0.5)


class Pair(NamedTuple):
  """Two sides' comparisons.

  Attributes:
    sides: their numbers.
    scores_N2: of the first side, in both orders: its answer shown first, then second (see
      `statistics.win_rates`). NaN without a verdict.
    prompt_N: the number of each comparison's prompt.
    differences_N: the first side's characters less the other's.
    identical: comparisons of equal answers, which are ties and are not asked.
    malformed: verdicts that could not be read.
    unjudged: verdicts that the judge did not give.
    soft: verdicts that are probabilities.
  """

  sides: tuple[int, int]
  scores_N2: np.ndarray
  prompt_N: np.ndarray
  differences_N: np.ndarray
  identical: int = 0
  malformed: int = 0
  unjudged: int = 0
  soft: int = 0

  def rates(self, num_prompts: int) -> np.ndarray:
    """The first side's rate on each prompt, `[P]`."""
    return win_rates.by_prompt(win_rates.of_comparisons(self.scores_N2), self.prompt_N, num_prompts)


def meetings(num_sides: int, against: str) -> list[tuple[int, int]]:
  """The pairs of sides that meet: `all`, or all others against the `first`.

  Raises:
    UsageError: another word.
  """
  if against == 'all':
    return list(itertools.combinations(range(num_sides), 2))
  if against == 'first':
    return [(other, 0) for other in range(1, num_sides)]
  raise UsageError(f'against={against!r} (--set AGAINST={against}): pass all, or first.')


def compare(
  judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Answers], pairs: Sequence[tuple[int, int]]
) -> tuple[list[Pair], list[dict[str, Any]], Judged]:
  """Lets a judge compare the sides' answers; returns the pairs' scores, the verdicts, and what it spent.

  Several answers of a side to one prompt meet those of the other in their order; a single one meets each.

  Args:
    judge: who judges.
    prompts: which all sides have answered.
    answers: of each side, by the prompt's text.
    pairs: who meets whom.

  Returns:
    Pairs in their order; a record for each verdict, as `verdicts.jsonl` has it; and `Judged`.
  """
  # Prompt by prompt: where a budget ends, the prompts before the end are complete.
  planned = [
    (number, pair, *texts)
    for number, prompt in enumerate(prompts)
    for pair, (i, j) in enumerate(pairs)
    for texts in _meet(answers[i][prompt.text], answers[j][prompt.text])
  ]
  orders = (False, True) if judge.sees_order else (False,)
  asked = [
    (place, swapped) for place, (_, _, one, other) in enumerate(planned) for swapped in orders if one != other
  ]
  judged = judge.judge([_shown(prompts, planned[place], swapped) for place, swapped in asked])
  verdicts = dict(zip(asked, judged.verdicts))
  rows = [
    _both(place, verdicts, orders, planned[place][2] == planned[place][3]) for place in range(len(planned))
  ]
  of_pairs = [[k for k, plan in enumerate(planned) if plan[1] == number] for number in range(len(pairs))]
  scored = [_pair(pairs[number], places, planned, rows) for number, places in enumerate(of_pairs)]
  return scored, _records(prompts, pairs, planned, rows), judged


def left_over(prompts: Sequence[Prompt], answers: Sequence[Answers], pairs: Sequence[tuple[int, int]]) -> int:
  """Answers that meet none of the other side's, as one side has more of them to a prompt, over all pairs."""
  counts = [
    (len(answers[i][prompt.text]), len(answers[j][prompt.text])) for prompt in prompts for i, j in pairs
  ]
  return sum(abs(one - other) for one, other in counts if min(one, other) > 1)


def _meet(one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
  if 1 in (len(one), len(other)):
    return list(itertools.product(one, other))
  return list(zip(one, other))


def _shown(prompts: Sequence[Prompt], plan: tuple[int, int, str, str], swapped: bool) -> Comparison:
  number, _, one, other = plan
  return Comparison(prompts[number].text, *((other, one) if swapped else (one, other)))


def _both(
  place: int, verdicts: Mapping[tuple[int, bool], Verdict | None], orders: Sequence[bool], same: bool
) -> list[Verdict | None]:
  """The verdicts of a comparison in both orders, as scores of the first side."""
  if same:
    return [_SAME, _SAME]
  found = [verdicts[place, swapped] for swapped in orders]
  # A judge that does not see the order says the same in both.
  first, second = found if len(found) == 2 else (found[0], found[0] and _turned(found[0]))
  return [first, second and _turned(second)]


def _turned(verdict: Verdict) -> Verdict:
  return verdict._replace(score=1 - verdict.score)


def _pair(
  sides: tuple[int, int],
  places: Sequence[int],
  planned: Sequence[tuple[int, int, str, str]],
  rows: Sequence[Sequence[Verdict | None]],
) -> Pair:
  given = [verdict for place in places for verdict in rows[place] if verdict is not None]
  scores = [[np.nan if verdict is None else verdict.score for verdict in rows[place]] for place in places]
  texts = [planned[place][2:] for place in places]
  return Pair(
    sides, np.array(scores, np.float64).reshape(-1, 2),
    np.array([planned[place][0] for place in places], int),
    np.array([len(one) - len(other) for one, other in texts], np.float64),
    identical=sum(one == other for one, other in texts),
    malformed=sum(np.isnan(verdict.score) for verdict in given), unjudged=2 * len(places) - len(given),
    soft=sum(verdict.soft for verdict in given),
  )  # fmt: skip


def _records(
  prompts: Sequence[Prompt],
  pairs: Sequence[tuple[int, int]],
  planned: Sequence[tuple[int, int, str, str]],
  rows: Sequence[Sequence[Verdict | None]],
) -> list[dict[str, Any]]:
  """A comparison each: the sides' numbers, the texts, and the first side's score in both orders."""
  return [
    {
      'prompt_id': prompts[number].id, 'prompt': prompts[number].text, 'sides': list(pairs[pair]),
      'first': one, 'second': other,
      'scores': [None if verdict is None else verdict.score for verdict in row],
    }
    for (number, pair, one, other), row in zip(planned, rows)
  ]  # fmt: skip
