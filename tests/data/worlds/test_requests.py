import pytest

from dro_jax.data.worlds import requests


def test_heldout_requests_are_no_others():
  asked, heldout = requests.split(40)
  assert len(heldout) == 40 and len(asked) + len(heldout) == len({*asked, *heldout}) == 144
  assert requests.requests() == [*heldout, *asked]


@pytest.mark.parametrize(
  'response, reward',
  [
    ('A kettle boils water.', 1.0),
    ('A kettle, mostly, boils water.', 0.5),
    ('word ' * 40, 1.0),
    ('word ' * 41, 0.0),
    ('word, ' * 41, 0.0),
    ('', 0.0),
    ('— … !', 0.0),
  ],
)
def test_a_short_answer_without_a_comma_earns_all(response, reward):
  assert requests.plainness(['any'], [response]) == [reward]


def test_parts_are_shares_of_the_answers():
  found = requests.parts(['one two', 'one, two', 'word ' * 50, 'word, ' * 50])
  assert found == {'short': 0.5, 'no_comma': 0.5}
