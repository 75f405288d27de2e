"""A feedback world small enough to solve: users ask for a word and rate the responses, and π* is known.

A prompt is a word, its user's mood and initials, `'KOT3 jd'`; a response is any word over the same alphabets,
the best is `'kot'`. Letters that match raise the rating, and so does the mood, which no response can change.
The initials have no effect, but make nearly every prompt of a log unique, as in logs of thumbs:

  p(x, y) = ease(mood) + gain · matches(x, y) / 3,   stars ~ 1 + Binomial(4, p)   or   thumbs ~ Bernoulli(p)

Two stars from a harsh user may mark a better response than four from a kind one, which is why V(x) is needed.
Words are split three ways: the reference policy learns from demonstrations on `sft` words, feedback is logged
on `feedback` words, and policies are measured on `heldout` words, on which nothing was trained. The log comes
from a mediocre policy with habits that the demonstrations lack. It does better with kind users, so that mood
and quality are confounded, as in real logs.

All other texts that a model can write are rated like a word without a match, and count as one more response.
So all responses can be enumerated, and the optimum for any reference policy is known in closed form (DRO,
arXiv 2405.19107, Sect. 3.1): π*(y|x) = π_ref(y|x) exp(r(x, y) / τ) / Z(x) and V*(x) = τ log Z(x).

Axes here: P prompts, Y all words, Z all words and anything else, I letters of a word, C choices of a letter.
Everything is float64.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SPLITS = ('sft', 'feedback', 'heldout')


class World(NamedTuple):
  """The world's constants.

  Attributes:
    alphabets: of each position of a word; all have the same size.
    ease: p's offset for each mood, harsh to kind.
    gain: the difference in p between a perfect match and none; `ease[-1] + gain` is at most 1.
    feedback: 'stars' (1 to 5) or 'thumbs' (0 or 1).
    right: chance that a demonstrated letter is right; the others share the rest evenly.
    habit: chance that the logging policy picks its favourite letter for any prompt.
    skill: chance that it otherwise picks the right letter, for each mood; the others share the rest evenly.
    fractions: share of the words in each split.
    seed: of the split of words.
  """

  alphabets: tuple[str, ...] = ('bdgkp', 'aeiou', 'lmnst')
  ease: tuple[float, ...] = (0.02, 0.14, 0.26, 0.38, 0.5)
  gain: float = 0.48
  feedback: str = 'stars'
  right: float = 0.4
  habit: float = 0.35
  skill: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25, 0.3)
  fractions: tuple[float, ...] = (0.3, 0.5, 0.2)
  seed: int = 0


def responses(world: World) -> list[str]:
  """All responses, in the order of all [P, Y] matrices."""
  return [''.join(letters) for letters in itertools.product(*world.alphabets)]


def prompts(world: World, split: str) -> list[str]:
  """The prompts of a split: its words in every mood, one user each. No word is in two splits."""
  if split not in SPLITS:
    raise ValueError(f'There is no split {split!r} in the toy world: pass one of {", ".join(SPLITS)}.')
  rng = np.random.default_rng(world.seed)
  words = rng.permutation(responses(world))
  edges = np.round(np.cumsum((0.0, *world.fractions)) * len(words)).astype(int)
  i = SPLITS.index(split)
  moods = range(len(world.ease))
  pairs = [(word, mood) for word in sorted(words[edges[i] : edges[i + 1]]) for mood in moods]
  return [prompt(word, mood, user) for (word, mood), user in zip(pairs, _users(rng, len(pairs)))]


def prompt(word: str, mood: int, user: str) -> str:
  """The prompt of a user (two letters) of this mood who asks for a word."""
  return f'{word.upper()}{mood} {user}'


def parse(prompt: str) -> tuple[str, int]:
  """The word that a prompt asks for, which is its best response, and its user's mood."""
  return prompt[:-4].lower(), int(prompt[-4])


