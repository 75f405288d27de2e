"""Every experiment says what it is, and every command that it names is one."""

import re
import shlex

import pytest

from dro_jax import main as door

FOLDER = door.GIN_CONFIGS / 'experiments'
NAMES = [str(path.relative_to(FOLDER)) for path in sorted(FOLDER.rglob('*.gin'))]
FIELDS = ('Paper', 'Table', 'Command', 'Expect', 'Hours', 'Hardware')


def header(name):
  """The lines of the comment that a file opens with, by field; '' is what precedes them."""
  fields, field = {'': []}, ''
  for line in (FOLDER / name).read_text().splitlines():
    if not line.startswith('#'):
      break
    text = line.lstrip('#').strip()
    if found := re.match(rf'({"|".join(FIELDS)}):(.*)', text):
      field, text = found[1], found[2].strip()
      assert field not in fields
      fields[field] = []
    fields[field].append(text)
  return fields


def commands(name):
  return [shlex.split(line) for line in header(name)['Command'] if line.startswith('dro_jax ')]


def configure(argv):
  """Binds a command line as `main` does, short of running it."""
  _, command, *arguments = argv
  values = door._parse_flags(command, arguments, door.COMMANDS[command].bare)
  door._configure(command, door.COMMANDS[command], values)


def whole(name):
  """A gin file with what it includes."""
  text = (door.GIN_CONFIGS / name).read_text()
  return text + ''.join(whole(part) for part in re.findall(r"^include '(.*)'", text, re.M))


@pytest.mark.parametrize('name', NAMES)
def test_an_experiment_opens_with_what_it_is(name):
  fields = header(name)
  assert list(fields)[1:] == list(FIELDS)
  assert all(''.join(lines) for lines in fields.values())
  assert re.search(r'arXiv \d{4}\.\d{5}', ''.join(fields['Paper'])) or name == 'forkme.gin'


@pytest.mark.parametrize('name', NAMES)
def test_the_commands_of_an_experiment_are_commands(name):
  assert any(f'--gin_file=experiments/{name}' in argv for argv in commands(name))
  for argv in commands(name):
    configure(argv)


@pytest.mark.parametrize('name', [name for name in NAMES if name != 'forkme.gin'])
def test_what_an_experiment_starts_from_is_made_by_its_commands(name):
  made = {
    argument.partition('=')[2] for argv in commands(name) for argument in argv if 'model_dir' in argument
  }
  starts = re.findall(r"^INIT_FROM = '(.*)'", whole(f'experiments/{name}'), re.M)
  assert starts
  assert set(starts) <= made


@pytest.mark.parametrize(
  'name, steps, tau',
  [
    ('dro/t5_l.gin', 40_000, 1.0),
    ('dro/t5_xl.gin', 20_000, 1.0),
    ('dro/ablation.gin', 10_000, 1.0),
    ('dro/sweeps.gin', 40_000, 1.0),
    ('kto/t5_l.gin', 40_000, 5.0),
    ('kto/t5_xl.gin', 20_000, 5.0),
  ],
)
def test_the_papers_settings_are_bound(name, steps, tau):
  """DRO, arXiv 2405.19107, Sect. 5."""
  configure(['dro_jax', 'train', f'--gin_file=experiments/{name}', '--model_dir=x'])
  want = {
    'STEPS': steps, 'BATCH': 32, 'train.deal': 'uniform', 'REWARD_SCALING': 'standardise',
    'WARMUP_STEPS': 150,
    'policy/warmup_constant.peak_value': 1e-4, 'value/warmup_constant.peak_value': 1e-4,
    'dro_v.tau': tau, 'kto.beta': tau,
  }  # fmt: skip
  assert {bound: door._bound(bound) for bound in want} == want


def test_a_sweep_of_one_rate_is_of_both_or_of_the_values():
  def rates(setting):
    configure(
      ['dro_jax', 'train', '--gin_file=experiments/dro/sweeps.gin', '--model_dir=x', '--set', setting]
    )
    return [door._bound(f'{network}/warmup_constant.peak_value') for network in ('policy', 'value')]

  assert rates('LEARNING_RATE=5e-5') == [5e-5, 5e-5]
  assert rates('VALUE_LEARNING_RATE=5e-5') == [1e-4, 5e-5]
