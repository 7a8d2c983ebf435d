"""Benchmarks' loaders and scores: against published verdicts and scores, and against sums done by hand."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from rrm_jax.data.records import Pair
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import (
    BENCHMARKS,
    Ballot,
    Pick,
    Policy,
    Score,
    compare,
    load,
    read_verdict_file,
    score,
    scores_of_subsets,
)
from rrm_jax.evaluation.benchmarks.harness import table_of
from rrm_jax.judging.judge import content_digest


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def by_name(scores: tuple[Score, ...]) -> dict[str, Score]:
    return {part.name: part for top in scores for _, part in top.walk()}


def given(*verdicts: int | None) -> tuple[tuple[Ballot, ...], ...]:
    """One vote for each game."""
    return tuple((Ballot("12", verdict),) for verdict in verdicts)  # type: ignore[arg-type]


def both(first: int | None, second: int | None) -> tuple[tuple[Ballot, ...], ...]:
    return ((Ballot("12", first, twin=True), Ballot("21", second, twin=True)),)  # type: ignore[arg-type]


# Published verdicts and scores


def test_rewardbench_sections_are_the_published_ones(real_data):
    golden = json.loads((real_data / "rewardbench_golden" / "rewardbench_v1_golden.json").read_text(encoding="utf-8"))
    benchmark = BENCHMARKS["rewardbench"]
    found = scores_of_subsets(benchmark, golden)
    assert found is not None
    assert set(found) == set(golden["models"])
    for model, scores in found.items():
        facts, named = golden["models"][model], by_name(scores)
        for section, value in facts["sections"].items():
            assert named[section].value == pytest.approx(value, abs=1e-12)
        if "published" in facts:
            assert named["Overall"].value == pytest.approx(facts["published"]["avg_Result_each_section"], abs=1e-12)
            assert named["All rows alike"].value == pytest.approx(facts["published"]["absoluate_Result"], abs=1e-12)
        else:
            assert named["Overall"].value == pytest.approx(facts["overall_mean"], abs=1e-12)
    rrm = by_name(found["RRM-7b"])
    shown = [round(100 * rrm[name].value, 1) for name in ("Chat", "Chat Hard", "Safety", "Reasoning", "Overall")]
    assert shown == [87.7, 70.4, 80.7, 90.0, 82.2]
    assert {name: rows for name, rows in benchmark.rows.items() if name != "math-prm"} == {
        name: count for name, count in golden["example_counts"].items() if name != "math-prm"
    }


@pytest.mark.parametrize(
    ("file", "judge", "golden"), [("gpt-3.5-turbo", "gpt", "gpt-3.5-turbo"), ("pandalm-7b", "pandalm", "pandalm-7b")]
)
def test_pandalm_judges_score_as_published(real_data, file, judge, golden):
    folder = real_data / "pandalm"
    expected = json.loads((folder / "golden_scores.json").read_text(encoding="utf-8"))["results"][golden]
    loaded = load("pandalm", folder / "testset-v1.json")
    assert not loaded.missing
    assert loaded.skipped == 0
    verdicts = read_verdict_file(loaded.benchmark, loaded.items, folder / f"{file}-testset-v1.json")
    named = by_name(score(loaded.benchmark, loaded.items, verdicts[judge], samples=200))
    for name, key in (
        ("Accuracy over 1, 2 and tie", "accuracy"),
        ("macro F1 over 1, 2 and tie", "f1_macro"),
        ("macro precision over 1, 2 and tie", "precision_macro"),
        ("macro recall over 1, 2 and tie", "recall_macro"),
        ("weighted F1 over 1, 2 and tie", "f1_weighted"),
        ("Accuracy without the rows labelled ties", "accuracy_no_human_ties"),
    ):
        one = named[name]
        assert one.value == pytest.approx(expected[key], abs=1e-12)
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high
        assert one.items == (894 if "without" in name else 999)


def test_all_published_statistics_of_llmbar_evaluators(real_data):
    folder = real_data / "llmbar"
    loaded = load("llmbar", folder)
    assert (len(loaded.items), loaded.missing) == (419 + 66 + 200 + 200, {})
    verdicts = read_verdict_file(loaded.benchmark, loaded.items, folder / "judge_winners_slim.json")
    statistics = json.loads((folder / "published_evaluator_statistics.json").read_text(encoding="utf-8"))
    keys = ("correct_average", "correct_False", "correct_True", "correct_both", "equal")
    checked = 0
    for evaluator, said in verdicts.items():
        for group, one in by_name(score(loaded.benchmark, loaded.items, said, samples=0)).items():
            if evaluator in statistics.get(group, {}):
                published = statistics[group][evaluator]
                theirs = [float(published[key].split("= ")[-1].rstrip("%")) / 100 for key in keys]
                assert [one.value, *(part.value for part in one.parts)] == pytest.approx(theirs, abs=1e-12)
                checked += 1
    assert checked == 349


def test_best_of_8_by_what_needs_no_judge(real_data):
    loaded = load("best-of-n", real_data / "qwen_math_bon8" / "math_cot_100.jsonl")
    values = {name: one.value for name, one in by_name(score(loaded.benchmark, loaded.items, {}, samples=0)).items()}
    assert values == pytest.approx(
        {
            "Mean candidate": 0.91,
            "Majority": 0.93,
            "Reward model's best": 0.94,
            "Majority weighted by reward": 0.94,
            "Oracle": 0.96,
        }
    )
    assert len(load("best-of-n", real_data / "gsm8k" / "example_model_solutions.jsonl").items) == 1319


def ppe_row(at: int, right: set[int], prompt: str = "Question: {} ?") -> dict:
    row: dict = {"question_id": at, "prompt": prompt.format(at), "scores": [c in right for c in range(32)]}
    wrong = [c for c in range(32) if c not in right]
    row["sampled_conflict_pairs"] = [[sorted(right)[0], wrong[0]], [wrong[1], sorted(right)[-1]]]
    return row | {f"response_{c + 1}": f"response {c} to {at}" for c in range(32)}


def test_the_released_knockout_log_is_scored(real_data, tmp_path):
    """Against labels of our own, as the released log has none: the last round's winner is looked up by hand."""
    path = real_data / "rrm_official" / "mmlu_pro_knockout32_rrm_7b.json"
    log = json.loads(path.read_text(encoding="utf-8"))
    right = [{at % 32, (7 * at + 3) % 32, 31 - at % 5} for at in range(512)]
    data = write_rows(tmp_path / "train.jsonl", [ppe_row(at, right[at]) for at in range(512)])
    loaded = load("ppe-mmlu-pro-best-of-n", data)
    (picks,) = read_verdict_file(loaded.benchmark, loaded.items, path).values()
    named = by_name(score(loaded.benchmark, loaded.items, picks, samples=0))
    winners = log["round_5"]["0"]["winner"]
    assert named["Picked"].value == sum(winners[at] in right[at] for at in range(512)) / 512
    assert named["Mean candidate"].value == pytest.approx(sum(map(len, right)) / 512 / 32)
    counts = named["Picked"].counts
    assert (counts["comparisons"], counts["votes"], counts["invalid"]) == (31 * 512, 31 * 512, 2)
    log["round_3"]["1"]["winner"][5] = 99
    (tmp_path / "log.json").write_text(json.dumps(log), encoding="utf-8")
    with pytest.raises(RrmError, match=r"prompt 5, round 3, match 1: the winner is not who the verdict names"):
        read_verdict_file(loaded.benchmark, loaded.items, tmp_path / "log.json")


