"""Every experiment says what it is, and every command that it names is one."""

import re
import shlex

import pytest

from dro_jax.cli import bindings, flags, registry
from dro_jax.cli.tables import COMMANDS, GIN_CONFIGS

FOLDER = GIN_CONFIGS / 'experiments'
NAMES = [str(path.relative_to(FOLDER)) for path in sorted(FOLDER.rglob('*.gin'))]
FIELDS = ('Paper', 'Table', 'Command', 'Expect', 'Hours', 'Hardware', 'Stated', 'Ours')


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
  values = flags.parse_flags(command, arguments, COMMANDS[command].bare)
  bindings.configure(command, COMMANDS[command], values)


def whole(name):
  """A gin file with what it includes."""
  text = (GIN_CONFIGS / name).read_text()
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
def test_the_commands_of_an_experiment_make_its_first_checkpoint(name):
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
    'STEPS': steps, 'BATCH': 32, 'Batches.deal': 'uniform', 'REWARD_SCALING': 'standardise',
    'WARMUP_STEPS': 150,
    'policy/warmup_constant.peak_value': 1e-4, 'value/warmup_constant.peak_value': 1e-4,
    'dro_v.tau': tau, 'kto.beta': tau,
  }  # fmt: skip
  assert {bound: registry.bound_value(bound) for bound in want} == want


def test_a_sweep_of_one_rate_is_of_both_or_of_the_values():
  def rates(setting):
    configure(
      ['dro_jax', 'train', '--gin_file=experiments/dro/sweeps.gin', '--model_dir=x', '--set', setting]
    )
    return [registry.bound_value(f'{network}/warmup_constant.peak_value') for network in ('policy', 'value')]

  assert rates('LEARNING_RATE=5e-5') == [5e-5, 5e-5]
  assert rates('VALUE_LEARNING_RATE=5e-5') == [1e-4, 5e-5]


