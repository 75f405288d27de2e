import jax.numpy as jnp
import numpy as np

from dro_jax.models import readouts

SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 2]])
STATES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 3)), jnp.float32)


def test_prompt_ends_are_the_last_places_of_the_prompts():
  ends = readouts.prompt_ends(SEGMENTS, jnp.array([[3, 1, 2, 0], [2, 1, 1, 0]]))
  np.testing.assert_array_equal(ends, [[5, 1, 4, 0], [7, 6, 6, 0]])


def test_last_states_are_zero_where_a_response_points_at_no_prompt():
  states = readouts.last_states(STATES, SEGMENTS, jnp.array([[3, 0], [1, 2]]))
  np.testing.assert_array_equal(states, [[STATES[0, 5], np.zeros(3)], [STATES[1, 6], STATES[1, 7]]])
