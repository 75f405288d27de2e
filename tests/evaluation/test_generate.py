import dataclasses
import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dro_jax.checkpoints import orbax
from dro_jax.data import triplets
from dro_jax.data.storage.partial import Partial
from dro_jax.data.text import chat, vocabularies
from dro_jax.errors import UsageError
from dro_jax.evaluation import answering, evaluate, generate
from dro_jax.inspection import inspect
from dro_jax.parallel import partitioning
from dro_jax.run import networks
from dro_jax.run.sampling import generation
from dro_jax.run.sampling.prompts import tokenise_prompts
from dro_jax.step import state
from tests.examples import CONFIG

MODEL = dataclasses.replace(CONFIG, vocab_size=384)


def save(folder, seed=0, **metadata):
  nets = networks.build(MODEL, uses_value=False)
  params = networks.initial_params(nets, partitioning.make_mesh(), seed, None)
  described = {'model': dataclasses.asdict(MODEL), 'vocabulary': 'bytes', **metadata}
  orbax.save_params(folder, params['policy'], described)
  return str(folder)


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
  """A random policy's folder, as import_checkpoint writes one."""
  return save(tmp_path_factory.mktemp('policy') / 'imported')


@pytest.fixture(scope='module')
def prompts(tmp_path_factory):
  path = tmp_path_factory.mktemp('prompts') / 'prompts.jsonl'
  path.write_text(''.join(json.dumps({'id': f'p{i}', 'question': f'say {i % 5}'}) + '\n' for i in range(9)))
  return str(path)


def answers(policy, prompts, output, **changes):
  settings = {'columns': 'prompt=question', 'max_length': 6, 'batch_size': 8, **changes}
  result = generate.generate(policy, prompts, output=str(output), **settings)
  records = [json.loads(line) for line in output.read_text().splitlines()]
  assert result['responses'] == len(records)
  return records


def test_every_prompt_is_answered_once_and_batches_change_no_sample(policy, prompts, tmp_path):
  records = answers(policy, prompts, tmp_path / 'a.jsonl')
  assert [record['id'] for record in records] == ['p0', 'p1', 'p2', 'p3', 'p4']
  assert [record['prompt'] for record in records] == [f'say {i}' for i in range(5)]
  assert all(np.isfinite(record['logp']) and record['tokens'] <= 6 for record in records)
  again = answers(policy, prompts, tmp_path / 'b.jsonl', batch_size=16)
  assert [r['response'] for r in again] == [r['response'] for r in records]


def test_several_samples_of_a_prompt_differ_and_greedy_ones_do_not(policy, prompts, tmp_path):
  sampled = answers(policy, prompts, tmp_path / 'a.jsonl', num_samples=2)
  greedy = answers(
    policy, prompts, tmp_path / 'b.jsonl', num_samples=2, temperature=0.0, template='{prompt}!'
  )
  assert any(a['response'] != b['response'] for a, b in zip(sampled[::2], sampled[1::2]))
  assert [r['response'] for r in greedy[::2]] == [r['response'] for r in greedy[1::2]]
  assert greedy[0]['prompt'] == 'say 0'  # The file's own; the template is the policy's affair.


def test_beams_find_more_probable_answers_than_greedy_ones(policy, prompts, tmp_path):
  greedy = answers(policy, prompts, tmp_path / 'a.jsonl', temperature=0.0)
  found = answers(policy, prompts, tmp_path / 'b.jsonl', temperature=0.0, beams=4)
  other = answers(policy, prompts, tmp_path / 'c.jsonl', temperature=0.0, repetition_penalty=50.0)
  means = [[record['logp'] / record['tokens'] for record in records] for records in (greedy, found, other)]
  assert sum(means[1]) > sum(means[0])
  assert [r['response'] for r in other] != [r['response'] for r in greedy]


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'beams': 2}, r'beams=2 with temperature=1.0, .* TEMPERATURE=0'),
    ({'beams': 2, 'temperature': 0.0, 'top_k': 3}, 'leave top_k'),
    ({'beams': 2, 'temperature': 0.0, 'num_samples': 2}, 'one answer to a prompt'),
    ({'beams': 0}, 'beams=0'),
    ({'repetition_penalty': 0.0}, 'repetition_penalty=0.0: pass more than 0'),
  ],
)
def test_settings_that_exclude_each_other_are_refused(settings, message, policy, tmp_path):
  output = tmp_path / 'never.jsonl'
  with pytest.raises(UsageError, match=message):
    generate.generate(policy, prompt='x', output=str(output), **settings)
  assert not output.exists()


