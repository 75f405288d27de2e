import pytest

from dro_jax.configs import renamed
from dro_jax.configs.settings import settings
from dro_jax.configs.text import collect

SAVED = """
STEPS = 3
train.model_dir = 'runs/a'
train.algorithm = @kto
train.batch_size = 8
train.rows = @RowOptions
train.schedule = @Schedule
RowOptions.packed = False
Schedule.steps = %STEPS
"""


def test_old_names_of_settings_in_a_saved_configuration_become_todays():
  found = settings(collect(renamed.read_saved(SAVED, 'config.gin')), ['train'], {})
  read = {f'{owner}.{name}': x.value for owner, values in found.items() for name, x in values.items()}
  assert read['RunSpec.algorithm'] == '@kto' and read['Batches.size'] == '8'
  assert read['RowOptions.packed'] == 'False' and read['Schedule.steps'] == '3'
  assert read['train.model_dir'] == "'runs/a'" and 'train.batch_size' not in read


def test_a_configuration_of_today_stays_as_it_is():
  text = 'train.spec = @RunSpec()\nRunSpec.seed = 1\n'
  assert [binding.name for binding in renamed.read_saved(text, 'config.gin')] == [
    'train.spec',
    'RunSpec.seed',
  ]


def test_the_stages_of_a_recipe_keep_their_scope():
  text = (
    'fit_value.train = @value_stage/train\nvalue_stage/train.batch_size = 4\nfit_value.mesh = @make_mesh\n'
  )
  found = {binding.name: binding.value for binding in renamed.read_saved(text, 'config.gin')}
  assert found['fit_value.spec'] == '@value_stage/RunSpec()'
  assert found['value_stage/Batches.size'] == '4' and 'fit_value.mesh' not in found


@pytest.mark.parametrize(
  'old, new',
  [
    ('train.seed', 'RunSpec.seed'), ('dro_jax.train.train.seed', 'RunSpec.seed'),
    ('a/train.deal', 'a/Batches.deal'), ('train.rehearsal', ''), ('train.model_dir', None),
  ],
)  # fmt: skip
def test_a_setting_that_moved_has_a_new_name(old, new):
  assert renamed.new_name(old) == new


def test_a_removed_setting_of_a_saved_configuration_is_left_out():
  text = 'load_triplets.rewards_required = True\ndro_jax.data.tasks.load_triplets.keep = "end"\n'
  assert [binding.name for binding in renamed.read_saved(text, 'defaults.gin')] == [
    'dro_jax.data.tasks.load_triplets.keep'
  ]
