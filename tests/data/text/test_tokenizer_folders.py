import json
import pathlib

import numpy as np
import pytest
import transformers

from dro_jax.data.text import tokenizer_json
from dro_jax.data.text.vocabularies import save_tokenizer, vocabulary
from dro_jax.errors import UsageError
from tests.data.text import tiny_tokenizers
from tests.data.text.test_vocabularies import train

END = '<|im_end|>'


def configure(folder: str, **changes) -> None:
  file = pathlib.Path(folder, 'tokenizer_config.json')
  config = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def name_of(words, number: int) -> str:
  return transformers.AutoTokenizer.from_pretrained(words.spec).convert_ids_to_tokens(number)


def test_the_special_ids_are_the_folders_own(tmp_path):
  words = vocabulary(tiny_tokenizers.llama3(tmp_path))
  theirs = transformers.AutoTokenizer.from_pretrained(words.spec)
  assert words.prefix == (theirs.bos_token_id,) and words.special.start == theirs.bos_token_id
  assert words.special.eos == theirs.convert_tokens_to_ids('<|eot_id|>') != theirs.eos_token_id
  assert words.special.unknown == -1 and words.size == len(theirs)
  # No token is named as padding: EOS stands in for it.
  assert words.special.pad == words.special.eos


@pytest.mark.parametrize(
  'template, ends, eos',
  [
    (tiny_tokenizers.QWEN, ('<|endoftext|>', END), END),
    (tiny_tokenizers.QWEN, ('<|endoftext|>',), END),
    (tiny_tokenizers.QWEN, (), END),
    (None, (END, '<|endoftext|>'), END),
    (None, (), '<|endoftext|>'),
    ('{% for turn in messages %}{{ turn.content }}\n{% endfor %}', (END, '<|endoftext|>'), END),
    ("{% for turn in messages %}{{ turn.content }}<|im_end|><|endoftext|>{% endfor %}", ('<|endoftext|>',),
     '<|endoftext|>'),
  ],
)  # fmt: skip
def test_the_end_is_the_one_that_the_template_writes_or_else_the_first(tmp_path, template, ends, eos):
  folder = tiny_tokenizers.byte_level(tmp_path, template=template, ends=ends, eos_token='<|endoftext|>')
  assert name_of(vocabulary(folder), vocabulary(folder).special.eos) == eos


def test_a_tokenizer_with_one_special_token_ends_with_it(tmp_path):
  """GPT-2's folder names no special token."""
  words = vocabulary(tiny_tokenizers.byte_level(tmp_path, ('<|endoftext|>',)))
  assert words.special.pad == words.special.eos == words.size - 1 and words.prefix == ()


def test_a_folder_that_names_no_end_is_refused(tmp_path):
  with pytest.raises(UsageError, match='no file says which token ends a text: give tokenizer_config.json'):
    vocabulary(tiny_tokenizers.byte_level(tmp_path))


@pytest.mark.parametrize(
  'make, says, adds', [('llama3', False, True), ('llama3', ..., True), ('qwen', True, False)]
)
def test_the_tokenizer_json_decides_whether_a_prompt_begins_with_bos(tmp_path, make, says, adds):
  folder = getattr(tiny_tokenizers, make)(tmp_path)
  configure(folder, add_bos_token=says)
  words = vocabulary(folder)
  assert len(words.prefix) == adds
  assert [*words.prefix, *words.encode('x')] == transformers.AutoTokenizer.from_pretrained(folder)(
    'x'
  ).input_ids


def test_a_sentencepiece_model_begins_with_bos_unless_its_folder_denies_it(tmp_path):
  folder = tiny_tokenizers.llama2(tmp_path / 'a')
  configure(folder, add_bos_token=...)
  assert vocabulary(folder).prefix == (1,)
  denied = tiny_tokenizers.llama2(tmp_path / 'b')
  configure(denied, add_bos_token=False)
  assert vocabulary(denied).prefix == ()


def test_names_may_be_objects_and_may_lie_in_the_older_file(tmp_path):
  folder = tiny_tokenizers.qwen(tmp_path)
  flags = dict.fromkeys(('lstrip', 'rstrip', 'single_word', 'normalized'), False)
  configure(folder, eos_token=..., pad_token={'__type': 'AddedToken', 'content': '<|im_start|>', **flags})
  pathlib.Path(folder, 'special_tokens_map.json').write_text(json.dumps({'eos_token': {'content': END}}))
  words = vocabulary(folder)
  assert [name_of(words, i) for i in words.special[:2]] == ['<|im_start|>', END]


def test_of_several_templates_the_default_one_is_taken_and_a_file_comes_first(tmp_path):
  folder = tiny_tokenizers.qwen(tmp_path / 'a', template=None)
  templates = [{'name': 'tool_use', 'template': 'x'}, {'name': 'default', 'template': tiny_tokenizers.QWEN}]
  configure(folder, chat_template=templates)
  assert vocabulary(folder).chat.source == tiny_tokenizers.QWEN
  both = tiny_tokenizers.qwen(tmp_path / 'b')
  configure(both, chat_template='y')
  assert vocabulary(both).chat.source == tiny_tokenizers.QWEN


def test_tokens_that_were_added_to_a_sentencepiece_model_have_their_ids(tmp_path):
  folder = tiny_tokenizers.llama2(tmp_path, template=tiny_tokenizers.QWEN)
  size = vocabulary(tiny_tokenizers.llama2(tmp_path / 'plain')).size
  added = {'<|im_start|>': size, END: size + 1}
  pathlib.Path(folder, 'added_tokens.json').write_text(json.dumps(added))
  words = vocabulary(folder)
  assert words.size == size + 2 and words.special.eos == size + 1 and words.chat.end == END
  assert words.decode([*words.encode('Hello'), size, *words.encode('there')]) == 'Hello<|im_start|>there'


