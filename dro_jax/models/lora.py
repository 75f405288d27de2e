"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W + s (x A) B with W frozen, and QLoRA's frozen W.

Three trees have the same paths. The base has a `kernel` [I, O] where a product has one; the adapter has `a`
[I, r] and `b` [r, O] beside it, for the products that are adapted; and kernels that are stored in fewer bits
(see `models.quantised`) leave the base's parameters for a tree of their own. Each is a collection of flax's
variables, which `models.layers.Dense` reads. "The adapter switched off" is the same network without the
adapter's collection. Scanned layers are axis 1 of every array, as in the base.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.core import meta
from jax.tree_util import tree_leaves_with_path

from dro_jax.configs.effects import PLACE
from dro_jax.errors import UsageError, suggests_fields
from dro_jax.models import quantised
from dro_jax.models.layers import ADAPTER, FROZEN
from dro_jax.models.stacks import Path
from dro_jax.types import Array, Params

ATTENTION = ('query', 'key', 'value', 'out')
MLP = ('wi', 'wi_0', 'wi_1', 'wo')
# Names for several products. The logits' product is in none of them: with a large vocabulary its adapter
# would outweigh all others.
GROUPS = {'all': (*ATTENTION, *MLP), 'attention': ATTENTION, 'mlp': MLP}


@suggests_fields
@dataclasses.dataclass(frozen=True)
class Lora:
  """Adapters of the policy, and of the value network where it has a trunk of its own, on one frozen base.

  Args:
    rank: r; `None` is no adapter, and all parameters train.
    alpha: s = alpha / rank multiplies the adapter's products.
    targets: the products that are adapted: `all` (of the layers), `attention`, `mlp`, or names of products,
      between commas: `query,value`.
    zero: the factor that starts at 0, `a` or `b`, so that a fresh adapter changes nothing; the other one is
      uniform within ±1/√(its inputs).
    base_kernels: how the base's kernels are stored: `float32`, `bfloat16`, `int8` or `nf4`. Embedding, norms
      and biases stay float32.
    base: where the base lies now, of an adapter that was trained before and is to be trained on; `None` takes
      it from where it lay.

  Raises:
    UsageError: a setting is out of its range, or has nothing to set.

  Example:
    >>> dro.Policy(init_from='checkpoints/tiny', lora=dro.Lora(rank=8, targets='query,value')).lora.scale
    2.0
  """

  rank: int | None = None
  alpha: float | int | None = None
  targets: str | Sequence[str] = 'all'
  zero: str = 'b'
  base_kernels: str = 'float32'
  base: Annotated[str | None, PLACE] = None

  def __post_init__(self) -> None:
    names = self.targets.split(',') if isinstance(self.targets, str) else self.targets
    object.__setattr__(self, 'targets', tuple(name.strip() for name in names))
    self._refuse()

  def _refuse(self) -> None:
    idle = {
      f'LORA_{field.name.upper()}': getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name != 'targets' and getattr(self, field.name) != field.default
    }
    idle |= {} if self.targets == ('all',) else {'LORA_TARGETS': ','.join(self.targets)}
    if self.rank is None and idle:
      name, value = next(iter(idle.items()))
      raise UsageError(
        f'{name}={value} is a setting of adapters, and without a rank there are none: pass '
        'Lora(rank=16), or --set LORA_RANK=16, or remove it.'
      )
    if self.rank is not None and self.rank < 1:
      raise UsageError(f'LORA_RANK={self.rank}: pass 1 or more, or None to train all parameters.')
    if self.alpha is not None and not 0 < self.alpha < math.inf:
      raise UsageError(f'LORA_ALPHA={self.alpha}: pass a number above 0; at 0 the adapter changes nothing.')
    if self.zero not in ('a', 'b'):
      raise UsageError(f'LORA_ZERO={self.zero!r}: pass a or b, the factor that starts at 0.')
    if self.base_kernels not in quantised.KINDS:
      kinds = ', '.join(quantised.KINDS)
      raise UsageError(f'LORA_BASE_KERNELS={self.base_kernels!r} is unknown: pass one of {kinds}.')

  @property
  def scale(self) -> float:
    """s, which multiplies the products; by default 2, as alpha = 2 rank has it."""
    return 2.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the products that are adapted, with those of groups."""
    return tuple(dict.fromkeys(name for target in self.targets for name in GROUPS.get(target, (target,))))


@functools.partial(jax.tree_util.register_dataclass, data_fields=('variables',), meta_fields=('scale',))
@dataclasses.dataclass(frozen=True)
class Base:
  """The frozen part of adapted networks, held once for all of them.

  Attributes:
    variables: `params`, float32, and `frozen`, the kernels in fewer bits, if any are.
    scale: s.
  """

  variables: Mapping[str, Params]
  scale: float


class Adapted(NamedTuple):
  """The parameters of a network with adapters, as `Params` elsewhere: flax's variables by collection."""

  variables: Mapping[str, Params]


