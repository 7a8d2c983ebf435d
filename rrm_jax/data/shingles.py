"""Texts in the form in which they are compared: normalised, as words, and as hashes of each n words in a row."""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

# Scripts that put no blanks between words: kana, Han, Thai to Khmer. There each character is a word.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")
_WORD_OR_SYMBOL = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")
_ODD = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str) -> str:
    """Unicode NFC without case, each run of blanks one space, none at the ends."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def digest(texts: Iterable[str]) -> bytes:
    """16 bytes of texts and of where each ends."""
    made = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8")
        made.update(len(data).to_bytes(8) + data)
    return made.digest()


def shingles(text: str, size: int, symbols: bool = False) -> np.ndarray:
    """The different hashes, uint64 ascending, of each `size` words in a row of the normalised text.

    Punctuation and blanks count for nothing, or with `symbols` each mark is a word, so that `1+2` is not `1-2`. A text
    of fewer words has one hash, of the whole, which is that of no other text's part; one without words is a word.
    """
    normal = normalise(text)
    words = (_WORD_OR_SYMBOL if symbols else _WORD).findall(normal)
    if not words:
        words = [normal] if normal else []
    return _rolled(words, size)


def _rolled(words: Sequence[str], size: int) -> np.ndarray:
    if not words:
        return np.zeros(0, np.uint64)
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    size = min(size, len(words))
    made = np.full(len(words) - size + 1, size, np.uint64)  # a whole short text is no part of a longer one
    for at in range(size):
        made = (made ^ hashes[at : at + len(made)]) * _ODD
        made ^= made >> np.uint64(29)
    return np.unique(made)


@functools.lru_cache(1 << 16)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest())


def jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """Of sets of shingles, how many both have, as a share of those that either has; 0 of two empty ones."""
    both = len(np.intersect1d(one, two, assume_unique=True))
    either = len(one) + len(two) - both
    return both / either if either else 0.0
