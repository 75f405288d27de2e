"""The losses of TRL and HALOs beside dro_jax's on the same log-probs: `python tests/long/loss_peers.py [WORDS]`.

It needs TRL (`pip install --no-deps trl datasets`) or a checkout of github.com/ContextualAI/HALOs, whose folder
DRO_JAX_HALOS names; what is absent is said, and without both it skips (exit code 77). Their own loss functions
run, on their trainer classes without a model: random token log-probs of a policy and a reference, responses of
several lengths with masked ends, float64. It compares the mean loss of the batch and its gradient with respect
to every token's log-prob, over seeds and temperatures, prints a table, and fails where a row that must agree
does not, or a row that must not does. WORDS keep the rows whose names hold one of them.

TRL 1 has no BCOTrainer; an older one can be unpacked and named by PYTHONPATH for the row `BCOTrainer` alone.
"""

import argparse
import importlib
import importlib.util
import json
import os
import pathlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from dro_jax import losses  # noqa: E402

SKIPPED = 77
PAIRS = TOKENS = 6  # HALOs' SLiC runs only where they are equal.
SEEDS, BETAS, SMOOTHING, CLIP, MARGIN = (0, 1, 2), (0.05, 0.5, 2.0), 0.1, 0.2, 0.3
TOLERANCE = 1e-5  # Some of theirs round to float32 on the way.


class Case(NamedTuple):
  """Log-probs by token, `[2P, T]`; the first P responses are chosen, the others rejected."""

  policy: np.ndarray
  reference: np.ndarray
  mask: np.ndarray
  mismatched_policy: np.ndarray
  mismatched_reference: np.ndarray
  thumbs: np.ndarray
  advantages: np.ndarray
  beta: float


class Row(NamedTuple):
  """A loss of a peer, and what it is here.

  peer, loss  whose, and its name there
  ours        the call here, as the table shows it
  theirs_by   the mean loss of the batch by the peer's code, for PyTorch's log-probs
  ours_by     the same by dro_jax, for JAX's
  why         what differs in definition, sign, mean or scale
  agrees      whether both must be equal
  by_gradient only the gradients must be
  """

  peer: str
  loss: str
  ours: str
  theirs_by: Callable[[Case, Any], Any]
  ours_by: Callable[[Case, jax.Array], jax.Array]
  why: str = ''
  agrees: bool = True
  by_gradient: bool = False


def make_case(seed: int, beta: float) -> Case:
  rng = np.random.default_rng(seed)
  shape = 2 * PAIRS, TOKENS
  mask = np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (2 * PAIRS, 1))
  policy, mismatched = -rng.exponential(2.0, shape), -rng.exponential(2.0, shape)
  thumbs = rng.permutation(np.arange(2 * PAIRS) % 3 > 0)
  # The policy is above its reference on average, so that KTO's reference point is not cut at 0.
  return Case(
    policy * mask, (policy - rng.normal(0.1, 0.4, shape)) * mask, mask, mismatched * mask,
    (mismatched - rng.normal(0.1, 0.4, shape)) * mask, thumbs, rng.normal(size=2 * PAIRS), beta,
  )  # fmt: skip


# --- ours ---------------------------------------------------------------------------------------------------


def summed(case: Case, policy: jax.Array) -> tuple[jax.Array, jax.Array]:
  """log π and log π_ref of the responses, `[2P]`."""
  return jnp.sum(policy * case.mask, -1), jnp.sum(case.reference * case.mask, -1)


def pairs(case: Case, policy: jax.Array) -> tuple[jax.Array, ...]:
  """log π of the chosen and the rejected responses, then log π_ref."""
  logps, reference = summed(case, policy)
  return logps[:PAIRS], logps[PAIRS:], reference[:PAIRS], reference[PAIRS:]


def without_reference(case: Case, policy: jax.Array) -> tuple[jax.Array, ...]:
  chosen, rejected, *_ = pairs(case, policy)
  return chosen, rejected, jnp.zeros(PAIRS), jnp.zeros(PAIRS)


