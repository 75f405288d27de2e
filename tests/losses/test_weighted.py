import jax
import jax.numpy as jnp
import numpy as np

from dro_jax import losses


def test_sft_is_the_negative_log_likelihood():
  logps = jnp.array([-3.0, -0.5])
  np.testing.assert_array_equal(losses.sft(logps), [3.0, 0.5])
  np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(losses.sft(x)))(logps), [-1.0, -1.0])


def test_sft_clones_the_behaviour_policy(bandit):
  policy, _ = bandit(lambda logps, _, __: losses.sft(logps))
  np.testing.assert_allclose(policy, [0.2, 0.3, 0.5], atol=1e-5)
