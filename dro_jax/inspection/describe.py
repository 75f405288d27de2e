"""Describes a table of triplets in numbers: lengths, rewards, their variance, ties, duplicates. Numpy.

Axes: N responses, P distinct prompts. Everything returned is plain JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dro_jax.data.records import comparisons as pairs
from dro_jax.data.table import column_store
from dro_jax.data.table.table import TokenTable
from dro_jax.data.text import tokenise
from dro_jax.data.text.vocabularies import Vocabulary
from dro_jax.statistics import agreement, ties

_PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
_BARS = 12  # Bars of a histogram; so few distinct values get a bar each.
_NAMED = 3  # Examples named of each kind.
_SAMPLED = 20_000  # At most so many responses are searched for unknown tokens.


class Lengths(NamedTuple):
  """Lengths of whole texts, before any limit cuts them; tokens count EOS.

  prompt_tokens, prompt_characters      by distinct prompt, `[P]`.
  response_tokens, response_characters  by response, `[N]`.
  """

  prompt_tokens: np.ndarray
  prompt_characters: np.ndarray
  response_tokens: np.ndarray
  response_characters: np.ndarray


def whole_lengths(
  table: TokenTable, vocabulary: Vocabulary, prompt_length: int, by_chat: bool = False
) -> Lengths:
  """Lengths before the limits of the table; tokenises only cut texts again.

  Args:
    table: one that kept over-long responses.
    vocabulary: of the table.
    prompt_length: its limit of prompt tokens.
    by_chat: whether the model's own template wrote it.
  """
  first = _first_of_prompts(table)
  prompts, responses = table.prompt_lengths[first].copy(), table.response_lengths.copy()
  if len(cut := np.flatnonzero(prompts >= prompt_length)):
    texts = [table.prompts[int(i)] for i in first[cut]]
    prompts[cut] = [len(ids) for ids, _ in tokenise.prompts(texts, vocabulary, by_chat=by_chat)]
  if len(cut := np.flatnonzero(table.truncated)):
    asked, answered = ([column[int(i)] for i in cut] for column in (table.prompts, table.responses))
    whole = tokenise.responses(asked, answered, vocabulary, by_chat=by_chat).ids
    responses[cut] = [len(ids) for ids in whole]
  return Lengths(
    prompts, _characters(table.prompts, first), responses, _characters(table.responses, np.arange(len(table)))
  )


def _first_of_prompts(table: TokenTable) -> np.ndarray:
  return np.unique(table.prompt_index, return_index=True)[1]


def _characters(texts: Sequence[str], records: np.ndarray) -> np.ndarray:
  return np.fromiter((len(texts[i]) for i in records.tolist()), np.int64, len(records))


def spread(x: np.ndarray) -> dict[str, float]:
  """Mean, standard deviation, extremes and percentiles."""
  statistics = {'mean': x.mean(), 'sd': ties.spread(x), 'min': x.min(), 'max': x.max()}
  statistics |= {f'p{q}': value for q, value in zip(_PERCENTILES, np.percentile(x, _PERCENTILES))}
  return {name: float(value) for name, value in statistics.items()}


def truncation(whole: np.ndarray, limit: int) -> dict[str, Any]:
  """How many texts a limit of tokens cuts, the share of tokens lost, and the limit that keeps 99 % whole."""
  over = np.maximum(whole - limit, 0)
  return {
    'limit': limit,
    'cut': int((over > 0).sum()),
    'share_cut': float((over > 0).mean()),
    'share_of_tokens_lost': float(over.sum() / whole.sum()),
    'limit_for_99_percent': int(np.percentile(whole, 99, method='inverted_cdf')),
  }


def responses_per_prompt(prompts: np.ndarray) -> dict[str, Any]:
  """The distribution of the number of responses to a prompt: how many prompts have 1, 2, ..."""
  counts_P = np.unique(prompts, return_counts=True)[1]
  sizes, times = np.unique(counts_P, return_counts=True)
  return {
    'mean': float(counts_P.mean()), 'max': int(counts_P.max()), 'single': int((counts_P == 1).sum()),
    'prompts_by_responses': dict(zip(sizes.tolist(), times.tolist())),
  }  # fmt: skip


def unknown_share(table: TokenTable, unknown: int) -> float:
  """The share of tokens with the id `unknown` in the first responses."""
  sampled = [table.response(i) for i in range(min(len(table), _SAMPLED))]
  return float(sum(int((ids == unknown).sum()) for ids in sampled) / max(sum(map(len, sampled)), 1))


def rewards(rewards: np.ndarray) -> dict[str, Any]:
  """Statistics of all rewards, in their own units: spread, distinct values, whether binary, a histogram."""
  values, _, _, counts = ties.distinct(rewards)
  if len(values) <= _BARS:
    bars = [(value, value, count) for value, count in zip(values.tolist(), counts.tolist())]
  else:
    numbers, edges = np.histogram(rewards, _BARS)
    bars = list(zip(edges[:-1].tolist(), edges[1:].tolist(), numbers.tolist()))
  return {
    **spread(rewards), 'distinct': len(values), 'is_binary': len(values) == 2,
    'histogram': [{'from': low, 'to': high, 'count': count} for low, high, count in bars],
  }  # fmt: skip


def variance(rewards: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
  """The reward's variance between and within prompts, one-way, for prompts of any number of responses.

      Σᵢ (rᵢ − r̄)²  =  Σₚ nₚ (r̄ₚ − r̄)²  +  Σᵢ (rᵢ − r̄ₚ₍ᵢ₎)²
      total            between, P − 1      within, N − P degrees of freedom

  `component_*` are unbiased (by moments): σ²_within = MS_within, σ²_between = (MS_between − MS_within) / n₀
  with n₀ = (N − Σₚ nₚ² / N) / (P − 1), not below 0; their share is the intraclass correlation. None where
  every prompt has one response, or there is only one prompt.
  """
  _, prompt_N, n_P = np.unique(prompts, return_inverse=True, return_counts=True)
  N, P = len(rewards), len(n_P)
  mean, mean_P = rewards.mean(), np.bincount(prompt_N, rewards) / n_P
  between = 0.0 if ties.is_constant(mean_P) else float(n_P @ (mean_P - mean) ** 2)
  within = float((ties.deviations(rewards, prompt_N) ** 2).sum())
  total = between + within
  parts = {'between': between, 'within': within, 'between_freedom': P - 1, 'within_freedom': N - P}
  # With one response a prompt, the variance within prompts is unknown.
  parts |= {'share_within': within / total if total and N > P else None, 'component_within': None}
  parts |= {'component_between': None, 'intraclass_correlation': None}
  if N > P:
    parts['component_within'] = within / (N - P)
  if N > P > 1:
    size = (N - float(n_P @ n_P) / N) / (P - 1)
    component = max(between / (P - 1) - within / (N - P), 0.0) / size
    whole = component + within / (N - P)
    parts |= {'component_between': component, 'intraclass_correlation': component / whole if whole else None}
  return parts


def comparisons(rewards: np.ndarray, lengths: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
  """Pairs of responses to one prompt: how many are tied, and how often the longer has the higher reward.

  `length_correlation` is Spearman's over all responses.
  """
  counts = agreement.count_pairs(lengths, rewards, prompts)
  pairs, ties = int(counts.pairs.sum()), int(counts.ties.sum())
  weights = np.ones(len(rewards))
  return {
    'pairs': pairs + ties,
    'tied_pairs': ties,
    'share_tied': ties / (pairs + ties) if pairs + ties else None,
    'prompts_with_comparisons': int((counts.pairs > 0).sum()),
    'prompts_all_tied': int(((counts.pairs == 0) & (counts.ties > 0)).sum()),
    'longer_is_better': _or_none(agreement.pairwise_accuracy(counts, np.ones(len(counts.pairs)))),
    'length_correlation': _or_none(agreement.rank_correlation(lengths, rewards, weights)),
  }


def _or_none(x: float) -> float | None:
  return x if np.isfinite(x) else None


def duplicates(table: TokenTable) -> dict[str, Any]:
  """Records with the same prompt and response, and those among them with different rewards."""
  _, text_N, n_T = np.unique(column_store.keys(table), return_inverse=True, return_counts=True)
  order = np.lexsort((table.raw_rewards, text_N))
  ends = np.cumsum(n_T)
  high_T, low_T = table.raw_rewards[order[ends - 1]], table.raw_rewards[order[ends - n_T]]
  gap_T = np.where(ties.exceeds(high_T, low_T), high_T - low_T, 0.0)
  named = [table.ids[int(order[ends[t] - 1])] for t in np.argsort(-gap_T, kind='stable')[:_NAMED] if gap_T[t]]
  return {
    'duplicates': len(table) - len(n_T),
    'texts_repeated': int((n_T > 1).sum()),
    'texts_with_conflicting_rewards': int((gap_T > 0).sum()),
    'largest_conflict': float(gap_T.max()),
    'examples': named,
  }


def extra_columns(table: TokenTable) -> Mapping[str, Any]:
  """Extra numeric columns: statistics of complete ones, and names of incomplete ones, which are left out."""
  numbers = pairs.without(table.columns)
  statistics = {name: {'mean': float(x.mean()), 'sd': float(x.std())} for name, x in numbers.items()}
  return {'columns': statistics, 'left_out': list(table.report['columns_left_out'])}