def is_adapted(params: Params) -> bool:
  """Whether a network's own parameters hold an adapter."""
  return any(
    str(getattr(path[-1], 'key', '')) in ('a', 'b') for path, _ in tree_leaves_with_path(params) if path
  )


def num_parameters(base: Base) -> int:
  """How many parameters a base has, however they are stored."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(base_params, base)))


def base_params(base: Base) -> Params:
  """A base's parameters, float32; works within jit."""
  return traverse_util.unflatten_dict(dict(join_base(base.variables)))


def variables_of(params: Params | Adapted) -> Mapping[str, Params]:
  """A network's parameters as `module.apply` takes them."""
  return params.variables if isinstance(params, Adapted) else {'params': params}


def join_policy(base: Base | None, adapter: Params | None) -> Params | Adapted:
  """A policy's parameters: the base with the adapter on, or off where it is `None`; or its own alone."""
  if base is None:
    return adapter
  adapted = {} if adapter is None else {ADAPTER: scaled(adapter, base.scale)}
  return Adapted({**base.variables, **adapted})


def join_value(base: Base | None, own: Params) -> Params | Adapted:
  """A value network's parameters: its own (head, pool, and the adapter of a trunk) on the base as trunk."""
  if base is None:
    return own
  rest = {name: tree for name, tree in own.items() if name != 'trunk'}
  variables = {name: {'trunk': tree} for name, tree in base.variables.items()}
  variables['params'] = {**variables['params'], **rest}
  if 'trunk' in own:
    variables[ADAPTER] = {'trunk': scaled(own['trunk'], base.scale)}
  return Adapted(variables)


def scaled(adapter: Params, scale: float) -> Params:
  """The adapter with s in its b, so that a product need not know s."""
  flat = traverse_util.flatten_dict(adapter)
  whole = {path: x * scale if path[-1] == 'b' else x for path, x in flat.items()}
  return traverse_util.unflatten_dict(whole)


def split_base(params: Params, kind: str) -> Mapping[str, Params]:
  """Parameters as a base's variables, with the kernels stored as `kind`; works within jit."""
  return split_leaves(traverse_util.flatten_dict(params).items(), kind)


def split_leaves(leaves: Any, kind: str, store: Any = quantised.quantise) -> Mapping[str, Params]:
  """The same of (path, array) pairs, one after the other; `store(kernel, kind)` quantises."""
  kept, frozen = {}, {}
  for path, x in leaves:
    if kind != 'float32' and path[-1] == 'kernel':
      frozen[path] = store(x, kind)
    else:
      kept[path] = x
  variables = {'params': traverse_util.unflatten_dict(kept)}
  return variables | ({FROZEN: traverse_util.unflatten_dict(frozen)} if frozen else {})


def join_base(variables: Mapping[str, Params]) -> Iterator[tuple[Path, Array]]:
  """A base's parameters, one after the other, float32."""
  yield from traverse_util.flatten_dict(variables['params']).items()
  is_stored = lambda path, _: path[-1:] == ('kernel',)  # noqa: E731
  for path, stored in traverse_util.flatten_dict(variables.get(FROZEN, {}), is_leaf=is_stored).items():
    yield path, quantised.dequantise(stored)


