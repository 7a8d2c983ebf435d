"""`rrm verdicts` from the outside: what a store holds, out of it and into another, and what is wrong with it."""

import json
import sys
from pathlib import Path

import pytest

from rrm_jax.cli.main import app
from rrm_jax.judging.store import Asked, VoteLog, VoteRecord, digest

SEEDS = [{"model": "m", "temperature": 0.6, "seed": seed} for seed in (0, 1)]
RECORDS = [
    VoteRecord(1, "one", 3, "stop", False),
    VoteRecord(2, "two", 4, "stop", True, forced=True),
    VoteRecord(None, "hm…", 5, "length", False),
]


def fill(path: Path, under: dict, records: list[VoteRecord]) -> Path:
    with VoteLog(path) as log:
        name = log.declare(under)
        for at, record in enumerate(records):
            log.put(Asked(name, digest(["q", at]), 0, digest("q"), (digest(at), digest(-at))), record)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store.jsonl"
    fill(path, SEEDS[0], RECORDS)
    return fill(path, SEEDS[1], RECORDS[:1])


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `rrm verdicts`; gives its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rrm", "verdicts", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            app()
        return exit.value.code or 0, *capsys.readouterr()

    return run


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_show(run, store: Path):
    before = store.read_bytes()
    code, out, _ = run("show", store)
    assert code == 0
    counted = (
        "3 votes (for the response shown first: 1, second: 1, invalid: 1, cut off at the token limit: 1, "
        "with inputs truncated: 1, forced by the thinking budget: 1); 12 tokens"
    )
    lines = out.splitlines()
    assert lines[0] == f"{store}: 4 votes, 2 settings"
    assert sorted(lines[1:4]) == ['  model: "m"', "  temperature: 0.6", "all settings have"]
    assert lines[4:6] == [f"{digest(SEEDS[0])[:12]}: {counted}", "  seed: 0"]
    assert lines[6].startswith(f"{digest(SEEDS[1])[:12]}: 1 votes (for the response shown first: 1, second: 0")
    assert lines[7:] == ["  seed: 1"]
    assert store.read_bytes() == before


def test_exported_and_imported_it_is_the_same(run, store: Path, tmp_path: Path):
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    code, said, _ = run("export", store, "--out", out)
    assert (code, said) == (0, f"4 votes of 2 settings written to {out}\n")
    assert [row for row in rows(out) if "key" in row] == [row for row in rows(store) if "key" in row]
    code, said, _ = run("import", out, "--store", again)
    assert (code, said) == (0, f"4 votes added to {again}, 0 it had already (0 of them contradict it)\n")
    assert again.read_bytes() == out.read_bytes()
    code, said, _ = run("import", store, "--store", again)
    assert (code, said) == (0, f"0 votes added to {again}, 4 it had already (0 of them contradict it)\n")
    assert again.read_bytes() == out.read_bytes()
    code, _, err = run("export", store, "--out", out)
    assert (code, "exists already" in err) == (2, True)


def test_settings_are_chosen_by_how_their_digests_begin(run, store: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    name = digest(SEEDS[1])
    assert run("export", store, "--out", out, "--settings", name[:8])[0] == 0
    assert [row.get("settings") for row in rows(out)] == [SEEDS[1], name]
    for beginning, count in (("", 2), ("x", 0)):
        code, _, err = run("export", store, "--out", tmp_path / "no.jsonl", "--settings", beginning)
        assert code == 2
        assert f"--settings {beginning!r} begins {count} of the digests" in err
        assert name in err
    assert not list(tmp_path.glob("*no.jsonl*"))


def test_contradictions_are_said_and_the_first_is_kept(run, store: Path, tmp_path: Path):
    other = fill(tmp_path / "other.jsonl", SEEDS[0], RECORDS[::-1])
    before = store.read_bytes()
    code, out, err = run("import", other, "--store", store)
    assert (code, out) == (1, f"0 votes added to {store}, 3 it had already (2 of them contradict it)\n")
    assert err.count(f"{other}: vote ") == 2
    assert "2 vote(s) contradict an earlier one, which counts" in err
    assert store.read_bytes() == before
    joined = tmp_path / "joined.jsonl"
    joined.write_bytes(before + other.read_bytes())
    code, out, err = run("show", joined)
    assert code == 1
    assert f"{joined}: 4 votes" in out
    assert f"{joined}:8: vote " in err
    code, out, _ = run("export", joined, "--out", tmp_path / "clean.jsonl")
    assert (code, out) == (1, f"4 votes of 2 settings written to {tmp_path / 'clean.jsonl'}\n")
    assert run("show", tmp_path / "clean.jsonl")[0] == 0


def test_bad_files_change_nothing(run, store: Path, tmp_path: Path):
    bad = tmp_path / "bad.jsonl"
    for content in ('{"id":1}\n', store.read_text(encoding="utf-8").replace('"verdict":2', '"verdict":0')):
        bad.write_text(content, encoding="utf-8")
        before = store.read_bytes()
        code, _, err = run("import", bad, "--store", store)
        assert code == 2
        assert "bad.jsonl:" in err
        assert "not a row of a verdict store" in err
        assert store.read_bytes() == before
    for verb in (["show", "missing"], ["export", "missing", "--out", bad.with_name("x")], ["import", "missing"]):
        code, _, err = run(*verb, *(["--store", store] if verb[0] == "import" else []))
        assert (code, err.strip()) == (2, "error: cannot read missing: No such file or directory")
