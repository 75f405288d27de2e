"""Every algorithm's gin file is a run on one triplet file.

`make test` binds every file, and traces or trains steps of one of each kind; `make test-all` trains all.
"""

import json
import textwrap

import gin
import jax
import numpy as np
import pytest

from dro_jax import algorithms, main
from dro_jax.cli import bindings, tables
from dro_jax.cli.flags import parse_flags
from dro_jax.inspection import methods
from dro_jax.parallel import partitioning
from dro_jax.run import train as training
from tests.tiers import tiers

FOLDER = tables.GIN_CONFIGS / 'algorithms'
NAMES = sorted(path.stem for path in FOLDER.glob('*.gin'))
OFFLINE = [name for name in NAMES if not name.endswith('_online')]
# What an algorithm's file does not say: these choose among ways that DRO's other algorithms go, too.
BESIDES = {'oreo': ['--gin_file=values/token.gin']}
# Single responses and thumbs.
TRAINED = ('dro_v', 'kto')
# Pairs, groups, lists, advantages, values by token, columns, reward models, no reference.
TRACED = (
  'a_lol', 'bradley_terry', 'copg', 'dpo', 'dro_group_value', 'dro_p', 'oreo', 'pro', 'reward_regression',
  'sft', 'topr',
)  # fmt: skip


TINY = """
Policy.config = @T5Config()
T5Config.emb_dim = 8
T5Config.num_heads = 2
T5Config.head_dim = 4
T5Config.mlp_dim = 16
T5Config.num_encoder_layers = 1
T5Config.num_decoder_layers = 1
"""


class World:
  """A folder with one file that has what any algorithm asks for; `train` takes two steps on it.

  Args:
    folder: to be filled.
    model: gin's bindings of a model.
  """

  def __init__(self, folder, model=TINY):
    self.folder, self.triplets = folder, folder / 'triplets.jsonl'
    rng = np.random.default_rng(0)
    with self.triplets.open('w') as file:
      for i in range(48):
        reward = float(rng.integers(0, 5)) / 4
        record = {
          'id': f'r{i}', 'prompt': f'say {i % 12:02}', 'response': ''.join(rng.choice(list('abc'), 3)),
          'reward': reward, 'label': reward > 0.5, 'value': 0.5, 'behaviour_logprob': -4.0,
          'behaviour_sampler': 'sampled',
        }  # fmt: skip
        file.write(json.dumps(record) + '\n')
    # One device compiles in a fraction of eight devices' time.
    (folder / 'one_device_of_many.py').write_text(
      textwrap.dedent("""
        import gin
        from tests import runs
        from tests.evaluation.test_evaluate import one_device
        def one_device_of_many():
          return runs.LaidOut(make=one_device)
        gin.external_configurable(one_device_of_many, module='tests')
      """)
    )
    (folder / 'small.gin').write_text(
      textwrap.dedent("""
        import one_device_of_many
        RunSpec.mesh = @one_device_of_many()
        STEPS = 2
        BATCH = 8
        LOG_EVERY = 1
        EVAL_EVERY = 0
        VALIDATION_FRACTION = 0
        GROUP_SIZE = 4
        PROMPT_LENGTH = 16
        RESPONSE_LENGTH = 8
        PACKED = False
      """)
      + model
    )

  def train(self, name, *arguments):
    """Runs an algorithm's gin file; returns the exit code and what it recorded."""
    model_dir = self.folder / name
    code = main.main([
      'train', '--json', f'--gin_file={self.folder / "small.gin"}', f'--triplets={self.triplets}',
      f'--model_dir={model_dir}', '--set', f'CACHE_DIR={self.folder / "cache"}', *arguments,
    ])  # fmt: skip
    file = model_dir / 'metrics.jsonl'
    text = file.read_text() if code == 0 and file.exists() else ''
    return code, [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp('configs')
    patch.syspath_prepend(folder)
    yield World(folder)


def test_every_algorithm_has_a_gin_file():
  assert set(methods.methods()) <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_a_gin_file_binds_an_algorithm(name):
  flags = ['--triplets=x', '--model_dir=y', f'--gin_file=algorithms/{name}.gin']
  values = parse_flags('train', flags)
  bindings.configure('train', tables.COMMANDS['train'], values)
  made = gin.get_bindings('dro_jax.train.RunSpec')['algorithm']()
  assert isinstance(made, algorithms.Algorithm)
  # A file is an algorithm with other settings, or it is named after one.
  assert name.startswith(made.name)
  assert (FOLDER / f'{name}.gin').read_text().startswith('# ')


@pytest.mark.parametrize('name', TRACED)
def test_a_gin_file_makes_a_step_of_its_first_batch(world, name, monkeypatch):
  made = []

  def trace(run, *_):
    with partitioning.use_mesh(run.mesh):
      made.append(jax.eval_shape(run.jitted_step, run.abstract_state, next(run.batches(0, 1))[1])[1])
    return {}

  monkeypatch.setattr(training, 'train', trace)
  world.train(name, f'--gin_file=algorithms/{name}.gin', *BESIDES.get(name, ()))
  assert made[0].metrics['loss'].shape == made[0].metrics['gradient_norm/policy'].shape == ()


@pytest.mark.parametrize('name', tiers(TRAINED, OFFLINE))
def test_a_gin_file_is_a_run(world, name):
  code, records = world.train(name, f'--gin_file=algorithms/{name}.gin', *BESIDES.get(name, ()))
  assert code == 0
  assert [record['step'] for record in records] == [1, 2]
  for record in records:
    assert all(np.isfinite(value) for value in record.values())
  assert sum(records[0].get(f'gradient_norm/{network}', 0) for network in ('policy', 'value')) > 0


@pytest.mark.parametrize(
  'name, reference, alpha',
  [
    ('dro_v', 'soft', ['--set', 'TRUST_REGION_ALPHA=1.0']),
    pytest.param('dpo', 'hard', [], marks=pytest.mark.long),
  ],
)
def test_a_trust_region_is_two_gin_files(world, name, reference, alpha):
  code, records = world.train(
    f'tr_{name}', f'--gin_file=algorithms/{name}.gin', f'--gin_file=references/{reference}.gin', '--set',
    'TRUST_REGION_EVERY=1', *alpha,
  )  # fmt: skip
  assert code == 0
  # A hard update, or α = 1, at every step: the reference is the policy, whatever happened before.
  assert [record['log_ratio_max'] for record in records] == [0.0, 0.0]
