"""Sampling what a model answers to questions, into a log that a killed job goes on from."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from rrm_jax.data.records import Question
from rrm_jax.data.samples import SampleLog
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.judging.verdict import written_text
from rrm_jax.sampling.protocol import Decoding, Generator, Request


class Asked(NamedTuple):
    """A question as a prompt: token ids, the same as messages, and whether its end was cut off to fit."""

    ids: tuple[int, ...]
    messages: tuple[tuple[str, str], ...]
    cut: bool = False


class Asking(Protocol):
    """How questions are put to a model."""

    def text(self, question: Question) -> str:
        """What is asked; the log keeps its digest."""
        ...

    def prompt(self, question: Question) -> Asked | None:
        """None: it is too long."""
        ...


class Sampling:
    """The requests that a log does not hold yet: `samples` to each question. Raises RrmError where the log holds
    answers to another question.

    `done` counts what is there already; once all requests were made, `too_long` and `cut` name the questions that
    were not asked, and those whose end was cut off.
    """

    def __init__(
        self, log: SampleLog, questions: Mapping[str, Question], asking: Asking, decoding: Decoding, samples: int,
        seed: int,
    ):  # fmt: skip
        self._log, self._questions, self._asking = log, questions, asking
        self._decoding, self._samples, self._seed = decoding, samples, seed
        self._open: dict[tuple[str, int], tuple[str, bool]] = {}
        self.too_long: list[str] = []
        self.cut: list[str] = []
        self.done = 0
        for (question, sample), content in log.done.items():
            if question in questions and sample < samples:
                self.done += 1
                if content != _digest(asking.text(questions[question])):
                    raise RrmError(f"{log.path} answers another question with id {question!r}; choose another --out")

    def run(self, generator: Generator, tokenizer: Tokenizer, with_messages: bool, advance: Callable[[], None]) -> int:
        """Draws them, appending each to the log as it comes; how many there were. `with_messages`: the generator reads
        conversations, not token ids."""
        drawn = 0
        for completion in generator.generate(self._requests(with_messages)):
            request = completion.request
            content, cut = self._open.pop((request.id, request.sample))
            self._log.append(
                request.id, request.sample, content, written_text(completion, tokenizer), completion.finish_reason,
                len(completion.token_ids), cut,
            )  # fmt: skip
            drawn += 1
            advance()
        return drawn

    def _requests(self, with_messages: bool) -> Iterator[Request]:
        for question in self._questions.values():
            missing = [k for k in range(self._samples) if (question.id, k) not in self._log.done]
            if not missing:
                continue
            asked = self._asking.prompt(question)
            if asked is None:
                self.too_long.append(question.id)
                continue
            if asked.cut:
                self.cut.append(question.id)
            messages = asked.messages if with_messages else ()
            for k in missing:
                self._open[question.id, k] = _digest(self._asking.text(question)), asked.cut
                yield Request(question.id, asked.ids, self._decoding, k, self._seed, messages)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
