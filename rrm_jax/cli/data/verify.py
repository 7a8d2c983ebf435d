"""`rrm data verify`: which responses come to the answer that is known to be right."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rrm_jax.cli.options import Strict, with_options

if TYPE_CHECKING:
    from rrm_jax.data.records import Candidates, Question
    from rrm_jax.data.verifier_pool import VerifierPool
    from rrm_jax.data.verifiers import Outcome


@dataclasses.dataclass(frozen=True)
class VerifyingOptions:
    """How responses are verified."""

    verifier: Annotated[
        str,
        typer.Option(
            help="math: symbolic equality; choice: the letter; exact; numeric, or numeric:TOLERANCE (relative; 1e-4); "
            "auto: by the look of the right answer. A question's own `verifier` comes first."
        ),
    ] = "auto"
    workers: Annotated[int, typer.Option(min=1, help="Processes that verify.")] = 2
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Processor time for a response, after which it is stopped.")
    ] = 10.0
    memory: Annotated[float, typer.Option(min=0.25, help="GiB that a process may have.")] = 2.0


def open_pool(options: VerifyingOptions, checked: bool = True) -> "VerifierPool":
    """With `checked`, RrmError for a verifier that does not exist."""
    from rrm_jax.data.verifier_pool import VerifierPool
    from rrm_jax.data.verifiers import resolve

    if checked:
        resolve(options.verifier)
    return VerifierPool(options.workers, options.seconds, int(options.memory * 2**30))


def settings_of(options: VerifyingOptions) -> dict[str, Any]:
    """What outcomes depend on."""
    return {name: getattr(options, name) for name in ("verifier", "seconds", "memory")}


@with_options
def command(
    candidates: Annotated[
        Path, typer.Option(help="JSONL: id, query, responses; answer, unless --questions has it; perhaps correct.")
    ],
    out: Annotated[Path, typer.Option(help="JSONL of the same rows, marked. OUT.run.json stands beside.")],
    verifying: VerifyingOptions,
    questions: Annotated[
        Path | None,
        typer.Option(help="JSONL: id, query, answer; or what rrm data prepare made. By id.", show_default=False),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Disagreements with `correct` that are printed.")] = 20,
    strict: Strict = False,
) -> None:
    """Mark responses by the answers that are known to be right.

    A response's final answer is the last \\boxed{}, or what follows the last ####, A:, Answer: or "the answer is"; its
    thinking is left out. Rows of OUT are those of CANDIDATES with `answers`, the final answers (null: none), `outcomes`
    (right, wrong, no answer, no gold, unreadable gold, timed out, crashed), and `correct`, a list of booleans, or null
    where an outcome is none. Where the rows had `correct` already, the agreement with it is printed, and the first
    disagreements.

    Verifiers run in processes with limits of time and memory, so that no response can stop the others. Only the last
    100,000 characters of a response are looked at. OUT is written in one piece at the end. Malformed rows are reported
    and passed over (exit code 1).

    \b
    Example:
      rrm data verify --candidates answers.jsonl --questions questions.jsonl --out marked.jsonl
      rrm data verify --candidates answers.jsonl --out marked.jsonl --verifier numeric:0.01
    """
    from rrm_jax.cli.loading import Progress, check_rows, exit_if_skipped
    from rrm_jax.data.jsonl import Reader
    from rrm_jax.data.prepared import content_file
    from rrm_jax.data.records import Unique
    from rrm_jax.data.whole_files import write_jsonl
    from rrm_jax.provenance import earlier_results, pinned, refuse_inputs_as_outputs

    pool = open_pool(verifying)
    run = out.with_name(out.name + ".run.json")
    refuse_inputs_as_outputs((out, run), (candidates, questions))
    earlier_results([out], run)
    known, skipped = read_questions(questions, strict) if questions else ({}, 0)
    parse, ids = _parser(known), list[str]()
    skipped += check_rows(candidates, Unique(parse), strict, lambda row: ids.append(row.id))
    inputs: dict[str, str | Path] = {"candidates": candidates}
    if questions is not None:
        inputs["questions"] = content_file(questions)
    tally, progress = Tally(show), Progress("verifying", len(ids))

    def marked() -> Iterator[dict[str, Any]]:
        rows = (row for _, row in Reader(candidates, Unique(parse)))
        for row, outcomes in verified(rows, verifying.verifier, pool):
            tally.add(row, outcomes)
            progress.advance()
            yield row.marked(outcomes)

    with pinned(run, config=settings_of(verifying), seed=None, inputs=inputs), pool, progress:
        write_jsonl(out, marked())
    print("\n".join(tally.lines()))
    exit_if_skipped(skipped)


@dataclasses.dataclass(frozen=True)
class Answered:
    """A row of candidates, whole, and its question."""

    id: str
    row: dict[str, Any]
    candidates: "Candidates"
    question: "Question"

    def marked(self, outcomes: "list[Outcome]") -> dict[str, Any]:
        """The row with `answers`, `outcomes` and `correct`, which is null where one of them is not known."""
        from rrm_jax.data.answers import final_answer, strip_thinking

        correct = [outcome.correct for outcome in outcomes]
        answers = [final_answer(strip_thinking(response)) for response in self.candidates.responses]
        return self.row | {
            "answers": answers,
            "outcomes": [outcome.value for outcome in outcomes],
            "correct": None if None in correct else correct,
        }


def _parser(known: "Mapping[str, Question]"):
    from rrm_jax.data.jsonl import RowError
    from rrm_jax.data.records import parse_candidates

    def parse(row: dict[str, Any]) -> Answered:
        candidates = parse_candidates(row)
        question = known.get(candidates.id) or parse_verifiable(row)
        if question.query != candidates.query:
            raise RowError(f"the query is not that of question {candidates.id!r}")
        return Answered(candidates.id, row, candidates, question)

    return parse


def parse_verifiable(row: dict[str, Any]) -> "Question":
    """A question whose verifier exists. Raises RowError."""
    from rrm_jax.data.jsonl import RowError
    from rrm_jax.data.records import parse_question
    from rrm_jax.data.verifiers import resolve
    from rrm_jax.errors import RrmError

    question = parse_question(row)
    try:
        resolve(question.verifier or "auto")
    except RrmError as error:
        raise RowError(str(error)) from None
    return question


def read_questions(path: Path, strict: bool, verifiable: bool = True) -> "tuple[dict[str, Question], int]":
    """The questions of a JSONL file or of a prepared data set, by id, and how many rows cannot be used; `verifiable`:
    among these are those whose verifier does not exist."""
    from rrm_jax.cli.loading import check_rows
    from rrm_jax.data.prepared import is_prepared, open_prepared
    from rrm_jax.data.records import Unique, parse_question
    from rrm_jax.errors import RrmError

    if is_prepared(path) and (kind := open_prepared(path).kind) != "questions":  # pairs have all that a question needs
        raise RrmError(f"{path} holds {kind}, not questions")
    questions: dict[str, Question] = {}
    parse = parse_verifiable if verifiable else parse_question
    skipped = check_rows(path, Unique(parse), strict, lambda row: questions.update({row.id: row}))
    return questions, skipped


def verified(rows: Iterable[Answered], rule: str, pool: "VerifierPool") -> "Iterator[tuple[Answered, list[Outcome]]]":
    """Each row with the outcomes of its responses."""
    from rrm_jax.data.verifier_pool import Job
    from rrm_jax.data.verifiers import Outcome

    rows, ahead = itertools.tee(rows)
    outcomes = pool.verify_all(
        Job(response, row.question.answer, row.question.verifier or rule)
        for row in ahead
        if row.question.answer
        for response in row.candidates.responses
    )
    for row in rows:
        count = len(row.candidates.responses)
        yield row, list(itertools.islice(outcomes, count)) if row.question.answer else [Outcome.NO_GOLD] * count


class Tally:
    """Counts outcomes, and how they agree with the `correct` of the rows."""

    def __init__(self, show: int):
        self._show, self._outcomes = show, collections.Counter[str]()
        self._compared = self._agree = self._undecided = self._rows = 0
        self._disagreements: list[str] = []

    def add(self, row: Answered, outcomes: "list[Outcome]") -> None:
        """`outcomes` are those of the row's responses, in their order."""
        from rrm_jax.data.answers import final_answer, strip_thinking

        self._rows += 1
        self._outcomes.update(outcomes)
        for at, (outcome, correct) in enumerate(zip(outcomes, row.candidates.correct or (), strict=False)):
            self._compared += 1
            self._undecided += outcome.correct is None
            self._agree += outcome.correct == correct
            if outcome.correct != correct and len(self._disagreements) < self._show:
                answer = final_answer(strip_thinking(row.candidates.responses[at]))
                said = f"{row.question.answer!r} is right, it ends with {answer!r}: {outcome}, given as {correct}"
                self._disagreements.append(f"id {row.id!r}, response {at}: {said}")

    def lines(self) -> list[str]:
        """The report, one fact a line."""
        total = self._outcomes.total()
        parts = (f"{name} {count} ({100 * count / total:.1f} %)" for name, count in self._outcomes.most_common())
        lines = [f"responses: {total} of {self._rows} rows: {', '.join(parts)}"]
        if self._compared:
            differ = self._compared - self._agree
            lines.append(
                f"agreement with `correct`: {100 * self._agree / self._compared:.2f} % = {self._agree} of "
                f"{self._compared}; {differ} differ, {self._undecided} of them undecided here"
            )
            lines += self._disagreements
            if differ > len(self._disagreements):
                lines.append(f"and {differ - len(self._disagreements)} more")
        return lines
