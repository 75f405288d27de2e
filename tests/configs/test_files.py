import pytest

from dro_jax.cli import configs_command
from dro_jax.configs import files, parameters
from dro_jax.configs.text import Binding, collect
from dro_jax.errors import UsageError
from dro_jax.run.spec import Keep


@pytest.fixture
def packaged(tmp_path):
  texts = {
    'runs/train.gin': '# dro_jax train\n# What it runs.\nSTEPS = 3  # how long\nKeep.last = %STEPS\n'
    'train.model_dir = %MODEL_DIR\ntrain.spec = @RunSpec()\nRunSpec.keep = @Keep()\n',
    'runs/other.gin': 'SEED = 3\nother.seed = %SEED\n',
    'algorithms/kto.gin': '# KTO (arXiv 2402.01306, Eq. 8). Needs thumbs.\nALGORITHM = @kto\n',
  }
  for name, text in texts.items():
    path = tmp_path / 'packaged' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return tmp_path / 'packaged'


@pytest.fixture
def run(tmp_path):
  """A run that was resumed at step 20 with another length."""
  folder = tmp_path / 'run'
  folder.mkdir()
  text = (
    'MODEL_DIR = "run"\nSTEPS = 10\ntrain.model_dir = %MODEL_DIR\nKeep.last = %STEPS\nRunSpec.seed = 0\n'
    'train.spec = @RunSpec()\nRunSpec.keep = @Keep()\n'
  )
  (folder / 'config.gin').write_text(text)
  (folder / 'config.20.gin').write_text(text.replace('10', '30'))
  (folder / 'config.9.gin').write_text(text.replace('10', '20'))
  (folder / 'operative_config.gin').write_text('train.steps = 1\n')
  return folder


def test_the_list_is_by_folder_with_the_first_sentence(packaged):
  rows = files.listing(packaged, '', {'train': 'trains'})
  assert {row['file']: row['about'] for row in rows} == {
    'algorithms/kto.gin': 'KTO (arXiv 2402.01306, Eq. 8).',
    'runs/other.gin': '',
    'runs/train.gin': 'The defaults of `dro_jax train`, which trains.',
  }
  assert [row['file'] for row in files.listing(packaged, 'algorithms', {})] == ['algorithms/kto.gin']
  with pytest.raises(UsageError, match=r'did you mean algorithms\?.*The folders: algorithms, runs'):
    files.listing(packaged, 'algoritms', {})


def test_a_file_is_found_without_its_ending_or_refused_with_a_neighbour(packaged):
  assert files.find('algorithms/kto', packaged) == packaged / 'algorithms/kto.gin'
  with pytest.raises(UsageError, match=r'did you mean algorithms/kto.gin\?'):
    files.find('algorithms/kot.gin', packaged)
  with pytest.raises(UsageError, match=r"no command, run's folder or gin file 'trian'.*did you mean train\?"):
    files.find('trian', packaged, ['train'])


def test_a_runs_bindings_come_from_its_first_configuration_and_later_changes(run, packaged):
  found = collect(files.read_run(run, packaged))
  assert found.last['STEPS'] == Binding('STEPS', '30', 'config.20.gin:2', 'how long')
  assert found.overrode['STEPS'].origin == 'config.9.gin:2'
  assert found.last['RunSpec.seed'].origin == 'config.gin:5'


def test_a_folder_without_a_configuration_names_its_stages(run, packaged, tmp_path):
  with pytest.raises(UsageError, match='has no config.gin; pass one of its stages: run'):
    list(files.read_run(tmp_path, packaged))
  with pytest.raises(UsageError, match="pass a run's --model_dir"):
    list(files.read_run(packaged / 'runs', packaged))


def test_a_few_settings_are_compared_laid_over_the_defaults(run, packaged):
  known = lambda: {'Keep': parameters.parameters(Keep)}  # noqa: E731
  found = configs_command.compared(packaged, ['algorithms/kto', str(run)], ['train'], known)
  rows = {row['setting']: (row['a'], row['b'], row['resumable']) for row in found['differences']}
  assert rows == {'STEPS': ('3', '30', True), 'RunSpec.seed': (None, '0', False)}
  assert not found['resumable']
  with pytest.raises(UsageError, match='configs diff takes two'):
    configs_command.compared(packaged, ['train'], ['train'], dict)