def test_the_released_picks_of_the_math_study_are_read(real_data, tmp_path):
    path = real_data / "rrm_official" / "MATH_Qwen_7b_RRM_judgement__7b_elo_predictions.json"
    picks = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        {"id": id, "query": "q", "responses": list("abcdefgh"), "correct": [c == 3 for c in range(8)]} for id in picks
    ]
    loaded = load("best-of-n", write_rows(tmp_path / "candidates.jsonl", rows))
    (said,) = read_verdict_file(loaded.benchmark, loaded.items, path).values()
    named = by_name(score(loaded.benchmark, loaded.items, said, samples=0))
    assert named["Picked"].value == sum(pick == 3 for pick in picks.values()) / 5000


# Files in the published layouts, scored by hand


def judgebench_rows() -> list[dict]:
    sources = ["mmlu-pro-law", "mmlu-pro-math", "livebench-reasoning", "livebench-math", "livecodebench"]
    return [
        {
            "pair_id": f"p{at}", "original_id": at, "source": source, "question": "?", "response_model": "gpt-4o",
            "response_A": "a", "response_B": "b", "label": "A>B" if at % 2 else "B>A",
        }
        for at, source in enumerate(sources)
    ]  # fmt: skip


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


def rm_bench_rows() -> list[dict]:
    domains = ["chat", "math", "code", "safety-refuse", "safety-response", "safety-response"]
    return [
        {
            "id": at, "prompt": "?", "chosen": ["c1", "c2", "c3"], "rejected": ["r1", "r2", "r3"], "domain": domain,
        }
        for at, domain in enumerate(domains)
    ]  # fmt: skip


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


