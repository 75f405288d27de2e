"""The command line, `dro_jax COMMAND [flags]`: absl reads the flags and gin binds them.

Bindings are read in this order, the last one wins: `gin_configs/runs/COMMAND.gin`, every `--gin_file`, every
`--gin.NAME=VALUE`, every `--set NAME=VALUE`, the plain flags (each is a macro: `--model_dir` is MODEL_DIR).

Exit codes: 0 done, 1 failed, 2 bad usage or bad data, 75 stopped by a signal after saving, 130 ended by
Ctrl-C with nothing to save, or by a second one at once.
"""

import contextlib
import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dro_jax import __version__
from dro_jax.cli import help as usage
from dro_jax.cli import tables
from dro_jax.cli.bindings import configure, recorded
from dro_jax.cli.configs import answer_configs
from dro_jax.cli.flags import parse_flags
from dro_jax.cli.registry import defined_macros
from dro_jax.cli.tables import Command
from dro_jax.errors import Failed, Interrupted, Stopped, UsageError, did_you_mean
from dro_jax.parallel import interrupts, machine, processes
from dro_jax.printing import result as printing

DONE, FAILED, BAD_USAGE, STOPPED = 0, 1, 2, 75
UNREAD = 141  # As shells call a program that SIGPIPE ended.


def run() -> None:
  """The console script."""
  _prepare_process()
  with processes.failing_at_once(), interrupts.second_ends():
    sys.exit(_until_unread(sys.argv[1:]))


def _until_unread(argv: Sequence[str]) -> int:
  """Runs a command line; the reader of its output may stop reading, as `head` does."""
  try:
    code = main(argv)
    sys.stdout.flush()
    return code
  except BrokenPipeError:
    # Python would write the rest as it exits, and fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD


def _prepare_process() -> None:
  """Logs go to standard error, ours only; gin files may import from the current folder."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format='%(message)s')
  logging.getLogger('dro_jax').setLevel(logging.INFO)
  # Their errors reach us as exceptions too, and they would log one for every array.
  for third_party in ('absl', 'asyncio'):
    logging.getLogger(third_party).setLevel(logging.CRITICAL)
  # Gin looks for an included file in several places, and logs each place that lacks it.
  logging.getLogger().handlers[0].addFilter(lambda record: not str(record.msg).startswith('Path not found'))
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())


def main(argv: Sequence[str], commands: Mapping[str, Command] = tables.COMMANDS) -> int:
  """Runs one command line and returns its exit code; raises unexpected errors."""
  try:
    return _dispatch(list(argv), commands)
  except UsageError as error:
    print(f'dro_jax: {_message(error)}', file=sys.stderr)
    return BAD_USAGE
  except Failed as failed:
    print(f'dro_jax: {_message(failed)}', file=sys.stderr)
    return FAILED
  except (Stopped, Interrupted) as stopped:
    print(f'dro_jax: {_message(stopped)}', file=sys.stderr)
    return STOPPED
  except KeyboardInterrupt:
    print(
      'dro_jax: stopped by Ctrl-C. No file is half-written: the same command starts again, or resumes from '
      'the last checkpoint.',
      file=sys.stderr,
    )
    return interrupts.ENDED


def _dispatch(argv: list[str], commands: Mapping[str, Command]) -> int:
  if not argv:
    raise UsageError(
      f'no command given: pass one of {usage.list_commands(commands)}. `dro_jax --help` describes them.'
    )
  name, *arguments = argv
  if name in ('--help', '-h', 'help'):
    print(usage.overview(commands))
    return DONE
  if name == '--version':
    print(f'dro_jax {__version__}')
    return DONE
  if name not in commands:
    if name.startswith('-'):
      raise UsageError(
        f'the command comes first: dro_jax COMMAND {name} ... The commands: {usage.list_commands(commands)}'
      )
    raise UsageError(
      f'no command {name!r}{did_you_mean(name, commands)}. The commands: {usage.list_commands(commands)}'
    )
  if {'--help', '-h'} & set(arguments):
    print(usage.command_help(name, commands[name], tables.FLAGS, tables.GIN_CONFIGS))
    return DONE
  values = parse_flags(name, arguments, commands[name].bare)
  if commands[name].own:
    printing.print_result(answer_configs(values, commands), as_json=values['json'].value)
    return DONE
  if commands[name].on_cpu:
    machine.take_cpu()
  command = configure(name, commands[name], values)
  processes.join()
  machine.refuse_missing_devices()
  with machine.memory(_less_memory()):
    result = _call(name, command)
  if processes.is_first():
    printing.print_result(result, as_json=values['json'].value)
  return DONE


def _call(name: str, function: Callable[..., Any]) -> Any:
  """Runs the command; only its result goes to standard output."""
  wants_configs = 'configs' in inspect.signature(function).parameters
  arguments = {'configs': functools.partial(recorded, function.__name__)} if wants_configs else {}
  try:
    with contextlib.redirect_stdout(sys.stderr):
      return function(**arguments)
  except (TypeError, RuntimeError) as error:
    missing = re.search(
      r'(?:No values supplied by Gin or caller for arguments|Required bindings for .*): (\[.*\])', str(error)
    )
    if not missing:
      raise
    raise UsageError(f'{name} needs values for {missing[1]}: bind them with --gin.NAME=VALUE') from error


def _less_memory() -> str:
  """Names the settings of the command that make it use less memory."""
  settings = {
    'MICROBATCHES': '--set MICROBATCHES=2 (scores a batch in parts)',
    'REMAT': '--set REMAT=true (recomputes states in the backward pass)',
    'DTYPE': '--set DTYPE=bfloat16',
    'BATCH': 'a smaller BATCH',
  }
  remedies = [text for macro, text in settings.items() if macro in defined_macros()]
  return f'pass {", ".join(remedies)}' if remedies else 'pass less data at once'


def _message(error: BaseException) -> str:
  """An error's message without the trail that gin adds to it."""
  return str(error).split('\n  In call to configurable')[0]


if __name__ == '__main__':
  run()
