import numpy as np
import pytest

from dro_jax.data.text import templates
from dro_jax.errors import UsageError

IDS, EOS = np.arange(10, 15, dtype=np.int32), 1


@pytest.mark.parametrize(
  'template', ['{prompt}', 'Translate: {prompt}', '{{"q": "{prompt}"}}', '{prompt:>5}']
)
def test_a_template_that_uses_the_prompt_is_accepted(template):
  assert templates.check_template(template) == template


@pytest.mark.parametrize(
  'template, message',
  [
    ('Translate:', 'must contain {prompt}'),
    ('{prompt} {response}', 'must contain {prompt}, and no other field'),
    ('{}', 'must contain {prompt}'),
    ('{prompt} {', 'braces'),
    ('{prompt} }', 'braces'),
    ('{prompt:d}', "'{prompt:d}'"),
  ],
)
def test_another_template_is_refused(template, message):
  with pytest.raises(UsageError) as refused:
    templates.check_template(template)
  assert message in str(refused.value)


def test_optional_fields_are_named_in_the_refusal():
  accepted = templates.check_fields('{a}{b}', 'template', needed='a', optional=('b', 'c'))
  assert accepted == '{a}{b}'
  with pytest.raises(UsageError, match=r'must contain \{a\}.*\{b\} and \{c\}'):
    templates.check_fields('{a}{d}', 'template', needed='a', optional=('b', 'c'))


def test_auto_keeps_the_end_of_a_conversation_and_the_start_of_a_text():
  assert [templates.kept_end('auto', is_chat) for is_chat in (False, True)] == ['start', 'end']
  assert templates.kept_end('start', True) == 'start' and templates.kept_end('end', False) == 'end'


@pytest.mark.parametrize(
  'length, keep, ids, cut',
  [
    (6, 'start', [10, 11, 12, 13, 14, EOS], False),
    (5, 'start', [10, 11, 12, 13, EOS], True),
    (5, 'end', [11, 12, 13, 14, EOS], True),
    (1, 'start', [EOS], True),
    (1, 'end', [EOS], True),
  ],
)
def test_a_cut_prompt_still_ends_with_eos(length, keep, ids, cut):
  tokens, was_cut = templates.cut_prompt(IDS, length, keep, after=[EOS])
  assert tokens.tolist() == ids and was_cut == cut and tokens.dtype == np.int32


def test_a_prompt_cut_at_its_start_keeps_what_stands_before_it():
  tokens, was_cut = templates.cut_prompt(IDS, 5, 'end', before=[7, 8])
  assert tokens.tolist() == [7, 8, 12, 13, 14] and was_cut and tokens.dtype == np.int32
  assert templates.cut_prompt(IDS, 7, 'end', before=[7, 8])[0].tolist() == [7, 8, *IDS]


@pytest.mark.parametrize(
  'length, ids, cut',
  [(6, [10, 11, 12, 13, 14, EOS], False), (5, [10, 11, 12, 13, 14], True), (2, [10, 11], True)],
)
def test_a_cut_response_has_no_eos(length, ids, cut):
  tokens, was_cut = templates.cut_response(np.append(IDS, EOS), length)
  assert tokens.tolist() == ids and was_cut == cut
