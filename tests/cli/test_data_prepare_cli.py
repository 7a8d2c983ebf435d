"""`rrm data prepare` from the outside: a snapshot as published to data that tfds reads, bad rows, kills, damage."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rrm_jax.cli.main import _app, app
from rrm_jax.data import sources
from rrm_jax.data.prepared import open_prepared
from rrm_jax.data.records import Pair, Question
from rrm_jax.data.sources import tulu3_prompts
from rrm_jax.data.sources.parts import HashedRecords
from rrm_jax.data.sources.prepare import Preparation
from rrm_jax.errors import RrmError
from tests.data.published import pair, publish, tulu, turns


def data(verb: str, *arguments):
    result = CliRunner().invoke(_app, ["data", verb, *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit)):
        raise result.exception
    return result


def prepare(*arguments):
    return data("prepare", *arguments)


def refused(result, *words: str) -> None:
    """As an RrmError, for which `rrm` ends with exit code 2."""
    assert isinstance(result.exception, RrmError), result.output
    for word in words:
        assert word in str(result.exception)


def left(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def skipped(out: Path) -> list[dict]:
    return [json.loads(line) for line in Path(f"{out}.skipped.jsonl").read_text(encoding="utf-8").splitlines()]


def test_list():
    said = prepare("--list")
    assert said.exit_code == 0
    for name, source in sources.sources().items():
        assert f"{name}: " in said.stdout
        assert source.hub in said.stdout
        assert source.licence in said.stdout
    assert "did you mean skywork-reward?" in str(prepare("skywork-rewards", "--src", "x", "--out", "y").exception)


def test_a_published_snapshot_end_to_end(tmp_path: Path):
    rows = [
        pair("2 + 2?", "4", "5", "magpie_ultra"),
        pair("é\u2028 <|im_end|>", "\0", "{query}"),
        pair("same", "x", "x"),
        pair(" ", "x", "y"),
        pair("2 + 2?", "4", "5", "magpie_ultra"),
    ]
    snapshot, out = publish(tmp_path, "skywork-reward", rows), tmp_path / "out"
    done = prepare("skywork-reward", "--src", snapshot, "--out", out)
    assert done.exit_code == 0, done.output
    said = done.stdout.splitlines()
    assert said[0] == "rows read: 5; kept: 2"
    assert {*said[1:4]} == {f"skipped, {why}: 1" for why in ("identical responses", "empty query", "repeated")}
    assert said[4:] == ["kept of skywork-reward/magpie_ultra: 1", "kept of skywork-reward/offsetbias: 1"]
    file = "data/train-00000-of-00001.parquet"
    assert [(row["file"], row["row"], row["reason"]) for row in skipped(out)] == [
        (file, 3, "identical responses"),
        (file, 4, "empty query"),
    ]
    prepared = open_prepared(out)
    texts = [(row.query, row.response_1, row.response_2, row.label) for row in prepared]
    assert texts == [("2 + 2?", "4", "5", 1), ("é\u2028 <|im_end|>", "\0", "{query}", 1)]
    assert len({row.id for row in prepared}) == 2
    assert prepared.facts["hub"] == "Skywork/Skywork-Reward-Preference-80K-v0.2"
    run = json.loads((tmp_path / "out.run.json").read_text())
    assert [*run["inputs"]] == [file]
    assert run["config"]["split"] == "train"

    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(out))
    found = builder.as_data_source("train")
    assert [(row["query"].decode(), int(row["label"])) for row in found] == [(query, 1) for query, *_ in texts]
    source = sources.get_source("skywork-reward")
    assert (builder.info.citation, builder.info.redistribution_info.license) == (source.citation, source.licence)
    assert source.hub in builder.info.homepage
    shown = data("show", out, "--examples", 0)
    assert (shown.exit_code, "skywork-reward/magpie_ultra" in shown.stdout) == (0, True)


def test_parts(tmp_path: Path, monkeypatch):
    """Each record in one part, by a rule of the published sizes made small; another seed draws others."""
    parts = HashedRecords(sizes=(5, 2), names=("train", "validation", "dpo"))
    monkeypatch.setattr(tulu3_prompts, "SOURCE", dataclasses.replace(tulu3_prompts.SOURCE, parts=parts))
    snapshot = publish(tmp_path, "tulu3-preferences", [tulu(f"prompt {at}") for at in range(12)])
    drawn = {}
    for part, seed in [("train", 0), ("validation", 0), ("dpo", 0), ("train", 1)]:
        out = tmp_path / f"{part}{seed}"
        given = [] if seed == 0 else ["--seed", seed]
        done = prepare("tulu3-prompts", "--src", snapshot, "--part", part, *given, "--out", out)
        assert done.exit_code == 0
        assert json.loads((tmp_path / f"{out.name}.run.json").read_text())["seed"] == seed
        drawn[out.name] = {row.query for row in open_prepared(out)}
    assert [len(queries) for queries in drawn.values()] == [5, 2, 5, 5]
    assert len(drawn["train0"] | drawn["validation0"] | drawn["dpo0"]) == 12
    assert drawn["train0"] != drawn["train1"]


def test_only_prompts_of(tmp_path: Path):
    rows = [tulu(f"prompt {at}", f"good {at}") for at in range(12)]
    snapshot = publish(tmp_path, "tulu3-preferences", rows)
    done = prepare("tulu3-prompts", "--src", snapshot, "--limit", 5, "--out", tmp_path / "five")
    assert done.exit_code == 0
    five = open_prepared(tmp_path / "five")
    assert all(isinstance(row, Question) for row in five)
    done = prepare(
        "tulu3-preferences", "--src", snapshot, "--only-prompts-of", tmp_path / "five", "--out", tmp_path / "pairs"
    )
    assert "skipped, of another prompt: 7" in done.stdout
    assert [row.query for row in open_prepared(tmp_path / "pairs")] == [row.query for row in five]
    run = json.loads((tmp_path / "pairs.run.json").read_text())
    assert "only-prompts-of: prepared.json" in run["inputs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--part", "all"], ["no such part", "train, test"]),
        (["--seed", "1"], ["needs --part"]),
        (["--only-prompts-of", "x"], ["not for skywork-reward"]),
        (["--columns", "query=prompt"], ["--columns is for generic"]),
        (["--split", "dev"], ["no split 'dev'", "train"]),
        (["--part", "train"], ["leaves none for the test part"]),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, arguments, words):
    snapshot = publish(tmp_path, "skywork-reward", [pair()])
    refused(prepare("skywork-reward", "--src", snapshot, "--out", tmp_path / "out", *arguments), *words)
    assert not (tmp_path / "out").exists()


def test_generic_columns(tmp_path: Path):
    table = pa.table({"ask": ["q"], "talk": [turns("q", "good")], "bad": ["worse"], "from": ["me"]})
    pq.write_table(table, tmp_path / "mine.parquet")
    for columns, words in (
        ("query=ask", []),
        ("query", ["as FIELD=COLUMN"]),
        ("query=ask,query=bad", ["each field once"]),
        ("query=ask,response_1=talk,response_2=no", ["column(s) no missing", "found: ask, talk, bad, from"]),
        ("query=ask,response_1=talk,response_2=bad,source=from", []),
    ):
        out = tmp_path / ("pairs" if "source" in columns else "questions")
        done = prepare("generic", "--src", tmp_path / "mine.parquet", "--out", out, "--columns", columns)
        assert done.exit_code == 0 or words
        if words:
            refused(done, *words)
    (question,), (record,) = open_prepared(tmp_path / "questions"), open_prepared(tmp_path / "pairs")
    assert (question.query, question.answer) == ("q", None)
    assert record == Pair(record.id, "q", "good", "worse", 1, "me")


def test_wrong_columns_write_nothing(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "chosen": "a"}\n')
    before = left(tmp_path)
    done = prepare("skywork-reward", "--src", tmp_path / "rows.jsonl", "--out", tmp_path / "out")
    refused(done, "column(s) rejected missing", "expected: chosen, rejected", "found: prompt, chosen")
    arguments = ["data", "prepare", "skywork-reward", "--src", tmp_path / "rows.jsonl", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["rrm", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        app()
    assert exit.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert left(tmp_path) == before


def test_a_malformed_row_is_listed_or_ends_the_job(tmp_path: Path):
    rows = [{"query": f"q{at}", "response_1": "a", "response_2": "b", "label": 1} for at in range(25)]
    lines = [json.dumps(row) for row in rows] + ["{", *['{"query": 3, "response_1": "a", "response_2": "b"}'] * 21]
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_text("\n".join(lines))
    refused(prepare("generic", "--src", source, "--out", out, "--strict"), "rows.jsonl:26: not JSON")
    assert left(tmp_path) == {"rows.jsonl", "out.run.json"}
    done = prepare("generic", "--src", source, "--out", out)
    assert done.exit_code == 1
    assert "skipped, malformed: 22" in done.stdout
    assert "rows.jsonl:26: not JSON" in done.stderr
    assert "rows.jsonl:45: field 'query' must be a string, not int" in done.stderr
    assert "rows.jsonl:46: " not in done.stderr
    assert "further malformed rows are listed in" in done.stderr
    assert [row["row"] for row in skipped(out)] == [*range(26, 48)]
    assert len(open_prepared(out)) == 25
    refused(prepare("generic", "--src", source, "--out", out), "exists; remove it")
    assert len(open_prepared(out)) == 25


def test_out_may_not_lie_in_the_snapshot(tmp_path: Path):
    snapshot = publish(tmp_path, "skywork-reward", [pair()])
    refused(prepare("skywork-reward", "--src", snapshot, "--out", snapshot / "out"), "lies in the snapshot")


def test_nothing_usable_leaves_no_data(tmp_path: Path):
    snapshot = publish(tmp_path, "skywork-reward", [pair("q", "x", "x")])
    refused(prepare("skywork-reward", "--src", snapshot, "--out", tmp_path / "out"), "there is no record to write")
    assert not (tmp_path / "out").exists()


def test_killed_in_the_middle_and_begun_anew(tmp_path: Path, monkeypatch):
    """By a signal that cannot be caught, and by an error: no OUT, and the next run, with other settings too, works."""
    snapshot = publish(tmp_path, "skywork-reward", [pair(f"q{at}") for at in range(50)])
    given = ["data", "prepare", "skywork-reward", "--src", str(snapshot), "--out", str(tmp_path / "out")]
    code = f"""