def test_where_nothing_can_be_written_nothing_is_answered(policy, prompts, tmp_path, monkeypatch):
  monkeypatch.setattr(generation, 'make_generator', None)
  (tmp_path / 'file').touch()
  for output, message in ((str(tmp_path), 'is a folder'), (str(tmp_path / 'file' / 'a'), 'is a file and')):
    with pytest.raises(UsageError, match=message):
      generate.generate(policy, prompts, output=output, columns='prompt=question')
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_the_folder_of_the_answers_is_made(policy, prompts, tmp_path):
  output = tmp_path / 'new' / 'answers' / 'a.jsonl'
  settings = {'columns': 'prompt=question', 'max_length': 6, 'batch_size': 8}
  drawn = generate.generate(policy, prompts, output=str(output), **settings)['drawn']
  assert drawn == len(output.read_text().splitlines()) > 0


def test_an_output_in_the_home_folder_is_there_whole_or_not_at_all(policy, prompts, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  settings = {'columns': 'prompt=question', 'max_length': 6, 'batch_size': 8}
  assert generate.generate(policy, prompts, output='~/a', **settings)['output'] == str(tmp_path / 'a')
  monkeypatch.setattr(generate.files, 'json_line', lambda record: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    generate.generate(policy, prompts, output='~/b', **settings)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'a.settings']


class Killed(BaseException):
  """What no code of ours catches."""


@pytest.fixture
def killed(monkeypatch):
  """Lets a call write so many batches, and then ends it, as a signal that cannot be handled does."""

  def killed(batches, *arguments, **settings):
    add, left = Partial.add, [batches]

    def add_some(self, records):
      if not left[0]:
        raise Killed
      left[0] -= 1
      add(self, records)

    with monkeypatch.context() as patch:
      patch.setattr(Partial, 'add', add_some)
      with pytest.raises(Killed):
        answers(*arguments, **settings)

  return killed


def test_a_call_that_was_killed_goes_on_to_the_same_file(policy, tmp_path, killed):
  # The second prompt is long, so that batches with it are padded to more, and could round otherwise.
  texts, prompts = ['say 0', 'say 1' + ' more' * 8, 'say 2', 'say 3', 'say 4'], str(tmp_path / 'p.jsonl')
  pathlib.Path(prompts).write_text(''.join(json.dumps({'question': text}) + '\n' for text in texts))
  settings = {'num_samples': 5}  # 25 answers, 8 at a time.
  answers(policy, prompts, tmp_path / 'whole', **settings)
  killed(2, policy, prompts, tmp_path / 'a', **settings)
  partial = tmp_path / 'a.partial'
  # It ended within the second batch's lines.
  partial.write_bytes(partial.read_bytes()[:-40])
  assert not (tmp_path / 'a').exists()
  result = generate.generate(
    policy, prompts, output=str(tmp_path / 'a'), columns='prompt=question', max_length=6, batch_size=8,
    **settings,
  )  # fmt: skip
  assert (result['responses'], result['drawn']) == (25, 10)
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'whole').read_bytes()
  assert sorted(path.name for path in tmp_path.glob('a*')) == ['a', 'a.settings']


def test_answers_that_are_there_are_not_drawn_again(policy, prompts, tmp_path, monkeypatch):
  before = answers(policy, prompts, tmp_path / 'a')
  monkeypatch.setattr(answering, '_answer_by', None)
  monkeypatch.setattr(networks, 'load_policy', None)
  assert answers(policy, prompts, tmp_path / 'a', batch_size=16) == before


