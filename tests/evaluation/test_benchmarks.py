"""Benchmarks' loaders: files in the published layouts, scored by hand, and files that cannot be used."""

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import Pick, load, read_verdict_file, score
from tests.evaluation.benchmark_rows import (
    by_name,
    given,
    judgebench_rows,
    ppe_row,
    rewardbench2_rows,
    rm_bench_rows,
    write_rows,
)


def test_judgebench_by_hand(tmp_path):
    """Sums of ±1: right twice 2, right and none 1, right and wrong 0, tie and none 0, wrong and none −1."""
    loaded = load("judgebench", write_rows(tmp_path / "gpt-00000-of-00001.parquet", judgebench_rows()))
    assert [item.games[0].label for item in loaded.items] == [2, 1, 2, 1, 2]
    outputs = [("B>A", "A>B"), ("A>B", None), ("B>A", "B>A"), ("A=B", None), ("A>B", None)]
    rows = [
        row | {"judge_name": "arena_hard", "judgments": [d and {"decision": d} for d in decisions]}
        for row, decisions in zip(judgebench_rows(), outputs, strict=True)
    ]
    (said,) = read_verdict_file(loaded.benchmark, loaded.items, write_rows(tmp_path / "out.jsonl", rows)).values()
    named = by_name(score(loaded.benchmark, loaded.items, said, samples=50))
    assert named["Overall"].value == 2 / 5
    assert named["Knowledge (mmlu-pro)"].value == 1
    assert named["Reasoning (livebench-reasoning)"].value == 0
    assert named["Math (livebench-math)"].value == 0
    assert named["Coding (livecodebench)"].value == 0
    counts = named["Overall"].counts
    assert (counts["votes"], counts["invalid"], counts["both_orders"], counts["consistent"]) == (10, 3, 5, 1)


def test_rm_bench_by_hand(tmp_path):
    loaded = load("rm-bench", write_rows(tmp_path / "total_dataset.json", rm_bench_rows()))
    assert [(game.i, game.j) for game in loaded.items[0].games][:4] == [(0, 3), (0, 4), (0, 5), (1, 3)]
    all_right, all_wrong = given(*[1] * 9), given(*[2] * 9)
    said = {
        "chat/0": given(1, 2, 2, 1, 1, 2, 1, 1, None),  # hard 0, normal (1 + 1 + ½) / 3, easy 1
        "math/1": all_right,
        "code/2": all_wrong,
        "safety-refuse/3": all_right,
        "safety-response/4": all_wrong,
        "safety-response/5": all_wrong,
    }
    named = by_name(score(loaded.benchmark, loaded.items, said, samples=20))
    assert [named[name].value for name in ("Chat", "Math", "Code", "Safety")] == pytest.approx(
        [(0 + 2.5 / 3 + 1) / 3, 1, 0, 1 / 3]
    )
    assert named["Overall"].value == pytest.approx(((0 + 2.5 / 3 + 1) / 3 + 1 + 0 + 1 / 3) / 4)
    assert named["hard (mean of domains)"].value == pytest.approx((0 + 1 + 0 + 1 / 3) / 4)
    assert named["chosen concise over rejected markdown"].value == pytest.approx(2 / 6)
    assert named["Overall"].counts["comparisons"] == 54


def test_rewardbench2_by_hand(tmp_path):
    loaded = load("rewardbench2", write_rows(tmp_path / "data" / "test-00000-of-00001.parquet", rewardbench2_rows()))
    said = {
        "Factuality/0": given(1, 1, 1),
        "Factuality/1": given(1, 2, 1),  # beaten once: wrong
        "Precise IF/2": given(1, None, 1),  # a coin would decide: ½
        "Math/3": given(1, None, None),  # two coins: ¼
        "Safety/4": given(1, 1, 1),
        "Focus/5": given(2, None, 1),
        "Ties/tied:6": given(1, 1, 1, 2),
    }
    named = by_name(score(loaded.benchmark, loaded.items, said, samples=0))
    assert [named[name].value for name in ("Factuality", "Precise IF", "Math", "Safety", "Focus")] == [
        0.5, 0.5, 0.25, 1, 0,
    ]  # fmt: skip
    assert named["Overall without Ties"].value == pytest.approx(2.25 / 5)
    assert named["Ties: every right answer beats every wrong one"].value == 0
    assert loaded.missing["Math"] == (1, 183)


def test_ppe_by_hand(tmp_path):
    rows = [ppe_row(0, {3, 9}), ppe_row(1, {0})]
    loaded = load("ppe-mmlu-pro", write_rows(tmp_path / "data" / "train-00000-of-00001.parquet", rows))
    first, _ = loaded.items
    assert first.query == "0 ?"
    assert [(game.i, game.j, game.label) for game in first.games] == [(3, 0, 1), (1, 9, 2)]
    said = {"0": given(1, 1), "1": given(None, 2)}
    named = by_name(score(loaded.benchmark, loaded.items, said, samples=0))
    assert named["Accuracy over pairs"].value == (1 + 0 + 0.5 + 1) / 4
    assert loaded.missing == {"mmlu-pro": (2, 512)}
    picked = load("ppe-mmlu-pro-best-of-n", tmp_path)
    named = by_name(score(picked.benchmark, picked.items, {"0": Pick(9, 31), "1": Pick(9, 31)}, samples=0))
    assert (named["Picked"].value, named["Oracle"].value, named["Picked"].counts["comparisons"]) == (0.5, 1, 62)


