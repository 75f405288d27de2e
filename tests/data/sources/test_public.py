"""Public data sets, on generated files of the same schema."""

import gzip
import json
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dro_jax.data.batches import groups, plan
from dro_jax.data.sources import find
from dro_jax.data.triplets import Triplets, load_triplets
from dro_jax.errors import UsageError

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import seqio
  import tensorflow_datasets  # noqa: F401

from dro_jax.data.sources import public
from dro_jax.data.sources.public_records import COMET_REWARDS, DIALOGUE_REWARDS, REDDIT_REWARDS


def write(path, records) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.parquet':
    pq.write_table(pa.Table.from_pylist(records), path)
    return
  text = ''.join(json.dumps(record) + '\n' for record in records)
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())


def completion(response='Fine.', overall=7.0, ratings=('4', '5', '3', 'N/A')) -> dict:
  aspects = ('instruction_following', 'honesty', 'truthfulness', 'helpfulness')
  return {
    'model': 'gpt-4', 'principle': 'helpfulness', 'custom_system_prompt': 'Help.', 'response': response,
    'annotations': {
      aspect: {'Rating': rating, 'Rationale': 'Because.'} for aspect, rating in zip(aspects, ratings)
    },
    'overall_score': overall, 'fine-grained_score': 4.0, 'critique': 'Good.',
  }  # fmt: skip


def instruction(number: int, completions=None) -> dict:
  if completions is None:
    completions = [completion(f'Answer {i} to {number}.', float(i)) for i in range(4)]
  return {
    'source': 'flan', 'instruction': f'Do {number}.', 'models': ['gpt-4'] * 4, 'completions': completions,
    'correct_answers': ['None'], 'incorrect_answers': ['None'],
  }  # fmt: skip


def dialogue(number: int, answer: str) -> str:
  return f'\n\nHuman: Hello {number}.\n\nAssistant: Hi!\n\nHuman: How?\n\nAssistant: {answer}'


def pairs(first: int, count: int) -> list[dict]:
  return [
    {'chosen': dialogue(i, f'Good {i}.'), 'rejected': dialogue(i, f'Bad {i}.')}
    for i in range(first, first + count)
  ]


def comparison(number: int, split='train', choice=1, **info) -> dict:
  post = {
    'id': f't3_{number}', 'post': f'Post {number}.', 'title': 'Title', 'subreddit': 'AskReddit', 'site': None,
    'article': None,
  }  # fmt: skip
  return {
    'info': post | info,
    'summaries': [{'text': f' Summary {i}.', 'policy': 'sup2', 'note': None} for i in range(2)],
    'choice': choice, 'worker': 'w', 'batch': 'batch3', 'split': split, 'extra': {'confidence': None},
  }  # fmt: skip


def rating(number: int, split='valid2', overall: int | None = 6) -> dict:
  whole = comparison(number, split)
  axes = {'overall': overall, 'accuracy': 7, 'coverage': None, 'coherence': 5, 'compatible': None}
  summary = {'text': 'Short.', 'policy': 'ref', 'note': None, 'axes': axes}
  return {name: whole[name] for name in ('info', 'worker', 'batch', 'split')} | {'summary': summary}


def turn(response: str, original: str | None, begin=('Hallucination',)) -> dict:
  return {
    'history': ['Do you like jazz?', 'Yes.'], 'speaker': 'Wizard',
    'knowledge': ' Jazz began in New Orleans. ',
    'original_response': original, 'response': response, 'BEGIN': list(begin), 'VRM': ['Disclosure'],
  }  # fmt: skip


def rewarded(number: int, *components: str) -> dict:
  scores = dict.fromkeys(components, 0.5)
  return {
    'id': number, 'prompt_or_input_text': f'Knowledge: k{number}<|endoftext|>Hi?<|endoftext|>',
    'references': f'Yes {number}.<|endoftext|>', 'meta_data': {},
    'reward_components': scores | {'final_reward': sum(scores.values())},
  }  # fmt: skip


