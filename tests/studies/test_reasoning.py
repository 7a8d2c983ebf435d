import json

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.provenance import fingerprint
from rrm_jax.studies.reasoning import compute
from rrm_jax.studies.run import run_study, study_config
from tests.judging.fake_generator import Killed, coin, prefers
from tests.studies.conftest import FakeJudges, judgment, write_rows


def test_scores_by_hand():
    thinking = [judgment([1, 1]), judgment([2, 2], label=2), judgment([1, 2]), judgment([1, None]), judgment([2, 1])]
    direct = [judgment([1, 2]), judgment([1, 1], label=2), judgment([2, 2]), judgment([1, 1]), judgment([2, 1])]
    found = compute({"thinking": thinking, "direct": direct}, "direct")
    one, two = found.scores
    assert one.accuracy.estimate == (1 + 1 + 0.5 + 0.75 + 0.5) / 5
    assert one.given.estimate == (1 + 1 + 1 + 1 + 0) / 5
    assert one.turned.estimate == (1 + 1 + 0 + 0.5 + 1) / 5
    assert one.both_right.estimate == 2 / 5
    assert one.consistent.estimate == 2 / 5  # an invalid verdict agrees with none
    assert (one.counts.votes, one.counts.invalid, one.counts.tokens_a_vote) == (10, 1, 10)
    assert two.accuracy.estimate == (0.5 + 0 + 0 + 1 + 0.5) / 5
    test = found.tests["thinking"]
    assert (test.a_better, test.b_better) == (3, 1)  # the fourth pair is the baseline's
    assert test.p == 2 * (1 + 4) / 2**4
    assert test.difference.estimate == pytest.approx((3.75 - 2) / 5)


def test_votes_an_order_are_averaged():
    found = compute({"a": [judgment([1, 1, 2, 1])], "b": [judgment([1, 1, 1, 1])]}, "b")
    assert found.scores[0].accuracy.estimate == 0.75
    assert found.scores[0].given.estimate == 0.5
    assert found.scores[0].both_right.estimate == 0.5


@pytest.fixture
def study(letters, tmp_path):
    """(configuration, judges): one judge is always right, the other tosses coins."""
    rows = [
        {"id": str(at), "query": f"q{at}", "response_1": "good" if at % 2 else "bad",
         "response_2": "bad" if at % 2 else "good", "label": 1 if at % 2 else 2}
        for at in range(12)
    ]  # fmt: skip
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    overrides = [
        f"output={tmp_path / 'out'}", f"pairs={path}", "resamples=200", "baseline=coin",
        "judges={right: {model: right}, coin: {model: coin}}",
    ]  # fmt: skip
    config = tmp_path / "reasoning.yaml"
    config.write_text("# empty\n")
    return study_config("reasoning", str(config), overrides), FakeJudges(
        letters, {"right": prefers("good"), "coin": coin}
    )


def test_a_study_writes_numbers_table_figure_and_provenance(study, tmp_path):
    config, judges = study
    text, _, skipped = run_study("reasoning", config, judges.open)
    out = tmp_path / "out"
    assert skipped == 0
    assert (out / "table.md").read_text() == text
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((out / "data.json").read_text())
    right, chance = data["found"]["scores"]
    low = 1 / (1 + 1.959964**2 / 12)  # Wilson's, of 12 of 12
    assert right["accuracy"] == {"estimate": 1.0, "low": pytest.approx(low, abs=1e-6), "high": 1.0, "n": 12}
    assert right["counts"]["votes"] == 24
    assert chance["counts"]["invalid"] > 0
    assert [judge["judge"] for judge in data["judges"]] == ["right", "coin"]
    assert data["judges"][0]["model"] == "right"
    assert "| right " in text
    assert "100.0 % (75.8 … 100.0)" in text
    assert "not our result" in text
    made = json.loads((out / "run.json").read_text())
    assert made["inputs"]["pairs"]["sha256"] == fingerprint(config.pairs)
    assert made["config"]["baseline"] == "coin"


def test_killed_it_goes_on_and_asks_for_nothing_twice(study, tmp_path):
    config, judges = study
    judges.dies_after = 15
    with pytest.raises(Killed):
        run_study("reasoning", config, judges.open)
    assert not (tmp_path / "out" / "data.json").exists()
    judges.dies_after, before = None, judges.asked
    text, *_ = run_study("reasoning", config, judges.open)
    assert before == 15
    assert judges.asked == 2 * 24
    again, *_ = run_study("reasoning", config, judges.open)
    assert judges.asked == 2 * 24
    assert again == text


def test_other_settings_do_not_overwrite(study):
    config, judges = study
    run_study("reasoning", config, judges.open)
    with pytest.raises(RrmError, match="other settings"):
        run_study("reasoning", config.model_copy(update={"votes": 2}), judges.open)


def test_malformed_rows_are_told_and_counted(study):
    config, judges = study
    with open(config.pairs, "a", encoding="utf-8") as file:
        file.write('{"id": "bad", "query": "q"}\n')
    told = []
    *_, skipped = run_study("reasoning", config, judges.open, told.append)
    assert skipped == 1
    assert "pairs.jsonl:13: field 'label' is missing" in told[0]


def test_what_cannot_be(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("output: out\npairs: none.jsonl\nbaseline: b\njudges: {a: {model: m}, b: {model: n}}\n")
    with pytest.raises(RrmError, match="no study 'reason'; there are benchmarks, reasoning"):
        study_config("reason", str(config))
    with pytest.raises(RrmError, match="baseline 'c' is not one of the judges a, b"):
        study_config("reasoning", str(config), ["baseline=c"])
    with pytest.raises(RrmError, match=r"there is no file none.jsonl, which the study reasoning reads"):
        run_study("reasoning", study_config("reasoning", str(config)), lambda *a, **k: None)
