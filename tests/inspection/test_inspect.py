import json
import shlex

import numpy as np
import pytest

import dro_jax as dro
from dro_jax import main
from dro_jax.checkpoints import orbax
from dro_jax.cli import bindings, flags, registry
from dro_jax.cli import help as usage
from dro_jax.cli import tables as command_tables
from dro_jax.data import triplets
from dro_jax.data.batches import packing as layout
from dro_jax.data.batches import plan
from dro_jax.data.storage import hashes
from dro_jax.data.table import table
from dro_jax.errors import UsageError
from dro_jax.inspection import inspect, warnings
from dro_jax.inspection import methods as admission
from dro_jax.inspection import packing as inspection_packing
from dro_jax.inspection.command import DEFAULTS, train_command
from dro_jax.models.causal.config import CausalConfig
from dro_jax.models.policy import config_metadata
from tests.data.text import tiny_tokenizers

_CONFIGS = command_tables.GIN_CONFIGS


packing = inspection_packing.packing
PACKED = {
  'prompt_length': 8,
  'response_length': 8,
  'prompt': 0.5,
  'response': 0.5,
  'total': 0.5,
  'rows': {1: 1},
}


@pytest.fixture(autouse=True)
def no_packing(monkeypatch):
  """Packing takes seconds with shapes checked; one test does it."""
  kinds = [PACKED | {'settings': {}}, PACKED | {'settings': {'ROW_COVERAGE': 0.9}}]
  found = {'kinds': kinds, 'settings': {'ROW_COVERAGE': 0.9}}
  monkeypatch.setattr(inspection_packing, 'packing', lambda table, batch_size: found)


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes a file of records beside which the command is run; 40 prompts, two responses each."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

  def write(name='mine.jsonl', records=80, **changes):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(records):
      record = {'prompt': f'p{i // 2}', 'response': 'x' * int(rng.integers(1, 30)) + str(i), 'reward': i % 3}
      record |= {key: value(i) for key, value in changes.items()}
      lines.append(json.dumps({key: value for key, value in record.items() if value is not None}))
    (tmp_path / name).write_text('\n'.join(lines) + '\n')
    return name

  return write


@pytest.fixture
def inspected(capsys):
  """`dro_jax inspect ... --json`."""

  def run(*arguments):
    assert main.main(['inspect', *arguments, '--json']) == 0
    return json.loads(capsys.readouterr().out)

  return run


def test_inspect_reads_a_task_of_the_users_module_and_its_command_imports_it(write, inspected):
  write()
  with open('own_tasks_of_inspect.py', 'w') as file:
    file.write(
      'from dro_jax.data.sources import seqio_tasks\n'
      "seqio_tasks.register('own_of_inspect', {'train': 'mine.jsonl'})\n"
    )
  found = inspected('own_of_inspect', '--set=TASK_MODULES=own_tasks_of_inspect.py')
  assert found['records'] == 80
  assert 'TASK_MODULES=own_tasks_of_inspect.py' in shlex.split(found['command'])
  assert bound(found['command'])['TASK_MODULES'] == 'own_tasks_of_inspect.py'


def bound(command):
  """A printed command as the door binds it; gin's own words for what it bound."""
  program, name, *arguments = shlex.split(command)
  assert (program, name) == ('dro_jax', 'train')
  values = flags.parse_flags(name, arguments)
  bindings.configure(name, command_tables.COMMANDS[name], values)
  return {macro: registry.bound_value(macro) for macro in (*DEFAULTS, 'TRIPLETS', 'INIT_FROM', 'ALGORITHM')}


