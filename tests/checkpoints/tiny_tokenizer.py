"""A tokenizer of 98 ids for the tiny models: ASCII, byte by byte, in Hugging Face's layout."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = '{% for m in messages %}{{ m.content }}</s>{% endfor %}'


def write(folder):
  folder.mkdir(parents=True, exist_ok=True)
  letters = ['Ġ', *map(chr, range(33, 127))]
  names = ['<pad>', '<s>', '</s>', *letters]
  made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(names[:3])
  made.save(str(folder / 'tokenizer.json'))
  special = {'pad_token': '<pad>', 'bos_token': '<s>', 'eos_token': '</s>'}
  settings = {'tokenizer_class': 'PreTrainedTokenizerFast', **special, 'chat_template': TEMPLATE}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return folder
