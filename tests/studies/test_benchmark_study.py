import json
from pathlib import Path

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.studies.run import run_study, study_config
from tests.judging.fake_generator import coin, prefers
from tests.studies.conftest import FakeJudges, write_rows


@pytest.fixture
def config(tmp_path: Path) -> str:
    pairs = [
        {"id": str(at), "query": f"q{at}", "response_1": "good", "response_2": "bad", "label": 1} for at in range(8)
    ]
    many = [
        {"id": str(at), "query": f"c{at}", "responses": ["bad x", "good", "bad y"], "correct": [False, True, False]}
        for at in range(4)
    ]
    path = tmp_path / "c.yaml"
    path.write_text(
        f"output: {tmp_path / 'out'}\nresamples: 100\nbaseline: coin\n"
        "judges: {right: {model: right}, coin: {model: coin}}\nbenchmarks:\n"
        f"  pairs: {{data: {write_rows(tmp_path / 'pairs.jsonl', pairs)}, order: both}}\n"
        f"  best-of-n: {{data: {write_rows(tmp_path / 'many.jsonl', many)}, votes: 3, strategy: round-robin}}\n"
        f"  pandalm: {{data: {tmp_path / 'gone.json'}}}\n"
    )
    return str(path)


def test_every_judge_on_every_benchmark_that_is_there(letters, tmp_path, config):
    judges, told = FakeJudges(letters, {"right": prefers("good"), "coin": coin}), []
    text, _, skipped = run_study("benchmarks", study_config("benchmarks", config), judges.open, told.append)
    assert skipped == 0
    assert judges.asked == 2 * (8 * 2 + 4 * 3 * 3)
    assert any("pandalm is left out: there is no" in line for line in told)
    assert "pandalm was not judged" in text
    assert "| Accuracy | 100.0 % (67.6 … 100.0) |" in text  # Wilson's, of 8 of 8: 1 / (1 + 1.96² / 8) and up
    found = json.loads((tmp_path / "out" / "data.json").read_text())["found"]
    accuracy = {one["judge"]: one["value"]["estimate"] for one in found["results"] if one["score"] == "Accuracy"}
    assert accuracy["right"] == 1
    by = {(one["benchmark"], one["judge"]): one for one in found["judged"]}
    assert (by["best-of-n", "right"]["comparisons"], by["best-of-n", "right"]["votes"]) == (12, 36)
    assert by["pairs", "coin"]["against"] is None
    against = by["pairs", "right"]["against"]
    assert against["difference"]["estimate"] == pytest.approx(1 - accuracy["coin"])
    assert against["difference"]["n"] == 8
    again, *_ = run_study("benchmarks", study_config("benchmarks", config), judges.open)
    assert judges.asked == 2 * (8 * 2 + 4 * 3 * 3)
    assert again == text


def test_what_cannot_be(letters, config):
    with pytest.raises(RrmError, match="baseline 'x' is not one of the judges"):
        study_config("benchmarks", config, ["baseline=x"])
    gone = [f"benchmarks.{name}.data=gone" for name in ("pairs", "best-of-n")]
    with pytest.raises(RrmError, match="no data of any of the benchmarks pairs, best-of-n, pandalm"):
        run_study("benchmarks", study_config("benchmarks", config, gone), FakeJudges(letters, {}).open)
