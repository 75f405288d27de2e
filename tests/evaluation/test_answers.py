"""Measures of files of answers, against numbers by hand and other libraries."""

import json

import numpy as np
import pytest

from dro_jax import main
from dro_jax.errors import UsageError
from dro_jax.evaluation import answers
from dro_jax.evaluation.answers import compare_answers
from dro_jax.statistics import bootstrap, diversity

WORDS = ('good', 'bad', 'fair', 'odd', 'fine', 'so', 'and')


def draw(seed, prompts=12, samples=3, **changes):
  """Records as `generate` writes them."""
  rng = np.random.default_rng(seed)
  records = []
  for i in range(prompts):
    for k in range(samples):
      text = ' '.join(rng.choice(WORDS, rng.integers(1, 9)))
      logp = float(rng.normal(-20))
      record = {
        'id': f'p{i}#{k}', 'prompt': f'say {i}', 'response': text, 'logp': logp,
        'reference_logp': logp - float(rng.normal(0.5, 0.1)), 'tokens': len(text) + 1,
        'ended': bool(rng.integers(2)), 'reward': float(rng.normal(i)), 'safe': int(rng.integers(2)),
      }  # fmt: skip
      records.append({name: x for name, x in (record | changes).items() if x is not None})
  return records


@pytest.fixture
def write(tmp_path):
  def write(name, records, settings=None):
    path = tmp_path / f'{name}.jsonl'
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    if settings is not None:
      (path.parent / f'{path.name}.settings').write_text(json.dumps({'settings': settings, 'digest': ''}))
    return str(path)

  return write


def table(result, title):
  return next(each for each in result['tables'] if each['title'] == title)


def rows(result, title='Measures'):
  return {row['metric']: row for row in table(result, title)['rows']}


def row(result, metric, title='Measures'):
  return rows(result, title)[answers.MEANINGS.get(metric, metric)]


def test_every_measure_is_the_mean_over_prompts_of_the_mean_over_answers(write):
  records = draw(0)
  found = compare_answers(write('a', records), resamples=20)
  values = {row['metric']: row['a']['value'] for row in table(found, 'Measures')['rows']}
  numbers = ('reward', 'safe', 'logp', 'reference_logp', 'tokens', 'ended')
  by_field = {name: np.mean([record[name] for record in records]) for name in numbers}
  texts = [diversity.words_of(record['response']) for record in records]
  want = {
    'reward': by_field['reward'], 'safe': by_field['safe'],
    'kl': by_field['logp'] - by_field['reference_logp'], 'logp': by_field['logp'],
    'tokens': by_field['tokens'], 'characters': by_field['tokens'] - 1, 'ended': by_field['ended'],
    'repetition': np.mean([*map(diversity.repetition, texts)]),
    'distinct_1': len({word for words in texts for word in words}) / sum(map(len, texts)),
    'self_bleu': np.mean([diversity.self_bleu(texts[i : i + 3]) for i in range(0, 36, 3)]),
  }  # fmt: skip
  for name, value in want.items():
    assert values[answers.MEANINGS.get(name, name)] == pytest.approx(value), name
  assert len(values) == len(want) + 2  # distinct-2 and distinct-3


def test_prompts_count_alike_however_often_they_were_answered(write):
  few = [{'prompt': 'a', 'response': 'x', 'reward': 0.0}, {'prompt': 'b', 'response': 'x', 'reward': 1.0}]
  found = compare_answers(write('few', few + [few[1]] * 8), resamples=5)
  assert row(found, 'reward')['few']['value'] == 0.5


def test_intervals_are_over_prompts_and_differences_are_paired(write):
  one, other = draw(0), draw(0)
  for i, record in enumerate(other):
    record['reward'] += 0.1 + 0.01 * (i % 2)
  found = compare_answers([write('one', one), write('other', other)], resamples=300, seed=2)
  by_prompt = np.array([record['reward'] for record in one]).reshape(12, 3).mean(axis=1)
  want = bootstrap.bootstrap(bootstrap.mean_of(by_prompt), 12, 300, 2)
  assert row(found, 'reward')['one'] == pytest.approx(want._asdict())
  difference = row(found, 'reward', 'Difference from one')['other']
  assert difference['value'] == pytest.approx(0.105) and 0.1 < difference['low'] <= difference['high'] < 0.11
  # Texts are the same, so distinct-n is the same without any prompt too.
  same = row(found, 'distinct_2', 'Difference from one')['other']
  assert same == {'value': 0, 'low': 0, 'high': 0}


