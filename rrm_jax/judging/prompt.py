"""What the judge is shown: two responses to a query, thinking removed, cut to fit, in a template."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.judging.template import Template

Messages = tuple[tuple[str, str], ...]  # (role, text)
_RESERVED = 200  # tokens that the released code sets aside before it halves the prompt for the two responses


@dataclasses.dataclass(frozen=True)
class Fitted:
    """(query, response_1, response_2) as they are shown, whether any was cut, and the prompt's ids with the responses
    in this order and in the other. `messages` gives its turns, without what begins the model's own. `lengths` are the
    texts' tokens before they were cut, and `uncut` what the prompt would have been, give or take a few merged ones."""

    texts: tuple[str, str, str]
    truncated: bool
    ids: list[int]
    turned_ids: list[int]
    lengths: tuple[int, int, int]
    uncut: int

    def messages(self, template: Template, turned: bool) -> Messages:
        """System and user turn; `turned` shows the responses in the other order."""
        query, one, two = self.texts
        return _messages(template, query, *((two, one) if turned else (one, two)))


def fit(
    template: Template, tokenizer: Tokenizer, texts: Sequence[str], max_prompt_tokens: int, thinking: bool
) -> Fitted:
    """Cuts (query, response_1, response_2) so that the prompt, the prefix of the model's turn included, has at most
    `max_prompt_tokens`, in either order of the responses. Texts that fit are shown as they are given.

    A response keeps its last `(max_prompt_tokens − 200) // 2` tokens. Where that is still too much, because the
    query and the template need more than 200, the longest of the three texts lose their beginnings, down to one
    common length, until the prompt fits: a short query is never cut for the sake of long responses. Cuts are
    made between tokens and never inside a character. No text is encoded again as a whole once it is cut. A limit of
    at most 200 has no such halves, and only the second rule applies.

    Raises RrmError when the template alone is too long.
    """
    fixed = _fixed_tokens(template, tokenizer, thinking)
    if fixed >= max_prompt_tokens:
        raise RrmError(
            f"max_prompt_tokens {max_prompt_tokens} is too small: the template {template.name!r} alone takes {fixed}"
        )
    cap = (max_prompt_tokens - _RESERVED) // 2 if max_prompt_tokens > _RESERVED else max_prompt_tokens
    ends = [_Ends(tokenizer, text) for text in texts]
    lengths = [ends[0].length, *(min(end.length, cap) for end in ends[1:])]
    room = max_prompt_tokens - fixed
    while True:
        level = _level(lengths, room)
        query, one, two = (end.last(min(length, level)) for end, length in zip(ends, lengths, strict=True))
        ids = _encode(template, tokenizer, query, one, two, thinking)
        turned = ids if one == two else _encode(template, tokenizer, query, two, one, thinking)
        # Cutting may change how the tokens near the cut, and near the template's words, merge.
        excess = max(len(ids), len(turned)) - max_prompt_tokens
        if excess <= 0:
            truncated = (query, one, two) != tuple(texts)
            whole = ends[0].length, ends[1].length, ends[2].length
            return Fitted(
                (query, one, two), truncated, ids, turned, whole, fixed + sum(whole) if truncated else len(ids)
            )
        room = min(room, sum(min(length, level) for length in lengths)) - excess


def _level(lengths: Sequence[int], room: int) -> int:
    """The largest level such that the lengths, each cut down to it, sum to at most `room`."""
    for count, shortest in enumerate(sorted(lengths)):
        share = max(0, room) // (len(lengths) - count)
        if shortest > share:
            return share
        room -= shortest
    return max(lengths)


class _Ends:
    """A text, encoded once, and its endings."""

    def __init__(self, tokenizer: Tokenizer, text: str):
        self._text, self._spans = text, _spans(tokenizer, text)
        self.length = len(self._spans)

    def last(self, tokens: int) -> str:
        """The text from the first character that begins within the last `tokens` tokens."""
        if tokens >= self.length:
            return self._text
        for at in range(self.length - tokens, self.length):
            if self._spans[at][0] >= self._spans[at - 1][1]:
                return self._text[self._spans[at][0] :]
        return ""


@functools.lru_cache(maxsize=8)
def _spans(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """`token_spans` as int32 [tokens, 2]: queries and responses often come again in the next pairs."""
    return np.array(tokenizer.token_spans(text), np.int32).reshape(-1, 2)


@functools.lru_cache(maxsize=8)
def _fixed_tokens(template: Template, tokenizer: Tokenizer, thinking: bool) -> int:
    return len(_encode(template, tokenizer, "", "", "", thinking))


def _encode(template: Template, tokenizer: Tokenizer, query: str, one: str, two: str, thinking: bool) -> list[int]:
    return tokenizer.encode_chat(_messages(template, query, one, two), template.prefix(thinking))


def _messages(template: Template, query: str, one: str, two: str) -> Messages:
    return ("system", template.system), ("user", template.fill(query, one, two))