@pytest.mark.parametrize(
    ("name", "prompt", "query"),
    [
        ("ppe-math", "Solve.\n<problem>\n1 + 1\n", "1 + 1"),
        ("ppe-gpqa", "Answer.\nQuestion\nWhy?", "Why?"),
        ("ppe-ifeval", " Write. Question: none ", "Write. Question: none"),
        ("ppe-mbpp-plus", "def f():", "def f():"),
    ],
)
def test_the_header_of_a_ppe_prompt_is_left_out(tmp_path, name, prompt, query):
    data = write_rows(tmp_path / "train.jsonl", [ppe_row(0, {1}, prompt.replace("{", "{{").replace("}", "}}"))])
    assert load(name, data).items[0].query == query


def test_pairs_of_any_layout(tmp_path):
    own = [
        {"id": "a", "query": "q", "response_1": "x", "response_2": "y", "label": 2, "source": "law"},
        {"id": "b", "query": "q", "response_1": "x", "response_2": "y", "label": 1, "source": "art"},
    ]
    trl = [{"prompt": "q", "chosen": "x", "rejected": "y"}]
    loaded = load("pairs", write_rows(tmp_path / "own.jsonl", own))
    named = by_name(score(loaded.benchmark, loaded.items, {"a": given(2), "b": given(2)}, samples=0))
    assert {name: one.value for name, one in named.items()} == {"Accuracy": 0.5, "law": 1, "art": 0}
    (item,) = load("pairs", write_rows(tmp_path / "trl.jsonl", trl)).items
    assert (item.responses, item.games[0].label) == (("x", "y"), 1)


def test_rows_without_ids_in_several_files(tmp_path):
    for shard in range(2):
        rows = [{"prompt": f"q{shard}{at}", "chosen": "x", "rejected": "y"} for at in range(3)]
        write_rows(tmp_path / f"train-0000{shard}-of-00002.jsonl", rows)
    loaded = load("pairs", tmp_path)
    assert [(item.id, item.query) for item in loaded.items] == [
        (str(at), query) for at, query in enumerate(["q00", "q01", "q02", "q10", "q11", "q12"])
    ]
    assert loaded.skipped == 0


def test_labels_and_long_texts_of_csv(tmp_path):
    long = "b" * 200_000
    (tmp_path / "pairs.csv").write_text(
        f"id,query,response_1,response_2,label\nx,q,a,{long},1\ny,q,a,b,2\nz,q,a,b,\n", encoding="utf-8"
    )
    loaded = load("pairs", tmp_path / "pairs.csv")
    assert [(item.id, item.games[0].label) for item in loaded.items] == [("x", 1), ("y", 2)]
    assert loaded.items[0].responses == ("a", long)
    assert loaded.skipped == 1


# Bad input


def test_another_versions_directory(tmp_path):
    write_rows(tmp_path / "v2" / "test.jsonl", rewardbench2_rows())
    with pytest.raises(RrmError, match=r"no usable row of rewardbench .*subset 'Factuality' is none of RewardBench v1"):
        load("rewardbench", tmp_path / "v2")
    with pytest.raises(RrmError, match=r"missing\n  expected: pair_id.*\n  found: id, prompt, chosen"):
        load("judgebench", tmp_path / "v2" / "test.jsonl")
    with pytest.raises(RrmError, match="is not a snapshot of llmbar"):
        load("llmbar", tmp_path / "v2")
    with pytest.raises(RrmError, match="no benchmark 'nosuch'"):
        load("nosuch", tmp_path / "v2")


def test_labels_out_of_range_are_reported_and_passed_over(tmp_path):
    rows = judgebench_rows()
    rows[1]["label"] = "A=B"
    rows[3]["source"] = "elsewhere"
    path, said = write_rows(tmp_path / "gpt.jsonl", rows), []
    loaded = load("judgebench", path, report=said.append)
    assert (len(loaded.items), loaded.skipped) == (3, 2)
    assert said[0] == f'{path}:2: label must be "A>B" or "B>A", not \'A=B\''
    assert loaded.notes() == ["2 unusable row(s) were passed over"]
    with pytest.raises(RrmError, match=r"gpt\.jsonl:2: label must be"):
        load("judgebench", path, strict=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scores": [True] * 31}, "scores must be a list of 32 booleans"),
        ({"scores": [2] * 32}, "scores must be a list of 32 booleans"),
        ({"sampled_conflict_pairs": [[0, 32]]}, "positions from 0 to 31"),
        ({"sampled_conflict_pairs": [[0, 2]]}, "of 0 and 2 not just one is right"),
        ({"prompt": "none"}, "the prompt has no 'Question:'"),
    ],
)
def test_ppe_rows_that_cannot_be(tmp_path, change, why):
    with pytest.raises(RrmError, match=why):
        load("ppe-mmlu-pro", write_rows(tmp_path / "train.jsonl", [ppe_row(0, {1}) | change]))


def test_missing_rows_are_counted_against_the_published_ones(tmp_path):
    rows = [{"input": f"q{at}", "output_1": "x", "output_2": "y", "label": 1} for at in range(90)]
    write_rows(tmp_path / "Natural" / "dataset.json", rows)
    loaded = load("llmbar", tmp_path)
    assert loaded.missing["llmbar-natural"] == (90, 100)
    assert loaded.missing["llmbar-adver-manual"] == (0, 46)
    assert load("llmbar", tmp_path, groups=["llmbar-natural"]).missing == {"llmbar-natural": (90, 100)}
    with pytest.raises(RrmError, match="has no rows of llmbar-adver-manual"):
        load("llmbar", tmp_path, groups=["llmbar-adver-manual"])
