"""Prompts as token ids: how a pair becomes them, and files that keep those of every pair of a source.

Light to import: worker processes import this module, and take no device.
"""

import contextlib
import dataclasses
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.records import Pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.workers import in_order
from rrm_jax.errors import RrmError
from rrm_jax.judging.prompt import fit
from rrm_jax.judging.template import Template


class Encoded(NamedTuple):
    """A pair's prompt with its responses in their order, and in the other."""

    ids: Sequence[int] | np.ndarray
    turned_ids: Sequence[int] | np.ndarray
    truncated: bool

    def prompt_ids(self, turned: bool) -> list[int]:
        """In the row's order, or `turned`."""
        return [int(token) for token in (self.turned_ids if turned else self.ids)]


@dataclasses.dataclass(frozen=True)
class Encode:
    """Pair → prompts; the responses' own thinking is not shown (docs/method.md)."""

    template: Template
    tokenizer: Tokenizer
    max_prompt_tokens: int
    thinking: bool

    def __call__(self, pair: Pair) -> Encoded:
        """Prompts of at most `max_prompt_tokens`."""
        texts = pair.query, strip_thinking(pair.response_1), strip_thinking(pair.response_2)
        fitted = fit(self.template, self.tokenizer, texts, self.max_prompt_tokens, self.thinking)
        return Encoded(fitted.ids, fitted.turned_ids, fitted.truncated)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the ids."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "template": self.template.sha256,
            "max_prompt_tokens": self.max_prompt_tokens,
            "thinking": self.thinking,
        }


class TokenCache:
    """The prompts of every pair of one source, by the pair's number, in files that are mapped into memory.

    DIRECTORY/ids.uint32 holds all token ids, ends.npy where each prompt ends (both orders of a pair in turn),
    truncated.npy which pairs were cut, cache.json what they were made of: 8 bytes a token of a prompt.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._ends = np.load(directory / "ends.npy", mmap_mode="r")
        self._ids = np.memmap(directory / "ids.uint32", np.uint32, "r")
        self._truncated = np.load(directory / "truncated.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._truncated)

    @property
    def tokens(self) -> int:
        """Of all prompts, both orders of each pair."""
        return len(self._ids)

    @property
    def cut(self) -> int:
        """How many pairs were cut to fit."""
        return int(self._truncated.sum())

    def __getitem__(self, row: int) -> Encoded:
        start = self._ends[2 * row - 1] if row else 0
        middle, end = self._ends[2 * row : 2 * row + 2]
        return Encoded(self._ids[start:middle], self._ids[middle:end], bool(self._truncated[row]))


def open_token_cache(
    home: Path,
    rows: Sequence[Pair],
    data: str,
    encode: Encode,
    workers: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> TokenCache:
    """The cache of these pairs below `home`, made now where it is not there; `data` is the pairs' fingerprint.

    One made of other pairs, or by another tokenizer, template or length, has another directory, and is never used for
    these. It appears when it is complete. Raises RrmError where it cannot be written, or is damaged.
    """
    facts = {"data": data, "pairs": len(rows), **encode.settings}
    directory = home / _name(facts)
    try:
        if not directory.exists():
            _write_cache(directory, rows, facts, encode, workers, progress)
        if json.loads((directory / "cache.json").read_text(encoding="utf-8")) != facts:
            raise RrmError(f"{directory} is a cache of something else; remove it")
        cache = TokenCache(directory)
        if len(cache) != len(rows) or int(cache._ends[-1]) != len(cache._ids):
            raise RrmError(f"{directory} is damaged; remove it, and it is made anew")
        return cache
    except (OSError, ValueError) as error:
        raise RrmError(f"the token cache {directory} cannot be used ({error}); remove it, or choose another") from None


def _name(facts: dict[str, Any]) -> str:
    return f"tokens-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"


def _write_cache(
    directory: Path,
    rows: Sequence[Pair],
    facts: dict[str, Any],
    encode: Encode,
    workers: int,
    progress: Callable[[], None],
) -> None:
    # Several processes on one file system may make it at once: each its own, and the first is kept. Containers on
    # several hosts often have the same process number.
    partial = directory.with_name(f".{directory.name}.{secrets.token_hex(8)}.partial")
    partial.mkdir(parents=True)
    ends, truncated = np.zeros(2 * len(rows), np.int64), np.zeros(len(rows), bool)
    try:
        with open(partial / "ids.uint32", "wb") as file, in_order(_Row(rows, encode), workers, 0, len(rows)) as encoded:
            for at, each in enumerate(encoded):
                for ids in (each.ids, each.turned_ids):
                    file.write(np.asarray(ids, np.uint32).tobytes())
                ends[2 * at : 2 * at + 2] = len(each.ids), len(each.turned_ids)
                truncated[at] = each.truncated
                progress()
        np.save(partial / "ends.npy", np.cumsum(ends))
        np.save(partial / "truncated.npy", truncated)
        (partial / "cache.json").write_text(json.dumps(facts), encoding="utf-8")
        with contextlib.suppress(FileExistsError, OSError):
            partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Row:
    rows: Sequence[Pair]
    encode: Encode

    def __call__(self, row: int) -> Encoded:
        # Between processes an array of bytes, where a list of integers would be pickled one by one.
        encoded = self.encode(self.rows[row])
        ids, turned = (np.asarray(each, np.uint32) for each in (encoded.ids, encoded.turned_ids))
        return Encoded(ids, turned, encoded.truncated)
