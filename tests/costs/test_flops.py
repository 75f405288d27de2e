import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from dro_jax import algorithms
from dro_jax.costs import flops
from dro_jax.models import scoring
from dro_jax.models.stacks import convert_layers
from dro_jax.parallel import partitioning
from dro_jax.step import state as train_state
from dro_jax.step import train_step
from tests.examples import CONFIG as SMALL
from tests.examples import init_params, layout, random_examples

M, K, N = 4, 8, 16
X, W = jax.ShapeDtypeStruct((M, K), jnp.float32), jax.ShapeDtypeStruct((K, N), jnp.float32)
ONE = 2 * M * K * N


def there_and_back(x, w):
  return x @ w @ w.T


def test_products_and_convolutions_count_two_operations_a_multiply_add():
  assert flops.count(jnp.matmul, X, W) == ONE
  batched = jax.ShapeDtypeStruct((3, 5, M, K), jnp.float32)
  assert flops.count(lambda x, w: jnp.einsum('abmk,kn->nabm', x, w), batched, W) == 15 * ONE
  images, kernel = jnp.zeros((2, 9, 7, 6)), jnp.zeros((3, 3, 2, 12))

  def convolve(images, kernel):
    return jax.lax.conv_general_dilated(
      images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=3
    )

  assert flops.count(convolve, images, kernel) == 2 * (2 * 9 * 7 * 12) * (3 * 3 * 2)
  sizes = jnp.array([1, 3])
  assert flops.count(lambda x, w: jax.lax.ragged_dot(x, w, sizes), X, jnp.zeros((2, K, N))) == ONE


def test_loops_count_by_their_trips():
  def scanned(x, w):
    return jax.lax.scan(lambda x, _: (there_and_back(x, w), None), x, None, length=5)[0]

  assert flops.count(scanned, X, W) == 5 * 2 * ONE
  assert flops.count(jax.grad(lambda x, w: scanned(x, w).sum(), (0, 1)), X, W) == 3 * 5 * 2 * ONE
  fori = lambda x, w: jax.lax.fori_loop(0, 7, lambda i, x: there_and_back(x, w), x)  # noqa: E731
  assert flops.count(fori, X, W) == 7 * 2 * ONE


def test_a_loop_of_unknown_length_with_products_is_refused():
  def traced(x, w, trips):
    return jax.lax.fori_loop(0, trips, lambda i, x: there_and_back(x, w), x)

  with pytest.raises(ValueError, match='give the loop static bounds'):
    flops.count(traced, X, W, 3)
  # A loop without products costs nothing, however long.
  assert flops.count(lambda n: jax.lax.fori_loop(0, n, lambda i, x: x + i, 0), 3) == 0


def test_branches_count_as_the_most_expensive():
  def branch(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: there_and_back(x, w), lambda: x)

  assert flops.count(branch, X, W) == 2 * ONE


def test_the_bodies_of_calls_are_counted():
  def gradient(f):
    return jax.grad(lambda x, w: f(x, w).sum(), (0, 1))

  assert flops.count(gradient(jax.jit(jnp.matmul)), X, W) == 3 * ONE
  # Rematerialised: the first product again, for its output is needed to pull the second back.
  deep = lambda x, w: jnp.tanh(x @ w) @ w.T  # noqa: E731
  assert flops.count(gradient(jax.checkpoint(deep)), X, W) == flops.count(gradient(deep), X, W) + ONE
  custom = jax.custom_vjp(jnp.matmul)
  custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
  assert flops.count(custom, X, W) == ONE
  assert flops.count(gradient(custom), X, W) == 3 * ONE
  tangent = jax.custom_jvp(jnp.matmul)
  tangent.defjvp(lambda primals, tangents: (jnp.matmul(*primals), tangents[0] @ primals[1]))
  assert flops.count(tangent, X, W) == ONE


def test_shard_map_counts_all_devices():
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  over = {'mesh': mesh, 'in_specs': (PartitionSpec('a'), PartitionSpec()), 'out_specs': PartitionSpec('a')}
  assert flops.count(jax.shard_map(jnp.matmul, axis_names={'a'}, **over), X, W) == ONE
  # Over `b` nothing is split: both of its devices do it all.
  assert flops.count(jax.shard_map(jnp.matmul, **over), X, W) == 2 * ONE


CONFIG = dataclasses.replace(
  SMALL, emb_dim=64, head_dim=8, mlp_dim=128, num_encoder_layers=2, num_decoder_layers=2
)
ROWS = layout(random_examples(8), 2, 4)


def scored(config, params):
  """A scoring function and its parameters, which are not initialised anew."""
  policy, _, _ = init_params(CONFIG, None)
  return scoring.make_score(policy.clone(config=config)), params


@pytest.mark.long
def test_scanned_and_unrolled_layers_count_alike():
  _, _, params = init_params(CONFIG, None)
  unrolled, params = scored(CONFIG, params)
  scanned, _ = scored(dataclasses.replace(CONFIG, scan_layers=True), None)
  stacked = {'policy': convert_layers(params['policy'], scan=True)}
  assert flops.count(unrolled, params, ROWS) == flops.count(scanned, stacked, ROWS)


def test_a_train_step_is_six_flops_a_parameter_and_token():
  """6ND, N the parameters that a token meets in products; attention, left out of it, adds under 15 %."""
  _, _, params = init_params(CONFIG, None)
  score, _ = scored(CONFIG, None)
  optimizers = {'policy': optax.sgd(0.1)}
  state = train_state.create(params, optimizers, uses_reference=False)
  step = train_step.make_train_step(score, algorithms.sft(), optimizers)

  def products(tree):
    return sum(x.size for x in jax.tree.leaves(tree) if x.ndim == 2)

  policy = params['policy']
  of_encoder = products({name: policy['encoder'][name] for name in policy['encoder'] if 'relpos' not in name})
  of_decoder = products({name: policy['decoder'][name] for name in policy['decoder'] if 'relpos' not in name})
  B, S = ROWS.prompt_tokens.shape
  T = ROWS.response_tokens.shape[1]
  # Cross-attention's keys and values are of the prompt's tokens.
  cross = 2 * 2 * CONFIG.emb_dim * CONFIG.num_heads * CONFIG.head_dim
  expected = 6 * B * (S * of_encoder + T * of_decoder + (S - T) * cross)
  counted = flops.count(step, state, ROWS)
  assert expected < counted < 1.15 * expected


def test_partitioning_changes_no_count():
  """A mesh's sharding constraints are free."""
  _, _, params = init_params(CONFIG, None)
  score, _ = scored(CONFIG, None)
  with partitioning.use_mesh(partitioning.make_mesh()):
    sharded = flops.count(score, params, ROWS)
  assert sharded == flops.count(score, params, ROWS)


def test_a_jitted_function_is_counted_from_its_own_trace():
  """Compiler options are for the outermost call only: inside another trace they would be refused."""
  options = {'xla_allow_excess_precision': False}
  x = jnp.ones((3, 4))
  assert flops.count(jax.jit(lambda x: x @ x.T, compiler_options=options), x) == 2 * 3 * 3 * 4
