"""From samples to pairs: what can be used, what is drawn, what is reported."""

import json
import random
from pathlib import Path

import pytest

from rrm_jax.data.records import Question
from rrm_jax.data.samples import CUT_OFF, UNFINISHED, CandidateFile, LoggedSamples, Sample, SampleLog, response_of
from rrm_jax.data.synthesis import GIVEN, Marked, Synthesis, choose, mark_samples, reason
from rrm_jax.data.verifiers import Outcome, resolve
from rrm_jax.errors import RrmError

RIGHT, WRONG = str(Outcome.RIGHT), str(Outcome.WRONG)


class InProcess:
    """Verifies in this process, where nothing is hostile."""

    def verify_all(self, jobs):
        return (resolve(job.verifier)(job.response, job.answer) for job in jobs)


@pytest.mark.parametrize(
    ("text", "finish", "thinking", "expected"),
    [
        ("hm</think> A: 4 ", "stop", True, ("A: 4", None)),
        ("hm</think>no</think>A: 4", "stop", False, ("A: 4", None)),
        ("A: 4", "stop", True, ("", UNFINISHED)),
        ("A: 4", "stop", False, ("A: 4", None)),
        ("A: 4", None, False, ("A: 4", None)),
        (" <think>A: 4", "stop", False, ("", UNFINISHED)),
        ("The tag <think> opens. A: 4", "stop", False, ("The tag <think> opens. A: 4", None)),
        ("A: 4", "length", False, ("A: 4", CUT_OFF)),
        ("hm", "length", True, ("", UNFINISHED)),
        ("hm</think>", "stop", True, ("", None)),
    ],
)
def test_response_of(text, finish, thinking, expected):
    assert response_of(text, finish, thinking) == expected