def ranked(number: int, better='Yes.', worse='No.', rewards=(1.0, -1.0)) -> dict:
  turns = [f'<|prompter|>Hello {number}.', '<|assistant|>Hi!', '<|prompter|>How?', '<|assistant|>']
  return {
    'meta': {'path': 'harmless-base/train.jsonl', 'line_num': number}, 'prefix': [turns, turns],
    'suffix': [better, worse], 'reward': list(rewards), 'sft_index': 0,
  }  # fmt: skip


def own_summary(number: int, **fields) -> dict:
  post = {'id': f't3_{number}', 'subreddit': 'AskReddit', 'title': 'Title', 'post': f'Post {number}.'}
  return post | {'summary': f'So {number}.'} | fields


def knowledge(number: int, split='train', **fields) -> dict:
  return {
    'head': f'PersonX does {number} ', 'relation': 'xWant', 'tail': 'to rest', 'split': split,
    'rec_0.9': True, 'p_valid_model': 0.75,
  } | fields  # fmt: skip


COMMENT = (
  'id,parent_id,subreddit_id,link_id,text,score,ups,author,controversiality,parent_link_id,parent_text,'
  'parent_score,parent_ups,parent_author,parent_controversiality\n'
)


def comment(number: int, text='"Nice,\none."', score='70', parent='A parent  here.') -> str:
  return f'c{number},p,s,l,{text},{score},{score},me,0,l,{parent},12,12,you,0\n'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def load(name, folder, **options) -> Triplets:
  defaults = {'prompt_length': 256, 'response_length': 64, 'validation_fraction': 0}
  return load_triplets(name, data_dir=str(folder), **defaults | options)


def triplets(name, folder, **options) -> list[tuple]:
  train = load(name, folder, **options).train
  return list(zip(train.prompts, train.responses, train.rewards))


@pytest.fixture
def hh(tmp_path):
  """A folder of all tranches of Anthropic HH: 10 pairs each, 2 for testing."""
  for i, tranche in enumerate(
    ('helpful-base', 'helpful-online', 'helpful-rejection-sampled', 'harmless-base')
  ):
    write(tmp_path / 'hh-rlhf' / tranche / 'train.jsonl.gz', pairs(100 * i, 10))
    write(tmp_path / 'hh-rlhf' / tranche / 'test.jsonl.gz', pairs(100 * i + 50, 2))
  return tmp_path


@pytest.fixture
def ultrafeedback(tmp_path):
  write(tmp_path / 'UltraFeedback' / 'flan.jsonl', [instruction(i) for i in range(20)])
  write(tmp_path / 'UltraFeedback' / 'sharegpt.jsonl', [instruction(20)])
  return tmp_path


# --- what records become


def test_ultrafeedback_gives_four_responses_a_prompt(ultrafeedback):
  found = load('ultrafeedback', ultrafeedback).train
  assert (len(found), len(np.unique(found.prompt_index))) == (84, 21)
  assert (found.prompts[5], found.responses[5], found.rewards[5]) == ('Do 1.', 'Answer 1 to 1.', 1)
  assert found.ids[5] == 'flan.jsonl:2/1'
  held = load('ultrafeedback', ultrafeedback, validation_fraction=0.3)
  assert not set(held.train.prompts) & set(held.eval.prompts)


def test_ultrafeedbacks_fine_grained_reward_is_the_mean_of_the_existing_ratings(tmp_path):
  completions = [completion(ratings=ratings) for ratings in (('4', '5', '3', 'N/A'), ('1', '1', '1', '2'))]
  write(tmp_path / 'flan.jsonl', [instruction(0, completions)])
  assert [reward for *_, reward in triplets('ultrafeedback_fine_grained', tmp_path)] == [4, 1.25]


