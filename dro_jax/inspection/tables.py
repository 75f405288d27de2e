"""What `inspect` found, as tables for a terminal."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dro_jax.printing.tables import text

_BAR = 40  # Characters of a histogram's longest bar.
_SIZES = 8  # Numbers of responses to a prompt that are all listed.


def tables(found: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
  """Titles and rows."""
  yield 'Data', _pairs(_overview(found))
  yield 'Lengths (of prompts, each once; of responses)', _length_rows(found['lengths'])
  yield 'What the limits cut', [_cut_row(side, cut) for side, cut in found['truncation'].items()]
  if found['rewards']:
    yield 'Rewards', _histogram(found['rewards'], found['records'])
    title = 'Variance of the reward: Σ(r − r̄)² = Σₚ nₚ(r̄ₚ − r̄)² + Σ(r − r̄ₚ)²'
    yield title, _variance_rows(found['variance'])
    yield 'Within prompts', _pairs(_comparisons(found['comparisons'], found['duplicates']))
  yield f'Rows for batches of {found["batch"]["size"]}: how full they are', _row_rows(found['rows'])
  yield 'Methods', _method_rows(found['methods'])
  yield 'Mind', [{'': f'• {warning}'} for warning in found['warnings']]


def _pairs(entries: Mapping[str, Any]) -> list[dict[str, str]]:
  return [{'': name, ' ': text(value)} for name, value in entries.items()]


def _percent(share: float | None) -> str:
  return '–' if share is None else f'{share:.1%}'


def _overview(found: Mapping[str, Any]) -> dict[str, Any]:
  per_prompt, held_out, columns = found['responses_per_prompt'], found['held_out'], found['extra_columns']
  sizes = [f'{times} have {size}' for size, times in per_prompt['prompts_by_responses'].items()]
  shown = ', '.join(sizes if len(sizes) <= _SIZES else [*sizes[:4], '...', *sizes[-3:]])
  words = found['vocabulary']
  return {
    'records': found['records'],
    'distinct prompts': found['prompts'],
    'responses a prompt': f'{text(per_prompt["mean"])} on average; of the prompts {shown}',
    'held out by a run': f'{held_out["records"]} records',
    'an epoch': f'{text(found["batch"]["batches_an_epoch"])} batches of {found["batch"]["size"]}',
    **({'labels, for kto and bco': found['labels']['said']} if found['labels'] else {}),
    'other columns': ', '.join(columns['columns']) or 'none',
    'vocabulary': f'{words["name"]}, {words["size"]} ids; {words["unknown_share"]:.2%} of tokens unknown',
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


def _row_rows(rows: Mapping[str, Any]) -> list[dict[str, str]]:
  """The rows that a run takes by itself first, then the fullest of the others."""
  own, *others = rows['kinds']
  return [
    {
      'settings': _sets(f'{name}={value}' for name, value in kind['settings'].items()) or 'by default',
      'prompt + response tokens': f'{kind["prompt_length"]} + {kind["response_length"]}',
      'rows a batch': ', '.join(map(str, kind['rows'])),
      'encoder': _percent(kind['prompt']),
      'decoder': _percent(kind['response']),
      'both': _percent(kind['total']),
      '': '← best' if kind['settings'] == rows['settings'] else '',
    }
    for kind in (own, *sorted(others, key=lambda kind: -kind['total']))
  ]


def _sets(settings: Iterable[str]) -> str:
  return ' '.join(f'--set {setting}' for setting in settings)


def _counted(units: Mapping[str, Any] | None) -> str:
  """How many pairs or groups there are, in brackets; nothing for methods of single responses."""
  if not units:
    return ''
  return f' ({units["units"]} {units["unit"]}s{" as judged" if units["pairs"] == "logged" else ""})'


def _method_rows(methods: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
  """Methods by what they say: those that run as they are, with a setting, and not."""
  by_answer: dict[tuple[int, str], list[str]] = {}
  for method in methods:
    answer = (2, method['reason'])
    if method['admitted']:
      answer = (int(bool(method['settings'])), _sets(method['settings']))
    by_answer.setdefault(answer, []).append(method['method'] + _counted(method['units']))
  verdicts = ('yes', 'yes, with', 'no')
  return [
    {'': verdicts[kind], 'method': ', '.join(names), 'settings, or why not': why}
    for (kind, why), names in sorted(by_answer.items())
  ]
