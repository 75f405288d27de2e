import jax.numpy as jnp
import pytest

from dro_jax.ops import checks as shapes


def test_what_agrees_passes():
  shapes.check_same(logps=jnp.zeros(3), rewards=jnp.zeros(3))
  shapes.check_tokens(jnp.zeros((3, 2)), per_example={'rewards': jnp.zeros(3)}, logps=jnp.zeros((3, 2)))
  shapes.check_groups(jnp.zeros((3, 2)), rewards=jnp.zeros((3, 2)))
  shapes.check_scalar(mean=jnp.zeros(()))


@pytest.mark.parametrize(
  'check, message',
  [
    (lambda: shapes.check_same(a=jnp.zeros(3), b=jnp.zeros(1)), r'b has shape \(1,\), but a has \(3,\)'),
    (lambda: shapes.check_same(a=jnp.zeros((3, 1))), r'a has shape \(3, 1\), not 1 axes: pass one number'),
    (lambda: shapes.check_groups(jnp.zeros(3), a=jnp.zeros(3)), 'mask has .*each member of each group'),
    (lambda: shapes.check_groups(jnp.zeros((3, 2)), a=jnp.zeros((1, 2))), 'a has shape'),
    (lambda: shapes.check_tokens(jnp.zeros(3), per_example={}), 'mask has .*each token of each response'),
    (
      lambda: shapes.check_tokens(jnp.zeros((3, 2)), per_example={'a': jnp.zeros((3, 2))}),
      'a has .*3 responses',
    ),
    (lambda: shapes.check_scalar(a=jnp.zeros(3)), 'a has shape .*over the global batch'),
  ],
)
def test_what_disagrees_is_named(check, message):
  with pytest.raises(ValueError, match=message):
    check()
