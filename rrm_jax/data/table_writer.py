"""Files of rows for others to read: JSON lines, a JSON list or Parquet, by the name's ending."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rrm_jax.data.formats import Row, Type
from rrm_jax.data.jsonl import encode_row
from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    import pyarrow as pa

OUTPUT_ENDINGS = (".jsonl", ".json", ".parquet")

_ROWS_OF_A_GROUP = 1_000
_BYTES_OF_A_GROUP = 1 << 28


def write_rows(path: Path, rows: Iterable[Row], columns: dict[str, Type]) -> int:
    """Writes a file that appears when it is complete, and not where `rows` raises; returns how many rows it has.

    Parquet has `columns` and nothing else. Raises RrmError for no rows, another ending, or a file system that cannot
    take it.
    """
    if path.suffix not in OUTPUT_ENDINGS:
        raise RrmError(f"{path} must end with one of {', '.join(OUTPUT_ENDINGS)}")
    partial = path.with_name(f".{path.name}.partial")
    counted = _Counted(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            if path.suffix == ".parquet":
                _write_parquet(file, counted, columns)
            else:
                _write_json(file, counted, as_list=path.suffix == ".json")
        if not counted.count:
            raise RrmError(f"there is no row to write to {path}")
        partial.replace(path)
    except OSError as error:
        raise RrmError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return counted.count


class _Counted:
    def __init__(self, rows: Iterable[Row]):
        self._rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.count += 1
            yield row


def _write_json(file: BinaryIO, rows: Iterable[Row], as_list: bool) -> None:
    before = b"[\n"
    for row in rows:
        line = encode_row(row)
        file.write(before + line[:-1] if as_list else line)
        before = b",\n"
    if as_list:
        file.write(b"\n]\n")


def _write_parquet(file: BinaryIO, rows: Iterable[Row], columns: dict[str, Type]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _arrow_type(of)) for name, of in columns.items()])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Arrow takes less than 2 GiB of text at a time, and a reader of Parquet a group at a time."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(encode_row(row))
        if len(group) == _ROWS_OF_A_GROUP or size >= _BYTES_OF_A_GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _arrow_type(of: Type) -> "pa.DataType":
    import pyarrow as pa

    types: dict[Type, Any] = {
        "text": pa.string(),
        "int": pa.int64(),
        "texts": pa.list_(pa.string()),
        "bools": pa.list_(pa.bool_()),
        "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
    return types[of]
