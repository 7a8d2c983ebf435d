"""Questions that a model answers: GSM8K, MATH-500, GPQA and MMLU-Pro; a response is right by its final answer.

The accuracy is the mean over the responses to a question, then over questions: pass@1, estimated from n samples. The
majority (maj@n) is the answer that most of them end with, of as many the first one. A response without a final answer,
cut off in its thinking, or that the verifier cannot decide on counts as wrong.
"""

import string
from collections.abc import Sequence
from typing import Any

from rrm_jax.data.answers import canonical
from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Question, checked_text, text_field
from rrm_jax.data.sources import gsm8k, math_500
from rrm_jax.data.sources.base import complete
from rrm_jax.data.table_files import Row
from rrm_jax.data.verifiers import Outcome
from rrm_jax.evaluation.benchmarks.base import Benchmark, Item, Judged, Policy, Tries
from rrm_jax.evaluation.benchmarks.best_of_n import most_weighted
from rrm_jax.evaluation.benchmarks.scores import Node, Table, ratio
from rrm_jax.judging.store import digest

ACCURACY = "Accuracy"
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE = "Please reason step by step, and put the letter of the right option within \\boxed{}."
LEVELS = tuple(f"level {number}" for number in range(1, 6))
_TRIES, _FIRST_LEVEL = 4, 5  # places in a row: the number of tries; then two numbers a level


def _measure(item: Item, judged: Judged, policy: Policy) -> list[float]:
    """[mean credit, 1, the majority's credit, 1, tries], and [mean credit, 1] at the place of the item's level."""
    assert isinstance(judged, Tries)
    right = [float(one.outcome == Outcome.RIGHT) for one in judged.tries]
    credit = sum(right) / len(right)
    answers = [None if one.answer is None else canonical(one.answer) for one in judged.tries]
    majority = most_weighted(answers, [1.0] * len(right))
    row = [credit, 1.0, 0.0 if majority is None else right[majority], 1.0, float(len(right))]
    return row + [number for level in LEVELS for number in ((credit, 1.0) if level == item.level else (0.0, 0.0))]


def _tree(table: Table) -> tuple[Node, ...]:
    groups = tuple(sorted(table.ids))
    parts = tuple(ratio(group, [group]) for group in groups) if len(groups) > 1 else ()
    for at, level in enumerate(LEVELS):
        place = _FIRST_LEVEL + 2 * at
        if any(table.values[group][:, place + 1].any() for group in groups):
            parts += (ratio(level, groups, place, place + 1, marked=True),)
    most = int(max(table.values[group][:, _TRIES].max() for group in groups))
    majority = (ratio(f"Majority of {most}", groups, 2, 3),) if most > 1 else ()
    return ratio(ACCURACY, groups, parts=parts), *majority


def with_options(query: str, options: Sequence[str]) -> str:
    """A question with its options, a line each: `A. …`."""
    lines = (f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))
    return "\n".join([query.strip(), "", *lines])


def _item(question: Question, group: str, level: str = "") -> Item:
    assert question.answer is not None
    return Item(question.id, group, question.query, (), gold=question.answer, verifier=question.verifier, level=level)


def _gsm8k(row: Row, at: int) -> Item:
    question = complete(gsm8k.SOURCE.parse(row), gsm8k.SOURCE)
    assert isinstance(question, Question)
    return _item(question, "all")


def _math_500(row: Row, at: int) -> Item:
    question = complete(math_500.SOURCE.parse(row), math_500.SOURCE)
    assert isinstance(question, Question)
    return _item(question, str(row.get("subject") or "all"), f"level {row.get('level')}")


def _gpqa(seed: int):
    def parse(row: Row, at: int) -> Item:
        """The options stand in an order that belongs to (seed, the row's id)."""
        id = text_field(row, "Record ID").strip() or str(at)
        options = [text_field(row, name).strip() for name in _GPQA_OPTIONS]
        if not all(options):
            raise RowError("an option is empty")
        order = sorted(range(len(options)), key=lambda k: digest([seed, "options", id, k]))
        query = with_options(text_field(row, "Question"), [options[k] for k in order])
        gold = string.ascii_uppercase[order.index(0)]
        return Item(id, str(row.get("High-level domain") or "all"), query, (), gold=gold, verifier="choice")

    return parse


