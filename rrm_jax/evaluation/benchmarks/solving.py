"""Responses to questions → what became of each, by the verifier."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rrm_jax.data.answers import LONGEST_ANSWER, final_answer
from rrm_jax.data.records import Question
from rrm_jax.data.samples import UNFINISHED, Sample, Source, by_question
from rrm_jax.data.verifier_pool import Job, VerifierPool
from rrm_jax.data.verifiers import Outcome as Verified
from rrm_jax.data.verifiers import chosen_letter
from rrm_jax.evaluation.benchmarks.base import Item, Tries, Try
from rrm_jax.evaluation.benchmarks.judging import Outcome
from rrm_jax.evaluation.benchmarks.verdict_files import question_digest


def questions_of(items: Sequence[Item]) -> dict[str, Question]:
    """The items as questions to be answered, by their ids."""
    return {item.id: Question(item.id, item.query, item.gold, item.group, item.verifier) for item in items}


def solve_items(
    benchmark: str, items: Sequence[Item], source: Source, samples: int | None, pool: VerifierPool, *,
    keep: Callable[[dict[str, Any]], None] = lambda row: None, advance: Callable[[], None] = lambda: None,
) -> Outcome:  # fmt: skip
    """What became of the responses that `source` has to the items, of the first `samples` of each (None: of all).

    `keep` is given a row an item, as `verdict_files.tries_of_rows` reads it; `advance` is called for every item. An
    item with fewer responses is not counted.
    """
    questions = questions_of(items)
    first, second = itertools.tee(_responses(questions, source, samples))
    outcomes = pool.verify_all(
        Job(text, question.answer or "", question.verifier) for question, found in second for text, _ in found
    )
    verdicts: dict[str, Tries] = {}
    not_judged: dict[str, str] = {}
    for (question, found), item in zip(first, items, strict=True):
        ended = zip(found, itertools.islice(outcomes, len(found)), strict=True)
        tries = tuple(_try(text, one, outcome, question.verifier) for (text, one), outcome in ended)
        advance()
        if len(tries) < (samples or 1):
            not_judged[item.id] = f"{len(tries)} of {samples or 1} response(s)"
            continue
        verdicts[item.id] = Tries(tries)
        row = {"id": item.id, "benchmark": benchmark, "content": question_digest(item)}
        keep(row | {"samples": [dataclasses.asdict(one) for one in tries]})
    return Outcome(verdicts, not_judged)


def _responses(
    questions: Mapping[str, Question], source: Source, samples: int | None
) -> Iterator[tuple[Question, list[tuple[str, Sample]]]]:
    """Each question with its responses, "" where there is none but thinking that was cut off."""
    for question, found in by_question(questions, [source]):
        texts = []
        for _, sample, text in found[:samples]:
            response, unusable = source.response(text, sample.finish_reason)
            texts.append(("" if unusable == UNFINISHED else response, sample))
        yield question, texts


def _try(text: str, sample: Sample, outcome: Verified, verifier: str) -> Try:
    answer = chosen_letter(text) if verifier == "choice" else final_answer(text)
    answer = None if answer is None else answer[:LONGEST_ANSWER]
    return Try(outcome, answer, sample.tokens, sample.finish_reason == "length", sample.truncated_input)