def test_the_proposed_command_reads_the_file_with_the_inspected_settings(write, inspected, capsys):
  found = inspected(write("it's mine.jsonl"), '--set=TEMPLATE="{prompt}"?', '--set=RESPONSE_LENGTH=24')
  assert (found['records'], found['prompts']) == (80, 40)
  assert found['responses_per_prompt']['prompts_by_responses'] == {'2': 40}
  assert found['truncation']['response']['cut'] > 0
  assert found['scaling']['kind'] == 'standardise'  # 0, 1, 2 are off centre.
  settings = bound(found['command'])
  assert settings['TRIPLETS'] == "it's mine.jsonl" and settings['TEMPLATE'] == '"{prompt}"?'
  assert (settings['RESPONSE_LENGTH'], settings['REWARD_SCALING']) == (24, 'standardise')
  assert settings['ALGORITHM'].selector.endswith('dro_v')
  capsys.readouterr()
  # In a terminal it is folded at blanks only, and still is one command.
  assert (
    main.main(['inspect', "it's mine.jsonl", '--set=TEMPLATE="{prompt}"?', '--set=RESPONSE_LENGTH=24']) == 0
  )
  shown = capsys.readouterr().out
  folded = shown[shown.index('dro_jax train') :].replace('\\\n', '')  # As a shell does it.
  assert shlex.split(folded) == shlex.split(found['command'])
  assert 'Variance of the reward' in shown and 'dro_fixed_value' in shown


def test_the_proposed_command_has_an_algorithm_that_the_data_admit(write, inspected):
  labelled = inspected(write('a.jsonl', reward=lambda i: None, label=lambda i: i % 2))
  assert 'a.jsonl:1' in labelled['rewards_problem'] and labelled['rewards'] is None
  assert 'Rewards cannot be read' in labelled['warnings'][0]
  assert '--set ALGORITHM=dro_v_binary --set dro_v_binary.labels=column_labels' in labelled['command']
  assert bound(labelled['command'])['ALGORITHM'].selector.endswith('dro_v_binary')
  same = inspected(write('b.jsonl', reward=lambda i: 3))
  assert '--set ALGORITHM=sft' in same['command'] and 'All rewards are 3' in same['warnings'][0]
  thumbs = {'reward': lambda i: 'up' if i % 2 else 'down'}
  words = inspected(write('c.jsonl', **thumbs), '--map_reward=up=1,down=-1', '--set=TAU=0.5')
  settings = bound(words['command'])
  assert '--map_reward=up=1,down=-1' in words['command'] and settings['TAU'] == 0.5
  assert words['scaling']['kind'] == 'none' and words['scaling']['effective_temperature'] == 0.5


def thumbs(write, rewards, name='thumbs.jsonl'):
  """A file of one response a prompt."""
  return write(name, len(rewards), prompt=lambda i: f'q{i}', reward=lambda i: rewards[i])


def test_rewards_that_are_words_are_guessed_and_said(write, inspected):
  found = inspected(thumbs(write, ['thumbs-up', 'thumbs_down', 'thumbs-up', '👎🏽', 'thumbs-up'] * 4))
  assert found['rewards_problem'] is None and found['rewards']['is_binary']
  flag = '--map_reward=thumbs-up=1,thumbs_down=0,👎🏽=0'
  assert flag in shlex.split(found['command']) and 'sft' not in found['command']
  assert found['warnings'][0].startswith('Rewards are words: thumbs-up (12), thumbs_down (4), 👎🏽 (4). Pass')
  assert 'a guess' in found['warnings'][0]
  assert bound(found['command'])['ALGORITHM'].selector.endswith('dro_v')


def test_unknown_reward_words_give_a_map_reward_to_fill_in(write, inspected):
  found = inspected(thumbs(write, ['gut', 'good', 'geht so'] * 4))
  wanted = '--map_reward=gut=NUMBER,good=1,geht so=NUMBER'
  assert shlex.split(found['command']) == ['dro_jax', 'inspect', '--triplets=thumbs.jsonl', wanted]
  assert f'Pass {wanted}, with a number for each NUMBER' in found['warnings'][0]
  # What is said already stays, and the rest is asked for.
  found = inspected('thumbs.jsonl', '--map_reward=gut=1,good=1')
  assert '--map_reward=gut=1,good=1,geht so=NUMBER' in shlex.split(found['command'])


