import contextlib
import io
import json
import re

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dro_jax import files
from dro_jax.errors import Failed
from dro_jax.run.folder import records


def test_records_reach_the_file_and_tensorboard(tmp_path):
  writer = records.RunWriter(str(tmp_path), first_step=0, num_steps=2)
  writer.metrics(1, {'loss': 0.5})
  writer.samples(1, [{'prompt': 'a', 'response': 'ü'}])
  writer.close()
  assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {'step': 1, 'loss': 0.5}
  assert json.loads((tmp_path / 'samples.jsonl').read_text())['response'] == 'ü'
  events = EventAccumulator(str(tmp_path))
  events.Reload()
  assert [event.value for event in events.Scalars('loss')] == [0.5]


def shown(writer, width):
  """The line of the bar as a terminal of that width shows it."""
  console = Console(file=io.StringIO(), width=width)
  console.print(writer._bar.get_renderable())
  return console.file.getvalue()


@pytest.mark.parametrize('width', [80, 100, 120])
def test_a_narrow_terminal_cuts_metrics_and_keeps_bar_step_and_time(tmp_path, monkeypatch, width):
  monkeypatch.setattr(records, 'Console', lambda **_: Console(file=io.StringIO(), force_terminal=True))
  writer = records.RunWriter(str(tmp_path), first_step=0, num_steps=1000)
  with contextlib.closing(writer):
    line = shown(writer, width)
    assert 'compiling' in line and '0/1000' in line
    writer.advance(500)
    assert 'compiling' not in shown(writer, width)
    writer.metrics(500, dict.fromkeys(records.SHOWN, -0.0123456))
    line = shown(writer, width)
  assert line.count('\n') == 1 and len(line) <= width + 1
  assert re.search(r'━{10} *500/1000 +\S:\S\S:\S\S +loss -0\.01235', line), line
  assert '…' in line


def test_a_resumed_run_says_later_steps_again_and_drops_a_torn_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
  records.RunWriter(str(tmp_path), first_step=2, num_steps=4).close()
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


SEPARATORS = '\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\ud800'


def test_a_resumed_run_keeps_samples_whose_text_holds_line_separators(tmp_path):
  writer = records.RunWriter(str(tmp_path), first_step=0, num_steps=2)
  writer.samples(1, [{'prompt': f'a{SEPARATORS}b', 'response': SEPARATORS}])
  writer.close()
  records.RunWriter(str(tmp_path), first_step=1, num_steps=2).close()
  [line] = (tmp_path / 'samples.jsonl').read_text().splitlines()
  assert json.loads(line) == {'step': 1, 'prompt': f'a{SEPARATORS}b', 'response': SEPARATORS}


def test_a_resumed_run_keeps_lines_of_an_earlier_version_and_drops_one_torn_in_a_character(tmp_path):
  path, line = tmp_path / 'samples.jsonl', '{"step": 1, "response": "12\u202834\x85"}\n'.encode()
  path.write_bytes(line + '{"step": 2, "response": "\u2028'.encode()[:-1])
  records.RunWriter(str(tmp_path), first_step=2, num_steps=4).close()
  assert path.read_bytes() == line


def test_what_is_recorded_of_a_step_is_all_its_records(tmp_path):
  file = tmp_path / 'metrics.jsonl'
  assert records.recorded(file, 2) == {}
  lines = [{'step': 1, 'loss': 3.0}, {'step': 2, 'loss': 1.0}, {'step': 2, 'eval/kl': 0.5}]
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert records.recorded(file, 2) == {'step': 2, 'loss': 1.0, 'eval/kl': 0.5}


def test_other_processes_write_nothing(tmp_path):
  writer = records.RunWriter(str(tmp_path), first_step=0, num_steps=1, primary=False)
  writer.metrics(1, {'loss': 0.5})
  writer.say('hello')
  writer.close()
  assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_in_words(tmp_path):
  writer = records.RunWriter(str(tmp_path), first_step=0, num_steps=1)
  (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
  with (
    contextlib.closing(writer),
    pytest.raises(Failed, match='No space left on device.*the same command resumes'),
    files.disk_of(tmp_path),
  ):
    writer.metrics(1, {'loss': 1.0})


def test_a_missing_file_is_not_reported_as_a_disk_error(tmp_path):
  with pytest.raises(FileNotFoundError), files.disk_of(tmp_path):
    (tmp_path / 'absent').read_text()


def test_a_run_that_begins_again_drops_the_record_of_its_first_policy(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0}\n{"step": 1}\n')
  records.RunWriter(str(tmp_path), first_step=0, num_steps=4).close()
  assert path.read_text() == ''
  path.write_text('{"step": 0}\n{"step": 1}\n')
  records.RunWriter(str(tmp_path), first_step=1, num_steps=4).close()
  assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
