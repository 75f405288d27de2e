from dro_jax.run.folder import configs, reading


def test_a_run_says_how_its_files_were_read_or_its_configuration_does(tmp_path):
  step = tmp_path / 'checkpoints' / '5'
  none = {'columns': None, 'map_reward': None}
  assert reading.names_of({}, step) == none
  bound = "COLUMNS = 'prompt=question'\nload_triplets.columns = %COLUMNS\nload_triplets.map_reward = 'up=1'\n"
  configs.record(tmp_path, {configs.CONFIG: bound}, 0)
  assert reading.names_of({}, str(step)) == {'columns': 'prompt=question', 'map_reward': 'up=1'}
  assert reading.names_of({'data': {'read': none}}, step) == none


def test_a_run_says_how_its_texts_were_read_and_an_imported_policy_does_not():
  assert reading.options_of({'data': {'options': {'keep': 'end'}}}) == {'keep': 'end'}
  assert reading.options_of({}) == reading.options_of({'data': None}) == {}


def test_a_run_reads_the_end_of_prompts_again_that_it_says():
  """Runs of before KEEP kept the start, and say so; auto takes what they have."""
  assert reading.keep_of({'data': {'options': {'keep': 'start'}}}) == {'keep': 'start'}
  assert reading.keep_of({'data': {'options': {'keep': 'auto'}}}) == reading.keep_of({}) == {}
