"""A stand-in for kubectl: records every call, and answers by a script.

$STAND_IN/ holds calls.jsonl (what was called), applied.json (the manifest) and script.json: `scenes`, of
which each look takes the next, and the last one stays; `deleting`, those after the deletion; `apply` and
`delete`, those calls' outcomes ('ok', 'fail', 'SIGNAL fail'), likewise; `log`, the lines of a pod. A scene is
null where the set is gone, 'fail', or its {status, pods}. The caller gets a signal that is there first.
"""

import json
import os
import signal
import sys

HOME = os.environ['STAND_IN']


def main(arguments):
  with open(f'{HOME}/calls.jsonl', 'a') as file:
    file.write(json.dumps(arguments) + '\n')
  with open(f'{HOME}/script.json') as file:
    script = json.load(file)
  verb = next(word for word in arguments if not word.startswith('-'))
  *signals, outcome = following(script, verb).split() if verb in ('apply', 'delete') else ['ok']
  for name in signals:
    os.kill(os.getppid(), getattr(signal, name))
  if outcome == 'fail':
    sys.exit('Unable to connect to the server')
  ANSWERS[verb](arguments, script)


def following(script, name):
  """The next of a list, whose last one stays."""
  outcomes = script[name]
  if len(outcomes) > 1:
    with open(f'{HOME}/script.json', 'w') as file:
      json.dump(script | {name: outcomes[1:]}, file)
  return outcomes[0]


def apply(arguments, script):
  os.link(option(arguments, 'filename'), f'{HOME}/applied.json')


def delete(arguments, script):
  open(f'{HOME}/deleted', 'w').close()


def get(arguments, script):
  scene = following(script, 'deleting' if os.path.exists(f'{HOME}/deleted') else 'scenes')
  if scene and 'signal' in scene:
    os.kill(os.getppid(), getattr(signal, scene['signal']))
  if scene == 'fail':
    sys.exit('Unable to connect to the server')
  items = [{'kind': 'JobSet', 'status': scene['status']}, *scene['pods']] if scene else []
  print(json.dumps({'items': items}))


def logs(arguments, script):
  if '--prefix' in arguments:
    print('[pod] its last line')
    return
  for i, text in enumerate(script['log']):
    print(f'2026-01-01T00:00:0{i}.000000000Z {text} of {arguments[1]}')


def describe(arguments, script):
  print('FailedMount: no such bucket')


def option(arguments, name):
  return next(text.split('=', 1)[1] for text in arguments if text.startswith(f'--{name}='))


ANSWERS = {'apply': apply, 'delete': delete, 'describe': describe, 'get': get, 'logs': logs}
main(sys.argv[1:])
