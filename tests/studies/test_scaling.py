import itertools
import json

import numpy as np
import pytest

from rrm_jax.data.records import Candidates
from rrm_jax.errors import RrmError
from rrm_jax.ranking.protocol import Result
from rrm_jax.studies.best_of import bounds, ways
from rrm_jax.studies.run import run_study, study_config
from rrm_jax.studies.scaling import compute_voting
from rrm_jax.studies.voting import majority_credit
from tests.judging.fake_generator import coin, prefers
from tests.studies.conftest import FakeJudges, good_pairs, judgment, write_rows


@pytest.mark.parametrize(("right", "wrong", "invalid"), [(3, 2, 1), (0, 2, 2), (4, 0, 1), (2, 2, 2)])
def test_a_majority_is_the_mean_over_all_choices(right, wrong, invalid):
    votes = [1] * right + [-1] * wrong + [0] * invalid
    for k in range(1, len(votes) + 1):
        credits = [0.5 * (1 + np.sign(sum(chosen))) for chosen in itertools.combinations(votes, k)]
        assert majority_credit(right, wrong, invalid, k) == pytest.approx(np.mean(credits))


def test_voting_by_hand():
    judgments = [judgment([1, 1, 2], orders="given"), judgment([2, 1, 2], orders="given")]
    one, three = compute_voting("j", judgments, [3, 1])
    assert (one.votes, one.gain, one.test) == (1, None, None)
    assert one.accuracy.estimate == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert three.accuracy.estimate == 0.5
    assert three.gain is not None
    assert three.gain.estimate == pytest.approx(0)
    assert (three.test.a_better, three.test.b_better) == (0, 0)  # the first vote was right, then wrong; so were three


def test_more_votes_of_a_coin_are_no_better():
    """Means over choices move one way for a pair with more right votes; a test of them would find what is not there."""
    rng = np.random.default_rng(0)
    judgments = [judgment([int(v) for v in rng.integers(1, 3, 8)], orders="given") for _ in range(300)]
    found = compute_voting("coin", judgments, [1, 2, 4, 8])
    assert all(one.test.p > 0.01 for one in found[1:])


def result(best: int, comparisons: int) -> Result:
    scores = (0.0,) * 3
    return Result("q", best, (best,), scores, scores, scores, scores, comparisons, comparisons, 10 * comparisons,
                  0, 0, 1, 0, 0, 0, "")  # fmt: skip


def test_ways_and_bounds_by_hand():
    rows = [
        Candidates("1", "q", ("7", "8", "8"), (True, False, False)),
        Candidates("2", "q", ("7", "7", "8"), (False, False, False)),
        Candidates("3", "q", ("a", "b", "c"), (True, False, True)),
    ]
    results = {"knockout": [result(0, 2), result(0, 2), result(1, 2)], "round-robin": [result(0, 3)] * 3}
    knockout, elo = ways("j", results, rows, "round-robin")
    assert (knockout.accuracy.estimate, elo.accuracy.estimate) == (1 / 3, 2 / 3)
    assert (knockout.comparisons, elo.tokens, elo.invalid) == (2, 30, 3)
    assert (knockout.against.a_better, knockout.against.b_better, elo.against) == (0, 1, None)
    limits = bounds(rows)
    assert limits.candidate.estimate == pytest.approx((1 / 3 + 0 + 2 / 3) / 3)
    assert limits.majority.estimate == pytest.approx((0 + 0 + 2 / 3) / 3)
    assert limits.oracle.estimate == pytest.approx(2 / 3)


@pytest.fixture
def study(letters, tmp_path):
    pairs = good_pairs(6)
    rows = [
        {"id": str(at), "query": f"c{at}", "responses": ["bad x", "good", "bad y"], "correct": [False, True, False]}
        for at in range(4)
    ]
    config = tmp_path / "c.yaml"
    config.write_text("# empty\n")
    overrides = [
        f"output={tmp_path / 'out'}", f"pairs={write_rows(tmp_path / 'p.jsonl', pairs)}", "resamples=200",
        f"candidates={write_rows(tmp_path / 'c.jsonl', rows)}", "votes=[1,2,4]",
        "strategies=[knockout, 'knockout:votes=3', round-robin]", "judges={right: {model: right}, coin: {model: coin}}",
    ]  # fmt: skip
    return study_config("test-time-compute", str(config), overrides), FakeJudges(
        letters, {"right": prefers("good"), "coin": coin}
    )


@pytest.mark.usefixtures("quick_compiles")
def test_a_study_of_votes_and_strategies(study, tmp_path):
    config, judges = study
    text, *_ = run_study("test-time-compute", config, judges.open)
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    right = [way for way in data["found"]["strategies"] if way["judge"] == "right"]
    assert [(way["strategy"], way["accuracy"]["estimate"], way["comparisons"], way["votes"]) for way in right] == [
        ("knockout", 1.0, 2.0, 2.0), ("knockout:votes=3", 1.0, 2.0, 6.0), ("round-robin", 1.0, 3.0, 3.0)
    ]  # fmt: skip
    assert [one["accuracy"]["estimate"] for one in data["found"]["voting"]][:3] == [1, 1, 1]
    assert data["found"]["bounds"]["oracle"]["estimate"] == 1
    assert data["found"]["counts"]["coin"]["votes"] == 24
    assert "| RRM-7B    |     88.2 | 88.5 |" in text
    asked = judges.asked
    assert run_study("test-time-compute", config, judges.open)[0] == text
    assert judges.asked == asked
    games = [json.loads(line) for line in (tmp_path / "out" / "games.jsonl").read_text().splitlines()]
    assert len(games) == 2 * 4 * (2 + 2 + 3)
    of_the_good = [game for game in games if game["judge"] == "right" and 1 in (game["i"], game["j"])]
    assert len(of_the_good) >= 4 * (1 + 1 + 2)
    assert all(game["winner"] == (1 if game["i"] == 1 else 2) for game in of_the_good)
    assert {game["meeting"] for game in games} == {0}


def test_what_cannot_be(study, tmp_path):
    config, judges = study
    with pytest.raises(RrmError, match="reference 'swiss' is not one of the strategies"):
        study_config("test-time-compute", str(tmp_path / "c.yaml"), [
            "output=o", "pairs=p", "candidates=c", "judges={a: {model: m}}", "strategies=[knockout]", "reference=swiss",
        ])  # fmt: skip
    (tmp_path / "c.jsonl").write_text('{"id": 1, "query": "q", "responses": ["a"]}\n')
    told: list[str] = []
    with pytest.raises(RrmError, match="holds no usable row"):
        run_study("test-time-compute", config, judges.open, told.append)
    assert "field 'correct' is missing" in told[0]