def test_one_reward_to_train_on_is_a_finding(write, inspected):
  digests = hashes.digests([f'q{i}' for i in range(40)])
  held = hashes.by_prompt_hash(digests, 0.05, '')
  found = inspected(thumbs(write, [float(x) for x in held]))
  assert bound(found['command'])['VALIDATION_FRACTION'] == 0  # Or no rewards were left to tell apart.
  assert '--set ALGORITHM' not in found['command']
  write('held.jsonl', 2, prompt=lambda i: f'h{i}', reward=lambda i: float(i))
  found = inspected(thumbs(write, [0.7] * 9), '--eval_triplets=held.jsonl')
  assert '--set ALGORITHM=sft' in found['command'] and found['scaling']['kind'] == 'none'
  refused = [method for method in found['methods'] if not method['admitted']]
  assert {'dro_v', 'dro_p', 'kto', 'bco', 'filtered_sft', 'dro_v_binary'} <= {m['method'] for m in refused}
  asked = inspected('thumbs.jsonl', '--eval_triplets=held.jsonl', '--set=REWARD_SCALING=standardise')
  assert any('The requested scaling is impossible' in said for said in asked['warnings'])


@pytest.mark.parametrize('value', [0.7, 1.0, 3.0])
def test_equal_rewards_are_a_finding_whatever_float_says_of_their_spread(write, inspected, value):
  found = inspected(thumbs(write, [value] * 9))
  assert '--set ALGORITHM=sft' in found['command']
  assert f'All rewards are {value:g}'.rstrip('0') in ' '.join(found['warnings'])
  admitted = {method['method'] for method in found['methods'] if method['admitted']}
  # A thumb means what it means, but says nothing to whom a label is a reward.
  assert ({'kto', 'bco', 'filtered_sft'} <= admitted) == (value == 1.0) and 'dro_v_binary' not in admitted


def test_the_rule_that_makes_labels_is_shown(write, inspected, capsys):
  found = inspected(thumbs(write, [1.0, 0.0] * 8))
  assert found['labels']['said'].startswith('the rewards 0 and 1 are labels themselves; ')
  capsys.readouterr()
  assert main.main(['inspect', 'thumbs.jsonl']) == 0
  assert 'the rewards 0 and 1 are labels themselves' in ' '.join(capsys.readouterr().out.split())
  down = inspected(thumbs(write, [-1.0] * 9))
  assert 'only push them away' in ' '.join(down['warnings'])


def test_a_share_to_hold_out_that_is_chosen_is_described(write, inspected):
  found = inspected(write(records=400), '--set=VALIDATION_FRACTION=0.2')
  assert found['held_out']['fraction'] == 0.2 and 20 < found['held_out']['prompts'] < 60
  assert '--set VALIDATION_FRACTION=0.2' in found['command']


def test_a_vocabulary_that_is_named_is_not_asked_for(write, inspected):
  for arguments, asks in (((), True), (('--set=VOCABULARY=bytes',), False)):
    assert any('Lengths are in bytes' in said for said in inspected(write(), *arguments)['warnings']) == asks


def test_a_validation_of_few_prompts_is_warned_of(write, inspected):
  [few] = [said for said in inspected(write())['warnings'] if 'held out' in said]
  assert 'of 40 prompts' in few and 'decides nothing: --set VALIDATION_FRACTION=0.25 holds' in few
  assert not any('held out' in said for said in inspected(write('many.jsonl', records=800))['warnings'])


def test_a_model_of_few_positions_gets_lengths_that_fit(write, inspected, tmp_path):
  config = CausalConfig(
    vocab_size=384, emb_dim=4, num_heads=1, num_layers=1, head_dim=4, mlp_dim=4, positions='learned',
    max_positions=32,
  )  # fmt: skip
  orbax.save_params(tmp_path / 'short', {'x': np.zeros(1)}, config_metadata(config) | {'vocabulary': 'bytes'})
  found = inspected(write(prompt=lambda i: f'{i // 2}' * 40), f'--init_from={tmp_path / "short"}')
  [said] = [said for said in found['warnings'] if 'learned positions' in said]
  settings = bound(found['command'])
  lengths = settings['PROMPT_LENGTH'], settings['RESPONSE_LENGTH']
  assert (
    sum(lengths) == 33 and f'--set PROMPT_LENGTH={lengths[0]} and --set RESPONSE_LENGTH={lengths[1]}' in said
  )
  assert 'The model has 32 learned positions' in said and 'keeps 99 %' not in ' '.join(found['warnings'])
  short = inspected(write('short.jsonl', response=lambda i: 'ab'), f'--init_from={tmp_path / "short"}')
  assert short['positions'] is None and 'PROMPT_LENGTH' not in short['command']


