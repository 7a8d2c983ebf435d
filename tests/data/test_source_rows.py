"""Whatever the data set: columns of one's own, ids, rows that give no record, registration."""

import json
import tracemalloc
from pathlib import Path

import pytest

from rrm_jax.data import sources as registry
from rrm_jax.data.records import Pair
from rrm_jax.data.snapshot import open_snapshot
from rrm_jax.data.sources import get_source, sources
from rrm_jax.data.sources.prepare import Preparation
from rrm_jax.errors import RrmError
from tests.data.published import bare, pair, prepare, publish, turns


def test_generic_takes_this_packages_rows_as_they_are(tmp_path: Path):
    rows = [
        {"id": 7, "query": "q", "response_1": "a", "response_2": "b", "label": 2, "source": "mine", "own": 1},
        {"id": "x", "query": "q", "response_1": "a", "response_2": "b", "label": None},
        {"id": 7, "query": "q", "response_1": "a", "response_2": "c", "label": 2},
        {"query": "q", "response_1": "a", "response_2": "c"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, tally, _ = prepare(get_source("generic"), tmp_path)
    assert records[:2] == [Pair("7", "q", "a", "b", 2, "mine"), Pair("x", "q", "a", "b", None)]
    assert records[2].id.startswith("generic/")
    assert tally.skipped == {"same id, other content": 1}


def test_generic_columns_may_lie_deep(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in [
                {"p": turns("q", system="s"), "c": turns("q", "good"), "r": {"text": ["x", "bad"]}, "l": 2},
                {"p": turns("q"), "c": turns("q", "good"), "r": {}, "l": 2},
                {"p": turns("q"), "c": 3, "r": {"text": ["x", "y"]}, "l": 2},
                {"p": turns("q"), "c": turns("q", "good"), "r": {"text": ["x", None]}, "l": "2"},
            ]
        )
    )
    generic = get_source("generic").configure
    columns = {"query": "p", "response_1": "c", "response_2": "r.text.-1"}
    records, tally, skipped = prepare(generic(columns), tmp_path)
    assert [bare(record) for record in records] == [("q", "good", "bad", 1, "")]
    assert tally.skipped == {"malformed": 2, "empty response": 1}
    assert [row.why for row in skipped] == [
        "there is no r.text.-1: 'text' is missing",
        "response_1 must be text or a list of messages, not int",
        "empty response: response_2",
    ]
    records, _, _ = prepare(generic({**columns, "label": "l"}), tmp_path)
    assert [record.label for record in records] == [2]
    records, _, _ = prepare(generic({"query": "p.-1.content", "answer": "l"}), tmp_path)
    assert bare(records[0]) == ("q", "2", "", "")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"query": "q", "response_1": "a"}, "pairs need response_2 too"),
        ({"answer": "a"}, "questions need query too"),
        ({"query": "q", "label": "l"}, "questions have no label; choose among id, query, answer"),
        ({"query": "q", "response_1": "a", "response_2": "b", "answer": "c"}, "pairs have no answer"),
    ],
)
def test_generic_says_which_fields_there_are(columns: dict[str, str], words: str):
    with pytest.raises(RrmError, match=words):
        get_source("generic").configure(columns)


def test_pairs_that_teach_nothing_are_counted_apart(tmp_path: Path):
    rows = [
        pair("q", "same", "same"), pair(" \n", "a", "b"), pair("q", "", "b"), pair("q", "a", " "),
        {"chosen": turns("q"), "rejected": turns("q", "r"), "source": "x"}, pair(), pair(), pair("q", "bad", "good"),
    ]  # fmt: skip
    records, tally, skipped = prepare(get_source("skywork-reward"), publish(tmp_path, "skywork-reward", rows))
    assert [(record.response_1, record.response_2) for record in records] == [("good", "bad"), ("bad", "good")]
    assert tally.skipped == {"identical responses": 1, "empty query": 1, "empty response": 3, "repeated": 1}
    assert [row.row for row in skipped] == [1, 2, 3, 4, 5]
    assert sum(tally.skipped.values()) + tally.kept == tally.read


