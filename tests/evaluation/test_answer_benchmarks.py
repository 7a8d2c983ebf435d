"""Questions that a model answers: published layouts, numbers by hand, and real files against marks of others."""

import csv
import json

import pytest

from rrm_jax.data import verifier_pool
from rrm_jax.data.records import Question
from rrm_jax.data.samples import CandidateFile, by_question
from rrm_jax.data.verifiers import Outcome, resolve
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks import compare, load, read_verdict_file, score, solve_items
from rrm_jax.evaluation.benchmarks.answers import LEVELS
from rrm_jax.evaluation.benchmarks.base import Tries, Try
from rrm_jax.evaluation.eval_job import Job
from rrm_jax.evaluation.evaluate import judge_benchmark
from rrm_jax.evaluation.statistics import wilson_interval
from tests.evaluation.benchmark_rows import by_name, write_rows


class InProcess:
    """A pool that verifies in this process: what tests ask of it is not hostile."""

    def verify_all(self, jobs):
        return (resolve(job.verifier)(job.response, job.answer) for job in jobs)


POOL: verifier_pool.VerifierPool = InProcess()  # type: ignore[assignment]


def math_rows() -> list[dict]:
    rows = [("Algebra", 1, "2"), ("Algebra", 5, "\\frac12"), ("Geometry", 5, "30^\\circ")]
    return [
        {"problem": f"Problem {at}?", "solution": "", "answer": answer, "subject": subject, "level": level}
        | {"unique_id": f"test/{at}.json"}
        for at, (subject, level, answer) in enumerate(rows)
    ]


def tries(marks: str, answers: str = "") -> Tries:
    """`marks`: + right, - wrong, . no answer, ? undecided."""
    names = {"+": Outcome.RIGHT, "-": Outcome.WRONG, ".": Outcome.NO_ANSWER, "?": Outcome.TIMED_OUT}
    answers = answers or marks
    return Tries(
        tuple(Try(names[m], None if a == "." else a, 5, m == ".") for m, a in zip(marks, answers, strict=True))
    )


def test_accuracy_and_majority_by_hand(tmp_path):
    loaded = load("answer-math-500", write_rows(tmp_path / "test.jsonl", math_rows()))
    one, two, three = loaded.items
    assert loaded.missing["Algebra"] == (2, 124)
    said = {
        one.id: tries("++-.", "xxy."),  # ½; the majority, x, is right
        two.id: tries("-+-.", "yxy."),  # ¼; the majority is wrong
        three.id: tries("?+..", "yx.."),  # ¼; of two answers as common the first, which nobody could decide on
    }
    named = by_name(score(loaded.benchmark, loaded.items, said, samples=200))
    assert named["Accuracy"].value == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert named["Majority of 4"].value == pytest.approx(1 / 3)
    assert named["Algebra"].value == pytest.approx(3 / 8)
    assert [named[name].value for name in ("Geometry", "level 1", "level 5")] == pytest.approx([1 / 4, 1 / 2, 1 / 4])
    assert [named[name].items for name in ("Accuracy", "Algebra", "level 1", "level 5")] == [3, 2, 1, 2]
    assert not {*LEVELS[1:4]} & {*named}
    counts = named["Accuracy"].counts
    assert (counts["votes"], counts["invalid"], counts["cut_off"], counts["tokens"]) == (12, 4, 4, 60)
    assert named["level 5"].counts["votes"] == 8
    assert named["Accuracy"].low < named["Accuracy"].value < named["Accuracy"].high


def test_all_wrong_has_wilsons_interval(tmp_path):
    """Of which a bootstrap can only draw the same; and one sample has no majority."""
    loaded = load("answer-math-500", write_rows(tmp_path / "test.jsonl", math_rows()))
    wrong = {item.id: tries("-") for item in loaded.items}
    (overall,) = score(loaded.benchmark, loaded.items, wrong, samples=50)
    expected = wilson_interval(0.0, 3)
    assert (overall.value, overall.low, overall.high) == (0, expected.low, expected.high)
    assert expected.high == pytest.approx(1.959964**2 / (3 + 1.959964**2))  # the closed form at 0
    right = {item.id: tries("+") for item in loaded.items}
    (gap, *_) = compare(loaded.benchmark, loaded.items, right, wrong, samples=50)
    assert (gap.first, gap.second, gap.only_first, gap.only_second, gap.mcnemar) == (1, 0, 3, 0, 0.25)


