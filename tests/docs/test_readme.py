"""README is one page; its table is the demo's, and its example reads as Python."""

import ast
import pathlib
import re

from dro_jax.inspection import methods

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / 'README.md').read_text()


def table(text):
  """The lines of the demo's table."""
  return re.findall(r'^\|.*\|$', text.split('| policy |')[1].split('\n\n')[0], re.MULTILINE)


def test_readme_is_one_page():
  assert len(README.splitlines()) <= 90


def test_the_quickstart_has_the_same_table():
  quickstart = (ROOT / 'docs/start/quickstart.md').read_text()
  assert len(table(README)) == 7  # The rule below the head, and six policies.
  assert table(quickstart) == table(README)


def test_the_example_is_python():
  [block] = re.findall(r'^```python\n(.*?)^```', README, re.MULTILINE | re.DOTALL)
  assert len(ast.parse(block).body) == 7


def test_readme_and_the_guide_name_every_algorithm():
  guide = (ROOT / 'docs/guides/choosing.md').read_text()
  for name in methods.methods():
    assert f'`{name}`' in README, name
    assert f'| `{name}`' in guide or f', `{name}`' in guide, name
