import json

import numpy as np
import pytest

from rrm_jax.errors import RrmError
from rrm_jax.studies.intransitivity import compute
from rrm_jax.studies.run import run_study, study_config
from tests.studies.conftest import write_rows

CYCLE = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
LINE = np.array([[0.0, 1, 1], [0, 0, 1], [0, 0, 0]])


def test_a_cycle_and_a_line_by_hand():
    found = compute("s", {"cycle": CYCLE, "line": LINE}, {"cycle": [True, False, False], "line": [True, False, False]})
    assert (found.queries, found.games, found.triples) == (2, 6, 2)
    assert found.cycles.estimate == 0.5
    assert found.upsets.estimate == pytest.approx(1 / 6)
    assert found.condorcet.estimate == 0.5
    assert found.top_cycle.estimate == 2
    # In the cycle any of three equal leaders is picked, whom one of two beats; in the line the best, whom none beats.
    assert found.points_beaten.estimate == pytest.approx((1 + 0) / (2 + 2))
    assert (found.with_cycles.queries, found.without.queries) == (1, 1)
    assert found.with_cycles.points.estimate == pytest.approx(1 / 3)
    assert found.with_cycles.knockout.estimate == pytest.approx(1 / 3)
    assert found.without.points.estimate == found.without.knockout.estimate == 1
    assert found.exact


def test_nothing_is_said_of_what_is_not_there():
    found = compute("s", {"line": LINE}, {"line": [True, False, False]})
    assert found.with_cycles.queries == 0
    assert np.isnan(found.with_cycles.points.estimate)
    pair = compute("s", {"pair": np.array([[0.0, 1], [0, 0]])})
    assert pair.triples == 0
    assert np.isnan(pair.cycles.estimate)
    assert pair.without is None


def games(matrix, query="q", **more):
    return [{**more, "id": query, "i": i, "j": j, "winner": 1} for i, j in np.argwhere(matrix > 0).tolist()]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    log = write_rows(tmp_path / "games.jsonl", [
        *games(CYCLE, judge="a", strategy="round-robin"), *games(LINE, judge="b", strategy="round-robin"),
        *games(CYCLE, judge="b", strategy="knockout"), {"id": "q", "i": 1, "j": 1, "winner": 1},
    ])  # fmt: skip
    path.write_text(
        f"output: {tmp_path / 'out'}\nresamples: 100\ngames:\n  a: {{path: {log}, judge: a}}\n"
        f"  b: {{path: {log}, judge: b, strategy: round-robin}}\n"
    )
    return str(path)


def test_a_study_of_a_games_log(config, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [
        {"id": "q", "query": "", "responses": ["x", "y", "z"], "correct": [True, False, False]}
    ])  # fmt: skip
    told: list[str] = []
    resolved = study_config("intransitivity", config, [f"candidates={rows}"])
    text, _, skipped = run_study("intransitivity", resolved, lambda *a, **k: None, told.append)
    assert skipped == 2  # once for each reading of the log
    assert "games.jsonl:10: i and j must name two candidates" in told[0]
    a, b = json.loads((tmp_path / "out" / "data.json").read_text())["found"]["games"]
    assert (a["cycles"]["estimate"], b["cycles"]["estimate"]) == (1, 0)
    assert a["without"]["points"]["estimate"] is None
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["b", "without", "1", *["100.0 % (20.7 … 100.0)"] * 2] in rows  # Wilson's, of 1 of 1: 1 / (1 + 1.96²)
    assert not (tmp_path / "out" / "votes.jsonl").exists()


def test_what_does_not_fit(config, tmp_path):
    with pytest.raises(RrmError, match="no games of judge 'c'"):
        run_study("intransitivity", study_config("intransitivity", config, ["games.a.judge=c"]), lambda *a, **k: None)
    rows = write_rows(tmp_path / "few.jsonl", [{"id": "q", "query": "", "responses": ["x"], "correct": [True]}])
    with pytest.raises(RrmError, match="the games of query 'q' are not of the candidates given"):
        run_study(
            "intransitivity",
            study_config("intransitivity", config, [f"candidates={rows}", f"output={tmp_path / 'other'}"]),
            lambda *a, **k: None,
        )
