"""Reading rows that may be broken, and logs that survive kills and full disks."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_jax.data.jsonl import AppendLog, Reader, RowError
from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError

GOOD = [{"id": 1}, {"id": 2, "text": "zwei\u2028 Zeilen? nein\n"}]


def parse_id(row):
    if "id" not in row:
        raise RowError("field 'id' is missing")
    return row["id"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


BAD = (
    b"""{"id": 1}
not json
[1, 2]
{"other": 1}
\xff\xfe

{"id": 2}
{"id": 3"""
    + b"9" * 5000
)


def test_where_a_line_stops_being_json_is_told_by_its_character(path):
    path.write_bytes(b'{"id": 1}\n{"id": "cut\n{"id": "a\tb"}\r\n')
    said = []
    assert list(Reader(path, parse_id, report=said.append)) == [(1, 1)]
    assert [line.partition("not JSON: ")[2] for line in said] == [
        "Unterminated string starting at character 8",
        "Invalid control character at character 10",
    ]


def test_bad_rows_are_reported_with_their_line_and_passed_over(path):
    path.write_bytes(BAD)
    said = []
    reader = Reader(path, parse_id, report=said.append)
    assert list(reader) == [(1, 1), (7, 2)]
    assert reader.skipped == 5
    assert [line.removeprefix(f"{path}:").split(":")[:2] for line in said] == [
        ["2", " not JSON"],
        ["3", " expected a JSON object, found list"],
        ["4", " field 'id' is missing"],
        ["5", " not UTF-8"],
        ["8", " not JSON"],
    ]
    assert list(reader) == [(1, 1), (7, 2)]  # again from the start
    assert reader.skipped == 5


def test_strict_stops_at_the_first_bad_row(path):
    path.write_bytes(BAD)
    rows = iter(Reader(path, parse_id, strict=True))
    assert next(rows) == (1, 1)
    with pytest.raises(RrmError, match=r"rows.jsonl:2: not JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"nope\n", r"holds no usable row \(1 skipped\)"),
        (b"[" * 100_000, r"holds no usable row \(1 skipped\)"),
    ],
)
def test_a_file_without_a_usable_row_is_an_error(path, content, message):
    path.write_bytes(content)
    with pytest.raises(RrmError, match=message):
        list(Reader(path, parse_id))


def test_a_missing_file_is_an_error_that_names_it(path):
    with pytest.raises(RrmError, match=r"cannot read .*rows.jsonl: No such file"):
        list(Reader(path, parse_id))


def test_rows_come_back_and_later_ones_are_appended(path):
    with AppendLog(path.parent / "new" / "rows.jsonl") as log:
        log.append(GOOD[0])
        assert list(log.rows()) == GOOD[:1]
    with AppendLog(log.path) as again:
        again.append(GOOD[1])
        assert list(again.rows()) == GOOD
    assert [row for _, row in Reader(log.path, dict)] == GOOD


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=4))
def test_any_row_comes_back_as_it_was(tmp_path_factory, rows):
    with AppendLog(tmp_path_factory.mktemp("log") / "rows.jsonl") as log:
        for row in rows:
            log.append(row)
        assert list(log.rows()) == rows


def test_a_lone_surrogate_comes_back_too(path):
    with AppendLog(path) as log:
        log.append({"text": "a\ud800b"})
        log.append({"text": "ü"})
        assert list(log.rows()) == [{"text": "a\ud800b"}, {"text": "ü"}]
    assert "ü".encode() in path.read_bytes()


@pytest.mark.parametrize("cut", [1, 5, 100_000])
def test_a_torn_last_line_is_dropped_when_the_log_is_opened(path, cut):
    whole = b'{"id":1}\n{"id":2}\n'
    torn = json.dumps({"text": "x" * 200_000}).encode()[:-cut]
    path.write_bytes(whole + torn)
    with AppendLog(path) as log:
        assert path.read_bytes() == whole
        log.append({"id": 3})
    assert path.read_bytes() == whole + b'{"id":3}\n'


def test_a_file_that_is_one_torn_line_becomes_empty(path):
    path.write_bytes(b'{"id"' + b" " * 70_000)
    with AppendLog(path) as log:
        assert list(log.rows()) == []


def test_a_damaged_line_inside_the_log_is_an_error_not_lost_work(path):
    path.write_bytes(b'{"id":1}\nrubbish\n{"id":2}\n')
    with AppendLog(path) as log, pytest.raises(RrmError, match=r"rows.jsonl:2: not JSON.*move it away"):
        list(log.rows())
    assert path.read_bytes().count(b"\n") == 3


KILLED = """
import os, signal, sys
from rrm_jax.data.jsonl import AppendLog
log = AppendLog(sys.argv[1])
for i in range(50):
    log.append({"id": i})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_no_row(path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with AppendLog(path) as log:
        assert [row["id"] for row in log.rows()] == list(range(50))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_device_that_is_full_is_an_error_that_names_it():
    with AppendLog("/dev/full") as log, pytest.raises(RrmError, match=r"cannot write /dev/full: No space left"):
        log.append({"id": 1})


# The limit on the size of a file stands in for a full disk: a write is cut short, and the next one fails.
FULL = """
import resource, signal, sys
from rrm_jax.data.jsonl import AppendLog
from rrm_jax.errors import RrmError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with AppendLog(sys.argv[1]) as log:
    log.append({"id": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        log.append({"text": "x" * 500})
    except RrmError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if sys.argv[2] == "go on":
        log.append({"id": 2})
"""


@pytest.mark.parametrize("then", ["stop", "go on"])
def test_a_row_cut_short_by_a_full_disk_leaves_no_trace(path, then):
    """Nor does closing the log, once there is room again, write the rest of the failed row."""
    done = subprocess.run([sys.executable, "-c", FULL, str(path), then], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"cannot write {path}: File too large; every row before is kept" in done.stdout
    assert path.read_bytes() == b'{"id":1}\n' + (b'{"id":2}\n' if then == "go on" else b"")


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "rows.jsonl", tmp_path):
        with pytest.raises(RrmError, match=f"cannot write {place}: "):
            AppendLog(place)


def test_a_whole_file_replaces_the_old_one_or_leaves_it(tmp_path):
    path = tmp_path / "report.json"
    write_whole(path, "old ü")
    write_whole(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half" * 10_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "new ü"
    with pytest.raises(RrmError, match=r"cannot write .*nowhere/report.json: No such file"):
        write_whole(tmp_path / "nowhere" / "report.json", "text")


def test_a_byte_order_mark_is_no_part_of_the_first_row(path):
    path.write_bytes(b'\xef\xbb\xbf{"a":1}\n{"a":2}\n')
    assert [row for _, row in Reader(path, lambda row: row)] == [{"a": 1}, {"a": 2}]
