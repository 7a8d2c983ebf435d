"""The verdict store: what has been judged is never judged again, by whichever job, strategy or verb asks for it.

A store is one append-only JSONL file. A settings row, `{digest, settings}`, says once what a judge's votes depend on
beside texts (model, tokenizer, template, decoding, seed, …); a vote row names its settings by their digest, says what
was shown by digests of the texts, and holds the VoteRecord. Votes of other settings stand side by side and are never
mixed up: a vote's key is a digest of (settings, texts as shown, vote number), wherever it stood in whichever file.

Why not SQLite: its WAL mode needs memory shared by all who use the file, so it cannot live on the network file systems
on which clusters keep results; a text file can be read, cut and joined with any tool, is what every other log here is,
and what earlier versions wrote is a store as it stands. The price: opening reads the whole file once, and the index
(a key and an offset, some 150 bytes a vote, never a text) is in memory. docs/verification.md has the figures.

Several processes may use a store at once. Each append is made under a lock of the file, after reading what others have
appended; a vote that two of them drew at the same time is stored once, the first, and both go on with that one. On a
file system without locks there must be one writer. A killed process loses at most the row it was writing.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rrm_jax.data.jsonl import AppendLog, end_of_rows
from rrm_jax.errors import RrmError
from rrm_jax.judging.verdict import Verdict
from rrm_jax.sampling.protocol import FinishReason


@dataclasses.dataclass(frozen=True)
class VoteRecord:
    """One completion of the judge. `verdict` is in the order shown; `tokens` counts what was written, the stop
    token included; `truncated_input` says that the query or a response was cut to fit the prompt. `forced`: its
    thinking budget was used up. `probability`: the model's own that Assistant 1 is the better, where the verdict was
    constrained."""

    verdict: Verdict | None
    text: str
    tokens: int
    finish_reason: FinishReason
    truncated_input: bool
    forced: bool = False
    probability: float | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a vote is of: digests of the settings, of the texts (query and both responses, together), of the query and
    of the responses in the order shown, all before they are cut to fit; and the vote's number."""

    settings: str
    texts: str
    vote: int
    query: str
    shown: tuple[str, str]

    @functools.cached_property
    def key(self) -> str:
        """What a vote is stored under."""
        return _key(self.settings, self.texts, self.vote)


@dataclasses.dataclass(frozen=True)
class StoredVote:
    """A vote row. `asked` is None in rows of earlier versions, which kept the key alone."""

    key: str
    settings: str
    asked: Asked | None
    record: VoteRecord

    def to_row(self) -> dict[str, Any]:
        """JSON."""
        asked = {} if self.asked is None else dataclasses.asdict(self.asked)
        return {"key": self.key, "settings": self.settings, **asked, **dataclasses.asdict(self.record)}


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)
_DIGEST = re.compile("[0-9a-f]{64}")
_OF_A_JOB = ("votes", "order", "strategy")  # in the headers of earlier versions, and nothing that a vote depends on


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(_ENCODER.encode(value).encode()).hexdigest()


def _key(settings: str, texts: str, vote: int) -> str:
    """`digest([settings, texts, vote])` of what needs no escapes, which a store computes for each of its rows."""
    return hashlib.sha256(f'["{settings}","{texts}",{vote}]'.encode()).hexdigest()


