"""Pairs of a right and a wrong response to the same question: which of many verified samples, and what became of all.

The paper's verifiable data: several samples a question, a rule marks them, one pair of each question that has both.
"""

import collections
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rrm_jax.data.records import Pair, Question
from rrm_jax.data.samples import Sample, Source
from rrm_jax.data.verifier_pool import Job, VerifierPool
from rrm_jax.data.verifiers import Outcome

GIVEN = "given"
"""The rule that believes the `correct` of candidates."""

_SOURCES_SHOWN = 20


class Marked(NamedTuple):
    """A sample of source number `source`, and what became of it: an Outcome, or why it was not verified."""

    source: int
    sample: Sample
    fate: str


def mark_samples(
    questions: Mapping[str, Question], sources: Sequence[Source], rule: str, pool: VerifierPool
) -> Iterator[Marked]:
    """Marks every sample of the sources, in order; those of other questions are passed over.

    A question's own verifier comes before `rule`. Only a response that is finished is verified.
    """

    def drawn() -> Iterator[tuple[int, Sample, Job | str]]:
        for number, source in enumerate(sources):
            for sample, text in source.samples():
                if question := questions.get(sample.question):
                    yield number, sample, _job(question, source, sample, text, rule)

    known, jobs = itertools.tee(drawn())
    outcomes = pool.verify_all(job for _, _, job in jobs if isinstance(job, Job))
    for number, sample, job in known:
        yield Marked(number, sample, str(next(outcomes)) if isinstance(job, Job) else job)


def _job(question: Question, source: Source, sample: Sample, text: str, rule: str) -> Job | str:
    response, unusable = source.response(text, sample.finish_reason)
    if unusable:
        return unusable
    if rule == GIVEN:
        return Outcome.NO_GOLD if sample.correct is None else Outcome.of(sample.correct)
    if not question.answer:
        return Outcome.NO_GOLD
    return Job(response, question.answer, question.verifier or rule) if response else Outcome.NO_ANSWER


def choose(marked: Iterable[Marked], names: Sequence[str], seed: int) -> tuple[Marked, Marked] | None:
    """One right and one wrong sample of a question, whichever sources they are from; None where one is missing.

    The draw is addressed by (seed, question, source's name, sample), so it does not depend on the order of samples.
    """

    def ticket(one: Marked) -> bytes:
        address = "\x1f".join(("pair", str(seed), one.sample.question, names[one.source], str(one.sample.number)))
        return hashlib.sha256(address.encode("utf-8", "surrogatepass")).digest()

    both = [[one for one in marked if one.fate == fate] for fate in (Outcome.RIGHT, Outcome.WRONG)]
    return (min(both[0], key=ticket), min(both[1], key=ticket)) if all(both) else None


def reason(marked: Sequence[Marked]) -> str:
    """Why a question has no pair."""
    fates = collections.Counter(one.fate for one in marked)
    if fates[Outcome.RIGHT] or fates[Outcome.WRONG]:
        return "none wrong" if fates[Outcome.RIGHT] else "none right"
    return min(fates, key=lambda fate: (-fates[fate], fate)) if fates else "no samples"


class Synthesis:
    """Collects what became of samples, then makes the pairs and the report."""

    def __init__(self, questions: Mapping[str, Question], sources: Sequence[Source], seed: int):
        self.questions, self.sources, self.seed = questions, sources, seed
        self._marked: dict[str, list[Marked]] = collections.defaultdict(list)
        self._fates = [collections.Counter[str]() for _ in sources]
        self._reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def add(self, one: Marked) -> None:
        """A sample with what became of it; each once, in any order."""
        self._marked[one.sample.question].append(one)
        self._fates[one.source][one.fate] += 1

    def pairs(self) -> Iterator[tuple[Pair, dict[str, Any]]]:
        """The pairs, in the order of the questions, and where each pair's responses are from. Response 1 is right.

        The report is complete when the last one has been taken.
        """
        names = [source.name for source in self.sources]
        self._reasons.clear()
        for question in self.questions.values():
            marked = self._marked.get(question.id, [])
            chosen = choose(marked, names, self.seed)
            self._reasons[question.source]["kept" if chosen else reason(marked)] += 1
            if chosen:
                right, wrong = (self._response(one) for one in chosen)
                origin = {
                    "generators": [self.sources[one.source].title for one in chosen],
                    "samples": [one.sample.number for one in chosen],
                    "answer": question.answer,
                }
                yield Pair(question.id, question.query, right, wrong, 1, question.source), origin

    def _response(self, one: Marked) -> str:
        source = self.sources[one.source]
        return source.response(source.text(one.sample), one.sample.finish_reason)[0]

    def report(self) -> dict[str, Any]:
        """Counts, for a machine."""
        return {
            "questions": sum(self._reasons.values(), collections.Counter()),
            "by_source": dict(self._reasons),
            "generators": {
                source.name: {"title": source.title, "samples": fates}
                for source, fates in zip(self.sources, self._fates, strict=True)
            },
        }

    def lines(self) -> list[str]:
        """The report, one fact a line."""
        total = sum(self._reasons.values(), collections.Counter())
        lines = [f"questions kept: {_share(total)}"]
        if others := {why: count for why, count in total.most_common() if why != "kept"}:
            lines.append("not kept: " + ", ".join(f"{why} {count}" for why, count in others.items()))
        if any(self._reasons):
            by_size = sorted(self._reasons.items(), key=lambda item: (-item[1].total(), item[0]))
            lines += [f"kept of {name or '(no source)'}: {_share(of)}" for name, of in by_size[:_SOURCES_SHOWN]]
            if more := by_size[_SOURCES_SHOWN:]:
                lines.append(
                    f"kept of {len(more)} smaller sources: {_share(sum((of for _, of in more), collections.Counter()))}"
                )
        for source, fates in zip(self.sources, self._fates, strict=True):
            right, count = fates[Outcome.RIGHT], fates.total()
            rest = "".join(f", {fate} {number}" for fate, number in fates.most_common() if fate != Outcome.RIGHT)
            lines.append(
                f"samples of {source.title}: {count}"
                + (f", right {right} ({100 * right / count:.1f} %){rest}" if count else "")
            )
        return lines


def _share(counts: collections.Counter[str]) -> str:
    kept, total = counts["kept"], counts.total()
    return f"{kept} of {total} ({100 * kept / total:.1f} %)" if total else "0 of 0"
