import json
import os
import pathlib
import sys
import tarfile
from typing import NamedTuple

import pytest

from launch.backends import tpu_vm

# What the workers find on their PATH; uv makes an environment whose python plays dro_jax.
BINARIES = {
  'hostname': 'echo "worker-$WORKER"',
  'python3': 'mkdir -p "$HOME/.local/bin" && cp "$STAND_IN/bin/uv" "$HOME/.local/bin/uv"',
  'uv': 'if [ "$1" = venv ]; then mkdir -p venv/bin && cp "$STAND_IN/bin/dro_jax" venv/bin/python; fi',
  'dro_jax': r"""printf '%s\0' "$@" > "$STAND_IN/arguments-$WORKER"
echo run >> "$STAND_IN/runs-$WORKER"
number=$(wc -l < "$STAND_IN/runs-$WORKER")
code=$(cut -d' ' -f"$number" "$STAND_IN/codes-$WORKER")
trap 'exit 75' TERM
echo "run $number of worker $WORKER 🙂 of $DRO_JAX_CLUSTER"
if [ "$code" = preempted ]; then echo > "$STAND_IN/preempted"; fi
case $code in wait|preempted) while [ -d "$HOME" ] && [ ! -e "$HOME/deleted" ]; do sleep 0.02; done ;; esac
exit "$code"
""",
}


class Cloud(NamedTuple):
  """The stand-in's folder."""

  folder: pathlib.Path

  def script(self, codes: str | tuple[str, str] = '0', **outcomes: list[str]) -> None:
    """What is to happen: the exit codes of the runs (for each worker), and each event's outcomes."""
    (self.folder / 'script.json').write_text(json.dumps(outcomes))
    for i, text in enumerate((codes, codes) if isinstance(codes, str) else codes):
      (self.folder / f'codes-{i}').write_text(text + '\n')

  def calls(self) -> list[list[str]]:
    file = self.folder / 'calls.jsonl'
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

  def events(self) -> list[str]:
    """What was called, but for mere looks."""
    return [call[0] for call in self.calls() if call[0] not in ('queue', 'node', 'status', 'log')]

  def machines(self) -> list[str]:
    return sorted(path.name for path in (self.folder / 'machines').iterdir())

  def arguments(self, worker: int) -> list[str]:
    return (self.folder / f'arguments-{worker}').read_text().split('\0')[:-1]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """A stand-in gcloud on the PATH, with a machine of somebody else's."""
  for name in ('bin', 'machines'):
    (tmp_path / name).mkdir()
  (tmp_path / 'machines' / 'somebodys').write_text('')
  source = (pathlib.Path(__file__).parent / 'stand_in_gcloud.py').read_text()
  # -S and -E: it starts in a fifth of the time.
  binaries = {name: f'#!/bin/sh\n{text}\n' for name, text in BINARIES.items()}
  for name, text in {**binaries, 'gcloud': f'#!{sys.executable} -SE\n{source}'}.items():
    (tmp_path / 'bin' / name).write_text(text)
    (tmp_path / 'bin' / name).chmod(0o755)
  monkeypatch.setenv('STAND_IN', str(tmp_path))
  monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.environ["PATH"]}')
  monkeypatch.setattr(tpu_vm, 'pack', lambda bundle: tarfile.open(bundle, 'w:gz').close())
  stand_in = Cloud(tmp_path)
  stand_in.script()
  return stand_in
