"""Conversions: any record through any format comes back, and rows as they are published are read as they are meant."""

import datetime
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rrm_jax.data.conversions import TARGETS, Conversion, open_input
from rrm_jax.data.formats import FORMATS, own_format
from rrm_jax.data.jsonl import encode_row
from rrm_jax.data.overview import PARSERS
from rrm_jax.data.prepared import open_prepared, write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import Candidates, Pair, Question, to_row
from rrm_jax.data.table_writer import write_rows
from rrm_jax.errors import RrmError
from tests.data.test_prepared import KINDS, PAIRS, candidates

KNOWN = candidates().filter(lambda record: record.correct is not None)
LABELLED = PAIRS.filter(lambda pair: pair.label is not None)
OTHERS = [(name, KNOWN if name == "rewardbench2" else LABELLED) for name in TARGETS if name in FORMATS]


def convert(path: Path, to: str, name: str | None = None, **options) -> tuple[list, Conversion, list]:
    """(Rows, the conversion, what was skipped)."""
    source, skipped = open_input(path, name), []
    target = own_format("pairs" if options.get("pairs") else source.kind) if to == "rrm" else FORMATS[to]
    conversion = Conversion(source, target, skip=skipped.append, **options)
    return list(conversion.rows()), conversion, skipped


def save(path: Path, rows: list[dict]) -> Path:
    path.write_bytes(b"".join(map(encode_row, rows)))
    return path


def unique(strategy):
    return st.lists(strategy, min_size=1, max_size=4, unique_by=lambda record: record.id)


many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(("kind", "records"), KINDS)
@many
@given(data=st.data())
def test_any_record_is_its_row(kind, records, data):
    record = data.draw(records)
    assert PARSERS[kind](to_row(record)) == record
    assert PARSERS[kind](json.loads(encode_row(to_row(record)))) == record


def test_a_row_says_only_what_is_known():
    assert to_row(Pair("1", "q", "a", "b")) == {"id": "1", "query": "q", "response_1": "a", "response_2": "b"}
    assert to_row(Question("1", "", answer="")) == {"id": "1", "query": "", "answer": ""}
    assert to_row(Candidates("1", "q", ("a",), (True,))) == {
        "id": "1", "query": "q", "responses": ["a"], "correct": [True],
    }  # fmt: skip


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("kind", "records"), KINDS)
@settings(many, max_examples=8)
@given(data=st.data())
def test_any_records_come_back_from_files(tmp_path_factory, kind, records, ending, data):
    path = tmp_path_factory.mktemp("own") / f"rows{ending}"
    rows = data.draw(unique(records))
    write_rows(path, map(to_row, rows), own_format(kind).columns)
    got, conversion, skipped = convert(path, "rrm", "rrm")
    assert (conversion.source.kind, skipped, [PARSERS[kind](row) for row in got]) == (kind, [], rows)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("name", "records"), OTHERS)
@settings(many, max_examples=12)
@given(data=st.data())
def test_any_record_comes_back_from_every_format(tmp_path_factory, name, records, ending, data):
    """Named, and by its columns alone: rows that are written say what they are."""
    path = tmp_path_factory.mktemp(name) / f"rows{ending}"
    rows = data.draw(unique(records))
    target = FORMATS[name]
    write_rows(path, (target.write(record, {}) for record in rows), target.columns)
    for given_name in (name, None):
        got, _, skipped = convert(path, "rrm", given_name)
        assert (skipped, got) == ([], [*map(to_row, rows)])


@pytest.mark.parametrize(("name", "records"), OTHERS)
@settings(many, max_examples=15)
@given(data=st.data())
def test_rows_of_every_format_come_back_from_records(tmp_path_factory, name, records, data):
    directory = tmp_path_factory.mktemp(name)
    target = FORMATS[name]
    first = [target.write(record, {}) | {"extra": [at]} for at, record in enumerate(data.draw(unique(records)))]
    own, _, _ = convert(save(directory / "a.jsonl", first), "rrm", name)
    again, _, _ = convert(save(directory / "b.jsonl", own), name, "rrm")
    assert again == first


def test_through_prepared_data(tmp_path: Path):
    rows = [Pair(f"é{at}", "q" * at, "\0</think>", "\u2028", 1 + at % 2, "s") for at in range(5)]
    trl = save(tmp_path / "a.jsonl", [FORMATS["trl"].write(row, {}) for row in rows])
    write_prepared(
        tmp_path / "out", RecordsBuilder, Conversion(open_input(trl), None).records(), kind="pairs", facts={}
    )
    assert [*open_prepared(tmp_path / "out")] == rows
    back, _, _ = convert(tmp_path / "out", "trl")
    assert back == [FORMATS["trl"].write(row, {}) for row in rows]


USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in [("user", "q"), ("assistant", "a"), ("assistant", "b")]
)
SYSTEM, MORE = {"role": "system", "content": "be kind"}, {"role": "user", "content": "more?"}


@pytest.mark.parametrize(
    ("row", "name", "texts"),
    [  # the examples of TRL's documentation, and of data sets on the hub, shortened
        ({"prompt": "q", "chosen": " a", "rejected": " b"}, "trl", ("q", " a", " b")),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "trl-messages", ("q", "a", "b")),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "trl-messages", ("q", "a", "b")),
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "trl-messages", ("q", "a", "b")),
        ({"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, "trl-messages", ("q", "a", "b")),
        (
            {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            "trl-messages",
            ("System: be kind\n\nUser: q", "a", "b"),
        ),
        (
            {"chosen": [USER, BAD, MORE, GOOD], "rejected": [USER, BAD, MORE, BAD]},
            "trl-messages",
            ("User: q\n\nAssistant: b\n\nUser: more?", "a", "b"),
        ),
        (
            {"chosen": [USER, GOOD, MORE, GOOD], "rejected": [USER, BAD]},
            "trl-messages",
            ("q", "Assistant: a\n\nUser: more?\n\nAssistant: a", "b"),
        ),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "trl-messages", ("q", "a", "a")),
        (
            {"prompt": "q", "chosen": "a", "chosen_model": "m", "rejected": "b", "rejected_model": "n",
             "subset": "hep-go", "id": 7},
            "rewardbench",
            ("q", "a", "b"),
        ),
        ({"input": "q", "output_1": "a", "output_2": "b", "label": 1}, "llmbar", ("q", "a", "b")),
        (
            {"idx": 0, "motivation_app": "m", "cmp_key": "k", "instruction": "i", "input": "x", "response1": "a",
             "response2": "b", "annotator1": 1, "annotator2": 1, "annotator3": 0},
            "pandalm",
            ("i\n\nx", "a", "b"),
        ),
    ],
)  # fmt: skip
def test_published_rows(tmp_path: Path, row, name, texts):
    (got,), conversion, _ = convert(save(tmp_path / "rows.jsonl", [row]), "rrm")
    assert conversion.source.name == name
    assert (got["query"], got["response_1"], got["response_2"], got["label"]) == (*texts, 1)
    assert got["id"]
    for key in ("chosen_model", "subset", "instruction", "annotator3"):
        assert key not in row or row[key] == got["source" if key == "subset" else key]


def test_ids_of_rows_that_have_none_are_of_their_content(tmp_path: Path):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "b", "rejected": "a"}]
    got, conversion, _ = convert(save(tmp_path / "rows.jsonl", [*rows, rows[0]]), "rrm")
    other, _, _ = convert(save(tmp_path / "other.jsonl", rows[::-1]), "rrm")
    assert [row["id"] for row in got] == [other[1]["id"], other[0]["id"], other[1]["id"] + "-2"]
    assert conversion.tally.repeated == 1
    bench = {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "hep-go", "id": 7}
    (row,), _, _ = convert(save(tmp_path / "bench.jsonl", [bench]), "rrm")
    assert (row["id"], row["source"]) == ("hep-go/7", "hep-go")
    (row,), _, _ = convert(tmp_path / "bench.jsonl", "rrm", new_ids=True, origin="other")
    assert (row["id"].startswith("rewardbench/"), row["source"]) == (True, "hep-go")
    assert {row["source"] for row in convert(tmp_path / "rows.jsonl", "rrm", origin="mine")[0]} == {"mine"}


