"""The result of `inspect` as tables for a terminal."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dro_jax.inspection.spelling import COMMAND, Spelling
from dro_jax.printing.tables import text

_BAR = 40  # Characters of a histogram's longest bar.
_SIZES = 8  # So few numbers of responses to a prompt are all listed.


def tables(
  content: Mapping[str, Any], spelling: Spelling = COMMAND
) -> Iterator[tuple[str, list[dict[str, str]]]]:
  """Yields the title and rows of each table; `spelling` writes the settings in them."""
  yield 'Data', _pairs(_overview(content))
  yield 'Lengths (of prompts, each once; of responses)', _length_rows(content['lengths'])
  yield 'Texts cut by the limits', [_cut_row(side, cut) for side, cut in content['truncation'].items()]
  if content['rewards']:
    yield 'Rewards', _histogram(content['rewards'], content['records'])
    title = 'Variance of the reward: Σ(r − r̄)² = Σₚ nₚ(r̄ₚ − r̄)² + Σ(r − r̄ₚ)²'
    yield title, _variance_rows(content['variance'])
    yield 'Within prompts', _pairs(_comparisons(content['comparisons'], content['duplicates']))
  yield (
    f'Rows for batches of {content["batch"]["size"]}: how full they are',
    _row_rows(content['rows'], spelling),
  )
  yield 'Methods', _method_rows(content['methods'], spelling)
  yield 'Warnings', [{'': f'• {warning}'} for warning in content['warnings']]


def _pairs(entries: Mapping[str, Any]) -> list[dict[str, str]]:
  return [{'': name, ' ': text(value)} for name, value in entries.items()]


def _percent(share: float | None) -> str:
  return '–' if share is None else f'{share:.1%}'


def _overview(content: Mapping[str, Any]) -> dict[str, Any]:
  per_prompt, held_out, columns = (
    content['responses_per_prompt'],
    content['held_out'],
    content['extra_columns'],
  )
  sizes = [f'{times} have {size}' for size, times in per_prompt['prompts_by_responses'].items()]
  shown = ', '.join(sizes if len(sizes) <= _SIZES else [*sizes[:4], '...', *sizes[-3:]])
  vocabulary = content['vocabulary']
  return {
    'records': content['records'],
    'distinct prompts': content['prompts'],
    'responses a prompt': f'{text(per_prompt["mean"])} on average; of the prompts {shown}',
    'held out by a run': f'{held_out["records"]} records',
    'an epoch': f'{text(content["batch"]["batches_an_epoch"])} batches of {content["batch"]["size"]}',
    **({'labels, for kto and bco': content['labels']['said']} if content['labels'] else {}),
    'other columns': ', '.join(columns['columns']) or 'none',
    'vocabulary': (
      f'{vocabulary["name"]}, {vocabulary["size"]} ids; {vocabulary["unknown_share"]:.2%} of tokens unknown'
      + ('; its chat template writes the prompts' if vocabulary['chat'] else '')
    ),
  }


def _length_rows(lengths: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
  wanted = ('mean', 'min', 'p5', 'p50', 'p90', 'p95', 'p99', 'max')
  return [
    {'': name.replace('_', ' '), **{key: f'{spread[key]:.0f}' for key in wanted}}
    for name, spread in lengths.items()
  ]


def _cut_row(side: str, cut: Mapping[str, Any]) -> dict[str, str]:
  return {
    '': f'{side}s',
    'limit, tokens': str(cut['limit']),
    'cut': f'{cut["cut"]} ({_percent(cut["share_cut"])})',
    'tokens lost': _percent(cut['share_of_tokens_lost']),
    'a limit that keeps 99 % whole': str(cut['limit_for_99_percent']),
  }


def _histogram(rewards: Mapping[str, Any], records: int) -> list[dict[str, str]]:
  most = max(bar['count'] for bar in rewards['histogram'])
  bars = [
    {
      'reward': text(bar['from'])
      if bar['from'] == bar['to']
      else f'{text(bar["from"])} to {text(bar["to"])}',
      'records': str(bar['count']),
      'share': _percent(bar['count'] / records),
      ' ': '█' * max(round(_BAR * bar['count'] / most), int(bar['count'] > 0)),
    }
    for bar in rewards['histogram']
  ]
  kind = 'two values' if rewards['is_binary'] else f'{rewards["distinct"]} distinct values'
  spread = f'mean {text(rewards["mean"])}, sd {text(rewards["sd"])}, median {text(rewards["p50"])}; {kind}'
  return [*bars, {'reward': 'all', 'records': str(records), 'share': '', ' ': spread}]


def _variance_rows(variance: Mapping[str, Any]) -> list[dict[str, str]]:
  share, rows = variance['share_within'], []
  shares = {'between': None if share is None else 1 - share, 'within': share}
  for part in ('between', 'within'):
    squares, component = variance[part], variance[f'component_{part}']
    rows.append(
      {
        '': f'{part} prompts',
        'sum of squares': text(squares),
        'share': _percent(shares[part]),
        'degrees of freedom': str(variance[f'{part}_freedom']),
        'sd (unbiased)': text(None if component is None else component**0.5),
      }
    )
  correlation = text(variance['intraclass_correlation'])
  return [*rows, {'': 'intraclass correlation', 'sum of squares': '', 'share': correlation}]


def _comparisons(comparisons: Mapping[str, Any], duplicates: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'comparisons of two responses': comparisons['pairs'],
    'of which ties': f'{comparisons["tied_pairs"]} ({_percent(comparisons["share_tied"])})',
    'prompts with a comparison': comparisons['prompts_with_comparisons'],
    'prompts with ties only': comparisons['prompts_all_tied'],
    'comparisons that the longer response wins': _percent(comparisons['longer_is_better']),
    'rank correlation of length and reward, over all': comparisons['length_correlation'],
    'duplicates (same prompt, same response)': duplicates['duplicates'],
    'texts with several rewards': duplicates['texts_with_conflicting_rewards'],
  }


def _row_rows(rows: Mapping[str, Any], spelling: Spelling) -> list[dict[str, str]]:
  """The default rows first, then the fullest of the others."""
  default, *others = rows['kinds']
  return [
    {
      'settings': _sets((f'{name}={value}' for name, value in kind['settings'].items()), spelling)
      or 'by default',
      'prompt + response tokens': f'{kind["prompt_length"]} + {kind["response_length"]}',
      'rows a batch': ', '.join(map(str, kind['rows'])),
      'encoder': _percent(kind['prompt']),
      'decoder': _percent(kind['response']),
      'both': _percent(kind['total']),
      '': '← best' if kind['settings'] == rows['settings'] else '',
    }
    for kind in (default, *sorted(others, key=lambda kind: -kind['total']))
  ]


def _sets(settings: Iterable[str], spelling: Spelling) -> str:
  return ' '.join(spelling.setting(f'--set {setting}') for setting in settings)


def _counted(units: Mapping[str, Any] | None) -> str:
  """The number of pairs or groups, in brackets; nothing for algorithms of single responses."""
  if not units:
    return ''
  return f' ({units["units"]} {units["unit"]}s{" as judged" if units["pairs"] == "logged" else ""})'


def _method_rows(methods: Iterable[Mapping[str, Any]], spelling: Spelling) -> list[dict[str, str]]:
  """Groups algorithms by answer: those that run by default, with a setting, and not at all."""
  by_answer: dict[tuple[int, str], list[str]] = {}
  for method in methods:
    answer = (2, spelling.sentences(method['reason']))
    if method['admitted']:
      answer = (int(bool(method['settings'])), _sets(method['settings'], spelling))
    by_answer.setdefault(answer, []).append(method['method'] + _counted(method['units']))
  verdicts = ('yes', 'yes, with', 'no')
  return [
    {'': verdicts[kind], 'method': ', '.join(names), 'settings, or why not': why}
    for (kind, why), names in sorted(by_answer.items())
  ]
