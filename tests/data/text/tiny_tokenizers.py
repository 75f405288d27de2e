"""Tiny tokenizers of decoder-only models, as folders, and chat templates in the shapes of well-known ones."""

import io
import json
import pathlib

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
  'The quick brown fox jumps over the lazy dog.', 'What is the capital of France? Paris.',
  'Hello there, world!', 'def f(x):\n    return x + 1\n', 'Grüße aus Köln, naïve café', '12 345 678',
  'user assistant system model',
] * 20  # fmt: skip

QWEN = (
  "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are tiny.<|im_end|>\\n' }}{% endif %}"
  "{% for turn in messages %}{{ '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
  '{{ bos_token }}{% for turn in messages %}'
  "{{ '<|start_header_id|>' ~ turn['role'] ~ '<|end_header_id|>\\n\\n' ~ turn['content'] | trim }}<|eot_id|>"
  '{% endfor %}{% if add_generation_prompt %}'
  "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
  '{{ bos_token }}'
  "{% if messages[0].role == 'system' %}{{ raise_exception('There is no system turn.') }}{% endif %}"
  '{% for turn in messages %}'
  "{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Turns must alternate.') }}{% endif %}"
  "<start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
  '{{ turn.content | trim }}<end_of_turn>\n'
  '{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}'
)


def byte_level(
  folder: pathlib.Path, special=('<|endoftext|>', '<|im_start|>', '<|im_end|>'), *, bos=None, added=(),
  ends=(), template=None, **config,
) -> str:  # fmt: skip
  """A byte-level BPE, such as Qwen's and Llama 3's, with `ends` in its generation_config.json; the folder."""
  made = Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=420,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=[],
    show_progress=False,
  )
  made.train_from_iterator(CORPUS, trainer)
  made.add_special_tokens(list(special))
  made.add_tokens(list(added))
  if bos:
    made.post_processor = processors.TemplateProcessing(f'{bos} $A', None, [(bos, made.token_to_id(bos))])
  generation = {'eos_token_id': [made.token_to_id(name) for name in ends]} if ends else None
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', **config}
  return write(folder, {'tokenizer.json': made.to_str()}, config, template, generation)


def pieces(folder: pathlib.Path, *, template=None, dummy_prefix=True, **options) -> str:
  """A SentencePiece BPE, such as Llama 2's and Gemma's, with `options` of its trainer; returns the folder."""
  file = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=420, model_type='bpe', byte_fallback=True,
    normalization_rule_name='identity', remove_extra_whitespaces=False, hard_vocab_limit=False,
    add_dummy_prefix=dummy_prefix, minloglevel=2, **options,
  )  # fmt: skip
  names = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  config = {'tokenizer_class': 'LlamaTokenizer' if dummy_prefix else 'GemmaTokenizer', 'add_bos_token': True}
  config |= {role: options.get(role.replace('token', 'piece'), name) for role, name in names.items()}
  config |= {'pad_token': options['pad_piece']} if 'pad_piece' in options else {}
  return write(folder, {'tokenizer.model': file.getvalue()}, config, template, None)


def write(
  folder: pathlib.Path, files: dict, config: dict, template: str | None, generation: dict | None
) -> str:
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  if template:
    (folder / 'chat_template.jinja').write_text(template)
  if generation:
    (folder / 'generation_config.json').write_text(json.dumps(generation))
  return str(folder)


def qwen(folder: pathlib.Path, template: str | None = QWEN, **options) -> str:
  config = {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>', 'add_bos_token': False}
  return byte_level(folder, template=template, **config | options)


def llama3(folder: pathlib.Path, template: str | None = LLAMA3, **options) -> str:
  special = ('<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
  config = {'bos_token': special[0], 'eos_token': special[1], 'ends': (special[1], special[4])}
  return byte_level(folder, special, bos=special[0], template=template, **config | options)


def gemma(folder: pathlib.Path, template: str | None = GEMMA, **options) -> str:
  names = {'pad_piece': '<pad>', 'eos_piece': '<eos>', 'bos_piece': '<bos>', 'unk_piece': '<unk>'}
  ids = {'pad_id': 0, 'eos_id': 1, 'bos_id': 2, 'unk_id': 3}
  marks = {'user_defined_symbols': ['<start_of_turn>', '<end_of_turn>', '\n\n']}
  return pieces(folder, template=template, dummy_prefix=False, **names, **ids, **marks, **options)


def llama2(folder: pathlib.Path, **options) -> str:
  return pieces(folder, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, **options)
