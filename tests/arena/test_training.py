from dro_jax.arena import results, training


def test_choices_say_what_was_at_an_edge():
  result = {'steps': 5, 'flops': 1e6}
  chosen = results.Chosen({'learning_rate': 0.1, 'temperature': 2.0}, {0: result}, 4, ['temperature ≥ 2'])
  (row,) = training.choices({'dro_v': chosen}).rows
  assert row == {
    'method': 'dro_v', 'temperature': 2.0, 'learning_rate': 0.1, 'at an edge': 'temperature ≥ 2', 'trials': 4,
    'seeds': 1, 'steps': 5, 'FLOPs': 1e6,
  }  # fmt: skip
