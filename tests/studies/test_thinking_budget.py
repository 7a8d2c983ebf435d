import dataclasses
import json

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.studies.run import run_study, study_config
from rrm_jax.studies.thinking_budget import compute
from tests.judging.fake_generator import prefers
from tests.studies.conftest import FakeJudges, good_pairs, judgment, write_rows


def forced(one, tokens):
    votes = tuple(dataclasses.replace(vote, forced=True, tokens=tokens) for vote in one.votes)
    return dataclasses.replace(one, votes=votes)


def test_budgets_by_hand():
    small = [forced(judgment([1, 2]), 5), forced(judgment([2, 2]), 5), judgment([None, 2])]
    large = [judgment([1, 1]), forced(judgment([1, 2]), 20), judgment([1, 1])]
    one, two = compute("j", {4: small, None: large})
    assert (one.budget, two.budget) == (4, None)
    assert one.accuracy.estimate == pytest.approx((0.5 + 0 + 0.25) / 3)
    assert two.accuracy.estimate == pytest.approx(2.5 / 3)
    assert one.forced.estimate == pytest.approx(2 / 3)
    assert one.tokens.estimate == pytest.approx((5 + 5 + 10) / 3)
    assert one.against is None
    assert (two.against.a_better, two.against.b_better) == (3, 0)
    assert (one.counts.invalid, one.counts.forced) == (1, 4)


def test_a_study_asks_with_each_budget(letters, tmp_path):
    pairs = good_pairs(3)
    config = tmp_path / "c.yaml"
    config.write_text(f"output: {tmp_path / 'out'}\njudges: {{j: {{model: j}}}}\nbudgets: [30, 8]\nresamples: 100\n")
    resolved = study_config("thinking-budget", str(config), [f"pairs={write_rows(tmp_path / 'p.jsonl', pairs)}"])
    text, *_ = run_study("thinking-budget", resolved, FakeJudges(letters, {"j": prefers("good")}).open)
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [one["budget"] for one in data["found"]["budgets"]] == [8, 30, None]
    assert [judge.get("forcing", {}).get("budget") for judge in data["judges"]] == [8, 30, None]
    assert "not our result" in text
    with pytest.raises(RrmError, match="different numbers of 1 at least"):
        study_config("thinking-budget", str(config), ["pairs=p", "budgets=[4,4]"])
