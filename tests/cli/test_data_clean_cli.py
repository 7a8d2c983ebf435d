"""`rrm data clean` from the outside: what stays, byte for byte; what is printed; undoing, kills, bad input."""

import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.data import whole_files
from rrm_jax.data.prepared import open_prepared, write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import Candidates, Pair, Question
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError

LONG = " ".join(f"word{at}" for at in range(60))
FRENCH = "Quelle est la capitale de la France, et combien d'habitants compte-t-elle ?"


def line(at: int, **changed) -> str:
    """A pair with a field that this package does not know, written as its own encoder would not."""
    row = {"source": "ab"[at % 2], "id": f"é{at}", "query": f"question {at}", "response_1": f"right {at}"}
    row |= {"response_2": f"wrong {at}", "label": 1 + at % 2, "own": [1.50, None]} | changed
    return json.dumps(row, ensure_ascii=at % 3 == 0, separators=(" , ", ":  "))


LINES = [
    line(0),
    line(1, response_1=" "),
    line(2, query=f"about {LONG}"),
    "",
    line(4, query="Question 0", response_1="WRONG\t0", response_2="right 0 "),
    "{",
    line(6, query=f"about {LONG} more"),
    line(7, query=FRENCH),
    line(0, query="of the same id"),
    line(9, response_2="right 9", response_1="thought</think>right 9"),
    line(10, query="How many legs do three spiders and two ants have, all in all?"),
    line(11),
]


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    path.write_bytes(("\n".join(lines) + end).encode())
    return path


def clean(*arguments):
    result = CliRunner().invoke(_app, ["data", "clean", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit)):
        raise result.exception
    return result


def dropped_rows(out: Path) -> list[dict]:
    text = out.with_name(f"{out.name}.dropped.jsonl").read_text(encoding="utf-8")
    return [json.loads(row) for row in text.splitlines()]


def said(result) -> list[str]:
    return [" ".join(words.split()) for words in result.stdout.splitlines()]


def test_every_filter_on_a_file_by_hand(tmp_path: Path):
    data, out = write(tmp_path / "pairs.jsonl", LINES, end=""), tmp_path / "out.jsonl"
    bench = tmp_path / "b" / "bench.json"
    bench.parent.mkdir()
    bench.write_text(json.dumps([{"input": "how many legs do three spiders and two ants have?", "id": 3}]))
    options = ["--exact", "--near", 0.8, "--languages", "en", "--against", bench]
    result = clean("--data", data, "--out", out, *options)
    assert result.exit_code == 1
    assert re.search(r"pairs.jsonl:6: not JSON", result.stderr)
    lines = data.read_bytes().splitlines(keepends=True)
    assert out.read_bytes() == lines[0] + lines[2] + lines[11]
    rows = dropped_rows(out)
    assert [(row["row"], row["reason"]) for row in rows] == [
        (2, "empty response"), (4, "blank line"), (5, "duplicate"), (6, "malformed"), (7, "near duplicate"),
        (8, "language"), (9, "repeated id"), (10, "identical responses"), (11, "contaminated"),
    ]  # fmt: skip
    assert all(row["line"].encode() == lines[row["row"] - 1] for row in rows)
    by_reason = {row["reason"]: row for row in rows}
    assert by_reason["duplicate"]["matched"] == [{"row": 1, "id": "é0"}]
    (near,) = by_reason["near duplicate"]["matched"]
    assert (near["row"], near["id"]) == (3, "é2")
    # 61 words have 57 five-grams, and one word more one more; the short responses differ, each a shingle.
    assert near["similarity"] == round(57 / (58 + 4), 4)
    (match,) = by_reason["contaminated"]["matched"]
    assert (match["benchmark"], match["id"]) == ("b/bench", "3")
    assert (match["of_query"], match["of_prompt"]) == (0.5, 1.0)  # 3 of 6 eight-grams
    assert (by_reason["language"]["id"], by_reason["language"]["detail"][:2]) == ("é7", "fr")
    for fact in [
        "rows: 10; kept: 3 (30.0 %)",
        "empty query 0 0.0 %",
        "identical responses 1 10.0 %",
        "near duplicate 1 10.0 %",
        "malformed: 1, left out as well",
        "blank line: 1, left out as well",
        "languages of rows left out: fr 1",
        "contaminated rows of b/bench",
    ]:
        assert any(text.startswith(fact) for text in said(result)), fact
    assert any(text.startswith("é10: ") and "50% of the row's n-grams, 100% of its" in text for text in said(result))
    facts = json.loads((tmp_path / "out.jsonl.run.json").read_text(encoding="utf-8"))
    assert facts["config"]["near"] == 0.8
    assert {*facts["inputs"]} == {"data", "against: b/bench: bench.json"}

    result = clean("--undo", out, "--out", tmp_path / "again.jsonl")
    assert result.exit_code == 0
    assert (tmp_path / "again.jsonl").read_bytes() == data.read_bytes()
    before = out.read_bytes()
    assert clean("--data", data, "--out", out, *options).exit_code == 1  # the same job may do it again
    assert out.read_bytes() == before