def test_answers_of_other_settings_prompts_or_checkpoints_are_not_mixed(policy, prompts, tmp_path, killed):
  killed(1, policy, prompts, tmp_path / 'a', num_samples=2)
  others = tmp_path / 'others.jsonl'
  others.write_text(pathlib.Path(prompts).read_text().replace('say 4', 'say 9'))
  other = save(tmp_path / 'other', seed=1)
  for arguments, settings, message in (
    ((policy, prompts), {'seed': 1}, 'seed: 0 there, 1 here'),
    ((policy, prompts), {'temperature': 0.5}, 'temperature: 1.0 there, 0.5 here'),
    ((policy, prompts), {'num_samples': 3}, 'samples: 2 there, 3 here'),
    ((policy, prompts), {'reference_logp': other}, 'reference: None there'),
    ((policy, str(others)), {}, 'prompts: .* there'),
    ((other, prompts), {}, 'checkpoints.None: .* there'),
  ):
    with pytest.raises(UsageError, match=rf'8 answers that other settings made \({message}'):
      answers(*arguments, tmp_path / 'a', **{'num_samples': 2, **settings})
  assert len(answers(policy, prompts, tmp_path / 'a', num_samples=2)) == 10


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run's folder with the steps 10 and 20, whose reference is the policy of step 10."""
  folder = tmp_path_factory.mktemp('run')
  nets, mesh = networks.build(MODEL, uses_value=False), partitioning.make_mesh()
  first, second = (networks.initial_params(nets, mesh, seed, None) for seed in (0, 1))
  described = {
    'model': dataclasses.asdict(MODEL), 'vocabulary': 'bytes', 'uses_reference': True,
    'reference': {'scheme': 'frozen'},
  }  # fmt: skip
  saved = orbax.Checkpoints(folder / 'checkpoints', metadata=described)
  start = state.create(first, {'policy': optax.set_to_zero()}, uses_reference=True)
  for step, params in ((10, first), (20, second)):
    saved.save(step, start._replace(step=jnp.asarray(step), params=params))
  saved.close()
  return str(folder)


def test_several_steps_of_a_run_answer_in_one_file_and_are_compiled_once(run, prompts, tmp_path, killed):
  compiled = generation._make_sample.cache_info().currsize
  records = answers(run, prompts, tmp_path / 'a', steps='all', num_samples=2)
  assert generation._make_sample.cache_info().currsize <= compiled + 1
  assert [record['step'] for record in records] == [10] * 10 + [20] * 10
  assert [record['id'] for record in records[9:12]] == ['p4@10#1', 'p0@20#0', 'p0@20#1']
  alone = answers(f'{run}/checkpoints/20', prompts, tmp_path / 'b', num_samples=2)
  ours = ('prompt', 'response', 'logp', 'tokens', 'ended')
  assert [[r[x] for x in ours] for r in records[10:]] == [[r[x] for x in ours] for r in alone]
  assert answers(run, prompts, tmp_path / 'c', steps='20,10', num_samples=2) == records
  # Killed within the second checkpoint, it goes on there.
  killed(3, run, prompts, tmp_path / 'd', steps=[10, 20], num_samples=2)
  assert answers(run, prompts, tmp_path / 'd', steps=[10, 20], num_samples=2) == records
  assert (tmp_path / 'd').read_bytes() == (tmp_path / 'a').read_bytes()


@pytest.mark.parametrize(
  'steps, message',
  [('10,30', 'no checkpoint of step 30: it has 10, 20'), ('best', r"steps='best' \(STEPS\) names no steps")],
)
def test_steps_that_there_are_not_are_refused(steps, message, run, prompts, tmp_path):
  with pytest.raises(UsageError, match=message):
    answers(run, prompts, tmp_path / 'a', steps=steps)


def test_steps_are_those_of_a_run(policy, prompts, tmp_path):
  with pytest.raises(UsageError, match='holds no checkpoints of a run, of which steps='):
    answers(policy, prompts, tmp_path / 'a', steps='all')


def test_answers_are_scored_under_the_runs_reference_or_another_policy(run, policy, prompts, tmp_path):
  records = answers(run, prompts, tmp_path / 'a', steps='all', num_samples=2, reference_logp='run')
  ratios = np.array([record['logp'] - record['reference_logp'] for record in records])
  # The reference is the policy of step 10, and sampling scores as scoring does.
  np.testing.assert_allclose(ratios[:10], 0, atol=1e-3)
  assert ratios[10:].mean() > 1
  assert [*records[0]] == ['id', 'step', 'prompt', 'response', 'logp', 'reference_logp', 'tokens', 'ended']
  # A policy's log-prob of its own answer, by its folder: `policy` has the parameters of step 10.
  other = answers(run, prompts, tmp_path / 'b', steps='20', num_samples=2, reference_logp=policy)
  np.testing.assert_allclose(
    [record['reference_logp'] for record in other], [r['reference_logp'] for r in records[10:]], rtol=1e-6
  )


def test_a_reference_that_there_is_not_is_refused(run, policy, prompts, tmp_path):
  with pytest.raises(UsageError, match='has no reference policy: pass the folder of a policy'):
    answers(policy, prompts, tmp_path / 'a', reference_logp='run')
  with pytest.raises(UsageError, match='which only --set REFERENCE_LOGP=run reads'):
    answers(run, prompts, tmp_path / 'a', reference_logp=policy, init_from=policy)
  assert list(tmp_path.iterdir()) == []


