import json
import os
import re

import jax
import pytest

from dro_jax.cli import bindings, flags, registry, tables
from dro_jax.errors import UsageError
from dro_jax.recipes.reproduce import command, laptop, planning, running
from dro_jax.recipes.reproduce.command import REPRODUCTIONS, reproduce
from dro_jax.recipes.reproduce.stages import Reproduction, Stage, Training, distinct
from tests.tiers import tiers

JUDGE = ('REWARD=graded_match',)


@pytest.mark.parametrize('scale', command.SCALES)
def test_reproductions_of_a_scale_agree_on_the_stages_that_they_share(scale):
  made = [make(scale, JUDGE) for make in REPRODUCTIONS.values()]
  stages = distinct([stage for each in made for stage in each.stages])
  assert len(stages) < sum(len(each.stages) for each in made)


@pytest.mark.parametrize('name', REPRODUCTIONS)
@pytest.mark.parametrize('scale', tiers(('paper',), command.SCALES))
def test_every_command_binds_and_trains_as_long_as_its_stage_says(name, scale, tmp_path):
  for stage in REPRODUCTIONS[name](scale, JUDGE).stages:
    command_name, *arguments = stage.arguments(tmp_path)
    about = tables.COMMANDS[command_name]
    bindings.configure(command_name, about, flags.parse_flags(command_name, arguments, about.bare))
    if stage.training is not None:
      assert registry.bound_value('STEPS') == stage.training.steps


def test_a_dry_run_tells_all_commands_in_order_and_runs_none(tmp_path, capsys):
  folder = tmp_path / 'stages'
  shown = reproduce('dro', scale='smoke', model_dir=str(folder), dry_run=True)
  assert [row['is'] for row in shown['stages']] == ['to do'] * len(shown['stages'])
  lines = shown.verbatim.splitlines()
  assert lines[0].startswith(f'dro_jax make_world --output={folder}/world')
  assert len(lines) == len(shown['stages']) and lines[-1].startswith('dro_jax judge sft=')
  assert not folder.exists()


def test_the_papers_scale_needs_a_judge_but_for_a_dry_run(tmp_path):
  with pytest.raises(UsageError, match='JUDGE_MODEL='):
    reproduce('dro', scale='paper', model_dir=str(tmp_path))
  shown = reproduce('dro', scale='paper', model_dir=str(tmp_path), dry_run=True, preflight=False)
  judged = next(row for row in shown['stages'] if row['stage'] == 'judged-xl')
  assert '--set=FOLDS=5' in judged['command'] and 'dro_v=' in judged['command']
  assert next(row for row in shown['stages'] if row['stage'] == 'kto-l')['steps'] == 40_000


@pytest.mark.parametrize(
  'judge, text',
  [
    ('gpt-4.1-mini', "'gpt-4.1-mini' is not NAME=VALUE"),
    ('JUDGE_MODEL=m FOO=1', 'FOO is not a setting that chooses a judge'),
    ('JUDGE_MODL=m', 'did you mean JUDGE_MODEL'),
    ('REWARD=graded_match AGAINST=first', 'AGAINST is not a setting'),
    ('SOFT=true', 'exactly one of JUDGE_MODEL, COMMAND'),
    ('REWARD=exact_match JUDGE_MODEL=m', 'exactly one'),
    ("COMMAND='a b", 'No closing quotation'),
  ],
)
def test_a_judge_is_checked_before_anything_runs(tmp_path, judge, text):
  with pytest.raises(UsageError, match=text):
    reproduce('dro', scale='smoke', model_dir=str(tmp_path), judge=judge, dry_run=True)


def test_a_judges_command_may_have_blanks(tmp_path):
  shown = reproduce(
    'dro', scale='smoke', model_dir=str(tmp_path), judge="COMMAND='python my judge.py'", dry_run=True
  )
  assert "'--set=COMMAND=python my judge.py'" in shown.verbatim