def test_few_records_make_a_command_that_runs(write, inspected):
  found = inspected(write(records=1))
  settings = bound(found['command'])
  assert (settings['BATCH'], settings['VALIDATION_FRACTION']) == (1, 0)
  taken = inspected(write(records=3))
  fraction = bound(taken['command'])['VALIDATION_FRACTION']
  held = hashes.by_prompt_hash(hashes.digests(['p0', 'p1']), fraction, '')
  assert held.any() and not held.all()


def test_a_run_of_the_same_name_is_not_resumed(write, inspected, tmp_path):
  (tmp_path / 'runs' / 'dro_v').mkdir(parents=True)
  assert '--model_dir=runs/dro_v_2 ' in inspected(write())['command']


def test_tokens_are_read_once(write, inspected, monkeypatch):
  inspected(write())
  monkeypatch.setattr(table._Writer, 'add', lambda *_: pytest.fail('the table was built again'))
  inspected('mine.jsonl')


def test_prompts_that_cannot_be_read_are_refused(write):
  with pytest.raises(UsageError, match="field 'prompt' is missing"):
    inspect.inspect_triplets(write(prompt=lambda i: None))


def test_rows_are_as_full_as_the_placement_says(write):
  table = triplets.load_triplets(write(records=16), validation_fraction=0).train
  found = packing(table, 8)
  own, padded, *others = found['kinds']
  assert own['settings'] == {} and padded['settings'] == {'PACKED': False} and len(others) == 5
  # Padded: 8 rows of the longest texts, and two batches an epoch that hold each text once.
  assert padded['rows'] == {8: 8}
  sides = padded['prompt_length'], padded['response_length']
  tokens = int(table.prompt_lengths.sum()), int(table.response_lengths.sum())
  assert padded['prompt'] == pytest.approx(tokens[0] / (16 * sides[0]))
  assert padded['total'] == pytest.approx(sum(tokens) / (16 * sum(sides)))
  fitted = layout.Layout.fit(table, plan.Plan.from_table(table, 8, 0))
  assert (own['prompt_length'], own['response_length']) == (fitted.prompt_length, fitted.response_length)
  best = max(found['kinds'], key=lambda kind: kind['total'] - 0.02 * (len(kind['rows']) - 1))
  assert found['settings'] == (best['settings'] if best['total'] > own['total'] + 0.02 else {})


def test_advice_names_arguments_in_python_and_settings_on_the_command_line(write, inspected):
  path = write(response=lambda i: 'word ' * (1 + i), reward=lambda i: 5 + (i % 3 if i else 300))
  flags = inspected(path, '--set=RESPONSE_LENGTH=100')
  found = dro.inspect(path, response_length=100)
  for flag, argument in [
    ('--set RESPONSE_LENGTH=', 'response_length='),
    ('pass --set REWARD_SCALING=quantile', "pass scaling='quantile'"),
    (': --set REWARD_SCALING=standardise centres it', ": scaling='standardise' centres it"),
    ('pass --init_from or --set VOCABULARY to', 'pass init_from or vocabulary to'),
  ]:
    assert flag in ' '.join(flags['warnings']) and flag not in ' '.join(found.warnings)
    assert argument in ' '.join(found.warnings)
  assert '--' not in ' '.join((*found.warnings, *(method['reason'] for method in found.methods)))
  shown = found._repr_html_().replace('&#x27;', "'")
  assert '--' not in shown and "Value(readout='token')" in shown
  assert found.command == flags['command'] and '--set' in found.command
  ratings = write('thumbs.jsonl', reward=lambda i: ('not ok', 'fine, thanks')[i % 2])
  [said, *_] = dro.inspect(ratings).warnings
  assert "Pass map_reward={'not ok': 'NUMBER', 'fine, thanks': 'NUMBER'}, with a number" in said
  [said, *_] = dro.inspect(write('some.jsonl', reward=lambda i: None if i == 3 else 'up')).warnings
  assert "map_reward='" in said and '--' not in said


