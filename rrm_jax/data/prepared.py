"""Prepared data: records as a tfds data set of ArrayRecord files, written and read without TensorFlow.

OUT/*.array_record-*     the records, in the order in which they were given
OUT/features.json, dataset_info.json     tfds' own: `tfds.builder_from_directory(OUT).as_data_source("train")` reads it
OUT/prepared.json        which kind of record, how many, where from, the files' sizes and the content's SHA-256

Reading is random access to one record at a time; nothing is held but the index of the files.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rrm_jax.data.jsonl import Reader, encode_row
from rrm_jax.data.records import Candidates, Pair, Question, Vote, to_row
from rrm_jax.errors import RrmError

Kind = Literal["pairs", "questions", "candidates"]
Record = Pair | Question | Candidates
RECORDS: dict[str, type] = {"pairs": Pair, "questions": Question, "candidates": Candidates}
VERDICTS = "verdicts"
"""A fourth kind, of votes. Their settings are among the facts; `judging/prepared_store.py` writes and reads them."""
FACTS = "prepared.json"
_FORMAT = 1


def is_prepared(path: Path) -> bool:
    """Whether this is a directory that `write_prepared` has finished."""
    return (path / FACTS).is_file()


def content_file(path: Path) -> Path:
    """The file whose SHA-256 says which records there are: `path`, or, of a prepared directory, the facts in it."""
    return path / FACTS if is_prepared(path) else path


def write_prepared(
    out: Path,
    builder: type,
    rows: Iterable[Record | Vote],
    *,
    kind: Kind | Literal["verdicts"],
    facts: dict[str, Any],
    progress: Callable[[], None] = lambda: None,
) -> int:
    """Writes records of one kind to the new directory `out`, by a tfds builder (a `RecordsBuilder`); returns how many.

    `out` appears when it is complete, and not where `rows` raises. `facts` (JSON) are kept in it. Raises RrmError for
    no rows at all, an `out` that exists, and a file system that cannot take it.
    """
    partial = out.with_name(f".{out.name}.partial")
    if out.exists():
        raise RrmError(f"{out} exists; remove it, or choose another")
    shutil.rmtree(partial, ignore_errors=True)
    digest, count, unlabelled = hashlib.sha256(), 0, 0

    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise RrmError(f"there is no record to write to {out}")

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count, unlabelled
        for record in itertools.chain([first], rows):
            row = to_features(record, kind)
            digest.update(encode_row(dataclasses.asdict(record)))
            count += 1
            unlabelled += isinstance(record, Pair) and record.label is None
            progress()
            yield row

    try:
        partial.mkdir(parents=True)
        written = builder(counted(), kind=kind, data_dir=partial).write()
        if written != count:
            raise RrmError(f"{written} of {count} records were written to {out}; this is a fault of the writer")
        home = next(partial.glob("*/*/features.json")).parent
        sizes = {file.name: file.stat().st_size for file in sorted(home.glob("*.array_record*"))}
        about = {
            "format": _FORMAT, "kind": kind, "records": count, "unlabelled": unlabelled, "sha256": digest.hexdigest(),
            "files": sizes, "from": facts,
        }  # fmt: skip
        (home / FACTS).write_text(json.dumps(about, indent=1, default=str) + "\n", encoding="utf-8")
        home.rename(out)
    except OSError as error:
        raise RrmError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def open_prepared(directory: Path) -> "Prepared":
    """The records of a directory. Raises RrmError, saying which file, where it is damaged or something else."""
    return Prepared(directory)


class Prepared(Sequence):
    """Records by number, read when they are asked for. Can be sent to other processes: each opens the files itself.

    With `verdicts` it must hold votes, without it anything but. `kind` says which records, `unlabelled` how many pairs
    have no label; `fingerprint` is a SHA-256 of all of them, and `facts` where they are from.
    """

    def __init__(self, directory: Path, verdicts: bool = False):
        self.directory = Path(directory)
        about = _read_facts(self.directory)
        if (about["kind"] == VERDICTS) != verdicts:
            what = "verdicts; rrm data convert makes a verdict store of them" if not verdicts else about["kind"]
            raise RrmError(f"{directory} holds {what}")
        self.kind: Kind = about["kind"]
        self.fingerprint: str = about["sha256"]
        self.facts: dict[str, Any] = about["from"]
        self.unlabelled: int = about["unlabelled"]
        self._count: int = about["records"]
        self._source: Any = None
        for name, size in about["files"].items():
            file = self.directory / name
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
                raise RrmError(f"{file} {state}: the data set is damaged; prepare it again")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        if self._source is None:
            self._source = _open_source(self.directory)
        try:
            return from_features(self._source[int(index) % len(self)], self.kind)
        except Exception as error:  # the reader's own kinds of error for a bad checksum or message
            raise RrmError(
                f"record {index} of {self.directory} cannot be read ({error}): the data set is damaged; prepare it anew"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}


class RecordReader[T](Reader[T]):
    """A `Reader` that takes the directory of a prepared data set as well: its records are parsed as their rows are."""

    def _rows(self) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
        if not is_prepared(self.path):
            yield from super()._rows()
            return
        for number, record in enumerate(open_prepared(self.path), start=1):
            yield number, functools.partial(to_row, record)


def _read_facts(directory: Path) -> dict[str, Any]:
    try:
        about = json.loads((directory / FACTS).read_text(encoding="utf-8"))
        if about["format"] != _FORMAT or about["kind"] not in (*RECORDS, VERDICTS):
            raise RrmError(f"{directory / FACTS} is of another version; prepare the data set again")
        about["files"].items(), about["records"], about["unlabelled"], about["sha256"], about["from"]
    except (FileNotFoundError, NotADirectoryError):
        raise RrmError(
            f"{directory} is no prepared data set: it has no {FACTS}; `rrm data prepare` makes one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RrmError(f"{directory / FACTS} cannot be read ({error}); prepare the data set again") from None
    return about


def _open_source(directory: Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(directory)).as_data_source(split="train")


def to_features(record: Record | Vote, kind: str) -> dict[str, Any]:
    """What tfds stores of a record: 0 for an unknown label, empty lists and flags for what is not known."""
    if not isinstance(record, Vote if kind == VERDICTS else RECORDS[kind]):
        raise TypeError(f"a {type(record).__name__} among {kind}")
    row = dataclasses.asdict(record)
    if isinstance(record, Vote):
        row |= {"verdict": record.verdict or 0, "has_asked": record.texts is not None}
        row |= {"texts": record.texts or "", "vote": record.vote or 0, "query": record.query or ""}
        # As text: tfds stores floats in 32 bits.
        row |= {"probability": json.dumps(record.probability), "shown": [*(record.shown or ())]}
    elif isinstance(record, Pair):
        row["label"] = record.label or 0
    elif isinstance(record, Question):
        row |= {"answer": record.answer or "", "has_answer": record.answer is not None}
    else:
        answers = record.answers or ()
        row |= {
            "correct": [*(record.correct or ())],
            "answers": [answer or "" for answer in answers],
            "has_answers": [answer is not None for answer in answers],
        }
    return row


def from_features(row: dict[str, Any], kind: str) -> Record | Vote:
    """The record again."""

    def text(key: str) -> str:
        return row[key].decode("utf-8")

    if kind == "pairs":
        label = int(row["label"]) or None
        return Pair(text("id"), text("query"), text("response_1"), text("response_2"), label, text("source"))
    if kind == "questions":
        answer = text("answer") if row["has_answer"] else None
        return Question(text("id"), text("query"), answer, text("source"), text("verifier"))
    if kind == VERDICTS:
        asked: dict[str, Any] = {}
        if row["has_asked"]:
            first, second = (digest.decode() for digest in row["shown"])
            asked = {"texts": text("texts"), "vote": int(row["vote"]), "query": text("query"), "shown": (first, second)}
        return Vote(
            text("key"), text("settings"), int(row["verdict"]) or None, text("text"), int(row["tokens"]),
            text("finish_reason"), bool(row["truncated_input"]), bool(row["forced"]), json.loads(text("probability")),
            **asked,
        )  # fmt: skip
    correct = tuple(bool(value) for value in row["correct"]) or None
    known = zip(row["answers"], row["has_answers"], strict=True)
    answers = tuple(answer.decode("utf-8") if there else None for answer, there in known) or None
    responses = tuple(response.decode("utf-8") for response in row["responses"])
    source = text("source") if "source" in row else ""  # which data sets of earlier versions lack
    return Candidates(text("id"), text("query"), responses, correct, answers, source)