def lengths(case: Case) -> dict[str, np.ndarray]:
  counts = case.mask.sum(-1).astype(float)
  return {'chosen_lengths': counts[:PAIRS], 'rejected_lengths': counts[PAIRS:]}


def kto(case: Case, policy: jax.Array, mismatched: bool = True) -> jax.Array:
  point = losses.kto_reference_point(
    case.mismatched_policy.sum(-1), case.mismatched_reference.sum(-1), np.ones(2 * PAIRS)
  )
  return losses.kto(
    *summed(case, policy), case.thumbs, point if mismatched else jnp.zeros(()), beta=case.beta,
    desirable_weight=1.5, undesirable_weight=0.7,
  )  # fmt: skip


def bco(case: Case, policy: jax.Array, labels: np.ndarray, running: bool) -> jax.Array:
  logps, reference = summed(case, policy)
  shift = case.beta * jnp.mean(logps - reference) if running else jnp.zeros(())
  return losses.bco(logps, reference, labels, shift, beta=case.beta)


CHOSEN_FIRST = np.arange(2 * PAIRS) < PAIRS


def nca(case: Case, policy: jax.Array) -> jax.Array:
  logps, reference = (x.reshape(2, PAIRS).T for x in summed(case, policy))
  rewards = jnp.broadcast_to(jnp.array([1.0, 0.0]), (PAIRS, 2))
  mask = jnp.ones((PAIRS, 2), bool)
  return losses.nca(logps, reference, rewards, mask, beta=case.beta, alpha=1e-3)


def slic(case: Case, policy: jax.Array, delta: float, sft_weight: float) -> jax.Array:
  return losses.slic(*pairs(case, policy)[:2], delta=delta, sft_weight=sft_weight)


def hinge(case: Case, policy: jax.Array) -> jax.Array:
  chosen, rejected, reference_chosen, reference_rejected = pairs(case, policy)
  return case.beta * losses.slic(
    chosen - reference_chosen, rejected - reference_rejected, delta=1 / case.beta, sft_weight=0.0
  )


def ppo_token(case: Case, policy: jax.Array) -> jax.Array:
  advantages = np.broadcast_to(case.advantages[:, None], case.mask.shape)
  return losses.ppo_token(policy, case.mask, case.reference, advantages, epsilon=CLIP)


def rloo(case: Case, policy: jax.Array) -> jax.Array:
  """All responses as one group of 2P; with their advantage, the leave-one-out one of the same rewards."""
  logps = jnp.sum(policy * case.mask, -1)[None]
  mask = jnp.ones((1, 2 * PAIRS), bool)
  return losses.rloo(logps, logps, jnp.asarray(case.advantages)[None], mask, beta=0.0)


def leave_one_out(case: Case) -> np.ndarray:
  rewards = case.advantages
  return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def bradley_terry(case: Case, policy: jax.Array, margin: float = 0.0) -> jax.Array:
  """Of the first token's number, taken as a response's score."""
  return losses.bradley_terry(policy[:PAIRS, 0], policy[PAIRS:, 0], margin)


# --- TRL ----------------------------------------------------------------------------------------------------