# What papers that train with Adam state; of A-LoL and trust regions, what their code and an index do.
GENERATION = {
  'STEPS': 18_000, 'BATCH': 16, 'WARMUP_STEPS': 0, 'policy/warmup_linear.peak_value': 2e-5,
  'warmup_linear.end_value': 1e-5, 'warmup_linear.decay_steps': 18_000, 'adamw.weight_decay': 0.01,
  'adamw.max_gradient_norm': 1.0, 'RESPONSE_LENGTH': 128, 'REWARD_SCALING': 'none', 'BEST_METRIC': None,
}  # fmt: skip
TRUST_REGION = {
  'STEPS': 2900, 'WARMUP_STEPS': 100, 'policy/warmup_constant.peak_value': 1e-6,
  'adamw.max_gradient_norm': 2.0, 'soft.alpha': 0.6, 'hard.every': 512, 'soft.every': 512,
  'BEST_METRIC': None, 'KEEP_LAST': 12, 'PAIRS': None,
}  # fmt: skip
COPG = {
  'EVAL_TRIPLETS': None, 'REWARD_SCALING': 'none', 'BEST_METRIC': 'eval/sample_reward', 'BEST_MODE': 'max',
  'STEPS': 1450, 'BATCH': 128, 'copg.beta': 0.06, 'GROUP_SIZE': 2, 'policy/warmup_constant.peak_value': 1e-6,
  'WARMUP_STEPS': 145, 'dpo.beta': 0.1, 'ipo.tau': 0.01, 'KL_PROMPTS': 128, 'EVAL_EVERY': 50,
}  # fmt: skip
COPG_SFT = {
  'STEPS': 1824, 'BATCH': 128, 'policy/warmup_cosine.peak_value': 2e-5, 'warmup_cosine.end_value': 0.0,
  'warmup_cosine.decay_steps': 1824, 'WARMUP_STEPS': 182, 'TRIPLETS': 'tldr_sft', 'EVAL_TRIPLETS': 'tldr_sft',
}  # fmt: skip
COPG_REWARD = {
  'STEPS': 1450, 'BATCH': 128, 'value/warmup_constant.peak_value': 1e-6, 'VALUE_READOUT': 'response',
  'TRIPLETS': 'tldr_comparisons', 'REWARD_SCALING': 'none',
}  # fmt: skip
COMET = GENERATION | {
  'STEPS': 300_000, 'RESPONSE_LENGTH': 32, 'warmup_linear.decay_steps': 300_000,
  'warmup_linear.end_value': 0.0, 'TRIPLETS': 'comet_rewarded',
}  # fmt: skip
WITH_ADAM = {
  'a_lol/hh.gin': {
    'STEPS': 9000, 'BATCH': 16, 'WARMUP_STEPS': 0, 'adamw.eps': 1e-6, 'adamw.weight_decay': 0.0,
    'adamw.max_gradient_norm': 0.3, 'PROMPT_LENGTH': 640, 'RESPONSE_LENGTH': 128, 'a_lol.epsilon': 0.9,
    'REWARD_SCALING': 'none', 'BEST_METRIC': None, 'INIT_FROM': 'runs/hh_sft',
    'TRIPLETS': 'hh_rewarded_chosen', 'EVAL_TRIPLETS': 'hh_rewarded_chosen', 'KEEP': 'end',
  },
  'a_lol/comet.gin': COMET,
  'a_lol/reddit.gin': GENERATION,
  'a_lol/dialogue.gin': GENERATION,
  'trust_region/dpo.gin': TRUST_REGION | {'dpo.beta': 0.05, 'BATCH': 32},
  'trust_region/ipo.gin': TRUST_REGION | {'ipo.tau': 0.05, 'BATCH': 32},
  'trust_region/kto.gin': TRUST_REGION | {'kto.beta': 0.05, 'BATCH': 64},
  'copg/tldr.gin': COPG,
  'copg/sft.gin': COPG_SFT,
  'trust_region/pythia_dpo.gin': TRUST_REGION | {'dpo.beta': 0.05, 'BATCH': 32},
  'trust_region/pythia_ipo.gin': TRUST_REGION | {'ipo.tau': 0.05, 'BATCH': 32},
  'trust_region/pythia_kto.gin': TRUST_REGION | {'kto.beta': 0.05, 'BATCH': 64},
  'copg/llama_2.gin': COPG,
  'copg/llama_2_sft.gin': COPG_SFT,
  'copg/reward_model.gin': COPG_REWARD,
  'copg/llama_2_reward_model.gin': COPG_REWARD,
}  # fmt: skip


@pytest.mark.parametrize('name', WITH_ADAM)
def test_papers_that_train_with_adam_get_adamw_and_their_settings(name):
  configure(['dro_jax', 'train', f'--gin_file=experiments/{name}', '--model_dir=x'])
  assert {bound: registry.bound_value(bound) for bound in WITH_ADAM[name]} == WITH_ADAM[name]
  assert registry.bound_value('POLICY_OPTIMIZER').selector.endswith('adamw')
  schedule = next(
    (kind for kind in ('linear', 'cosine') if f'warmup_{kind}.end_value' in WITH_ADAM[name]), 'constant'
  )
  assert registry.bound_value('POLICY_SCHEDULE').selector.endswith(f'warmup_{schedule}')


@pytest.mark.parametrize(
  'name',
  ['a_lol/hh.gin', 'a_lol/hh_llama.gin', 'a_lol/reddit.gin', 'a_lol/dialogue.gin', 'a_lol/comet.gin'],
)
def test_a_lols_value_has_a_rate_and_a_length_of_its_own(name):
  configure(['dro_jax', 'a_lol', f'--gin_file=experiments/{name}', '--model_dir=x'])
  schedule = registry.bound_value('VALUE_SCHEDULE').selector.rpartition('.')[2]
  assert registry.bound_value(f'value/{schedule}.peak_value') == 1e-3
  assert registry.bound_value(f'value/{schedule}.warmup_steps') == 150
  assert registry.bound_value(f'policy/{schedule}.peak_value') == 2e-5
  if schedule == 'warmup_linear':
    assert (
      registry.bound_value('value/warmup_linear.decay_steps') == registry.bound_value('VALUE_STEPS') == 1000
    )


