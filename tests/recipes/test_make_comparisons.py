import json
import math

import pytest

from dro_jax.data.records import triplets
from dro_jax.errors import UsageError
from dro_jax.files import json_lines
from dro_jax.recipes.make_comparisons import make_comparisons


def lengths(prompts, responses):
  return [len(text) for text in responses]


def write(path, answers):
  """Answers by prompt."""
  lines = (
    json.dumps({'prompt': prompt, 'response': text}) for prompt, texts in answers.items() for text in texts
  )
  path.write_text(''.join(line + '\n' for line in lines))
  return str(path)


def test_without_noise_the_higher_reward_is_chosen_and_equal_ones_make_no_pair(tmp_path):
  file = write(tmp_path / 'a.jsonl', {'p': ['a', 'bb', 'cc', 'ddd', ' '], 'q': ['x', 'y']})
  result = make_comparisons(file, lengths, str(tmp_path / 'out.jsonl'))
  pairs = {(r['prompt'], r['chosen'], r['rejected']) for r in json_lines(tmp_path / 'out.jsonl')}
  assert pairs == {
    ('p', 'bb', 'a'), ('p', 'cc', 'a'), ('p', 'ddd', 'a'), ('p', 'ddd', 'bb'), ('p', 'ddd', 'cc')
  }  # fmt: skip
  assert result['comparisons'] == 5 and result['agree_with_reward'] == 1
  read = list(triplets.read_triplets(str(tmp_path / 'out.jsonl')))
  assert [record.reward for record in read] == [1.0, 0.0] * 5


def test_noise_is_that_of_bradley_and_terry(tmp_path):
  file = write(tmp_path / 'a.jsonl', {f'p{i}': ['a', 'bb'] for i in range(2000)})
  result = make_comparisons(file, lengths, str(tmp_path / 'out.jsonl'), noise=0.5, seed=1)
  assert result['agree_with_reward'] == pytest.approx(1 / (1 + math.exp(-2)), abs=0.03)


def test_a_prompt_has_at_most_so_many_pairs_and_the_seed_decides_which(tmp_path):
  file = write(tmp_path / 'a.jsonl', {'p': ['a' * i for i in range(1, 9)]})
  found = []
  for seed in (0, 0, 1):
    make_comparisons(file, lengths, str(tmp_path / 'out.jsonl'), pairs=3, seed=seed)
    found.append((tmp_path / 'out.jsonl').read_text())
  assert found[0] == found[1] != found[2]
  assert found[0].count('\n') == 3


def test_answers_without_a_pair_are_refused_with_a_remedy(tmp_path):
  file = write(tmp_path / 'a.jsonl', {'p': ['a'], 'q': ['x', 'x']})
  with pytest.raises(UsageError, match='SAMPLES=4'):
    make_comparisons(file, lengths, str(tmp_path / 'out.jsonl'), noise=1.0)


def test_a_negative_noise_is_refused_and_the_input_is_not_replaced(tmp_path):
  file = write(tmp_path / 'a.jsonl', {'p': ['a', 'bb']})
  with pytest.raises(UsageError, match='noise=-0.1 must be 0 or more.*--set NOISE'):
    make_comparisons(file, lengths, str(tmp_path / 'out.jsonl'), noise=-0.1)
  with pytest.raises(UsageError, match='among the files to read'):
    make_comparisons(file, lengths, file)
  assert make_comparisons(file, lengths, str(tmp_path / 'new' / 'out.jsonl'))['comparisons'] == 1