def trainer(name: str, **settings: Any) -> Any:
  """A trainer of TRL with the settings that its loss reads, and no model."""
  import accelerate

  module, _, name = name.rpartition('.')
  made = object.__new__(getattr(importlib.import_module(module), name))
  vars(made).update(
    model=SimpleNamespace(training=False), accelerator=accelerate.Accelerator(cpu=True), aux_loss_enabled=False,
    _metrics=defaultdict(lambda: defaultdict(list)), args=SimpleNamespace(center_rewards_coefficient=None),
    **settings,
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
      'trl.KTOTrainer', loss_type=loss, beta=case.beta, calculate_KL=mismatched, desirable_weight=1.5,
      undesirable_weight=0.7, precompute_ref_logps=True,
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
  made = trainer(
    'trl.experimental.bco.BCOTrainer', beta=case.beta, match_underlying_distribution=False
  )  # fmt: skip
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
      off_policy_mask_threshold=None, importance_sampling_level='token', _entropy_bonus_enabled=False, **settings,
    )  # fmt: skip
    made.args.delta = None
    by_group = settings.get('by_group')
    old = policy.detach() if by_group else tensor(case.reference)
    made._get_per_token_logps_and_entropies = lambda *_, **__: (policy, 0 * policy.detach(), None)
    mask = tensor(case.mask.astype(np.int64))
    inputs = completions(case) | {
      'completion_ids': mask, 'completion_mask': mask, 'old_logps': (old * mask).sum(-1),
      'old_per_token_logps': old, 'advantages': tensor(leave_one_out(case) if by_group else case.advantages),
    }  # fmt: skip
    return made._compute_loss(None, inputs)

  return by


def trl_rows() -> Iterator[Row]:
  dpo, cpo = 'DPOTrainer ', 'CPOTrainer '
  yield Row('TRL', dpo + 'sigmoid', 'dpo', trl_dpo('sigmoid'), lambda c, p: losses.dpo(*pairs(c, p), beta=c.beta))
  yield Row(
    'TRL', dpo + 'robust', 'dpo, label_smoothing = −ε / (1 − 2ε)', trl_dpo('robust'),
    lambda c, p: losses.dpo(*pairs(c, p), beta=c.beta, label_smoothing=-SMOOTHING / (1 - 2 * SMOOTHING)),
    'definition: an unbiased estimate of the loss without noise; `algorithms.dpo` refuses the negative value',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'ipo', 'ipo, by_length', trl_dpo('ipo'),
    lambda c, p: losses.ipo(*pairs(c, p), tau=c.beta, **lengths(c)),
    'scale: TRL divides ρ by the response’s length; here a setting',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'ipo', 'ipo', trl_dpo('ipo'), lambda c, p: losses.ipo(*pairs(c, p), tau=c.beta),
    'the paper’s Eq. 17 has no lengths: ours by default', agrees=False,
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'hinge', 'β · slic of ρ, δ = 1/β, sft_weight = 0', trl_dpo('hinge'), hinge,
    'definition: TRL’s margin is of βρ (SLiC-HF has log π), and it does not imitate',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'nca_pair', 'nca, rewards 1 and 0, α → 0', trl_dpo('nca_pair'), nca,
    'definition: the pair is the group whose best reward has all the weight',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'bco_pair', '2 · bco, δ = 0', trl_dpo('bco_pair'),
    lambda c, p: 2 * bco(c, p, CHOSEN_FIRST, False),
    'mean: TRL adds the two of a pair, here the mean is over responses; and its δ is 0',
  )  # fmt: skip
  yield Row(
    'TRL', dpo + 'sft', 'sft of the chosen · P / tokens', trl_dpo('sft'),
    lambda c, p: losses.sft(pairs(c, p)[0]) * PAIRS / c.mask[:PAIRS].sum(),
    'mean: over the tokens of the batch, here over responses',
  )  # fmt: skip
  yield Row(
    'TRL', cpo + 'sigmoid', 'dpo, reference_free, label_smoothing', trl_cpo('sigmoid'),
    lambda c, p: losses.dpo(*without_reference(c, p), beta=c.beta, label_smoothing=SMOOTHING),
    'definition: CPO adds its imitation (`cpo_alpha`) afterwards',
  )  # fmt: skip
  yield Row(
    'TRL', cpo + 'hinge', 'β · slic, δ = 1/β, sft_weight = 0', trl_cpo('hinge'),
    lambda c, p: c.beta * slic(c, p, 1 / c.beta, 0.0), 'scale: the margin is 1 after β',
  )  # fmt: skip
  yield Row('TRL', 'KTOTrainer kto', 'kto', trl_kto('kto', True), kto)
  yield Row(
    'TRL', 'KTOTrainer apo_zero_unpaired', 'kto, z₀ = 0', trl_kto('apo_zero_unpaired', False),
    lambda c, p: kto(c, p, mismatched=False), 'definition: KTO without mismatched pairs',
  )  # fmt: skip
  yield Row(
    'TRL', 'KTOTrainer apo_zero_unpaired', 'kto', trl_kto('apo_zero_unpaired', False), kto,
    'z₀ of mismatched pairs is not 0', agrees=False,
  )  # fmt: skip
  yield Row(
    'TRL', 'BCOTrainer', 'bco, first step', trl_bco, lambda c, p: bco(c, p, c.thumbs, True),
    'TRL rounds δ to float32',
  )  # fmt: skip
  yield Row('TRL', 'RewardTrainer', 'bradley_terry', trl_reward(None), bradley_terry)
  yield Row(
    'TRL', 'RewardTrainer, margin', 'bradley_terry, margin', trl_reward(MARGIN),
    lambda c, p: bradley_terry(c, p, MARGIN),
  )  # fmt: skip
  yield Row(
    'TRL', 'RLOOTrainer, several updates', 'ppo_clip', trl_online('trl.RLOOTrainer'),
    lambda c, p: losses.ppo_clip(*summed(c, p), c.advantages, epsilon=CLIP),
  )  # fmt: skip
  yield Row(
    'TRL', 'RLOOTrainer, one update', 'rloo', trl_online('trl.RLOOTrainer', by_group=True), rloo,
    'value: TRL’s is −A · π/sg π, here −A log π; the gradient is one', by_gradient=True,
  )  # fmt: skip
  yield Row(
    'TRL', 'GRPOTrainer grpo, β = 0', 'ppo_token', trl_online('trl.GRPOTrainer', loss_type='grpo'), ppo_token,
    'advantages are given: TRL divides by a group’s deviation',
  )  # fmt: skip


