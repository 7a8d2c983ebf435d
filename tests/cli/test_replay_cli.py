"""`rrm replay`: simulated judges, labelled candidates, recorded logs, wrong input."""

import json
import sys

import pytest

from rrm_jax.cli.main import app

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run(*more):
        monkeypatch.setattr(sys, "argv", ["rrm", "replay", "--out", str(tmp_path / "out"), *map(str, more)])
        with pytest.raises(SystemExit) as exit:
            app()
        return exit.value.code or 0, *capsys.readouterr()

    return run


def curves(tmp_path):
    return json.loads((tmp_path / "out" / "replay.json").read_text(encoding="utf-8"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.thorough
def test_more_and_better_spent_comparisons_find_the_best_more_often(tmp_path, run):
    strategies = "round-robin,knockout,adaptive,round-robin:rating=points,round-robin:rating=points:stop=certain"
    code, out, _ = run("--candidates", 8, "--spread", 2, "--tournaments", 700, "--strategies", strategies)
    assert code == 0
    (name, found), *rest = curves(tmp_path).items()
    assert (name, rest) == ("n = 8, spread 2", [])
    last = {curve["name"]: curve["points"][-1] for curve in found}
    right = {name: point["right"] / point["tournaments"] for name, point in last.items()}
    used = {name: point["comparisons"] for name, point in last.items()}
    assert (used["round-robin"], used["knockout"], used["adaptive"]) == (28, 7, 32)
    assert right["round-robin"] > right["knockout"]  # the same candidates; a standard error is 0.018
    assert right["adaptive"] > right["round-robin"] - 0.05
    stopped = "round-robin:rating=points:stop=certain"
    assert right[stopped] == right["round-robin:rating=points"]
    assert used[stopped] < 27
    assert all(f"| {curve['name']} |" in out for curve in found)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "replay.json",
        "replay.md",
        "replay.png",
        "run.json",
    }


def test_a_judge_is_simulated_from_labels(tmp_path, run):
    rows = [
        {"id": "a", "query": "q", "responses": list("abcd"), "correct": [True, False, False, False]},
        {"id": "b", "query": "q", "responses": list("ab"), "correct": [False, True]},
        {"id": "easy", "query": "q", "responses": list("ab"), "correct": [True, True]},
    ]
    path = write(tmp_path / "candidates.jsonl", rows)
    options = ("--labelled", path, "--accuracy", "0.95,0.5", "--tournaments", 400, "--strategies", "round-robin")
    assert run(*options)[0] == 0
    rates = [c[0]["points"][-1]["right"] / c[0]["points"][-1]["tournaments"] for c in curves(tmp_path).values()]
    assert rates[0] > 0.9
    assert abs(rates[1] - (0.25 + 0.5) / 2) < 0.1  # chance; 4 standard errors
    write(path, rows[2:])
    code, _, err = run(*options)
    assert (code, "no row with both correct and wrong" in err) == (2, True)


def games(winner_of, ids="ab", size=4):
    return [
        {"id": id, "i": i, "j": j, "meeting": 0, "winner": winner_of(i, j)}
        for id in ids
        for i in range(size)
        for j in range(i)
    ]


def test_a_recorded_round_robin_replays_under_other_strategies(tmp_path, run):
    log = write(tmp_path / "ranked.games.jsonl", games(lambda i, j: 1 if i > j else 2))
    code, _, _ = run("--log", log, "--strategies", "knockout,swiss,adaptive,round-robin")
    assert code == 0
    (found,) = curves(tmp_path).values()
    assert [curve["points"][-1]["right"] for curve in found] == [2, 2, 2, 2]
    assert found[0]["points"][-1]["comparisons"] == 3
    labels = write(
        tmp_path / "candidates.jsonl",
        [
            {"id": "a", "query": "q", "responses": list("wxyz"), "correct": [True, False, False, False]},
            {"id": "b", "query": "q", "responses": list("wxyz"), "correct": [False, False, False, True]},
        ],
    )
    assert run("--log", log, "--labelled", labels, "--strategies", "knockout")[0] == 0
    ((curve,),) = curves(tmp_path).values()
    assert (curve["points"][-1]["right"], curve["points"][-1]["tournaments"]) == (1, 2)


def test_a_log_has_the_votes_and_the_spared_pairs_that_were_recorded(tmp_path, run):
    """0 and 1 of `a` say the same: where they would meet, nobody is asked."""
    rows = [row | {"votes": [1, 1, 1]} for row in games(lambda i, j: 1 if i > j else 2)]
    spared = {"winner": None, "spared": True, "votes": []}
    rows = [row | (spared if (row["id"], row["i"], row["j"]) == ("a", 1, 0) else {}) for row in rows]
    log = write(tmp_path / "ranked.games.jsonl", rows)
    assert run("--log", log)[0] == 0
    (found,) = curves(tmp_path).values()
    assert [curve["name"] for curve in found] == ["round-robin", "knockout", "random", "swiss", "adaptive"]
    assert {curve["votes"] for curve in found} == {3}
    assert found[0]["points"][-1]["comparisons"] == (5 + 6) / 2
    assert all(curve["points"][-1]["right"] == 2 for curve in found[:2])
    assert "| round-robin | 5.5 | 16.5 |" in (tmp_path / "out" / "replay.md").read_text(encoding="utf-8")
    code, _, err = run("--log", log, "--strategies", "knockout:votes=3")
    assert (code, "a comparison has the votes that were recorded" in err) == (2, True)


@pytest.mark.parametrize("candidates", ["8.5", "0.5", "0", "x"])
def test_numbers_of_candidates_are_whole(run, candidates):
    code, _, err = run("--candidates", candidates)
    assert (code, "--candidates" in err) == (2, True)


def test_rounds_without_end_are_refused(run):
    code, _, err = run("--candidates", 4, "--tournaments", 2, "--strategies", "swiss:rounds=1000000000")
    assert (code, "more than can be played" in err) == (2, True)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (lambda rows: rows[:2] + rows[3:], "has no game of candidates"),
        (lambda rows: [*rows, rows[0] | {"winner": 2}], "contradicts line 1"),
        (lambda rows: [*rows, rows[0] | {"i": 9, "meeting": 1}], "which has 4"),
        (lambda rows: [*rows, rows[0] | {"id": "stranger"}], "'stranger' is not among the candidates"),
        (lambda rows: [*rows, rows[0] | {"winner": 3}], "winner 1, 2 or null"),
        (lambda rows: [*rows, rows[0] | {"i": 1, "j": 1}], "two candidates"),
        (lambda rows: [], "is empty"),
    ],
)
def test_a_log_that_cannot_be_used_says_where(tmp_path, run, rows, problem):
    log = write(tmp_path / "ranked.games.jsonl", rows(games(lambda i, j: 1)))
    labels = write(
        tmp_path / "candidates.jsonl",
        [{"id": id, "query": "q", "responses": list("wxyz"), "correct": [True, False, True, True]} for id in "ab"],
    )
    code, _, err = run("--log", log, "--labelled", labels, "--strategies", "round-robin")
    assert (code, problem in err) == (2, True), err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--strategies", "best"), "strategy 'best' is not one of"),
        (("--spread", "loud"), "must be numbers"),
        (("--spread", "-1"), "must be above 0"),
        (("--candidates", "nan"), "must be above 0"),
    ],
)
def test_wrong_options_are_errors(run, options, problem):
    code, _, err = run(*options)
    assert (code, problem in err) == (2, True), err