def test_the_interval_of_distinct_n_is_the_jackknifes(write):
  records = draw(3)
  found = compare_answers(write('a', records))
  texts = [[diversity.words_of(r['response']) for r in records[i : i + 3]] for i in range(0, 36, 3)]
  want = bootstrap.jackknife(*diversity.distinct(texts, 2))
  assert row(found, 'distinct_2')['a'] == pytest.approx(want._asdict())


def test_intervals_of_distinct_n_stay_within_what_it_can_be(write):
  """Of two prompts, whose answers repeat nothing and all: the jackknife's own interval is wider."""
  records = [
    {'id': f'p{i}#{k}', 'prompt': f'p{i}', 'response': text}
    for i, texts in enumerate((['a b c d', 'e f g h'], ['z z z z'] * 2))
    for k, text in enumerate(texts)
  ]
  other = [record | {'response': 'z z z z'} for record in records]
  found = compare_answers([write('one', records), write('other', other)])
  level = row(found, 'distinct_1')['one']
  difference = row(found, 'distinct_1', 'Difference from one')['other']
  assert (level['low'], level['high']) == (0, 1) and 0 < level['value'] < 1
  assert difference['low'] == -1 and difference['value'] < 0


def test_files_of_one_name_are_averaged_and_no_more_diverse(write):
  paths = [write(f'm{seed}', draw(seed)) for seed in range(3)]
  alone = [compare_answers(path, resamples=5) for path in paths]
  pooled = compare_answers([f'm={path}' for path in paths], resamples=5)
  for metric in answers.MEANINGS:
    values = [row(found, metric)[f'm{i}']['value'] for i, found in enumerate(alone)]
    assert row(pooled, metric)['m']['value'] == pytest.approx(np.mean(values)), metric
    spread = row(pooled, metric, 'Spread between files')['m']
    assert spread == pytest.approx(np.std(values, ddof=1)), metric
  interval = [row(found, 'distinct_1')[f'm{i}'] for i, found in enumerate(alone)]
  widths = [each['high'] - each['low'] for each in interval]
  own = row(pooled, 'distinct_1')['m']
  # Of one method's seeds, the mean has a narrower interval than the seeds, by no more than √3.
  assert min(widths) / 3 < own['high'] - own['low'] < max(widths)
  assert [each['reward'] for each in pooled['by_file']['m']] == [
    row(found, 'reward')[f'm{i}']['value'] for i, found in enumerate(alone)
  ]
  assert table(pooled, 'Answers')['rows'] == [{'answers of': 'm', 'files': 3, 'prompts': 12, 'answers': 108}]


def test_files_of_the_same_file_name_are_two_sides_and_patterns_one(write, tmp_path):
  paths = [write('sft/answers', draw(0)), write('dro/answers', draw(1))]
  assert [*compare_answers(paths, resamples=2)['files']] == paths
  named = compare_answers(f'all={tmp_path}/*/answers.jsonl,one={write("one", draw(2))}', resamples=2)
  assert {name: len(of) for name, of in named['files'].items()} == {'all': 2, 'one': 1}


def test_steps_in_one_file_are_sides(write):
  records = [record | {'step': step} for step in (100, 200) for record in draw(step)]
  found = compare_answers(f'run={write("run", records)}', resamples=2)
  assert [*found['files']] == ['run@100', 'run@200']
  alone = compare_answers(write('late', records[36:]), resamples=2)
  assert row(found, 'reward')['run@200'] == row(alone, 'reward')['late']


def test_files_are_compared_on_the_prompts_that_all_answer(write):
  found = compare_answers([write('a', draw(0)), write('b', draw(1, prompts=9)[3:])], resamples=2)
  note = table(found, 'Answers')['note']
  assert 'on the 8 prompts that all files answer; up to 4 others are left out' in note
  assert row(found, 'reward')['a']['value'] == pytest.approx(
    np.mean([record['reward'] for record in draw(0)[3:27]])
  )
  others = [record | {'prompt': f'x{record["prompt"]}'} for record in draw(0)]
  paths = [write('a', draw(0)), write('c', others)]
  with pytest.raises(UsageError, match=r'no prompt is in all files of answers \(12 in .*, 12 in '):
    compare_answers(paths)


def test_a_measure_that_a_file_lacks_has_no_value_and_no_difference(write):
  one = draw(1, samples=1, reference_logp=None)
  one[4].pop('reward')
  found = compare_answers([write('a', draw(0)), write('b', one)], resamples=2)
  for metric in ('kl', 'self_bleu', 'reward'):
    assert row(found, metric)['a'] is not None and row(found, metric)['b'] is None
    assert row(found, metric, 'Difference from a')['b'] is None
  assert 'answer prompts unequally often' in table(found, 'Answers')['note']