# --- HALOs --------------------------------------------------------------------------------------------------


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
  made = halo('KTOTrainer', beta=case.beta, desirable_weight=1.5, undesirable_weight=0.7)
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
  return ppo_token(case, policy) * counts / counts.mean()


def halo_rows() -> Iterator[Row]:
  yield Row('HALOs', 'DPOTrainer', 'dpo', halo_pairs('DPOTrainer'), lambda c, p: losses.dpo(*pairs(c, p), c.beta))
  yield Row(
    'HALOs', 'CDPOTrainer', 'dpo, label_smoothing', halo_pairs('CDPOTrainer'),
    lambda c, p: losses.dpo(*pairs(c, p), beta=c.beta, label_smoothing=SMOOTHING),
  )  # fmt: skip
  yield Row(
    'HALOs', 'IPOTrainer', 'ipo, by_length', halo_pairs('IPOTrainer'),
    lambda c, p: losses.ipo(*pairs(c, p), tau=c.beta, **lengths(c)),
    'scale: HALOs divides ρ by the tokens at which policy and reference differ; here by all',
  )  # fmt: skip
  yield Row(
    'HALOs', 'SLiCTrainer', 'slic, sft_weight = λ / T', halo_pairs('SLiCTrainer', False),
    lambda c, p: slic(c, p, c.beta, 0.3 / TOKENS),
    'mean: HALOs adds a hinge `[P]` to an imitation `[P, T]`, so it runs only where P is T (or 1), and the '
    'imitation’s mean is over T, masked ends included',
  )  # fmt: skip
  yield Row('HALOs', 'KTOTrainer', 'kto', halo_kto, kto, 'HALOs rounds z₀ to float32')
  yield Row(
    'HALOs', 'SFTTrainer', 'sft · responses / tokens', halo_sft,
    lambda c, p: losses.sft(summed(c, p)[0]) * 2 * PAIRS / c.mask.sum(),
    'mean: over the tokens of the microbatch, here over responses',
  )  # fmt: skip
  yield Row('HALOs', 'BradleyTerryTrainer', 'bradley_terry', halo_bradley_terry, bradley_terry)
  yield Row(
    'HALOs', 'GRPOTrainer, β = 0', 'ppo_token, weighed by length', halo_grpo, by_token,
    'mean: over the tokens of the batch, here over responses',
  )  # fmt: skip


