import threading

from dro_jax.evaluation.judge.pace import Pace


class Clock:
  """A clock that tests set, and that waits move."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


def paced(**limits):
  """A pace whose waits take no time; and its clock."""
  clock = Clock()
  pace = Pace(**limits, clock=clock)

  class Waited(threading.Event):
    def wait(self, seconds=None):
      clock.now += seconds
      return self.is_set()

  pace.stopped = Waited()
  return pace, clock


def test_no_window_of_a_minute_has_more_requests_than_the_limit():
  pace, clock = paced(requests=5)
  times = []
  for _ in range(23):
    assert pace.wait(1)
    times.append(clock.now)
    clock.now += 2.0
  assert all(later - earlier >= 60 for earlier, later in zip(times, times[5:]))
  assert times[-1] - times[0] < 280  # And no slower than needed.


def test_no_window_of_a_minute_has_more_tokens_than_the_limit():
  pace, clock = paced(tokens=100)
  times = []
  for _ in range(9):
    assert pace.wait(40)
    times.append(clock.now)
  assert all(later - earlier >= 60 for earlier, later in zip(times, times[2:]))


def test_a_request_above_the_limit_by_itself_passes_alone():
  pace, clock = paced(tokens=100)
  assert pace.wait(500) and clock.now == 1000
  assert pace.wait(1) and clock.now >= 1060


def test_a_pause_holds_back_everything_and_a_shorter_one_does_not_end_it():
  pace, clock = paced()
  pace.pause(30)
  pace.pause(5)
  assert pace.wait(1) and clock.now >= 1030


def test_once_stopped_nothing_passes():
  pace, _ = paced()
  pace.stopped.set()
  assert not pace.wait(1) and not pace.sleep(1)
