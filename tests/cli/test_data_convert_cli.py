"""`rrm data convert` from the outside: there and back, what is printed, what is refused, kills."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli.data.convert import command
from rrm_jax.cli.main import _app
from rrm_jax.data.conversions import Conversion
from rrm_jax.data.prepared import open_prepared
from rrm_jax.data.records import Pair, to_row
from rrm_jax.errors import RrmError
from rrm_jax.judging.store import Asked, StoredVote, VoteLog, VoteRecord, digest

PAIRS = [Pair(f"p{at}", f"q {at}\u2028é", "\0a", "<|im_end|>", 1 + at % 2, "s") for at in range(6)]


def convert(*arguments):
    result = CliRunner().invoke(_app, ["data", "convert", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit)):
        raise result.exception
    return result


def refused(result, *words: str) -> None:
    assert isinstance(result.exception, RrmError), result.output
    for word in words:
        assert word in str(result.exception)


def write(path: Path, rows: list) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    "through", ["trl.jsonl", "trl-messages.parquet", "rewardbench.json", "llmbar.json", "prepared"]
)
def test_there_and_back(tmp_path: Path, through: str):
    first = write(tmp_path / "pairs.jsonl", [to_row(pair) for pair in PAIRS])
    name = through.split(".")[0]
    there = convert(first, "--to", name, "--out", tmp_path / through)
    assert (there.exit_code, there.stdout) == (0, "rows read: 6; written: 6\n")
    assert f"{first}: pairs, rrm, by its columns" in there.stderr
    back = convert(tmp_path / through, "--to", "rrm", "--out", tmp_path / "back.jsonl")
    assert back.exit_code == 0
    assert read(tmp_path / "back.jsonl") == read(first)
    if name == "prepared":
        assert [*open_prepared(tmp_path / through)] == PAIRS
        assert open_prepared(tmp_path / through).facts["from"] == "rrm"
    run = json.loads((tmp_path / f"{through}.run.json").read_text())
    assert (run["config"]["from"], run["config"]["to"], [*run["inputs"]]) == ("rrm", name, ["pairs.jsonl"])


def test_the_layouts_are_those_of_the_documentation(tmp_path: Path):
    first = write(tmp_path / "pairs.jsonl", [to_row(PAIRS[1]) | {"note": "n"}])
    for name, columns in {
        "trl": ["prompt", "chosen", "rejected", "id", "source", "chosen_was", "note"],
        "rewardbench": [
            "prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset", "id", "chosen_was", "note",
        ],
        "llmbar": ["input", "output_1", "output_2", "label", "id", "source", "note"],
    }.items():  # fmt: skip
        assert convert(first, "--to", name, "--out", tmp_path / f"{name}.json").exit_code == 0
        (row,) = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert [*row] == columns
    convert(first, "--to", "trl-messages", "--out", tmp_path / "messages.jsonl")
    (row,) = read(tmp_path / "messages.jsonl")
    assert row["chosen"] == [{"role": "assistant", "content": "<|im_end|>"}]  # label 2
    assert (row["id"], row["chosen_was"]) == ("p1", 2)
    told = convert(first, "--to", "trl", "--out", tmp_path / "trl.parquet")
    assert "fields without a place in the output: note (1)" in told.stdout


def test_bad_rows_are_listed_and_the_others_kept(tmp_path: Path):
    rows = [to_row(pair) for pair in PAIRS]
    rows[1].pop("label")
    path = write(tmp_path / "pairs.jsonl", [*rows, "{", rows[0]])
    out = tmp_path / "trl.jsonl"
    refused(convert(path, "--to", "trl", "--out", out, "--strict"), "pairs.jsonl:7: not JSON")
    assert not out.exists()
    done = convert(path, "--to", "trl", "--out", out)
    assert done.exit_code == 1
    assert done.stdout.splitlines() == ["rows read: 8; written: 5", "skipped, malformed: 2", "skipped, no label: 1"]
    assert "pairs.jsonl:8: id 'p0' appears twice" in done.stderr
    listed = read(tmp_path / "trl.jsonl.skipped.jsonl")
    assert [(row["row"], row["reason"]) for row in listed] == [(2, "no label"), (7, "malformed"), (8, "malformed")]
    assert [row["id"] for row in read(out)] == ["p0", "p2", "p3", "p4", "p5"]
    new = convert(path, "--to", "trl", "--out", tmp_path / "new.jsonl", "--new-ids")
    assert "of the same texts as a row before: 1; their ids end in -2, -3, …" in new.stdout


def test_what_does_not_fit(tmp_path: Path):
    pairs = write(tmp_path / "pairs.jsonl", [to_row(pair) for pair in PAIRS])
    best = write(
        tmp_path / "best.jsonl", [{"id": "1", "query": "q", "responses": ["a", "b"], "correct": [True, False]}]
    )
    out = tmp_path / "out.jsonl"
    for arguments, words in [
        ((best, "--to", "trl", "--out", out), ["--to trl holds pairs", "holds candidates; --pairs makes pairs"]),
        ((pairs, "--to", "rewardbench2", "--out", out), ["--to rewardbench2 holds candidates", "holds pairs"]),
        ((pairs, "--to", "trl", "--out", out, "--pairs"), ["--pairs makes pairs of candidates"]),
        ((pairs, "--to", "trl", "--out", out, "--keep-ties"), ["--keep-ties is of pandalm's"]),
        ((pairs, "--to", "trl", "--out", tmp_path / "out.csv"), ["must end with one of .jsonl, .json, .parquet"]),
        ((pairs, "--to", "prepared", "--out", out), ["prepared data is a directory"]),
        ((pairs, "--to", "trl", "--out", pairs), ["exists; remove it"]),
        ((pairs, "--from", "pandalm", "--to", "trl", "--out", out), ["is not pandalm", "expected: instr", "found: id"]),
        ((pairs, "--to", "trl", "--out", out, "--split", "dev"), ["is one file"]),
        ((tmp_path / "no.jsonl", "--to", "trl", "--out", out), ["there is no file or directory"]),
    ]:
        refused(convert(*arguments), *words)
        assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl", "best.jsonl"}
    unlabelled = write(tmp_path / "none.jsonl", [{"id": "1", "query": "q", "response_1": "a", "response_2": "b"}])
    refused(convert(unlabelled, "--to", "trl", "--out", out), "there is no row to write")
    assert not out.exists()
    assert convert(best, "--to", "trl", "--out", out, "--pairs").exit_code == 0
    assert [row["id"] for row in read(out)] == ["1/1-2"]


@pytest.mark.parametrize(("name", "kill"), [("out.jsonl", True), ("out.parquet", False), ("out", False)])
def test_killed_in_the_middle_and_begun_anew(tmp_path: Path, monkeypatch, name: str, kill: bool):
    """By a signal that cannot be caught, or by an error: no OUT, and the next run, with other settings too, works."""
    path, to = write(tmp_path / "pairs.jsonl", [to_row(pair) for pair in PAIRS]), "prepared" if name == "out" else "rrm"
    given = ["data", "convert", str(path), "--to", to, "--out", str(tmp_path / name)]
    code = f"""