def rewardbench2_rows() -> list[dict]:
    rows = [
        {"id": str(at), "prompt": "?", "chosen": ["c"], "rejected": ["x", "y", "z"], "subset": subset}
        for at, subset in enumerate(["Factuality", "Factuality", "Precise IF", "Math", "Safety", "Focus"])
    ]
    return [*rows, {"id": "tied:6", "prompt": "?", "chosen": ["c", "d"], "rejected": ["x", "y"], "subset": "Ties"}]


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


# Rules


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"id": str(at), "query": f"q{at}", "response_1": "x", "response_2": "y", "label": 1 + at % 2}
        for at in range(40)
    ]
    return load("pairs", write_rows(tmp_path / "pairs.jsonl", rows))


def accuracy(loaded, said, samples=0, **policy) -> Score:
    return score(loaded.benchmark, loaded.items, said, Policy(**policy), samples=samples)[0]


def test_invalid_and_tied_games_count_as_told(pairs):
    said = {str(at): given(1 + at % 2) for at in range(20)}  # right
    said |= {str(at): given(None) for at in range(20, 30)} | {str(at): both(1, 2) for at in range(30, 40)}
    assert accuracy(pairs, said).value == (20 + 5 + 5) / 40
    assert accuracy(pairs, said, invalid="0").value == (20 + 5) / 40
    assert accuracy(pairs, said, invalid="0", ties="0").value == 20 / 40
    excluded = accuracy(pairs, said, invalid="exclude")
    assert (excluded.value, excluded.items) == (25 / 30, 40)
    coins = [accuracy(pairs, said, invalid="random", ties="0", seed=seed).value * 40 - 20 for seed in range(40)]
    assert coins == [accuracy(pairs, said, invalid="random", ties="0", seed=s).value * 40 - 20 for s in range(40)]
    assert all(coin == int(coin) and 0 <= coin <= 10 for coin in coins)
    assert 4 < sum(coins) / 40 < 6  # of 400 coins, 5 standard deviations from 5
    counts = accuracy(pairs, said).counts
    assert (counts["invalid"], counts["no_winner"], counts["votes"]) == (10, 20, 50)


def test_orders_count_as_told(pairs):
    said = {str(at): both(1, 1 if at < 10 else 2) for at in range(40)}  # the first shown, from the tenth on
    assert accuracy(pairs, said, order="both").value == (5 + 30 / 2) / 40
    assert accuracy(pairs, said, order="given").value == 20 / 40
    drawn = accuracy(pairs, said, order="random")
    assert drawn.counts["votes"] == 40
    assert accuracy(pairs, said, order="both").counts["consistent"] == 10
    with pytest.raises(RrmError, match="not judged in both orders"):
        accuracy(pairs, {"0": given(1)}, order="both")


def test_what_was_not_judged_is_not_scored(pairs):
    assert accuracy(pairs, {"0": given(1), "1": given(1)}).items == 2
    with pytest.raises(RrmError, match="none of the 40 items"):
        accuracy(pairs, {})


def test_intervals_are_those_of_a_binomial(pairs):
    said = {str(at): given(1 + at % 2 if at < 30 else 2 - at % 2) for at in range(40)}
    one = accuracy(pairs, said, samples=4000)
    deviation = math.sqrt(0.75 * 0.25 / 40)
    assert one.value == 0.75
    assert one.low == pytest.approx(0.75 - 1.96 * deviation, abs=0.03)
    assert one.high == pytest.approx(0.75 + 1.96 * deviation, abs=0.03)
    assert one == accuracy(pairs, dict(reversed(said.items())), samples=4000)