def test_the_settings_that_choose_a_judge_are_those_of_judge():
  text = (running.CHECKOUT / 'gin_configs' / 'runs' / 'judge.gin').read_text()
  assert {*command.JUDGES, *command.ABOUT_JUDGES} <= {*re.findall(r'^(\w+) = ', text, re.MULTILINE)}


def test_an_address_is_no_folder_of_stages():
  with pytest.raises(UsageError, match='gs://b/x is an address'):
    reproduce('dro', scale='smoke', model_dir='gs://b/x', dry_run=True)


def test_unknown_names_and_scales_are_refused(tmp_path):
  with pytest.raises(UsageError, match="no reproduction 'dr'"):
    reproduce('dr', model_dir=str(tmp_path))
  with pytest.raises(UsageError, match="no scale 'smal' .did you mean small"):
    reproduce('dro', scale='smal', model_dir=str(tmp_path))


@pytest.mark.long
def test_preflight_tells_fit_and_hours_once(tmp_path):
  pytest.importorskip('libtpu')
  command_ = (
    'train', '--gin_file=models/t5_1_1_tiny.gin', '--model_dir={root}/t/run', '--init_from={root}/s/run',
    '--set=PROMPT_LENGTH=32', '--set=RESPONSE_LENGTH=32', '--set=TAU=3',
  )  # fmt: skip
  made = Reproduction('x', '', [Stage('t', command_, training=Training(7200, 'v5e:2x2', 'l', 3.0))], None)
  program = lambda stage: ['python', '-m', 'dro_jax.main', *stage.arguments(tmp_path), '--json']  # noqa: E731
  first = planning.plan(made, tmp_path, program, preflight=True)['stages'][0]
  assert first['fits'] == 'yes' and float(first['at least hours']) > 0 and first["paper's hours"] == 3.0
  kept = next((tmp_path / planning.PREFLIGHTS).iterdir())
  content = json.loads(kept.read_text())
  kept.write_text(json.dumps(content | {'roofline_seconds': 5.0}))
  again = planning.plan(made, tmp_path, program, preflight=True)['stages'][0]
  assert again['at least hours'] == '10.0'  # Read, and not compiled again.


def rates(report):
  return next(table['rows'] for table in report['tables'] if table['title'] == 'Win rates')


@pytest.fixture
def one_device(monkeypatch):
  """Stages have one device, and read what an earlier session compiled."""
  flags_ = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ['XLA_FLAGS'])
  monkeypatch.setenv('XLA_FLAGS', flags_)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', f'{jax.config.jax_compilation_cache_dir}-stages')
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def smoke(name, tmp_path, jobs=1):
  report = reproduce(name, scale='smoke', model_dir=str(tmp_path), jobs=jobs)
  folder = tmp_path / 'reports' / name
  saved = json.loads((folder / 'report.json').read_text())
  assert saved['tables'] == json.loads(json.dumps(report['tables']))
  assert all((folder / file).read_bytes().startswith(b'\x89PNG') for file in report['figures'])
  text = (folder / 'report.md').read_text()
  assert 'Ours:' in text and all(f'![{file}]({file})' in text for file in report['figures'])
  return report


@pytest.mark.usefixtures('one_device')
def test_the_first_stages_of_dro_run_as_commands(tmp_path):
  stages = REPRODUCTIONS['dro']('smoke', JUDGE).stages
  running.run(tmp_path, stages[:4], running.here(tmp_path), 1, redo=False)
  counts = json.loads((tmp_path / 'log' / 'result.json').read_text())
  assert counts['answers'] == laptop.SMOKE.log_prompts * laptop.SMOKE.samples >= counts['kept'] > 0
  shown = reproduce('dro', scale='smoke', model_dir=str(tmp_path), dry_run=True)
  assert [row['is'] for row in shown['stages']] == ['done'] * 4 + ['to do'] * (len(stages) - 4)


