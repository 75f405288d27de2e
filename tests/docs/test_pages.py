"""The site's pages: each has its place, links lead to pages, and generated parts are made."""

import dataclasses
import importlib
import importlib.util
import pathlib
import re

import pytest

from dro_jax import losses
from dro_jax.run.spec import RunSpec

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
PAGES = sorted(path for path in DOCS.rglob('*.md') if '_build' not in path.parts)
NAMES = [str(path.relative_to(DOCS)) for path in PAGES]


def load_conf():
  spec = importlib.util.spec_from_file_location('docs_conf', DOCS / 'conf.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


conf = load_conf()


def toctree():
  """The pages that the index's tables of contents name."""
  index = (DOCS / 'index.md').read_text()
  trees = re.findall(r'^```\{toctree\}\n(.*?)^```', index, re.MULTILINE | re.DOTALL)
  return [line for tree in trees for line in tree.splitlines() if line and not line.startswith(':')]


def test_every_page_is_in_the_table_of_contents_once():
  assert sorted(toctree()) == sorted(name.removesuffix('.md') for name in NAMES if name != 'index.md')


@pytest.mark.parametrize('name', NAMES)
def test_links_of_a_page_lead_to_files(name):
  page = DOCS / name
  text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
  for target in re.findall(r'\]\(([^)#]+)[^)]*\)', text):
    assert target.startswith('http') or (page.parent / target).is_file(), target


def test_links_of_the_readme_lead_to_files():
  for target in re.findall(r'\]\(([^)#]+)[^)]*\)', (ROOT / 'README.md').read_text()):
    assert target.startswith('http') or (ROOT / target).exists(), target


def test_the_settings_page_has_every_setting_of_train():
  page = conf.expand((DOCS / 'reference/settings.md').read_text())
  text = (ROOT / 'gin_configs/runs/train.gin').read_text()
  settings = re.findall(r'^([A-Z][A-Z0-9_]*) =', text, re.MULTILINE)
  # The two that have no default are flags.
  shown = re.findall(r'^\| `([A-Z][A-Z0-9_]*)` \|', page, re.MULTILINE)
  assert sorted(shown) == sorted([*settings, 'MODEL_DIR', 'TRIPLETS'])


def test_the_settings_page_says_of_a_field_what_the_code_says():
  page = conf.expand((DOCS / 'reference/settings.md').read_text())
  rows = re.findall(r'^\| `(\S+)` \| (.*) \|$', page, re.MULTILINE)
  cells = {name: re.split(r' (?<!\\)\| ', row) for name, row in rows}
  assert all(meaning for _, _, meaning, _ in cells.values())
  assert cells['MICROBATCHES'][0] == '`Batches.microbatches`: `int`' and cells['MICROBATCHES'][3] == 'free'
  assert cells['KL_PROMPTS'][1] == '`64`'
  assert cells['make_mesh.fsdp'][:2] == ['`MeshSpec.fsdp`: `int`', '`1`']
  assert cells['VOCABULARY'][3] == 'same contents' and cells['PAIRS'][3] == 'same result'
  assert cells['STEPS'][3].startswith('free (`warmup_linear.decay_steps`')
  # Every field of RunSpec has its section.
  titles = re.findall(r'^## (\w+)$', page, re.MULTILINE)
  assert titles == ['train', *(field.name for field in dataclasses.fields(RunSpec))]


def test_the_papers_page_names_the_paper_of_every_loss_that_has_one():
  page = conf.expand((DOCS / 'papers.md').read_text())
  rows = re.findall(r'^\| \[\d{4}\.\d{5}\]\(.*?\) \| (.*) \|$', page, re.MULTILINE)
  assert sorted(re.findall(r'`(\w+)`', ' '.join(rows))) == sorted(
    set(losses.__all__) - {'sft', 'dro_token', 'reward_regression'}
  )


@pytest.mark.parametrize('backend', ['gke', 'local', 'slurm', 'tpu_vm'])
def test_the_page_of_a_backend_has_every_field_of_its_job(backend):
  fields = set(importlib.import_module(f'launch.backends.{backend}').spec()) - {'backend'}
  shown = re.findall(r'^\| `--job\.(\w+)`', conf.expand(f'<!-- generated: job {backend} -->'), re.MULTILINE)
  # The checks before a run that all backends share have fields of their own.
  assert len(shown) == len(set(shown)) and set(shown) <= fields
  assert all(field.startswith('preflight') for field in fields - set(shown)), fields - set(shown)
