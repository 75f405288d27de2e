"""The glossary explains every metric that a run can record."""

import ast
import pathlib
import re

import numpy as np
import pytest

from dro_jax.evaluation import answers
from dro_jax.names import NEXT_TOKEN_KL
from dro_jax.run.folder import validation
from dro_jax.run.sampling import rollouts
from dro_jax.statistics import agreement, preferences

ROOT = pathlib.Path(__file__).resolve().parents[2]
GLOSSARY = (ROOT / 'docs/reference/glossary.md').read_text()
TERMS = {
  term for line in GLOSSARY.splitlines() if line.startswith('`') for term in re.findall('`([^`]+)`', line)
}


def keys(node):
  """The texts of a dict's keys, `{…}` in place of what a formatted one fills in."""
  for key in node.keys:
    if isinstance(key, ast.Constant):
      yield key.value
    elif isinstance(key, ast.JoinedStr):
      yield ''.join(part.value if isinstance(part, ast.Constant) else '{}' for part in key.values)


def dicts(path):
  return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Dict)]


def names_of_steps():
  """Names in the dicts of the step's metrics, without what algorithms call their losses."""
  found = [name for node in dicts(ROOT / 'dro_jax/step/metrics.py') for name in keys(node)]
  return {name.removesuffix('{}') for name in found if name != 'loss/{}' and not name.startswith('{}')}


def dicts_of_functions():
  """What the functions of the algorithms return, of those that return a dict."""
  return {
    function.name: function.body[-1].value
    for path in (ROOT / 'dro_jax/algorithms').glob('*.py')
    for function in ast.walk(ast.parse(path.read_text()))
    if isinstance(function, ast.FunctionDef) and isinstance(function.body[-1], ast.Return)
    and isinstance(function.body[-1].value, ast.Dict)
  }  # fmt: skip


def names_of_algorithms():
  """Names of the metrics and losses that algorithms hand over in a LossOutput."""
  losses, metrics, made = set(), set(), dicts_of_functions()
  for path in (ROOT / 'dro_jax/algorithms').glob('*.py'):
    tree = ast.parse(path.read_text())
    assigned = {
      node.targets[0].id: node.value
      for node in ast.walk(tree)
      if isinstance(node, ast.Assign)
      and isinstance(node.value, ast.Dict)
      and isinstance(node.targets[0], ast.Name)
    }
    for call in ast.walk(tree):
      if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'LossOutput':
        terms, *rest = [assigned.get(getattr(argument, 'id', None), argument) for argument in call.args]
        rest = [made.get(getattr(getattr(each, 'func', None), 'id', None), each) for each in rest]
        losses |= {f'loss/{name}' for name in keys(terms)} if isinstance(terms, ast.Dict) else set()
        metrics |= {name for node in rest[:1] if isinstance(node, ast.Dict) for name in keys(node)}
  return losses | metrics


def names_of_validations():
  scores = np.zeros(4)
  statistics = agreement.score_statistics(
    scores, scores + 1, np.arange(4.0), np.array([0, 0, 1, 1]), reference_logps=scores, values=scores
  )
  own = validation.sample_statistics(
    validation.Validation(
      np.ones(()), sample_lengths=scores, sample_log_ratios=scores, sample_rewards=scores,
      reference_sample_log_ratios=scores[:, None],
    )
  )  # fmt: skip
  scored = validation._of_scores(
    validation.Validation(
      np.ones(()), scores=scores, rewards=scores, prompts=scores, pair_prompts=scores, pair_margins=scores
    )
  )
  assert set(preferences.NAMES) < set(scored)
  online = rollouts._summary(*np.zeros((4, 1, 2)), {'': np.zeros((1, 2))}, temperature=1.0)
  return {f'eval/{name}' for name in (*statistics, *own, *scored, *online, 'criterion', 'loss')}


def names_of_next_token_kl():
  """Of the term that any algorithm may take."""
  return {f'loss/{NEXT_TOKEN_KL}', NEXT_TOKEN_KL, f'eval/{NEXT_TOKEN_KL}'}


def names_of_answers():
  """Of `answers`; rewards have the names that their files or functions give them."""
  return {name for name in answers.MEANINGS if name not in ('reward', 'logp')}


def test_the_names_are_those_of_the_code():
  assert {'log_ratio_max', 'response_fill'} <= names_of_steps()
  assert {'reference_point', 'clipped', 'loss/residual', 'pair_margin'} <= names_of_algorithms()
  assert {'eval/kl', 'eval/criterion', 'eval/within_prompt_accuracy/length'} <= names_of_validations()


@pytest.mark.parametrize(
  'name',
  sorted(
    names_of_steps()
    | names_of_algorithms()
    | names_of_validations()
    | names_of_next_token_kl()
    | names_of_answers()
  ),
)
def test_the_glossary_explains(name):
  assert name in TERMS
