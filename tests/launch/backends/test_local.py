import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dro_jax.errors import UsageError
from launch import gpus
from launch.backends import local

ROOT = pathlib.Path(__file__).resolve().parents[3]

# A member of the run that is no dro_jax: its arguments are a line of Python for each process.
MEMBER = """
import os, signal, sys, time
index, count = os.environ['DRO_JAX_CLUSTER'].partition('@')[0].split('/')
exec(sys.argv[1 + int(index)])
"""
SUM = """
import jax, numpy as np
from dro_jax.parallel import processes as cluster
cluster.join()
mesh = jax.make_mesh((jax.device_count(),), ('all',), axis_types=(jax.sharding.AxisType.Auto,))
on = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
some = jax.make_array_from_callback((4,), on('all'), lambda index: np.arange(4.)[index])
total = jax.jit(lambda x: x.sum(), out_shardings=on())(some)
print(cluster.is_first(), jax.process_count(), jax.local_device_count(), float(total))
"""
ENDLESS = "print('up', flush=True); time.sleep(60)"
SAVES = f'signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); {ENDLESS}'
DEAF = f'signal.signal(signal.SIGTERM, signal.SIG_IGN); {ENDLESS}'


@pytest.fixture
def member(tmp_path, monkeypatch):
  (tmp_path / 'member.py').write_text(MEMBER)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))


def job(**fields):
  spec = local.spec()
  spec.update({'module': 'member', 'devices': 2, 'peer_seconds': 0.1, 'grace_seconds': 0.2, **fields})
  return spec


def test_processes_are_one_run_over_all_their_devices(member, capfd):
  assert local.run(job(), [SUM, SUM]) == 0
  shown = capfd.readouterr().out.splitlines()
  # Gloo's threads say that they are connected, in lines that they may cut each other.
  ours = sorted(line for line in shown if 'True' in line or 'False' in line)
  assert ours == ['[0] True 2 2 6.0', '[1] False 2 2 6.0']


@pytest.mark.parametrize(
  'first, second, code',
  [
    ('sys.exit(0)', 'sys.exit(0)', 0),
    ('sys.exit(75)', 'sys.exit(75)', 75),
    ('sys.exit(75)', 'sys.exit(2)', 2),
    (ENDLESS, "sys.exit('no such file')", 1),
    (DEAF, 'os.kill(os.getpid(), signal.SIGKILL)', 137),
    ('sys.exit(75)', DEAF, 137),
  ],
)
def test_the_worst_exit_code_wins_and_a_failure_ends_all_processes(member, capfd, first, second, code):
  began = time.monotonic()
  assert local.run(job(), [first, second]) == code
  assert time.monotonic() - began < 10
  if 'no such file' in second:
    assert 'process 1 failed first, with exit code 1:\nlaunch: [1] no such file\n' in capfd.readouterr().err


@pytest.mark.parametrize('restarts, times', [(0, 1), (2, 3)])
def test_a_run_that_stopped_is_begun_again_where_asked(member, tmp_path, restarts, times):
  line = f"open({str(tmp_path / 'log')!r}, 'a').write('x'); sys.exit(75)"
  assert local.run(job(processes=1, max_restarts=restarts), [line]) == 75
  assert len((tmp_path / 'log').read_text()) == times


