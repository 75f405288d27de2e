"""The wheel: built from a copy of the sources, installed in a new environment, used from another folder."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Everything that the build reads.
SOURCES = ('dro_jax', 'gin_configs', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE')
PIP = (sys.executable, '-m', 'pip', '--disable-pip-version-check', '--no-input')


def output(*command, folder):
  """What a command prints, started in a folder with an environment that names no other Python path."""
  environment = {name: value for name, value in os.environ.items() if not name.startswith('PYTHON')}
  answer = subprocess.run(
    list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=300
  )
  assert answer.returncode == 0, answer.stdout + answer.stderr
  return answer.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The path of the wheel. The build writes into its sources, so these are a copy."""
  copy = tmp_path_factory.mktemp('sources')
  for name in SOURCES:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
    else:
      shutil.copy(ROOT / name, copy / name)
  build = ('wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', 'dist', '.')
  output(*PIP, *build, folder=copy)
  [path] = (copy / 'dist').glob('*.whl')
  return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """The `bin` folder of an environment that has the wheel, and all other packages from this environment."""
  environment = tmp_path_factory.mktemp('environment')
  output(sys.executable, '-m', 'venv', '--without-pip', environment, folder=environment)
  [packages] = environment.glob('lib/python*/site-packages')
  # A .pth file adds the folder without its own .pth files: this environment's link to the checkout stays out.
  folders = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}
  (packages / 'packages.pth').write_text('\n'.join(sorted(folders)))
  python = environment / 'bin' / 'python'
  install = ('install', '--quiet', '--no-deps', '--no-index', '--no-compile', wheel)
  output(*PIP, '--python', python, *install, folder=environment)
  return environment / 'bin'


def test_the_wheel_has_every_module_gin_file_and_text_and_the_licence(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  modules = {str(path.relative_to(ROOT)) for path in (ROOT / 'dro_jax').rglob('*.py')}
  assert {name for name in names if name.endswith('.py')} == modules
  gin_files = {f'dro_jax/{path.relative_to(ROOT)}' for path in (ROOT / 'gin_configs').rglob('*.gin')}
  assert {name for name in names if name.endswith('.gin')} == gin_files
  texts = {str(path.relative_to(ROOT)) for path in (ROOT / 'dro_jax').rglob('*.txt')}
  assert texts and {name for name in names if name.startswith('dro_jax/') and name.endswith('.txt')} == texts
  assert any(re.fullmatch(r'dro_jax-[^/]+\.dist-info/licenses/LICENSE', name) for name in names)


def test_the_installed_package_is_not_the_checkout(installed, tmp_path):
  program = (
    'import dro_jax, importlib.metadata as metadata; '
    'print(dro_jax.__file__, dro_jax.__version__, metadata.version("dro_jax"))'
  )
  path, version, packaged = output(installed / 'python', '-c', program, folder=tmp_path).split()
  assert pathlib.Path(path).is_relative_to(installed.parent)
  assert version == packaged


def test_the_command_answers_from_another_folder(installed, tmp_path):
  assert 'train' in output(installed / 'dro_jax', '--help', folder=tmp_path)


def test_the_command_finds_its_gin_files(installed, tmp_path):
  listed = json.loads(output(installed / 'dro_jax', 'configs', 'list', '--json', folder=tmp_path))
  assert pathlib.Path(listed['folder']).is_relative_to(installed.parent)
  assert len(listed['files']) == sum(1 for _ in (ROOT / 'gin_configs').rglob('*.gin'))