def merge(params: Adapted) -> Params:
  """One policy of an adapted one: W + s A B; a base in fewer bits is dequantised first. Works within jit."""
  adapter = traverse_util.flatten_dict(params.variables.get(ADAPTER, {}))
  merged = {path: merged_kernel(path, x, adapter) for path, x in join_base(params.variables)}
  return traverse_util.unflatten_dict(merged)


def merged_kernel(path: Path, kernel: Any, adapter: Mapping[Path, Any]) -> Any:
  """A kernel with what the adapter, whose b has s, adds to it; any other parameter as it is."""
  a, b = (adapter.get((*path[:-1], name)) for name in 'ab')
  if a is None or path[-1] != 'kernel':
    return kernel
  return kernel + jnp.einsum('i...r,r...o->i...o', a, b, precision=jax.lax.Precision.HIGHEST)


# --- shapes and first values --------------------------------------------------------------------------------


def abstract_adapter(boxed: Params, lora: Lora) -> Params:
  """Shapes of a policy's adapter, with logical axes, from those of the policy's parameters.

  Raises:
    UsageError: the model lacks a product that is to be adapted.
  """
  flat = traverse_util.flatten_dict(boxed)
  kernels = {path[:-1]: box for path, box in flat.items() if path[-1] == 'kernel'}
  present = {path[-1] for path in kernels}
  for target in lora.targets:
    if not present & set(GROUPS.get(target, (target,))):
      raise UsageError(
        f'LORA_TARGETS={",".join(lora.targets)}: the model has no product {target!r}. Pass names of '
        f'{", ".join(sorted(present & {*GROUPS["all"]}))}, between commas, or one of {", ".join(GROUPS)}.'
      )
  adapter = {}
  for path, box in kernels.items():
    if path[-1] in lora.names:
      (inputs, *layers, outputs), (name_in, *name_layers, name_out) = box.unbox().shape, box.names
      adapter[*path, 'a'] = _box((inputs, *layers, lora.rank), (name_in, *name_layers, None))
      adapter[*path, 'b'] = _box((lora.rank, *layers, outputs), (None, *name_layers, name_out))
  return traverse_util.unflatten_dict(adapter)


def _box(shape: tuple[int, ...], names: tuple[str | None, ...], dtype: Any = jnp.float32) -> Any:
  return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, dtype), names)


def abstract_base(boxed: Params, lora: Lora) -> Base:
  """Shapes of a base, with logical axes, from those of the policy's parameters."""

  def store(box: Any, kind: str) -> Mapping[str, Any]:
    shapes = jax.eval_shape(functools.partial(quantised.quantise, kind=kind), box.unbox())
    # Blocks of inputs need not divide over the mesh as the inputs do.
    names = {name: (None, *box.names[1:]) if name == 'scale' else box.names for name in shapes}
    return {name: _box(x.shape, names[name], x.dtype) for name, x in shapes.items()}

  return Base(split_leaves(traverse_util.flatten_dict(boxed).items(), lora.base_kernels, store), lora.scale)


def init_adapter(abstract: Params, key: Array, zero: str) -> Params:
  """A fresh adapter of these shapes, which changes nothing: one factor is 0."""
  flat = traverse_util.flatten_dict(meta.unbox(abstract))
  keys = dict(zip(sorted(flat), jax.random.split(key, len(flat))))

  def init(path: Path, shape: tuple[int, ...]) -> Array:
    if path[-1] == zero:
      return jnp.zeros(shape, jnp.float32)
    bound = 1 / math.sqrt(shape[0])
    return jax.random.uniform(keys[path], shape, jnp.float32, -bound, bound)

  return traverse_util.unflatten_dict({path: init(path, x.shape) for path, x in flat.items()})


__all__ = ['Lora']