@pytest.mark.parametrize('name, kept', [('ultrafeedback', 2), ('ultrafeedback_fine_grained', 3)])
def test_ultrafeedbacks_known_gaps_are_counted_in_one_warning(tmp_path, caplog, name, kept):
  unrated = completion('Unrated.', float('nan'))
  del unrated['annotations']['helpfulness']['Rating']
  completions = [completion(), completion(' \n'), unrated, completion('None.', None, ('N/A',) * 4)]
  records = [instruction(0, completions), instruction(1, []), instruction(2, [completion('\ud800 half')])]
  write(tmp_path / 'flan.jsonl', records)
  with caplog.at_level('WARNING', 'dro_jax.data.sources.public'):
    found = triplets(name, tmp_path)
  assert (len(found), found[-1][1]) == (kept, '? half')
  (message,) = [r.getMessage() for r in caplog.records if r.name == 'dro_jax.data.sources.public']
  assert message.startswith(f'{name}[train]: {kept} triplets; left out: ')
  for part in ('1 with no completions', '1 with an empty response', f'{4 - kept} with no score'):
    assert part in message


def test_hh_is_split_at_the_last_turn(hh):
  prompt = '\n\nHuman: Hello 0.\n\nAssistant: Hi!\n\nHuman: How?\n\nAssistant:'
  assert triplets('hh_helpful_base', hh)[:2] == [(prompt, 'Good 0.', 1), (prompt, 'Bad 0.', 0)]
  assert len(triplets('hh_helpful', hh)) == 60
  found = load('hh_harmless', hh, eval_triplets='hh_harmless', eval_task_split='test')
  assert (len(found.train), len(found.eval)) == (20, 4)


def test_hhs_tranches_have_names_of_their_own(hh):
  for name, first in (('hh_helpful_base', 0), ('hh_helpful_online', 100), ('hh_helpful_rejection', 200)):
    assert triplets(name, hh)[0][1] == f'Good {first}.'
    assert len(load(name, hh, eval_triplets=name, eval_task_split='test').eval) == 4


@pytest.fixture
def hh_rewarded(tmp_path):
  """A folder as PRO's data.zip has it."""
  cut = ranked(3, better='Here is a list:')
  write(tmp_path / 'data/hh_train_len2/train.json', [ranked(0), ranked(1, rewards=(0.0, -40.0)), cut])
  write(tmp_path / 'data/hh_dev/sampled_dev.json', [ranked(4, worse='Cut:')])
  for i, part in enumerate(('harmless_base', 'helpful_base', 'helpful_online', 'helpful_rejection')):
    write(tmp_path / f'data/hh_test/{part}.json', [ranked(10 + i)])
  return tmp_path


def test_hhs_rewards_are_the_sigmoid_of_the_scores_of_pro(hh_rewarded, caplog):
  found = load('hh_rewarded', hh_rewarded, eval_triplets='hh_rewarded')
  prompt = '\n\nHuman: Hello 0.\n\nAssistant: Hi!\n\nHuman: How?\n\nAssistant:'
  assert [found.train.prompts[0], *found.train.responses] == [prompt, 'Yes.', 'No.', 'Yes.', 'No.']
  np.testing.assert_allclose(found.train.rewards, 1 / (1 + np.exp([-1.0, 1.0, 0.0, 40.0])), rtol=1e-6)
  assert found.train.columns['score'].tolist() == [1, -1, 0, -40]
  assert '1 with an answer of the pair that ends in a colon' in caplog.text
  assert list(found.eval.responses) == ['Yes.', 'Cut:']
  pair = groups.form(found.train, 'pair', groups.UnitOptions())
  assert (pair.report['pairs'], pair.report['units']) == ('logged', 2)


def test_hhs_better_answers_are_a_data_set_of_their_own(hh_rewarded):
  found = load(
    'hh_rewarded_chosen', hh_rewarded, eval_triplets='hh_rewarded', eval_task_split='test_helpful_online'
  )
  assert list(found.train.responses) == ['Yes.', 'Yes.']
  assert found.eval.prompts[0].startswith('\n\nHuman: Hello 12.')
  assert len(load('hh_rewarded', hh_rewarded, task_split='test').train) == 8


def test_hh_without_a_last_answer_is_left_out(tmp_path, caplog):
  record = {'chosen': dialogue(0, ''), 'rejected': dialogue(0, 'So.\n\nHuman: Bye.')}
  write(tmp_path / 'harmless-base/train.jsonl', [record, *pairs(1, 1)])
  assert len(triplets('hh_harmless', tmp_path)) == 2
  assert "1 with an empty response, 1 with a last turn that is not the assistant's" in caplog.text


