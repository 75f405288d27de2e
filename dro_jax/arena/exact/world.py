"""The `exact` suite's world: a toy world with axes, its log, its prompts, and a reference fitted to it.

Everything here is shared by the cells of one point of the axes and one seed.
"""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dro_jax import algorithms, files
from dro_jax.arena import cells
from dro_jax.arena.exact import enumeration
from dro_jax.arena.exact import in_memory as inmemory
from dro_jax.data.batches import groups
from dro_jax.data.table import table
from dro_jax.data.text import tokenise, vocabularies
from dro_jax.data.triplets import Triplets, scaled
from dro_jax.data.worlds import toy
from dro_jax.errors import UsageError
from dro_jax.models.family import Config
from dro_jax.models.policy import make_config
from dro_jax.run import networks
from dro_jax.run.folder import lock
from dro_jax.types import Params

LETTERS = ('bdfgklmprt', 'aeiouyhwjq', 'cnsvxzbdgk')
PROMPT_TOKENS, WORD_TOKENS = 8, 4
PROMPTS_AT_ONCE = 64
MODEL = make_config(
  't5', vocab_size=384, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64, num_encoder_layers=2,
  num_decoder_layers=2,
)  # fmt: skip


class Point(NamedTuple):
  """A point of the world's axes.

  spread     of V* across prompts: the factor on moods' distance from their middle.
  noise      of the ratings: the factor on their deviation from what is expected; 1 are stars, 0 says it all.
  responses  logged for a prompt, K; their number N·K over all prompts stays.
  coverage   of the log: 1 is the toy world's logging policy, 0 writes one word whatever is asked.
  """

  spread: float = 1.0
  noise: float = 1.0
  responses: int = 4
  coverage: float = 1.0


@dataclasses.dataclass(frozen=True)
class ExactSettings:
  """What all cells share: the size of the world, and the budgets of reference and methods.

  Args:
    letters: the alphabet of each position of a word, all of one size.
    tau: temperature of the objective, stars per nat.
    records: logged responses, N·K.
    demonstrations: records that the reference is fitted to.
    validation_words: held-out words on which hyperparameters and checkpoints are chosen, in every mood.
    test_words: other held-out words, on which everything is reported, in every mood.
    reference_steps: optimiser steps of the reference.
    reference_learning_rate: its peak.
    value_steps: optimiser steps of the regressed V, in each of its two folds.
    value_learning_rate: its peak.
    steps: of DRO-V; other methods take as many as cost the same FLOPs.
    batch_size: responses of a batch.
    measurements: checkpoints at which a run is measured.
    model: size of the policy.
  """

  letters: tuple[str, ...] | list[str] = LETTERS
  tau: float = 0.3
  records: int = 16_384
  demonstrations: int = 16_384
  validation_words: int = 13
  test_words: int = 26
  reference_steps: int = 1000
  reference_learning_rate: float = 3e-3
  value_steps: int = 128
  value_learning_rate: float = 1e-3
  steps: int = 512
  batch_size: int = 128
  measurements: int = 4
  model: Config = MODEL

  def __post_init__(self) -> None:
    # Hashable, for what is shared is kept by settings; gin hands lists in.
    object.__setattr__(self, 'letters', tuple(self.letters))
    if len(set(map(len, self.letters))) > 1:
      raise UsageError(f'ExactSettings.letters={self.letters}: pass alphabets of one size.')

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def world_at(settings: ExactSettings, point: Point) -> toy.World:
  """The toy world at a point of the axes."""
  ease = np.asarray(toy.World().ease)
  middle = ease.mean()
  # At no coverage the other words keep a chance that nobody will see, so that they have log-probs.
  habit = 1 - max(point.coverage, 1e-9) * (1 - toy.World().habit)
  spread = tuple((middle + point.spread * (ease - middle)).tolist())
  return toy.World(alphabets=settings.letters, ease=spread, habit=habit)


# --- prompts and logs ---------------------------------------------------------------------------------------


class Prompts(NamedTuple):
  """Texts and tokens, and the expected reward of every response, `[P, Z]`."""

  texts: list[str]
  tokens: np.ndarray
  rewards_PZ: np.ndarray


def prompts_of(world: toy.World, texts: list[str]) -> Prompts:
  tokens = [ids for ids, _ in tokenise.prompts(texts, vocabularies.vocabulary(), by_chat=False)]
  return Prompts(texts, np.stack(tokens).astype(np.int32), toy.expected_reward(world, texts))