class VoteLog:
    """A verdict store, open for reading and, unless `write` is False, for appending.

    Raises RrmError naming file and line for a row that is none of a store's. A torn last line is dropped. Where a vote
    is stored twice with different content the first one counts, and `report` is told of each; without `report` it is
    an RrmError.

    `settings` maps digests to settings; `found` and `written` count the votes that were got and put so far.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        write: bool = True,
        report: Callable[[str], None] | None = None,
    ):
        self.path = Path(path)
        self.settings: dict[str, dict[str, Any]] = {}
        self.found = self.written = 0
        self._report = report
        self._offsets: dict[bytes, int] = {}
        self._end = self._lines = 0  # of what is indexed
        self._header: str | None = None  # the settings of rows that name none
        self._log: AppendLog | None = None
        with contextlib.ExitStack() as opened:  # closes a file that turns out unusable
            self._file = opened.enter_context(_open(self.path, write))
            self._catch_up()
            if write:
                with self._lock(fcntl.LOCK_EX):  # it drops a torn line, which must be no other's that is being written
                    self._catch_up(locked=True)
                    self._check_torn()
                    self._log = opened.enter_context(AppendLog(self.path))
            opened.pop_all()

    def __len__(self) -> int:
        return len(self._offsets)

    def get(self, key: str) -> VoteRecord | None:
        """The vote under `key`, if it is stored, by whomever."""
        if bytes.fromhex(key) not in self._offsets:
            self._catch_up()
        vote = self._stored(key)
        if vote is None:
            return None
        self.found += 1
        return vote.record

    def put(self, asked: Asked, record: VoteRecord) -> VoteRecord:
        """Stores a vote, on disk when it returns (as far as a killed process is concerned). Returns the vote that
        counts: another one when another process was first."""
        return self.add(StoredVote(asked.key, asked.settings, asked, record))[0].record

    def add(self, vote: StoredVote) -> tuple[StoredVote, bool]:
        """The vote stored under this one's key, and whether that is this one, now written."""
        with self._lock(fcntl.LOCK_EX):
            self._catch_up(locked=True)
            kept = self._stored(vote.key)
            if kept is not None:
                return kept, False
            if vote.settings not in self.settings:
                raise ValueError(f"settings {vote.settings} of a vote have not been declared")
            self._offsets[bytes.fromhex(vote.key)] = self._append(vote.to_row())
        self.written += 1
        return vote, True

    def declare(self, settings: Mapping[str, Any]) -> str:
        """Settings under which votes will be put; gives their digest."""
        plain = json.loads(json.dumps(settings))
        name = digest(plain)
        if name not in self.settings:
            with self._lock(fcntl.LOCK_EX):
                self._catch_up(locked=True)
                if name not in self.settings:
                    self._append({"digest": name, "settings": plain})
                    self.settings[name] = plain
        return name

    def votes(self, settings: Collection[str] | None = None) -> Iterator[StoredVote]:
        """Every vote once, in the order stored; only those of `settings` (digests), if given."""
        for at, row in self._rows(0, 0, self._end):
            if row is None or (settings is not None and row["settings"] not in settings):
                continue
            if self._offsets[bytes.fromhex(row["key"])] == at:
                yield _vote(row)

    def close(self) -> None:
        """Votes that were put are in the file already."""
        self._file.close()
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> "VoteLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(self._file, how)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _catch_up(self, locked: bool = False) -> None:
        """Indexes what has been appended since. Whole rows never change, so they are read without the lock."""
        if os.fstat(self._file.fileno()).st_size != self._end:
            with contextlib.nullcontext() if locked else self._lock(fcntl.LOCK_SH):
                end = end_of_rows(self._file)
            self._index(end)

    def _check_torn(self) -> None:
        """What is dropped must be the beginning of a row, not all of a file that somebody named by mistake."""
        torn = os.pread(self._file.fileno(), 16, self._end)
        begins = (b'{"key":', b'{"digest":', b'{"settings":')
        if not any(torn.startswith(begin) or begin.startswith(torn) for begin in begins):
            raise RrmError(f"{self.path}:{self._lines + 1}: not a row of a verdict store; the file is another's")

    def _append(self, row: dict[str, Any]) -> int:
        """Under the lock, all before it being indexed. Where the row begins."""
        if self._log is None:
            raise ValueError(f"{self.path} was opened for reading")
        at = self._end
        if os.fstat(self._file.fileno()).st_size > at:  # a row that a killed process left half written
            os.ftruncate(self._file.fileno(), at)
        self._log.append(row)
        self._end, self._lines = os.fstat(self._file.fileno()).st_size, self._lines + 1
        return at

    def _index(self, end: int) -> None:
        for at, row in self._rows(self._end, self._lines, end):
            if row is None or self._offsets.setdefault(bytes.fromhex(row["key"]), at) == at:
                continue
            first = self._stored(row["key"])
            if first is not None and first.record != _vote(row).record:
                self._contradicted(
                    f"{self.path}:{self._lines}: vote {row['key']} contradicts what is stored under the same key at "
                    f"byte {self._offsets[bytes.fromhex(row['key'])]}"
                )

    def _contradicted(self, what: str) -> None:
        if self._report is None:
            raise RrmError(f"{what}; `rrm verdicts import` into a new store keeps the first of them")
        self._report(f"{what}; the first counts")

    def _rows(self, at: int, number: int, end: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """(offset, what `_parse` makes of it) of each row from byte `at`, before which are `number` rows."""
        if at >= end:
            return
        with open(self.path, "rb") as file:
            file.seek(at)
            for line in file:
                number += 1
                row = self._parse(line, number)
                start, at = at, at + len(line)
                if at > self._end:
                    self._end, self._lines = at, number
                yield start, row
                if at >= end:
                    return

    def _stored(self, key: str) -> StoredVote | None:
        at = self._offsets.get(bytes.fromhex(key))
        if at is None:
            return None
        parts = []
        # Not through a buffer, which could still hold half a row of a killed process, since replaced.
        while b"\n" not in (part := os.pread(self._file.fileno(), 1 << 16, at)):
            parts.append(part)
            at += len(part)
            if not part:
                raise RrmError(f"{self.path} has become shorter while it was in use")
        line = b"".join(parts) + part[: part.index(b"\n") + 1]
        row = self._parse(line, None)
        return None if row is None else _vote(row)

    def _parse(self, line: bytes, number: int | None) -> dict[str, Any] | None:
        """A vote's row, checked; of settings None, when they have been noted."""
        where = f"{self.path}:{number}" if number is not None else str(self.path)
        try:
            row = json.loads(line.decode())
            if "key" in row:
                return self._checked(row)
            settings, name = row["settings"], row.get("digest")
            if name is None and number == 1:  # the header of an earlier version
                settings = {key: value for key, value in settings.items() if key not in _OF_A_JOB}
                name = self._header = digest(settings)
            if digest(settings) != name:
                raise ValueError("its digest is not that of its settings")
            self.settings[name] = settings
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise RrmError(
                f"{where}: not a row of a verdict store ({why}); the file is damaged, or another's: move it away"
            ) from None

    def _checked(self, row: dict[str, Any]) -> dict[str, Any]:
        key, settings = row["key"], row.setdefault("settings", self._header)
        if settings not in self.settings:
            raise ValueError(f"no row before it has the settings {settings}")
        if not _DIGEST.fullmatch(key):
            raise ValueError(f"its key {key!r} is no digest")
        if "texts" in row:
            if type(row["query"]) is not str or len(row["shown"]) != 2:
                raise ValueError("its query is no digest, or it does not show two responses")
            if key != _key(settings, row["texts"], row["vote"]):
                raise ValueError("its key is not that of its settings, texts and vote")
        if row["verdict"] not in (1, 2, None) or row["finish_reason"] not in ("stop", "length"):
            raise ValueError("its verdict is not 1, 2 or null, or its finish_reason not stop or length")
        if type(row["text"]) is not str or type(row["tokens"]) is not int or type(row["truncated_input"]) is not bool:
            raise ValueError(
                "its text is no text, its tokens are no number, or its truncated_input is not true or false"
            )
        return row


def _vote(row: dict[str, Any]) -> StoredVote:
    asked = None
    if "texts" in row:
        asked = Asked(row["settings"], row["texts"], row["vote"], row["query"], tuple(row["shown"]))
    # Rows of earlier versions lack the newer fields.
    record = VoteRecord(
        row["verdict"], row["text"], row["tokens"], row["finish_reason"], row["truncated_input"],
        row.get("forced", False), row.get("probability"),
    )  # fmt: skip
    return StoredVote(row["key"], row["settings"], asked, record)


@dataclasses.dataclass
class Merged:
    """What `merge` did: votes new to the store, votes it had, and votes it had with other content."""

    new: int = 0
    known: int = 0
    contradictory: int = 0


def merge(
    source: VoteLog,
    into: VoteLog,
    settings: Collection[str],
    report: Callable[[str], None],
    advance: Callable[[], None] = lambda: None,
) -> Merged:
    """Adds the votes of `settings` (digests) to another store. What that store has stays: `report` is told of each
    vote of `source` that contradicts it."""
    done = Merged()
    for name in settings:
        into.declare(source.settings[name])
    for vote in source.votes(settings):
        kept, new = into.add(vote)
        done.new += new
        done.known += not new
        if kept.record != vote.record:
            done.contradictory += 1
            report(f"{source.path}: vote {vote.key} contradicts the one in {into.path}, which is kept")
        advance()
    return done


def _open(path: Path, write: bool) -> IO[bytes]:
    """Unbuffered; made if need be."""
    try:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab+" if write else "rb", buffering=0)
    except OSError as error:
        raise RrmError(f"cannot {'write' if write else 'read'} {path}: {error.strerror or error}") from None
