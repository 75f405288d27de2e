import functools

from dro_jax.data.triplets import Triplets
from dro_jax.run.folder import legacy
from dro_jax.run.folder.legacy import Legacy
from dro_jax.step.reference import Frozen, Soft


def test_a_new_run_has_no_earlier_rules(tmp_path):
  assert legacy.read(tmp_path) == Legacy()
  today = {'format': 2, 'value': {'readout': 'batch'}, 'reference': {'scheme': 'frozen'}, 'data': {}}
  assert legacy.from_metadata(today) == Legacy()
  moving = {'reference': {'scheme': 'moving'}}
  assert legacy.from_metadata(today | moving | {'keeps_initial': True}) == Legacy()
  assert legacy.from_metadata(today | moving) == Legacy(measures_moving=True)


def test_a_run_without_a_format_keeps_the_rules_that_it_was_made_with():
  saved = {'value': {'readout': 'scalar'}, 'data': {'options': {'keep': 'start'}}}
  rules = legacy.from_metadata(saved)
  assert rules == Legacy(has_scalar_value=True, keep='start', validates_by_batch=True)
  assert rules.readout('batch') == 'scalar' and rules.readout('token') == 'token'
  assert Legacy().readout('batch') == 'batch'


def test_legacy_rules_keep_the_end_of_prompts_and_measure_the_moving_reference():
  read = functools.partial(dict)
  assert Legacy(keep='end').data(read).keywords == {'keep': 'end'} and Legacy().data(read) is read
  triplets = Triplets(None, None, None, {})
  assert Legacy(keep='end').data(triplets) is triplets
  moving, frozen = (scheme.build(lambda *_: None) for scheme in (Soft(), Frozen()))
  rules = Legacy(measures_moving=True)
  assert rules.reference(moving).initial is None and Legacy().reference(moving) is moving
  assert rules.reference(frozen) is frozen and rules.reference(None) is None