def test_what_became_of_responses(tmp_path):
    loaded = load("answer-math-500", write_rows(tmp_path / "test.jsonl", math_rows()))
    texts = [
        ["<think>\nhm</think>It is \\boxed{2}.", "<think>\nso \\boxed{2}"],  # right; cut off in its thinking
        ["It is $\\frac{2}{4}$.\nAnswer: 0.5", "\\boxed{2}</think>\\boxed{3}"],
        ["no idea"],
    ]
    rows = [
        {"id": item.id, "query": item.query, "responses": said, "tokens": [7] * len(said)}
        | {"finish_reasons": ["stop", "length"][: len(said)]}
        for item, said in zip(loaded.items, texts, strict=True)
    ]
    source = CandidateFile(write_rows(tmp_path / "candidates.jsonl", rows))
    kept: list[dict] = []
    outcome = solve_items(loaded.benchmark.name, loaded.items, source, None, POOL, keep=kept.append)
    found = {id: [one.outcome.value for one in judged.tries] for id, judged in outcome.verdicts.items()}
    assert list(found.values()) == [["right", "no answer"], ["right", "wrong"], ["no answer"]]
    one, two = outcome.verdicts[loaded.items[0].id].tries
    assert (one.answer, one.tokens, one.cut_off, two.answer, two.cut_off) == ("2", 7, False, None, True)
    # The rows that were kept say the same again, and nothing of another question.
    path = write_rows(tmp_path / "out.judged.jsonl", kept)
    assert read_verdict_file(loaded.benchmark, loaded.items, path) == {"answers": outcome.verdicts}
    path = write_rows(tmp_path / "other.jsonl", [kept[0] | {"content": "another"}])
    with pytest.raises(RrmError, match="is another question than this data"):
        read_verdict_file(loaded.benchmark, loaded.items, path)
    few = solve_items(loaded.benchmark.name, loaded.items, source, 2, POOL)
    assert few.not_judged == {loaded.items[2].id: "1 of 2 response(s)"}


GPQA = {
    "Correct Answer": "right ",
    "Incorrect Answer 1": "a, b",
    "Incorrect Answer 2": 'c "d"',
    "Incorrect Answer 3": "e",
}


def gpqa(path, count: int):
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, ["Record ID", "Question", *GPQA, "High-level domain", "Subdomain"])
        rows.writeheader()
        for at in range(count):
            about = {"Record ID": f"rec{at}", "Question": f"Which\nof {at}?", "High-level domain": "Physics"}
            rows.writerow(about | GPQA | {"Subdomain": ""})
    return path


def test_gpqa_shuffles_options_by_the_seed(tmp_path):
    path = gpqa(tmp_path / "gpqa_diamond.csv", 60)
    items = load("answer-gpqa", path).items
    assert items == load("answer-gpqa", tmp_path, seed=0).items
    for item in items:
        head, *options = item.query.rsplit("\n", 4)
        assert head.startswith("Which\nof ")
        assert options["ABCD".index(item.gold or "")] == f"{item.gold}. right"
        assert sorted(option[3:] for option in options) == sorted(text.strip() for text in GPQA.values())
        assert item.verifier == "choice"
    shares = [sum(item.gold == letter for item in items) for letter in "ABCD"]
    assert sum(shares) == 60
    assert min(shares) >= 6  # each is as likely: below 6 of 60 with p < 0.004
    assert [item.gold for item in load("answer-gpqa", path, seed=1).items] != [item.gold for item in items]
    path.write_text(path.read_text(encoding="utf-8") + "rec9,too few\n", encoding="utf-8")
    assert load("answer-gpqa", path).skipped == 1


