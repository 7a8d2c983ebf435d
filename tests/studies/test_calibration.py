import dataclasses
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from rrm_jax.errors import RrmError
from rrm_jax.studies.calibration import _draw, _says, compute, filled
from rrm_jax.studies.pooling import pool
from rrm_jax.studies.run import run_study, study_config
from tests.judging.fake_generator import coin
from tests.studies.conftest import FakeJudges, good_pairs, judgment, write_rows


def test_shares_of_votes_by_hand():
    judgments = [
        judgment([1, 1, 1, 1]),  # sure 1, right
        judgment([1, 1, 1, 2], label=2),  # sure ¾, wrong
        judgment([2, 2, 2, None], label=2),  # sure 1 of its valid votes, right
        judgment([1, 2, 1, 2]),  # a tie
        judgment([None] * 4),  # not known
    ]
    found = compute("j", judgments, "share of votes", bins=2)
    assert (found.pairs, found.left_out) == (4, 1)
    assert found.sure == pytest.approx((1 + 0.75 + 1 + 0.5) / 4)
    assert found.right.estimate == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    low, high = found.bins
    assert (low.low, low.sure, low.right.estimate, low.right.n) == (0.5, 0.5, 0.5, 1)
    assert (high.sure, high.right.estimate, high.right.n) == (pytest.approx(2.75 / 3), pytest.approx(2 / 3), 3)
    assert found.error.estimate == pytest.approx((0 + abs(2.75 - 2)) / 4)
    assert found.brier.estimate == pytest.approx((0 + 0.75**2 + 0 + 0) / 4)


def test_probabilities_are_the_models_of_the_response_preferred():
    def with_probabilities(one, *values):
        votes = tuple(dataclasses.replace(vote, probability=p) for vote, p in zip(one.votes, values, strict=True))
        return dataclasses.replace(one, votes=votes)

    judgments = [with_probabilities(judgment([1, 1]), 0.9, 0.7), with_probabilities(judgment([2, 2]), 0.1, 0.3)]
    found = compute("j", judgments, "probability", bins=5)
    assert found.sure == pytest.approx(0.8)
    assert found.right.estimate == 0.5
    assert [(one.low, one.right.n) for one in filled(found)] == [(0.8, 2)]


def test_a_calibrated_judge_has_little_error():
    rng = np.random.default_rng(0)
    judgments = []
    for _ in range(3000):
        p = rng.choice([0.1, 0.3, 0.7, 0.9])
        one = judgment([1], label=1 if rng.random() < p else 2)
        judgments.append(dataclasses.replace(one, votes=(dataclasses.replace(one.votes[0], probability=p),)))
    found = compute("j", judgments, "probability", resamples=100)
    assert found.error.estimate < 0.03
    assert abs(found.sure - found.right.estimate) < 0.03


def test_bars_are_shares_of_all_pairs_over_seeds_of_the_same_items_too():
    """Two votes that agree on one pair and not on the other: half of the pairs are so sure, in 1 seed and in 3."""
    found = compute("j", [judgment([1, 1]), judgment([1, 2])], "share of votes", 2, resamples=100)
    for of in (found, pool([found] * 3, same_items=True), pool([found] * 3)):
        figure = Figure()
        _draw(figure, [of])
        assert [bar.get_height() for bar in figure.axes[1].patches] == pytest.approx([50, 50])


def test_as_sure_as_right_is_neither():
    found = compute("j", [judgment([1, 1])], "share of votes", 2, resamples=100)
    assert "sure and 100.0 % right on average; calibration" in _says([found])[0].evidence
    wrong = compute("j", [judgment([2, 2])], "share of votes", 2, resamples=100)
    assert "on average, surer than it is right; calibration" in _says([wrong])[0].evidence


def test_a_study_of_votes(letters, tmp_path):
    config = tmp_path / "c.yaml"
    pairs = write_rows(tmp_path / "p.jsonl", good_pairs(20))
    config.write_text(f"output: {tmp_path / 'out'}\njudges: {{j: {{model: j}}}}\nresamples: 100\npairs: {pairs}\n")
    text, *_ = run_study("calibration", study_config("calibration", str(config)), FakeJudges(letters, {"j": coin}).open)
    (found,) = json.loads((tmp_path / "out" / "data.json").read_text())["found"]["reliability"]
    assert found["pairs"] == 20
    assert sum(one["right"]["n"] for one in found["bins"]) == 20
    assert found["error"]["estimate"] > 0.03  # a coin's votes agree by chance, and it is right by chance
    assert "| j     | share of votes |" in text
    with pytest.raises(RrmError, match="one vote has no share"):
        study_config("calibration", str(config), ["votes=1"])