@pytest.mark.parametrize(
  'lines, names, code',
  [((SAVES, SAVES), ['SIGINT'], 75), ((SAVES, SAVES), ['SIGTERM'], 75), ((SAVES, DEAF), ['SIGINT'] * 2, 137)],
)
def test_a_signal_asks_all_to_save_and_a_second_one_kills(member, lines, names, code):
  command = [sys.executable, str(ROOT / 'launch' / 'launch.py'), '--job=local', '--job.module=member']
  # Once they have stopped, they are not begun again.
  process = subprocess.Popen(
    [*command, '--job.max_restarts=3', '--', *lines],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert {process.stdout.readline(), process.stdout.readline()} == {'[0] up\n', '[1] up\n'}
  for name in names:
    process.send_signal(getattr(signal, name))
    time.sleep(0.3)
  process.communicate(timeout=20)
  assert process.returncode == code


def test_a_dry_run_prints_one_command_a_process(capsys):
  assert local.run(job(processes=3), ['train', 'a b'], dry_run=True) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3
  assert 'DRO_JAX_CLUSTER=2/3@localhost:PORT' in lines[2] and lines[2].endswith("train 'a b'")


# GPUs


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """Makes this machine one whose driver lists so many GPUs, of which jax sees so many (None: it can not)."""

  def make(driver, jax):
    (tmp_path / 'nvidia-smi').write_text('#!/bin/sh\n' + 'echo "GPU 0: H100"\n' * driver)
    (tmp_path / 'nvidia-smi').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if jax is not None:
      monkeypatch.setattr(gpus, '_ASK', f'print({jax})')

  return make


def shown(capsys, **fields):
  assert local.run(job(**fields), ['train'], dry_run=True) == 0
  return capsys.readouterr().out.splitlines()


def test_one_process_has_all_gpus(machine, capsys):
  machine(driver=4, jax=4)
  [line] = shown(capsys)
  assert 'CUDA_VISIBLE_DEVICES=0,1,2,3' in line
  assert not any(name in line for name in ('JAX_PLATFORMS', 'JAX_NUM_CPU_DEVICES', 'DRO_JAX_CLUSTER'))


def test_processes_share_the_gpus_that_are_visible(machine, capsys, monkeypatch):
  machine(driver=8, jax=2)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
  lines = shown(capsys, processes=2)
  assert [line.partition('CUDA_VISIBLE_DEVICES=')[2][0] for line in lines] == ['3', '5']
  assert all(f'DRO_JAX_CLUSTER={index}/2@localhost:PORT' in line for index, line in enumerate(lines))
  with pytest.raises(UsageError, match='3 do not share 2 GPUs evenly'):
    local.run(job(processes=3), ['train'], dry_run=True)


def test_each_gpu_belongs_to_one_process(machine, capsys):
  machine(driver=4, jax=4)
  first, second = shown(capsys, processes=2)
  assert 'CUDA_VISIBLE_DEVICES=0,1 ' in first and 'CUDA_VISIBLE_DEVICES=2,3 ' in second


@pytest.mark.parametrize('hidden', ['', '-1'])
def test_gpus_that_are_hidden_are_none(machine, capsys, monkeypatch, hidden):
  machine(driver=2, jax=None)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
  lines = shown(capsys)
  assert len(lines) == 2 and all('JAX_PLATFORMS=cpu' in line for line in lines)


@pytest.mark.parametrize('fields, variable', [({'platform': 'cpu'}, None), ({}, ('JAX_PLATFORMS', 'cpu'))])
def test_cpu_devices_are_taken_where_they_are_asked_for(machine, capsys, monkeypatch, fields, variable):
  machine(driver=1, jax=1)
  if variable:
    monkeypatch.setenv(*variable)
  lines = shown(capsys, **fields)
  assert len(lines) == 2 and all('JAX_PLATFORMS=cpu' in line for line in lines)


def test_a_machine_without_gpus_rehearses_on_cpu_devices(machine, capsys):
  machine(driver=0, jax=0)
  assert len(shown(capsys)) == 2
  with pytest.raises(UsageError, match='no GPU that jax may use'):
    local.run(job(platform='gpu'), ['train'], dry_run=True)


def test_gpus_that_jax_does_not_see_are_told_with_the_remedy(machine):
  machine(driver=2, jax=None)
  with pytest.raises(UsageError, match=r"has 2 GPUs .* pip install 'dro_jax\[gpu\]'.* --job.platform=cpu"):
    local.run(job(), ['train'], dry_run=True)


def test_another_platform_is_refused():
  with pytest.raises(UsageError, match='--job.platform=tpu: pass gpu or cpu'):
    local.run(job(platform='tpu'), ['train'], dry_run=True)