@pytest.mark.parametrize('layout', ['hub', 'authors'])
def test_tldr_comparisons_are_two_triplets_each(tmp_path, caplog, layout):
  records = [comparison(0), comparison(1, post=None, article='News.'), comparison(2, 'valid1', choice=0)]
  if layout == 'hub':
    write(tmp_path / 'comparisons/train/0000.parquet', records[:2])
    write(tmp_path / 'comparisons/validation/0000.parquet', records[2:])
  else:
    write(tmp_path / 'comparisons/batch3.json', records)
  prompt = 'SUBREDDIT: r/AskReddit\n\nTITLE: Title\n\nPOST: Post {}.\n\nTL;DR:'
  found = load('tldr_comparisons', tmp_path, eval_triplets='tldr_comparisons')
  rows = [(*row,) for part in found[:2] for row in zip(part.prompts, part.responses, part.rewards)]
  assert rows == [
    (prompt.format(0), 'Summary 0.', 0), (prompt.format(0), 'Summary 1.', 1),
    (prompt.format(2), 'Summary 0.', 1), (prompt.format(2), 'Summary 1.', 0),
  ]  # fmt: skip
  assert '1 with a news article' in caplog.text


@pytest.mark.parametrize('layout', ['hub', 'authors'])
def test_tldrs_own_summaries_have_the_prompts_of_its_comparisons_and_no_reward(tmp_path, layout):
  if layout == 'hub':
    write(tmp_path / 'default/train/0000.parquet', [own_summary(0), own_summary(1)])
    write(tmp_path / 'default/validation/0000.parquet', [own_summary(2)])
  else:
    write(tmp_path / 'tldr_3_filtered/train.jsonl', [own_summary(0), own_summary(1)])
    write(tmp_path / 'tldr_3_filtered/valid.jsonl', [own_summary(2)])
  found = load('tldr_sft', tmp_path, eval_triplets='tldr_sft')
  write(tmp_path / 'comparisons/batch3.json', [comparison(0)])
  assert found.train.prompts[0] == load('tldr_comparisons', tmp_path).train.prompts[0]
  assert list(found.train.responses) == ['So 0.', 'So 1.'] and list(found.eval.responses) == ['So 2.']
  assert np.isnan(found.train.rewards).all()


def test_atomic10x_is_rewarded_by_the_critic(tmp_path, caplog):
  records = [knowledge(0), knowledge(1, p_valid_model=None), knowledge(2, 'val'), knowledge(3, 'test')]
  write(tmp_path / 'symbolic_knowledge_distillation/downloaded/ATOMIC10X.jsonl', records)
  found = load('atomic10x', tmp_path, eval_triplets='atomic10x')
  prompt = '<head> PersonX does 0 </head> <relation> xWant </relation> [GEN] '
  assert list(zip(found.train.prompts, found.train.responses, found.train.rewards)) == [
    (prompt, 'to rest', 0.75)
  ]
  assert len(found.eval) == 1 and "1 with no critic's probability" in caplog.text


def test_tldr_axis_gives_the_overall_rating(tmp_path, caplog):
  write(tmp_path / 'axis/validation/0000.parquet', [rating(0), rating(1, overall=None), rating(2, overall=2)])
  train = load('tldr_axis', tmp_path, task_split='validation').train
  assert train.rewards.tolist() == [6, 2]
  assert train.columns['accuracy'].tolist() == [7, 7]
  assert train.report['columns_left_out'] == []
  assert 'coverage' not in train.columns
  assert '1 with no overall rating' in caplog.text


