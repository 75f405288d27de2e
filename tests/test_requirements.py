"""The locks: what pods and images install reads every named data set, and holds the tested versions."""

import importlib.metadata
import pathlib
import re

import pytest
from packaging.requirements import Requirement

FOLDER = pathlib.Path(__file__).resolve().parent.parent / 'requirements'
LOCKS = ('py311', 'py312', 'py313')


def versions(name):
  lines = (FOLDER / f'{name}.txt').read_text().splitlines()
  return dict(line.split('==') for line in lines if line and not line.startswith('#'))


def needed_by(name, found):
  """A package and all that it needs, by the names that locks have."""
  if name not in found:
    found.add(name)
    for text in importlib.metadata.requires(name) or ():
      requirement = Requirement(text)
      if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
        needed_by(re.sub(r'[-_.]+', '-', requirement.name).lower(), found)
  return found


@pytest.mark.parametrize('lock', LOCKS)
@pytest.mark.parametrize('name', ['huggingface-hub', 'safetensors'])
def test_the_lock_installs_what_reads_the_hub_whole(lock, name):
  assert needed_by(name, set()) <= set(versions(lock))


@pytest.mark.parametrize('lock', LOCKS)
def test_the_tests_run_on_the_locks_versions(lock):
  tested = versions(f'{lock}-dev')
  assert versions(lock).items() <= tested.items()


@pytest.mark.parametrize('lock', LOCKS)
def test_the_site_and_the_tests_fit_into_one_environment(lock):
  tested, site = versions(f'{lock}-dev'), versions(f'{lock}-docs')
  assert {name for name in site.keys() & tested.keys() if site[name] != tested[name]} == set()
  assert {'sphinx', 'sphinx-book-theme', 'myst-nb', 'jax'} <= site.keys()


def test_the_image_installs_a_lock():
  text = (FOLDER.parent / 'launch' / 'Dockerfile').read_text()
  assert [name for name in LOCKS if f'requirements/{name}.txt' in text]
