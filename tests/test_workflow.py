"""GitHub runs what a change must pass, on every Python that has a lock."""

import pathlib
import re
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORKFLOW = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())
[JOB] = WORKFLOW['jobs'].values()


def test_the_matrix_is_the_pythons_with_locks():
  locks = {path.stem for path in (ROOT / 'requirements').glob('*.txt')}
  pythons = JOB['strategy']['matrix']['python']
  assert all(isinstance(python, str) for python in pythons)  # 3.10 without quotes would be 3.1.
  tags = {f'py{python.replace(".", "")}' for python in pythons}
  assert locks == {tag + suffix for tag in tags for suffix in ('', '-dev', '-docs')}


def test_each_job_runs_ci_run_with_its_own_python_and_cached_packages():
  by_action = {step['uses'].partition('@')[0]: step for step in JOB['steps'] if 'uses' in step}
  assert by_action.keys() == {'actions/checkout', 'actions/setup-python'}
  setup = by_action['actions/setup-python']['with']
  assert setup['python-version'] == '${{ matrix.python }}'
  assert setup['cache'] == 'pip' and list(ROOT.glob(setup['cache-dependency-path']))
  [run] = [step for step in JOB['steps'] if 'run' in step]
  assert run['run'] == '.ci/run' and run['env'] == {'PYTHON': 'python'}


def test_a_push_to_main_and_every_pull_request_start_it():
  events = WORKFLOW[True]  # YAML reads `on` as a boolean.
  assert events == {'push': {'branches': ['main']}, 'pull_request': None}


def test_ci_run_makes_targets_that_exist():
  script = (ROOT / '.ci' / 'run').read_text()
  targets = re.findall(r'^make --no-print-directory (\S+)$', script, re.M)
  assert targets == ['lint', 'types', 'docs', 'test']
  assert (ROOT / '.ci' / 'run').stat().st_mode & 0o111
  phony = re.search(r'^\.PHONY: (.+)$', (ROOT / 'Makefile').read_text(), re.M)[1].split()
  assert set(targets) < set(phony)
  subprocess.run(['make', '--dry-run', *phony], cwd=ROOT, check=True, capture_output=True)
