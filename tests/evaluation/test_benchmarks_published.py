"""Benchmarks' scores against published verdicts and scores."""

import itertools
import json

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import BENCHMARKS, load, read_verdict_file, score, scores_of_subsets
from tests.evaluation.benchmark_rows import by_name, ppe_row, write_rows


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
