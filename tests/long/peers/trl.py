"""TRL's losses of the same log-probs, by its trainers' own code."""

import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from dro_jax import losses
from peers import ours
from peers.ours import CLIP, MARGIN, PAIRS, SMOOTHING, WEIGHTS, Case, Row, pairs, summed


def trainer(name: str, **settings: Any) -> Any:
  """A trainer of TRL with the settings that its loss reads, and no model."""
  import accelerate

  module, _, name = name.rpartition('.')
  made = object.__new__(getattr(importlib.import_module(module), name))
  vars(made).update(
    model=SimpleNamespace(training=False), accelerator=accelerate.Accelerator(cpu=True),
    args=SimpleNamespace(center_rewards_coefficient=None, delta=None), aux_loss_enabled=False,
    _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, **settings,
  )  # fmt: skip
  return made


def outputs(logps: Any) -> SimpleNamespace:
  """What TRL's fused head gives for a batch of log-probs, with nothing in what it only logs."""
  import torch

  nothing = torch.zeros_like(logps).detach()
  return SimpleNamespace(log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def completions(case: Case) -> dict[str, Any]:
  """One token of prompt, then the response."""
  import torch

  mask = torch.tensor(np.pad(case.mask, ((0, 0), (1, 0))).astype(np.int64))
  return {
    'input_ids': torch.ones_like(mask), 'attention_mask': torch.ones_like(mask), 'completion_mask': mask,
    'prompt_ids': mask[:, :1], 'prompt_mask': mask[:, :1],
  }  # fmt: skip


def tensor(array: np.ndarray) -> Any:
  import torch

  return torch.tensor(array)


def trl_dpo(loss: str) -> Callable[[Case, Any], Any]:
  def by(case: Case, policy: Any) -> Any:
    made = trainer(
      'trl.DPOTrainer', loss_types=[loss], loss_weights=[1.0], beta=case.beta, label_smoothing=SMOOTHING,
      f_divergence_type='reverse_kl', ld_alpha=None, precompute_ref_logps=True, use_weighting=False,
    )  # fmt: skip
    reference = tensor(case.reference.sum(-1))
    inputs = completions(case) | {
      'ref_chosen_logps': reference[:PAIRS], 'ref_rejected_logps': reference[PAIRS:],
    }  # fmt: skip
    return made._compute_loss(lambda **_: outputs(policy * tensor(case.mask)), inputs, False)

  return by


def trl_kto(loss: str, mismatched: bool) -> Callable[[Case, Any], Any]:
  def by(case: Case, policy: Any) -> Any:
    made = trainer(
      'trl.KTOTrainer', loss_type=loss, beta=case.beta, calculate_KL=mismatched,
      precompute_ref_logps=True, **WEIGHTS,
    )  # fmt: skip
    of_target = completions(case)
    inputs = of_target | {
      'label': tensor(case.thumbs), 'ref_logps': tensor(case.reference.sum(-1)),
      'ref_KL_logps': tensor(case.mismatched_reference.sum(-1)), 'KL_input_ids': 0 * of_target['input_ids'],
      'KL_attention_mask': of_target['attention_mask'], 'KL_completion_mask': of_target['completion_mask'],
    }  # fmt: skip
    mismatched_policy = tensor(case.mismatched_policy)

    def model(input_ids: Any, **_: Any) -> SimpleNamespace:
      return outputs(policy * tensor(case.mask) if input_ids.any() else mismatched_policy)

    return made._compute_loss(model, inputs, False)

  return by


def trl_cpo(loss: str) -> Callable[[Case, Any], Any]:
  def by(case: Case, policy: Any) -> Any:
    made = trainer(
      'trl.experimental.cpo.CPOTrainer', loss_type=loss, beta=case.beta, label_smoothing=SMOOTHING, alpha=0.0
    )
    logps = (policy * tensor(case.mask)).sum(-1)
    return made.cpo_loss(logps[:PAIRS], logps[PAIRS:])[0].mean()

  return by


def trl_bco(case: Case, policy: Any) -> Any:
  made = trainer('trl.experimental.bco.BCOTrainer', beta=case.beta, embedding_func=None)
  utils = importlib.import_module('trl.experimental.bco.bco_trainer')
  made.running = utils.RunningMoments(accelerator=made.accelerator)
  logps, reference = (policy * tensor(case.mask)).sum(-1), tensor(case.reference.sum(-1))
  labels = tensor(case.thumbs)
  return made.bco_loss(
    logps[labels], logps[~labels], reference[labels], reference[~labels], None, None
  )[0].mean()  # fmt: skip


def trl_reward(margin: float | None) -> Callable[[Case, Any], Any]:
  def by(case: Case, policy: Any) -> Any:
    made = trainer('trl.RewardTrainer')
    inputs = completions(case) | ({} if margin is None else {'margin': margin})
    return made.compute_loss(lambda **_: SimpleNamespace(logits=policy[:, :1]), inputs)

  return by


def trl_online(name: str, **settings: Any) -> Callable[[Case, Any], Any]:
  """RLOO or GRPO, whose old policy is the reference (or the policy itself)."""

  def by(case: Case, policy: Any) -> Any:
    made = trainer(
      name, epsilon_low=CLIP, epsilon_high=CLIP, beta=0.0, top_entropy_quantile=1.0, use_vllm=False,
      off_policy_mask_threshold=None, importance_sampling_level='token', _entropy_bonus_enabled=False,
      **settings,
    )  # fmt: skip
    by_group = settings.get('by_group')
    old = policy.detach() if by_group else tensor(case.reference)
    made._get_per_token_logps_and_entropies = lambda *_, **__: (policy, 0 * policy.detach(), None)
    mask = tensor(case.mask.astype(np.int64))
    inputs = completions(case) | {
      'completion_ids': mask, 'completion_mask': mask, 'old_logps': (old * mask).sum(-1),
      'old_per_token_logps': old,
      'advantages': tensor(ours.leave_one_out(case) if by_group else case.advantages),
    }  # fmt: skip
    return made._compute_loss(None, inputs)

  return by


def rows() -> Iterator[Row]:
  dpo, cpo = 'DPOTrainer ', 'CPOTrainer '
  yield Row(
    'TRL', dpo + 'sigmoid', 'dpo', trl_dpo('sigmoid'), lambda c, p: losses.dpo(*pairs(c, p), beta=c.beta)
  )
  yield Row(
    'TRL', dpo + 'robust', 'dpo, label_smoothing = −ε / (1 − 2ε)', trl_dpo('robust'),
    lambda c, p: losses.dpo(*pairs(c, p), beta=c.beta, label_smoothing=-SMOOTHING / (1 - 2 * SMOOTHING)),
    'definition: an unbiased estimate of the loss without noise; `algorithms.dpo` refuses the negative value',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'ipo', 'ipo, by_length', trl_dpo('ipo'),
    lambda c, p: losses.ipo(*pairs(c, p), tau=c.beta, **ours.lengths(c)),
    'scale: TRL divides ρ by the response’s length; here a setting',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'ipo', 'ipo', trl_dpo('ipo'), lambda c, p: losses.ipo(*pairs(c, p), tau=c.beta),
    'the paper’s Eq. 17 has no lengths: ours by default', agrees=False,
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'hinge', 'β · slic of ρ, δ = 1/β, sft_weight = 0', trl_dpo('hinge'), ours.hinge,
    'definition: TRL’s margin is of βρ (SLiC-HF has log π), and it does not imitate',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'nca_pair', 'nca, rewards 1 and 0, α → 0', trl_dpo('nca_pair'), ours.nca,
    'definition: the pair is the group whose best reward has all the weight',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'bco_pair', '2 · bco, δ = 0', trl_dpo('bco_pair'),
    lambda c, p: 2 * ours.bco(c, p, ours.CHOSEN_FIRST, False),
    'mean: TRL adds the two of a pair, here the mean is over responses; and its δ is 0',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'sft', 'sft of the chosen · P / tokens', trl_dpo('sft'),
    lambda c, p: losses.sft(pairs(c, p)[0]) * PAIRS / c.mask[:PAIRS].sum(),
    'mean: over the tokens of the batch, here over responses',
  )  # fmt: skip
  yield Row(
    'TRL', cpo + 'sigmoid', 'dpo, reference_free, label_smoothing', trl_cpo('sigmoid'),
    lambda c, p: losses.dpo(*ours.without_reference(c, p), beta=c.beta, label_smoothing=SMOOTHING),
    'definition: CPO adds its imitation (`cpo_alpha`) afterwards',
  )  # fmt: skip
  yield Row(
    'TRL', cpo + 'hinge', 'β · slic, δ = 1/β, sft_weight = 0', trl_cpo('hinge'),
    lambda c, p: c.beta * ours.slic(c, p, 1 / c.beta, 0.0), 'scale: the margin is 1 after β',
  )  # fmt: skip
  yield Row('TRL', 'KTOTrainer kto', 'kto', trl_kto('kto', True), ours.kto)
  yield Row(
    'TRL', 'KTOTrainer apo_zero_unpaired', 'kto, z₀ = 0', trl_kto('apo_zero_unpaired', False),
    lambda c, p: ours.kto(c, p, mismatched=False), 'definition: KTO without mismatched pairs',
  )  # fmt: skip
  yield Row(
    'TRL', 'KTOTrainer apo_zero_unpaired', 'kto', trl_kto('apo_zero_unpaired', False), ours.kto,
    'z₀ of mismatched pairs is not 0', agrees=False,
  )  # fmt: skip
  yield Row(
    'TRL', 'BCOTrainer', 'bco, first step', trl_bco, lambda c, p: ours.bco(c, p, c.thumbs, True),
    'TRL rounds δ to float32',
  )  # fmt: skip
  yield Row('TRL', 'RewardTrainer', 'bradley_terry', trl_reward(None), ours.bradley_terry)
  yield Row(
    'TRL', 'RewardTrainer, margin', 'bradley_terry, margin', trl_reward(MARGIN),
    lambda c, p: ours.bradley_terry(c, p, MARGIN),
  )  # fmt: skip
  yield Row(
    'TRL', 'RLOOTrainer, several updates', 'ppo_clip', trl_online('trl.RLOOTrainer'),
    lambda c, p: losses.ppo_clip(*summed(c, p), c.advantages, epsilon=CLIP),
  )  # fmt: skip
  yield Row(
    'TRL', 'RLOOTrainer, one update', 'rloo', trl_online('trl.RLOOTrainer', by_group=True), ours.rloo,
    'value: TRL’s is −A · π/sg π, here −A log π; the gradient is one', by_gradient=True,
  )  # fmt: skip
  yield Row(
    'TRL', 'GRPOTrainer grpo, β = 0', 'ppo_token', trl_online('trl.GRPOTrainer', loss_type='grpo'),
    ours.ppo_token,
    'advantages are given: TRL divides by a group’s deviation',
  )  # fmt: skip