import os, signal
from rrm_jax.cli.main import _app
from rrm_jax.data.conversions import Conversion
whole = Conversion._records_of
def killed(self, row, ids):
    if self.tally.read == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, row, ids)
Conversion._records_of = killed
_app({given!r})
"""
    if kill:
        done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL
    else:
        whole = Conversion._records_of

        def fails(self, row, ids):
            if self.tally.read == 4:
                raise MemoryError
            return whole(self, row, ids)

        with monkeypatch.context() as patched:
            patched.setattr(Conversion, "_records_of", fails)
            with pytest.raises(MemoryError):
                convert(*given[2:])
    assert not (tmp_path / name).exists()
    assert convert(*given[2:], "--source", "other").exit_code == 0
    left = {"pairs.jsonl", *(name + end for end in ("", ".run.json", ".skipped.jsonl"))}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_the_examples_of_the_help_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", [to_row(pair) for pair in PAIRS])
    row = {"input": "q", "output_1": "a", "output_2": "b", "label": 2}
    (tmp_path / "llmbar-natural.json").write_text(json.dumps([row]))
    (tmp_path / "reward-bench-2" / "data").mkdir(parents=True)
    best = {"id": "1", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Math", "models": ["m"] * 3}
    write(tmp_path / "reward-bench-2" / "data" / "test.jsonl", [best])
    with VoteLog(tmp_path / "out.jsonl.votes.jsonl") as log:
        asked = Asked(log.declare({"model": "m"}), digest("texts"), 0, digest("q"), (digest("a"), digest("b")))
        log.put(asked, VoteRecord(1, "a", 1, "stop", False))
    _, examples = command.__doc__.split("Example:\n")
    lines = [shlex.split(line)[3:] for line in examples.strip().splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert convert(*line).exit_code == 0
    assert [row["source"] for row in read(tmp_path / "llmbar.jsonl")] == ["llmbar-natural"]
    assert [row["id"] for row in read(tmp_path / "rewardbench2_pairs.jsonl")] == ["1/1-2", "1/1-3"]


def test_a_verdict_store_there_and_back(tmp_path: Path):
    """Of two judges, with a row of an earlier version, invalid and truncated votes, and floats that need 64 bits."""
    store, records = tmp_path / "votes.jsonl", [
        VoteRecord(1, "one \u2028é\0", 3, "stop", False, probability=0.1),
        VoteRecord(2, "two", 4, "stop", True, forced=True),
        VoteRecord(None, "", 5, "length", False, probability=1e-300),
    ]  # fmt: skip
    with VoteLog(store) as log:
        for seed in (0, 1):
            name = log.declare({"model": "m", "seed": seed})
            for at, record in enumerate(records):
                log.put(Asked(name, digest(["q", at]), at, digest("q"), (digest(at), digest(-at))), record)
        log.add(StoredVote(digest("old"), name, None, records[0]))
    there = convert(store, "--from", "verdicts", "--to", "prepared", "--out", tmp_path / "votes")
    assert (there.exit_code, there.stdout) == (0, "votes written: 7\n")
    back = convert(tmp_path / "votes", "--to", "verdicts", "--out", tmp_path / "again.jsonl")
    assert (back.exit_code, back.stdout) == (0, "votes written: 7\n")
    with VoteLog(store, write=False) as one, VoteLog(tmp_path / "again.jsonl", write=False) as two:
        assert one.settings == two.settings
        assert [*one.votes()] == [*two.votes()]
    import tensorflow_datasets as tfds

    found = tfds.builder_from_directory(str(tmp_path / "votes")).as_data_source("train")
    assert [int(row["verdict"]) for row in found] == [1, 2, 0, 1, 2, 0, 1]
    for refusal, words in [
        (convert(store, "--to", "prepared", "--out", tmp_path / "x"), "this is a verdict store; --from verdicts"),
        (convert(store, "--from", "verdicts", "--to", "trl", "--out", tmp_path / "x"), "verdicts become prepared data"),
        (convert(tmp_path / "votes", "--to", "rrm", "--out", tmp_path / "x.jsonl"), "holds verdicts; rrm data convert"),
        (convert(store, "--to", "verdicts", "--out", tmp_path / "x"), "no prepared data set"),
    ]:
        refused(refusal, words)
    assert not [*tmp_path.glob("x*")]


def test_pandalm_as_published(tmp_path: Path, real_data: Path):
    """999 rows, 105 ties and six responses that are no text; the kept labels are the published majority."""
    path = real_data / "pandalm" / "testset-v1.json"
    done = convert(path, "--to", "trl", "--out", tmp_path / "trl.parquet")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[:3] == [
        "rows read: 999; written: 888", "skipped, tie of the annotators: 105", "skipped, malformed: 6",
    ]  # fmt: skip
    kept = convert(path, "--to", "prepared", "--out", tmp_path / "all", "--keep-ties")
    assert "rows read: 999; written: 993" in kept.stdout
    assert open_prepared(tmp_path / "all").unlabelled == 105
