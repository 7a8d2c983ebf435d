"""Verifiers: by rule, against graded answers that were published, and in processes that hostile texts may kill."""

import json
import random
import signal
from pathlib import Path

import pytest

from rrm_jax.data.answers import final_answer
from rrm_jax.data.verifier_pool import Job, VerifierPool
from rrm_jax.data.verifiers import LONGEST_ANSWER, Outcome, resolve
from rrm_jax.errors import RrmError

R, W, N, U = Outcome.RIGHT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.UNREADABLE


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(workers=2, seconds=20) as pool:
        yield pool


def boxed(answer: str) -> str:
    return f"so \\boxed{{{answer}}}"


@pytest.mark.parametrize(
    ("rule", "response", "answer", "outcome"),
    [
        ("exact", "The answer is paris.", "Paris", R),
        ("exact", "The answer is Rome.", "Paris", W),
        ("exact", "It is Paris", "Paris", N),
        ("exact", "<think>\\boxed{Paris}</think>no idea", "Paris", N),
        ("whole", "<think>so 3</think> 7 ", "7", R),
        ("whole", "0.50", "1/2", R),
        ("whole", "It is 7", "7", W),
        ("whole", "7" * (LONGEST_ANSWER + 1), "7", W),
        ("whole", "<think>7</think>", "7", N),
        ("choice", boxed("c"), "(C)", R),
        ("choice", "The answer is (C) Paris.", "C", R),
        ("choice", "Answer: C. It is red", "\\text{(C)}", R),
        ("choice", "First I thought B.\n\n**C**", "C", R),
        ("choice", boxed("option D"), "C", W),
        ("choice", boxed("B and C"), "C", N),
        ("choice", boxed("42"), "C", N),
        ("choice", "The answer is A car", "A", N),
        ("choice", boxed("C"), "42", U),
        ("numeric", boxed("3.14159"), "3.1416", R),
        ("numeric", boxed("3.141"), "3.1416", W),
        ("numeric:0.01", boxed("3.141"), "3.1416", R),
        ("numeric:0", boxed("2/6"), "\\frac{1}{3}", R),
        ("numeric", boxed("1.5 \\times 10^{3}"), "1,500", R),
        ("numeric", boxed("-1.5e3 \\text{ J}"), "-1500", R),
        ("numeric", boxed("50\\%"), "0.5", R),
        ("numeric", boxed("3 \\times 4"), "3", W),
        ("numeric", boxed("2^{10}"), "2", W),
        ("numeric", boxed("x"), "2", W),
        ("numeric", boxed("1e999999999"), "2", W),
        ("numeric", boxed("2"), "two", U),
        ("numeric", "2", "2", N),
        ("math", boxed("18"), "18", R),
        ("math", boxed("18.0"), "18", R),
        ("math", boxed("180"), "18", W),
        ("math", "The answer is $18 dollars a day.", "18", R),
        ("math", "The answer is 18 hundred.", "18", W),
        ("math", boxed("\\frac{2\\sqrt{3}}{6}"), "\\frac{1}{\\sqrt{3}}", R),
        ("math", boxed("(x+1)^2"), "x^2+2x+1", R),
        ("math", boxed("(x+1)^2"), "x^2+1", W),
        ("math", boxed("\\{3, 1, 2\\}"), "\\{1,2,3\\}", R),
        ("math", boxed("(2,1)"), "(1,2)", W),
        ("math", boxed("(-\\infty, 2]"), "(-\\infty,2)", W),
        ("math", "Answer: $2$ or $3$", "2", W),
        ("math", "Answer: $2$ or $3$", "2, 3", R),
        ("math", boxed("x = 5"), "5", R),
        ("math", boxed("seat"), "\\text{east}", W),
        ("math", boxed("\\text{East}"), "\\text{east}", R),
        ("math", boxed("x^" * 700), "x^2", W),
        ("math", boxed("2"), "x+" * LONGEST_ANSWER, U),
        ("math", boxed("2"), "\\frac{", U),
        ("math", "2", "2", N),
        ("auto", "The answer is (C).", "C", R),
        ("auto", boxed("c"), "c", R),
        ("auto", boxed("PARIS"), "Paris", R),
        ("auto", boxed("\\frac{4}{8}"), "2^{-1}", R),
    ],
)
def test_rules(rule, response, answer, outcome):
    assert resolve(rule)(response, answer) == outcome


def test_outcomes():
    assert [outcome.correct for outcome in Outcome] == [True, False, False, None, None, None, None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("code", "programs are not run here"),
        ("maths", "no verifier 'maths'; there are auto, choice, exact, math, numeric"),
        ("math:1", "no verifier"),
        ("numeric:x", "tolerance"),
        ("numeric:-1", "tolerance"),
        ("numeric:nan", "tolerance"),
        ("", "no verifier"),
    ],
)
def test_unknown_verifiers(pool, name, message):
    with pytest.raises(RrmError, match=message):
        list(pool.verify_all([Job("", "", name)]))
    assert list(pool.verify_all([Job("A: 1", "1")])) == [R]


