"""Responses to questions, and where each is from: logs of what generators wrote, and files of candidates."""

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.jsonl import AppendLog, RowError, decode_row
from rrm_jax.data.records import Question, Unique, parse_candidates
from rrm_jax.data.tokenizer import END_THINK, THINK
from rrm_jax.errors import RrmError

UNFINISHED, CUT_OFF = "unfinished thinking", "cut off"


class Sample(NamedTuple):
    """Sample `number` of a question. Its text is `number` of what stands at byte `offset` of its source.

    `tokens` 0: not known. `truncated_input`: the end of the question had been cut off.
    """

    question: str
    number: int
    offset: int
    finish_reason: str | None = None
    correct: bool | None = None
    tokens: int = 0
    truncated_input: bool = False


class Source(Protocol):
    """Samples of one generator. `name` tells sources apart, `title` is for reading."""

    @property
    def name(self) -> str:
        """Different from that of every other source of a job, and the same in every run of it."""
        ...

    @property
    def title(self) -> str:
        """As a person knows the generator."""
        ...

    def samples(self) -> Iterator[tuple[Sample, str]]:
        """Each sample with its whole text, thinking included."""
        ...

    def text(self, sample: Sample) -> str:
        """As it was written, the thinking included; read again from the file."""
        ...

    def response(self, text: str, finish_reason: str | None) -> tuple[str, str | None]:
        """The response that a text ends with, and why it cannot be used, if so: UNFINISHED or CUT_OFF."""
        ...


def response_of(text: str, finish_reason: str | None, thinking: bool) -> tuple[str, str | None]:
    """The text after the last `</think>`, and why it cannot be used, if so.

    Without `</think>` a text is a response, but none of a generator that thinks (`thinking`), nor if it begins with
    `<think>`. One that reached the token limit is cut off.
    """
    if END_THINK not in text and (thinking or text.lstrip().startswith(THINK)):
        return "", UNFINISHED
    return strip_thinking(text).strip(), CUT_OFF if finish_reason == "length" else None


def gather(
    questions: Mapping[str, Question], sources: Sequence[Source], left_out: Counter[str]
) -> Iterator[tuple[Question, list[str]]]:
    """Each question with its finished responses, by source and number; the others are counted by reason."""
    for question, samples in by_question(questions, sources):
        responses = []
        for source, sample, text in samples:
            response, unusable = source.response(text, sample.finish_reason)
            if unusable or not response:
                left_out[unusable or "empty"] += 1
            else:
                responses.append(response)
        yield question, responses


def by_question(
    questions: Mapping[str, Question], sources: Sequence[Source]
) -> Iterator[tuple[Question, list[tuple[Source, Sample, str]]]]:
    """Each question with its samples and their whole texts, by source and number. Holds the texts of one question."""
    found: dict[str, list[tuple[int, Sample]]] = defaultdict(list)
    for at, source in enumerate(sources):
        for sample, _ in source.samples():
            if sample.question in questions:
                found[sample.question].append((at, sample))
    for question in questions.values():
        # Samples are logged as they come, in whatever order.
        ordered = sorted(found.get(question.id, ()), key=lambda one: (one[0], one[1].number))
        yield question, [(sources[at], sample, sources[at].text(sample)) for at, sample in ordered]


class SampleLog:
    """What one generator wrote, appended as it comes; for one writer.

    The first row, `{generator, title, thinking, settings}`, is what the samples depend on beside their prompts; a file
    that begins with another is an RrmError. Then `{question, sample, content, text, finish_reason, tokens}`, where
    `content` is a digest of the prompt's text, and `truncated_input` where its end had been cut off.
    """

    def __init__(self, directory: Path, generator: str, title: str, thinking: bool, settings: dict[str, Any]):
        header = {"generator": generator, "title": title, "thinking": thinking, "settings": settings}
        self.name = hashlib.sha256(
            json.dumps([generator, thinking, settings], sort_keys=True, default=str).encode()
        ).hexdigest()[:16]
        self.path = directory / f"{self.name}.jsonl"
        self._log = AppendLog(self.path)
        self.done: dict[tuple[str, int], str] = {}
        rows = self._log.rows()
        if next(rows, None) is None:
            self._log.append(header)
        for row in rows:
            try:
                self.done[row["question"], row["sample"]] = row["content"]
            except (KeyError, TypeError):
                raise RrmError(f"{self.path} holds a row that is no sample; move it away to start afresh") from None

    def append(
        self, question: str, number: int, content: str, text: str, finish_reason: str, tokens: int,
        truncated_input: bool = False,
    ) -> None:  # fmt: skip
        """A sample of `question`, `number` from 0; `content` is the digest of the prompt's text. A killed process loses
        none."""
        row = {"question": question, "sample": number, "content": content, "text": text}
        row |= {"finish_reason": finish_reason, "tokens": tokens}
        self._log.append(row | ({"truncated_input": True} if truncated_input else {}))
        self.done[question, number] = content

    def __enter__(self) -> "SampleLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()


