"""The verdict store: many settings, several processes, kills, damage, contradictions, files of earlier versions."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rrm_jax.errors import RrmError
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.store import Asked, VoteLog, VoteRecord, digest, merge
from rrm_jax.sampling.protocol import Decoding
from tests.judging.fake_generator import FakeGenerator, coin
from tests.judging.test_judge import PAIRS, by_id

ONE = VoteRecord(1, "é\n\\boxed{Assistant 1}\u2028", 3, "stop", False, probability=0.75)
TWO = VoteRecord(None, "", 1, "length", True, forced=True)
SETTINGS = {"model": "m", "stop_ids": (1, 2)}


def asked(name: str, under: dict = SETTINGS, vote: int = 0) -> Asked:
    return Asked(digest(under), digest(name), vote, digest(f"query of {name}"), (digest("a"), digest("b")))


def fill(path: Path, votes: dict[str, VoteRecord], under: dict = SETTINGS) -> Path:
    with VoteLog(path) as log:
        log.declare(under)
        for name, record in votes.items():
            log.put(asked(name, under), record)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return fill(tmp_path / "new" / "store.jsonl", {"x": ONE, "y": TWO})


def test_what_was_put_is_got_under_its_key_alone(store: Path):
    with VoteLog(store) as log:
        assert (log.get(asked("x").key), log.get(asked("y").key), len(log)) == (ONE, TWO, 2)
        for other in (asked("z"), asked("x", {"model": "n"}), asked("x", vote=1)):
            assert log.get(other.key) is None
        assert (log.found, log.written) == (2, 0)
        assert log.settings == {digest(SETTINGS): {"model": "m", "stop_ids": [1, 2]}}
        with pytest.raises(ValueError, match="have not been declared"):
            log.put(asked("x", {"model": "n"}), ONE)


def test_rows_say_what_they_are(store: Path):
    header, row, _ = (json.loads(line) for line in store.read_text(encoding="utf-8").split("\n")[:-1])
    assert header == {"digest": digest(SETTINGS), "settings": {"model": "m", "stop_ids": [1, 2]}}
    assert row == {
        "key": asked("x").key, "settings": digest(SETTINGS), "texts": digest("x"), "vote": 0,
        "query": digest("query of x"), "shown": [digest("a"), digest("b")], **dataclasses.asdict(ONE),
    }  # fmt: skip
    assert asked("x").key == digest([digest(SETTINGS), digest("x"), 0])


def test_a_torn_last_line_is_dropped_and_readers_leave_it(store: Path):
    whole = store.read_bytes()
    for torn in (b"{", b'{"key":"' + b"0" * 70, b'{"digest":"0'):
        store.write_bytes(whole + torn)
        with VoteLog(store, write=False) as log:
            assert [vote.record for vote in log.votes()] == [ONE, TWO]
        assert store.read_bytes() == whole + torn
        VoteLog(store).close()
        assert store.read_bytes() == whole


def damaged(whole: bytes) -> dict[str, tuple[bytes, str]]:
    header, x, y, _ = whole.split(b"\n")
    return {
        "half a row": (header + b"\n" + x[:90] + b"\n" + y + b"\n", ":2: not a row of a verdict store"),
        "settings that were edited": (whole.replace(b'"m"', b'"n"'), ":1: .*digest is not that of its settings"),
        "a vote number that was edited": (whole.replace(b'"vote":0', b'"vote":1', 1), ":2: .*key is not that"),
        "no settings": (x + b"\n", ":1: .*no row before it has the settings"),
        "settings that come later": (x + b"\n" + header + b"\n", ":1: .*no row before it has the settings"),
        "a verdict that is none": (whole.replace(b'"verdict":1', b'"verdict":3'), ":2: .*verdict is not 1, 2 or null"),
        "no tokens": (whole.replace(b'"tokens":3,', b""), ":2: .*'tokens' is missing"),
        "not UTF-8": (whole.replace("é".encode(), b"\xff"), ":2: "),
        "an empty line": (header + b"\n\n" + x + b"\n", ":2: "),
        "another file": (b'{"id":1}\n', ":1: .*'settings' is missing.*; the file is damaged, or another's"),
        "another file of one line": (b"a precious thing", ":1: not a row of a verdict store; the file is another's"),
        "a list": (b"[]\n", ":1: "),
    }


@pytest.mark.parametrize("case", damaged(b"\n\n\n"))
def test_damaged_and_foreign_rows_are_refused_and_left(store: Path, case: str):
    content, message = damaged(store.read_bytes())[case]
    store.write_bytes(content)
    for _ in range(2):  # the refused one holds no lock
        with pytest.raises(RrmError, match=rf"store\.jsonl{message}"):
            VoteLog(store)
    assert store.read_bytes() == content


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), new=st.binary(max_size=3), cut=st.integers(0, 3))
def test_any_damage_is_an_error_or_leaves_whole_rows(store: Path, at: int, new: bytes, cut: int):
    whole = store.read_bytes()
    path = store.with_name("damaged.jsonl")
    at %= len(whole)
    path.write_bytes(whole[:at] + new + whole[at + cut :])
    keys, said = set(), str(path)
    try:
        with VoteLog(path, write=False) as log:
            keys = {vote.key for vote in log.votes()}
    except RrmError as error:
        said = str(error)
    assert said.startswith(str(path))
    assert keys <= {asked("x").key, asked("y").key}


def test_a_contradiction_is_reported_and_the_first_counts(store: Path, tmp_path: Path):
    again = fill(tmp_path / "again.jsonl", {"x": ONE, "y": ONE})
    joined = tmp_path / "joined.jsonl"
    joined.write_bytes(store.read_bytes() + again.read_bytes())
    with pytest.raises(RrmError, match=rf"joined\.jsonl:6: vote {asked('y').key} contradicts .* at byte \d+; `rrm"):
        VoteLog(joined)
    reports: list[str] = []
    with VoteLog(joined, report=reports.append) as log:
        assert [vote.record for vote in log.votes()] == [ONE, TWO]
        assert log.get(asked("y").key) == TWO
        assert len(log) == 2
    assert len(reports) == 1
    place = int(reports[0].split("at byte ")[1].split(";")[0])
    assert joined.read_bytes()[place:].startswith(b'{"key":"' + asked("y").key.encode())


def test_merging_takes_the_chosen_settings_and_keeps_what_is_there(store: Path, tmp_path: Path):
    other = {"model": "n"}
    fill(store, {"x": TWO}, other)
    into, reports = fill(tmp_path / "into.jsonl", {"y": ONE}), []
    with VoteLog(store, write=False) as source, VoteLog(into) as log:
        done = merge(source, log, [digest(SETTINGS)], reports.append)
        assert (done.new, done.known, done.contradictory) == (1, 1, 1)
        assert len(log.settings) == 1
        done = merge(source, log, source.settings, reports.append)
        assert (done.new, done.known, done.contradictory) == (1, 2, 1)
    assert len(reports) == 2
    assert asked("y").key in reports[0]
    with VoteLog(into) as log:
        got = {vote.key: (vote.asked, vote.record) for vote in log.votes()}
    expected = [(asked("y"), ONE), (asked("x"), ONE), (asked("x", other), TWO)]
    assert got == {of.key: (of, record) for of, record in expected}


def test_two_open_logs_see_each_others_votes_and_the_first_counts(store: Path):
    with VoteLog(store) as one, VoteLog(store) as two, VoteLog(store, write=False) as reader:
        assert one.put(asked("z"), ONE) == ONE
        assert two.get(asked("z").key) == ONE
        assert two.put(asked("z"), TWO) == ONE
        assert one.put(asked("y"), ONE) == TWO
        with open(store, "ab") as killed:
            killed.write(b'{"key":"' + b"0" * 300)
        assert reader.get(asked("w").key) is None
        assert two.put(asked("w"), TWO) == TWO
        assert one.get(asked("w").key) == reader.get(asked("w").key) == TWO
        assert len(one) == len(two) == len(reader) == 4
        assert [log.written for log in (one, two, reader)] == [1, 1, 0]
        with pytest.raises(ValueError, match="opened for reading"):
            reader.put(asked("v"), ONE)
    assert store.read_bytes().count(b"\n") == 5


WRITER = """
import sys
from rrm_jax.judging.store import VoteLog
from tests.judging.test_store import ONE, SETTINGS, asked
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with VoteLog(path) as log:
    log.declare(SETTINGS)
    print("open", flush=True)
    for at in range(first, first + count):
        log.put(asked(str(at)), ONE.__class__(1, str(at) * 5000, at, "stop", False))
        print(at, flush=True)