@pytest.mark.long
@pytest.mark.usefixtures('one_device')
def test_dro_runs_from_data_to_its_table(tmp_path):
  report = smoke('dro', tmp_path)
  rows = rates(report)
  assert [(row['policy'], row['against'], row['paper, %']) for row in rows[:3]] == [
    ('DRO-V', 'SFT', '78.9 ± 0.3'), ('KTO', 'SFT', '67.5 ± 0.7'), ('DRO-V', 'KTO', '63.4 ± 1.0')
  ]  # fmt: skip
  assert {row['checkpoint'] for row in rows} <= {'1', '2'}
  counts = json.loads((tmp_path / 'world' / 'result.json').read_text())
  assert counts['test'] == laptop.SMOKE.test_prompts
  began = (tmp_path / 'world' / 'stage.json').stat().st_mtime_ns
  again = reproduce('dro', scale='smoke', model_dir=str(tmp_path))
  assert again['tables'] == report['tables']
  assert (tmp_path / 'world' / 'stage.json').stat().st_mtime_ns == began


@pytest.mark.long
@pytest.mark.usefixtures('one_device')
def test_dro_ablations_run_from_data_to_their_tables(tmp_path):
  report = smoke('dro_ablations', tmp_path, jobs=2)
  titles = [table['title'] for table in report['tables']]
  assert titles[:2] == ['Shared networks, against SFT', 'Shared networks, all against all, %']
  matrix = report['tables'][1]['rows']
  assert len(matrix) == 5 and all(len(row) == 6 for row in matrix)
  assert [len(table['rows']) for table in report['tables'][2:6]] == [4, 4, 3, 3]


@pytest.mark.long
@pytest.mark.usefixtures('one_device')
def test_copg_runs_from_data_to_its_figures(tmp_path):
  report = smoke('copg', tmp_path)
  best, every, model = (table['rows'] for table in report['tables'])
  assert [(row['method'], row["paper's best β"]) for row in best] == [
    ('CoPG', None), ('DPO', 0.1), ('IPO', 0.01)
  ]  # fmt: skip
  assert len(every) == 4 and all(row['reward']['low'] <= row['reward']['value'] for row in every)
  assert best[0]['reward']['value'] == max(row['reward']['value'] for row in every if row['method'] == 'CoPG')
  assert model[0]['paper'] == 0.728
  assert report['figures'] == ['reward_by_step.png', 'reward_by_beta.png', 'best.png']


@pytest.mark.long
@pytest.mark.usefixtures('one_device')
def test_trust_region_runs_from_data_to_its_tables(tmp_path):
  report = smoke('trust_region', tmp_path)
  against, sft, beta, alpha, tau = (table['rows'] for table in report['tables'][:5])
  assert [(row['method'], row['paper, up to']) for row in against[::2]] == [
    ('TR-DPO, soft', 8.4), ('TR-IPO, soft', 14.3), ('TR-KTO, soft', 15.0)
  ]  # fmt: skip
  assert len(sft) == 9 and all(row['KL, nats']['value'] is not None for row in sft)
  assert [(len(rows), {*rows[0]} & {'β', 'α', 'τ'}) for rows in (beta, alpha, tau)] == [
    (6, {'β'}), (2, {'α'}), (2, {'τ'})
  ]  # fmt: skip


@pytest.mark.long
@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize('name, methods', [('a_lol_hh', 11), ('a_lol_tasks', 4)])
def test_a_lol_runs_from_data_to_its_table(name, methods, tmp_path):
  report = smoke(name, tmp_path)
  rows = report['tables'][0]['rows']
  assert len(rows) == methods and rows[0]['policy'] == 'reference'
  assert {'reward', "world's grade", 'tokens', 'distinct-1', 'distinct-3'} <= {*rows[0]}
  assert all(0 <= row["world's grade"]['value'] <= 1 for row in rows)


def test_a_judge_of_a_reproduction_without_one_is_refused(tmp_path):
  with pytest.raises(UsageError, match='copg has no judge'):
    reproduce('copg', model_dir=str(tmp_path), judge='REWARD=exact_match')
