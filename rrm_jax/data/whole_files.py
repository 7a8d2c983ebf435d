"""Files that appear, or replace older ones, only when they are complete."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from rrm_jax.data.jsonl import encode_row
from rrm_jax.errors import RrmError

KEPT = "; every vote is kept, run again to go on"  # advice of jobs that judge


@contextlib.contextmanager
def replacing(*paths: Path, advice: str = "") -> Iterator[list[IO[bytes]]]:
    """Files that take the places of `paths`, the last one first, when all of them are complete.

    Where the body raises, or they cannot be written (an RrmError, with `advice` at its end), what was there stays.
    """
    parts = [path.with_name(f".{path.name}.partial") for path in paths]
    try:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(open(part, "wb")) for part in parts]
        for part, path in reversed([*zip(parts, paths, strict=True)]):
            os.replace(part, path)
    except OSError as error:
        names = " and ".join(map(str, paths))
        raise RrmError(f"cannot write {names}: {error.strerror or error}{advice}") from None
    finally:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink()


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Text is written as UTF-8. RrmError where the file cannot be written; what was there then stays."""
    with replacing(Path(path)) as (file,):
        file.write(content.encode() if isinstance(content, str) else content)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], advice: str = "; run again to go on") -> None:
    """JSON lines; what was there stays where `rows` raises. RrmError, with `advice` at its end, where the file cannot
    be written."""
    with replacing(path, advice=advice) as (file,):
        for row in rows:
            file.write(encode_row(row))
