"""A small lossless tokenizer in Hugging Face layout, for tests and for the quickstart's tiny world.

It has the control tokens and the chat template of the R1-Distill family, so the whole pipeline treats it as it
treats theirs; only its ordinary vocabulary is a given list of strings.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

EOS, USER, ASSISTANT, BOS = "<|end|>", "<|user|>", "<|assistant|>", "<|begin|>"
THINK, END_THINK = "<think>", "</think>"
UNKNOWN = "<unk>"
_SPECIAL = (EOS, BOS)
_CONTROL = (EOS, USER, ASSISTANT, BOS, THINK, END_THINK)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% else %}{{ '" + ASSISTANT + "' + message['content'] + '" + EOS + "' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def write_word_tokenizer(directory: str | Path, words: Sequence[str]) -> int:
    """Writes `tokenizer.json` and `tokenizer_config.json`; returns the vocabulary's size, control tokens included.

    Text is cut greedily into the longest of `words` that fits; concatenating them gives the text back exactly.
    What no word covers becomes `<unk>`. As in R1-Distill, the pad token is the end token.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {word: at for at, word in enumerate(dict.fromkeys([UNKNOWN, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(re.escape(word) for word in longest_first)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(token, special=token in _SPECIAL, normalized=False) for token in _CONTROL])
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": UNKNOWN,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size()