def marked(fates: str, question: str = "q", sources: int = 2) -> list[Marked]:
    names = {"r": RIGHT, "w": WRONG, "n": "no answer", "u": UNFINISHED}
    return [Marked(at % sources, Sample(question, at // sources, 0), names[fate]) for at, fate in enumerate(fates)]


def test_one_pair_of_both_kinds_whatever_the_order():
    samples = marked("rwrnwurw")
    chosen = choose(samples, ["a", "b"], 0)
    assert [one.fate for one in chosen] == [RIGHT, WRONG]
    for seed in range(5):
        random.Random(seed).shuffle(samples)
        assert choose(samples, ["a", "b"], 0) == chosen
    assert choose(marked("rrnu"), ["a", "b"], 0) is choose(marked("wn"), ["a", "b"], 0) is None
    draws = [choose(marked("rrrrwwww", f"q{at}"), ["a", "b"], at % 2) for at in range(400)]
    for which in (0, 1):
        counts = [sum(pair[which] == one for pair in map(anonymous, draws)) for one in anonymous(marked("rrrrwwww"))]
        assert sorted(counts)[:4] == [0] * 4  # of the other kind
        assert min(sorted(counts)[4:]) > 60  # 100 are expected, 60 is 4.6 standard deviations away


def anonymous(samples):
    return [(one.source, one.sample.number, one.fate) for one in samples]


@pytest.mark.parametrize(
    ("fates", "why"),
    [("rr", "none wrong"), ("rn", "none wrong"), ("wuu", "none right"), ("nuu", UNFINISHED), ("", "no samples")],
)
def test_why_a_question_has_no_pair(fates, why):
    assert reason(marked(fates)) == why


def header(thinking=True, **settings):
    return ("model 1", "m", thinking, {"seed": 0, **settings})


def test_logs_survive_a_torn_line_and_are_apart_by_settings(tmp_path: Path):
    with SampleLog(tmp_path, *header()) as log:
        log.append("q", 0, "c", "x\u2028</think>A: 4", "stop", 5)
        log.append("q", 1, "c", "hm", "length", 5)
        log.append("ü", 0, "d", "</think>A: \ud800", "stop", 5)
    path = log.path
    with open(path, "ab") as file:
        file.write(b'{"question":"q","sample":2')
    with SampleLog(tmp_path, *header()) as log:
        assert (log.path, log.done) == (path, {("q", 0): "c", ("q", 1): "c", ("ü", 0): "d"})
    for other in (header(thinking=False), header(seed=1), ("model 2", *header()[1:])):
        with SampleLog(tmp_path, *other) as log:
            assert (log.path != path, log.done) == (True, {})
    read = LoggedSamples.open(path, 2)
    assert (read.title, read.thinking, read.name) == ("m", True, path.stem)
    samples = dict(read.samples())
    assert [(s.question, s.number, s.finish_reason) for s in samples] == [
        ("q", 0, "stop"), ("q", 1, "length"), ("ü", 0, "stop"),
    ]  # fmt: skip
    assert {sample: read.text(sample) for sample in samples} == samples
    assert len(list(LoggedSamples.open(path, 1).samples())) == 2
    (tmp_path / "other.jsonl").write_text("[]\n", encoding="utf-8")
    with pytest.raises(RrmError, match="is no log of samples"):
        LoggedSamples.open(tmp_path / "other.jsonl", 2)


def write(path: Path, rows) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_every_fate_is_counted(tmp_path: Path):
    def row(key, *responses, **fields):
        return {"id": key, "query": "2 + 2?", "responses": list(responses), **fields}

    rows = [
        row("both", "A: 5", "A: 4", "hm"),
        row("right", "A: 4", "hm", "<think>A: 5"),
        row("wrong", "A: 5"),
        row("none", "hm", " ", "<think>hm"),
        row("gold", "A: 4", "A: 5"),
        row("unread", "A: 4 x", "A: 5 x"),
        row("stranger", "A: 4", "A: 5"),
        "{",
        row("both", "A: 4", "A: 5"),
        row("choice", "The answer is (B).", "The answer is (C)."),
    ]
    answers = {"both": "4", "right": "4", "wrong": "4", "none": "4", "gold": None, "unread": "\\frac{", "choice": "B"}
    questions = {key: Question(key, "2 + 2?", answer, "s" * (key == "both")) for key, answer in answers.items()}
    questions["empty"] = Question("empty", "2 + 2?", "4")
    source = CandidateFile(write(tmp_path / "c.jsonl", rows))
    synthesis = Synthesis(questions, [source], 0)
    for one in mark_samples(questions, [source], "auto", InProcess()):
        synthesis.add(one)
    pairs = {pair.id: pair for pair, _ in synthesis.pairs()}
    assert {key: (pair.response_1, pair.response_2, pair.label) for key, pair in pairs.items()} == {
        "both": ("A: 4", "A: 5", 1),
        "choice": ("The answer is (B).", "The answer is (C).", 1),
    }
    assert synthesis.lines() == [
        "questions kept: 2 of 8 (25.0 %)",
        "not kept: none wrong 1, none right 1, no answer 1, no gold 1, unreadable gold 1, no samples 1",
        "kept of (no source): 1 of 7 (14.3 %)",
        "kept of s: 1 of 1 (100.0 %)",
        f"samples of {source.path}: 16, right 3 (18.8 %), no answer 4, wrong 3, unfinished thinking 2, no gold 2, "
        "unreadable gold 2",
    ]
    assert json.loads(json.dumps(synthesis.report()))["by_source"]["s"] == {"kept": 1}


@pytest.mark.parametrize("rule", ["auto", GIVEN])
def test_gsm8k_solutions_make_pairs(tmp_path: Path, real_data: Path, rule):
    """Real responses of four models: 731 questions have a right and a wrong one by the published marks."""
    published = (real_data / "gsm8k" / "example_model_solutions.jsonl").read_text(encoding="utf-8").splitlines()
    rows, questions = [], {}
    for at, row in enumerate(map(json.loads, published)):
        solutions = [value for value in row.values() if isinstance(value, dict)]
        correct = [solution["is_correct"] for solution in solutions]
        responses = [solution["solution"] for solution in solutions]
        rows.append({"id": at, "query": row["question"], "responses": responses, "correct": correct})
        answer = row["ground_truth"].rpartition("A:")[2].strip()
        questions[str(at)] = Question(str(at), row["question"], answer, "gsm8k")
    source = CandidateFile(write(tmp_path / "gsm8k.jsonl", rows))
    synthesis = Synthesis(questions, [source], 0)
    for one in mark_samples(questions, [source], rule, InProcess()):
        synthesis.add(one)
    pairs = list(synthesis.pairs())
    assert len(pairs) == sum(len(set(row["correct"])) == 2 for row in rows) == 731
    for pair, origin in pairs:
        row = rows[int(pair.id)]
        right, wrong = origin["samples"]
        assert (row["correct"][right], row["correct"][wrong]) == (True, False)
        assert (pair.response_1, pair.response_2) == (row["responses"][right].strip(), row["responses"][wrong].strip())