def test_conversations_are_kept_as_they_were(tmp_path: Path):
    tool = GOOD | {"name": "someone"}
    rows = [
        {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD, MORE, BAD]},
        {"prompt": [USER], "chosen": [tool], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    ]
    own, conversion, _ = convert(save(tmp_path / "a.jsonl", rows), "rrm")
    assert ["turns" in row for row in own] == [True, True, False]
    assert conversion.tally.transcripts == 2
    again, other, _ = convert(save(tmp_path / "b.jsonl", own), "trl-messages")
    assert [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in again] == rows
    assert not other.tally.left_out
    own[0]["response_1"] = "edited"  # then the turns are no longer those of the texts
    edited, _, _ = convert(save(tmp_path / "c.jsonl", own), "trl-messages")
    assert edited[0]["chosen"] == [{"role": "assistant", "content": "edited"}]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": [USER, GOOD], "rejected": [MORE, BAD]}, "share no turn"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "share no turn"),
        ({"chosen": [USER, GOOD, MORE], "rejected": [USER, GOOD, USER]}, "with a turn of the user's"),
        ({"chosen": [USER, GOOD], "rejected": []}, "rejected has no message"),
        ({"chosen": [USER, GOOD], "rejected": "b"}, "rejected must be a list of messages, not str"),
        ({"chosen": [USER, GOOD | {"content": None}], "rejected": [USER, BAD]}, r"'chosen\[1\].content' must be"),
        ({"chosen": [USER, "a"], "rejected": [USER, BAD]}, r"chosen\[1\] must be a message"),
        ({"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "prompt is none of the turns"),
        ({"prompt": 3, "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "prompt must be a list of messages, not int"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "chosen_was": 3}, "chosen_was must be 1, 2 or null"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "id": 1.5}, "'id' must be a string or an integer"),
    ],
)  # fmt: skip
def test_conversations_that_are_refused(tmp_path: Path, row, words):
    good = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    got, _, (skipped,) = convert(save(tmp_path / "rows.jsonl", [good, row, good]), "rrm")
    assert len(got) == 2
    assert (skipped.row, skipped.reason) == (2, "malformed")
    assert re.search(words, skipped.why)


def bench2(**changed) -> dict:
    """A row as RewardBench 2's card describes it."""
    return {
        "id": "3", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "num_incorrect": 3,
        "total_completions": 4, "models": ["m"] * 4, "subset": "Math", "additional_metadata": {"label": None},
    } | changed  # fmt: skip


def test_best_of_n(tmp_path: Path):
    ties = bench2(id="4", chosen=["a", "b"], rejected=["c"], subset="Ties")
    path = save(tmp_path / "rows.jsonl", [bench2(), ties, bench2(id="5", rejected=[])])
    got, conversion, _ = convert(path, "rrm")
    assert conversion.source.name == "rewardbench2"
    assert [(row["id"], row["responses"], row["correct"], row["source"]) for row in got] == [
        ("3", ["a", "b", "c", "d"], [True, False, False, False], "Math"),
        ("4", ["a", "b", "c"], [True, True, False], "Ties"),
        ("5", ["a"], [True], "Math"),
    ]
    assert got[0]["models"] == ["m"] * 4
    pairs, _, (skipped,) = convert(path, "rrm", pairs=True)
    assert [(row["id"], row["response_1"], row["response_2"], row["label"]) for row in pairs] == [
        ("3/1-2", "a", "b", 1), ("3/1-3", "a", "c", 1), ("3/1-4", "a", "d", 1), ("4/1-3", "a", "c", 1),
        ("4/2-3", "b", "c", 1),
    ]  # fmt: skip
    assert (skipped.row, skipped.reason) == (3, "all responses correct")
    trl, _, _ = convert(path, "trl", pairs=True)
    assert [row["rejected"] for row in trl] == ["b", "c", "d", "c", "c"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"chosen": "a"}, "chosen must be a list of strings, not str"),
        ({"rejected": ["b", 3]}, "'rejected[1]' must be a string, not int"),
        ({"chosen": [], "rejected": []}, "'responses' must be a list of at least one"),
        ({"correct": [True, True, False, False]}, "as many true ones as chosen"),
        ({"correct": "yes"}, "correct must be a list of booleans"),
        ({"prompt": None}, "'prompt' must be a string"),
    ],
)
def test_best_of_n_that_is_refused(tmp_path: Path, changed, words):
    _, _, (skipped,) = convert(save(tmp_path / "rows.jsonl", [bench2(), bench2(id="4", **changed)]), "rrm")
    assert words in skipped.why


def test_what_cannot_be_said_is_counted(tmp_path: Path):
    rows = [to_row(Pair(str(at), "q", "a", f"b{at}", label)) for at, label in enumerate([1, None, 2])]
    rows += [rows[0] | {"query": "other"}, rows[0] | {"id": "x", "label": 3}]
    for target in ("trl", "trl-messages", "rewardbench", "llmbar"):
        got, conversion, skipped = convert(save(tmp_path / "rows.jsonl", rows), target)
        assert len(got) == conversion.tally.written == 2
        assert conversion.tally.skipped == {"no label": 1, "malformed": 2}
        assert [(row.row, row.reason) for row in skipped] == [(2, "no label"), (4, "malformed"), (5, "malformed")]
        assert "id '0' appears twice" in skipped[1].why
    unknown = save(tmp_path / "c.jsonl", [to_row(Candidates("1", "q", ("a", "b")))])
    for options in ({}, {"pairs": True}):
        _, conversion, _ = convert(unknown, "trl" if options else "rewardbench2", **options)
        assert conversion.tally.skipped == {"not known which responses are correct": 1}


