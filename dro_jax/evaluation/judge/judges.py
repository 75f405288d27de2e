"""Judges: an endpoint, a command, a Python function, or a reward. Each gives verdicts on comparisons."""

import logging
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dro_jax import files, limits
from dro_jax.errors import Failed, UsageError, shown
from dro_jax.evaluation.judge import endpoint as endpoints
from dro_jax.evaluation.judge import programs, templates, verdicts
from dro_jax.evaluation.judge.endpoint import Endpoint
from dro_jax.evaluation.judge.requests import Requests, key_of
from dro_jax.evaluation.judge.sending import LOST, Sender, spent_of
from dro_jax.evaluation.judge.verdicts import MALFORMED, Verdict
from dro_jax.parallel.partitioning import Mesh
from dro_jax.run.sampling import reward_commands, rewards
from dro_jax.statistics import ties

_TIE = Verdict(0.5)
_MUST = (
  'Its reply must have one line "Verdict: A", "Verdict: B" or "Verdict: tie": say so in the instructions '
  '(--judge_prompt), leave room for it (--set VERDICT_LENGTH), or choose a model that follows them.'
)


class Comparison(NamedTuple):
  """A prompt and two answers, as texts, in the order in which the judge sees them."""

  prompt: str
  first: str
  second: str


class Judged(NamedTuple):
  """A verdict for each comparison, or `None` where the judge was not asked or gave no reply.

  Attributes:
    verdicts: in the order of the comparisons.
    spent: what the folder's requests have spent, as plain values; empty for a judge that costs nothing.
    note: why some comparisons have no verdict, as a sentence, or ''.
    unread: a reply that is no verdict, if there is one.
  """

  verdicts: list[Verdict | None]
  spent: Mapping[str, Any] = {}
  note: str = ''
  unread: str | None = None


class Judge(NamedTuple):
  """A judge.

  Attributes:
    name: as reports call it.
    sees_order: whether the order of two answers may change its verdict; if not, it is asked once.
    judge: gives verdicts.
    record: of a reward (see `rewards.record_of`); `None` of other judges.
    must: what a reply must be, as a sentence.
  """

  name: str
  sees_order: bool
  judge: Callable[[Sequence[Comparison]], Judged]
  record: Mapping[str, Any] | None = None
  must: str = 'It must return A, B, tie, or the probability that the first answer wins.'


def make_judge(
  folder: pathlib.Path,
  *,
  endpoint: Endpoint = Endpoint(),
  command: str | None = None,
  function: str | Callable[..., Any] | None = None,
  reward: rewards.Reward | str | None = None,
  template: str = 'helpfulness',
  mesh: Callable[[], Mesh] | None = None,
) -> Judge:
  """The judge that was chosen.

  Args:
    folder: where requests and replies are kept.
    endpoint: with a model, an endpoint.
    command: a program that reads comparisons and writes verdicts as lines.
    function: of prompt, first and second answer, which returns 'A', 'B', 'tie', or the probability of 'A'.
    reward: a reward of (prompts, answers), by which the higher wins.
    template: of an endpoint's instructions, by name or as a file.
    mesh: makes the devices' arrangement of a reward model; `None` takes all devices.

  Raises:
    UsageError: none or several are chosen, or one cannot work.
  """
  chosen = {
    'endpoint.model (JUDGE_MODEL)': endpoint.model, 'command (COMMAND)': command,
    'function (FUNCTION)': function, 'reward (REWARD)': reward,
  }  # fmt: skip
  named = [name for name, value in chosen.items() if value is not None]
  if len(named) != 1:
    given = f'{" and ".join(named)} name {len(named)} judges' if named else 'there is no judge'
    raise UsageError(
      f'{given}: pass one of --set JUDGE_MODEL=NAME (with BASE_URL for a server of your own), '
      "--set COMMAND='PROGRAM', --set FUNCTION=FILE.py:NAME and --set REWARD=NAME."
    )
  if endpoint.model is None:
    _refuse_unread(endpoint, template, named[0], ('timeout',) if command is not None else ())
  if reward is not None:
    return by_reward(reward, mesh and mesh())
  if function is not None:
    return by_function(folder, function)
  if command is not None:
    return by_command(folder, command, endpoint.timeout)
  return by_endpoint(folder, endpoint, templates.load(template))


