"""Reward models as reward functions: a run of ours, or an imported sequence classifier."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dro_jax.algorithms.base import REWARDS
from dro_jax.checkpoints import adapters, folders, orbax, policy
from dro_jax.checkpoints.metadata import DIGEST, REWARD_MODEL
from dro_jax.data import scaling
from dro_jax.data.batches.rows import single_rows
from dro_jax.data.text import chat, templates, tokenise
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.errors import UsageError
from dro_jax.models import scoring
from dro_jax.models.policy import refuse_long_texts, saved_config
from dro_jax.parallel import partitioning
from dro_jax.parallel.partitioning import Mesh, MeshSpec
from dro_jax.run import networks
from dro_jax.run.folder import reading
from dro_jax.step.state import join
from dro_jax.types import Params, Rows

_LENGTHS = 64  # Rows are padded to multiples of this, so that few shapes are compiled.


class RewardModel:
  """R(x, y) by a saved reward model, as a reward function; nothing is loaded before the first call.

  A model that was fitted to rewards gives rewards in their own units; one that was fitted to preferences
  gives logits, whose differences within a prompt count. Texts are read as the model read its own: by its chat
  template or else its template of turns, cut to its lengths. An imported classifier reads all that its chat
  template writes, and its score is that of the last token.

  Args:
    directory: a run's folder (its best step, or the newest), one checkpoint, or an imported classifier.
    mesh: rows are split over it; `None` takes all devices.
    batch_size: texts at once, rounded up to a number that the mesh divides.

  Raises:
    UsageError: there is no reward model.
  """

  def __init__(self, directory: str, mesh: Mesh | None = None, batch_size: int = 32):
    # Resolved once: a run in progress may have a better step later.
    self.directory = str(folders.find_checkpoint(directory))
    self._saved = folders.load_metadata(self.directory)
    self._mesh, self._batch_size = mesh, batch_size
    if not self._saved.get(REWARD_MODEL) and (self._saved.get('value') or {}).get('readout') != 'response':
      raise UsageError(
        f'{directory} has no reward model: pass a run of one (--gin_file=algorithms/bradley_terry.gin, or '
        'reward_regression.gin), or a folder that import_checkpoint wrote of a Hugging Face model for '
        'sequence classification with one label.'
      )

  @property
  def reward_name(self) -> str:
    """The folder's name, the same on every machine."""
    path = pathlib.Path(self.directory)
    return path.parents[1].name if path.parent.name == 'checkpoints' else path.name

  @property
  def reward_code(self) -> str | None:
    """The digest of its parameters, if its version wrote one."""
    digest: str | None = self._saved.get(DIGEST)
    return digest

  @property
  def reward_role(self) -> str | None:
    """`proxy` or `gold`; `None` of an import, which does not say."""
    role: str | None = self._saved.get('role')
    return role

  def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    loaded = self._loaded
    texts = self._tokenised(loaded.vocabulary, prompts, responses)
    scores = np.zeros(len(texts))
    # By length, so that short texts are not padded to the longest.
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i][0]) + len(texts[i][1]), len(texts[i][1])))
    size = min(self._batch_size, 1 << max(len(order) - 1, 0).bit_length())
    rows = partitioning.divisible_rows(loaded.mesh, size)
    for start in range(0, len(order), rows):
      batch = order[start : start + rows]
      scores[batch] = loaded.score([texts[i] for i in batch], rows)
    if self._saved.get('scores') == REWARDS:
      scores = scaling.from_json(self._saved['data']['scaling']).invert(scores)
    return [float(score) for score in scores]

  @functools.cached_property
  def _loaded(self) -> '_Loaded':
    mesh = self._mesh or MeshSpec().over()
    saved, directory = self._saved, self.directory
    vocabulary = policy.vocabulary_of(directory)
    value, adapter = saved.get('value') or {'readout': 'response'}, adapters.entry_of(saved)
    lora = adapter and adapter.lora
    nets = networks.build(saved_config(saved), uses_value=True, lora=lora, **value)
    base = None
    if adapter is not None:
      base, _ = networks.load_base(nets, mesh, adapters.find_base(directory), adapter.fingerprint)
    params = _load(nets, saved, directory, mesh)
    own = join(base, params)
    function = scoring.make_score(nets.policy, nets.value, scores_policy=False)
    score = partitioning.jit_on(mesh, lambda params, rows: function(params, rows).values)
    return _Loaded(mesh, vocabulary, own, score, nets)

  def _tokenised(
    self, vocabulary: Vocabulary, prompts: Sequence[str], responses: Sequence[str]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tokens of each prompt and response, as the model read its own."""
    options = reading.options_of(self._saved)
    by_chat = options.get('chat', vocabulary.chat is not None)
    turn = tokenise.turn_template(by_chat, options.get('chat_template'))
    read = [chat.rendered_by(prompt, turn) for prompt in prompts]
    template = options.get('template', templates.PLAIN)
    framed = [_framed_once(text, template, by_chat) for text in read]
    if by_chat and self._saved.get(REWARD_MODEL):
      # As transformers: the score is read at the last token that the template writes, whatever that is.
      return [(ids[:-1], ids[-1:]) for ids in tokenise.answered(framed, responses, vocabulary)]
    keep = options.get('keep', 'auto')
    keeps = [templates.kept_end(keep, chat.is_rendered(text)) for text in read]
    asked = tokenise.prompts(
      framed, vocabulary, by_chat=by_chat, length=options.get('prompt_length'), keeps=keeps
    )
    # A policy may answer nothing, and that has a reward too: a text that ends at once.
    answers = [np.array([vocabulary.special.eos], np.int32)] * len(framed)
    filled = [i for i, response in enumerate(responses) if response.strip()]
    encoded = tokenise.responses(
      [framed[i] for i in filled], [responses[i] for i in filled], vocabulary, by_chat=by_chat
    )
    for i, ids in zip(filled, encoded.ids):
      answers[i] = templates.cut_response(ids, options.get('response_length', len(ids)))[0]
    return [(ids, answer) for (ids, _), answer in zip(asked, answers)]


def _framed_once(text: str, template: str, by_chat: bool) -> str:
  """A prompt in the model's template, if it is not in it already, as the prompts of a run are."""
  before, _, after = template.partition('{prompt}')
  is_framed = template != templates.PLAIN and text.startswith(before) and text.endswith(after)
  return text if is_framed else tokenise.framed(text, template, by_chat)


class _Loaded(NamedTuple):
  """A reward model's parameters on a mesh, and its compiled scoring."""

  mesh: Mesh
  vocabulary: Vocabulary
  params: Mapping[str, Params]
  values: Callable[[Mapping[str, Params], Rows], jax.Array]
  networks: networks.Networks

  def score(self, texts: Sequence[tuple[np.ndarray, np.ndarray]], num_rows: int) -> np.ndarray:
    """The scores of at most `num_rows` texts."""
    longest = [max(len(text[side]) for text in texts) for side in (0, 1)]
    refuse_long_texts(
      self.networks.policy.config, *longest,
      'texts, or train a model with PROMPT_LENGTH and RESPONSE_LENGTH,', is_read=True,
    )  # fmt: skip
    prompt_length, response_length = (-(-length // _LENGTHS) * _LENGTHS for length in longest)
    rows = single_rows(
      [prompt for prompt, _ in texts], [response for _, response in texts], num_rows=num_rows,
      prompt_length=prompt_length, response_length=response_length,
    )  # fmt: skip
    values = jax.device_get(self.values(self.params, partitioning.place_rows(self.mesh, rows)))
    return np.asarray(values[: len(texts), 0], np.float64)


def _load(nets: networks.Networks, saved: Mapping[str, Any], directory: str, mesh: Mesh) -> dict[str, Params]:
  """The parameters that scoring reads: the value network's, and the policy's where that shares its trunk."""
  abstract = networks.abstract_on(nets, mesh)
  if saved.get(REWARD_MODEL):
    return {'value': orbax.load_params(directory, abstract['value'])[0]}
  params = {'value': orbax.load_part(directory, ('params', 'value'), abstract['value'])}
  return params | ({'policy': networks.load_own(nets, directory, mesh)} if nets.value.shared else {})


@functools.lru_cache(maxsize=8)
def load(directory: str, mesh: Mesh | None = None, batch_size: int = 32) -> RewardModel:
  """The reward model in a folder, loaded once however often it is asked for."""
  return RewardModel(directory, mesh, batch_size)


__all__ = ['RewardModel', 'load']
