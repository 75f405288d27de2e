"""The `human` suite: whether a policy trained on some prompts agrees with people on others.

Any triplet file whose rewards are people's, or a judge's. Prompts are dealt to parts by their hash: some make
the reference (unless one is given), some train, some choose hyperparameters, some are reported on. So are
writers, where the file names who wrote each response: responses of some are only reported on. No answer is
sampled: logged responses are scored, and where a human corrected them, the corrections too.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax import algorithms
from dro_jax.algorithms import base
from dro_jax.arena import methods as competing_methods
from dro_jax.arena import training
from dro_jax.arena.cells import Cell
from dro_jax.arena.human import report as human_report
from dro_jax.arena.human import writers
from dro_jax.arena.suite import Suite
from dro_jax.arena.trials import Range
from dro_jax.checkpoints import folders, policy
from dro_jax.data.records import triplets as sources
from dro_jax.data.sources import find
from dro_jax.data.storage import fingerprints, hashes
from dro_jax.data.table.table import TokenTable
from dro_jax.data.triplets import Triplets, load_triplets, require_rewards, scaled
from dro_jax.errors import UsageError
from dro_jax.files import to_json
from dro_jax.models.family import Config
from dro_jax.parallel.partitioning import Mesh, MeshSpec
from dro_jax.run import batches, networks, table_scores
from dro_jax.run.spec import Value
from dro_jax.run.trained import load_run

USUAL = ('dro_v', 'dro_p', 'kto', 'filtered_sft')
RATES = (1e-4, 5e-4)


def methods(rates: tuple[float, float]) -> dict[str, training.Method]:
  """All methods that compete: those of the suites of text, imitation of the whole log, and a reward model.

  `rates` are the least and the greatest learning rate.
  """
  tried = competing_methods.methods(Range(*rates), optimizers=('adamw',))
  rate = tried['rft'].grid
  return {
    **tried,
    'sft': training.Method(lambda t: algorithms.sft(), rate),
    'reward_regression': training.Method(lambda t: algorithms.reward_regression(), rate, Value('response')),
  }


class Feedback(NamedTuple):
  """The triplets, and how they are read and split.

  Attributes:
    triplets: files or names of data sets (see `data.triplets.load_triplets`).
    test_triplets: those that are reported on; None holds out prompts of `triplets`.
    columns: the file's own names.
    map_reward: numbers for rewards that are words.
    post_edit: the field with a human's correction of the response, used where the files have it.
    init_from: the reference's folder; None fits one to a part of the prompts: to corrections where there are
      any, else to responses.
    vocabulary: 'bytes' or a SentencePiece model's path; None takes the reference's, else bytes.
    prompt_length: prompt tokens at most.
    response_length: response tokens at most.
    overlong: 'truncate' cuts longer responses; 'drop' leaves them out, where a part of an answer does not
      earn the reward of the whole.
    writer: the field that names who wrote the response, for the baseline of his mean reward.
    new_writers: share of the writers whose responses are only reported on, in a table of their own.
    prompts: training prompts at most; None takes all.
    responses: responses to a prompt at most, in each part; None takes all.
    reference: share of the prompts that the reference is fitted to.
    validation: share of the prompts that choose hyperparameters.
    test: share of the prompts that are reported on, where there are no `test_triplets`.
    reference_steps: optimiser steps of the reference.
  """

  triplets: str | Sequence[str]
  test_triplets: str | Sequence[str] | None = None
  columns: str | Mapping[str, str] | None = None
  map_reward: str | Mapping[str, float] | None = None
  post_edit: str | None = 'post_edit'
  init_from: str | None = None
  vocabulary: str | None = None
  prompt_length: int = 256
  response_length: int = 256
  overlong: str = 'truncate'
  writer: str | None = None
  new_writers: float = 0.0
  prompts: int | None = None
  responses: int | None = None
  reference: float = 0.3
  validation: float = 0.15
  test: float = 0.15
  reference_steps: int = 300


class Place(NamedTuple):
  """Folder, feedback, model and mesh of an arena."""

  folder: pathlib.Path
  feedback: Feedback
  model: Config
  mesh: MeshSpec
  batch_size: int


class World(NamedTuple):
  """What all cells share.

  Attributes:
    data: for `training.fit`.
    tables: responses of the validation and the test part; if any, those of writers that nothing else has, and
      the test part's corrections.
    about: what the report needs of them beside scores, by table: plain arrays, `[N]`.
  """

  data: training.Data
  tables: Mapping[str, TokenTable]
  about: Mapping[str, Mapping[str, Any]]


# --- parts --------------------------------------------------------------------------------------------------


class _Parts(NamedTuple):
  """The table of a file, split by prompts, and the report of its building.

  `new_writers` are the responses to the test part's prompts by writers that no other part has, or None.
  `written_by` says who wrote a record of the other parts and who one of the test part, by the record's id;
  empty where the files do not say.
  """

  reference: TokenTable
  train: TokenTable
  validation: TokenTable
  test: TokenTable
  new_writers: TokenTable | None
  report: Mapping[str, Any]
  written_by: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})


def parts(place: Place, words: Any, response: str | None = None) -> _Parts:
  """The responses, or another field in their place, by part; no prompt is in two parts.

  Raises:
    UsageError: a part would be empty, or what is wrong with the files.
  """
  given = place.feedback
  whole, report = _table(place, given.triplets, words, response)
  if given.test_triplets is None:
    is_test, first = hashes.by_prompt_hash(whole.prompt_digests, given.test), given.test
    tested = whole.subset(is_test)
  else:
    tested, _ = _table(place, given.test_triplets, words, response)
    is_test, first = np.isin(whole.prompt_digests, tested.prompt_digests), 0.0
  whole, new, written_by = whole.subset(~is_test), None, _written_by(given)
  if given.writer is not None and given.new_writers:
    is_new, is_new_in_test = (
      writers.are_new(writers.of_table(table, by_id), given.new_writers)
      for table, by_id in zip((whole, tested), written_by)
    )
    whole, new = whole.subset(~is_new), _few(tested.subset(is_new_in_test), given.responses)
    tested = tested.subset(~is_new_in_test)
  edges = np.cumsum([first, given.validation, 0.0 if given.init_from else given.reference])
  below = [hashes.by_prompt_hash(whole.prompt_digests, float(edge)) for edge in edges]
  held, imitated, trains = below[1] & ~below[0], below[2] & ~below[1], ~below[2]
  trained = _few(_some_prompts(whole.subset(trains), given.prompts), given.responses)
  dealt = _Parts(
    whole.subset(imitated), trained, _few(whole.subset(held), given.responses),
    _few(tested, given.responses), new, report, written_by,
  )  # fmt: skip
  needed = {'train': trained, 'validation': dealt.validation, 'test': dealt.test}
  needed |= {} if given.init_from else {'reference': dealt.reference}
  needed |= {} if new is None else {'new_writers': new}
  for name, table in needed.items():
    if not len(table):
      raise UsageError(
        f'the part {name!r} of {len(np.unique(whole.prompt_index))} prompts is empty: pass more triplets, or '
        'other shares (Feedback.reference, .validation, .test, .new_writers).'
      )
  return dealt


def _few(table: TokenTable, most: int | None) -> TokenTable:
  """At most so many responses to each prompt, those with the least hashes."""
  if most is None:
    return table
  order = np.lexsort((hashes.mix(table.response_digests()), table.prompt_index))
  sorted_prompts = table.prompt_index[order]
  ranks = np.arange(len(table)) - np.searchsorted(sorted_prompts, sorted_prompts)
  return table.subset(np.sort(order[ranks < most]))


def _some_prompts(table: TokenTable, most: int | None) -> TokenTable:
  """The responses to at most so many prompts, those with the least hashes."""
  prompts = np.unique(hashes.mix(table.prompt_digests))
  return table.subset(np.isin(hashes.mix(table.prompt_digests), prompts[:most]))


def _written_by(given: Feedback) -> tuple[Mapping[str, str], Mapping[str, str]]:
  """See `_Parts`."""
  if given.writer is None:
    return {}, {}
  of_triplets = writers.of_records(given.triplets, given.columns, given.writer)
  if given.test_triplets is None:
    return of_triplets, of_triplets
  return of_triplets, writers.of_records(given.test_triplets, given.columns, given.writer)


def _table(
  place: Place, triplets: str | Sequence[str], words: Any, response: str | None
) -> tuple[TokenTable, Mapping[str, Any]]:
  given = place.feedback
  names = sources.parse_columns(given.columns) | ({'response': response} if response else {})
  loaded = load_triplets(
    triplets, columns=names, map_reward=given.map_reward, vocabulary=words, validation_fraction=0,
    prompt_length=given.prompt_length, response_length=given.response_length, overlong=given.overlong,
    cache_dir=str(place.folder / 'world' / 'tables'),
  )  # fmt: skip
  require_rewards(loaded, 'the arena')
  return loaded.train, loaded.report


def corrected(triplets: str | Sequence[str], field: str | None) -> bool:
  """Whether files have this field, by their first record; data sets by name have none."""
  if field is None or not sources.is_files(triplets):
    return False
  _, first = next(sources.located(sources.expand(triplets)[0], [field]))
  return isinstance(first.get(field), str)


def prepare(place: Place) -> World:
  """Splits the prompts, fits the reference unless one is passed, and scores with it."""
  given = place.feedback
  has_edits = all(
    corrected(name, given.post_edit) for name in filter(None, (given.triplets, given.test_triplets))
  )
  reference = given.init_from or _reference(place, given.post_edit if has_edits else None)
  words = policy.vocabulary_of(reference, given.vocabulary)
  dealt = parts(place, words)
  tables = {'validation': dealt.validation, 'test': dealt.test}
  if dealt.new_writers is not None:
    tables['new writers'] = dealt.new_writers
  if has_edits:
    tables['corrections'] = parts(place, words, given.post_edit).test
  load = lambda **_: scaled(dealt.train, dealt.validation, 'standardise', dealt.report)  # noqa: E731
  logps = scored(place, reference, tables)
  about = {name: _about(table) | {'reference': logps[name]['logps']} for name, table in tables.items()}
  about['test']['usual_length'] = np.median(dealt.train.response_lengths)
  if given.writer is not None:
    known, asked = map(writers.of_table, (dealt.train, dealt.test), dealt.written_by)
    about['test']['writer_means'] = writers.mean_rewards(known, dealt.train.raw_rewards, asked)
  return World(training.Data(load, reference), tables, about)


def _contents(given: Feedback) -> dict[str, str | None]:
  """Hashes of the contents of triplets and reference, whatever their names."""

  def of(triplets: str | Sequence[str]) -> str:
    if sources.is_files(triplets):
      return fingerprints.files_fingerprint(sources.expand(triplets))
    return find.find(triplets).fingerprint

  return {
    'triplets': of(given.triplets),
    'test_triplets': given.test_triplets and of(given.test_triplets),
    'init_from': given.init_from and folders.init_digest(given.init_from),
  }


def _reference(place: Place, post_edit: str | None) -> str:
  """A policy that imitates a part's corrections, or else its responses."""

  def load(vocabulary: Any, **_: Any) -> Triplets:
    dealt = parts(place, vocabulary, post_edit)
    return scaled(dealt.reference, None, 'none', dealt.report)

  return training.imitate(
    place.folder / 'world' / 'sft', load, place.model, vocabulary=place.feedback.vocabulary or 'bytes',
    steps=place.feedback.reference_steps, responses=place.batch_size, learning_rate=2e-3, mesh=place.mesh,
  )  # fmt: skip


