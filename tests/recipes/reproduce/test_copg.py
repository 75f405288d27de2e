from dro_jax.recipes.reproduce import copg


def test_methods_learn_from_the_pairs_that_the_reward_model_ranked():
  for scale in ('paper', 'small'):
    made = copg.reproduction(scale, ())
    cells = [stage for stage in made.stages if stage.name.startswith(('copg-copg', 'copg-dpo', 'copg-ipo'))]
    assert len(cells) == 18
    [ranked] = {stage for stage in made.stages if '--set=KEEP_PAIRS=true' in stage.command}
    [model] = {stage for stage in made.stages if 'reward-model' in stage.name}
    for cell in cells:
      assert {ranked.name, model.name} <= {*cell.needs}
      assert f'--triplets={ranked.at("scored.jsonl")}' in cell.command
      assert f'--set=REWARD={model.run}' in cell.command


def test_the_grids_are_those_of_the_sweeps_of_the_launcher_and_have_the_stated_values():
  from launch.sweeps import copg_beta, dpo_beta, ipo_beta

  grid = copg.GRIDS['paper']
  assert grid['copg'] == copg_beta.get_config().product.COPG_BETA
  assert grid['dpo'] == dpo_beta.get_config().product.DPO_BETA
  assert grid['ipo'] == ipo_beta.get_config().product.IPO_BETA
  assert all(beta in grid[method] for method, beta in copg.STATED.items())
