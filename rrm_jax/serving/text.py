"""A completion's tokens as text while it is written: whole characters, thinking apart, up to a stop string."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from rrm_jax.data.tokenizer import END_THINK, THINK, Tokenizer

Field = Literal["reasoning_content", "content"]


class Detokenizer:
    """Text of tokens as they come, never half a character; all of it together is `Tokenizer.decode` of all tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._ids = tokenizer, list[int]()
        self._from = self._given = 0  # tokens that are decoded again for what they do to the next, and those given out

    def feed(self, ids: Sequence[int]) -> str:
        """The text that is certain now, "" where the tokens end within a character."""
        self._ids += ids
        before, now = self._texts()
        if now.endswith("\ufffd"):  # perhaps the beginning of a character
            return ""
        self._from, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def end(self) -> str:
        """What was held back."""
        before, now = self._texts()
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return decode(self._ids[self._from : self._given]), decode(self._ids[self._from :])


class Stopper:
    """Text up to the first of some strings: what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held, self.hit = stops, "", False

    def feed(self, text: str) -> str:
        """What can be given out; "" once a string was hit."""
        if self.hit:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            return self._held[: min(found)]
        held = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - held], self._held[len(self._held) - held :]
        return out

    def end(self) -> str:
        """What was held back, where no string was hit."""
        out, self._held = ("" if self.hit else self._held), ""
        return out


def _overlap(text: str, stop: str) -> int:
    """How much of the end of `text` is a beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How completions are written out. `separate`: what stands before the token `</think>` is `reasoning_content`.
    `opened`: the prompt has begun the thinking."""

    tokenizer: Tokenizer
    stops: tuple[str, ...]
    stop_ids: tuple[int, ...]
    separate: bool
    opened: bool


class Written:
    """One completion, from its tokens to the pieces that are given out.

    `tokens` counts those read so far, `stopped` says that a stop string was found: nothing more will come.
    """

    def __init__(self, layout: Layout):
        self._layout, tokenizer = layout, layout.tokenizer
        self._think, self._end_think = tokenizer.control_id(THINK), tokenizer.control_id(END_THINK)
        separate = layout.separate and self._end_think is not None
        self._field: Field = "reasoning_content" if separate and layout.opened else "content"
        self._may_open, self._separate = separate and not layout.opened, separate
        self._text, self._stop = Detokenizer(tokenizer), Stopper(layout.stops)
        self.tokens, self.stopped = 0, False

    def feed(self, ids: Sequence[int]) -> list[tuple[Field, str]]:
        """The pieces that can be given out, each with the field of the message that it belongs to."""
        pieces: list[tuple[Field, str]] = []
        run: list[int] = []
        for token in ids:
            if self.stopped:
                break
            self.tokens += 1
            if token in self._layout.stop_ids:  # it ends the completion, and is no text
                continue
            if self._may_open and token == self._think:
                self._field, self._may_open = "reasoning_content", False
            elif self._field == "reasoning_content" and token == self._end_think:
                pieces += self._write(run)
                pieces += self._flush()
                run, self._field = [], "content"
            else:
                self._may_open = False
                run.append(token)
                if self._layout.stops:  # token by token, so that it is known which one completed the string
                    pieces += self._write(run)
                    run = []
        pieces += self._write(run)
        return pieces

    def end(self) -> list[tuple[Field, str]]:
        """What was held back."""
        return [] if self.stopped else self._flush()

    def _write(self, ids: list[int]) -> list[tuple[Field, str]]:
        return self._out(self._stop.feed(self._text.feed(ids))) if ids else []

    def _flush(self) -> list[tuple[Field, str]]:
        pieces = self._out(self._stop.feed(self._text.end()))
        pieces += self._out(self._stop.end())
        self._text, self._stop = Detokenizer(self._layout.tokenizer), Stopper(self._layout.stops)
        return pieces

    def _out(self, text: str) -> list[tuple[Field, str]]:
        self.stopped = self.stopped or self._stop.hit
        return [(self._field, text)] if text else []


def opens_thinking(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt's last word on thinking is that it begins."""
    think, end = tokenizer.control_id(THINK), tokenizer.control_id(END_THINK)
    last = next((token for token in reversed(prompt_ids) if token in (think, end)), None)
    return last is not None and last == think
