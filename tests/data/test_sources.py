"""Every adapter on small files of the published shape."""

import dataclasses
import json
from pathlib import Path

import pytest

from rrm_jax.data.records import Question
from rrm_jax.data.sources import get_source
from rrm_jax.data.sources.base import prompt_key
from rrm_jax.data.sources.parts import HashedRecords, ShuffledRows
from rrm_jax.data.sources.prepare import Skipped
from rrm_jax.errors import RrmError
from tests.data.published import bare, pair, prepare, publish, tulu, turns


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
