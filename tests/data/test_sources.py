"""Every adapter on small files of the published shape, and what happens to rows that give no record."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rrm_jax.data import sources as registry
from rrm_jax.data.records import Pair, Question
from rrm_jax.data.snapshot import open_snapshot
from rrm_jax.data.sources import get_source, sources
from rrm_jax.data.sources.base import Source, prompt_key
from rrm_jax.data.sources.parts import HashedRecords, ShuffledRows
from rrm_jax.data.sources.prepare import Preparation, Skipped
from rrm_jax.errors import RrmError

MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
VERL = {
    "data_source": pa.string(),
    "prompt": MESSAGES,
    "ability": pa.string(),
    "reward_model": pa.struct([("ground_truth", pa.string()), ("style", pa.string())]),
}
DIFFICULTY = pa.struct([(f"DeepSeek-R1-Distill-Qwen-{size}", pa.int64()) for size in ("1.5B", "32B", "7B")])
PUBLISHED = {
    "skywork-reward": (
        "data/train-00000-of-00001.parquet",
        {"chosen": MESSAGES, "rejected": MESSAGES, "source": pa.string()},
    ),
    "tulu3-preferences": (
        "data/train-00000-of-00001.parquet",
        {"prompt": pa.string(), "chosen": MESSAGES, "rejected": MESSAGES, "chosen_rating": pa.float64(),
         "rejected_rating": pa.float64(), "chosen_model": pa.string(), "rejected_model": pa.string(),
         "source": pa.string(), "id": pa.string()},
    ),
    "webinstruct-verified": (
        "data/train-00000-of-00001.parquet",
        dict.fromkeys(("id", "question", "answer", "answer_type", "category", "difficulty"), pa.string()),
    ),
    "skywork-or1": (
        "data/math-00000-of-00001.parquet",
        {**VERL, "extra_info": pa.struct([("index", pa.int64()), ("model_difficulty", DIFFICULTY)])},
    ),
    "big-math": (
        "data/train-00000-of-00001.parquet",
        {"problem": pa.string(), "answer": pa.string(), "source": pa.string(), "domain": pa.list_(pa.string()),
         "llama8b_solve_rate": pa.float64()},
    ),
    "dapo-math": ("data/dapo-math-17k.parquet", {**VERL, "extra_info": pa.struct([("index", pa.string())])}),
}  # fmt: skip
"""The file and the columns that the data sets' cards give."""
PUBLISHED["tulu3-prompts"] = PUBLISHED["tulu3-preferences"]


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"content": system, "role": "system"}]
    return first + [{"content": text, "role": ("user", "assistant")[at % 2]} for at, text in enumerate(contents)]


def publish(directory: Path, name: str, rows: list[dict]) -> Path:
    file, columns = PUBLISHED[name]
    path = directory / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), path)
    return directory / name


def prepare(source: Source, path: Path, split: str | None = None, **options):
    """(Records, tally, the rows that are listed as skipped)."""
    snapshot = open_snapshot(path, split, source.split)
    snapshot.check_columns(source.columns, source.describe())
    skipped: list[Skipped] = []
    preparation = Preparation(source, snapshot, skip=skipped.append, **options)
    records = list(preparation)
    return records, preparation.tally, skipped


def pair(query: str = "q", chosen: str = "good", rejected: str = "bad", source: str = "offsetbias") -> dict:
    return {"chosen": turns(query, chosen), "rejected": turns(query, rejected), "source": source}


def bare(record: Pair | Question) -> tuple:
    return tuple(value for name, value in dataclasses.asdict(record).items() if name != "id")


def test_skywork_reward(tmp_path: Path):
    rows = [
        pair("2 + 2?", "4", "5", "magpie_ultra"),
        {"chosen": turns("a", "b", "c", "d", system="s"), "rejected": turns("a", "x", "c", "y"), "source": None},
        {"chosen": [{"content": "only an answer", "role": "assistant"}], "rejected": turns("q", "r"), "source": "s"},
        {"chosen": None, "rejected": turns("q", "r"), "source": "s"},
    ]
    records, tally, skipped = prepare(get_source("skywork-reward"), publish(tmp_path, "skywork-reward", rows))
    assert [bare(record) for record in records] == [
        ("2 + 2?", "4", "5", 1, "skywork-reward/magpie_ultra"),
        ("a", "b d", "x y", 1, "skywork-reward"),
    ]
    assert (tally.read, tally.kept, dict(tally.skipped)) == (4, 2, {"no user turn": 1, "malformed": 1})
    file = "data/train-00000-of-00001.parquet"
    assert skipped == [
        Skipped(file, 3, "no user turn", "no user turn: chosen"),
        Skipped(file, 4, "malformed", "chosen must be a list of messages, not NoneType"),
    ]


