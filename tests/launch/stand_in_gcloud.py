"""A stand-in for gcloud: records every call, answers by a script, and runs what is sent to workers in sh.

$STAND_IN/ holds calls.jsonl (what was called), script.json (what is to happen: EVENT -> outcomes, of which
each call of the event takes the next, and the last one stays), machines/NAME (what exists), worker-N/ (the
workers' homes) and, once the machine is preempted, a file that says so. An event is a verb (create, queue,
node, scp, delete) or, of ssh, what its script is for. An outcome is a state, 'ok', 'fail', 'refuse' (no
quota), 'late' (made, and yet an error), 'stays' (deleted, and yet there), or a signal's name and one of
these: the caller gets the signal first.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

HOME = pathlib.Path(os.environ['STAND_IN'])
WORKERS = 2
PURPOSES = {
  'rm -rf dro_jax_job': 'install',
  'setsid': 'start',
  'dro_jax-status': 'status',
  'tail -c': 'log',
  'tail -n': 'last',
  'kill -TERM': 'stop',
}


def main(arguments):
  event = event_of(arguments)
  with open(HOME / 'calls.jsonl', 'a') as file:
    file.write(json.dumps([event, *arguments]) + '\n')
  outcome = next_outcome(event)
  if outcome.startswith('SIG'):
    number, _, outcome = outcome.partition(' ')
    os.kill(os.getppid(), getattr(signal, number))
  unreachable = (HOME / 'preempted').exists() and event not in ('create', 'queue', 'node', 'delete')
  if outcome == 'fail' or unreachable:
    fail('UNAVAILABLE: try again')
  ANSWERS.get(event, on_workers)(arguments, outcome)


def event_of(arguments):
  kind, verb = arguments[2:4]
  if verb == 'describe':
    return 'queue' if kind == 'queued-resources' else 'node'
  if verb == 'ssh':
    return next((name for text, name in PURPOSES.items() if text in option(arguments, 'command')), 'mount')
  return verb


def option(arguments, name):
  return next(text.split('=', 1)[1] for text in arguments if text.startswith(f'--{name}='))


def next_outcome(event):
  file = HOME / 'script.json'
  script = json.loads(file.read_text())
  outcomes = script.get(event, ['ok'])
  if len(outcomes) > 1:
    script[event] = outcomes[1:]
    file.write_text(json.dumps(script))
  return outcomes[0]


def fail(words):
  sys.exit(f'ERROR: (gcloud) {words}')


def machine(arguments):
  return HOME / 'machines' / arguments[4]


def create(arguments, outcome):
  if outcome == 'refuse':
    fail('RESOURCE_EXHAUSTED: no quota')
  if machine(arguments).exists():
    fail('ALREADY_EXISTS: it does')
  machine(arguments).write_text('')
  (HOME / 'preempted').unlink(missing_ok=True)
  for i in range(WORKERS):
    shutil.rmtree(HOME / f'worker-{i}', ignore_errors=True)
    (HOME / f'worker-{i}').mkdir()
  if outcome == 'late':
    fail('UNAVAILABLE: connection reset')


def describe(arguments, outcome):
  if not machine(arguments).exists():
    fail('NOT_FOUND: no such resource')
  queued = arguments[2] == 'queued-resources'
  usual = 'ACTIVE' if queued else 'READY'
  if (HOME / 'preempted').exists():
    usual = 'SUSPENDED' if queued else 'PREEMPTED'
  state = usual if outcome == 'ok' else outcome
  answer = {'state': state, 'networkEndpoints': [{}] * WORKERS}
  if queued:
    answer = {'state': {'state': state, 'failedData': {'error': {'message': 'no capacity'}}}}
  print(json.dumps(answer))


def delete(arguments, outcome):
  if not machine(arguments).exists():
    fail('NOT_FOUND: no such resource')
  if outcome == 'stays':
    return
  machine(arguments).unlink()
  for i in range(WORKERS):
    (HOME / f'worker-{i}' / 'deleted').write_text('')


def scp(arguments, outcome):
  for i in range(WORKERS):
    shutil.copy(arguments[4], HOME / f'worker-{i}')


def on_workers(arguments, outcome):
  """Runs the script as each worker; real shell, in a home of its own."""
  which = option(arguments, 'worker')
  for i in range(WORKERS) if which == 'all' else [int(which)]:
    environment = {
      'HOME': str(HOME / f'worker-{i}'),
      'PATH': f'{HOME}/bin:{os.environ["PATH"]}',
      'STAND_IN': str(HOME),
      'WORKER': str(i),
    }
    done = subprocess.run(['sh', '-c', option(arguments, 'command')], env=environment)
    if done.returncode:
      sys.exit(done.returncode)


ANSWERS = {'create': create, 'queue': describe, 'node': describe, 'delete': delete, 'scp': scp}
main(sys.argv[1:])
