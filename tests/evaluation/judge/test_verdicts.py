import math

import pytest

from dro_jax.evaluation.judge.verdicts import Token, label_tokens, parse


@pytest.mark.parametrize(
  'reply, score',
  [
    ('Verdict: A', 1.0),
    ('Because it is right.\n\nverdict: b', 0.0),
    ('**Verdict:** tie.', 0.5),
    ('**Verdict: A**\n', 1.0),
    ('Verdict: A\nVerdict: A', 1.0),
    (' A ', 1.0),
    ('**B**', 0.0),
    ('Tie.', 0.5),
  ],
)
def test_a_verdict_that_fits_the_grammar_is_read(reply, score):
  assert parse(reply) == (score, False)


@pytest.mark.parametrize(
  'reply',
  [
    '',
    'I think that answer A is better.',
    'The verdict: A is better than B',
    'Verdict: A or B',
    'Verdict: C',
    'Verdict: [[A]]',
    'Verdict: A\nOn reflection:\nVerdict: B',
    'My verdict: A',
    'A is better',
    'Verdict:\nA or B?',
    'Answer A',
  ],
)
def test_what_does_not_fit_is_never_guessed(reply):
  assert math.isnan(parse(reply).score)


def tokens(*pairs):
  return [Token(text, len(text.encode()), top) for text, top in pairs]


def test_the_probabilities_are_those_at_the_verdict():
  even = {'A': math.log(0.5), 'B': math.log(0.5)}
  sure = {' A': math.log(0.1), ' B': math.log(0.3), ' tie': math.log(0.4), ' x': math.log(0.2)}
  # A label in the reason, beyond characters of several bytes, is not the verdict.
  reply = tokens(('A', even), (' für', {}), (' 日', {}), ('\nVerdict:', {}), (' tie', sure))
  text = ''.join(token.text for token in reply)
  assert parse(text, label_tokens(reply)) == (pytest.approx((0.1 + 0.2) / 0.8), True)


def test_a_token_that_holds_more_than_the_label_leaves_a_plain_verdict():
  reply = tokens(('Verdict', {}), (': A', {': A': 0.0}))
  assert label_tokens(reply) == [] and parse('Verdict: A', []) == (1.0, False)


def test_probabilities_do_not_rescue_a_malformed_reply():
  reply = tokens(('I say A', {}), (' A', {'A': 0.0}))
  assert math.isnan(parse('I say A A', label_tokens(reply)).score)