def test_reddit_comments_are_rewarded_by_their_votes(tmp_path, caplog):
  folder = tmp_path / 'reddit_comment_scores_kaggle'
  folder.mkdir()
  long = ' '.join(['word'] * 101)
  up = [comment(0), comment(1, text=''), comment(2, parent=''), comment(3, text=long)]
  (folder / 'comments_positive.csv').write_text(COMMENT + ''.join(up))
  (folder / 'comments_negative.csv').write_text(COMMENT + comment(4, 'Bad.', '-8.0'))
  train = load('reddit_comments', tmp_path).train
  assert list(zip(train.prompts, train.responses)) == [
    ('A parent here.', 'Nice, one.'), ('A parent here.', 'Bad.')
  ]  # fmt: skip
  assert (train.rewards.tolist(), train.columns['score'].tolist()) == ([1, 0], [70, -8])
  for reason in ('1 with no text', '1 with no parent_text', '1 with more than 100 words'):
    assert reason in caplog.text


@pytest.mark.parametrize(
  'name, folder, train, components',
  [
    (
      'reddit_upvoted',
      'reddit_comment_scores_kaggle/preprocessed',
      'pos_train',
      REDDIT_REWARDS,
    ),
    (
      'reddit_downvoted',
      'reddit_comment_scores_kaggle/preprocessed',
      'neg_train',
      REDDIT_REWARDS,
    ),
    ('comet_rewarded', 'comet_rewarded', 'train', COMET_REWARDS),
    ('wow_rewarded', 'wow/preprocessed_and_rewarded', 'train', DIALOGUE_REWARDS),
    ('faithdial_rewarded', 'faithdial/preprocessed_and_rewarded', 'train', DIALOGUE_REWARDS),
    (
      'faithdial_wow_rewarded',
      'faithdial_wow/preprocessed_and_rewarded',
      'train',
      DIALOGUE_REWARDS,
    ),
  ],
)
def test_a_lols_files_keep_their_rewards(tmp_path, name, folder, train, components):
  write(tmp_path / folder / f'{train}.jsonl', [rewarded(i, *components) for i in range(3)])
  write(tmp_path / folder / 'val.jsonl', [rewarded(9, *components)])
  found = load(name, tmp_path, eval_triplets=name)
  assert (found.train.prompts[1], found.train.responses[1]) == ('Knowledge: k1\nHi?', 'Yes 1.')
  assert set(found.train.rewards) == {0.5 * len(components)}
  assert sorted(found.train.columns) == sorted(components)
  assert found.eval.responses[0] == 'Yes 9.'


@pytest.mark.parametrize('layout', ['dialogues', 'rows'])
def test_faithdials_edits_get_more_reward_than_the_replaced_responses(tmp_path, layout):
  turns = [turn('True.', 'False.'), turn('Kept.', None), turn('Neater.', 'Neat.', ('Entailment',))]
  if layout == 'rows':
    write(tmp_path / 'plain_text/train/0000.parquet', [{'dialog_idx': 0} | turn for turn in turns])
  else:
    (tmp_path / 'data').mkdir()
    whole = [{'dialog_idx': 0, 'utterances': turns[:2]}, {'utterances': turns[2:]}]
    (tmp_path / 'data/train.json').write_text(json.dumps(whole, indent=1))
  found = triplets('faithdial', tmp_path)
  assert found[0] == ('Knowledge: Jazz began in New Orleans.\nDo you like jazz?\nYes.', 'True.', 1)
  assert [row[1:] for row in found[1:]] == [('False.', 0), ('Kept.', 1), ('Neater.', 1)]


# --- what is amiss


def changed(record: dict, **fields) -> dict:
  return {name: value for name, value in (record | fields).items() if value is not None}


