import json
import pickle

import numpy as np
import pytest
import seqio
import tensorflow as tf

from dro_jax.data.sources import seqio_tasks
from dro_jax.data.sources.seqio_vocabularies import seqio_vocabulary
from dro_jax.data.text import chat
from dro_jax.data.text.vocabularies import vocabulary
from dro_jax.data.triplets import load_triplets
from tests.data.text import tiny_tokenizers

TEXTS = ['Hello there', '', 'naïve 🙂\n']


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> str:
  return tiny_tokenizers.llama3(tmp_path_factory.mktemp('llama3'))


def test_a_tokenizer_json_is_a_vocabulary_of_seqios(folder):
  ours, theirs = vocabulary(folder), seqio_vocabulary(folder)
  assert isinstance(theirs, seqio.Vocabulary) and theirs.vocab_size == ours.size and theirs.unk_id is None
  assert (theirs.eos_id, theirs.pad_id, theirs.bos_id) == (ours.special.eos, ours.special.pad, ours.prefix[0])
  for text in TEXTS:
    assert (
      theirs.encode(text)
      == ours.encode(text).tolist()
      == theirs.encode_tf(tf.constant(text)).numpy().tolist()
    )
    ids = [*ours.encode(text), ours.special.eos, 7]
    assert theirs.decode(ids) == theirs.decode_tf(tf.constant(ids)).numpy().decode() == text
  rows = tf.ragged.constant([theirs.encode(text) for text in TEXTS]).to_tensor(theirs.pad_id)
  assert [text.decode() for text in theirs.decode_tf(rows).numpy()] == TEXTS


def test_it_equals_its_copy_and_no_other(folder):
  theirs = seqio_vocabulary(folder)
  assert pickle.loads(pickle.dumps(theirs)) == theirs and hash(theirs) == hash(seqio_vocabulary(folder))
  assert theirs != seqio_vocabulary('bytes') and seqio_vocabulary('bytes').unk_id == 2
  assert seqio_vocabulary('bytes').bos_id is None


def test_a_task_with_its_tokens_is_packed_and_read_like_one_of_texts(folder, tmp_path):
  records = [{'prompt': f'Hello {i}', 'response': f' there {i}', 'reward': i} for i in range(6)]
  (tmp_path / 't.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  words = seqio_vocabulary(folder)
  feature = seqio.Feature(words, add_eos=True)
  source = seqio.FunctionDataSource(
    lambda split, shuffle_files=False, seed=None: tf.data.Dataset.from_tensor_slices(
      {name: [record[name] for record in records] for name in records[0]}
    ),
    splits=['train'],
  )
  seqio.TaskRegistry.add(
    'tokens_of_llama3', source, preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={'prompt': feature, 'response': feature},
  )  # fmt: skip
  task = seqio.get_mixture_or_task('tokens_of_llama3')
  [first] = task.get_dataset(None, split='train', shuffle=False).take(1).as_numpy_iterator()
  assert first['response'].tolist() == [*words.encode(' there 0'), words.eos_id]
  options = {'vocabulary': folder, 'validation_fraction': 0, 'cache_dir': str(tmp_path), 'chat': False}
  found = [load_triplets(name, **options).train for name in ('tokens_of_llama3', str(tmp_path / 't.jsonl'))]
  for i in range(6):
    np.testing.assert_array_equal(found[0].response(i), found[1].response(i))
    assert found[0].response(i).tolist() == [*words.encode(' there 0')[:1], *found[0].response(i)[1:]]
    assert found[0].prompt(i).tolist() == [words.bos_id, *words.encode(f'Hello {i}')]


def test_conversations_of_a_task_reach_the_models_template(folder, tmp_path):
  talk = [
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Hello'},
    {'role': 'user', 'content': 'So?'},
  ]
  (tmp_path / 't.jsonl').write_text(json.dumps({'prompt': talk, 'response': 'Yes', 'reward': 1}))
  for name, template in (('kept_turns', None), ('lines', chat.TEMPLATE)):
    seqio_tasks.register(name, {'train': str(tmp_path / 't.jsonl')}, chat_template=template)
  options = {'vocabulary': folder, 'validation_fraction': 0, 'cache_dir': str(tmp_path)}
  kept, lines, file = (
    load_triplets(name, **options).train for name in ('kept_turns', 'lines', str(tmp_path / 't.jsonl'))
  )
  np.testing.assert_array_equal(kept.prompt(0), file.prompt(0))
  assert chat.turns_of(kept.prompts[0]) == [chat.Turn(**turn) for turn in talk]
  assert lines.prompts[0] == 'user: Hi\nassistant: Hello\nuser: So?'