def test_ids_are_a_function_of_the_content_alone(tmp_path: Path):
    rows = [pair(f"q{at}") for at in range(4)]
    source = get_source("skywork-reward")
    ids = {r.query: r.id for r in prepare(source, publish(tmp_path / "a", source.name, rows))[0]}
    again = {r.query: r.id for r in prepare(source, publish(tmp_path / "b", source.name, rows[::-1]))[0]}
    assert ids == again
    assert len(set(ids.values())) == 4
    # printf '\0\0\0\0\0\0\0\2q0\0\0\0\0\0\0\0\4good\0\0\0\0\0\0\0\3bad' | sha256sum
    assert ids["q0"] == "skywork-reward/30073ebf99501826"


def test_a_response_of_50_mb_is_kept(tmp_path: Path):
    rows = [pair("a"), pair("b", "x" * 50_000_000), pair("c")]
    records, tally, _ = prepare(get_source("skywork-reward"), publish(tmp_path, "skywork-reward", rows))
    assert [len(record.response_1) for record in records] == [4, 50_000_000, 4]
    assert tally.kept == 3


def test_a_lone_surrogate_is_no_text(tmp_path: Path):
    row = {"query": "\ud800", "response_1": "a", "response_2": "b"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "query": "\U0001f600"}) + "\n")
    records, tally, skipped = prepare(get_source("generic"), tmp_path)
    assert [record.query for record in records] == ["\U0001f600"]
    assert "lone surrogate" in skipped[0].why
    assert tally.skipped == {"malformed": 1}


def test_a_limit_ends_the_reading(tmp_path: Path):
    path = publish(tmp_path, "skywork-reward", [pair("")] + [pair(f"q{at}") for at in range(9)])
    records, tally, _ = prepare(get_source("skywork-reward"), path, limit=3)
    assert [record.query for record in records] == ["q0", "q1", "q2"]
    assert tally.read == 4


def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    """10,000 rows of 2 KB, of which only ids may be held; JSON lines, whose memory is all Python's."""
    with open(tmp_path / "a.jsonl", "w") as file:
        for at in range(10_000):
            row = {"query": f"q{at}", "response_1": "a" * 1_000, "response_2": "b" * 1_000}
            file.write(json.dumps(row) + "\n")
    source = get_source("generic")
    tracemalloc.start()
    kept = sum(1 for _ in Preparation(source, open_snapshot(tmp_path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept == 10_000
    assert peak < 5_000_000  # the rows are 20 MB


def test_a_new_source_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "more"
    package.mkdir()
    (package / "my_set.py").write_text(
        "from rrm_jax.data.records import Question\n"
        "from rrm_jax.data.sources.base import Source, answer_of, text_of\n"
        "SOURCE = Source(name='my-set', kind='questions', hub='me/my-set', revision='v1', licence='MIT', citation='',\n"
        "    columns=('q', 'a'), parse=lambda row: Question('', text_of(row, 'q'), answer_of(row['a']), '', 'math'))\n"
    )
    monkeypatch.setattr(registry, "__path__", [*registry.__path__, str(package)])
    monkeypatch.setattr(registry, "MODULES", (*registry.MODULES, "my_set"))
    (tmp_path / "a.jsonl").write_text('{"q": "1 + 1", "a": 2}\n')
    records, _, _ = prepare(get_source("my-set"), tmp_path / "a.jsonl")
    assert [bare(record) for record in records] == [("1 + 1", "2", "my-set", "math")]


def test_every_module_of_the_package_is_registered():
    found = {path.stem for path in Path(registry.__path__[0]).glob("*.py")}
    assert found - {"__init__", "base", "parts", "prepare"} == set(registry.MODULES)
    for name, source in sources().items():
        assert name == source.name
        assert source.name == "generic" or (source.hub and source.licence and source.revision and source.citation)
    with pytest.raises(RrmError, match=r"did you mean dapo-math\?"):
        get_source("dapo")


def test_wrong_columns_name_the_data_set(tmp_path: Path):
    path = publish(tmp_path, "big-math", [])
    with pytest.raises(RrmError, match=r"is not dapo-math \(BytedTsinghua-SIA/DAPO-Math-17k\)") as error:
        prepare(get_source("dapo-math"), path)
    assert "expected: prompt, reward_model\n  found: problem, answer, source" in str(error.value)