def _refuse_unread(endpoint: Endpoint, template: str, judge: str, read: Sequence[str]) -> None:
  """A setting of the endpoint would change nothing, silently."""
  plain = Endpoint()
  unread = [
    name for name, value in vars(endpoint).items() if name not in read and value != getattr(plain, name)
  ]
  unread += ['template (--judge_prompt)'] if template != 'helpfulness' else []
  if unread:
    raise UsageError(
      f'{unread[0]} is a setting of a judge behind an endpoint, and the judge is {judge}: leave the setting '
      'out, or choose the endpoint by --set JUDGE_MODEL=NAME.'
    )


# --- an endpoint --------------------------------------------------------------------------------------------


def by_endpoint(folder: pathlib.Path, endpoint: Endpoint, template: str) -> Judge:
  """A model behind an endpoint, asked by a template."""
  endpoints.check(endpoint)
  client = endpoints.Client(endpoint)

  def judge(comparisons: Sequence[Comparison]) -> Judged:
    messages = [templates.fill(template, *comparison) for comparison in comparisons]
    keys = [key_of(endpoint.contents(message)) for message in messages]
    requests = Requests(folder, endpoint.max_requests, endpoint.max_tokens)
    try:
      sender = Sender(endpoint, requests, client)
      sender.send(dict(zip(keys, messages)))
    finally:
      requests.close()
    found = [_parsed(requests.answers.get(key)) for key in keys]
    note = _note(sender, {key for key in keys if key not in requests.answers}, len(set(keys)))
    texts = (answer['text'] for answer in map(requests.answers.get, keys) if answer is not None)
    return Judged(found, spent_of(requests, endpoint), note, _unread(texts, verdicts.parse))

  return Judge(str(endpoint.model), True, judge, must=_MUST)


def _parsed(answer: Mapping[str, Any] | None) -> Verdict | None:
  return None if answer is None else verdicts.parse(answer['text'], answer['labels'])


def _note(sender: Sender, missing: set[str], total: int) -> str:
  """Why some of the requests have no reply."""
  if not missing:
    return ''
  problems = [sender.problems[key] for key in missing if key in sender.problems]
  failed = [why for why in problems if why != LOST]
  parts = [f'{len(missing)} of {total} requests have no reply.']
  if lost := len(problems) - len(failed):
    parts.append(
      f'{lost} of them were {LOST}, and may have been paid for: --set RESEND=true sends them again.'
    )
  if sender.budget_ended:
    parts.append('The budget ended: raise REQUEST_BUDGET or TOKEN_BUDGET, and the same command goes on.')
  if failed:
    parts.append(f'{len(failed)} failed ({failed[0]}): the same command tries them again.')
  return ' '.join(parts)


# --- a program and a function -------------------------------------------------------------------------------


def by_command(folder: pathlib.Path, command: str, timeout: float | int = 60.0) -> Judge:
  """A program that is started once: it reads a comparison a line, as JSON, and writes a verdict a line.

  It is known by its text and by the contents of the files that the text names.
  """
  limits.above_zero('Endpoint', 'no verdict comes at once', timeout=timeout)
  programs.words(command)  # Refuses what is no command.
  described = {'command': command, 'code': reward_commands.code_of(command)}

  def judge(comparisons: Sequence[Comparison]) -> Judged:
    with programs.Program(command, timeout) as program:
      return _recorded(
        folder, described, comparisons, lambda asked: program.ask(asked._asdict()), program.finish
      )

  return Judge(command, True, judge, must=f'{programs.MUST}.')


def by_function(folder: pathlib.Path, function: str | Callable[..., Any]) -> Judge:
  """A user's Python function of one comparison."""
  call = files.import_function(function, 'FUNCTION') if isinstance(function, str) else function
  name = function if isinstance(function, str) else rewards.name_of(call)
  described = {'function': name, 'code': rewards.code_of(function)}

  def ask(comparison: Comparison) -> str:
    try:
      returned = call(*comparison)
    except (Exception, SystemExit) as error:
      raise UsageError(
        f'FUNCTION={name} raised {files.raised(error)} on the prompt {comparison.prompt[:80]!r}. It gets a '
        'prompt and two answers as texts, and must return A, B, tie, or the probability that the first wins.'
      ) from error
    return returned if isinstance(returned, str) else _probability(returned, name)

  return Judge(name, True, lambda comparisons: _recorded(folder, described, comparisons, ask))


def _probability(value: Any, name: str) -> str:
  """A number that a function returned, as text that is read back as it is."""
  number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
  if not 0 <= number <= 1:
    raise UsageError(
      f'FUNCTION={name} returned {value!r}: it must return A, B, tie, or a number from 0 to 1, the '
      'probability that the first answer wins.'
    )
  return files.json_text({'first': number})