def test_two_runs_are_compared_over_the_same_items(pairs):
    right = {str(at): given(1 + at % 2) for at in range(40)}
    wrong = {str(at): given(2 - at % 2) for at in range(40)}
    first = right
    second = {id: (wrong if int(id) < 12 else right)[id] for id in map(str, range(36))}
    first = first | {"20": wrong["20"], "21": wrong["21"]}
    (found,) = compare(pairs.benchmark, pairs.items, first, second, samples=2000)
    assert (found.items, found.only_first, found.only_second) == (36, 12, 2)
    assert found.mcnemar == pytest.approx(binomtest(2, 14).pvalue)
    assert found.first - found.second == pytest.approx(10 / 36)
    assert found.low is not None
    assert found.high is not None
    assert found.p_value is not None
    assert found.low < 10 / 36 < found.high
    assert found.p_value < 0.02
    (same,) = compare(pairs.benchmark, pairs.items, first, first)
    assert (same.low, same.high, same.p_value, same.mcnemar) == (0, 0, 1, 1)
    with pytest.raises(RrmError, match="no item in common"):
        compare(pairs.benchmark, pairs.items, {"0": given(1)}, {"1": given(1)})


def test_macro_f1_intervals_use_whole_items():
    """The bootstrap of F1 equals one that draws items and counts again, by the same draws."""
    benchmark = BENCHMARKS["pandalm"]
    rows = [
        benchmark.parse(
            {"idx": at, "instruction": "i", "input": "", "response1": "x", "response2": "y"}
            | {f"annotator{n}": label for n in (1, 2, 3)},
            at,
        )
        for at, label in enumerate([1, 2, 0] * 10)
    ]
    said = {item.id: given((1, 2, 2, 0)[at % 4]) for at, item in enumerate(rows)}
    table = table_of(benchmark, rows, said)
    named = {node.name: node for node in benchmark.tree(table)}
    node = named["macro F1 over 1, 2 and tie"]
    chosen = {group: np.array([0, 0, *range(len(ids))]) for group, ids in table.ids.items()}
    sums = {group: table.values[group][places].sum(axis=0) for group, places in chosen.items()}
    labels, answers = [], []
    by_id = {item.id: item for item in rows}
    for group, places in chosen.items():
        for place in places:
            item = by_id[table.ids[group][place]]
            labels.append(item.games[0].label)
            answers.append(said[item.id][0][0].verdict)
    f1s = []
    for k in (0, 1, 2):
        hits = sum(a == b == k for a, b in zip(labels, answers, strict=True))
        f1s.append(2 * hits / (labels.count(k) + answers.count(k)))
    assert float(node.of(sums)) == pytest.approx(sum(f1s) / 3)


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


def judged_row(pair: Pair, **changes) -> dict:
    vote = {"order": "12", "verdict": 1, "text": "", "tokens": 3, "finish_reason": "stop", "truncated_input": False}
    return {"id": pair.id, "winner": 1, "votes": [vote], "content": content_digest(pair)} | changes


def test_verdict_files_of_something_else(pairs, tmp_path):
    item = pairs.items[0]
    pair = Pair(item.id, item.query, *item.responses)
    read = lambda row: read_verdict_file(pairs.benchmark, pairs.items, write_rows(tmp_path / "v.jsonl", [row]))  # noqa: E731
    assert read(judged_row(pair)) == {"judge": {"0": ((Ballot("12", 1, 3),),)}}
    with pytest.raises(RrmError, match="row 1 is of judgebench, not of pairs"):
        read(judged_row(pair, benchmark="judgebench"))
    with pytest.raises(RrmError, match="was judged on other texts"):
        read(judged_row(dataclasses.replace(pair, query="another")))
    with pytest.raises(RrmError, match="no verdict of an item of this data"):
        read(judged_row(dataclasses.replace(pair, id="elsewhere")))
    with pytest.raises(RrmError, match="no verdict file of pairs"):
        read({"idx": 0, "gpt_result": "1"})
    (tmp_path / "v.json").write_text("{", encoding="utf-8")
    with pytest.raises(RrmError, match="neither JSON nor JSON lines"):
        read_verdict_file(pairs.benchmark, pairs.items, tmp_path / "v.json")


def test_every_benchmark_says_where_it_is_from():
    for one in BENCHMARKS.values():
        assert one.name == one.name.lower()
        assert one.columns
        if one.hub:
            assert one.citation
            assert one.revision
            assert one.licence
    names = list(itertools.chain.from_iterable(one.scores for b in BENCHMARKS.values() for one in b.published))
    assert names
