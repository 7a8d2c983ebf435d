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


def benchmark_study(tmp_path, name: str, rows: list[dict], **how: object) -> str:
    path = tmp_path / "one.yaml"
    data = write_rows(tmp_path / "one.jsonl", rows)
    settings = "".join(f", {key}: {value}" for key, value in how.items())
    path.write_text(
        f"output: {tmp_path / name}\nresamples: 100\njudges: {{right: {{model: right}}}}\n"
        f"benchmarks: {{{name}: {{data: {data}{settings}}}}}\n"
    )
    return str(path)


def test_all_that_was_asked_is_counted_and_what_is_missing_told(letters, tmp_path):
    """RewardBench 2 with one prompt of three games and one of Ties, which is no part of the first score."""
    rows = [
        {"id": "1", "prompt": "q", "chosen": ["good"], "rejected": ["a", "b", "c"], "subset": "Math"},
        {"id": "2", "prompt": "another", "chosen": ["good", "good one"], "rejected": ["a", "b"], "subset": "Ties"},
    ]
    path = benchmark_study(tmp_path, "rewardbench2", rows, votes=2)
    judges = FakeJudges(letters, {"right": prefers("good")})
    text, found, skipped = run_study("benchmarks", study_config("benchmarks", path), judges.open)
    (of,) = found.judged
    assert (of.items, of.votes, of.comparisons, judges.asked, skipped) == (2, 14, 7, 14, 0)
    assert "Not the whole benchmark: rewardbench2: Math, 1 of the 183 published rows." in text
    limited = study_config("benchmarks", path, ["limit=1", f"output={tmp_path / 'l'}"])
    text, *_ = run_study("benchmarks", limited, judges.open)
    assert "Not the whole benchmark: rewardbench2: only its first 1 items (limit)." in text


def test_a_server_that_stays_away_ends_it_and_single_requests_do_not(letters, tmp_path):
    pairs = [
        {"id": str(at), "query": f"q{at}.", "response_1": "good", "response_2": "b", "label": 1} for at in range(12)
    ]
    path = benchmark_study(tmp_path, "pairs", pairs)

    def refuses(*bad: int):
        def answer(prompt, request):
            if any(f"q{at}." in prompt for at in bad):
                raise RrmError("HTTP 400")
            return prefers("good")(prompt, request)

        return FakeJudges(letters, {"right": answer}).open

    with pytest.raises(RrmError, match=r"right, pairs: .* item\(s\) were not judged; the first: HTTP 400"):
        run_study("benchmarks", study_config("benchmarks", path), refuses(*range(6, 12)))
    told: list[str] = []
    _, found, skipped = run_study("benchmarks", study_config("benchmarks", path), refuses(7), told.append)
    assert (found.judged[0].not_judged, skipped) == (1, 1)
    assert any("1 item(s) were not judged" in line for line in told)


def test_benchmarks_without_responses_and_votes_in_a_strategy_are_refused(letters, tmp_path):
    rows = [{"uid": "1", "category": "c", "prompt": "p"}]
    judges = FakeJudges(letters, {"right": coin})
    for name in ("arena-hard", "answer-math-500"):
        with pytest.raises(RrmError, match="has no responses of its own to be judged"):
            run_study("benchmarks", study_config("benchmarks", benchmark_study(tmp_path, name, rows)), judges.open)
    path = benchmark_study(tmp_path, "best-of-n", rows, strategy="knockout:votes=3")
    with pytest.raises(RrmError, match="the votes of a comparison are"):
        run_study("benchmarks", study_config("benchmarks", path), judges.open)
    assert judges.asked == 0
    assert not (tmp_path / "best-of-n").exists(), "or the same output would be of a run with other settings"
