import pytest

from dro_jax.errors import UsageError
from dro_jax.recipes.train import train
from dro_jax.run.spec import RunSpec


@pytest.mark.parametrize(
  'folder, message', [('gs://bucket/run', 'a local or mounted folder'), ('', 'is not a folder')]
)
def test_a_folder_that_can_hold_no_run_is_refused_before_data_is_read(folder, message):
  with pytest.raises(UsageError, match=message):
    train(folder, RunSpec(data=None))