@pytest.mark.parametrize(
  'found, message',
  [
    ({'mean': 5.0, 'sd': 1.0, 'max': 6.0, 'min': 4.0}, '5 sd from 0'),
    ({'mean': 0.0, 'sd': 1.0, 'max': 12.0, 'min': -1.0}, '12 sd from the mean'),
    ({'mean': 0.0, 'sd': 0.0, 'max': 0.0, 'min': 0.0}, 'only imitation'),
  ],
)
def test_warnings_name_offcentre_extreme_and_constant_rewards(found, message):
  scaling = {'kind': 'standardise', 'temperature': 1.0, 'effective_temperature': found['sd']}
  said = list(warnings._of_rewards(found, scaling, {'texts_with_conflicting_rewards': 0}, judged=False))
  assert any(message in each for each in said)


def test_settings_mean_what_they_mean_to_train():
  macros = {}
  for name in ('train', 'inspect'):
    text = usage.default_text(name, _CONFIGS)
    macros[name] = dict(line.partition(' = ')[::2] for line in text.splitlines() if ' = ' in line)
    macros[name] = {key: value.partition('  #')[0].strip() for key, value in macros[name].items()}
  for name, value in macros['inspect'].items():
    if name.isupper() and name not in ('REWARD_SCALING', 'VALIDATION_FRACTION'):  # Which are proposed.
      assert macros['train'][name] == value, name
  for name, value in DEFAULTS.items():
    assert macros['train'][name] in (repr(value), 'None'), name


def test_real_data(data_dir, inspected, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  found = inspected(str(data_dir / 'wmt_mqm' / 'ted_en-de.jsonl.gz'), '--set=PROMPT_LENGTH=400')
  assert (found['records'], found['prompts'], found['duplicates']['duplicates']) == (4523, 521, 0)
  assert found['responses_per_prompt']['max'] == 14
  assert found['variance']['share_within'] == pytest.approx(0.696, abs=0.001)
  assert found['comparisons']['share_tied'] == pytest.approx(0.304, abs=0.001)


def test_comparisons_are_counted_as_they_were_judged(tmp_path, write, inspected):
  circle = (('A', 'B'), ('B', 'C'), ('D', 'A'))
  records = [{'prompt': f'p{i}', 'chosen': a, 'rejected': b} for i in range(12) for a, b in circle]
  (tmp_path / 'c.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  found = inspected('c.jsonl')
  methods = {method['method']: method for method in found['methods']}
  held_out = found['held_out']['records'] // 2
  assert methods['dpo']['units']['units'] == 36 - held_out
  assert methods['dpo']['units']['pairs'] == 'logged'
  assert methods['kto']['admitted'] and found['judged']
  assert any('pairs stay as judged' in warning for warning in found['warnings'])
  assert not any('pairs learn nothing' in warning for warning in found['warnings'])
  assert found['extra_columns']['columns'] == {}


@pytest.mark.parametrize(
  'template', ['"{prompt}"', '{prompt}\nA: ', "'{prompt}", '%{prompt}', '{prompt} %', '{prompt}']
)
def test_a_command_brings_any_text_as_it_is(template):
  asked = [admission.Admission('dro_v', True)]
  words = train_command(asked, ('dro_v',), {'init_from': None}, {'TEMPLATE': template})
  assert bound(shlex.join([*words, '--triplets=x']))['TEMPLATE'] == template


def test_a_chat_models_data_is_described_as_its_run_will_read_it(tmp_path, write, inspected):
  folder = tiny_tokenizers.qwen(tmp_path / 'words')
  write(response=lambda i: f'{"ab" if i % 2 else "ital"} {i}', prompt=lambda i: f'the cap{i // 2}')
  with_template = inspected('mine.jsonl', f'--set=VOCABULARY={folder}')
  assert with_template['vocabulary']['chat'] and with_template['tokenised_apart'] == 0
  assert 'CHAT' not in with_template['command']
  found = inspected('mine.jsonl', f'--set=VOCABULARY={folder}', '--set=CHAT=false')
  assert not found['vocabulary']['chat'] and 'CHAT=False' in found['command']
  assert found['lengths']['prompt_tokens']['max'] < with_template['lengths']['prompt_tokens']['min']
