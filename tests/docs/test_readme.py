"""README is one page; its table is the demo's, its example reads as Python, and it names what exists."""

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


def test_the_guide_has_one_row_for_every_algorithm():
  guide = (ROOT / 'docs/guides/choosing.md').read_text().split('## One by one')[1].split('## Where thumbs')[0]
  first_cells = re.findall(r'^\| (`.*?) \|', guide, re.MULTILINE)
  named = re.findall(r'`(\w+)`', ' '.join(first_cells))
  assert sorted(named) == sorted(methods.methods())


def test_the_algorithms_that_readme_names_exist():
  section = README.split('## Algorithms')[1].split('\n## ')[0]
  named = re.findall(r'`(\w+)`', section)
  assert len(named) > 15 and set(named) <= methods.methods().keys()