def _about(table: TokenTable) -> dict[str, np.ndarray]:
  """The columns against which a table's scores are judged."""
  hter = table.columns.get('hter', np.ones(len(table)))
  return {
    'rewards': table.raw_rewards,
    'prompts': np.unique(table.prompt_index, return_inverse=True)[1],
    'lengths': table.response_lengths,
    'weights': hter,
  }


# --- a cell -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _scorer(nets: networks.Networks, mesh: Mesh) -> Callable[..., table_scores.ScoredTable]:
  """Compiled once for all cells with the same networks."""
  return table_scores.make_table_scorer(nets, base.NO_LOSS, None, mesh)


def scored(
  place: Place, checkpoint: str, tables: Mapping[str, TokenTable]
) -> dict[str, dict[str, np.ndarray]]:
  """A policy's log-probs of every response of some tables, and V where it has a value, `[N]` each."""
  mesh = place.mesh.over()
  trained = load_run(checkpoint, mesh)
  state, found = trained.state._replace(reference=None), {}
  for name, table in tables.items():
    result = _scorer(trained.networks, mesh)(state, batches.once(table, mesh, place.batch_size))
    found[name] = {'logps': result.logps} | ({} if result.values is None else {'values': result.values})
  return found


def run_cell(
  place: Place,
  methods: Mapping[str, training.Method],
  budget: training.Budget,
  world_of: Callable[[], World],
  cell: Cell,
) -> dict[str, Any]:
  """Runs a cell: trains, and scores the responses that people judged with its last and best checkpoint."""
  world = world_of()
  method = methods[cell.algorithm]
  temperature = float(method.algorithm(cell.hyperparameters.get('temperature', 1.0)).temperature)

  def judge(checkpoint: str) -> dict[str, Any]:
    scores = scored(place, checkpoint, world.tables)
    agreement = human_report.agreement(scores['validation'], world.about, temperature)
    return scores | {'validation': -agreement}

  result = training.fit_and_judge(place.folder, method, cell, world.data, budget, place.mesh, judge)
  about = {name: about for name, about in world.about.items() if name != 'validation'}
  return result | {'temperature': temperature, 'about': about}