def test_by_default_only_problems_are_dropped(tmp_path: Path):
    data, out = write(tmp_path / "pairs.jsonl", [*LINES[:3], *LINES[7:]]), tmp_path / "out.jsonl"
    assert clean("--data", data, "--out", out).exit_code == 0
    assert [row["reason"] for row in dropped_rows(out)] == ["empty response", "repeated id", "identical responses"]
    kept = tmp_path / "kept.jsonl"
    assert clean("--data", data, "--out", kept, "--keep-problems", "--exact").exit_code == 0
    assert kept.read_bytes() == data.read_bytes()
    assert dropped_rows(kept) == []


def test_duplicates_by_query(tmp_path: Path):
    rows = [line(0), line(1, query="QUESTION 0"), line(2, query=LONG), line(3, query=f"{LONG} more"), line(4)]
    data, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "out.jsonl"
    result = clean("--data", data, "--out", out, "--exact", "--near", 0.9, "--by", "query")
    assert [(row["row"], row["matched"][0]["row"]) for row in dropped_rows(out)] == [(2, 1), (4, 3)]
    assert "a 3 3 (100.0 %) 0 0" in said(result)
    assert "b 2 0 (0.0 %) 1 1" in said(result)


def test_token_limits(tmp_path: Path):
    """One token a character."""
    write_word_tokenizer(tmp_path / "letters", string.printable)
    rows = [line(0), line(1, query="q" * 30), line(2, response_2="r" * 31), line(3, response_1="r")]
    data, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "out.jsonl"
    limits = ["--max-query-tokens", 29, "--max-response-tokens", 30, "--min-response-tokens", 2]
    assert clean("--data", data, "--out", out, "--tokenizer", tmp_path / "letters", *limits).exit_code == 0
    assert [(row["reason"], row["detail"]) for row in dropped_rows(out)] == [
        ("long query", "30 tokens"), ("long response", "response 2: 31 tokens"),
        ("short response", "response 1: 1 tokens"),
    ]  # fmt: skip


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ROWS = st.tuples(TEXTS, TEXTS, TEXTS).map(
    lambda texts: json.dumps(dict(zip(("id", "query", "answer"), texts, strict=True)), ensure_ascii=False).encode()
)
ENDS = st.sampled_from([b"\n", b"\r\n", b" \n", b"\n\n"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(ROWS | st.binary(max_size=6), ENDS), max_size=8), st.booleans())
def test_undoing_gives_any_file_again(tmp_path_factory: pytest.TempPathFactory, rows, ended):
    """Property: rows of any Unicode, blank lines, bytes that are no text, and no end of the last line."""
    folder = tmp_path_factory.mktemp("undo")
    data, out = folder / "data.jsonl", folder / "out.jsonl"
    content = b'{"id":"first","query":"a question"}\n' + b"".join(row + end for row, end in rows)
    data.write_bytes(content if ended else content.rstrip(b"\r\n"))
    result = clean("--data", data, "--out", out, "--exact", "--near", 0.5, "--by", "query")
    assert not isinstance(result.exception, RrmError), result.exception
    assert clean("--undo", out, "--out", folder / "again.jsonl").exit_code == 0
    assert (folder / "again.jsonl").read_bytes() == data.read_bytes()