def test_several_samples_of_a_prompt_are_triplets_once_they_have_rewards(prompts, tmp_path):
  read = {'columns': 'prompt=question,reward=thumbs', 'map_reward': 'up=1,down=0'}
  options = {'template': 'Q: {prompt}', 'prompt_length': 16}
  folder = save(tmp_path / 'policy', data={'options': options, 'read': read})
  records = answers(folder, prompts, tmp_path / 'a.jsonl', columns=None, num_samples=3)
  assert [record['id'] for record in records[:4]] == ['p0#0', 'p0#1', 'p0#2', 'p1#0']
  assert [record['prompt'] for record in records[2:4]] == ['say 0', 'say 1']
  # A random policy's answers may be no text that a triplet holds.
  lines = [json.dumps(r | {'reward': r['tokens'], 'response': f'a{i}'}) for i, r in enumerate(records)]
  (tmp_path / 'b.jsonl').write_text('\n'.join(lines))
  inspect.inspect_triplets(str(tmp_path / 'b.jsonl'), cache_dir=str(tmp_path))
  data = functools.partial(
    triplets.load_triplets, str(tmp_path / 'b.jsonl'), validation_fraction=0, cache_dir=str(tmp_path)
  )
  assert evaluate.evaluate(folder, data, resamples=2)['responses'] == 15
  with pytest.raises(UsageError, match='prompt'):  # What is said counts, and not what the run has.
    answers(folder, prompts, tmp_path / 'c.jsonl', columns='')


def test_answers_that_are_no_triplets_are_named(caplog):
  records = [{'id': f'p#{i}', 'response': text} for i, text in enumerate(['a', ' ', 'b\0', ''])]
  assert list(generate._warn_of_unusable(records)) == records
  assert '3 responses are blank or hold a NUL character (p#1, p#2, p#3): remove them' in caplog.text


def test_bad_calls_write_nothing(policy, prompts, tmp_path):
  output = tmp_path / 'never.jsonl'
  with pytest.raises(UsageError, match='pass --triplets=FILE'):
    generate.generate(policy, output=str(output))
  with pytest.raises(UsageError, match=r'prompts\.jsonl:1.*prompt'):
    generate.generate(policy, prompts, output=str(output))
  with pytest.raises(UsageError, match='temperature=-1'):
    generate.generate(policy, prompt='x', temperature=-1.0, output=str(output))
  before = pathlib.Path(prompts).read_bytes()
  with pytest.raises(UsageError, match='is among the files to read, and would be replaced'):
    generate.generate(policy, prompts, output=str(prompts))
  assert pathlib.Path(prompts).read_bytes() == before
  with pytest.raises(UsageError, match='no checkpoint'):
    generate.generate(str(tmp_path / 'absent'), prompt='x')
  assert not output.exists()


def test_of_overlong_conversations_the_question_is_answered(policy, tmp_path, caplog):
  """An imported policy has no run whose limit it could take: 512 tokens."""
  talk = [{'role': 'user', 'content': 'x' * 600}, {'role': 'user', 'content': 'so?'}]
  same = [{'role': 'user', 'content': 'y' + 'x' * 599}, {'role': 'user', 'content': 'so?'}]
  other = [{'role': 'user', 'content': 'x' * 600}, {'role': 'user', 'content': 'no?'}]
  path = tmp_path / 'talks.jsonl'
  path.write_text(''.join(json.dumps({'question': turns}) + '\n' for turns in (talk, same, other)))
  greedy = answers(policy, str(path), tmp_path / 'a.jsonl', temperature=0.0)
  assert greedy[0]['logp'] == greedy[1]['logp'] != greedy[2]['logp']
  assert '3 prompts are over 512 tokens' in caplog.text


@pytest.mark.parametrize(
  'options, kept',
  [
    ({'prompt_length': 4}, 'use'),
    ({'prompt_length': 4, 'keep': 'auto'}, 'END'),
    ({'keep': 'start'}, 'user: END'),
  ],
)
def test_a_conversation_is_cut_as_the_run_cut_its_own(options, kept):
  """A run that does not say was made before conversations kept their end."""
  words = vocabularies.vocabulary('bytes')
  asked = chat.render([chat.Turn('user', 'END')], chat.TEMPLATE)
  [ids] = tokenise_prompts([asked], words, options)
  assert words.decode(ids) == kept