def test_the_authors_split_of_skywork():
    """`Dataset.train_test_split(train_size=75000, test_size=2016, shuffle=True, seed=42)` of datasets 5.2.0, run on
    77,016 rows: the first rows of both parts, and the sum of the test part's."""
    parts = get_source("skywork-reward").parts
    assert parts is not None
    assert parts.seed == 42
    part = parts.assign(lambda: 77_016, lambda: [], 42)
    record = Question("", "")
    assert {part(row, record) for row in (35301, 22071, 56713, 36132, 13947, 149)} == {"test"}
    assert {part(row, record) for row in (43898, 42072, 46172, 64622, 46582, 28888)} == {"train"}
    test = [row for row in range(77_016) if part(row, record) == "test"]
    assert (len(test), sum(test)) == (2_016, 78_536_304)
    with pytest.raises(RrmError, match="75,000 rows; a train part of 75,000 leaves none"):
        parts.assign(lambda: 75_000, lambda: [], 42)


def test_a_part_is_of_rows_as_they_stand_in_the_file(tmp_path: Path):
    rows = [pair(f"q{at}") if at % 3 else pair("", "x") for at in range(30)]
    source = dataclasses.replace(get_source("skywork-reward"), parts=ShuffledRows(train=20, seed=1))
    path = publish(tmp_path, "skywork-reward", rows)
    assign = source.parts.assign(lambda: 30, lambda: [], 1)
    got = {name: prepare(source, path, part=(name, assign)) for name in ("train", "test")}
    queries = {name: {record.query for record in records} for name, (records, _, _) in got.items()}
    assert queries["train"] | queries["test"] == {f"q{at}" for at in range(30) if at % 3}
    assert not queries["train"] & queries["test"]
    assert all(assign(int(query[1:]), Question("", "")) == name for name in queries for query in queries[name])
    assert got["train"][1].skipped["of another part"] == len(queries["test"])


def tulu(prompt: str, chosen: str = "good", rejected: str = "bad") -> dict:
    return {
        "prompt": prompt, "chosen": turns(prompt, chosen), "rejected": turns(prompt, rejected), "chosen_rating": None,
        "rejected_rating": 1.0, "chosen_model": "m", "rejected_model": "n", "source": "ai2/if", "id": "one id for all",
    }  # fmt: skip


def test_tulu3_preferences_of_given_prompts(tmp_path: Path):
    rows = [tulu("first  prompt"), tulu("second"), tulu("second", "better"), tulu("third")]
    path = publish(tmp_path, "tulu3-preferences", rows)
    source = get_source("tulu3-preferences")
    records, tally, _ = prepare(source, path)
    assert bare(records[0]) == ("first  prompt", "good", "bad", 1, "tulu3-preferences/ai2/if")
    assert (tally.kept, len({record.id for record in records})) == (4, 4)
    prompts = frozenset({prompt_key(" first prompt\n"), prompt_key("second")})
    records, tally, skipped = prepare(source, path, prompts=prompts)
    assert [record.query for record in records] == ["first  prompt", "second", "second"]
    assert (tally.skipped, skipped) == ({"of another prompt": 1}, [])


def test_tulu3_prompts_are_distinct_and_fall_into_parts(tmp_path: Path):
    source = get_source("tulu3-prompts")
    assert (source.parts.sizes, source.parts.names) == ((80_000, 2_000), ("train", "validation", "dpo"))
    rows = [tulu(f"prompt {at % 50}", f"answer {at}") for at in range(100)]
    path = publish(tmp_path, "tulu3-prompts", rows)
    records, tally, _ = prepare(source, path)
    assert bare(records[0]) == ("prompt 0", None, "tulu3-prompts/ai2/if", "")
    assert (tally.kept, tally.skipped) == (50, {"repeated": 50})

    def split(records: list, seed: int) -> dict[str, set[str]]:
        parts = HashedRecords(sizes=(30, 5), names=("train", "validation", "dpo"))
        part = parts.assign(lambda: 0, lambda: records, seed)
        return {name: {r.id for r in records if part(0, r) == name} for name in parts.names}

    first = split(records, 0)
    assert [len(ids) for ids in first.values()] == [30, 5, 15]
    assert split(records[::-1], 0) == first
    assert split(records, 1) != first
    assert [len(ids) for ids in split(records[:33], 0).values()] == [30, 3, 0]