RECORDS = {
    "pairs": [Pair("1", "q", "a", "b", 1, "s"), Pair("2", "Q", "B", "A", None), Pair("3", "r", "c", "c", 2)],
    "questions": [Question("1", "q", None, "s", "math"), Question("2", "é\u2028\ud7ff", "4"), Question("3", "q", "5")],
    "candidates": [Candidates("1", "", ("a",)), Candidates("2", "q", ("a", "b"), (True, False), (None, "4"))],
}


@pytest.mark.parametrize("kind", RECORDS)
def test_prepared_data_sets(tmp_path: Path, kind):
    class Cited(RecordsBuilder, skip_registration=True):
        CITATION, LICENCE = "someone, 2024", "CC0"

    data, out, again = tmp_path / "data", tmp_path / "out", tmp_path / "again"
    write_prepared(data, Cited, RECORDS[kind], kind=kind, facts={"name": "mine"})
    assert clean("--data", data, "--out", out, "--exact").exit_code == 0
    cleaned = open_prepared(out)
    assert cleaned.kind == kind
    assert [record.id for record in cleaned] == {"pairs": ["1"], "questions": ["1", "2"], "candidates": ["2"]}[kind]
    assert (cleaned.facts["name"], len(cleaned.facts["cleaned"])) == ("mine", 1)
    assert json.loads((out / "dataset_info.json").read_text(encoding="utf-8"))["citation"] == "someone, 2024"
    assert clean("--undo", out, "--out", again).exit_code == 0
    restored = open_prepared(again)
    assert [*restored] == RECORDS[kind]
    assert (restored.fingerprint, restored.facts) == (open_prepared(data).fingerprint, {"name": "mine"})
    assert "exists; remove it" in str(clean("--data", data, "--out", out, "--exact").exception)
    dropped = tmp_path / "out.dropped.jsonl"
    dropped.write_bytes(dropped.read_bytes().replace(b'\\"query\\":\\"', b'\\"query\\":\\"x'))
    assert "do not give what was cleaned" in str(clean("--undo", out, "--out", tmp_path / "other").exception)
    assert not (tmp_path / "other").exists()


def test_a_prepared_data_set_of_nothing_is_refused(tmp_path: Path):
    write_prepared(tmp_path / "data", RecordsBuilder, [Question("1", "")], kind="questions", facts={})
    assert "every row would be left out" in str(clean("--data", tmp_path / "data", "--out", tmp_path / "o").exception)
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o.dropped.jsonl").exists()


def test_undoing_refuses_what_was_changed(tmp_path: Path):
    data, out, again = write(tmp_path / "pairs.jsonl", LINES), tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    clean("--data", data, "--out", out)
    dropped = tmp_path / "out.jsonl.dropped.jsonl"
    kept, left_out = out.read_bytes(), dropped.read_bytes()

    def refused(message):
        assert message in str(clean("--undo", out, "--out", again).exception)
        assert not again.exists()

    out.write_bytes(kept.replace(b"question", b"problem", 1))
    refused("do not give what was cleaned")
    out.write_bytes(kept)
    dropped.write_bytes(left_out[:-20])
    refused("out.jsonl.dropped.jsonl:5: not JSON")
    dropped.write_bytes(left_out.replace(b'"line"', b'"lines"', 1))
    refused("out.jsonl.dropped.jsonl:1: a row that rrm data clean did not write")
    dropped.unlink()
    refused("is missing; what was left out")
    dropped.write_bytes(left_out)
    assert "exists; remove it" in str(clean("--undo", out, "--out", data).exception)
    assert "--undo needs no --exact" in str(clean("--undo", out, "--out", again, "--exact").exception)
    assert "there is no" in str(clean("--undo", tmp_path / "none", "--out", again).exception)
    (tmp_path / "out.jsonl.run.json").unlink()
    refused("does not say what")


