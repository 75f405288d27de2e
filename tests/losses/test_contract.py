"""What every loss is held to alike: its arguments and defaults, shapes, padding, far log-ratios, traced τ."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses

ONE = 'policy_logps reference_logps'
TOKENS = 'policy_logps reference_logps mask'
PAIRS = 'policy_chosen_logps policy_rejected_logps reference_chosen_logps reference_rejected_logps'
GROUPS = 'policy_logps reference_logps rewards mask'
LENGTHS = {'chosen_lengths': None, 'rejected_lengths': None}
# Arguments, and settings with their defaults.
CONTRACT = {
  'dro_v_policy': (f'{ONE} rewards values', {'tau': 1.0}),
  'dro_v_value': (f'{ONE} rewards values', {'tau': 1.0}),
  'dro_v_token_value': (f'{TOKENS} rewards values', {'tau': 1.0}),
  'dro_v_residual': (f'{ONE} rewards values', {'tau': 1.0}),
  'dro_p': (f'{ONE} rewards mean', {'tau': 1.0}),
  'kto': (f'{ONE} labels reference_point', {'beta': 0.1, 'desirable_weight': 1.0, 'undesirable_weight': 1.0}),
  'kto_reference_point': (f'{ONE} weights', {}),
  'bco': (f'{ONE} labels shift', {'beta': 0.1}),
  'a_lol': (f'{ONE} advantages', {'epsilon': 0.9}),
  'a_lol_ref_free': ('policy_logps advantages', {}),
  'a_lol_kl': (f'{ONE} advantages', {'kl_weight': 0.1}),
  'a_lol_sequence': (f'{TOKENS} advantages', {'epsilon': 0.9}),
  'r_lol': (f'{ONE} rewards', {'epsilon': 0.9}),
  'sft': ('policy_logps', {}),
  'weighted_bc': ('policy_logps rewards', {}),
  'gold': ('policy_logps mask rewards', {'floor': 0.1}),
  'reinforce': (f'{ONE} rewards baselines', {'beta': 0.0}),
  'ppo_clip': ('policy_logps behaviour_logps advantages', {'epsilon': 0.2}),
  'topr': ('policy_logps behaviour_logps rewards', {}),
  'awr': ('policy_logps advantages', {'beta': 1.0}),
  'ppo_token': ('policy_logps mask behaviour_logps advantages', {'epsilon': 0.2}),
  'qrpo': (f'{ONE} quantiles', {'beta': 0.1}),
  'oreo_value': (f'{TOKENS} values rewards', {'beta': 0.03}),
  'oreo_policy': (f'{TOKENS} values rewards', {'beta': 0.03}),
  'dpo': (PAIRS, {'beta': 0.1, 'label_smoothing': 0.0}),
  'ipo': (PAIRS, {'tau': 0.1} | LENGTHS),
  'slic': ('policy_chosen_logps policy_rejected_logps', {'delta': 1.0, 'sft_weight': 0.1}),
  'copg': (GROUPS, {'beta': 0.06}),
  'agro': (GROUPS, {'beta': 0.1}),
  'rebel': (GROUPS.replace('reference', 'behaviour'), {'eta': 1.0}),
  'rloo': (GROUPS, {'beta': 0.05}),
  'pro': ('policy_logps rewards lengths mask', {'sft_weight': 0.05}),
  'nca': (GROUPS, {'beta': 0.01, 'alpha': 0.01}),
}
BY_GROUP = ('copg', 'agro', 'rebel', 'rloo', 'pro', 'nca')
BY_TOKEN = ('dro_v_token_value', 'a_lol_sequence', 'gold', 'ppo_token', 'oreo_value', 'oreo_policy')
SCALARS = ('mean', 'shift', 'reference_point')
# Of a response also where log-probs are of its tokens.
OF_RESPONSES = dict.fromkeys(BY_TOKEN, ('rewards', 'advantages')) | {'ppo_token': ()}
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)


def example(name, outside=-2.0):
  """Arrays for a loss: two responses, pairs or groups; `outside` is what lies beyond a mask."""
  rng, arrays = np.random.default_rng(3), {}
  masked = name in BY_GROUP + BY_TOKEN
  for argument in CONTRACT[name][0].split():
    shape = (2, 4) if masked and argument not in OF_RESPONSES.get(name, ()) else (2,)
    x = -rng.gamma(4.0, 2.0, shape) if 'logps' in argument else rng.uniform(0.2, 1.0, shape)
    x = np.array([1.0, 0.0]) if argument == 'labels' else 5 * x if argument == 'lengths' else x
    x = 0.4 if argument in SCALARS else np.where(MASK, x, outside) if shape == (2, 4) else x
    arrays[argument] = jnp.asarray(MASK) if argument == 'mask' else jnp.asarray(x, jnp.float32)
  return arrays


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(name, arrays):
  moving = {key: x for key, x in arrays.items() if key not in ('mask', 'labels')}

  def total(moving):
    per_example = getattr(losses, name)(**(arrays | moving))
    return jnp.sum(per_example), per_example

  gradients, per_example = jax.grad(total, has_aux=True)(moving)
  return {'value': per_example} | gradients


def test_the_contract_covers_every_loss():
  assert set(losses.__all__) == set(CONTRACT)


@pytest.mark.parametrize('name', CONTRACT)
def test_arguments_and_defaults(name):
  parameters = inspect.signature(getattr(losses, name)).parameters.values()
  needed = [p.name for p in parameters if p.default is p.empty]
  assert needed == CONTRACT[name][0].split()
  assert {p.name: p.default for p in parameters if p.default is not p.empty} == CONTRACT[name][1]


@pytest.mark.parametrize('name', CONTRACT)
def test_one_float32_for_each_example_whether_or_not_temperatures_are_traced(name):
  loss, arrays = getattr(losses, name), example(name)
  temperatures = {key: jnp.float32(0.3) for key in ('tau', 'beta', 'eta') if key in CONTRACT[name][1]}
  for settings in ({}, temperatures):
    found = jax.eval_shape(lambda arrays, settings: loss(**arrays, **settings), arrays, settings)
    assert found.dtype == jnp.float32
    assert found.shape == (() if name == 'kto_reference_point' else (2,))


@pytest.mark.parametrize('name', CONTRACT)
def test_every_wrong_shape_raises(name):
  """Also where all are wrong alike: log-probs of tokens in place of their sums are another method."""
  loss, arrays = getattr(losses, name).__wrapped__, example(name)
  for key, x in arrays.items():
    for wrong in (x[..., None], x[:1] if x.ndim else x[None]):
      if len(arrays) > 1 or wrong.ndim > 1:
        with pytest.raises(ValueError, match=r'has shape|there are'):
          loss(**(arrays | {key: wrong}))
  deeper = {key: x[..., None] if x.ndim else x for key, x in arrays.items()}
  with pytest.raises(ValueError, match='axes: pass one number for each'):
    loss(**deeper)


@pytest.mark.parametrize('name', BY_TOKEN + BY_GROUP)
def test_entries_outside_the_mask_change_no_loss(name):
  clean = values_and_gradients(name, example(name))
  for outside in (1e30, -np.inf, np.nan):
    for key, found in values_and_gradients(name, example(name, outside)).items():
      np.testing.assert_array_equal(found, clean[key], err_msg=f'{key} with {outside} outside')
      assert found.shape != MASK.shape or not np.asarray(found)[~MASK].any(), key


@pytest.mark.parametrize('name', BY_GROUP)
def test_fewer_than_two_members_have_no_loss(name):
  arrays = example(name) | {'mask': jnp.asarray([[True, False, False, False], [False] * 4])}
  for key, found in values_and_gradients(name, arrays).items():
    assert not np.asarray(found).any(), key


@pytest.mark.parametrize('name', CONTRACT)
def test_two_hundred_nats_from_the_reference_stay_finite(name):
  near, far = jnp.float32(-1.0), jnp.float32(-201.0)
  arrays = example(name)
  for by_policy, by_reference in ((near, far), (far, near)):
    moved = {
      key: (x * 0 + (by_policy if key.startswith('policy') else by_reference)).at[1].set(x[1])
      for key, x in arrays.items()
      if 'logps' in key
    }
    for key, found in values_and_gradients(name, arrays | moved).items():
      assert np.isfinite(found).all(), key
