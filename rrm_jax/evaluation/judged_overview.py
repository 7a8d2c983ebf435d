"""What a file of judgments holds."""

import collections
from typing import Any

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.overview import Lengths
from rrm_jax.evaluation.ranking_report import position_line
from rrm_jax.judging.summary import Summary, in_both_orders


class Judged:
    """Counts over rows of `rrm judge`."""

    kind = "judged"

    def __init__(self):
        self.rows, self.summary = 0, Summary()
        self.winners: collections.Counter[int | None] = collections.Counter()
        self.tokens = Lengths()
        self._first = self._valid = 0

    def add(self, row: dict[str, Any]) -> None:
        """A row as `rrm judge` writes it. Whether both orders were asked is seen from the orders of its votes."""
        votes = row["votes"]
        self.rows += 1
        self.summary.add(row, both_orders=in_both_orders(votes))
        self.winners[row["winner"]] += 1
        for vote in votes:
            self.tokens.add(vote["tokens"])
            self._valid += vote["verdict"] is not None
            self._first += vote["verdict"] == (1 if vote["order"] == "12" else 2)

    def lines(self) -> list[str]:
        """Winners, accuracy where labels are known, and how often the response shown first won."""
        won = self.winners
        lines = [f"winners: response_1 {won[1]}, response_2 {won[2]}, none {won[None]}", *self.summary.lines()]
        return [*lines, position_line(self._first, self._valid)] if self._valid else lines


def parse_judged(row: dict[str, Any]) -> dict[str, Any]:
    """A row as `Judgment.to_row` makes it, checked as far as it is shown. Raises RowError."""
    wanted: dict[str, tuple[Any, ...]] = {"verdict": (1, 2, None), "order": ("12", "21")}
    votes = row.get("votes")
    if (
        not isinstance(row.get("id"), (str, int))
        or row.get("winner") not in (1, 2, None)
        or not isinstance(votes, list)
    ):
        raise RowError("not a judgment: id, winner (1, 2 or null) and votes (a list) are needed")
    if "label" in row and not isinstance(row.get("correct"), (bool, type(None))):
        raise RowError("field 'correct' must be true, false or null beside a label")
    for vote in votes:
        fields = vote if isinstance(vote, dict) else {}
        typed = [("tokens", int), ("text", str), ("finish_reason", str), ("truncated_input", bool)]
        good = all(fields.get(name, "") in values for name, values in wanted.items())
        if not good or not all(isinstance(fields.get(name), of) for name, of in typed) or fields["tokens"] < 0:
            raise RowError("field 'votes' must hold votes as rrm judge writes them")
    return row
