"""The Python API: names that are imported when first used, examples that run, and what a notebook shows."""

import ast
import doctest
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest

import dro_jax as dro
from dro_jax.errors import UsageError
from dro_jax.models.policy import make_config
from dro_jax.preflight.preflight import preflight

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = {
  'emb_dim': 16, 'num_heads': 8, 'head_dim': 4, 'mlp_dim': 32, 'num_encoder_layers': 1,
  'num_decoder_layers': 1,
}  # fmt: skip


def small_spec(data, policy, algorithm, steps=2):
  return dro.RunSpec(
    data=data, policy=policy, algorithm=algorithm, batches=dro.Batches(size=8),
    schedule=dro.Schedule(steps=steps, eval_every=2, sample_prompts=0, kl_prompts=0),
  )  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with a file of thumbs, a tiny checkpoint, and a run with its copy."""
  folder = tmp_path_factory.mktemp('api')
  records = [
    {'prompt': f'Say {number}.', 'response': answer, 'reward': reward}
    for number in range(60)
    for answer, reward in ((f'{number}', 1), (f'{number}, {number}!', 0))
  ]
  (folder / 'feedback.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
    policy = dro.Policy(config=make_config('t5', **TINY))
    data = load_feedback()
    device = jax.devices()[:1]
    imitation = dro.replace(small_spec(data, policy, dro.algorithms.sft()), schedule={'eval_every': 0})
    dro.train(dro.build(imitation, device), 'checkpoints/tiny')
    policy = dro.pretrained('checkpoints/tiny')
    dro.train(dro.build(small_spec(data, policy, dro.algorithms.dro_v(tau=0.3)), device), 'runs/dro_v')
    shutil.copytree('runs/dro_v', 'runs/other')
    yield folder


def load_feedback():
  return dro.load_triplets('feedback.jsonl', scaling='standardise', validation_fraction=0.25)


@pytest.fixture
def names(folder, monkeypatch):
  """What the examples of docstrings may name."""
  # Of the CPU's compiler only, which has read them: libtpu would end the process at a flag that it lacks.
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  data, policy = load_feedback(), dro.pretrained('checkpoints/tiny')
  return {
    'dro': dro, 'data': data, 'policy': policy,
    'spec': small_spec(data, policy, dro.algorithms.dro_v(tau=0.3)),
  }  # fmt: skip


def test_import_brings_no_jax():
  code = "import sys, dro_jax; dir(dro_jax); assert not {'jax', 'numpy', 'flax', 'rich'} & set(sys.modules)"
  process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr


def test_every_name_is_there():
  assert set(dro.__all__) <= set(dir(dro))
  assert [name for name in dro.__all__ if not callable(getattr(dro, name))] == ['algorithms', 'losses']
  with pytest.raises(AttributeError, match='no attribute .trian'):
    dro.trian  # noqa: B018


@pytest.mark.parametrize('name', dro.__all__)
def test_the_example_of_a_docstring_runs(name, names):
  if name == 'preflight':
    pytest.importorskip('libtpu')
  text = (preflight if name == 'preflight' else getattr(dro, name)).__doc__
  example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
  assert example.examples, f'the docstring of {name} has no example'
  printed = []
  runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
  runner.run(example, out=printed.append)
  assert not printed, ''.join(printed)


def test_results_show_themselves_in_a_notebook(names):
  found = dro.inspect(names['data'])
  assert found.warnings == found['warnings'] and 'dro_v' in found._repr_html_()
  assert '<pre' in found._repr_html_() and '.gin' not in found._repr_html_()
  with pytest.raises(AttributeError, match='did you mean warnings'):
    found.warning  # noqa: B018
  run = dro.build(names['spec'])
  assert repr(run).startswith('Run(dro_v: 2 steps on data 8') and 'dro_v' in run._repr_html_()
  assert repr(names['data']) == 'Triplets(90 records to train on, 30 held out)'
  assert re.fullmatch(
    r"TrainedRun\(step 2; parameters: policy .*, value .*; 'bytes'\)", repr(dro.load('runs/dro_v'))
  )
  assert 'criterion' in dro.outcome('runs/dro_v')._repr_html_()
  assert 'runs/dro_v' in dro.report('runs/dro_v', 'runs/other', resamples=20).runs.values()


@pytest.mark.parametrize('folder', ['checkpoints/tiny', 'nowhere'])
def test_a_run_without_two_validations_has_no_outcome(names, folder):
  with pytest.raises(UsageError, match=f'{folder} has no validations of a first and a later policy'):
    dro.outcome(folder)


def test_inspect_refuses_triplets_of_no_file(names):
  data = names['data']
  with pytest.raises(UsageError, match='made in memory'):
    dro.inspect(data._replace(report={}))


def test_triplets_are_inspected_from_the_places_where_they_were_read(names):
  elsewhere = dro.load_triplets('feedback.jsonl', data_dir='elsewhere')
  assert '--set DATA_DIR=elsewhere' in dro.inspect(elsewhere).command
  command = dro.inspect(names['data']).command
  assert not any(setting in command for setting in ('DATA_DIR', 'TASK_MODULES', 'CHAT', 'KEEP'))


def test_triplets_of_another_vocabulary_than_the_policys_are_inspected_as_they_were_read(names):
  found = dro.inspect(names['data'])
  assert found.vocabulary['name'] == 'bytes' and found.held_out['fraction'] == 0.25
  assert not any('Lengths are in bytes' in said for said in found.warnings)


def test_a_trained_run_answers_and_scores(names):
  trained = dro.load('runs/dro_v')
  first, second = trained.generate(['Say hi.', 'Say no.'], temperature=1.0, max_length=4, seed=1)
  assert len(first.tokens) <= 4 and first.logp < 0 and isinstance(second.text, str)
  assert [first.text] == [trained.generate('Say hi.', max_length=4, seed=1)[0].text]
  data = names['data']
  scored = trained.score(data.train)
  assert len(scored.logps) == len(data.train) == len(scored.log_ratio) == len(scored.values)
  assert trained.policy.module.config.emb_dim == 16 and trained.value.params.keys() >= {'head'}
  imitation = dro.load('checkpoints/tiny')
  assert imitation.value is None and imitation.score(data).log_ratio is None


def test_the_example_of_the_readme_runs(names, folder):
  [block] = re.findall(r'^```python\n(.*?)^```', (ROOT / 'README.md').read_text(), re.M | re.S)
  tree = ast.parse(block)
  # The same lines, with names of small things.
  block = block.replace('checkpoints/flan-t5-small', 'checkpoints/tiny').replace('steps=2000', 'steps=2')
  block = block.replace("'runs/dro_v'", "'runs/readme'").replace(
    'eval_every=200', 'eval_every=200, kl_prompts=0'
  )
  assert len(tree.body) == 7
  if importlib.util.find_spec('libtpu') is None:
    block = re.sub(r'^dro.preflight.*\n', '', block, flags=re.M)
  exec(compile(block, 'README.md', 'exec'), {})
  assert (folder / 'runs/readme/run.json').exists()


def test_the_page_has_every_name():
  page = (ROOT / 'docs/reference/api.md').read_text()
  shown = page.replace('.. autofunction:: dro_jax.', '`dro.').replace('.. autoclass:: dro_jax.', '`dro.')
  assert [name for name in dro.__all__ if not re.search(rf'`dro\.{name}\b', shown)] == []
