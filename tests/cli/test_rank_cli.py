"""`rrm rank` with a stand-in for the model (one test runs a tiny real one): rows, report, restarts, wrong input."""

import hashlib
import json
import os
import signal
import string
import subprocess
import sys
from pathlib import Path

import pytest

from rrm_jax.cli import rank
from rrm_jax.cli.main import app
from rrm_jax.cli.options import ModelOptions
from rrm_jax.data.records import parse_candidates
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.tournament import comparer
from rrm_jax.evaluation.tournament import rank as rank_by
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.template import load_template
from rrm_jax.ranking.protocol import Comparison
from rrm_jax.sampling.protocol import Completion, Decoding

pytestmark = pytest.mark.usefixtures("quick_compiles")


TEMPLATE = """name = "short"
system = "Which is better?"
user = '''{query}
[1] {response_1}
[2] {response_2}
[end]'''
"""


def best_of_three_votes(prompt, request):
    """The response with more "+" is better; every third sample says the opposite, and every fifth nothing."""
    if request.sample % 5 == 4:
        return "hm"
    first, second = prompt.split("[1]")[1].split("[end]")[0].split("[2]")
    better = 1 if first.count("+") > second.count("+") else 2
    return f"so</think>\\boxed{{Assistant {better if request.sample % 3 < 2 else 3 - better}}}"


def coin(prompt, request):
    drawn = hashlib.sha256(f"{request.id} {request.sample}".encode()).digest()[0]
    return f"so</think>\\boxed{{Assistant {1 + drawn % 2}}}"


class FakeModel:
    """What `open_generator` opens, with `answer` in place of weights. `drawn` counts completions of all instances."""

    answer = staticmethod(best_of_three_votes)
    drawn = 0
    killed_at = -1
    takes_messages = False

    def __init__(self, options, progress=None):
        self.assets, self.tokenizer = options.model, Tokenizer.load(options.model)
        self.max_positions, self.facts, self.names, self.identity = 20_000, {}, ["fake"], "fake"

    def check(self, decoding):
        pass

    def generate(self, requests):
        for request in requests:
            if FakeModel.drawn == FakeModel.killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            FakeModel.drawn += 1
            text = FakeModel.answer(self.tokenizer.decode(request.prompt_ids), request)
            ids = (*self.tokenizer.encode_control(text), self.tokenizer.eos_id)
            yield Completion(request, ids, (0.0,) * len(ids), "stop")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a tokenizer, a template, and candidates whose best has most "+"."""
    write_word_tokenizer(tmp_path / "model", string.printable)
    (tmp_path / "short.toml").write_text(TEMPLATE, encoding="utf-8")
    write_rows(tmp_path, QUERIES)
    monkeypatch.setattr(rank, "open_generator", FakeModel)
    monkeypatch.setattr(FakeModel, "drawn", 0)
    return tmp_path


def query(id, *pluses):
    responses = [f"response {at} " + "+" * count for at, count in enumerate(pluses)]
    return {"id": id, "query": f"query {id}", "responses": responses, "correct": [p == max(pluses) for p in pluses]}


QUERIES = [query("a", 2, 5, 1, 0), query("b", 1, 3, 2), query(7, 9), query("d", 0, 1, 2, 3, 4, 5, 6)]
BEST = {"a": 1, "b": 1, "7": 0, "d": 6}


def write_rows(place, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (place / "candidates.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def arguments(place, *more):
    paths = ["--model", place / "model", "--candidates", place / "candidates.jsonl", "--out", place / "out.jsonl"]
    return ["rrm", "rank", *map(str, paths), "--template", str(place / "short.toml"), *more]


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Runs the command line; gives its exit code, standard output and standard error."""

    def run(*more):
        monkeypatch.setattr(sys, "argv", arguments(place, *more))
        with pytest.raises(SystemExit) as exit:
            app()
        return exit.value.code or 0, *capsys.readouterr()

    return run