def test_a_field_that_says_something_else_is_left_out_and_named(tmp_path: Path):
    """A TRL row's own `label` must not become the record's, and what JSON cannot hold is not written."""
    row = {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
        "label": "good",
        "rating": 5,
        "when": datetime.date(2025, 1, 1),
    }
    pq.write_table(pa.Table.from_pylist([row, row | {"prompt": "p"}]), tmp_path / "rows.parquet")
    got, conversion, _ = convert(tmp_path / "rows.parquet", "rrm")
    assert [(row["label"], row["rating"]) for row in got] == [(1, 5), (1, 5)]
    assert conversion.tally.left_out == {"label": 2, "when": 2}
    assert "fields without a place in the output: label (2), when (2)" in conversion.tally.lines()
    _, conversion, _ = convert(tmp_path / "rows.parquet", "rrm", keep_rest=False)
    assert set(conversion.tally.left_out) == {"label", "when", "rating"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "x"}, "found: text\n  expected:\n    rrm: query with .*trl: prompt, chosen, rejected\n"),
        ({"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q"}, "do not say where the prompt ends"),
        ({"winner": 1, "votes": [], "id": "1"}, "these are judgments"),
    ],
)
def test_columns_of_no_format(tmp_path: Path, row, words):
    with pytest.raises(RrmError, match=f"(?s){words}"):
        open_input(save(tmp_path / "rows.jsonl", [row]))


def test_columns_of_another_format_than_the_one_named(tmp_path: Path):
    path = save(tmp_path / "rows.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(RrmError, match=r"(?s)not llmbar: .*expected: input, .*found: prompt, chosen, rejected"):
        open_input(path, "llmbar")
    for name, words in (("rrm", "the columns of trl, not of rrm"), ("prepared", "no prepared data set")):
        with pytest.raises(RrmError, match=words):
            open_input(path, name)


def test_files_of_others_are_written_whole_or_not_at_all(tmp_path: Path):
    def rows():
        yield {"a": "1"}
        raise RrmError("no more")

    for ending in (".jsonl", ".json", ".parquet"):
        for bad, words in ((rows(), "no more"), ([], "no row to write")):
            with pytest.raises(RrmError, match=words):
                write_rows(tmp_path / f"out{ending}", bad, {"a": "text"})
    with pytest.raises(RrmError, match="must end with one of"):
        write_rows(tmp_path / "out.csv", [], {})
    (tmp_path / "file").write_text("")
    with pytest.raises(RrmError, match="cannot write"):
        write_rows(tmp_path / "file" / "out.jsonl", [{}], {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


LLMBAR = {"natural": 100, "adver-neighbor": 134, "adver-GPTInst": 92, "adver-GPTOut": 47, "adver-manual": 46}


def test_llmbar_as_published(real_data: Path):
    """Counts as in RewardBench, of which these are subsets; every row comes back as it was."""
    golden = json.loads((real_data / "rewardbench_golden" / "rewardbench_v1_golden.json").read_text())["example_counts"]
    for name, count in LLMBAR.items():
        path = real_data / "llmbar" / f"llmbar-{name}.json"
        rows, conversion, skipped = convert(path, "rrm")
        assert (conversion.source.name, len(rows), skipped) == ("llmbar", count, [])
        assert count == golden[f"llmbar-{name}"]
        published = json.loads(path.read_text(encoding="utf-8"))
        assert [(r["query"], r["response_1"], r["response_2"], r["label"]) for r in rows] == [
            tuple(row[key] for key in ("input", "output_1", "output_2", "label")) for row in published
        ]
        for other in ("trl", "trl-messages", "rewardbench"):
            own = Conversion(open_input(path), None).records()
            read = FORMATS[other].read
            assert [read(FORMATS[other].write(record, {}))[0].label for record in own] == [
                r["label"] for r in published
            ]


def test_pandalm_as_published(real_data: Path):
    """The majority's labels are those that the published scores were computed from; of six rows a response is `true`,
    no text."""
    golden = json.loads((real_data / "pandalm" / "golden_scores.json").read_text())["label_distribution"]
    path = real_data / "pandalm" / "testset-v1.json"
    rows, conversion, skipped = convert(path, "rrm", keep_ties=True)
    published = json.loads(path.read_text(encoding="utf-8"))
    bad = [row for row in published if not isinstance(row["response1"], str) or not isinstance(row["response2"], str)]
    assert (len(bad), conversion.tally.skipped) == (6, {"malformed": 6})
    assert [row.row for row in skipped] == [published.index(row) + 1 for row in bad]
    labels = Counter(row.get("label", 0) for row in rows) + Counter(row["annotator1"] for row in bad)
    assert {str(label): count for label, count in labels.items()} == golden
    _, conversion, _ = convert(path, "rrm")
    assert conversion.tally.skipped == {"malformed": 6, "tie of the annotators": golden["0"]}
    assert conversion.tally.written == golden["1"] + golden["2"] - 6
