import pytest

from dro_jax.recipes.reproduce import trust_region
from dro_jax.recipes.reproduce.trust_region import GRIDS, Cell


def test_a_form_has_the_settings_that_it_reads():
  assert Cell('dpo', 'frozen').reference == {'REFERENCE': 'frozen'}
  assert Cell('dpo', 'hard', every=32).reference == {'REFERENCE': 'hard', 'TRUST_REGION_EVERY': 32}
  soft = {'REFERENCE': 'soft', 'TRUST_REGION_EVERY': 512, 'TRUST_REGION_ALPHA': 0.6}
  assert Cell('ipo', 'soft').reference == soft
  assert Cell('dpo', 'frozen', every=1).name == Cell('dpo', 'frozen', every=2).name


@pytest.mark.parametrize('scale', GRIDS)
def test_each_sweep_has_the_main_tables_run_among_its_cells(scale):
  grids = GRIDS[scale]
  main = {cell.name for of in trust_region.main_cells(grids).values() for cell in of.values()}
  for what, cells in trust_region.swept_cells(grids).items():
    assert main & {cell.name for cell in cells}, what


def test_the_papers_grids_are_those_of_the_sweeps_of_the_launcher():
  from launch.sweeps import trust_region_alpha, trust_region_beta, trust_region_tau

  grids = GRIDS['paper']
  assert grids.alpha == trust_region_alpha.get_config().product.TRUST_REGION_ALPHA
  assert grids.tau == trust_region_tau.get_config().product.TRUST_REGION_EVERY
  assert grids.beta == trust_region_beta.get_config().product.BETA


@pytest.mark.parametrize('data', ['tldr', 'hh'])
def test_the_papers_stages_are_of_both_data_sets(data):
  made = trust_region.reproduction('paper', ('JUDGE_MODEL=x',))
  judged = [stage.name for stage in made.stages if stage.name.startswith(f'judged-tr-{data}')]
  assert judged == [f'judged-tr-{data}-{name}' for name in ('dpo', 'ipo', 'kto', 'sweeps')]