def expected_reward(world: World, prompts: list[str]) -> np.ndarray:
  """E[r | x, y] in stars or thumbs, [P, Z]: every word in the order of `responses`, then anything else."""
  wanted_PI, moods_P = _read(world, prompts)
  matches_PZ = np.pad((wanted_PI[:, None] == _letters(world)).mean(-1), ((0, 0), (0, 1)))
  p_PZ = np.asarray(world.ease)[moods_P, None] + world.gain * matches_PZ
  lowest, votes = _scale(world)
  return lowest + votes * p_PZ


def logging_logps(world: World, prompts: list[str]) -> np.ndarray:
  """log μ(y|x) of the policy that wrote the log, [P, Y]: the true propensities, in nats."""
  wanted_PI, moods_P = _read(world, prompts)
  skill_P11 = np.asarray(world.skill)[moods_P, None, None]
  right_PIC = np.eye(_choices(world))[wanted_PI]
  favourite_C = np.eye(_choices(world))[0]
  own_PIC = skill_P11 * right_PIC + (1 - skill_P11) / _choices(world)
  return _word_logps(world, world.habit * favourite_C + (1 - world.habit) * own_PIC)


def demonstration_logps(world: World, prompts: list[str]) -> np.ndarray:
  """log-probs of the demonstrations that the reference policy is fitted to, [P, Y], in nats."""
  wanted_PI, _ = _read(world, prompts)
  wrong = (1 - world.right) / (_choices(world) - 1)
  return _word_logps(world, np.where(np.eye(_choices(world))[wanted_PI], world.right, wrong))


def sample_log(world: World, n: int, seed: int, split: str = 'feedback') -> list[dict[str, Any]]:
  """Draws n triplets: a prompt of the split by any user, the logging policy's response, the noisy rating.

  The log is sampled, so `behaviour_logprob` (nats, the whole response) is a true propensity.
  """
  rng = np.random.default_rng((world.seed, seed, SPLITS.index(split), 0))
  xs = prompts(world, split)
  logps_PY = logging_logps(world, xs)
  x_N, y_N = _draw(rng, logps_PY, n)
  rewards_N = rate(world, rng, expected_reward(world, xs)[x_N, y_N])
  ys = responses(world)
  return [
    {
      'id': f'{split}-{seed}-{i}',
      'prompt': prompt(*parse(xs[x]), user),
      'response': ys[y],
      'reward': reward,
      'behaviour_logprob': float(logps_PY[x, y]),
      'behaviour_sampler': 'sampled',
    }
    for i, (x, y, reward, user) in enumerate(zip(x_N, y_N, rewards_N.tolist(), _users(rng, n)))
  ]


def sft_records(world: World, n: int, seed: int) -> list[dict[str, Any]]:
  """Draws n demonstrations on the `sft` prompts, which get no feedback; all have reward 1."""
  rng = np.random.default_rng((world.seed, seed, SPLITS.index('sft'), 1))
  xs, ys = prompts(world, 'sft'), responses(world)
  x_N, y_N = _draw(rng, demonstration_logps(world, xs), n)
  return [
    {'id': f'sft-{seed}-{i}', 'prompt': prompt(*parse(xs[x]), user), 'response': ys[y], 'reward': 1.0}
    for i, (x, y, user) in enumerate(zip(x_N, y_N, _users(rng, n)))
  ]


def rate(world: World, rng: np.random.Generator, expected: np.ndarray) -> np.ndarray:
  """A noisy user's ratings with the mean `expected`, any shape."""
  lowest, votes = _scale(world)
  return lowest + rng.binomial(votes, (expected - lowest) / votes).astype(np.float64)


def complete(logps_PY: np.ndarray) -> np.ndarray:
  """Adds the log-prob of all other texts: [P, Y] to [P, Z], which sums to one.

  π* and V* stay exact, because all other texts have the same reward. A trained policy's KL becomes a lower
  bound, because all other texts count as one response.
  """
  words_P1 = np.exp(np.asarray(logps_PY, np.float64)).sum(-1, keepdims=True)
  return np.concatenate([logps_PY, np.log(np.maximum(1 - words_P1, 1e-12))], -1)