def held_out(settings: ExactSettings, world: toy.World) -> tuple[Prompts, Prompts]:
  """(validation, test): other words than any that something was trained on, and than each other's."""
  texts, moods = toy.prompts(world, 'heldout'), len(world.ease)
  words = np.random.default_rng(world.seed).permutation(len(texts) // moods)
  chosen = np.split(words, [settings.validation_words, settings.validation_words + settings.test_words])[:2]
  picked = [[texts[word * moods + mood] for word in sorted(part) for mood in range(moods)] for part in chosen]
  return prompts_of(world, picked[0]), prompts_of(world, picked[1])


def draw_log(settings: ExactSettings, point: Point, seed: int) -> list[dict[str, Any]]:
  """The log: N prompts of the feedback words, K responses each from the logging policy, noisy stars."""
  world = world_at(settings, point)
  rng = np.random.default_rng((world.seed, seed, 7))
  texts = _distinct_prompts(world, settings.records // point.responses, rng)
  kinds, kind_N = np.unique([text[:-2] for text in texts], return_inverse=True)
  asked = [f'{kind}aa' for kind in kinds]
  cdf = np.cumsum(np.exp(toy.logging_logps(world, asked)), -1)[kind_N]
  draws = rng.random((len(texts), point.responses, 1)) * cdf[:, None, -1:]
  y_NK = (draws >= cdf[:, None]).sum(-1)
  expected_NK = np.take_along_axis(toy.expected_reward(world, asked)[kind_N], y_NK, 1)
  rated_NK = expected_NK + point.noise * (toy.rate(world, rng, expected_NK) - expected_NK)
  words = toy.responses(world)
  return [
    {'prompt': text, 'response': words[y], 'reward': reward}
    for text, y_K, rated_K in zip(texts, y_NK, rated_NK.tolist())
    for y, reward in zip(y_K, rated_K)
  ]


def _distinct_prompts(world: toy.World, count: int, rng: np.random.Generator) -> list[str]:
  """Prompts about feedback words, in every mood alike, all different."""
  asked = [toy.parse(text) for text in toy.prompts(world, 'feedback')]
  texts = {}
  while len(texts) < count:
    for i in rng.permutation(len(asked)):
      user = ''.join(chr(97 + letter) for letter in rng.integers(26, size=2))
      texts.setdefault(toy.prompt(*asked[i], user))  # type: ignore[call-arg]
  return list(texts)[:count]


def triplets_of(records: list[dict[str, Any]], folder: pathlib.Path, kind: str) -> Triplets:
  """A token table of records, built once in the folder, its rewards scaled."""
  built = table.build(
    records, vocabularies.vocabulary(), folder, prompt_length=PROMPT_TOKENS, response_length=WORD_TOKENS
  )
  return scaled(built, None, kind, built.report)


# --- the reference ------------------------------------------------------------------------------------------


def networks_of(settings: ExactSettings) -> networks.Networks:
  """Policy and value network."""
  return networks.build(settings.model, uses_value=True)


def _sft(temperature: Any) -> algorithms.Algorithm:
  """The reference's algorithm; it has no temperature."""
  return algorithms.sft()


def reference_params(settings: ExactSettings, seed: int, shared: pathlib.Path) -> Params:
  """The reference: fitted to demonstrations on words of their own, once for a seed, and kept in a file.

  Raises:
    InUse: another command fits it.
  """
  file = shared / f'reference-{seed}-{cells.digest(settings.to_json())[:12]}.npz'
  if not file.exists():
    with lock.locked(shared):
      if not file.exists():  # Another command may just have fitted it.
        params = _fit_reference(settings, seed, shared)
        with files.replacing(file) as temporary, open(temporary, 'wb') as opened:
          np.savez(opened, **traverse_util.flatten_dict(params, sep='/'))
  with np.load(file) as arrays:
    return traverse_util.unflatten_dict({name: jnp.asarray(arrays[name]) for name in arrays.files}, sep='/')


def _fit_reference(settings: ExactSettings, seed: int, shared: pathlib.Path) -> Params:
  nets = networks_of(settings)
  records = toy.sft_records(world_at(settings, Point()), settings.demonstrations, seed)
  triplets = triplets_of(records, shared / f'demonstrations-{seed}', 'none')
  source = feed_of(settings, triplets, 'response', seed)
  sft = algorithms.sft()
  policy = inmemory.fresh_policy(nets, seed)
  recipe = inmemory.Recipe(settings.reference_steps, min(30, settings.reference_steps // 2))
  run = inmemory.make_stretch(nets, _sft, recipe)
  rows = inmemory.fitted_to(sft, source, settings.reference_steps, {})
  rate = jnp.asarray(settings.reference_learning_rate)
  return run(inmemory.start(nets, policy, sft), rows, jnp.asarray(1.0), rate).params['policy']


def feed_of(
  settings: ExactSettings, triplets: Triplets, unit: str, seed: int, responses: int = 1
) -> inmemory.Feed:
  """Batches, in rows of a few responses: attention's cost grows with the row."""
  slots = max(4, min(responses, 16))
  prompts = -(-slots // responses)
  return inmemory.feed(
    triplets, unit, responses=settings.batch_size, seed=seed,
    options=groups.UnitOptions(pairs='all', group_size=max(responses, 2)),
    row_lengths=(prompts * PROMPT_TOKENS, slots * WORD_TOKENS),
  )  # fmt: skip


# --- a laboratory -------------------------------------------------------------------------------------------


class Place(NamedTuple):
  """The place of a cell: settings, a point of the axes, a seed, and the shared folder."""

  settings: ExactSettings
  point: Point
  seed: int
  shared: pathlib.Path


class Lab(NamedTuple):
  """What the cells of one place share; log-probs are float64, and the last is that of no word."""

  world: toy.World
  reference: Params
  triplets: Triplets
  validation: Prompts
  test: Prompts
  validation_reference_PZ: np.ndarray
  test_reference_PZ: np.ndarray


@functools.lru_cache(maxsize=2)
def laboratory(place: Place) -> Lab:
  """Everything that cells share, made once; the slow parts are kept in files."""
  settings, point, seed, shared = place
  world = world_at(settings, point)
  reference = reference_params(settings, seed, shared)
  axes = '-'.join(f'{value:g}' for value in point)
  triplets = triplets_of(draw_log(settings, point, seed), shared / f'log-{axes}-{seed}', 'standardise')
  validation, test = held_out(settings, world)
  return Lab(
    world, reference, triplets, validation, test,
    enumerate_words(settings, reference, validation), enumerate_words(settings, reference, test),
  )  # fmt: skip


def enumerate_words(settings: ExactSettings, policy: Params, prompts: Prompts) -> np.ndarray:
  """log π(y|x) of every response and anything else, `[P, Z]`; nan where the policy diverged."""
  words = vocabularies.vocabulary()
  letters = jnp.asarray(np.stack([words.encode(alphabet) for alphabet in settings.letters]))
  net, count = networks_of(settings).policy, len(prompts.tokens)
  # One compilation for any number of prompts.
  padded = np.pad(prompts.tokens, ((0, -count % PROMPTS_AT_ONCE), (0, 0)))
  parts = [
    enumeration.word_logps(net, policy, jnp.asarray(part), letters, words.special.eos)
    for part in padded.reshape(-1, PROMPTS_AT_ONCE, padded.shape[1])
  ]
  logps_PY = np.concatenate([np.asarray(part, np.float64) for part in parts])[:count]
  if not np.isfinite(logps_PY).all():
    return np.full((count, logps_PY.shape[1] + 1), np.nan)
  return toy.complete(logps_PY)


@functools.lru_cache(maxsize=4)
def log_feed(place: Place, unit: str) -> inmemory.Feed:
  """The log's batches by response, pair or group: all methods that take a unit see the same ones."""
  triplets = laboratory(place).triplets
  return feed_of(place.settings, triplets, unit, place.seed, place.point.responses)


class LoggedPrompts(NamedTuple):
  """A table's prompts, and which of them each of its records answers."""

  prompts: Prompts
  of_record: np.ndarray


def logged_prompts(world: toy.World, logged: Any) -> LoggedPrompts:
  _, first, of_record = np.unique(logged.prompt_index, return_index=True, return_inverse=True)
  return LoggedPrompts(prompts_of(world, [logged.prompts[int(i)] for i in first]), of_record)


@functools.lru_cache(maxsize=2)
def reference_on_log(place: Place) -> np.ndarray:
  """log π_ref of every response to each of the log's prompts, `[P, Z]`: what the oracle's V* is made of."""
  lab = laboratory(place)
  prompts = logged_prompts(lab.world, lab.triplets.train).prompts
  return enumerate_words(place.settings, lab.reference, prompts)
