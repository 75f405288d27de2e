"""Kills a judge's process again and again while a server answers it, and counts what arrived."""

import collections
import json
import random
import subprocess
import time


def kill_often(command, server, kills, rng=None, environment=None, longest=0.4):
  """Starts a command and kills it (SIGKILL) at most `longest` seconds after its first request, `kills` times.

  Returns how many requests had arrived at each kill.
  """
  rng, arrived = rng or random.Random(0), []
  for _ in range(kills):
    before = len(server.asked)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(server.asked) == before and process.poll() is None:
      assert time.monotonic() < deadline, 'no request arrived'
      time.sleep(0.001)
    assert process.poll() is None, 'the command ended before it was killed'
    time.sleep(rng.uniform(0, longest))
    assert process.poll() is None, 'the command ended before it was killed'
    process.kill()
    process.wait()
    arrived.append(len(server.asked))
  return arrived


def counted(server):
  """How often each message arrived."""
  return collections.Counter(asked.message for asked in server.asked)


def unanswered(folder):
  """The messages that a folder has as sent, without a reply or a failure."""
  messages, waiting = {}, set()
  for line in (folder / 'requests.jsonl').read_bytes().split(b'\n')[:-1]:
    record = json.loads(line)
    if record['event'] == 'sent':
      messages.setdefault(record['key'], record.get('contents', {}).get('message'))
      waiting.add(record['key'])
    else:
      waiting.discard(record['key'])
  return {messages[key] for key in waiting}


def check(server, folder, concurrency, kills):
  """No request arrived twice, and what has no reply was in flight at a kill."""
  assert set(counted(server).values()) == {1}
  lost = unanswered(folder)
  assert len(lost) <= concurrency * kills
  return lost