def _mmlu_pro(row: Row, at: int) -> Item:
    options = row.get("options")
    if not isinstance(options, list):
        raise RowError("options must be a list")
    options = [checked_text(option, "options") for option in options]
    while options and options[-1].strip() == "N/A":  # what some versions fill the list up with
        options.pop()
    gold, index = text_field(row, "answer").strip(), row.get("answer_index")
    if len(gold) != 1 or gold not in string.ascii_uppercase[: len(options)]:
        raise RowError(f"answer must be the letter of one of the {len(options)} options, not {gold!r}")
    if index is not None and index != string.ascii_uppercase.index(gold):
        raise RowError(f"answer {gold!r} and answer_index {index!r} name different options")
    id, query = str(row.get("question_id", at)), with_options(text_field(row, "question"), options)
    return Item(id, str(row.get("category") or "all"), query, (), gold=gold, verifier="choice")


_GPQA_OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_ANSWERS: dict[str, Any] = {"kind": "answers", "measure": _measure, "tree": _tree}
_MATH_500_ROWS = {
    "Algebra": 124, "Counting & Probability": 38, "Geometry": 41, "Intermediate Algebra": 97, "Number Theory": 62,
    "Prealgebra": 82, "Precalculus": 56,
}  # fmt: skip
_MMLU_PRO_ROWS = {
    "biology": 717, "business": 789, "chemistry": 1132, "computer science": 410, "economics": 844, "engineering": 969,
    "health": 818, "history": 381, "law": 1101, "math": 1351, "other": 924, "philosophy": 499, "physics": 1299,
    "psychology": 798,
}  # fmt: skip

BENCHMARKS = (
    Benchmark(
        name="answer-gsm8k",
        what="word problems that the model answers; right by the final number",
        hub=gsm8k.SOURCE.hub,
        revision=gsm8k.SOURCE.revision,
        licence=gsm8k.SOURCE.licence,
        citation=gsm8k.SOURCE.citation,
        columns=gsm8k.SOURCE.columns,
        parse=_gsm8k,
        rows={"all": 1319},
        instruction=BOXED,
        **_ANSWERS,
    ),
    Benchmark(
        name="answer-math-500",
        what="competition problems that the model answers; right by mathematical equality; by subject and level",
        hub=math_500.SOURCE.hub,
        revision=math_500.SOURCE.revision,
        licence=math_500.SOURCE.licence,
        citation=math_500.SOURCE.citation,
        columns=(*math_500.SOURCE.columns, "subject", "level"),
        parse=_math_500,
        rows=_MATH_500_ROWS,
        instruction=BOXED,
        **_ANSWERS,
    ),
    Benchmark(
        name="answer-gpqa",
        what="four options, shuffled by the seed, of which the model names one; by domain",
        hub="Idavidrein/gpqa",
        revision="gpqa_diamond.csv: the columns of the card",
        licence="CC-BY-4.0",
        citation="arXiv 2311.12022",
        columns=("Record ID", "Question", *_GPQA_OPTIONS, "High-level domain"),
        parse=_gpqa(0),
        shuffled=_gpqa,
        split="gpqa_diamond",
        instruction=CHOICE,
        unverified="The rows could not be had here; the columns are those of the card and of code that reads them.",
        **_ANSWERS,
    ),
    Benchmark(
        name="answer-mmlu-pro",
        what="up to ten options of which the model names one, without examples; by category",
        hub="TIGER-Lab/MMLU-Pro",
        revision="the card's test split of 12,032 rows",
        licence="MIT",
        citation="arXiv 2406.01574",
        columns=("question_id", "question", "options", "answer", "category"),
        parse=_mmlu_pro,
        rows=_MMLU_PRO_ROWS,
        instruction=CHOICE,
        unverified="The rows could not be had here. The authors show five examples before each question and draw an "
        "option where none is named; here there are no examples, and no answer is wrong.",
        **_ANSWERS,
    ),
)
