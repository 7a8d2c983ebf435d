import json

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.studies.cost import pareto
from rrm_jax.studies.run import run_study, study_config
from tests.judging.fake_generator import coin, prefers
from tests.studies.conftest import FakeJudges, write_rows


def test_whom_no_other_beats_by_hand():
    costs = [1.0, 2.0, 2.0, 3.0, 4.0, 4.0]
    values = [0.5, 0.7, 0.6, 0.7, 0.9, 0.9]
    assert pareto(costs, values) == [True, True, False, False, True, True]
    assert pareto([], []) == []


@pytest.mark.usefixtures("quick_compiles")
def test_a_study_of_every_setting(letters, tmp_path):
    rows = [
        {"id": str(at), "query": f"c{at}", "responses": ["bad x", "good", "bad y"], "correct": [False, True, False]}
        for at in range(4)
    ]
    config = tmp_path / "c.yaml"
    config.write_text(
        f"output: {tmp_path / 'out'}\nresamples: 100\ncandidates: {write_rows(tmp_path / 'c.jsonl', rows)}\n"
        "judges: {right: {model: right}, coin: {model: coin}}\nstrategies: [knockout]\nvotes: [1, 3]\n"
        "budgets: [40, null]\n"
    )
    judges = FakeJudges(letters, {"right": prefers("good"), "coin": coin})
    text, *_ = run_study("cost", study_config("cost", str(config)), judges.open)
    settings = json.loads((tmp_path / "out" / "data.json").read_text())["found"]["settings"]
    assert [(one["way"]["judge"], one["budget"], one["votes"], one["way"]["votes"]) for one in settings] == [
        (judge, budget, votes, 2 * votes) for judge in ("right", "coin") for budget in (40, None) for votes in (1, 3)
    ]
    assert all(one["way"]["accuracy"]["estimate"] == 1 for one in settings[:4])
    starred = [line for line in text.splitlines() if line.startswith("| right") and "★" in line]
    cheapest = min(one["way"]["tokens"] for one in settings[:4])
    assert starred
    assert all(f" {cheapest:.0f} |" in line for line in starred)  # more tokens buy nothing here
    with pytest.raises(RrmError, match="votes of a comparison are `votes` here"):
        study_config("cost", str(config), ["strategies=['knockout:votes=3']"])
