"""Reward models as rewards: imported ones score as transformers, trained ones as their runs."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import torch
import transformers

from dro_jax import algorithms
from dro_jax.checkpoints.import_checkpoint import import_checkpoint
from dro_jax.data import triplets
from dro_jax.errors import UsageError
from dro_jax.evaluation import evaluate
from dro_jax.evaluation.judge.judges import Comparison, make_judge
from dro_jax.models.lora import Lora
from dro_jax.models.t5.config import T5Config
from dro_jax.parallel import partitioning
from dro_jax.recipes.score import score
from dro_jax.run import schedule, trained
from dro_jax.run import train as training
from dro_jax.run.build import build
from dro_jax.run.sampling import reward_models, rewards
from dro_jax.run.sampling.rollouts import RolloutOptions
from dro_jax.step import optimizers
from tests import runs
from tests.checkpoints import tiny_tokenizer
from tests.checkpoints.test_reward_models import import_model, make_torch
from tests.evaluation.test_generate import save
from tests.tiers import tiers

MODEL = T5Config(emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1)


def one_device():
  return partitioning.make_mesh(devices=jax.devices()[:1])


def write_comparisons(path, count=64):
  """People prefer the answer with an x; the model has to read responses, whose prompts say nothing."""
  rng = np.random.default_rng(0)
  with open(path, 'w') as file:
    for i in range(count):
      good, bad = (
        letter + ''.join(rng.choice(list('ab'), rng.integers(2, 6)))
        for letter in ('x', rng.choice(['a', 'b']))
      )
      file.write(json.dumps({'id': f'c{i}', 'prompt': f'say {i}', 'chosen': good, 'rejected': bad}) + '\n')
  return str(path)


def train(folder, path, algorithm, steps=60, **changes):
  data = functools.partial(
    triplets.load_triplets, path, prompt_length=16, response_length=16, validation_fraction=0.3,
    cache_dir=str(pathlib.Path(path).parent / 'cache'), **changes.pop('data', {}),
  )  # fmt: skip
  settings = {'model': MODEL, 'value_readout': 'response', **changes}
  runs.train(
    folder, data, algorithm, batch_size=16, mesh=one_device,
    schedule=functools.partial(
      schedule.Schedule, steps=steps, log_every=20, eval_every=steps, sample_prompts=0, kl_prompts=0
    ),
    value_optimizer=functools.partial(optimizers.adamw, 0.01), **settings,
  )  # fmt: skip
  return str(folder)


def records(folder):
  return [json.loads(line) for line in (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def comparisons(tmp_path_factory):
  return write_comparisons(tmp_path_factory.mktemp('data') / 'c.jsonl')


@pytest.fixture(scope='module')
def proxy(comparisons, tmp_path_factory):
  """A Bradley-Terry model that has learnt to prefer the x."""
  return train(tmp_path_factory.mktemp('runs') / 'proxy', comparisons, algorithms.bradley_terry)


def test_a_bradley_terry_run_learns_preferences_and_measures_them_on_held_out_pairs(proxy):
  first, last = (
    record for record in records(proxy) if 'eval/pair_accuracy' in record and record['step'] in (0, 60)
  )
  # A head of zeros ties every pair: a chance of a half, whose Brier score is a quarter.
  start = {'eval/pair_accuracy': 0.5, 'eval/pair_margin': 0, 'eval/pair_brier': 0.25}
  assert {name: first[name] for name in start} == start
  assert first['eval/pair_calibration_error'] == 0 and first['eval/loss'] == pytest.approx(np.log(2))
  assert last['eval/pair_accuracy'] > 0.95 and last['eval/pair_margin'] > 1
  assert last['eval/pair_brier'] < 0.1 and last['eval/within_prompt_accuracy/score'] > 0.95
  assert 0 <= last['eval/pair_calibration_error'] < 0.3
  # Logits are no rewards, whose variance they would explain.
  assert not any('explained_variance' in name for record in records(proxy) for name in record)


def test_a_step_of_a_reward_model_takes_no_log_probs_of_the_policy(proxy):
  steps = [record for record in records(proxy) if 'pair_margin' in record]
  assert steps and not any('logp' in record for record in steps)
  assert {record['gradient_norm/policy'] for record in steps} == {0.0}
  assert {'pair_accuracy', 'loss/value', 'value'} <= steps[0].keys()


def test_a_run_says_that_it_is_a_proxy_and_what_its_scores_are(proxy):
  described = json.loads((pathlib.Path(proxy) / 'run.json').read_text())
  assert (described['role'], described['scores']) == ('proxy', 'preferences')
  assert described['value'] == {'readout': 'response', 'shared': False}


def test_a_reward_is_the_score_that_its_run_gives(proxy, comparisons):
  run = trained.load_run(proxy, one_device())
  data = triplets.load_triplets(
    comparisons, vocabulary=run.vocabulary, validation_fraction=0, cache_dir=f'{proxy}/c', **run.data_options
  )
  table = data.train
  expected = trained.score_table(run, table, one_device()).values
  model = rewards.find(proxy)
  assert model is rewards.find(proxy)  # Its parameters are loaded once.
  found = rewards.reward_responses(model, [*table.prompts], [*table.responses])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  # Batches and meshes change no score; neither does what stands beside a text.
  few = reward_models.RewardModel(proxy, one_device(), batch_size=3)
  np.testing.assert_allclose(few(table.prompts[:7], table.responses[:7]), expected[:7], rtol=1e-4, atol=1e-5)


def test_a_reward_model_judges_on_the_devices_of_its_command(proxy, tmp_path):
  judge = make_judge(tmp_path, reward=proxy, mesh=one_device)
  asked = [Comparison('say 1', 'xab', 'aab'), Comparison('say 2', 'bab', 'xba')]
  assert [verdict.score for verdict in judge.judge(asked).verdicts] == [1.0, 0.0]
  assert vars(rewards.find(proxy, mesh=one_device()))['_loaded'].mesh == one_device()
  assert judge.record == rewards.record_of(proxy)


def test_an_empty_answer_has_a_reward_and_a_long_one_is_cut_as_in_training(proxy):
  model = rewards.find(proxy)
  empty, cut, whole = model(['say 1'] * 3, ['', 'x' * 16, 'x' * 40])
  assert np.isfinite(empty) and cut == pytest.approx(whole)
  assert model(['p' * 40], ['x']) == pytest.approx(model(['p' * 15], ['x']))


def test_a_prompt_is_put_into_the_models_template_once(proxy):
  """The prompts of a run with the same template come with it."""
  model = reward_models.RewardModel(proxy, one_device())
  data = model._saved['data']
  model._saved['data'] = data | {'options': data['options'] | {'template': 'Q: {prompt}'}}
  plain, framed, whole = model(['say 1', 'Q: say 1', 'Q: say 2'], ['ax'] * 3)
  assert plain == pytest.approx(framed) == pytest.approx(rewards.find(proxy)(['Q: say 1'], ['ax'])[0])
  assert framed != pytest.approx(whole, abs=1e-6)


def test_name_code_and_role_are_those_of_the_run(proxy):
  model = rewards.find(proxy)
  assert (rewards.name_of(model), model.reward_role) == ('proxy', 'proxy')
  assert rewards.code_of(proxy) == model.reward_code and len(model.reward_code) > 16
  assert rewards.record_of(proxy) == {'name': 'proxy', 'code': model.reward_code, 'role': 'proxy'}


@pytest.mark.long
def test_a_run_on_scored_data_records_the_model_and_warns_where_it_measures_too(proxy, tmp_path):
  record = {'prompt': 'say 1', 'response': 'x', 'source': 'web'}
  lines = (json.dumps(record | {'response': 'xab'[: i % 3 + 1], 'prompt': f'say {i}'}) for i in range(24))
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines) + '\n')
  score(str(tmp_path / 'a.jsonl'), proxy, str(tmp_path / 'scored.jsonl'))
  data = functools.partial(
    triplets.load_triplets,
    str(tmp_path / 'scored.jsonl'),
    validation_fraction=0.3,
    cache_dir=str(tmp_path / 'c'),
  )
  rollouts = RolloutOptions(reward=proxy)
  run = build(
    runs.spec(data, algorithms.dro_v, model=MODEL, batch_size=8, mesh=one_device, rollouts=rollouts)
  )
  assert any(note.startswith('warning: proxy judges a policy that was trained on') for note in run.notes())
  model = rewards.record_of(proxy)
  saved = training._metadata(run, tmp_path / 'run')
  assert saved['rewards'] == {'trained_on': [model], 'measured_by': model}
  assert rewards.why_not_judge(model, json.loads(json.dumps({'rewards': saved['rewards']})))


def test_evaluate_measures_a_reward_model_on_pairs(proxy, comparisons):
  data = functools.partial(triplets.load_triplets, comparisons, validation_fraction=0, cache_dir=f'{proxy}/c')
  found = evaluate.evaluate(proxy, data, mesh=runs.LaidOut(make=one_device), resamples=20)
  assert found['pairs']['pairs'] == 64 and found['pairs']['formed'] == 'logged'
  assert found['pairs']['pair_accuracy']['value'] > 0.95
  assert found['pairs']['pair_calibration_error']['low'] <= found['pairs']['pair_calibration_error']['value']
  assert found['within_prompts']['accuracy']['score']['value'] > 0.95
  assert 'score' not in found['across_prompts'] and 'value_explained_variance' not in found['statistics']


@pytest.mark.long
def test_a_regression_gives_rewards_in_their_own_units(tmp_path):
  path = tmp_path / 't.jsonl'
  rng = np.random.default_rng(0)
  with open(path, 'w') as file:
    for i in range(96):
      good = rng.random() < 0.5
      record = {'prompt': f'say {i}', 'response': ('x' if good else 'a') * 3, 'reward': 200 + 50 * good}
      file.write(json.dumps(record) + '\n')
  folder = train(
    tmp_path / 'gold', str(path), functools.partial(algorithms.reward_regression, role='gold'),
    data={'scaling': 'standardise'},
  )  # fmt: skip
  model = rewards.find(folder)
  assert model.reward_role == 'gold'
  np.testing.assert_allclose(model(['say 5', 'say 5'], ['xxx', 'aaa']), [250, 200], atol=5)
  last = records(folder)[-1]
  assert last['eval/value_explained_variance'] > 0.9 and 'eval/pair_brier' not in last


@pytest.mark.long
def test_a_reward_model_with_adapters_scores_as_its_run(comparisons, proxy, tmp_path):
  settings = {'model': None, 'init_from': proxy, 'lora': Lora(rank=2)}
  folder = train(tmp_path / 'adapted', comparisons, algorithms.bradley_terry, steps=2, **settings)
  run = trained.load_run(folder, one_device())
  data = triplets.load_triplets(
    comparisons, vocabulary=run.vocabulary, validation_fraction=0, cache_dir=f'{proxy}/c', **run.data_options
  )
  expected = trained.score_table(run, data.train, one_device()).values[:6]
  found = rewards.find(folder)(data.train.prompts[:6], data.train.responses[:6])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert np.ptp(found) > 0


@pytest.mark.parametrize('kind', tiers(['qwen3'], ['llama', 'qwen3', 'neox']))
def test_an_imported_classifier_reads_conversations_by_its_template_as_transformers(tmp_path, kind):
  model = make_torch(kind)
  import_model(model, tmp_path)
  turns = [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'yes?'}]
  asked = [[{'role': 'user', 'content': 'ab c'}], [*turns, {'role': 'user', 'content': 'b'}]]
  prompts, responses = ['ab c', json.dumps(asked[1])], ['ca', 'b a']
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'theirs')
  expected = []
  for before, response in zip(asked, responses):
    text = tokenizer.apply_chat_template(
      [*before, {'role': 'assistant', 'content': response}], tokenize=False
    )
    ids = tokenizer(text, add_special_tokens=False)['input_ids']
    with torch.no_grad():
      expected.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
  assert np.ptp(expected) > 0.01
  found = rewards.find(str(tmp_path / 'ours'))
  np.testing.assert_allclose(found(prompts, responses), expected, rtol=1e-4, atol=1e-5)
  assert found.reward_role is None


def test_an_imported_classifier_reads_what_its_template_writes_behind_the_last_turn(tmp_path):
  """As Qwen's, whose turns end in a line feed: transformers reads the score at that token."""
  model = make_torch('qwen3')
  model.save_pretrained(tmp_path / 'theirs')
  tiny_tokenizer.write(tmp_path / 'theirs')
  edit = tmp_path / 'theirs' / 'tokenizer_config.json'
  template = "{% for m in messages %}{{ m.role + ':' + m.content }}</s>{{ '--' }}{% endfor %}"
  template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
  edit.write_text(json.dumps(json.loads(edit.read_text()) | {'chat_template': template}))
  import_checkpoint(str(tmp_path / 'theirs'), str(tmp_path / 'ours'))
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'theirs')
  prompts, responses = ['ab c', 'b', 'b'], ['ca', 'b a', '']
  expected = []
  for prompt, response in zip(prompts, responses):
    turns = [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': response}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text.endswith('</s>--')
    ids = tokenizer(text, add_special_tokens=False)['input_ids']
    with torch.no_grad():
      expected.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
  assert np.ptp(expected) > 0.01
  found = rewards.find(str(tmp_path / 'ours'))(prompts, responses)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_folders_without_a_reward_model_are_refused(proxy, tmp_path):
  with pytest.raises(UsageError, match='no checkpoint in .*nowhere: it does not exist'):
    rewards.find(str(tmp_path / 'nowhere'))
  policy = save(tmp_path / 'policy')
  with pytest.raises(UsageError, match=r'has no reward model: pass a run of one \(--gin_file=algorithms/'):
    rewards.find(policy)