@pytest.mark.parametrize('algorithm', ['r_lol', 'weighted_bc', 'gold'])
def test_baselines_that_weigh_by_rewards_read_them_unscaled(algorithm):
  for name in [name for name in NAMES if algorithm in (FOLDER / name).read_text()]:
    configure(
      shlex.split(f'dro_jax train --gin_file=experiments/{name} --model_dir=x --set ALGORITHM={algorithm}')
    )
    assert registry.bound_value('REWARD_SCALING') == 'none', name


@pytest.mark.parametrize(
  'name', ['dro/t5_l', 'dro/t5_xl', 'dro/sweeps', 'dro/ablation', 'kto/t5_l', 'kto/t5_xl']
)
def test_dros_batches_are_uniform(name):
  configure(['dro_jax', 'train', f'--gin_file=experiments/{name}.gin', '--model_dir=x'])
  assert registry.bound_value('DEAL') == 'uniform'


@pytest.mark.parametrize(
  'name',
  [
    'hh',
    'hh_helpful',
    'hh_harmless',
    'hh_helpful_online',
    'hh_helpful_rejection',
    'hh_rewarded',
    'hh_rewarded_chosen',
    'faithdial',
    'faithdial_wow',
    'reddit_upvoted',
    'reddit_downvoted',
  ],
)
def test_dialogues_keep_their_end(name):
  configure(['dro_jax', 'train', f'--gin_file=data/{name}.gin', '--model_dir=x'])
  assert registry.bound_value('load_triplets.keep') == 'end'


def test_a_lol_on_hh_reads_the_scores_that_pro_published():
  """On HH's own 1 and 0 every prompt's value is ½, and A-LoL is fine-tuning."""
  for name in ('a_lol/hh.gin', 'a_lol/hh_llama.gin'):
    configure(['dro_jax', 'a_lol', f'--gin_file=experiments/{name}', '--model_dir=x'])
    assert registry.bound_value('TRIPLETS') == 'hh_rewarded_chosen'
    assert registry.bound_value('DATA_DIR') == 'LoL-RL/data'
  assert 'degenerate' in ' '.join(header('a_lol/hh.gin')['Expect'])


def test_copgs_pairs_are_those_that_its_reward_model_scored():
  scored = {'tldr_ranked.jsonl': 'copg/tldr.gin', 'tldr_ranked_llama.jsonl': 'copg/llama_2.gin'}
  for file, name in scored.items():
    [score] = [argv for argv in commands(name) if argv[1] == 'score']
    assert f'--output={file}' in score and 'KEEP_PAIRS=true' in score
    configure(['dro_jax', 'train', f'--gin_file=experiments/{name}', '--model_dir=x'])
    assert registry.bound_value('TRIPLETS') == file
    assert f'--reward={registry.bound_value("REWARD")}' in score


@pytest.mark.parametrize('name', [path.name for path in (GIN_CONFIGS / 'data').glob('*.gin')])
def test_data_that_follows_other_data_is_not_held_out_from_it(name):
  text = whole(f'data/{name}')
  assert ('\nTRIPLETS =' in text) == ('\nEVAL_TRIPLETS =' in text)


@pytest.mark.parametrize(
  'name, fields',
  [
    ('trust_region/pythia_dpo.gin', {'norm_place': 'parallel', 'vocab_size': 50432}),
    ('copg/llama_2.gin', {'norm_epsilon': 1e-5, 'mlp_dim': 11008}),
    ('copg/llama_2_reward_model.gin', {'norm_epsilon': 1e-5, 'mlp_dim': 11008}),
    ('a_lol/hh_llama.gin', {'norm_epsilon': 1e-6, 'mlp_dim': 11008}),
  ],
)
def test_experiments_with_the_papers_own_models_bind_them(name, fields):
  configure(['dro_jax', 'train', f'--gin_file=experiments/{name}', '--model_dir=x'])
  assert {field: registry.bound_value(f'CausalConfig.{field}') for field in fields} == fields


def test_settings_that_could_not_be_verified_are_marked():
  soft = (GIN_CONFIGS / 'references' / 'soft.gin').read_text()
  assert 'could not be verified' in soft and 'TRUST_REGION_EVERY = ' in soft
  assert 'could not be verified' in ' '.join(header('trust_region/kto.gin')['Stated'])
