"""What is odd about a data set, in sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

from dro_jax.printing.tables import text

# Where a warning begins.
OFF_CENTRE = 0.1  # |mean| / sd: from here on V, which starts at zero, has something to learn first.
_LENGTH = 0.3  # |correlation| of length and reward.
_LONGER = 0.1  # How far from one half the longer response wins.
_CUT = 0.01  # Share of texts that are cut.
_OUTLIER = 8.0  # Standard deviations.
_DOMINANT = 0.2  # Share of the records that one prompt has.


def warnings(found: Mapping[str, Any]) -> Iterator[str]:
  """What to mind before training, in the order of its weight."""
  yield from _of_words(found.get('reward_words'), found['rewards_problem'])
  if not found['rewards_problem']:
    if found['unscaled']:
      yield f'The scaling that was asked for cannot be had: {found["unscaled"]}.'
    yield from _of_one_kind(found['labels'])
    judged = found.get('judged', False)
    yield from _of_rewards(found['rewards'], found['scaling'], found['duplicates'], judged)
    yield from _of_comparisons(found['comparisons'], found['variance'], found['records'], judged)
  yield from _of_prompts(found)
  yield from _of_texts(found)


def _of_words(words: Mapping | None, problem: str | None) -> Iterator[str]:
  if words:
    counted = ', '.join(f'{word} ({count})' for word, count in words['words'].items())
    said = words['map_reward']
    flag = f'--map_reward={said}' if isinstance(said, str) else f'--set MAP_REWARD="{said}"'
    guess = (
      'a guess that the command below makes: check it'
      if words['complete']
      else 'with a number for each NUMBER'
    )
    yield f'Rewards are words: {counted}. Pass {flag}, {guess}.'
  if problem and not (words and not words['complete']):
    yield f'Rewards cannot be read: {problem}'


def _of_one_kind(labels: Mapping) -> Iterator[str]:
  if labels['rule'] == 'binary' and labels['desirable'] in (0, labels['labels']):
    up = labels['desirable']
    kind, does = ('desirable', 'only imitate them') if up else ('undesirable', 'only push them away')
    yield f'All {labels["labels"]} responses to train on are {kind}: kto and bco can {does}.'


def _of_rewards(rewards: Mapping, scaling: Mapping, duplicates: Mapping, judged: bool) -> Iterator[str]:
  mean, sd = rewards['mean'], rewards['sd']
  if sd == 0:
    yield f'All rewards are {text(mean)}: only imitation has something to learn.'
    return
  if abs(mean) > OFF_CENTRE * sd:
    centred = ': REWARD_SCALING=standardise centres it' if scaling['kind'] == 'standardise' else ''
    yield (
      f'The mean reward, {text(mean)}, is {text(abs(mean) / sd)} sd from 0, where V starts{centred}. Until V '
      'has learnt it, the policy moves mass to texts that nobody logged.'
    )
  effective = scaling['effective_temperature']
  if effective is not None:
    yield (
      f'τ = {scaling["temperature"]:g} is {text(float(effective))} in the rewards’ own units (sd '
      f'{text(sd)}): at DRO’s optimum that much reward is worth a nat of log-ratio.'
    )
  furthest = max(rewards['max'] - mean, mean - rewards['min']) / sd
  if furthest > _OUTLIER:
    yield (
      f'A reward is {text(furthest)} sd from the mean, and a squared loss listens to it: look at it, or '
      'pass --set REWARD_SCALING=quantile.'
    )
  if count := duplicates['texts_with_conflicting_rewards']:
    others = (
      'groups their mean, and pairs stay as they were judged' if judged else 'pairs and groups their mean'
    )
    yield (
      f'{count} texts (same prompt, same response) have several rewards, up to '
      f'{text(duplicates["largest_conflict"])} apart (such as {", ".join(duplicates["examples"])}): losses '
      f'by response see each, {others}.'
    )


def _of_comparisons(comparisons: Mapping, variance: Mapping, records: int, judged: bool) -> Iterator[str]:
  watch = 'watch the length of samples (eval/sample_tokens).'
  correlation, longer = comparisons['length_correlation'] or 0.0, comparisons['longer_is_better']
  if abs(correlation) > max(_LENGTH, 2 / records**0.5):
    kind = 'Longer' if correlation > 0 else 'Shorter'
    yield f'{kind} responses are rewarded more (rank correlation {text(correlation)}): {watch}'
  decided = comparisons['pairs'] - comparisons['tied_pairs']
  if decided and abs(longer - 0.5) > max(_LONGER, 1 / decided**0.5):
    yield f'The longer of two responses to one prompt is the better one in {longer:.0%} of the pairs: {watch}'
  if not judged and 0.5 < (comparisons['share_tied'] or 0.0) < 1:
    yield (
      f'{comparisons["share_tied"]:.0%} of the comparisons within prompts are ties, of which pairs learn '
      'nothing; losses by response still learn from them.'
    )
  if variance['share_within'] == 0:
    yield 'Rewards differ between prompts only: there is nothing to prefer among the responses to a prompt.'


def _of_prompts(found: Mapping[str, Any]) -> Iterator[str]:
  per_prompt, records, prompts = found['responses_per_prompt'], found['records'], found['prompts']
  if records == prompts:
    yield (
      'Every prompt has one response: V(x) is learnt across prompts, never from several responses to one, '
      'and how far the reward varies within a prompt cannot be told.'
    )
  if per_prompt['max'] > max(_DOMINANT * records, 1) and prompts > 1:
    yield f'One prompt has {per_prompt["max"]} of the {records} records.'
  if prompts == 1:
    yield 'There is one prompt only: nothing can be held out, and V is one number (VALUE_READOUT=scalar).'
  if found['held_out']['fraction'] == 0:
    yield (
      'There are too few prompts to hold some out by their hash and keep rewards to tell apart: nothing is '
      'validated.'
    )
  if shared := found['eval_prompts_in_train']:
    yield f'{shared} prompts of the held-out files are in the training files too.'
  if found['batch']['batches_an_epoch'] == 1:
    yield f'A batch holds every record to train on ({found["batch"]["size"]}).'


def _of_texts(found: Mapping[str, Any]) -> Iterator[str]:
  for side, cut in found['truncation'].items():
    if cut['share_cut'] > _CUT:
      what = ', and lose their EOS' if side == 'response' else ''
      yield (
        f'{cut["share_cut"]:.1%} of the {side}s are cut at {cut["limit"]} tokens{what}: a reward was given '
        f'to the whole text. --set {side.upper()}_LENGTH={cut["limit_for_99_percent"]} keeps 99 %.'
      )
  vocabulary = found['vocabulary']
  yield from vocabulary['losses']
  if vocabulary['name'] == 'bytes' and found['init_from'] is None:
    yield 'Lengths are in bytes: with --init_from or --set VOCABULARY they are in the model’s own tokens.'
  if left_out := found['extra_columns']['left_out']:
    yield f'Columns that only some records have are left out: {", ".join(left_out)}.'