def human(
  folder: str,
  feedback: Callable[[], Feedback],
  *,
  model: Config = training.MODEL,
  steps: int = 200,
  batch_size: int = 32,
  evaluations: int = 2,
  rates: tuple[float, float] = RATES,
  mesh: MeshSpec = MeshSpec(),
) -> Suite:
  """Agreement with human scores on held-out prompts.

  Args:
    folder: the arena's.
    feedback: the triplets.
    model: the policy's size, where no reference is given.
    steps: of DRO-V; other methods take as many as cost the same FLOPs.
    batch_size: responses of a batch.
    evaluations: how often a run validates, to find its best checkpoint.
    rates: the least and the greatest learning rate.
    mesh: devices' arrangement.

  Raises:
    UsageError: no triplets.
  """
  given = feedback()
  if not given.triplets:
    raise UsageError('the suite human needs scores by people: pass them as --triplets=FILE.')
  if given.new_writers and given.writer is None:
    raise UsageError(
      f'new_writers={given.new_writers} holds out writers, and nothing says who wrote a response: pass the '
      'field that does, as --set WRITER=FIELD, or leave NEW_WRITERS unset.'
    )
  place = Place(pathlib.Path(folder).expanduser().absolute(), given, model, mesh, batch_size)
  competing = methods(rates)
  budget = training.Budget(steps, batch_size, evaluations=evaluations)
  settings = {'feedback': given._asdict(), 'model': vars(model), 'budget': budget._asdict()}
  settings |= {'contents': _contents(given)}
  world_of = functools.lru_cache(maxsize=1)(functools.partial(prepare, place))
  return Suite(
    'human', to_json(settings), {name: method.grid for name, method in competing.items()}, ({},),
    functools.partial(run_cell, place, competing, budget, world_of),
    functools.partial(human_report.report, tuple(competing)), usual=USUAL, checkpoint='last',
  )  # fmt: skip


__all__ = ['Feedback', 'human']