def optimum(
  reference_logps_PZ: np.ndarray, rewards_PZ: np.ndarray, tau: float
) -> tuple[np.ndarray, np.ndarray]:
  """log π* = log π_ref + r/τ − log Z, [P, Z], and V* = τ log Z, [P]."""
  tilted_PZ = reference_logps_PZ + rewards_PZ / tau
  log_z_P = _logsumexp(tilted_PZ)
  return tilted_PZ - log_z_P[:, None], tau * log_z_P


def kl(logps_PZ: np.ndarray, other_logps_PZ: np.ndarray) -> np.ndarray:
  """KL(π‖other) of each prompt, [P], in nats; 0 log 0 = 0."""
  p_PZ = np.exp(logps_PZ)
  return np.sum(p_PZ * (np.where(p_PZ > 0, logps_PZ, other_logps_PZ) - other_logps_PZ), -1)


def objective(
  logps_PZ: np.ndarray, reference_logps_PZ: np.ndarray, rewards_PZ: np.ndarray, tau: float
) -> np.ndarray:
  """J = E_π[r] − τ KL(π‖π_ref) of each prompt, [P], in reward units."""
  return np.sum(np.exp(logps_PZ) * rewards_PZ, -1) - tau * kl(logps_PZ, reference_logps_PZ)


def regret(
  logps_PZ: np.ndarray, reference_logps_PZ: np.ndarray, rewards_PZ: np.ndarray, tau: float
) -> np.ndarray:
  """J* − J of each prompt, [P], ≥ 0, in reward units; the same number as τ KL(π‖π*)."""
  _, values_P = optimum(reference_logps_PZ, rewards_PZ, tau)
  return values_P - objective(logps_PZ, reference_logps_PZ, rewards_PZ, tau)


def _choices(world: World) -> int:
  return len(world.alphabets[0])


def _scale(world: World) -> tuple[float, int]:
  """The lowest rating and the number of votes added to it."""
  scales = {'stars': (1.0, 4), 'thumbs': (0.0, 1)}
  if world.feedback not in scales:
    raise ValueError(f"World.feedback is 'stars' or 'thumbs', not {world.feedback!r}.")
  return scales[world.feedback]


def _letters(world: World) -> np.ndarray:
  """The letters of every response as numbers, [Y, I]."""
  return np.array(list(itertools.product(range(_choices(world)), repeat=len(world.alphabets))))


def _read(world: World, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """The letters that each prompt asks for, as numbers [P, I], and its mood, [P]."""
  words, moods = zip(*map(parse, prompts))
  wanted = [[alphabet.index(letter) for alphabet, letter in zip(world.alphabets, word)] for word in words]
  return np.array(wanted), np.array(moods)


def _word_logps(world: World, letters_PIC: np.ndarray) -> np.ndarray:
  """log-probs of whole words from independent letters: [P, I, C] to [P, Y]."""
  positions = np.arange(len(world.alphabets))
  return np.log(letters_PIC[:, positions, _letters(world)]).sum(-1)


def _users(rng: np.random.Generator, n: int) -> list[str]:
  """The initials of n users."""
  return [chr(97 + a) + chr(97 + b) for a, b in rng.integers(26, size=(n, 2)).tolist()]


def _draw(rng: np.random.Generator, logps_PY: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
  """n uniform prompts, and a response to each by inversion."""
  x_N = rng.integers(len(logps_PY), size=n)
  cdf_NY = np.cumsum(np.exp(logps_PY), -1)[x_N]
  y_N = (rng.random((n, 1)) * cdf_NY[:, -1:] >= cdf_NY).sum(-1)
  return x_N, y_N


def _logsumexp(x_PZ: np.ndarray) -> np.ndarray:
  top_P1 = x_PZ.max(-1, keepdims=True)
  return (top_P1 + np.log(np.exp(x_PZ - top_P1).sum(-1, keepdims=True)))[:, 0]
