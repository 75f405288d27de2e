"""Shell scripts for the workers of a pod: POSIX sh, each complete in itself.

~/dro_jax_job/{checkout, venv}          `install` makes these
~/dro_jax_job/attempt-N/{run.sh, shell, pid, log, code}    a run; it outlives the connection that started it
"""

import shlex
from collections.abc import Sequence

BUNDLE = 'dro_jax_job.tar.gz'
STATUS = 'dro_jax-status'
RUNNING, MISSING, GONE = 'running', 'missing', 'gone'


def install(python: str, extra: str) -> str:
  """Unpacks the bundle and installs the lock of that Python ('3.11') in an environment; may be repeated."""
  lock = f'checkout/requirements/py{python.replace(".", "")}.txt'
  accelerator = f' {shlex.quote(f"jax[{extra}]")}' if extra else ''
  return f"""set -eu
cd "$HOME"
rm -rf dro_jax_job
mkdir -p dro_jax_job/checkout
tar -xzf {BUNDLE} -C dro_jax_job/checkout
cd dro_jax_job
uv=$(command -v uv || echo "$HOME/.local/bin/uv")
if [ ! -x "$uv" ]; then
  python3 -m pip install --quiet --user uv || python3 -m pip install --quiet --user --break-system-packages uv
fi
"$uv" venv --quiet --python {shlex.quote(python)} venv
"$uv" pip install --quiet --python venv/bin/python --requirement {shlex.quote(lock)}{accelerator}
"$uv" pip install --quiet --python venv/bin/python --no-deps --editable checkout
"""


def heredoc(file: str, text: str) -> str:
  """The lines of shell that write a file."""
  end = 'END_OF_FILE'
  while end in text:
    end += '_'
  lines = text.rstrip('\n')
  return f"cat > {shlex.quote(file)} << '{end}'\n{lines}\n{end}"


def start(attempt: int, arguments: Sequence[str], cluster: str) -> str:
  """Starts `dro_jax ARGUMENTS` in the checkout and returns; an attempt starts only once."""
  run = f"""cd "$HOME/dro_jax_job/checkout" || exit 1
here="$HOME/dro_jax_job/attempt-{attempt}"
echo $$ > "$here/shell"
DRO_JAX_CLUSTER={shlex.quote(cluster)} PYTHONUNBUFFERED=1 \\
  ../venv/bin/python -m dro_jax.main {shlex.join(arguments)} > "$here/log" 2>&1 &
echo $! > "$here/pid"
code=0
wait $! || code=$?
echo "$code" > "$here/code.new"
mv "$here/code.new" "$here/code"
"""
  return f"""set -eu
cd "$HOME/dro_jax_job"
if mkdir attempt-{attempt} 2> /dev/null; then
  {heredoc(f'attempt-{attempt}/run.sh', run)}
  setsid nohup sh attempt-{attempt}/run.sh < /dev/null > /dev/null 2>&1 &
fi
"""


def status(attempt: int) -> str:
  """Prints `dro_jax-status HOST STATE`; a state is running, missing, gone or the exit code."""
  return f"""state={MISSING}
if cd "$HOME/dro_jax_job/attempt-{attempt}" 2> /dev/null && [ -s shell ]; then
  state={GONE}
  if kill -0 "$(cat shell)" 2> /dev/null; then state={RUNNING}; fi
  if [ -e code ]; then state=$(cat code); fi
fi
echo "{STATUS} $(hostname) $state"
"""


def follow(attempt: int, offset: int, limit: int) -> str:
  """Prints the log from byte `offset`, `limit` bytes at most."""
  return f"""cd "$HOME/dro_jax_job/attempt-{attempt}" 2> /dev/null || exit 0
if [ -e log ]; then tail -c +{offset + 1} log | head -c {limit}; fi
"""


def last_lines(attempt: int, count: int) -> str:
  """Prints the last lines of the log, each with its host."""
  return f"""cd "$HOME/dro_jax_job/attempt-{attempt}" || exit 0
tail -n {count} log | sed "s/^/[$(hostname)] /"
"""


def stop(attempt: int) -> str:
  """Asks the run to save and end."""
  return f"""cd "$HOME/dro_jax_job/attempt-{attempt}" || exit 0
if [ -s pid ]; then kill -TERM "$(cat pid)" 2> /dev/null || true; fi
"""