BAD = {
  'no instruction': (
    'ultrafeedback', 'a.jsonl', changed(instruction(0), instruction=None), "'instruction' is missing"
  ),
  'completions': (
    'ultrafeedback', 'a.jsonl', changed(instruction(0), completions={}), "'completions' is {}, a dict"
  ),
  'no response': (
    'ultrafeedback', 'a.jsonl', instruction(0, [changed(completion(), response=None)]),
    "'completions.0.response' is missing; the place of 'response' holds model, principle",
  ),
  'a word as score': (
    'ultrafeedback', 'a.jsonl', instruction(0, [completion(overall='high')]),
    "'completions.0.overall_score' is 'high'; it must be a number",
  ),
  'a word as rating': (
    'ultrafeedback_fine_grained', 'a.jsonl', instruction(0, [completion(ratings=('good',))]),
    "'completions.0.annotations.instruction_following.Rating' is 'good'",
  ),
  'no rejected': (
    'hh_harmless', 'harmless-base/train.jsonl', {'chosen': dialogue(0, 'a')}, "'rejected' is missing"
  ),
  'no turn': ('hh_harmless', 'harmless-base/train.jsonl', {'chosen': 'Hi'}, "'chosen' has no turn"),
  'a third choice': ('tldr_comparisons', 'comparisons/a.json', comparison(0, choice=2), "'choice' is 2 of 2"),
  'no subreddit': ('tldr_comparisons', 'comparisons/a.json', comparison(0, subreddit=None), "'info.subred"),
  'no rewards': (
    'wow_rewarded', 'train.jsonl', changed(rewarded(0, 'depth'), reward_components=None),
    "'reward_components.final_reward' is missing",
  ),
  'no score': (
    'hh_rewarded', 'hh_train_len2/train.json', changed(ranked(0), reward=None),
    "'reward.0' is missing",
  ),
  'one answer': (
    'hh_rewarded_chosen', 'hh_train_len2/train.json', ranked(0) | {'suffix': ['Yes.']}, "'suffix.1'",
  ),
  'no own summary': ('tldr_sft', 'train.jsonl', own_summary(0, summary=3), "'summary' is 3, a int"),
  'no relation': (
    'atomic10x', 'ATOMIC10X.jsonl', changed(knowledge(0), relation=None), "'relation' is missing"
  ),
  'no history': (
    'faithdial', 'data/train.json', changed(turn('a', None), history=None), "'history' is missing"
  ),
}  # fmt: skip


@pytest.mark.parametrize('case', BAD)
def test_the_error_of_a_bad_record_names_file_line_and_field(tmp_path, case):
  name, path, record, message = BAD[case]
  write(tmp_path / path, [record])
  with pytest.raises(UsageError, match=message) as error:
    load(name, tmp_path)
  assert str(error.value).startswith(f'{tmp_path / path}:1: field ')


def test_the_error_of_a_damaged_file_names_it(tmp_path):
  path = tmp_path / 'data/train.json'
  path.parent.mkdir()
  for text, message in (('[{"a": 1', 'not JSON'), ('[1]', 'train.json:1: a JSON int'), ('[]', 'no records')):
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
      load('faithdial', tmp_path)


def test_the_error_of_a_missing_file_says_where_to_get_it(hh):
  (hh / 'hh-rlhf/helpful-online/train.jsonl.gz').unlink()
  with pytest.raises(
    UsageError, match=r'no helpful-online/train.jsonl.gz or .* get it from huggingface.co/.*DATA_DIR'
  ):
    load('hh_helpful', hh)


# --- downloads


def load_downloaded(name) -> Triplets:
  return load_triplets(name, prompt_length=64, response_length=64, validation_fraction=0)


def test_without_a_folder_the_hubs_snapshot_is_read(hh, monkeypatch):
  asked = {}

  def snapshot_download(repo, **options) -> str:
    asked.update(options, repo=repo)
    return str(hh / 'hh-rlhf')

  monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
  assert len(load_downloaded('hh_harmless').train) == 20
  assert (asked['repo'], asked['repo_type'], asked['revision']) == ('Anthropic/hh-rlhf', 'dataset', None)
  assert 'harmless-base/train.jsonl.gz' in asked['allow_patterns']


def test_the_error_of_a_failed_download_names_the_alternative(monkeypatch):
  def snapshot_download(repo, **options) -> str:
    raise ConnectionError('no route')

  monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
  with pytest.raises(
    UsageError, match=r'cannot download openai/summarize_from_feedback \(ConnectionError: no rou.*DATA'
  ):
    load_downloaded('tldr_comparisons')
  with pytest.raises(
    UsageError, match=r"'reddit_comments' is not on the Hugging Face Hub; get it from kaggle"
  ):
    load_downloaded('reddit_comments')


def test_the_error_without_the_hubs_client_names_the_extra_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UsageError, match=r"pip install 'dro_jax\[hf\]'"):
    load_downloaded('ultrafeedback')