"""


def test_processes_write_at_once_and_one_is_killed(tmp_path: Path):
    """Three processes, their votes overlapping; one dies by kill -9. All that any of them reported as put is there."""
    path = tmp_path / "store.jsonl"
    command = [sys.executable, "-c", WRITER, str(path)]
    where = {"cwd": Path(__file__).parents[2], "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    begun = [(0, 400), (200, 400), (300, 10**6)]
    processes = [
        subprocess.Popen([*command, str(first), str(count)], env=environment, **where) for first, count in begun
    ]
    victim, said = processes.pop(), []
    for line in victim.stdout:
        said.append(line)
        if len(said) == 100:
            os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert victim.returncode == -signal.SIGKILL
    reported = {int(line) for line in said[1:] if line.endswith("\n")}
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        reported |= {int(word) for word in out.split()[1:]}
    assert set(range(600)) <= reported
    with VoteLog(path) as log:
        for at in reported:
            assert log.get(asked(str(at)).key) == VoteRecord(1, str(at) * 5000, at, "stop", False)
        assert len(reported) <= len(log) <= len(reported) + 1
        assert len(log.settings) == 1
    assert path.read_bytes().count(b"\n") == 1 + len(log)


def earlier_file(path: Path, judge: Judge, votes: dict[str, VoteRecord], **job) -> Path:
    """As versions before the store wrote it: all settings of one job, then keys and records without newer fields."""
    fields = ("verdict", "text", "tokens", "finish_reason", "truncated_input")
    rows = [{"settings": judge.settings | job}]
    rows += [{"key": key, **{name: getattr(record, name) for name in fields}} for key, record in votes.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("job", [{}, {"strategy": {"name": "elo", "seed": 0}}])
def test_files_of_earlier_versions_are_stores(letters, short, tmp_path: Path, job: dict):
    def judge(votes: int) -> Judge:
        return Judge(FakeGenerator(letters, coin), letters, short, Decoding(max_new_tokens=9), votes=votes)

    with VoteLog(tmp_path / "now.jsonl") as log:
        expected = by_id(judge(2).judge(PAIRS, log))
        votes = {vote.key: vote.record for vote in log.votes()}
    path = earlier_file(tmp_path / "earlier.jsonl", judge(2), votes, **job)
    with VoteLog(path) as log:
        again, more = judge(2), judge(3)
        assert by_id(again.judge(PAIRS, log)) == expected
        assert again._generator.requests == []
        list(more.judge(PAIRS, log))
        assert {request.sample for request in more._generator.requests} == {2}
        assert list(log.settings) == [again._vote_digest]
    with VoteLog(path, write=False) as source, VoteLog(tmp_path / "merged.jsonl") as into:
        done = merge(source, into, source.settings, pytest.fail)
        assert (done.new, done.known) == (len(votes) + len(more._generator.requests), 0)
        assert [vote.asked is None for vote in into.votes()].count(True) == len(votes)
    with VoteLog(tmp_path / "merged.jsonl") as log:
        assert {key: log.get(key) for key in votes} == votes


def test_texts_stay_on_disk(tmp_path: Path):
    path = tmp_path / "store.jsonl"
    with VoteLog(path) as log:
        log.declare(SETTINGS)
        for at in range(500):
            log.put(asked(str(at)), VoteRecord(1, "x" * 40_000, 9, "stop", False))
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        with VoteLog(path) as log:
            assert sum(vote.record.tokens for vote in log.votes()) == 4500
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