@dataclasses.dataclass(frozen=True)
class LoggedSamples:
    """A `SampleLog`'s file, read; of each question the first `most` samples."""

    path: Path
    most: int
    title: str
    thinking: bool

    @classmethod
    def open(cls, path: Path, most: int) -> "LoggedSamples":
        """Reads the first row alone. RrmError for a file that is no log of samples."""
        try:
            with open(path, "rb") as file:
                header = decode_row(file.readline())
            return cls(path, most, str(header["title"]), bool(header["thinking"]))
        except (OSError, RowError, KeyError) as error:
            raise RrmError(f"{path} is no log of samples ({error}); move it away") from None

    @property
    def name(self) -> str:
        """The log's file name, without its ending."""
        return self.path.stem

    def samples(self) -> Iterator[tuple[Sample, str]]:
        """Each with its text, in the order written; what was drawn beyond `most` is left out."""
        for offset, row in _rows(self.path):
            if "question" in row and row["sample"] < self.most:
                about = {"tokens": row["tokens"], "truncated_input": row.get("truncated_input", False)}
                yield Sample(row["question"], row["sample"], offset, row["finish_reason"], **about), row["text"]

    def text(self, sample: Sample) -> str:
        """As `Source` has it."""
        return _row_at(self.path, sample.offset)["text"]

    def response(self, text: str, finish_reason: str | None) -> tuple[str, str | None]:
        """As `Source` has it."""
        return response_of(text, finish_reason, self.thinking)


@dataclasses.dataclass(frozen=True)
class CandidateFile:
    """Rows of candidates, as a source of samples: response c of a row is sample c. Where a row has `finish_reasons` and
    `tokens`, lists as long as its responses, they are the samples'.

    A row that `accept` raises RowError for is passed over: whoever opens the file has reported it.
    """

    path: Path
    thinking: bool = False
    accept: Callable[[dict[str, Any]], Any] = parse_candidates

    @property
    def name(self) -> str:
        """As `Source` has it."""
        return f"candidates {self.path.name}"

    @property
    def title(self) -> str:
        """The path."""
        return str(self.path)

    def samples(self) -> Iterator[tuple[Sample, str]]:
        """Each with its text, row by row."""
        accept = Unique(self.accept)
        for offset, row in _rows(self.path, damaged_is_error=False):
            try:
                accept(row)
                candidates = parse_candidates(row)
            except RowError:
                continue
            count = len(candidates.responses)
            finished, tokens = _each(row, "finish_reasons", count, str, None), _each(row, "tokens", count, int, 0)
            for number, text in enumerate(candidates.responses):
                correct = candidates.correct[number] if candidates.correct else None
                yield Sample(candidates.id, number, offset, finished[number], correct, tokens[number]), text

    def text(self, sample: Sample) -> str:
        """As `Source` has it."""
        return _row_at(self.path, sample.offset)["responses"][sample.number]

    def response(self, text: str, finish_reason: str | None) -> tuple[str, str | None]:
        """As `Source` has it."""
        return response_of(text, finish_reason, self.thinking)


def _each(row: dict[str, Any], key: str, count: int, kind: type, default: Any) -> list[Any]:
    """What the row says of each of its `count` responses; the default where it does not."""
    value = row.get(key)
    given = isinstance(value, list) and len(value) == count and all(type(one) is kind for one in value)
    return value if given else [default] * count


def _rows(path: Path, damaged_is_error: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file with the byte that each begins at; a torn last line is left out."""
    try:
        with open(path, "rb") as file:
            offset = 0
            for line in file:
                try:
                    if line.endswith(b"\n") or not damaged_is_error:
                        yield offset, decode_row(line)
                except RowError as error:
                    if damaged_is_error:
                        raise RrmError(f"{path}: the row at byte {offset} is damaged: {error}") from None
                offset += len(line)
    except OSError as error:
        raise RrmError(f"cannot read {path}: {error.strerror or error}") from None


def _row_at(path: Path, offset: int) -> dict[str, Any]:
    with open(path, "rb") as file:
        file.seek(offset)
        return decode_row(file.readline())
