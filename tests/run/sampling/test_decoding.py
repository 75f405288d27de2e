import dataclasses
import inspect

import pytest
from flax import linen as nn

from dro_jax.errors import UsageError
from dro_jax.evaluation.generate import generate
from dro_jax.parallel import partitioning
from dro_jax.run.sampling.decoding import Decoding, refuse_beams
from dro_jax.run.sampling.generation import make_generator


def test_generate_takes_every_setting_with_its_default():
  signature = inspect.signature(generate).parameters
  assert {name: signature[name].default for name in vars(Decoding())} == vars(Decoding())


def test_the_key_of_an_answer_is_that_of_earlier_versions():
  """Answers that are kept by it are found again."""
  assert Decoding().key() == '807dc2185d2e2262fb31d63a911a419d'
  assert Decoding(temperature=0.0, beams=3).key() == '9d9e463b2520af4c55b74e85c1318689'


def test_the_number_of_answers_and_the_batch_decide_no_answer():
  assert Decoding(num_samples=4, batch_size=8).key() == Decoding().key() != Decoding(seed=1).key()
  assert Decoding(num_samples=4, batch_size=8, seed=1).distribution() == Decoding().distribution()


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'temperature': 1.0}, 'beams=2 with temperature=1.0, .* draws nothing'),
    ({'top_k': 3}, 'leave top_k'),
    ({'top_p': 0.5}, 'top_p=0.5'),
    ({'num_samples': 2}, 'num_samples=2: a beam search finds one answer'),
  ],
)
def test_a_beam_search_draws_nothing(settings, message):
  search = Decoding(temperature=0.0, beams=2)
  refuse_beams(search)
  refuse_beams(dataclasses.replace(search, **settings, beams=1))
  with pytest.raises(UsageError, match=message):
    refuse_beams(dataclasses.replace(search, **settings))


def test_a_generator_answers_each_prompt_once():
  with pytest.raises(UsageError, match='num_samples=3: each prompt is answered once here'):
    make_generator(nn.Dense(1), partitioning.make_mesh(), Decoding(num_samples=3))
