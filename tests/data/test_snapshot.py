"""Files as the hub, `datasets` and others lay them out; columns, damage, and rows that cannot be read."""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.snapshot import open_snapshot
from rrm_jax.data.table_files import TableFile
from rrm_jax.errors import RrmError

ROWS = [{"q": f"question {at} é", "turns": [{"role": "user", "content": f"c{at}"}], "n": at} for at in range(700)]


def parquet(path: Path, rows=ROWS, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=300, **options)
    return path


def arrow(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    return path


def lines(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def json_list(path: Path, rows=ROWS, indent=None) -> Path:
    path.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    return path


def saved_to_disk(directory: Path, shards: int = 2, rows=ROWS, **facts) -> Path:
    """What `Dataset.save_to_disk` of datasets 5.2.0 writes."""
    names = [f"data-{at:05}-of-{shards:05}.arrow" for at in range(shards)]
    for at, name in enumerate(names):
        arrow(directory / name, [rows[i] for i in np.array_split(np.arange(len(rows)), shards)[at]])
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "58e8c7e86542bc9e"}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_split": None}
    (directory / "state.json").write_text(json.dumps(state | facts))
    (directory / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}))
    return directory


def read(path: Path, *options) -> list:
    return [row for _, _, row in open_snapshot(path, *options).rows()]


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (parquet, "a.parquet"), (arrow, "a.arrow"), (lines, "a.jsonl"), (lines, "a.jsonl.gz"), (lines, "a.json"),
        (json_list, "a.json"),
    ],
)  # fmt: skip
def test_every_format_gives_the_rows_that_were_written(write, name: str, tmp_path: Path):
    path = write(tmp_path / name)
    assert read(path) == ROWS
    assert read(tmp_path) == ROWS
    file = TableFile(path)
    assert file.count() == len(ROWS)
    assert set(file.columns) == {"q", "turns", "n"}
    assert [number for number, _ in file.rows()] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("write", [parquet, arrow])
def test_only_the_columns_asked_for_are_read(write, tmp_path: Path):
    file = TableFile(write(tmp_path / ("a.parquet" if write is parquet else "a.arrow")))
    assert next(iter(file.rows(("n", "turns", "none")))) == (1, {"turns": ROWS[0]["turns"], "n": 0})


def test_feather_files_are_read_too(tmp_path: Path):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path) == ROWS