def test_webinstruct(tmp_path: Path):
    types = ["Float", "Multiple Choice", "Boolean", "Expression", "Something new", None]
    rows = [
        {"id": str(at), "question": f"question {at}", "answer": f" {at} ", "answer_type": kind,
         "category": "Physics", "difficulty": "University"}
        for at, kind in enumerate(types)
    ]  # fmt: skip
    rows.append({**rows[0], "question": "open", "answer": None})
    records, tally, _ = prepare(get_source("webinstruct-verified"), publish(tmp_path, "webinstruct-verified", rows))
    assert bare(records[0]) == ("question 0", "0", "webinstruct-verified/Physics", "math")
    assert [record.verifier for record in records] == ["math", "choice", "exact", "math", "", ""]
    assert tally.skipped == {"no answer": 1}


def verl(prompt: str, truth: str | None, source: str = "math_dapo", ability: str = "MATH", **extra) -> dict:
    model = {"ground_truth": truth, "style": "rule-lighteval/MATH_v2"}
    return {"data_source": source, "prompt": turns(prompt), "ability": ability, "reward_model": model, **extra}


def test_skywork_or1(tmp_path: Path):
    source = "train-math-numinamath1.5_olympiads"
    truths = ['["15625"]', '["\\\\frac{1}{2}"]', '["1", "2"]', "[]", "not JSON", None, "42", '[{"a": 1}]']
    info = {"index": 3, "model_difficulty": {f"DeepSeek-R1-Distill-Qwen-{size}": 8 for size in ("1.5B", "7B", "32B")}}
    rows = [verl(f"problem {at}", truth, source, "math", extra_info=info) for at, truth in enumerate(truths)]
    rows.append(verl("write a program", '["1"]', "train-code-taco-medium", "code", extra_info=info))
    path = publish(tmp_path, "skywork-or1", rows)
    records, tally, skipped = prepare(get_source("skywork-or1"), path)
    assert [bare(record) for record in records] == [
        ("problem 0", "15625", f"skywork-or1/{source}", "math"),
        ("problem 1", "\\frac{1}{2}", f"skywork-or1/{source}", "math"),
        ("problem 6", "42", f"skywork-or1/{source}", "math"),
    ]
    assert tally.skipped == {"several answers": 1, "no answer": 2, "malformed": 2, "code": 1}
    assert "must be a JSON list, not 'not JSON'" in skipped[2].why


def test_big_math(tmp_path: Path):
    row = {"problem": "1 + 1", "answer": "2", "source": "cn_k12", "domain": ["Mathematics -> Algebra"]}
    rows = [{**row, "llama8b_solve_rate": None}, {**row, "answer": "3", "llama8b_solve_rate": 0.5}, row]
    records, tally, skipped = prepare(get_source("big-math"), publish(tmp_path, "big-math", rows))
    assert [bare(record) for record in records] == [("1 + 1", "2", "big-math/cn_k12", "math")]
    assert tally.skipped == {"same id, other content": 1, "repeated": 1}
    assert [(row.row, row.reason) for row in skipped] == [(2, "same id, other content")]


def test_dapo_math(tmp_path: Path):
    before = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    )
    after = '\n\nRemember to put your answer on its own line after "Answer:".'
    problem = "Find $n$.\n\nSolve the following math problem step by step. Or not.\n\nHint: none."
    rows = [
        verl(before + (problem if at % 2 else "a plain one") + after, "34", extra_info={"index": f"uuid-{at % 2}"})
        for at in range(200)
    ]
    rows.append(verl("no instruction", "-7", extra_info={"index": "x"}))
    records, tally, _ = prepare(get_source("dapo-math"), publish(tmp_path, "dapo-math", rows))
    assert [bare(record) for record in records] == [
        ("a plain one", "34", "dapo-math/math_dapo", "math"),
        (problem, "34", "dapo-math/math_dapo", "math"),
        ("no instruction", "-7", "dapo-math/math_dapo", "math"),
    ]
    assert (tally.read, tally.skipped) == (201, {"repeated": 198})


def test_gsm8k_and_math_500_as_published(real_data: Path):
    records, tally, skipped = prepare(get_source("gsm8k"), real_data / "gsm8k", "test")
    assert (tally.kept, skipped) == (1_319, [])
    assert records[0].answer == "18"
    assert not any("," in record.answer or "#" in record.answer for record in records)
    records, tally, skipped = prepare(get_source("math-500"), real_data / "math500")
    assert (tally.kept, skipped) == (500, [])
    assert (records[0].answer, records[0].source) == (r"\left( 3, \frac{\pi}{2} \right)", "math-500/Precalculus")


def test_gsm8k_takes_what_follows_the_last_mark(tmp_path: Path):
    rows = [{"question": "a", "answer": "x #### 2\n#### 1,234"}, {"question": "b", "answer": "none"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, tally, _ = prepare(get_source("gsm8k"), tmp_path)
    assert ([record.answer for record in records], tally.skipped) == (["1234"], {"no answer": 1})


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
