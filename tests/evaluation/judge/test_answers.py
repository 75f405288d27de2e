import dataclasses
import json

import pytest

from dro_jax.checkpoints import folders
from dro_jax.errors import UsageError
from dro_jax.evaluation.generate import generate
from dro_jax.evaluation.judge import answers, prompts, sides
from dro_jax.parallel import partitioning
from dro_jax.run import trained
from dro_jax.run.sampling.decoding import Decoding
from tests.evaluation.test_generate import save

DECODING = Decoding(max_length=4, batch_size=8)


@pytest.fixture(scope='module')
def asked(triplets):
  return prompts.read(triplets)[:10]


def side(run, kind=sides.POLICY):
  return sides.Side('x', kind, run)


def drawn(run, asked, folder, decoding=DECODING, kind=sides.POLICY):
  return answers.of_side(side(run, kind), asked, folder, partitioning.make_mesh, decoding)


def files_of(folder):
  return sorted((folder / 'answers').iterdir())


@pytest.mark.long
def test_answers_are_those_of_generate(run, asked, triplets, tmp_path):
  """Greedy ones, which no seed decides."""
  found = drawn(run, asked, tmp_path, Decoding(max_length=4, temperature=0.0, batch_size=8))
  generate(run, triplets, output=str(tmp_path / 'a'), temperature=0.0, max_length=4, batch_size=8)
  lines = [json.loads(line) for line in (tmp_path / 'a').read_text().splitlines()]
  expected = {line['prompt']: [line['response']] for line in lines}
  assert found == {prompt.text: expected[prompt.text] for prompt in asked}


def test_answers_are_drawn_once_and_go_on_where_a_kill_left_them(run, asked, tmp_path, monkeypatch):
  whole = drawn(run, asked, tmp_path)
  [file] = files_of(tmp_path)
  lines = file.read_bytes().splitlines(keepends=True)
  assert len(lines) == 10
  file.write_bytes(b''.join(lines[:4]) + lines[4][:20])
  # Others come first now, in other batches: an answer depends on its prompt alone.
  assert drawn(run, asked[::-1], tmp_path) == whole
  assert len(file.read_bytes().splitlines()) == 10
  monkeypatch.setattr(answers, 'make_generator', None)
  assert drawn(run, asked[2:7], tmp_path) == {prompt.text: whole[prompt.text] for prompt in asked[2:7]}


def test_more_samples_keep_those_that_are_there(run, asked, tmp_path):
  one = drawn(run, asked, tmp_path)
  two = drawn(run, asked, tmp_path, Decoding(max_length=4, batch_size=8, num_samples=2))
  assert len(files_of(tmp_path)) == 1
  assert {text: found[:1] for text, found in two.items()} == one
  assert any(a != b for a, b in two.values())


def test_what_decides_an_answer_decides_where_it_is_kept(run, asked, tmp_path):
  """Other seeds and checkpoints, which the same compiled program serves."""
  drawn(run, asked[:1], tmp_path)
  drawn(run, asked[:1], tmp_path, dataclasses.replace(DECODING, seed=1))
  drawn(f'{run}/checkpoints/2', asked[:1], tmp_path)
  drawn(run, asked[:1], tmp_path, dataclasses.replace(DECODING, batch_size=16))  # Draws nothing.
  assert len(files_of(tmp_path)) == 3


@pytest.mark.parametrize(
  'change, decides',
  [
    ({'seed': 1}, True),
    ({'max_length': 3}, True),
    ({'temperature': 0.5}, True),
    ({'top_k': 2}, True),
    ({'top_p': 0.5}, True),
    ({'repetition_penalty': 1.1}, True),
    ({'batch_size': 16}, False),
    ({'num_samples': 2}, False),
  ],
)
def test_a_setting_is_in_the_key_of_the_answers_that_it_decides(change, decides):
  assert (dataclasses.replace(DECODING, **change).key() != DECODING.key()) == decides


def test_answers_of_a_beam_search_are_kept_apart_and_keep_the_other_keys(run, asked, tmp_path):
  greedy = Decoding(max_length=4, temperature=0.0, batch_size=8)
  search = dataclasses.replace(greedy, beams=3, length_penalty=0.0)
  loaded = trained.load_run(run, partitioning.make_mesh())
  texts = [prompt.text for prompt in asked]
  expected = loaded.generate(texts, temperature=0.0, max_length=4, batch_size=8, beams=3, length_penalty=0.0)
  found = drawn(run, asked, tmp_path, search)
  assert found == {text: [response.text] for text, response in zip(texts, expected)}
  assert found != drawn(run, asked, tmp_path, greedy) and len(files_of(tmp_path)) == 2
  assert dataclasses.replace(greedy, length_penalty=0.5).key() == greedy.key()
  assert dataclasses.replace(search, length_penalty=0.5).key() != search.key()
  with pytest.raises(UsageError, match='a beam search finds one answer to a prompt. Pass num_samples=1'):
    answers.check(dataclasses.replace(search, num_samples=2))


def test_the_reference_is_the_policy_that_the_run_started_from(run, asked, tmp_path):
  found = drawn(run, asked, tmp_path, Decoding(max_length=4, temperature=0.0, batch_size=8), sides.REFERENCE)
  loaded = trained.load_run(run, partitioning.make_mesh())
  start = loaded._replace(
    state=loaded.state._replace(params={**loaded.state.params, 'policy': loaded.state.reference})
  )
  texts = [prompt.text for prompt in asked]
  expected = start.generate(texts, temperature=0.0, max_length=4, batch_size=8)
  assert found == {text: [response.text] for text, response in zip(texts, expected)}
  own = drawn(run, asked, tmp_path, Decoding(max_length=4, temperature=0.0, batch_size=8))
  assert own != found and len(files_of(tmp_path)) == 2


def test_a_policy_without_a_reference_is_named(asked, tmp_path):
  imported = save(tmp_path / 'imported')
  with pytest.raises(UsageError, match='imported has no reference policy: pass .* or a side of judge'):
    drawn(imported, asked, tmp_path, kind=sides.REFERENCE)


def test_a_side_is_the_checkpoint_that_was_the_best_when_it_began(run, asked, tmp_path, monkeypatch):
  chosen = drawn(f'{run}/checkpoints/2', asked[:2], tmp_path / 'a')
  find = folders.find_checkpoint
  steps = iter([2])  # Step 4 has become the best when it is asked again.
  monkeypatch.setattr(
    folders, 'find_checkpoint',
    lambda place: find(f'{place}/checkpoints/{next(steps, 4)}' if str(place) == run else place),
  )  # fmt: skip
  assert drawn(run, asked[:2], tmp_path / 'b') == chosen
  assert files_of(tmp_path / 'a')[0].name == files_of(tmp_path / 'b')[0].name


def test_a_file_answers_the_prompts_that_it_has(asked, tmp_path):
  file = tmp_path / 'a.jsonl'
  file.write_text(json.dumps({'prompt': asked[1].text, 'response': 'r'}) + '\n')
  found = answers.of_side(side(str(file), sides.FILE), asked, tmp_path, None, DECODING)
  assert found == {asked[1].text: ['r']} and not (tmp_path / 'answers').exists()


@pytest.mark.parametrize('name', ['max_length', 'num_samples', 'batch_size', 'beams'])
def test_decoding_that_gives_no_answer_is_refused(name):
  with pytest.raises(UsageError, match=f'{name}=0 must be above 0'):
    answers.check(Decoding(**{name: 0}))