# --- mixtures


def test_names_separated_by_commas_give_all_records_once(hh, ultrafeedback):
  found = load('ultrafeedback, hh_harmless', hh)
  assert (len(found.train), found.train.weights) == (84 + 20, None)
  assert list(found.train.ids) == [
    *load('ultrafeedback', hh).train.ids, *load('hh_harmless', hh).train.ids
  ]  # fmt: skip
  batches = plan.Plan.from_table(found.train, 8, seed=0)
  drawn = np.concatenate([batches.batch(step) for step in range(13)])
  assert sorted(drawn) == list(range(104))
  assert load(['ultrafeedback', 'hh_harmless'], hh).report['train_records'] == 104
  with pytest.raises(UsageError, match="'hh_harmless' is named twice"):
    load('hh_harmless,hh_harmless', hh)


MODULE = """
import dro_jax.data.sources.public
import seqio

seqio.MixtureRegistry.add('public_mix', [('ultrafeedback', 3.0), ('hh_harmless', 1.0)])
"""


@pytest.fixture
def module(tmp_path):
  """A user's module with a mixture of public data sets."""
  path = tmp_path / 'public_mixture.py'
  path.write_text(MODULE)
  yield str(path)
  seqio.MixtureRegistry.remove('public_mix')
  del sys.modules['public_mixture']


def test_a_mixture_draws_by_its_rates(hh, ultrafeedback, module):
  train = load('public_mix', hh, task_modules=module).train
  assert len(train) == 104
  dialogues = np.array([prompt.startswith('\n\nHuman') for prompt in train.prompts])
  assert train.weights[dialogues].sum() / train.weights.sum() == pytest.approx(0.25)
  batches = plan.Plan.from_table(train, 8, seed=0)
  drawn = np.concatenate([batches.batch(step) for step in range(130)])
  assert dialogues[drawn].mean() == pytest.approx(0.25, abs=0.05)
  with pytest.raises(UsageError, match="'public_mix' is a mixture by rate.*name its tasks"):
    load('public_mix,hh_helpful', hh)


def test_the_error_of_a_mixture_that_counts_examples_names_the_alternative(hh):
  seqio.MixtureRegistry.add(
    'counted', ['hh_harmless', 'hh_helpful'], default_rate=seqio.mixing_rate_num_examples
  )
  with pytest.raises(UsageError, match='every record once: hh_harmless,hh_helpful'):
    load('counted', hh)
  seqio.MixtureRegistry.remove('counted')


def test_a_changed_file_gives_a_new_table(hh):
  before = find.find('hh_harmless', data_dir=str(hh)).fingerprint
  assert find.find('hh_harmless', data_dir=str(hh / 'hh-rlhf')).fingerprint == before
  write(hh / 'hh-rlhf/harmless-base/train.jsonl.gz', pairs(0, 11))
  assert find.find('hh_harmless', data_dir=str(hh)).fingerprint != before


def test_every_data_set_is_a_task_with_its_splits():
  for name, data in public.DATASETS.items():
    assert set(seqio.TaskRegistry.get(name).splits) == set(data.files)


def test_public_comparisons_stay_pairs(hh, tmp_path):
  found = load('hh_helpful,hh_harmless', hh)
  formed = groups.form(found.train, 'pair', groups.UnitOptions())
  assert formed.report['pairs'] == 'logged'
  assert formed.report['units'] == len(found.train) // 2 == 40
  assert all(
    chosen.startswith('Good') and rejected == chosen.replace('Good', 'Bad')
    for chosen, rejected in ([formed.table.responses[i] for i in row] for row in formed.members)
  )
  write(tmp_path / 'comparisons/batch3.json', [comparison(0), comparison(1), comparison(0, choice=0)])
  summaries = load('tldr_comparisons', tmp_path).train
  formed = groups.form(summaries, 'pair', groups.UnitOptions())
  assert (formed.report['pairs'], formed.report['ties_dropped']) == ('logged', 0)
  assert formed.report['units'] == len(summaries) // 2
