import dataclasses
import functools

import pytest

from dro_jax import algorithms
from dro_jax.algorithms.next_token_kl import NextTokenKl
from dro_jax.errors import UsageError
from dro_jax.run.spec import Batches, Compute, Keep, Optimizers, RunSpec, Value, replace
from dro_jax.step import optimizers
from dro_jax.step.reference import Cached, Frozen, Soft

SPEC = RunSpec(data=None)
KL = NextTokenKl(weight=1.0)


def test_a_run_has_fourteen_fields():
  assert [field.name for field in dataclasses.fields(RunSpec)] == [
    'data', 'policy', 'algorithm', 'compute', 'value', 'reference', 'next_token_kl', 'optimizers',
    'batches', 'rollouts', 'schedule', 'keep', 'mesh', 'seed',
  ]  # fmt: skip


def test_a_spec_calls_functions_that_make_its_parts():
  spec = RunSpec(
    data=None, algorithm=functools.partial(algorithms.kto, beta=0.5), reference=functools.partial(Soft, 0.25)
  )
  assert spec.algorithm.name == 'kto' and spec.algorithm.temperature == 0.5
  assert spec.reference == Soft(alpha=0.25) and SPEC.reference == Frozen()
  assert SPEC.algorithm.name == 'dro_v' and hasattr(SPEC.optimizers.policy, 'update')
  assert replace(SPEC, optimizers={'policy': optimizers.adamw}).optimizers.policy.update


def test_replace_changes_fields_of_a_part():
  spec = replace(SPEC, compute={'chunk_size': 64}, batches=Batches(8), seed=1)
  assert spec.compute == Compute(chunk_size=64) and spec.batches.size == 8 and spec.seed == 1
  assert SPEC.compute == Compute() and spec.algorithm is not None


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'seed': -1}, 'SEED'),
    ({'algorithm': functools.partial(algorithms.dpo, beta=-1.0)}, 'drives|driven|beta'),
    ({'compute': Compute(dropout_rate=0.1)}, 'dropout_rate=0.1 is for supervised fine-tuning'),
    ({'algorithm': algorithms.oreo}, 'VALUE_READOUT=token'),
    ({'next_token_kl': KL, 'reference': Cached('store')}, 'cached reference has one log-prob.*frozen.gin'),
    ({'next_token_kl': KL, 'algorithm': algorithms.regression}, 'does not train the policy'),
    (
      {'next_token_kl': KL, 'algorithm': algorithms.sft, 'compute': Compute(dropout_rate=0.1)},
      'dropout_rate=0.1 is for supervised fine-tuning',
    ),
    (
      {'algorithm': algorithms.dpo, 'value': Value(warmup_steps=5)},
      'warmup_steps=5 .* dpo has no value',
    ),
    ({'algorithm': algorithms.regression, 'value': Value(warmup_steps=5)}, 'regression trains no policy'),
    ({'algorithm': algorithms.oreo, 'value': Value('batch')}, "readout='batch' does not give one"),
    ({'algorithm': algorithms.bradley_terry}, "readout='prompt' does not read them.*VALUE_READOUT=response"),
    (
      {'value': Value('response')},
      "readout='response' sees the response, and dro_v reads a value that must not",
    ),
  ],
)
def test_settings_that_no_data_could_mend_are_refused_at_once(changes, message):
  with pytest.raises(UsageError, match=message):
    RunSpec(data=None, **changes)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'bound': 'eval/kl<2'}, "bound='eval/kl<2' is not a bound"),
    ({'bound': 'eval/kl<=2', 'metric': None}, 'without a metric none is the best'),
  ],
)
def test_a_bound_that_bounds_nothing_is_refused(settings, message):
  with pytest.raises(UsageError, match=message):
    Keep(**settings)


def test_an_unknown_way_of_attention_is_refused_before_there_is_a_model():
  with pytest.raises(UsageError, match="attention='flash' is unknown.*pass one of auto, dense"):
    Compute(attention='flash')


def test_an_empty_batch_is_refused_whatever_the_algorithm():
  for size in (0, -3):
    with pytest.raises(UsageError, match=f'size={size}: .*pass 1 or more.*--set BATCH=32'):
      Batches(size=size)


def test_a_value_is_not_trained_for_less_than_no_steps():
  with pytest.raises(UsageError, match='warmup_steps=-1: pass 0 or more'):
    Value(warmup_steps=-1)


