"""Warnings about a data set, in sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

from dro_jax.data.triplets import few_held_out
from dro_jax.inspection.spelling import COMMAND, Spelling
from dro_jax.printing.tables import text

# A warning begins above these.
OFF_CENTRE = 0.1  # |mean| / sd: above it V, which starts at 0, must first learn the mean.
_LENGTH = 0.3  # |correlation| of length and reward.
_LONGER = 0.1  # How far from one half the longer response wins.
_CUT = 0.01  # Share of texts that are cut.
_OUTLIER = 8.0  # Standard deviations.
_DOMINANT = 0.2  # Share of the records that one prompt has.


def warnings(content: Mapping[str, Any], spelling: Spelling = COMMAND) -> Iterator[str]:
  """Yields warnings before training, the most serious first; `spelling` writes the settings in them."""
  yield from _of_words(content.get('reward_words'), spelling)
  yield from map(spelling.sentences, _of_content(content))


def _of_content(content: Mapping[str, Any]) -> Iterator[str]:
  words, problem = content.get('reward_words'), content['rewards_problem']
  if problem and not (words and not words['complete']):
    yield f'Rewards cannot be read: {problem}'
  if not problem:
    if content['unscaled']:
      yield f'The requested scaling is impossible: {content["unscaled"]}.'
    yield from _of_one_kind(content['labels'])
    judged = content.get('judged', False)
    yield from _of_rewards(content['rewards'], content['scaling'], content['duplicates'], judged)
    yield from _of_comparisons(content['comparisons'], content['variance'], content['records'], judged)
  yield from _of_prompts(content)
  yield from _of_texts(content)


def _of_words(words: Mapping[str, Any] | None, spelling: Spelling) -> Iterator[str]:
  if not words:
    return
  counted = ', '.join(f'{word} ({count})' for word, count in words['words'].items())
  mapping = words['map_reward']
  setting = f'--map_reward={mapping}' if isinstance(mapping, str) else f'--set MAP_REWARD="{mapping}"'
  guess = (
    'a guess that the command below makes: check it' if words['complete'] else 'with a number for each NUMBER'
  )
  yield f'Rewards are words: {counted}. Pass {spelling.setting(setting)}, {guess}.'


def _of_one_kind(labels: Mapping[str, Any]) -> Iterator[str]:
  if labels['rule'] == 'binary' and labels['desirable'] in (0, labels['labels']):
    up = labels['desirable']
    kind, does = ('desirable', 'only imitate them') if up else ('undesirable', 'only push them away')
    yield f'All {labels["labels"]} responses to train on are {kind}: kto and bco can {does}.'


def _of_rewards(
  rewards: Mapping[str, Any], scaling: Mapping[str, Any], duplicates: Mapping[str, Any], judged: bool
) -> Iterator[str]:
  mean, sd = rewards['mean'], rewards['sd']
  if sd == 0:
    yield f'All rewards are {text(mean)}: only imitation can learn from them.'
    return
  if abs(mean) > OFF_CENTRE * sd:
    kind = scaling['kind']
    centred = f': --set REWARD_SCALING={kind} centres it' if kind.startswith('standardise') else ''
    yield (
      f'The mean reward, {text(mean)}, is {text(abs(mean) / sd)} sd from 0, where V starts{centred}. Until V '
      'has learnt it, the policy shifts probability to responses that are not in the data.'
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
      f'A reward is {text(furthest)} sd from the mean, which dominates a squared loss: check the record, '
      'or pass --set REWARD_SCALING=quantile.'
    )
  if count := duplicates['texts_with_conflicting_rewards']:
    others = (
      'groups use their mean, and pairs stay as judged' if judged else 'pairs and groups use their mean'
    )
    yield (
      f'{count} texts (same prompt, same response) have several rewards, up to '
      f'{text(duplicates["largest_conflict"])} apart (such as {", ".join(duplicates["examples"])}): losses '
      f'by response see each, {others}.'
    )


def _of_comparisons(
  comparisons: Mapping[str, Any], variance: Mapping[str, Any], records: int, judged: bool
) -> Iterator[str]:
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
      f'{comparisons["share_tied"]:.0%} of the comparisons within prompts are ties, from which pairs learn '
      'nothing; losses by response still learn from them.'
    )
  if variance['share_within'] == 0:
    yield 'Rewards differ between prompts only: no response to a prompt is better than another.'


def _of_prompts(content: Mapping[str, Any]) -> Iterator[str]:
  per_prompt, records, prompts = content['responses_per_prompt'], content['records'], content['prompts']
  if records == prompts:
    yield (
      'Every prompt has one response: V(x) is learnt across prompts only, and the variance of the reward '
      'within a prompt is unknown.'
    )
  if per_prompt['max'] > max(_DOMINANT * records, 1) and prompts > 1:
    yield f'One prompt has {per_prompt["max"]} of the {records} records.'
  if prompts == 1:
    yield (
      'There is one prompt only: no prompt can be held out, and V is one number (--set VALUE_READOUT=scalar).'
    )
  if content['held_out']['fraction'] == 0:
    yield (
      'There are too few prompts to hold some out and keep different rewards to train on: the run does not '
      'validate.'
    )
  if content['held_out']['fraction'] and (few := few_held_out(content['held_out']['prompts'], prompts)):
    yield few
  if shared := content['eval_prompts_in_train']:
    yield f'{shared} prompts of the held-out files are in the training files too.'
  if content['batch']['batches_an_epoch'] == 1:
    yield f'A batch holds every record to train on ({content["batch"]["size"]}).'


def _of_positions(positions: Mapping[str, Any]) -> str:
  (prompt, response), limits = positions['longest'], positions['limits']
  return (
    f'The model has {positions["learned"]} learned positions, too few for a prompt of {prompt} tokens with a '
    f'response of {response}: texts are cut at --set PROMPT_LENGTH={limits["prompt_length"]} and --set '
    f'RESPONSE_LENGTH={limits["response_length"]}, which fit. A model with rotary positions reads them whole.'
  )


def _of_texts(content: Mapping[str, Any]) -> Iterator[str]:
  if positions := content.get('positions'):
    yield _of_positions(positions)
  for side, cut in content['truncation'].items():
    if cut['share_cut'] > _CUT:
      loss = ', and lose their EOS' if side == 'response' else ''
      more = f' --set {side.upper()}_LENGTH={cut["limit_for_99_percent"]} keeps 99 %.'
      yield (
        f'{cut["share_cut"]:.1%} of the {side}s are cut at {cut["limit"]} tokens{loss}, though a reward '
        f'is for the whole text.{"" if positions else more}'
      )
  vocabulary = content['vocabulary']
  yield from vocabulary['losses']
  if apart := content['tokenised_apart']:
    yield (
      f'{apart} of {content["records"]} responses are tokenised apart from their prompts, because a token '
      'would span both: end the prompts or begin the responses with a blank.'
    )
  if not content['tokens_of_a_model']:
    yield 'Lengths are in bytes: pass --init_from or --set VOCABULARY to count the tokens of a model.'
  if left_out := content['extra_columns']['left_out']:
    yield f'Columns that only some records have are left out: {", ".join(left_out)}.'
