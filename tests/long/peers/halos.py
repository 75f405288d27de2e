"""The losses of HALOs on the same log-probs, by its trainers' own code."""

import importlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from dro_jax import losses
from peers import ours
from peers.ours import CLIP, PAIRS, SMOOTHING, TOKENS, WEIGHTS, Case, Row, pairs, summed
from peers.trl import tensor


def halo(name: str, **settings: Any) -> Any:
  """A trainer of HALOs with the settings that its loss reads, and no model."""
  import torch

  made = object.__new__(getattr(importlib.import_module('train.trainers'), name))
  made.config = SimpleNamespace(humanline=False, loss=SimpleNamespace(**settings))
  made.policy_dtype, made.reference_model = torch.float64, None
  made.accelerator = importlib.import_module('accelerate').Accelerator(cpu=True)
  return made


def halo_pairs(name: str, with_reference: bool = True, **settings: Any) -> Callable[[Case, Any], Any]:
  def by(case: Case, policy: Any) -> Any:
    made = halo(name, beta=case.beta, tau=case.beta, epsilon=SMOOTHING, lambda_coef=0.3, **settings)
    logps, reference = policy * tensor(case.mask), tensor(case.reference)
    arrays = [logps[:PAIRS], logps[PAIRS:]]
    if with_reference:
      arrays += [reference[:PAIRS], reference[PAIRS:]]
    return made.loss({}, *arrays)[0].mean()

  return by


def halo_kto(case: Case, policy: Any) -> Any:
  made = halo('KTOTrainer', beta=case.beta, **WEIGHTS)
  logps, reference, labels = policy * tensor(case.mask), tensor(case.reference), tensor(case.thumbs)
  mismatched = tensor(case.mismatched_policy), tensor(case.mismatched_reference)
  return made.loss(
    {}, logps[labels], logps[~labels], mismatched[0], reference[labels], reference[~labels], mismatched[1]
  )[0].mean()  # fmt: skip


def halo_sft(case: Case, policy: Any) -> Any:
  made = halo('SFTTrainer')
  made.policy = lambda *_, **__: SimpleNamespace(logits=policy)
  made.get_batch_logps = lambda *_: policy * tensor(case.mask)
  names = 'target_combined_input_ids', 'target_combined_attention_mask', 'target_labels'
  return made.get_batch_metrics(dict.fromkeys(names))[0]


def halo_bradley_terry(case: Case, policy: Any) -> Any:
  scores = policy[:, [1, 0]]  # The second of two logits is the score.
  return halo('BradleyTerryTrainer').loss({}, scores[:PAIRS], scores[PAIRS:])[0]


def halo_grpo(case: Case, policy: Any) -> Any:
  made = halo('GRPOTrainer', beta=0.0, epsilon=CLIP)
  labels = tensor(np.where(np.pad(case.mask, ((0, 0), (1, 0))), 1, -100))
  return made.loss(
    {'target_labels': labels}, policy * tensor(case.mask), tensor(case.reference), tensor(case.advantages),
    tensor(np.ones(2 * PAIRS)),
  )[0]  # fmt: skip


def by_token(case: Case, policy: jax.Array) -> jax.Array:
  """Responses' means over tokens, weighed by their tokens."""
  counts = case.mask.sum(-1)
  return ours.ppo_token(case, policy) * counts / counts.mean()


def rows() -> Iterator[Row]:
  yield Row(
    'HALOs', 'DPOTrainer', 'dpo', halo_pairs('DPOTrainer'), lambda c, p: losses.dpo(*pairs(c, p), c.beta)
  )
  yield Row(
    'HALOs', 'CDPOTrainer', 'dpo, label_smoothing', halo_pairs('CDPOTrainer'),
    lambda c, p: losses.dpo(*pairs(c, p), beta=c.beta, label_smoothing=SMOOTHING),
  )  # fmt: skip
  yield Row(
    'HALOs', 'IPOTrainer', 'ipo, by_length', halo_pairs('IPOTrainer'),
    lambda c, p: losses.ipo(*pairs(c, p), tau=c.beta, **ours.lengths(c)),
    'scale: HALOs divides ρ by the tokens at which policy and reference differ; here by all',
  )  # fmt: skip
  yield Row(
    'HALOs', 'SLiCTrainer', 'slic, sft_weight = λ / T', halo_pairs('SLiCTrainer', False),
    lambda c, p: ours.slic(c, p, c.beta, 0.3 / TOKENS),
    'mean: HALOs adds a hinge `[P]` to an imitation `[P, T]`, so it runs only where P is T (or 1), and the '
    'imitation’s mean is over T, masked ends included',
  )  # fmt: skip
  yield Row('HALOs', 'KTOTrainer', 'kto', halo_kto, ours.kto, 'HALOs rounds z₀ to float32')
  yield Row(
    'HALOs', 'SFTTrainer', 'sft · responses / tokens', halo_sft,
    lambda c, p: losses.sft(summed(c, p)[0]) * 2 * PAIRS / c.mask.sum(),
    'mean: over the tokens of the microbatch, here over responses',
  )  # fmt: skip
  yield Row('HALOs', 'BradleyTerryTrainer', 'bradley_terry', halo_bradley_terry, ours.bradley_terry)
  yield Row(
    'HALOs', 'GRPOTrainer, β = 0', 'ppo_token, weighed by length', halo_grpo, by_token,
    'mean: over the tokens of the batch, here over responses',
  )  # fmt: skip
