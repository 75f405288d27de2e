import json

from dro_jax.run import lost_mass


def validated(kept, size=50.0):
  return {'eval/mass_kept': kept, 'eval/mass_kept_effective_size': size}


def test_a_validation_without_the_reference_says_nothing():
  assert not lost_mass.has_left({'eval/kl': 9.0})
  assert lost_mass.has_left(validated(0.3)) and not lost_mass.has_left(validated(0.3, size=3.0))


def test_it_is_said_once_in_a_run_resumed_or_not(tmp_path):
  assert not lost_mass.had_left(tmp_path)
  records = [{'step': 1, 'loss': 0.0}, {'step': 1, **validated(0.9)}]
  file = tmp_path / 'metrics.jsonl'
  file.write_text(''.join(json.dumps(record) + '\n' for record in records))
  assert not lost_mass.had_left(tmp_path)
  with file.open('a') as lines:
    lines.write(json.dumps({'step': 2, **validated(0.2)}) + '\n')
  assert lost_mass.had_left(tmp_path)


def test_the_warning_says_what_happened_and_what_to_do():
  said = lost_mass.warning(7, validated(0.312, 41.4), uses_value=True)
  assert said.startswith('note: after step 7 the policy has 0.31 of its probability on answers')
  for remedy in ('--set NEXT_TOKEN_KL=1.0', 'POLICY_LEARNING_RATE', '--set VALUE_WARMUP_STEPS=100'):
    assert remedy in said
  assert 'from 41 answers' in said
  assert 'VALUE_WARMUP_STEPS' not in lost_mass.warning(7, validated(0.3), uses_value=False)