def test_what_another_job_wrote_is_not_overwritten(tmp_path: Path):
    data, out = write(tmp_path / "pairs.jsonl", LINES), tmp_path / "out.jsonl"
    clean("--data", data, "--out", out, "--exact")
    kept = out.read_bytes()
    assert "near: was None, is now 0.8" in str(clean("--data", data, "--out", out, "--exact", "--near", 0.8).exception)
    fewer = write(tmp_path / "fewer.jsonl", LINES[:5])
    assert "that are not in" in str(clean("--data", fewer, "--out", out, "--exact").exception)
    assert "would be written to" in str(clean("--data", data, "--out", data).exception)
    dropped = tmp_path / "out.jsonl.dropped.jsonl"
    left_out = dropped.read_bytes()
    dropped.write_text(line(1) + "\n", encoding="utf-8")  # as rrm data filter has it
    assert "dropped.jsonl is another job's" in str(clean("--data", data, "--out", out, "--exact").exception)
    dropped.write_bytes(left_out)
    (tmp_path / "out.jsonl.run.json").unlink()
    assert "is not this job's" in str(clean("--data", data, "--out", out, "--exact").exception)
    assert out.read_bytes() == kept


def test_a_broken_off_job_leaves_nothing_and_can_begin_anew(tmp_path: Path, monkeypatch):
    data, out = write(tmp_path / "pairs.jsonl", LINES[:5]), tmp_path / "out.jsonl"

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(whole_files.os, "replace", full)
        assert "No space left on device" in str(clean("--data", data, "--out", out).exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl.run.json", "pairs.jsonl"]
    assert clean("--data", data, "--out", out, "--exact").exit_code == 0  # nothing was there of the other settings
    assert [row["reason"] for row in dropped_rows(out)] == ["empty response", "blank line", "duplicate"]


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path, monkeypatch):
    from rrm_jax.data import cleaning

    data, out = write(tmp_path / "pairs.jsonl", LINES[:5]), tmp_path / "out.jsonl"
    decide = cleaning.Cleaning.decide

    def changed(self, progress):
        decide(self, progress)
        write(data, LINES[:5], end=" \n")

    monkeypatch.setattr(cleaning.Cleaning, "decide", changed)
    assert "was changed while it was cleaned" in str(clean("--data", data, "--out", out).exception)
    assert not out.exists()
    assert not (tmp_path / "out.jsonl.dropped.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --data"),
        (("--data", "DATA", "--undo", "DATA"), "give --data"),
        (("--data", "DATA", "--keep-problems"), "leaves every row in"),
        (("--data", "DATA", "--by", "query"), "--by says what"),
        (("--data", "DATA", "--max-query-tokens", "3"), "need --tokenizer"),
        (("--data", "DATA", "--tokenizer", "."), "needs one of them"),
        (("--data", "DATA", "--tokenizer", ".", "--max-response-tokens", "3", "--min-response-tokens", "4"), "above"),
        (("--data", "DATA", "--languages", "xx"), "xx: no language known here"),
        (("--data", "DATA", "--languages", ","), "no language known here"),
        (("--data", "DATA", "--language-of-responses"), "needs --languages"),
        (("--data", "DATA", "--against", "none.json"), "there is no file"),
        (("--data", "DATA", "--against", "DATA", "--against", "DATA", "--against", "DATA"), "given twice"),
        (("--data", "DATA", "--strict"), "pairs.jsonl:6: not JSON"),
        (("--data", "none.jsonl"), "cannot read none.jsonl"),
    ],
)
def test_wrong_options(tmp_path: Path, options, message):
    data = write(tmp_path / "pairs.jsonl", LINES)
    result = clean(*(str(data) if word == "DATA" else word for word in options), "--out", tmp_path / "out.jsonl")
    assert message in str(result.exception)
    assert not (tmp_path / "out.jsonl").exists()


def test_judgments_are_no_data_to_clean(tmp_path: Path):
    data = write(tmp_path / "j.jsonl", ['{"id": 1, "winner": 1, "votes": []}'])
    assert "holds judged rows" in str(clean("--data", data, "--out", tmp_path / "o").exception)
