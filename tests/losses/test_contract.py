"""What every loss is held to alike: names of its arrays, shapes, padding, far log-ratios, traced τ."""

import functools
import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax import losses

# The arrays that losses take, by name, with the axes that they may have: responses B, pairs P, groups G of K,
# tokens T; '' is one number for the batch.
AXES = {
  'policy_logps': ('B', 'B T', 'G K'),
  'reference_logps': ('B', 'B T', 'G K'),
  'behaviour_logps': ('B', 'B T', 'G K'),
  'chosen_scores': ('P',),
  'rejected_scores': ('P',),
  'predictions': ('B',),
  'policy_chosen_logps': ('P',),
  'policy_rejected_logps': ('P',),
  'reference_chosen_logps': ('P',),
  'reference_rejected_logps': ('P',),
  'mask': ('B T', 'G K'),
  'rewards': ('B', 'G K'),
  'values': ('B', 'B T'),
  'advantages': ('B', 'B T'),
  'baselines': ('B',),
  'quantiles': ('B',),
  'labels': ('B',),
  'weights': ('B',),
  'lengths': ('B', 'G K'),
  'mean': ('',),
  'shift': ('',),
  'reference_point': ('',),
}


def parameters(name):
  return inspect.signature(getattr(losses, name)).parameters.values()


# The axes of each loss's arrays, and the defaults of its settings.
ARRAYS = {
  name: {p.name: p.annotation.dim_str for p in parameters(name) if p.default is p.empty}
  for name in losses.__all__
}
SETTINGS = {
  name: {p.name: p.default for p in parameters(name) if p.default is not p.empty} for name in losses.__all__
}
BY_GROUP = [name for name, axes in ARRAYS.items() if axes.get('policy_logps') == 'G K']
BY_TOKEN = [name for name, axes in ARRAYS.items() if axes.get('policy_logps') == 'B T']
SHAPES = {'': (), 'B': (2,), 'P': (2,), 'G': (2,), 'B T': (2, 4), 'G K': (2, 4)}
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)


def example(name, outside=-2.0):
  """Arrays for a loss: two responses, pairs or groups; `outside` is what lies beyond a mask."""
  rng, arrays = np.random.default_rng(3), {}
  for argument, axes in ARRAYS[name].items():
    shape = SHAPES[axes]
    x = -rng.gamma(4.0, 2.0, shape) if 'logps' in argument else rng.uniform(0.2, 1.0, shape)
    x = np.array([1.0, 0.0]) if argument == 'labels' else 5 * x if argument == 'lengths' else x
    x = np.where(MASK, x, outside) if shape == MASK.shape else x
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


@pytest.mark.parametrize('name', losses.__all__)
def test_arrays_have_the_names_and_axes_that_all_losses_share(name):
  assert {argument: axes for argument, axes in ARRAYS[name].items() if axes not in AXES[argument]} == {}
  # What is trained comes first: a policy's log-probs, or a reward model's scores.
  assert next(iter(ARRAYS[name])).startswith(('policy', 'chosen_scores', 'predictions'))


def test_every_file_lists_the_losses_that_it_defines():
  listed = []
  for path in pathlib.Path(losses.__file__).parent.glob('[!_]*.py'):
    module = importlib.import_module(f'dro_jax.losses.{path.stem}')
    functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
    assert module.__all__ == sorted(name for name in functions if not name.startswith('_'))
    listed += module.__all__
  assert sorted(listed) == losses.__all__


@pytest.mark.parametrize('name', losses.__all__)
def test_one_float32_for_each_example_whether_or_not_temperatures_are_traced(name):
  loss, arrays = getattr(losses, name), example(name)
  temperatures = {key: jnp.float32(0.3) for key in ('tau', 'beta', 'eta') if key in SETTINGS[name]}
  for settings in ({}, temperatures):
    found = jax.eval_shape(lambda arrays, settings: loss(**arrays, **settings), arrays, settings)
    assert found.dtype == jnp.float32
    assert found.shape == SHAPES[inspect.signature(loss).return_annotation.dim_str]


@pytest.mark.parametrize('name', losses.__all__)
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


@pytest.mark.parametrize('name', losses.__all__)
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
