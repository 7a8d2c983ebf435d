"""Prepared data sets: what goes in comes out, in order, by number; tfds itself reads them; damage is named."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rrm_jax.data.prepared import FACTS, Prepared, is_prepared, open_prepared, write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import Candidates, Pair, Question
from rrm_jax.errors import RrmError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PAIRS = st.builds(Pair, TEXT, TEXT, TEXT, TEXT, st.sampled_from([1, 2, None]), TEXT)
QUESTIONS = st.builds(Question, TEXT, TEXT, st.none() | TEXT, TEXT, TEXT)


@st.composite
def candidates(draw) -> Candidates:
    responses = draw(st.lists(TEXT, min_size=1, max_size=4))
    each = {"min_size": len(responses), "max_size": len(responses)}
    correct, answers = (
        draw(st.none() | st.lists(st.booleans(), **each)),
        draw(st.none() | st.lists(st.none() | TEXT, **each)),
    )
    return Candidates(draw(TEXT), draw(TEXT), tuple(responses), correct and tuple(correct), answers and tuple(answers))


def write(out: Path, rows, kind="pairs", facts=None) -> Prepared:
    write_prepared(out, RecordsBuilder, rows, kind=kind, facts=facts or {})
    return open_prepared(out)


KINDS = [("pairs", PAIRS), ("questions", QUESTIONS), ("candidates", candidates())]


@pytest.mark.parametrize(("kind", "records"), KINDS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_text_comes_back(tmp_path_factory, kind, records, data):
    rows = data.draw(st.lists(records, min_size=1, max_size=8))
    assert [*write(tmp_path_factory.mktemp("any") / "out", rows, kind)] == rows


def some(count: int) -> list[Pair]:
    return [Pair(f"é{at}", f"question {at}", "a" * at, "b", 1 + at % 2, "s") for at in range(count)]


def test_records_are_read_by_number_in_other_processes_and_by_tfds(tmp_path):
    rows = some(300)
    prepared = write(tmp_path / "out", rows, facts={"licence": "MIT"})
    assert is_prepared(tmp_path / "out")
    assert not is_prepared(tmp_path)
    assert (len(prepared), prepared.kind, prepared.facts) == (300, "pairs", {"licence": "MIT"})
    assert (prepared[-1], prepared[7:9]) == (rows[-1], rows[7:9])
    with pytest.raises(IndexError):
        prepared[300]
    assert pickle.loads(pickle.dumps(prepared))[123] == rows[123]
    import tensorflow_datasets as tfds

    found = tfds.builder_from_directory(str(tmp_path / "out")).as_data_source(split="train")
    assert [found[at]["id"].decode() for at in range(300)] == [row.id for row in rows]
    assert "tensorflow" not in sys.modules


def test_writing_leaves_nothing_among_the_temporary_files(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    write(tmp_path / "out", some(3))
    assert [*(tmp_path / "tmp").iterdir()] == []


def test_the_fingerprint_is_the_contents(tmp_path):
    first, again, other = (
        write(tmp_path / name, rows) for name, rows in (("a", some(3)), ("b", some(3)), ("c", some(3)[::-1]))
    )
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_long_response_survives(tmp_path):
    pair = Pair("1", "q", "é" * 25_000_000, "short", 1)  # 50 MB
    assert write(tmp_path / "out", [pair])[0] == pair


def test_damage_is_named(tmp_path):
    write(tmp_path / "out", some(200))
    shard = next((tmp_path / "out").glob("*.array_record*"))
    whole = shard.read_bytes()
    for spoil, words in (
        (lambda: shard.write_bytes(whole[:-50]), f"{shard.name} has"),
        (shard.unlink, f"{shard.name} is missing"),
        (lambda: shard.write_bytes(bytes([*whole[:2000], whole[2000] ^ 255, *whole[2001:]])), "cannot be read"),
    ):
        spoil()
        with pytest.raises(RrmError, match=words):
            list(open_prepared(tmp_path / "out"))
        shard.write_bytes(whole)
    (tmp_path / "out" / FACTS).write_text("{}")
    with pytest.raises(RrmError, match="prepare the data set again"):
        open_prepared(tmp_path / "out")
    with pytest.raises(RrmError, match="no prepared data set"):
        open_prepared(tmp_path)


def test_nothing_is_left_where_writing_fails(tmp_path):
    def rows():
        yield from some(5)
        raise RrmError("row 6 is bad")

    for bad, words in ((rows(), "row 6"), ([], "no record")):
        with pytest.raises(RrmError, match=words):
            write(tmp_path / "out", bad)
        assert [*tmp_path.iterdir()] == []
    write(tmp_path / "out", some(1))
    with pytest.raises(RrmError, match="exists"):
        write(tmp_path / "out", some(2))


def test_a_killed_writer_leaves_nothing_that_opens_and_the_next_one_succeeds(tmp_path):
    code = f"""
import os, signal, pathlib
from rrm_jax.data.prepared import write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import Pair
def rows():
    for at in range(1000):
        yield Pair(str(at), "q", "a", "b", 1)
    os.kill(os.getpid(), signal.SIGKILL)
write_prepared(pathlib.Path({str(tmp_path / "out")!r}), RecordsBuilder, rows(), kind="pairs", facts={{}})
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(write(tmp_path / "out", some(4))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