import os, signal
from rrm_jax.cli.main import _app, app
from rrm_jax.data.sources import tulu3_prompts
from rrm_jax.data.sources.parts import HashedRecords
from rrm_jax.data.sources.prepare import Preparation
complete = Preparation._record
def killed(self, row):
    if self.tally.kept == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return complete(self, row)
Preparation._record = killed
_app({given!r})
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()

    def fails(self, row):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Preparation, "_record", fails)
        with pytest.raises(MemoryError):
            prepare(*given[2:])
    assert not (tmp_path / "out").exists()
    assert prepare(*given[2:], "--limit", 40).exit_code == 0
    assert len(open_prepared(tmp_path / "out")) == 40
    assert left(tmp_path) == {"skywork-reward", "out", "out.run.json", "out.skipped.jsonl"}


def test_a_response_of_50_megabytes_passes_whole(tmp_path: Path):
    long = "é" * 25_000_000
    snapshot = publish(tmp_path, "skywork-reward", [pair("q", long, "short"), pair("r")])
    assert prepare("skywork-reward", "--src", snapshot, "--out", tmp_path / "out").exit_code == 0
    first, second = open_prepared(tmp_path / "out")
    assert (first.response_1 == long, first.response_2, second.query) == (True, "short", "r")


def test_show_says_which_file_was_cut_short(tmp_path: Path):
    snapshot = publish(tmp_path, "skywork-reward", [pair(f"q{at}") for at in range(50)])
    prepare("skywork-reward", "--src", snapshot, "--out", tmp_path / "out")
    shard = next((tmp_path / "out").glob("*.array_record*"))
    size = shard.stat().st_size
    os.truncate(shard, size - 100)
    refused(data("show", tmp_path / "out"), f"{shard} has {size - 100:,} bytes instead of {size:,}", "prepare it again")