def results(place):
    return [json.loads(line) for line in (place / "out.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("strategy", "comparisons"),
    [
        ("round-robin", [6, 3, 0, 21]),
        ("round-robin:rating=points:stop=certain", None),
        ("random:opponents=2", [8, 6, 0, 14]),
        ("knockout", [3, 2, 0, 6]),
        ("swiss:rounds=3", [6, 3, 0, 9]),
        ("adaptive:budget=20", [20, 20, 0, 20]),
        ("round-robin:rating=win-rate", [6, 3, 0, 21]),
    ],
)
def test_the_best_is_found_and_everything_is_counted(place, run, strategy, comparisons):
    code, out, _ = run("--strategy", strategy, "--votes", "5")
    rows = results(place)
    assert code == 0
    if not strategy.startswith(("random", "swiss")):  # with few games the best may not stand out
        assert {row["id"]: row["best"] for row in rows} == BEST
    assert [row["id"] for row in rows] == list(BEST)
    comparisons = comparisons or [row["comparisons"] for row in rows]
    assert [row["comparisons"] for row in rows] == comparisons
    for row in rows:
        assert row["ranking"][0] == row["best"]
        assert sorted(row["ranking"]) == list(range(len(row["ratings"])))
        assert row["votes"] == 5 * row["comparisons"]
        assert (row["cut_off"], row["spared"]) == (0, 0)
        ends = list(zip(row["low"], row["strengths"], row["high"], strict=True))
        assert all(low < at < high for low, at, high in ends) or ends == [(1000, 1000, 1000)]
        assert (row["tokens"] > 0) == (row["comparisons"] > 0)
    total = sum(comparisons)
    assert "queries ranked: 4 (15 candidates)" in out
    invalid = sum(row["invalid"] for row in rows)
    assert f"comparisons: {total} ({total / 4:.1f} a query; without a winner: {invalid}, " in out
    assert f"votes: {5 * total} (invalid: {sum(row['invalid_votes'] for row in rows)}, " in out
    games = [json.loads(line) for line in (place / "out.jsonl.games.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(games) == total == len({(g["id"], *sorted((g["i"], g["j"])), g["meeting"]) for g in games})
    assert all(len(g["votes"]) == len(g["orders"]) == 5 for g in games)
    assert f"; {sum(row['tokens'] for row in rows)} tokens" in out
    valid = [(vote == 1) == first for g in games for vote, first in zip(g["votes"], g["orders"], strict=True) if vote]
    assert f"the one shown first won {100 * sum(valid) / len(valid):.1f} % of {len(valid)} valid" in out
    mean = (1 / 4 + 1 / 3 + 1 + 1 / 7) / 4
    right = sum(row["best"] == BEST[row["id"]] for row in rows)
    assert f"4 labelled queries: best {right / 4:.4f} = {right} / 4, mean candidate {mean:.4f}, oracle 1.0" in out
    made_by = json.loads((place / "out.jsonl.run.json").read_text(encoding="utf-8"))
    assert made_by["config"]["ranking"]["strategy"] == strategy


def test_without_a_verdict_a_coin_or_a_draw_decides(place, run, monkeypatch):
    monkeypatch.setattr(FakeModel, "answer", staticmethod(lambda prompt, request: "both are fine"))
    assert run("--invalid", "draw")[0] == 0
    assert all(set(row["ratings"]) == {1000.0} for row in results(place))
    assert sum(row["invalid"] for row in results(place)) == 30
    for file in place.glob("out.jsonl*"):
        file.unlink()
    assert run()[0] == 0
    assert all(len(set(row["ratings"])) > 1 for row in results(place) if row["comparisons"])


def test_killed_and_started_again_it_judges_nothing_twice(place, run, monkeypatch):
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from test_rank_cli import FakeModel, coin, rank, app; "
        "rank.open_generator = FakeModel; FakeModel.answer = coin; FakeModel.killed_at = int(sys.argv.pop(1)); app()"
    )
    call = [sys.executable, "-c", script, str(Path(__file__).parent), "20"]
    # In its second round of this knockout: 2 + 1 + 0 + 3 matches of 3 votes are 18.
    options = ("--strategy", "knockout", "--votes", "3")
    killed = subprocess.run([*call, *arguments(place, *options)[1:]], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (place / "out.jsonl").exists()
    monkeypatch.setattr(FakeModel, "answer", staticmethod(coin))
    code, out, _ = run(*options)
    assert (code, FakeModel.drawn) == (0, 33 - 20)
    assert "13 votes drawn now, 20 found in the store" in out
    after_restart = (place / "out.jsonl").read_bytes()
    assert [row["id"] for row in results(place)] == list(BEST)
    # A finished job started again draws nothing and says the same.
    assert run(*options)[0] == 0
    assert FakeModel.drawn == 33 - 20
    assert (place / "out.jsonl").read_bytes() == after_restart
    for file in place.glob("out.jsonl*"):
        file.unlink()
    assert run(*options)[0] == 0
    assert FakeModel.drawn == 33 - 20 + 33
    assert (place / "out.jsonl").read_bytes() == after_restart


BAD_ROWS = [
    ({"id": "x", "query": "q", "responses": []}, "at least one string"),
    ({"id": "x", "query": "q", "responses": ["r", 3]}, "'responses[1]' must be a string"),
    ({"id": "x", "responses": ["r"]}, "'query' is missing"),
    ({"id": "x", "query": "q", "responses": ["r", "s"], "correct": [True]}, "a list of 2 booleans"),
    ({"id": "x", "query": "q", "responses": ["r", "s"], "correct": [1, 0]}, "a list of 2 booleans"),
    (QUERIES[0], "'a' appears twice"),
    ("{not json", "not JSON"),
]


def test_malformed_rows_are_passed_over_and_counted(place, run):
    write_rows(place, QUERIES + [row for row, _ in BAD_ROWS])
    code, _, err = run("--votes", "2")
    assert code == 1
    assert {row["id"]: row["best"] for row in results(place)} == BEST
    for number, (_, problem) in enumerate(BAD_ROWS, start=len(QUERIES) + 1):
        assert any(f"candidates.jsonl:{number}:" in line and problem in line for line in err.splitlines())
    assert f"{len(BAD_ROWS)} malformed row(s)" in err


def test_strict_stops_before_anything_is_run(place, run):
    write_rows(place, [*QUERIES, "{not json"])
    code, _, err = run("--strict")
    assert code == 2
    assert "candidates.jsonl:5: not JSON" in err
    assert FakeModel.drawn == 0
    assert not list(place.glob("out.jsonl*"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--strategy", "knokout"), "is not one of round-robin, random, knockout, swiss, adaptive; did"),
        (("--strategy", "elo"), "'elo' is a rating, not a strategy: give rating elo, with one of round-robin, random"),
        (("--strategy", "swiss:rounds=x"), "is not a whole number"),
        (("--strategy", "swiss:cups=2"), "it has rounds"),
        (("--strategy", "knockout:votes=3"), "are --votes here"),
        (("--stop", "soon"), 'is not "certain"'),
        (("--strategy", "swiss", "--stop", "certain"), "needs a round robin"),
        (("--same-answer", "given"), "has no field 'answers'"),
        (("--picture", "x.gif"), "not in '.gif'"),
        (("--invalid", "maybe"), "'maybe' is not one of"),
        (("--template", "nowhere"), "no template 'nowhere'"),
        (("--top-p", "0"), "top_p must be in"),
        (("--max-new-tokens", "20000"), "leaves no room"),
    ],
)
def test_wrong_options_are_errors_that_name_themselves(place, run, options, problem):
    code, _, err = run(*options)
    assert code == 2
    assert problem in err
    assert not list(place.glob("out.jsonl*"))


def test_what_another_job_wrote_is_not_overwritten(place, run):
    (place / "out.jsonl").write_text('{"id":"precious"}\n', encoding="utf-8")
    code, _, err = run()
    assert (code, results(place)) == (2, [{"id": "precious"}])
    assert "choose another --out" in err
    (place / "out.jsonl").unlink()
    assert run()[0] == 0
    before = (place / "out.jsonl").read_bytes()
    code, _, err = run("--strategy", "knockout")
    assert code == 2
    assert "ranking: was" in err
    write_rows(place, QUERIES[1:])
    code, _, err = run()
    assert code == 2
    assert "1 row(s) whose ids are not in" in err
    assert (place / "out.jsonl").read_bytes() == before


def test_a_longer_file_is_gone_on_with(place, run):
    assert run()[0] == 0
    drawn = FakeModel.drawn
    write_rows(place, [*QUERIES, query("new", 1, 2, 0)])
    assert run()[0] == 0
    assert FakeModel.drawn == drawn + 3
    assert {row["id"]: row["best"] for row in results(place)} == {**BEST, "new": 1}


def test_a_comparison_has_one_verdict_whoever_is_named_first(place, monkeypatch):
    monkeypatch.setattr(FakeModel, "answer", staticmethod(coin))
    model = FakeModel(ModelOptions(place / "model"))
    judge = Judge(model, model.tokenizer, load_template(place / "short.toml"), Decoding(max_new_tokens=9), votes=3)
    rows = {str(row["id"]): parse_candidates(row) for row in QUERIES}
    judged = []
    compare = comparer(judge, None, rows, lambda: judged.append(1))
    forwards = compare([Comparison("d", i, j) for i in range(7) for j in range(i)])
    backwards = compare([Comparison("d", j, i) for i in range(7) for j in range(i)])
    assert len(judged) == 42
    assert {outcome.winner for outcome in forwards} == {1, 2}
    for one, two in zip(forwards, backwards, strict=True):
        assert (one.winner, one.votes) == (3 - two.winner, tuple(3 - vote for vote in two.votes))


def test_the_best_of_n_in_one_call(place):
    model = FakeModel(ModelOptions(place / "model"))
    judge = Judge(model, model.tokenizer, load_template(place / "short.toml"), Decoding(max_new_tokens=9))
    responses = QUERIES[3]["responses"]
    for strategy in ("round-robin", "knockout", "adaptive"):
        result = rank_by(judge, "which?", responses, strategy, budget=21)
        assert (result.best, sorted(result.ranking)) == (6, list(range(7)))
        assert result.comparisons <= 21
    alike = rank_by(judge, "which?", responses, answers=["same"] * 7)
    assert (alike.comparisons, alike.spared > 0) == (0, True)
    assert rank_by(judge, "which?", ["one"]).best == 0
    with pytest.raises(RrmError, match="no candidates"):
        rank_by(judge, "which?", [])


@pytest.mark.parametrize("strategy", ["round-robin", "knockout", "swiss", "adaptive"])
def test_the_same_response_twice_is_two_candidates(place, run, strategy):
    row = query("a", 1, 4, 0)
    row["responses"].append(row["responses"][1])
    row["correct"].append(True)
    write_rows(place, [row])
    assert run("--strategy", strategy)[0] == 0
    (ranked,) = results(place)
    assert sorted(ranked["ranking"]) == [0, 1, 2, 3]
    assert ranked["best"] in (1, 3)


def test_equal_boxed_answers_are_not_judged(place, run):
    row = query("a", 3, 1, 2)
    row["responses"] = [text + " \\boxed{4}" * (at != 1) for at, text in enumerate(row["responses"])]
    write_rows(place, [row])
    code, out, _ = run("--same-answer", "boxed", "--picture", str(place / "picture.html"))
    assert code == 0
    assert (results(place)[0]["comparisons"], results(place)[0]["spared"]) == (2, 1)
    assert "spared because both answers are the same: 1" in out
    games = [json.loads(line) for line in (place / "out.jsonl.games.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(min(g["i"], g["j"]), max(g["i"], g["j"]), g["winner"]) for g in games if g.get("spared")] == [(0, 2, None)]
    assert len(games) == 3
    assert "<svg" in (place / "picture.html").read_text(encoding="utf-8")


def test_a_tiny_model_ranks(place, monkeypatch, capsys):
    from rrm_jax.cli.backend import open_generator
    from rrm_jax.testing import tiny_config, write_hf_checkpoint

    size = write_word_tokenizer(place / "model", string.printable)
    write_hf_checkpoint(place / "model", tiny_config(vocab_size=size, max_positions=512))
    monkeypatch.setattr(rank, "open_generator", open_generator)
    write_rows(place, QUERIES[:2])
    options = ("--strategy", "knockout", "--max-new-tokens", "4", "--batch-size", "4", "--dtype", "float32")
    monkeypatch.setattr(sys, "argv", arguments(place, *options))
    with pytest.raises(SystemExit) as exit:
        app()
    assert not exit.value.code
    rows = results(place)
    assert [(row["comparisons"], row["votes"], row["cut_off"] + row["invalid_votes"] > 0) for row in rows] == [
        (3, 3, True),
        (2, 2, True),
    ]
    assert "5 votes drawn now, 0 found in the store" in capsys.readouterr().out
