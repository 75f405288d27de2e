import jax.numpy as jnp
import pytest

from dro_jax.ops import checks


def test_equal_shapes_pass():
  checks.check_same(logps=jnp.zeros(3), rewards=jnp.zeros(3))
  checks.check_tokens(jnp.zeros((3, 2)), per_example={'rewards': jnp.zeros(3)}, logps=jnp.zeros((3, 2)))
  checks.check_groups(jnp.zeros((3, 2)), rewards=jnp.zeros((3, 2)))
  checks.check_scalar(mean=jnp.zeros(()))


@pytest.mark.parametrize(
  'check, message',
  [
    (lambda: checks.check_same(a=jnp.zeros(3), b=jnp.zeros(1)), r'b has shape \(1,\), but a has \(3,\)'),
    (lambda: checks.check_same(a=jnp.zeros((3, 1))), r'a has shape \(3, 1\), not 1 axes: pass one number'),
    (lambda: checks.check_groups(jnp.zeros(3), a=jnp.zeros(3)), 'mask has .*each member of each group'),
    (lambda: checks.check_groups(jnp.zeros((3, 2)), a=jnp.zeros((1, 2))), 'a has shape'),
    (lambda: checks.check_tokens(jnp.zeros(3), per_example={}), 'mask has .*each token of each response'),
    (
      lambda: checks.check_tokens(jnp.zeros((3, 2)), per_example={'a': jnp.zeros((3, 2))}),
      'a has .*3 responses',
    ),
    (lambda: checks.check_scalar(a=jnp.zeros(3)), 'a has shape .*over the global batch'),
  ],
)
def test_errors_name_the_array_with_another_shape(check, message):
  with pytest.raises(ValueError, match=message):
    check()
