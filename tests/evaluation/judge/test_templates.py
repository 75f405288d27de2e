import pytest

from dro_jax.errors import UsageError
from dro_jax.evaluation.judge import templates


@pytest.mark.parametrize('name', ['helpfulness', 'safety', 'summary'])
def test_our_templates_have_all_places_and_ask_for_the_grammar(name):
  text = templates.load(name)
  assert all(text.count(f'{{{place}}}') == 1 for place in templates.PLACES)
  assert text.index('{prompt}') < text.index('{first}') < text.index('{second}')
  for label in ('A', 'B', 'tie'):
    assert f'"Verdict: {label}"' in text


def test_the_names_are_the_files():
  assert templates.NAMES == ('helpfulness', 'safety', 'summary')


def test_braces_in_a_text_stay_as_they_are():
  filled = templates.fill('{"p": "{prompt}"} {first}|{second}', 'x {second} {0}', '{prompt}', 'b')
  assert filled == '{"p": "x {second} {0}"} {prompt}|b'


def test_a_file_of_ones_own_is_read(tmp_path):
  file = tmp_path / 'mine.txt'
  file.write_text('Welche Antwort? {prompt} {first} {second} ü')
  assert templates.load(str(file)).endswith('ü')
  file.write_text('{prompt} {first}')
  with pytest.raises(UsageError, match=r'mine\.txt: the file has no place \{second\}'):
    templates.load(str(file))
  file.write_bytes(b'\xff{prompt}')
  with pytest.raises(UsageError, match='UTF-8'):
    templates.load(str(file))


def test_an_unknown_name_gets_the_nearest():
  with pytest.raises(UsageError, match=r'did you mean summary\?'):
    templates.load('summry')
