import jax.numpy as jnp
import numpy as np
import pytest

from dro_jax.models.attention import spans
from tests.models.attention import layouts


@pytest.mark.parametrize('window', [None, 1, 20, 64])
def test_spans_say_what_masks_of_segments_say(window):
  written = segments = layouts.segments()[1] > 0
  for span, expected in zip(layouts.response_spans(window), layouts.response_masks(window), strict=True):
    mask = np.asarray(spans.mask(span, expected.shape[-1]))
    np.testing.assert_array_equal(mask[written], expected[segments])


def test_padding_reads_itself_only():
  span = spans.own_span(jnp.array([[1, 1, 2, 0, 0]]))
  np.testing.assert_array_equal(span.first, [[0, 0, 2, 3, 4]])
  np.testing.assert_array_equal(span.stop, [[1, 2, 3, 4, 5]])


def test_segments_start_at_their_first_token():
  np.testing.assert_array_equal(
    spans.segment_starts(jnp.array([[1, 1, 2, 3, 3, 0, 0]])), [[0, 0, 2, 3, 3, 5, 5]]
  )