def test_outcomes_come_in_order_whatever_the_workers(pool):
    drawn = random.Random(0)
    numbers = [(drawn.randrange(3), drawn.randrange(3)) for _ in range(300)]
    jobs = [Job(boxed(f"{a}x" if at % 5 == 0 else str(a)), f"{b}x" if at % 5 == 0 else str(b))
            for at, (a, b) in enumerate(numbers)]  # fmt: skip
    expected = [R if a == b else W for a, b in numbers]
    taken = []

    def watched():
        for job in jobs:
            taken.append(job)
            yield job

    pool.ahead = 7
    for at, outcome in enumerate(pool.verify_all(watched())):
        assert outcome == expected[at]
        assert len(taken) <= at + 1 + pool.ahead
    assert len(taken) == 300
    pool.ahead = 1000


def test_hostile_texts_end_their_own_process_only():
    """Each of these hangs math-verify where no Python code can interrupt it, or needs all memory there is."""
    hostile = ["9^{9^{9^9}}", "10^{10^{9}}", "9^{9^{9^9}} - 1"]
    jobs = [Job("A: 1", "1")]
    for text in hostile:
        jobs += [Job(boxed(text), "\\frac{x}{3}"), Job(boxed("(x+1)^2"), "x^2+2x+1")]
    jobs += [Job("A: 1", "x" * 100_000_000, "exact"), Job("A: 1", "1")]
    with VerifierPool(workers=2, seconds=3, memory=2**28) as pool:
        outcomes = list(pool.verify_all(jobs))
    assert outcomes[::2] == [R] * 5
    assert outcomes[1:6:2] == [Outcome.TIMED_OUT] * 3
    assert outcomes[7] == Outcome.CRASHED  # it alone needs more memory than there is, before time is up


def test_huge_and_odd_texts(pool):
    huge = "x" * 50_000_000
    texts = [huge + boxed("5"), boxed("5") + huge, "\\boxed{" * 5_000_000, "<think>" + huge + "</think>A: 5"]
    assert list(pool.verify_all(Job(text, "5") for text in texts)) == [R, N, N, R]
    odd = ["\x00", "\ud800", "\n", "{" * 900, "\\" * 900, "$" * 900, "\u2028", "\r\n", '"', "__import__('os')._exit(3)"]
    assert {outcome.correct for outcome in pool.verify_all(Job(boxed(text), "x^2") for text in odd)} == {False}


def test_killed_processes_and_callers_that_stop_early(pool):
    outcomes = pool.verify_all([Job("A: 1", "1")] * 40)
    assert next(outcomes) == R
    for process in pool._processes:
        process._popen.send_signal(signal.SIGKILL)
        process._popen.wait()
    outcomes.close()
    outcomes = pool.verify_all([Job("A: 1", "1")] * 40)
    assert next(outcomes) == R
    pool._processes[0]._popen.send_signal(signal.SIGKILL)
    pool._processes[0]._popen.wait()
    rest = list(outcomes)
    assert rest == [R] * 39  # what it had under way was given to another


def test_a_process_that_cannot_start(monkeypatch):
    monkeypatch.setattr("rrm_jax.data.verifier_pool.sys.executable", "/bin/false")
    with pytest.raises(RrmError, match="cannot be started"), VerifierPool(workers=1) as pool:
        list(pool.verify_all([Job("A: 1", "1")]))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_gsm8k_solutions_are_marked_as_published(pool, real_data):
    rows = lines(real_data / "gsm8k" / "example_model_solutions.jsonl")
    kinds = [f"{size}_{way}" for size in ("6b", "175b") for way in ("finetuning", "verification")]
    solutions = [(row[kind], row["ground_truth"].rpartition("A:")[2].strip()) for row in rows for kind in kinds]
    outcomes = pool.verify_all(Job(solution["solution"], answer) for solution, answer in solutions)
    agree = sum(x.correct == s["is_correct"] for (s, _), x in zip(solutions, outcomes, strict=True))
    assert (agree, len(solutions)) == (5276, 5276)


def test_math_500_answers(pool, real_data):
    """Each is right by itself, by way of algebra too; of others' answers one in thousands, where units differ."""
    answers = [row["answer"] for row in lines(real_data / "math500" / "test.jsonl")]
    assert set(pool.verify_all(Job(boxed(answer), answer) for answer in answers)) == {R}
    doubled = [
        answer for answer in answers if "\\frac" in answer and not set(answer) & set("=,[(") and "text" not in answer
    ]
    assert len(doubled) > 60
    assert set(pool.verify_all(Job(boxed(f"{a} + 1 - 1"), a) for a in doubled)) == {R}
    drawn = random.Random(0)
    pairs = [drawn.sample(sorted(set(answers)), 2) for _ in range(400)]
    found = pool.verify_all(Job(boxed(one), other) for one, other in pairs)
    same = [pair for pair, outcome in zip(pairs, found, strict=True) if outcome == R]
    assert same == []


def test_qwen_answers_are_marked_as_graded(pool, real_data):
    rows = lines(real_data / "qwen_math_bon8" / "math_cot_100.jsonl")
    jobs = [Job(text, row["answer"]) for row in rows for text in row["code"]]
    scores = [score for row in rows for score in row["score"]]
    outcomes = list(pool.verify_all(jobs))
    differ = [at for at, (x, s) in enumerate(zip(outcomes, scores, strict=True)) if x.correct != s]
    # Both graded wrong because their grader reads 10{,}000 as no number, and cuts "4:30 p.m." at its blank.
    assert {(jobs[at].answer, final_answer(jobs[at].response)) for at in differ} == {
        ("10{,}000", "10000"),
        ("\\text{4:30 p.m.}", "4:30 \\text{ p.m.}"),
    }
    assert len(differ) == 9
    assert {outcomes[at] for at in differ} == {R}
