import json
import shutil

from dro_jax.evaluation.judge.requests import Requests, Spent, key_of


def after_a_kill(folder, **budget):
  """The requests as they are on disk now; those that are open keep others out of the folder itself."""
  shutil.copytree(folder, folder / 'copy')
  requests = Requests(folder / 'copy', **budget)
  requests.close()
  return requests


def test_a_key_is_that_of_the_contents():
  contents = {'model': 'm', 'message': 'hello'}
  assert key_of(contents) == key_of(dict(reversed(contents.items())))
  assert len({key_of(contents), key_of(contents | {'model': 'n'}), key_of(contents | {'x': None})}) == 3


def test_everything_is_known_again_after_a_kill(tmp_path):
  requests = Requests(tmp_path)
  for key in ('a', 'b', 'c', 'd'):
    assert requests.send(key, {'message': key}, 100)
  requests.answered('a', 'Verdict: A', labels=[{'start': 1, 'end': 2, 'top': {'A': 0.0}}], usage=(20, 3))
  requests.answered('b', 'Verdict: B')
  requests.failed('c', 'HTTP 500', charged=False)
  again = after_a_kill(tmp_path)
  assert again.answers['a'] == {'text': 'Verdict: A', 'labels': [{'start': 1, 'end': 2, 'top': {'A': 0.0}}]}
  assert again.answers['b'] == {'text': 'Verdict: B', 'labels': ()} and set(again.answers) == {'a', 'b'}
  assert again.lost == {'d'}
  assert again.spent == requests.spent == Spent(4, 20, 3, 200)  # b and d.
  requests.close()


def test_the_contents_are_written_once(tmp_path):
  requests = Requests(tmp_path)
  for _ in range(2):
    requests.send('a', {'message': 'hello'}, 1)
    requests.failed('a', 'cut', charged=True)
  requests.close()
  again = Requests(tmp_path)
  again.send('a', {'message': 'hello'}, 1)
  again.close()
  lines = [json.loads(line) for line in (tmp_path / 'requests.jsonl').read_text().splitlines()]
  assert [line.get('contents') for line in lines if line['event'] == 'sent'] == [
    {'message': 'hello'},
    None,
    None,
  ]
  assert again.spent == Spent(requests=3, unknown=3)


def test_a_reply_that_nobody_was_paid_for_spends_no_budget(tmp_path):
  requests = Requests(tmp_path, max_requests=0)
  requests.answered('a', 'A', contents={'function': 'f'})
  requests.close()
  assert requests.spent == Spent() and after_a_kill(tmp_path).answers['a']['text'] == 'A'


def test_nothing_beyond_the_budget_is_recorded_as_sent(tmp_path):
  requests = Requests(tmp_path, max_requests=2, max_tokens=250)
  assert requests.send('a', {}, 200)
  requests.answered('a', '', usage=(10, 1))
  assert not requests.send('b', {}, 240)
  assert requests.send('b', {}, 239)
  requests.failed('b', 'refused', charged=False)
  assert not requests.send('b', {}, 1)
  requests.close()
  again = after_a_kill(tmp_path, max_requests=2)
  assert again.spent == Spent(2, 10, 1, 0)