# --- the table ----------------------------------------------------------------------------------------------


def differences(row: Row) -> tuple[float, float]:
  """Largest relative difference of the mean loss, and of its gradient."""
  import torch

  value, gradient = 0.0, 0.0
  for seed in SEEDS:
    for beta in BETAS:
      case = make_case(seed, beta)
      policy = torch.tensor(case.policy, requires_grad=True)
      theirs = row.theirs_by(case, policy)
      theirs.backward()
      ours, slope = jax.value_and_grad(lambda p: jnp.mean(row.ours_by(case, p)))(jnp.asarray(case.policy))
      value = max(value, abs(theirs.item() - float(ours)) / abs(theirs.item()))
      slope = np.where(case.mask, slope, slope)
      scale = np.abs(policy.grad.numpy()).max()
      gradient = max(gradient, float(np.abs(policy.grad.numpy() - slope).max() / scale))
  return value, gradient


def is_right(row: Row, value: float, gradient: float) -> bool:
  worst = gradient if row.by_gradient else max(value, gradient)
  return worst < TOLERANCE if row.agrees else worst > 1e-2


def absent() -> Iterator[str]:
  """What is missing of the peers, in words; their modules are importable afterwards."""
  halos = os.environ.get('DRO_JAX_HALOS', '')
  if pathlib.Path(halos, 'train', 'trainers.py').is_file() and halos:
    import huggingface_hub

    huggingface_hub.HfFolder = getattr(huggingface_hub, 'HfFolder', None)  # HALOs' logins; gone since 1.0.
    sys.path.append(halos)
  else:
    yield 'HALOs: DRO_JAX_HALOS names no checkout of it'
  if not importlib.util.find_spec('trl'):
    yield 'TRL: it is not installed (pip install --no-deps trl datasets)'


def main(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('words', nargs='*', help='keep the rows whose peer or loss holds one of them')
  parser.add_argument('--json', action='store_true', help='one JSON object a row')
  options = parser.parse_args(arguments)
  missing = list(absent())
  for words in missing:
    print(f'without {words}', file=sys.stderr)
  if len(missing) == 2:
    return SKIPPED
  jax.config.update('jax_enable_x64', True)
  rows = [row for row in (*trl_rows(), *halo_rows()) if not any(w.startswith(row.peer) for w in missing)]
  if options.words:
    rows = [row for row in rows if any(word in f'{row.peer} {row.loss}' for word in options.words)]
  elif not importlib.util.find_spec('trl.experimental.bco'):
    rows = [row for row in rows if row.loss != 'BCOTrainer']
  return print_table(rows, options.json)


def print_table(rows: Sequence[Row], as_json: bool) -> int:
  wrong = 0
  if not as_json:
    print('| peer | its loss | here | value | gradient | why |\n|---|---|---|---|---|---|')
  for row in rows:
    value, gradient = differences(row)
    right = is_right(row, value, gradient)
    wrong += not right
    note = row.why if right else f'WRONG: {row.why}'
    if as_json:
      print(json.dumps({'peer': row.peer, 'loss': row.loss, 'value': value, 'gradient': gradient, 'right': right}))
    else:
      print(f'| {row.peer} | `{row.loss}` | `{row.ours}` | {value:.0e} | {gradient:.0e} | {note} |', flush=True)
  print(f'{len(rows)} rows, {wrong} wrong; {len(SEEDS)} seeds × β in {BETAS}', file=sys.stderr)
  return 1 if wrong or not rows else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
