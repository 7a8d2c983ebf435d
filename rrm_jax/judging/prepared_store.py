"""A verdict store as prepared data, ArrayRecord files that tfds reads, and back; its settings are among the facts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rrm_jax.data.prepared import VERDICTS, Prepared, write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import Vote, checked_text
from rrm_jax.errors import RrmError
from rrm_jax.judging.store import Asked, StoredVote, VoteLog, VoteRecord, digest


def prepare_votes(log: VoteLog, out: Path, facts: dict[str, Any], advance: Callable[[], None] = lambda: None) -> int:
    """Writes every vote of a store once, in its order, to the new directory `out`; returns how many.

    Raises RrmError as `write_prepared`, and for a vote whose text is none (a lone surrogate).
    """

    def votes() -> Iterator[Vote]:
        for vote in log.votes():
            checked_text(vote.record.text, f"text of vote {vote.key}")
            yield Vote(**vote.to_row())

    facts = facts | {"settings": log.settings}
    return write_prepared(out, RecordsBuilder, votes(), kind=VERDICTS, facts=facts, progress=advance)


def restore_votes(directory: Path, out: Path, advance: Callable[[], None] = lambda: None) -> int:
    """Writes the store again, which appears when it is complete; returns how many votes it has.

    Raises RrmError where the directory holds no verdicts, or is damaged.
    """
    prepared = Prepared(directory, verdicts=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with VoteLog(partial) as log:
            for name, settings in prepared.facts["settings"].items():
                if digest(settings) != name:
                    raise RrmError(f"{directory}: the settings {name} are damaged; prepare the votes again")
                log.declare(settings)
            for vote in _stored(prepared):
                log.add(vote)
                advance()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return len(prepared)


def _stored(prepared: Prepared) -> Iterator[StoredVote]:
    for vote in prepared:
        asked = None
        if vote.texts is not None:
            asked = Asked(vote.settings, vote.texts, vote.vote, vote.query, vote.shown)
        record = VoteRecord(
            vote.verdict, vote.text, vote.tokens, vote.finish_reason, vote.truncated_input, vote.forced,
            vote.probability,
        )  # fmt: skip
        yield StoredVote(vote.key, vote.settings, asked, record)
