"""What cleaning writes, OUT and OUT.dropped.jsonl, and the rows as they were from both of them.

OUT has the rows that stay, byte for byte, or the records where the input is a prepared data set. OUT.dropped.jsonl has
an object for each other row: row (its number), id, source, reason, detail, matched (rows or prompts that it is like),
and line, what stood there with its end, or base64 of that where it is not UTF-8.
"""

import base64
import binascii
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rrm_jax.data.builders import builder_like
from rrm_jax.data.cleaning import Reason
from rrm_jax.data.jsonl import RowError, decode_row, encode_row
from rrm_jax.data.prepared import Record, write_prepared
from rrm_jax.data.row_files import PreparedRows, RawRow, RowFile, parse_line
from rrm_jax.data.split_rows import lines_of, refuse_to_overwrite
from rrm_jax.data.whole_files import replacing
from rrm_jax.errors import RrmError
from rrm_jax.provenance import refuse_inputs_as_outputs

Outcomes = Iterable[tuple[RawRow, Reason | None]]


def beside(out: Path) -> tuple[Path, Path]:
    """OUT.dropped.jsonl and OUT.run.json."""
    return out.with_name(f"{out.name}.dropped.jsonl"), out.with_name(f"{out.name}.run.json")


def check_out(rows: RowFile, out: Path) -> None:
    """Raises RrmError where writing to `out` would lose the input, or what is not this job's."""
    dropped, run = beside(out)
    refuse_inputs_as_outputs((out, dropped, run), [rows.path])
    if rows.prepared is not None and out.exists():
        raise RrmError(f"{out} exists; remove it, or choose another --out")
    if rows.prepared is None and out.is_dir():
        raise RrmError(f"{out} is a directory; of a JSONL file a file is made")
    results: dict[Path, Callable[[bytes], bytes]] = {out: bytes, dropped: lambda line: _dropped_row(line)[1]}
    try:
        refuse_to_overwrite(results, run, rows.path, lambda: (row.line for row in rows))
    except RowError as error:
        raise RrmError(f"{dropped} is another job's: {error}; choose another --out") from None


def write_cleaned(rows: RowFile, outcomes: Outcomes, out: Path, settings: dict[str, Any]) -> None:
    """Writes both files; OUT appears last, and nothing does before it is complete. Raises RrmError."""
    dropped, _ = beside(out)
    if isinstance(rows, PreparedRows):
        made = rows.prepared.facts.get("cleaned", [])
        facts = rows.prepared.facts | {"cleaned": [*made, settings | {"data_sha256": rows.prepared.fingerprint}]}
        records = _kept_records(outcomes, dropped)
        write_prepared(out, builder_like(rows.path), records, kind=rows.kind, facts=facts)
        return
    with replacing(out, dropped) as (kept, left_out):
        for row, reason in outcomes:
            if reason is None:
                kept.write(row.line)
            else:
                left_out.write(_dropped_line(row, reason))


def _kept_records(outcomes: Outcomes, dropped: Path) -> Iterator[Record]:
    with replacing(dropped) as (left_out,):
        for row, reason in outcomes:
            if reason is not None:
                left_out.write(_dropped_line(row, reason))
            elif row.record is not None:
                yield row.record


def _dropped_line(row: RawRow, reason: Reason) -> bytes:
    made: dict[str, Any] = {"row": row.number}
    if row.record is not None:
        made |= {"id": row.record.id, "source": getattr(row.record, "source", "")}
    made |= {"reason": reason.name, "detail": reason.detail, "matched": [*reason.matched]}
    try:
        made["line"] = row.line.decode("utf-8")
    except UnicodeDecodeError:
        made["base64"] = base64.b64encode(row.line).decode("ascii")
    return encode_row(made)


def _dropped_row(line: bytes) -> tuple[int, bytes]:
    """The number and the line of a row that was left out. Raises RowError."""
    row = decode_row(line)
    try:
        text = row["line"].encode("utf-8") if "line" in row else base64.b64decode(row["base64"], validate=True)
        return int(row["row"]), text
    except (KeyError, AttributeError, TypeError, ValueError, binascii.Error) as error:
        raise RowError(f"a row that rrm data clean did not write ({type(error).__name__} {error})") from None


def restore(out: Path, restored: Path, progress: Callable[[], None] = lambda: None) -> int:
    """Writes the input of the cleaning that made `out` to the new `restored`, byte for byte, or record for record.

    Returns how many rows that are. Raises RrmError where a file is missing, or is not as the cleaning left it: the
    SHA-256 of what is restored must be the input's.
    """
    dropped, run = beside(out)
    if restored.exists():
        raise RrmError(f"{restored} exists; remove it, or choose another --out")
    if not dropped.is_file():
        raise RrmError(f"{dropped} is missing; what was left out of {out} stands there")
    if out.is_dir():
        return _restore_prepared(PreparedRows(out), dropped, restored, progress)
    count = 0
    with replacing(restored) as (file,):
        for line in _checked(_merged(lines_of(out), dropped), _fingerprint_before(out, run), out, progress):
            file.write(line)
            count += 1
    return count


def _restore_prepared(rows: PreparedRows, dropped: Path, restored: Path, progress: Callable[[], None]) -> int:
    *before, last = rows.prepared.facts.get("cleaned") or [{}]
    if "data_sha256" not in last:
        raise RrmError(f"{rows.path} was not made by rrm data clean")
    facts = {name: value for name, value in rows.prepared.facts.items() if name != "cleaned"}
    facts |= {"cleaned": before} if before else {}
    lines = _checked(_merged((row.line for row in rows), dropped), last["data_sha256"], rows.path, progress)
    records = (parse_line(line, rows.kind) for line in lines)
    return write_prepared(restored, builder_like(rows.path), records, kind=rows.kind, facts=facts)


def _fingerprint_before(out: Path, run: Path) -> str:
    try:
        return json.loads(run.read_text(encoding="utf-8"))["inputs"]["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RrmError(f"{run} does not say what {out} was made of ({type(error).__name__} {error})") from None


def _merged(kept: Iterator[bytes], dropped: Path) -> Iterator[bytes]:
    """Rows that were left out at their numbers, and the others in between."""
    number = 0
    for at, line in enumerate(lines_of(dropped), start=1):
        try:
            place, row = _dropped_row(line)
        except RowError as error:
            raise RrmError(f"{dropped}:{at}: {error}") from None
        yield from itertools.islice(kept, max(0, place - number - 1))
        yield row
        number = place
    yield from kept


def _checked(lines: Iterator[bytes], expected: str, out: Path, progress: Callable[[], None]) -> Iterator[bytes]:
    made = hashlib.sha256()
    for line in lines:
        made.update(line)
        progress()
        yield line
    if made.hexdigest() != expected:
        dropped, run = beside(out)
        raise RrmError(f"{out} and {dropped} do not give what was cleaned: one of them, or {run}, was changed since")