def test_reward_functions_reward_the_answers(write, tmp_path):
  (tmp_path / 'mine.py').write_text(
    'def long(prompts, responses):\n  return [len(r) for r in responses]\n'
    'def late(prompts, responses):\n  return [int(p.split()[1]) for p in prompts]\n'
  )
  path = write('a', draw(0, reward=None))
  found = compare_answers(path, reward=f'long={tmp_path}/mine.py:long,late={tmp_path}/mine.py:late')
  assert row(found, 'late')['a']['value'] == 5.5
  assert row(found, 'long')['a'] == row(found, 'characters')['a']
  assert row(compare_answers(path, reward='contains'), 'reward')['a']['value'] == 0
  in_python = compare_answers(path, reward={'one': lambda prompts, responses: [1.0] * len(prompts)})
  assert row(in_python, 'one')['a'] == {'value': 1, 'low': 1, 'high': 1}
  with pytest.raises(UsageError, match='one is named twice'):
    compare_answers(path, reward='one=contains, one=exact_match')


def test_answers_that_were_not_drawn_from_the_policy_estimate_no_kl(write):
  usual = {
    'max_length': 8, 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'repetition_penalty': 1.0, 'beams': 1,
    'length_penalty': 1.0,
  }  # fmt: skip
  paths = [write('a', draw(0), usual), write('b', draw(1), usual | {'temperature': 0.0})]
  note = table(compare_answers(paths, resamples=2), 'Answers')['note']
  assert 'b was decoded otherwise than a: temperature=0.0 and not 1.0.' in note
  assert 'b: not drawn from π itself' in note
  assert table(compare_answers(paths[0], resamples=2), 'Answers')['note'] == ''


def test_blank_answers_and_conversations_count(write):
  turns = [{'role': 'user', 'content': 'hi'}]
  records = [{'prompt': turns, 'response': ''}, {'prompt': turns, 'response': 'a b'}]
  found = compare_answers(write('a', records), resamples=2)
  assert row(found, 'characters')['a']['value'] == 1.5
  assert table(found, 'Answers')['rows'][0]['prompts'] == 1
  # One prompt has no interval.
  assert np.isnan(row(found, 'characters')['a']['low'])


@pytest.mark.parametrize(
  'record, message',
  [
    ({'prompt': 'x'}, r"a\.jsonl:1: field 'response' is missing"),
    ({'response': 'x', 'prompt': 3}, r"a\.jsonl:1: field 'prompt' is 3"),
  ],
)
def test_records_without_an_answer_are_named(record, message, write):
  with pytest.raises(UsageError, match=message):
    compare_answers(write('a', [record]))


def test_fields_may_have_other_names_in_some_files(write):
  names = {'prompt': 'question', 'response': 'answer', 'reward': 'stars'}
  theirs = [{names.get(name, name): value for name, value in record.items()} for record in draw(1)]
  found = compare_answers(
    [write('ours', draw(0)), write('theirs', theirs)], columns='prompt=question,response=answer,reward=stars',
    resamples=5,
  )  # fmt: skip
  want = compare_answers([write('ours', draw(0)), write('theirs', draw(1))], resamples=5)
  assert found['tables'] == want['tables'] and 'reward' in rows(found)
  path = write('theirs', theirs)
  assert main.main(['answers', path, '--columns=prompt=question,response=answer', '--set=RESAMPLES=5']) == 0
  with pytest.raises(UsageError, match=r"theirs\.jsonl:1: field 'response' is missing"):
    compare_answers(path, columns='prompt=question')


def test_the_command_prints_and_writes_what_python_returns(write, tmp_path, capsys):
  paths = [f'one={write("a", draw(0))}', f'two={write("b", draw(1))}']
  output = tmp_path / 'report'
  settings = ['--set', 'RESAMPLES=20', '--set', 'REWARD=letter_share']
  assert main.main(['answers', *paths, f'--output={output}', *settings, '--json']) == 0
  printed = json.loads(capsys.readouterr().out)
  want = json.loads(json.dumps(compare_answers(paths, resamples=20, reward='letter_share')))
  assert printed == want == json.loads((output / 'answers.json').read_text())
  assert '## Difference from one' in (output / 'answers.md').read_text()
  assert main.main(['answers', *paths, '--set', 'RESAMPLES=20']) == 0
  assert 'self-BLEU' in capsys.readouterr().out
  assert main.main(['answers', paths[0], paths[0].replace('one=', '')]) == 2
  assert 'is named twice' in capsys.readouterr().err