def _recorded(
  folder: pathlib.Path,
  described: Mapping[str, Any],
  comparisons: Sequence[Comparison],
  ask: Callable[[Comparison], str],
  finish: Callable[[], None] = lambda: None,
) -> Judged:
  """Asks what was not asked before, one by one, and keeps each reply.

  Args:
    folder: the judge's.
    described: all that decides a reply beside the comparison.
    comparisons: to ask.
    ask: gives a reply.
    finish: checks all replies once the last is there.
  """
  requests = Requests(folder)
  every = [{**described, **each._asdict()} for each in comparisons]
  keys = [key_of(content) for content in every]
  contents = dict(zip(keys, every))
  asked: dict[str, str] = {}
  in_step = True
  try:
    for key, content in contents.items():
      if key in requests.answers:
        continue
      asked[key] = ask(Comparison(*(content[name] for name in Comparison._fields)))
      # A first line that is no verdict may be a banner, and each verdict after it one comparison late:
      # nothing is kept until the number of lines is known to fit.
      in_step = in_step and (len(asked) > 1 or _is_read(asked[key]))
      if in_step:
        requests.answered(key, asked[key], contents=content)
    finish()
    if not in_step:
      for key, text in asked.items():
        requests.answered(key, text, contents=contents[key])
  except programs.OutOfStep as error:
    for key in asked:
      requests.withdrawn(key, str(error))
    raise
  finally:
    requests.close()
  texts = [requests.answers[key]['text'] for key in keys]
  return Judged([_local_verdict(text) for text in texts], unread=_unread(texts, _local_verdict))


def _is_read(text: str) -> bool:
  return not math.isnan(_local_verdict(text).score)


def _unread(texts: Iterable[str], read: Callable[[str], Verdict]) -> str | None:
  """The first reply that is no verdict."""
  return next((text for text in texts if math.isnan(read(text).score)), None)


def _local_verdict(text: str) -> Verdict:
  """A verdict in words, or the probability that the first answer wins as JSON: {"first": 0.7}."""
  record = files.parsed(text.encode())
  if record is None:
    return verdicts.parse(text)
  value = record.get('first')
  in_range = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
  return Verdict(float(value), soft=True) if in_range else MALFORMED


# --- a reward -----------------------------------------------------------------------------------------------


def by_reward(reward: rewards.Reward | str, mesh: Mesh | None = None) -> Judge:
  """A reward of (prompts, answers), or its name, as a judge: the higher wins, equal ones tie."""
  function = rewards.find(reward, mesh=mesh)

  def judge(comparisons: Sequence[Comparison]) -> Judged:
    pairs = list(dict.fromkeys(_answers(comparisons)))
    values = rewards.reward_responses(function, *map(list, zip(*pairs))) if pairs else []
    by_pair = dict(zip(pairs, values))
    return Judged([
      _higher(by_pair[prompt, first], by_pair[prompt, second]) for prompt, first, second in comparisons
    ])  # fmt: skip

  name = reward if isinstance(reward, str) else rewards.name_of(reward)
  return Judge(name, False, judge, rewards.record_of(reward))


def _answers(comparisons: Sequence[Comparison]) -> Iterator[tuple[str, str]]:
  for prompt, first, second in comparisons:
    yield prompt, first
    yield prompt, second


def _higher(one: float, other: float) -> Verdict:
  if ties.exceeds(one, other):
    return Verdict(1.0)
  return Verdict(0.0) if ties.exceeds(other, one) else _TIE


def refuse_no_verdict(by: Judge, judged: Judged) -> None:
  """Refuses a result in which a judge was asked and gave no verdict at all.

  Raises:
    Failed: says why; for replies that are no verdicts, what the judge wrote and what it must write.
  """
  scores = [verdict.score for verdict in judged.verdicts if verdict is not None]
  if not judged.verdicts or not all(map(math.isnan, scores)):
    return
  problem = judged.note or f'{len(judged.verdicts)} comparisons have no verdict.'
  if judged.unread is not None:
    problem = (
      f'none of {len(scores)} replies is a verdict. The judge wrote, for example, {shown(judged.unread)}. '
      f'{by.must} {judged.note}'
    )
  raise Failed(f'{by.name} judged nothing: {problem.strip()}')


def log_note(note: str) -> None:
  """Says on the log why verdicts are missing."""
  if note:
    logging.getLogger(__name__).warning('%s', note)
