"""T5Gemmas come in from transformers' files, and go out as transformers has them."""

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from dro_jax.checkpoints import export_checkpoint as exporters
from dro_jax.checkpoints import import_checkpoint as importers
from dro_jax.checkpoints import orbax
from tests.checkpoints import tiny_tokenizer
from tests.checkpoints.huggingface.test_causal import check_equal_trees
from tests.models.t5gemma import tiny


def logits(model, tokens):
  with torch.no_grad():
    return model(input_ids=tokens, decoder_input_ids=tokens[:, :5]).logits.numpy()


@pytest.mark.parametrize('kind', list(tiny.KINDS))
def test_import_and_export_are_bit_equal_and_transformers_gives_the_same_logits(tmp_path, kind):
  model = tiny.torch_model(kind)
  model.save_pretrained(tmp_path / 'theirs')
  tiny_tokenizer.write(tmp_path / 'theirs')
  importers.import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'ours'))
  params, _ = orbax.load_params(tmp_path / 'ours')
  check_equal_trees(params, tiny.params(kind))
  exporters.export_checkpoint(str(tmp_path / 'ours'), str(tmp_path / 'back'))
  exported = safetensors.numpy.load_file(tmp_path / 'back' / 'model.safetensors')
  original = safetensors.numpy.load_file(tmp_path / 'theirs' / 'model.safetensors')
  assert {*exported} <= {*original}  # What reads images stays behind.
  for name, array in exported.items():
    np.testing.assert_array_equal(array, original[name])
  again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / 'back', attn_implementation='eager')
  tokens = torch.tensor(np.random.default_rng(0).integers(3, 90, (2, 9)))
  np.testing.assert_array_equal(logits(again.eval(), tokens), logits(model, tokens))