def test_a_token_of_the_template_is_text_in_a_text_even_if_no_file_calls_it_special(tmp_path):
  folder = tiny_tokenizers.byte_level(
    tmp_path, ('<|endoftext|>',), added=('<start_of_turn>', '<end_of_turn>', '<think>', '\n\n'),
    template=tiny_tokenizers.GEMMA.replace('{{ bos_token }}', 'You may <think>.'), eos_token='<|endoftext|>',
  )  # fmt: skip
  words = vocabulary(folder)
  assert set(words.chat.control) == {'<|endoftext|>', '<start_of_turn>', '<end_of_turn>'}
  start, think = (
    transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(name)
    for name in ('<start_of_turn>', '<think>')
  )
  ids = words.encode('<start_of_turn> <think>').tolist()
  assert start not in ids and think in ids


def test_a_template_that_fails_leaves_a_vocabulary_without_it(tmp_path, caplog):
  words = vocabulary(tiny_tokenizers.qwen(tmp_path, template='{{ raise_exception("never") }}'))
  assert 'never' in caplog.text and name_of(words, words.special.eos) == END


def test_the_fingerprint_covers_ids_special_ids_and_template(tmp_path):
  def made(name, change=lambda folder: None, **options):
    folder = tiny_tokenizers.qwen(tmp_path / name, **options)
    change(folder)
    return vocabulary(folder).fingerprint

  def rename(folder):
    file = pathlib.Path(folder, 'tokenizer.json')
    file.write_text(file.read_text().replace('"add_prefix_space":false', '"add_prefix_space":true', 1))

  marks = [
    made('same'), made('more', added=('<x>',)), made('template', template=tiny_tokenizers.QWEN + ' '),
    made('pad', pad_token='<|im_start|>'), made('bos', bos='<|im_start|>', bos_token='<|im_start|>'),
    made('rule', rename),
  ]  # fmt: skip
  assert len(set(marks)) == len(marks)
  assert made('copy') == marks[0]


@pytest.mark.parametrize('kind', ['qwen', 'gemma', 'llama2'])
def test_a_copy_of_the_files_is_the_same_vocabulary(tmp_path, kind):
  folder = getattr(tiny_tokenizers, kind)(tmp_path / 'a')
  pathlib.Path(folder, 'model.safetensors').write_text('not a part of it')
  spec = save_tokenizer(vocabulary(folder), tmp_path / 'b' / 'c')
  assert spec == str(tmp_path / 'b' / 'c') and vocabulary(spec).fingerprint == vocabulary(folder).fingerprint
  names = {path.name for path in pathlib.Path(spec).iterdir()}
  assert names == {path.name for path in pathlib.Path(folder).iterdir()} - {'model.safetensors'}


def test_copies_of_a_t5s_vocabulary_are_files(tmp_path):
  model = train(tmp_path)
  (tmp_path / 'tokenizer.json').write_text(
    json.dumps(tokenizer_json.from_sentencepiece(pathlib.Path(model).read_bytes(), 100))
  )
  for spec in ('bytes', f'{model}#extra_ids=3', model, str(tmp_path / 'tokenizer.json')):
    words = vocabulary(spec)
    copy = vocabulary(save_tokenizer(words, tmp_path / 'copy'))
    assert copy.fingerprint == words.fingerprint and copy.ends_prompts


def test_the_folder_may_be_named_by_its_tokenizer_json(tmp_path):
  folder = tiny_tokenizers.qwen(tmp_path / 'a')
  words = vocabulary(f'{folder}/tokenizer.json')
  assert words.fingerprint == vocabulary(folder).fingerprint
  assert save_tokenizer(words, tmp_path / 'b') == str(tmp_path / 'b')
  assert vocabulary(str(tmp_path / 'b')).special == words.special


def test_a_folder_with_a_scheme_is_read_through_it(tmp_path):
  folder = tiny_tokenizers.qwen(tmp_path)
  assert vocabulary(f'file://{folder}').fingerprint == vocabulary(folder).fingerprint


def test_a_t5s_folder_is_its_file(tmp_path):
  content = pathlib.Path(train(tmp_path)).read_bytes()
  slow, both = tmp_path / 'slow', tmp_path / 'both'
  for folder in (slow, both):
    folder.mkdir()
    (folder / 'spiece.model').write_bytes(content)
  (both / 'tokenizer.json').write_text(json.dumps(tokenizer_json.from_sentencepiece(content, 100)))
  words, fast = vocabulary(str(slow)), vocabulary(str(both))
  assert words.spec == str(slow / 'spiece.model') and words.ends_prompts and words.size == 164
  assert fast.ends_prompts and fast.spec.endswith('tokenizer.json')
  np.testing.assert_array_equal(fast.encode('A quick fox'), words.encode('A quick fox'))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(UsageError, match=r'a folder without tokenizer.json and tokenizer.model'):
    vocabulary(str(tmp_path))
  (tmp_path / 'tokenizer.model').write_bytes(b'junk')
  with pytest.raises(UsageError, match=r'tokenizer.model is not a SentencePiece model'):
    vocabulary(str(tmp_path))


@pytest.mark.parametrize('content', ['{', '[]'])
def test_a_configuration_that_is_no_object_is_refused(tmp_path, content):
  folder = tiny_tokenizers.qwen(tmp_path)
  pathlib.Path(folder, 'tokenizer_config.json').write_text(content)
  with pytest.raises(UsageError, match='tokenizer_config.json'):
    vocabulary(folder)
