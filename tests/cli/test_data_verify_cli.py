"""`rrm data verify` from the outside."""

import json
from pathlib import Path

from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.data import verifier_pool
from rrm_jax.errors import RrmError
from tests.data.candidates import InProcess, read, write


def verify(directory: Path, rows, *options, questions=None):
    arguments = ["data", "verify", "--candidates", write(directory / "c.jsonl", rows), "--out", directory / "m.jsonl"]
    if questions is not None:
        arguments += ["--questions", write(directory / "q.jsonl", questions)]
    result = CliRunner().invoke(_app, [str(word) for word in (*arguments, *options)])
    if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit)):
        raise result.exception
    return result


def test_verify_marks_rows_and_counts_agreement(tmp_path: Path):
    """With the processes that verify, and a response that one of them does not survive."""
    rows = [
        {"id": 1, "query": "q", "responses": ["A: 4", "<think>A: 4</think>A: 5", "?"], "correct": [True, True, False],
         "answer": "4", "own": [1.5]},
        {"id": 2, "query": "q", "responses": ["\\boxed{9^{9^{9^9}}}", "\\boxed{y/x}"], "answer": "\\frac{y}{x}"},
        {"id": 3, "query": "q", "responses": ["A: 4"], "correct": [True]},
        {"id": 4, "query": "q", "responses": ["A: (C)"], "correct": [True]},
        "{",
    ]  # fmt: skip
    questions = [{"id": 4, "query": "q", "answer": "C", "verifier": "choice"}]
    result = verify(tmp_path, rows, "--seconds", "2", questions=questions)
    assert result.exit_code == 1
    marked = read(tmp_path / "m.jsonl")
    assert marked[0] == rows[0] | {
        "answers": ["4", "5", None], "outcomes": ["right", "wrong", "no answer"], "correct": [True, False, False],
    }  # fmt: skip
    assert (marked[1]["outcomes"], marked[1]["correct"]) == (["timed out", "right"], None)
    assert (marked[2]["outcomes"], marked[2]["correct"]) == (["no gold"], None)
    assert (marked[3]["answers"], marked[3]["correct"]) == (["(C)"], [True])
    said = result.stdout.splitlines()
    assert said[0].startswith("responses: 7 of 4 rows: right 3 (42.9 %), ")
    assert said[1:] == [
        "agreement with `correct`: 60.00 % = 3 of 5; 2 differ, 1 of them undecided here",
        "id '1', response 1: '4' is right, it ends with '5': wrong, given as True",
        "id '3', response 0: None is right, it ends with '4': no gold, given as True",
    ]
    assert "c.jsonl:5: not JSON" in result.stderr
    facts = json.loads((tmp_path / "m.jsonl.run.json").read_text(encoding="utf-8"))
    assert set(facts["inputs"]) == {"candidates", "questions"}


def test_verify_refuses(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(verifier_pool, "VerifierPool", InProcess)
    row = {"id": 1, "query": "q", "responses": ["A: 4", "A: 5"], "correct": [False, True], "answer": "4"}
    assert "no verifier 'sense'" in str(verify(tmp_path, [row], "--verifier", "sense").exception)
    assert "would be written to" in str(verify(tmp_path, [row], "--out", tmp_path / "c.jsonl").exception)
    result = verify(tmp_path, [row], "--show", "1")
    assert "response 1" not in result.stdout
    assert result.stdout.endswith("and 1 more\n")
    assert "verifier: was 'auto', is now 'exact'" in str(verify(tmp_path, [row], "--verifier", "exact").exception)
    (tmp_path / "m.jsonl.run.json").unlink()
    assert "it is not this job's" in str(verify(tmp_path, [row]).exception)
    other = verify(tmp_path, [row], "--out", tmp_path / "n.jsonl", questions=[{"id": 1, "query": "r", "answer": "4"}])
    assert "the query is not that of question '1'" in other.stderr
