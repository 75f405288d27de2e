"""Adapters in the layout of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

PEFT names a product by its module in transformers, and holds lora_A [r, in] and lora_B [out, r]: our a and b
turned. Where transformers keeps queries, keys and values as one product (GPT-NeoX, GPT-2), PEFT has one
adapter of it. Three of ours are exactly one of three times the rank, A on A, B in blocks; and one of PEFT's
is three of ours with the same A.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from flax import traverse_util

from dro_jax.errors import UsageError
from dro_jax.files import json_text
from dro_jax.models.causal import names as causal_names
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.family import Config
from dro_jax.models.lora import Lora
from dro_jax.models.stacks import Path
from dro_jax.models.t5 import names as t5_names
from dro_jax.types import Params

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
# What PEFT adds to LoRA that changes its function: our adapters have none of it.
_UNKNOWN = ('use_dora', 'modules_to_save', 'layer_replication', 'trainable_token_indices', 'lora_bias')
# The names of modules in memory, where transformers' files have another.
_IN_MEMORY = {'embed_out': 'lm_head'}


class Module(NamedTuple):
  """A product of transformers: its name, the products of ours that it holds, and how their outputs lie in it.

  `order` holds, for each of ours, the places of its outputs among the module's.
  """

  name: str
  paths: tuple[Path, ...]
  order: tuple[np.ndarray, ...]


def modules(config: Config) -> list[Module]:
  """Every product of a model, by the tree whose layers are not scanned."""
  if isinstance(config, CausalConfig):
    return [
      _module(stored, config)
      for stored in causal_names.stored(config)
      if stored.paths[0][-1] == 'kernel'
    ]  # fmt: skip
  return [
    Module(name.removesuffix('.weight'), (path[:-1],), ())
    for path, name in t5_names.unrolled(config).items()
    if path[-1] == 'kernel'
  ]


def _module(stored: Any, config: CausalConfig) -> Module:
  name = stored.name.removesuffix('.weight')
  paths = tuple(path[:-1] for path in stored.paths)
  if len(paths) == 1:
    return Module(_IN_MEMORY.get(name, name), paths, ())
  # Numbered outputs, through the layout of the weights: with one input their order is that of a bias.
  count = config.num_heads * config.head_dim
  numbered = [np.arange(i * count, (i + 1) * count)[None, :] for i in range(len(paths))]
  places = np.argsort(stored.layout.join(numbered, config.num_heads).reshape(-1))
  return Module(name, paths, tuple(np.split(places, len(paths))))


# --- out ----------------------------------------------------------------------------------------------------


def write(folder: epath.Path, adapter: Params, settings: Lora, config: Config, base: str | None) -> list[str]:
  """Writes an adapter, whose layers are not scanned, for `peft.PeftModel.from_pretrained(model, folder)`.

  Args:
    folder: it exists and is empty.
    adapter: `a` and `b` by product, b without its scale.
    settings: the adapter's.
    config: the model's.
    base: the name or the folder of the base in transformers, for adapter_config.json; `None` if unknown.

  Returns:
    Facts that a reader of the folder needs.
  """
  from safetensors.numpy import save_file

  flat, arrays, fused = traverse_util.flatten_dict(adapter), {}, {}
  for module in modules(config):
    pairs = [(flat[*path, 'a'], flat[*path, 'b']) if (*path, 'a') in flat else None for path in module.paths]
    if not any(pairs):
      continue
    a, b = pairs[0] if len(pairs) == 1 else _joined(pairs, module.order)
    if a.shape[1] != settings.rank:
      fused[module.name] = a.shape[1]
    arrays[f'{_PREFIX}{module.name}.lora_A.weight'] = np.ascontiguousarray(a.T, np.float32)
    arrays[f'{_PREFIX}{module.name}.lora_B.weight'] = np.ascontiguousarray(b.T, np.float32)
  description = _config_json(settings, config, [name[len(_PREFIX) :] for name in arrays], fused, base)
  (folder / CONFIG).write_text(json_text(description, indent=2) + '\n')
  save_file(arrays, str(folder / WEIGHTS), metadata={'format': 'pt'})
  notes = []
  if fused:
    notes.append(
      'adapters of queries, keys and values are one of their joint product, of the sum of their ranks'
    )
  if settings.base_kernels != 'float32':
    notes.append(
      f"it was trained on a base with {settings.base_kernels} kernels: on the base's own weights it is a "
      'slightly other policy'
    )
  return notes


def how_to_load(folder: epath.Path, config: Config, base: str | None) -> str:
  """The line of Python that loads a written adapter, where its base is known and where it is not."""
  if base is None:
    return (
      f"load it on its base with peft.PeftModel.from_pretrained(model, '{folder}'). {CONFIG} names no base, "
      'because what the base was imported from is not known here. To name it, export again with --set '
      'BASE_NAME=NAME: a name on the Hugging Face Hub, or a folder that transformers loads'
    )
  kind = 'CausalLM' if _is_causal(config) else 'Seq2SeqLM'
  return f"load it with its base, {base}, by peft.AutoPeftModelFor{kind}.from_pretrained('{folder}')"


def _is_causal(config: Config) -> bool:
  return isinstance(config, CausalConfig)


def _joined(pairs: Sequence[tuple[Any, Any] | None], order: Sequence[np.ndarray]) -> tuple[Any, Any]:
  """Adapters of several products that read the same input, as one of their joint product."""
  rank, outputs = sum(pair[0].shape[1] for pair in pairs if pair), sum(map(len, order))
  joint, row = np.zeros((rank, outputs), np.float32), 0
  for pair, places in zip(pairs, order):
    if pair is not None:
      joint[row : row + len(pair[1]), places] = pair[1]
      row += len(pair[1])
  return np.concatenate([pair[0] for pair in pairs if pair], axis=1), joint


def _config_json(
  settings: Lora, config: Config, keys: Sequence[str], fused: Mapping[str, int], base: str | None
) -> dict[str, Any]:
  targets = sorted({key.rpartition('.lora_')[0] for key in keys})
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM' if _is_causal(config) else 'SEQ_2_SEQ_LM',
    'base_model_name_or_path': base,
    'r': settings.rank,
    'lora_alpha': settings.scale * settings.rank,
    'target_modules': targets,
    # A product of a larger rank has a larger alpha, so that alpha / r is the same for all.
    'rank_pattern': dict(fused),
    'alpha_pattern': {name: settings.scale * rank for name, rank in fused.items()},
    # GPT-2's Conv1D.
    'fan_in_fan_out': isinstance(config, CausalConfig) and config.positions == 'learned',
    'lora_dropout': 0.0,
    'bias': 'none',
    'inference_mode': True,
  }


# --- in -----------------------------------------------------------------------------------------------------


def read(folder: epath.Path, config: Config) -> tuple[Lora, Params]:
  """An adapter's settings and its arrays, by the tree whose layers are not scanned.

  Args:
    folder: PEFT's.
    config: of the base.

  Raises:
    UsageError: the folder has no adapter of LoRA, or one that this package cannot compute.
  """
  from safetensors.numpy import load_file

  if not (folder / WEIGHTS).exists():
    raise UsageError(f'{folder} lacks {WEIGHTS}: save the adapter with peft (model.save_pretrained(DIR)).')
  described = json.loads((folder / CONFIG).read_text())
  _refuse_unknown(folder, described)
  arrays, flat, scales = load_file(str(folder / WEIGHTS)), {}, set()
  for module in modules(config):
    pair = [arrays.pop(f'{_PREFIX}{module.name}.lora_{which}.weight', None) for which in 'AB']
    if pair[0] is None or pair[1] is None:
      continue
    a, b = (x.astype(np.float32).T for x in pair)
    scales.add(_scale(module.name, a.shape[1], described))
    for i, path in enumerate(module.paths):
      flat[*path, 'a'], flat[*path, 'b'] = a, b[:, module.order[i]] if module.order else b
  if arrays or not flat:
    raise UsageError(
      f'{folder} has adapters of modules that the base does not have, the first is '
      f'{min(arrays, default="none")}: pass the base that the adapter was trained on as --set LORA_BASE=DIR.'
    )
  return _settings(folder, flat, scales, config), traverse_util.unflatten_dict(flat)


def named_base(folder: epath.Path) -> str | None:
  """The model that an adapter says it was trained on, a name or a folder; `None` where it says none."""
  return json.loads((folder / CONFIG).read_text()).get('base_model_name_or_path') or None


def _refuse_unknown(folder: epath.Path, described: Mapping[str, Any]) -> None:
  kind, extra = described.get('peft_type'), [name for name in _UNKNOWN if described.get(name)]
  if kind != 'LORA' or extra or described.get('bias', 'none') != 'none':
    more = ', '.join(extra) or f'bias={described.get("bias")}'
    problem = f'peft_type={kind}' if kind != 'LORA' else more
    raise UsageError(
      f'{folder}: {CONFIG} has {problem}, which the adapters here do not have: merge the adapter into its '
      'base with peft (model.merge_and_unload().save_pretrained(DIR)), and import that folder.'
    )


def _scale(name: str, rank: int, described: Mapping[str, Any]) -> float:
  """What multiplies a module's products: alpha / r, or alpha / √r of rank-stabilised adapters."""
  alpha = next(
    (value for key, value in (described.get('alpha_pattern') or {}).items() if name.endswith(key)),
    described['lora_alpha'],
  )
  return float(alpha / (rank**0.5 if described.get('use_rslora') else rank))


def _settings(folder: epath.Path, flat: Mapping[Path, Any], scales: set[float], config: Config) -> Lora:
  ranks = {x.shape[1] for path, x in flat.items() if path[-1] == 'a'}
  names = tuple(sorted({path[-2] for path in flat}))
  adapted = {path[:-1] for path in flat}
  wanted = {path for module in modules(config) for path in module.paths if path[-1] in names}
  if len(ranks) > 1 or len(scales) > 1 or adapted != wanted:
    raise UsageError(
      f'{folder} has adapters of several ranks or scales, or of some layers only, and here all products of a '
      'name have one of the same rank: merge it into its base with peft '
      '(model.merge_and_unload().save_pretrained(DIR)), and import that folder.'
    )
  (rank,), (scale,) = ranks, scales
  return Lora(rank=rank, alpha=scale * rank, targets=names)