def test_mmlu_pro(tmp_path):
    row = {"question_id": 70, "question": "Which?", "options": [f"o{at}" for at in range(10)], "answer": "I"}
    row |= {"answer_index": 8, "cot_content": "", "category": "business", "src": "x"}
    rows = [row, row | {"question_id": 71, "options": ["p", "q", "N/A", "N/A"], "answer": "B", "answer_index": 1}]
    rows += [row | {"question_id": 72, "answer_index": 3}, row | {"question_id": 73, "answer": "K"}]
    said: list[str] = []
    loaded = load("answer-mmlu-pro", write_rows(tmp_path / "test-00000-of-00001.parquet", rows), report=said.append)
    assert [(item.id, item.group, item.gold) for item in loaded.items] == [
        ("70", "business", "I"),
        ("71", "business", "B"),
    ]
    assert loaded.items[0].query.endswith("\nI. o8\nJ. o9")
    assert loaded.items[1].query == "Which?\n\nA. p\nB. q"
    assert "name different options" in said[0]
    assert "must be the letter of one of the 10 options" in said[1]
    given = write_rows(
        tmp_path / "answers.jsonl",
        [
            {
                "id": 70,
                "query": "Which?",
                "responses": ["So \\boxed{I}", "\\boxed{\\text{(I)}}", "The answer is (J).", "I?"],
            },
            {"id": 71, "query": "Which?", "responses": ["\\boxed{I}"]},
        ],
    )
    outcome = solve_items("answer-mmlu-pro", loaded.items, CandidateFile(given), None, POOL)
    assert [one.answer for one in outcome.verdicts["70"].tries] == ["I", "I", "J", None]
    assert [one.outcome.value for one in outcome.verdicts["70"].tries] == ["right", "right", "wrong", "no answer"]
    assert outcome.verdicts["71"].tries[0].outcome == Outcome.WRONG


def test_gsm8k_against_the_authors_marks(real_data, tmp_path):
    """`is_correct` of four models' solutions, 120 questions of the published files."""
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    lines = (real_data / "gsm8k" / "example_model_solutions.jsonl").read_text(encoding="utf-8").splitlines()
    solved = {row["question"]: row for row in map(json.loads, lines)}
    loaded = load("answer-gsm8k", real_data / "gsm8k" / "test.jsonl")
    assert (len(loaded.items), loaded.notes()) == (1319, [])
    items = loaded.items[:120]
    rows = [
        {"id": item.id, "query": item.query, "responses": [solved[item.query][name]["solution"] for name in names]}
        for item in items
    ]
    source = CandidateFile(write_rows(tmp_path / "candidates.jsonl", rows))
    outcome = solve_items("answer-gsm8k", items, source, 4, POOL)
    for item in items:
        marks = [solved[item.query][name]["is_correct"] for name in names]
        assert [one.outcome.correct for one in outcome.verdicts[item.id].tries] == marks
    right = sum(solved[item.query][name]["is_correct"] for item in items for name in names)
    assert score(loaded.benchmark, items, outcome.verdicts, samples=0)[0].value == pytest.approx(right / 480)


def test_math_500_marks_its_own_solutions_right(real_data, tmp_path):
    path = real_data / "math500" / "test.jsonl"
    loaded = load("answer-math-500", path)
    assert loaded.notes() == []
    solutions = {row["problem"]: row["solution"] for row in map(json.loads, path.read_text("utf-8").splitlines())}
    items = loaded.items[:100]
    rows = [{"id": item.id, "query": item.query, "responses": [solutions[item.query]]} for item in items]
    source = CandidateFile(write_rows(tmp_path / "candidates.jsonl", rows))
    outcome = solve_items("answer-math-500", items, source, 1, POOL)
    assert all(judged.tries[0].outcome == Outcome.RIGHT for judged in outcome.verdicts.values())
    levels = {level: sum(item.level == level for item in loaded.items) for level in LEVELS}
    assert list(levels.values()) == [43, 90, 105, 128, 134]


@pytest.mark.parametrize("name", ["answer-gsm8k", "arena-hard"])
def test_a_judge_alone_is_refused(name, tmp_path):
    """A study, say, that names one of these."""
    row = {"question": "q", "answer": "#### 1", "uid": "u", "category": "c", "prompt": "p"}
    loaded = load(name, write_rows(tmp_path / "rows.jsonl", [row]))
    with pytest.raises(RrmError, match=f"{name} needs a model's answers"):
        judge_benchmark(Job(loaded, loaded.benchmark.policy, tmp_path / "out"), None)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("out*"))


def test_what_a_row_says_of_each_response_is_checked(tmp_path):
    row = {"id": "a", "query": "q", "responses": ["x", "y"]}
    for about, expected in [
        ({"tokens": [1, 2], "finish_reasons": ["stop", "length"]}, [(1, "stop"), (2, "length")]),
        ({"tokens": [1], "finish_reasons": ["stop", 3]}, [(0, None), (0, None)]),
        ({"tokens": [True, 2], "finish_reasons": "ab"}, [(0, None), (0, None)]),
    ]:
        source = CandidateFile(write_rows(tmp_path / "candidates.jsonl", [row | about]))
        ((_, found),) = by_question({"a": Question("a", "q")}, [source])
        assert [(sample.tokens, sample.finish_reason) for _, sample, _ in found] == expected
