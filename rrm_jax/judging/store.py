"""The vote log: what has been judged is never judged again, however often the job is killed and started."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rrm_jax.data.jsonl import AppendLog
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


_FIELDS = tuple(field.name for field in dataclasses.fields(VoteRecord))


class VoteLog:
    """An append-only JSONL file: a first row of settings, then one row per vote, as it comes, under its key.

    A key is a digest of all that a vote depends on (see `Judge`), not of where it stood in some file, so one log
    serves any number of comparisons. Records stay on disk; only keys and offsets are held in memory.
    Opening a log under other settings raises RrmError that says which differ; so does one that is being written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        self.path = Path(path)
        self._offsets: dict[str, int] = {}
        with contextlib.ExitStack() as opened:  # closes, and so unlocks, a file that turns out unusable
            self._reader = opened.enter_context(_open_locked(self.path))
            self._log = opened.enter_context(AppendLog(self.path))
            self._index(dict(settings))
            opened.pop_all()

    def _index(self, settings: dict[str, Any]) -> None:
        with open(self.path, "rb") as file:
            first = file.readline()
            if not first:
                self._log.append({"settings": settings})
                return
            self._check(self._row(first, 1), settings)
            at = len(first)
            for number, line in enumerate(file, start=2):
                self._offsets[self._row(line, number)["key"]] = at
                at += len(line)

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if isinstance(row, dict) and ("settings" if number == 1 else "key") in row:
                return row
        except ValueError:
            pass
        raise RrmError(
            f"{self.path}:{number}: not a row of a vote log; the file is damaged, or another's: move it away"
        )

    def _check(self, header: dict[str, Any], settings: dict[str, Any]) -> None:
        before, now = header["settings"], json.loads(json.dumps(settings))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            lines = "".join(f"\n  {key}: was {before.get(key)!r}, is now {now.get(key)!r}" for key in changed)
            raise RrmError(
                f"{self.path} was begun with other settings; choose another output, or give the same:{lines}"
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def get(self, key: str) -> VoteRecord | None:
        at = self._offsets.get(key)
        if at is None:
            return None
        self._reader.seek(at)
        row = json.loads(self._reader.readline())
        return VoteRecord(**{name: row[name] for name in _FIELDS if name in row})  # older logs lack the newer fields

    def put(self, key: str, record: VoteRecord) -> None:
        """On disk when it returns (as far as a killed process is concerned)."""
        at = self.path.stat().st_size
        self._log.append({"key": key, **dataclasses.asdict(record)})
        self._offsets[key] = at

    def close(self) -> None:
        self._reader.close()
        self._log.close()

    def __enter__(self) -> "VoteLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_locked(path: Path) -> IO[bytes]:
    """For reading, made if need be; the lock is held until the file is closed or the process ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab+")  # noqa: SIM115
    except OSError as error:
        raise RrmError(f"cannot write {path}: {error.strerror or error}") from None
    with contextlib.suppress(OSError):  # not every file system has locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RrmError(f"{path} is being written by another run; wait for it, or choose another output") from None
    return file
