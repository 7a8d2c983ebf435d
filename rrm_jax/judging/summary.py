"""What a file of judgments says: accuracy with its denominators, and the counts that belong beside it."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def in_both_orders(votes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a row's votes come in twos, in the order "12" and then "21", as `--order both` asks. Of few votes in
    random orders chance makes such rows, too."""
    return bool(votes) and len(votes) % 2 == 0 and all(
        vote["order"] == ("12", "21")[at % 2] for at, vote in enumerate(votes)
    )  # fmt: skip


@dataclasses.dataclass
class Summary:
    """Counts over rows of `Judgment.to_row`. A labelled pair without a winner has half credit."""

    pairs: int = 0
    no_winner: int = 0
    votes: int = 0
    invalid_votes: int = 0
    cut_off: int = 0  # completions that reached the token limit before they ended
    truncated_inputs: int = 0  # votes whose query or responses were cut to fit the prompt
    forced: int = 0  # verdicts asked for because the thinking budget was used up
    tokens: int = 0
    labelled: int = 0
    credit: float = 0.0
    both_orders: int = 0  # votes that were asked in both orders; of them:
    both_valid: int = 0  # have a valid verdict in both
    agreeing: int = 0  # name the same response in both

    def add(self, row: Mapping[str, Any], both_orders: bool) -> None:
        """`both_orders`: votes come in twos, in the order "12" and then "21"."""
        self.pairs += 1
        self.no_winner += row["winner"] is None
        votes = row["votes"]
        self.votes += len(votes)
        for vote in votes:
            self.invalid_votes += vote["verdict"] is None
            self.cut_off += vote["finish_reason"] == "length"
            self.truncated_inputs += vote["truncated_input"]
            self.forced += vote.get("forced", False)  # rows of earlier versions lack it
            self.tokens += vote["tokens"]
        if "label" in row:
            self.labelled += 1
            self.credit += 0.5 if row["winner"] is None else float(row["correct"])
        if both_orders:
            for given, turned in zip(votes[::2], votes[1::2], strict=True):
                self.both_orders += 1
                if None not in (given["verdict"], turned["verdict"]):
                    self.both_valid += 1
                    self.agreeing += given["verdict"] == turned["verdict"]

    def lines(self) -> list[str]:
        """The report, one fact a line."""
        lines = [
            f"pairs judged: {self.pairs} (without a winner: {self.no_winner})",
            f"votes: {self.votes} (invalid: {self.invalid_votes}, cut off at the token limit: {self.cut_off}, "
            f"with inputs truncated: {self.truncated_inputs}, forced by the thinking budget: {self.forced}); "
            f"{self.tokens} tokens",
        ]
        if self.labelled:
            lines.append(
                f"accuracy: {self.credit / self.labelled:.4f} = {self.credit:g} / {self.labelled} labelled pairs "
                "(no winner counts 0.5)"
            )
        if self.both_orders:
            lines.append(
                f"order consistency: {self.agreeing / self.both_orders:.4f} = {self.agreeing} / {self.both_orders} "
                f"votes name the same response in both orders (valid in both: {self.both_valid})"
            )
        return lines


def summarise(rows: Iterable[Mapping[str, Any]], both_orders: bool = False) -> Summary:
    """See `Summary.add`."""
    summary = Summary()
    for row in rows:
        summary.add(row, both_orders)
    return summary