def test_numbers_of_checkpoints_are_whole_and_keep_the_newest():
  with pytest.raises(UsageError, match='last=0: pass 1 or more.*--set KEEP_LAST='):
    Keep(last=0)
  with pytest.raises(UsageError, match='best=-1: pass 0 or more.*--set KEEP_BEST='):
    Keep(best=-1)
  with pytest.raises(UsageError, match='best=1.5: pass a whole number'):
    Keep(best=1.5)


def test_a_number_is_not_an_optimizer():
  with pytest.raises(UsageError, match=r'value=0.001 is not an optimizer: pass one, as value=dro'):
    Optimizers(value=1e-3)


def test_no_microbatch_is_refused():
  with pytest.raises(UsageError, match='microbatches=0'):
    Batches(microbatches=0)


def test_a_negative_chunk_is_refused():
  with pytest.raises(UsageError, match='chunk_size=-1: pass a number of response tokens, 0 for all'):
    Compute(chunk_size=-1)


OWN_FILE = """
from dro_jax import algorithms

def mild_dro(tau=0.5, name='mild'):
  return algorithms.dro_v(tau)._replace(name=name)

def number():
  return 3

value = 3
"""


def test_a_text_names_an_algorithm_in_a_file_of_the_user(tmp_path, monkeypatch):
  file = tmp_path / 'own_losses.py'
  file.write_text(OWN_FILE)
  spec = RunSpec(data=None, algorithm=f'{file}:mild_dro')
  assert spec.algorithm.name == 'mild' and spec.algorithm.temperature == 0.5
  assert spec.algorithm.code is not None
  assert RunSpec(data=None, algorithm=f'{file}:mild_dro').algorithm.code == spec.algorithm.code
  monkeypatch.syspath_prepend(tmp_path)
  assert RunSpec(data=None, algorithm='own_losses:mild_dro').algorithm.code == spec.algorithm.code
  file.write_text(OWN_FILE + '# Changed.')
  assert RunSpec(data=None, algorithm=f'{file}:mild_dro').algorithm.code != spec.algorithm.code


def test_a_loss_of_the_user_that_fails_names_its_line(tmp_path):
  file = tmp_path / 'own.py'
  file.write_text(
    'from dro_jax.algorithms import by_response\n\ndef wrong():\n'
    "  return by_response('wrong', lambda batch: batch.policy_logp)\n"
  )
  spec = RunSpec(data=None, algorithm=f'{file}:wrong')
  said = r"ALGORITHM: the loss of wrong raised AttributeError: .*'policy_logp'.* \(.*own.py, line 4\)"
  with pytest.raises(UsageError, match=said):
    spec.algorithm.loss(object())


@pytest.mark.parametrize(
  'text, message',
  [
    ('drov', r"ALGORITHM='drov' names no algorithm .did you mean dro_v\?.: pass FILE.py:NAME or MODULE:NAME"),
    ('absent.py:mild_dro', r'ALGORITHM=absent.py:mild_dro: cannot import absent.py \(.*pass a .py file'),
    ('no.such.module:mild_dro', r"cannot import no.such.module \(No module named 'no'\)"),
    ('own.py:milder', r"own.py has no function 'milder': pass the name of a function that returns"),
    ('own.py:value', r"own.py has no function 'value'"),
    ('own.py:number', r'ALGORITHM: own.py:number returned int.*Algorithm'),
    ('broken.py:mild_dro', r'importing broken.py raised ZeroDivisionError: division by zero'),
  ],
)
def test_a_text_that_names_no_algorithm_is_refused(tmp_path, monkeypatch, text, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'own.py').write_text(OWN_FILE)
  (tmp_path / 'broken.py').write_text('1 / 0')
  with pytest.raises(UsageError, match=message):
    RunSpec(data=None, algorithm=text)


def own(tau: float = 1.0) -> algorithms.Algorithm:
  return algorithms.dro_v(tau)._replace(name='own')


def test_the_algorithm_of_a_user_has_a_hash_of_its_code():
  code = RunSpec(data=None, algorithm=own).algorithm.code
  assert code and SPEC.algorithm.code is None
  assert replace(RunSpec(data=None, algorithm=own), seed=1).algorithm.code == code
