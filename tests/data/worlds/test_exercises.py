import itertools

import pytest

from dro_jax.data.worlds import exercises as verifiable
from dro_jax.data.worlds.exercises import answer
from dro_jax.errors import UsageError
from dro_jax.run.sampling import rewards

ALL = verifiable.Exercises(kinds=tuple(verifiable.KINDS))


def test_splits_share_no_prompt_for_any_seeds():
  drawn = {
    (split, seed): set(verifiable.prompts(ALL, split, 60, seed))
    for split in verifiable.SPLITS
    for seed in range(2)
  }
  for one, other in itertools.combinations(drawn, 2):
    assert not drawn[one] & drawn[other] or one[0] == other[0]
  assert all(len(prompts) == 60 for prompts in drawn.values())
  assert drawn['test', 0] != drawn['test', 1]


def test_more_prompts_keep_the_first_ones():
  assert verifiable.prompts(ALL, 'train', 40)[:25] == verifiable.prompts(ALL, 'train', 25)


def test_splits_have_their_shares():
  prompts = list(itertools.islice(verifiable._drawn(ALL, 0), 4000))
  for split, share in verifiable.SPLITS.items():
    assert sum(verifiable.split_of(p) == split for p in prompts) / 4000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize('kind', verifiable.KINDS)
def test_every_prompt_has_an_answer(kind):
  prompts = verifiable.prompts(verifiable.Exercises(kinds=(kind,)), 'train', 30)
  assert all(answer(prompt) for prompt in prompts)
  assert rewards.exact_match(prompts, [answer(prompt) for prompt in prompts]) == [1.0] * 30
  assert len({verifiable.kind_of(prompt) for prompt in prompts}) == 1


def test_every_sum_carries():
  for prompt in verifiable.prompts(verifiable.Exercises(kinds=('add',), digits=3), 'train', 50):
    a, b = map(int, verifiable.subject(prompt).split(' + '))
    assert sum(map(int, str(a))) + sum(map(int, str(b))) > sum(map(int, answer(prompt)))


def test_subject_and_kind_of_split_a_prompt():
  assert verifiable.subject('rewrite without a: banana') == 'banana'
  assert verifiable.kind_of('rewrite without a: banana') == 'rewrite without'


@pytest.mark.parametrize(
  'exercises, split, message',
  [
    (ALL, 'training', "split 'training'"),
    (verifiable.Exercises(kinds=('multiply',)), 'train', 'multiply'),
    (verifiable.Exercises(kinds=('sort',), letters='ab', length=(1, 2)), 'test', 'pass fewer prompts'),
  ],
)
def test_prompts_refuses_unknown_splits_and_too_many_prompts(exercises, split, message):
  with pytest.raises(UsageError, match=message):
    verifiable.prompts(exercises, split, 50)