def test_a_list_of_json_is_read_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rrm_jax.data.table_files._JSON_CHUNK", 7)
    rows = [*ROWS[:9], {"text": "ü] , [" * 10}, {}]
    assert read(json_list(tmp_path / "a.json", rows, indent=2)) == rows
    (tmp_path / "b.json").write_text('[{"a": 1}, 123456789, null, {"a": 2} ]')
    found = read(tmp_path / "b.json")
    assert (found[0], found[3]) == ({"a": 1}, {"a": 2})
    assert [str(error) for error in found[1:3]] == [
        "expected a JSON object, found int", "expected a JSON object, found NoneType",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}', '[{"a": 1}, {"a"', '[{"a": 1} {"a": 2}]', '[{"a": 1},]'])
def test_a_damaged_list_of_json_is_named(text: str, tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(RrmError, match=r"a\.json is damaged"):
        read(path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/math-00000-of-00001.parquet", "math"),
        ("default/test/0000.parquet", "test"),
        ("validation/part-0000.parquet", "validation"),
        ("squad-dev.parquet", "validation"),
        ("data/dapo-math-17k.parquet", "dapo-math-17k"),
        ("snapshots/0123456789abcdef0123456789abcdef01234567/data/train-00000-of-00001.parquet", "train"),
    ],
)
def test_splits_are_told_by_the_hubs_names(name: str, split: str, tmp_path: Path):
    parquet(tmp_path / name)
    parquet(tmp_path / ".cache" / "other-00000-of-00001.parquet")
    found = open_snapshot(tmp_path)
    assert (found.split, [found.name_of(file) for file in found.files]) == (split, [name])


def test_shards_are_read_in_order_and_splits_apart(tmp_path: Path):
    for at in (2, 0, 1):
        parquet(tmp_path / "data" / f"train-{at:05}-of-00003.parquet", ROWS[at * 100 : at * 100 + 100])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", ROWS[:5])
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert read(tmp_path, "train") == ROWS[:300]
    assert read(tmp_path, None, "test") == ROWS[:5]
    with pytest.raises(RrmError, match="several splits; choose with --split among test, train"):
        open_snapshot(tmp_path)
    with pytest.raises(RrmError, match="no split 'dev'; choose with --split among test, train"):
        open_snapshot(tmp_path, "dev")
    (tmp_path / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(RrmError, match="2 of 3 shards of split 'train'; number 1 missing"):
        open_snapshot(tmp_path, "train")


def test_directories_of_save_to_disk(tmp_path: Path):
    assert read(saved_to_disk(tmp_path / "one")) == ROWS
    for split in ("train", "own"):
        saved_to_disk(tmp_path / "dict" / split, 1, ROWS if split == "train" else ROWS[:3])
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "own"]}')
    assert read(tmp_path / "dict", "own") == ROWS[:3]
    assert read(tmp_path / "dict", None, "train") == ROWS
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(RrmError, match=r"state\.json names 'data-00001-of-00002\.arrow', which is not there"):
        open_snapshot(tmp_path / "one")


def test_save_to_disk_cannot_lead_elsewhere(tmp_path: Path):
    arrow(tmp_path / "secret.arrow")
    saved_to_disk(tmp_path / "a", _data_files=[{"filename": "../secret.arrow"}])
    with pytest.raises(RrmError, match="which is not there"):
        open_snapshot(tmp_path / "a")
    saved_to_disk(tmp_path / "b", _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(RrmError, match="flatten_indices"):
        open_snapshot(tmp_path / "b")
    (tmp_path / "b" / "state.json").write_text("[]")
    with pytest.raises(RrmError, match=r"state\.json does not say which files"):
        open_snapshot(tmp_path / "b")


def test_configurations_and_formats_are_not_mixed(tmp_path: Path):
    for name in ("all", "en"):
        parquet(tmp_path / "configs" / name / "train-00000-of-00001.parquet")
    with pytest.raises(RrmError, match="several configurations: all, en; give the directory of one"):
        open_snapshot(tmp_path / "configs")
    assert read(tmp_path / "configs" / "en") == ROWS
    parquet(tmp_path / "formats" / "train.parquet")
    lines(tmp_path / "formats" / "train.jsonl")
    with pytest.raises(RrmError, match=r"several formats \(\.jsonl, \.parquet\)"):
        open_snapshot(tmp_path / "formats")


def test_wrong_columns_are_listed(tmp_path: Path):
    with pytest.raises(RrmError) as error:
        open_snapshot(parquet(tmp_path / "a.parquet")).check_columns(("q", "answer", "id"), "the set X (org/x)")
    assert str(error.value).splitlines() == [
        f"{tmp_path}/a.parquet is not the set X (org/x): column(s) answer, id missing",
        "  expected: q, answer, id",
        "  found: q, turns, n",
    ]
    later = [{"a": 1}, {"a": 2, "b": 3}]
    open_snapshot(lines(tmp_path / "later.jsonl", later)).check_columns(("a", "b"), "x")


@pytest.mark.parametrize("write", [parquet, arrow, lines])
@pytest.mark.parametrize("keep", [0.99, 0.5, 0.001])
def test_a_file_that_is_cut_short_is_named(write, keep: float, tmp_path: Path):
    path = tmp_path / {parquet: "a.parquet", arrow: "a.arrow", lines: "a.jsonl.gz"}[write]
    data = write(path).read_bytes()
    path.write_bytes(data[: max(1, int(keep * len(data)))])
    with pytest.raises(RrmError, match=re.escape(str(path))):
        read(path)


def test_a_page_that_does_not_match_its_checksum_is_damage(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"question 500")] ^= 1
    path.write_bytes(data)
    with pytest.raises(RrmError, match=r"a\.parquet"):
        read(path)


def test_what_is_no_data_is_refused(tmp_path: Path):
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.pkl").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "empty").mkdir()
    for name, words in [("a.parquet", "Git LFS pointer"), ("b.jsonl", "is empty"), ("none", "no file or directory")]:
        with pytest.raises(RrmError, match=words):
            read(tmp_path / name)
    with pytest.raises(RrmError, match="not a file of data"):
        open_snapshot(tmp_path / "c.pkl")
    with pytest.raises(RrmError, match="holds no file of data"):
        open_snapshot(tmp_path / "empty")
    if os.geteuid():
        (tmp_path / "empty").chmod(0)
        with pytest.raises(RrmError, match="cannot read"):
            open_snapshot(tmp_path / "empty")


def test_rows_that_cannot_be_read_come_in_their_place(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n[2]\n{"a": "\xff"}\n{"a": 5}')
    found = list(TableFile(path).rows())
    assert [number for number, _ in found] == [1, 3, 4, 5, 6]
    assert (found[0][1], found[4][1]) == ({"a": 1}, {"a": 5})
    assert [str(row).partition(":")[0] for _, row in found[1:4]] == [
        "not JSON", "expected a JSON object, found list", "not UTF-8",
    ]  # fmt: skip
    texts = pa.array([b"a", b"\xff", b"c"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"t": texts}), tmp_path / "a.parquet")
    first, bad, last = (row for _, row in TableFile(tmp_path / "a.parquet").rows())
    assert (first, last) == ({"t": "a"}, {"t": "c"})
    assert isinstance(bad, RowError)


@pytest.mark.parametrize(
    ("write", "name"), [(lines, "a.jsonl"), (lines, "a.jsonl.gz"), (json_list, "a.json"), (lines, "b.json")]
)
def test_a_byte_order_mark_is_no_part_of_the_first_row(write, name: str, tmp_path: Path):
    path = write(tmp_path / name, ROWS[:3])
    whole = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    marked = b"\xef\xbb\xbf" + whole
    path.write_bytes(gzip.compress(marked) if name.endswith(".gz") else marked)
    assert [row for _, row in TableFile(path).rows()] == ROWS[:3]
    assert TableFile(path).columns == ("q", "turns", "n")
