"""`rrm data show`'s page: what overviews say, and lengths as bars, for rich to print.

Every text of the data is untrusted: it is printed without what a terminal or a browser would obey, and never as markup.
"""

import collections
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.jsonl import RowError
from rrm_jax.data.overview import Lengths, Overview
from rrm_jax.data.prepared import Record
from rrm_jax.data.records import Candidates, Pair
from rrm_jax.evaluation.labelling_report import share
from rrm_jax.evaluation.prompt_view import View, print_example
from rrm_jax.evaluation.ranking_report import position_line, shown
from rrm_jax.judging.summary import Summary

_SOURCES_SHOWN = 20
_BAR = 16  # columns of the longest bar
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<title>rrm data show</title>
<style>{stylesheet}body{{margin:2rem}}pre{{font:13px/1.4 Menlo,Consolas,monospace;white-space:pre-wrap;
overflow-wrap:anywhere}}</style></head><body><pre>{code}</pre></body></html>
"""


class Judged:
    """Counts over rows of `rrm judge`."""

    kind = "judged"

    def __init__(self):
        self.rows, self.summary = 0, Summary()
        self.winners: collections.Counter[int | None] = collections.Counter()
        self.tokens = Lengths()
        self._first = self._valid = 0

    def add(self, row: dict[str, Any]) -> None:
        votes = row["votes"]
        both = bool(votes) and len(votes) % 2 == 0 and all(
            vote["order"] == ("12", "21")[at % 2] for at, vote in enumerate(votes)
        )  # fmt: skip
        self.rows += 1
        self.summary.add(row, both_orders=both)
        self.winners[row["winner"]] += 1
        for vote in votes:
            self.tokens.add(vote["tokens"])
            self._valid += vote["verdict"] is not None
            self._first += vote["verdict"] == (1 if vote["order"] == "12" else 2)

    def lines(self) -> list[str]:
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


class Tokens:
    """Lengths in tokens by field, whole prompts of pairs before they are cut, and how many of these are cut to fit."""

    def __init__(self, view: View):
        self.view = view
        self.fields: dict[str, Lengths] = collections.defaultdict(Lengths)
        self.rows = self.prompts = self.cut = 0

    def add(self, record: Record) -> None:
        self.rows += 1
        if isinstance(record, Pair):
            fitted = self.view.fit(record)
            for field, length in zip(("query", "response_1", "response_2"), fitted.lengths, strict=True):
                self.fields[field].add(length)
            self.fields["whole prompt"].add(fitted.uncut)
            self.prompts, self.cut = self.prompts + 1, self.cut + fitted.truncated
            return
        encode = self.view.tokenizer.encode_text
        self.fields["query"].add(len(encode(record.query)))
        for response in record.responses if isinstance(record, Candidates) else ():
            self.fields["responses"].add(len(encode(strip_thinking(response))))

    def cut_line(self) -> str:
        most = self.view.max_prompt_tokens
        return f"cut to fit {most} tokens: {share(self.cut, self.prompts)} of {self.prompts} prompts"


@dataclasses.dataclass
class Part:
    """A file or a prepared data set: what it holds, its tokens where they were counted, and rows to be shown."""

    name: str
    overview: Overview | Judged
    tokens: Tokens | None = None
    examples: Sequence[Any] = ()
    weight: float = 1.0
    skipped: int = 0


def make_console(record: bool = False) -> Console:
    """Prints text as it is, never as markup; `record` keeps it for `as_html`."""
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    return Console(record=record, width=None if sys.stdout.isatty() else 120, **plain)


def as_html(console: Console) -> str:
    """What has been printed on a console that records, as a page that can neither run nor load anything."""
    return console.export_html(code_format=_PAGE, inline_styles=True)


def print_page(console: Console, part: Part, seed: int, most: int) -> None:
    """All of a part: counts, lengths, then examples with `most` characters of a text."""
    overview, tokens = part.overview, part.tokens
    print_part(console, part, seed)
    if isinstance(overview, Judged):
        print_lengths(console, "tokens", f"{len(overview.tokens)} votes", {"vote": overview.tokens})
    elif tokens is None:
        print_lengths(console, "characters", f"all {overview.rows} rows", overview.characters)
    else:
        of = "all" if tokens.rows == overview.rows else "a sample of"
        print_lengths(console, "tokens", f"{of} {tokens.rows} rows", tokens.fields)
        if tokens.prompts:
            console.print(tokens.cut_line())
    for record in part.examples:
        console.print()
        print_example(console, record, tokens.view if tokens else None, seed, most)
    console.print()


def print_part(console: Console, part: Part, seed: int) -> None:
    """Counts, labels and balance; lengths come by `print_lengths`."""
    overview = part.overview
    console.print(Text(f"{shown(part.name, 200)}: {overview.kind}", style="bold"))
    malformed = f", {part.skipped} malformed" if part.skipped else ""
    console.print(f"rows: {overview.rows}{malformed}")
    for line in overview.lines() if isinstance(overview, Judged) else _facts(overview, seed):
        console.print(Text(line))
    if isinstance(overview, Overview) and (len(overview.sources) > 1 or any(overview.sources)):
        console.print(_sources(overview))


def _facts(overview: Overview, seed: int) -> list[str]:
    rows = overview.rows
    lines = [f"different queries: {overview.queries}; rows all of whose texts were there before: {overview.duplicates}"]
    blank = [f"{field} {count}" for field, count in overview.empty.items() if count]
    lines.append(f"empty: {', '.join(blank) if blank else 'none'}")
    if overview.kind == "pairs":
        labels = overview.labels
        labelled = labels[1] + labels[2]
        lines.append(f"both responses the same: {share(overview.identical, rows)}")
        lines.append(
            f"labels: response_1 {share(labels[1], rows)}, response_2 {share(labels[2], rows)}, "
            f"none {share(labels[None], rows)}"
        )
        if labelled:
            first = overview.first_in_stream(seed)
            lines.append(
                f"as a trainer shows them (seed {seed}, first epoch): the better response first in "
                f"{share(first, labelled)} of {labelled}"
            )
            lengths = ", ".join(
                f"{how} {share(overview.better[how], labelled)}" for how in ("longer", "shorter", "as long")
            )
            lines.append(f"the better response is, in characters: {lengths}")
    if overview.kind == "candidates":
        counts = ", ".join(f"{count} × {size}" for size, count in sorted(overview.responses.items()))
        right = overview.correct
        lines += [
            f"responses a row (rows × responses): {counts}",
            f"responses: right {right[True]}, wrong {right[False]}, not known {right[None]}; "
            f"the same as another one of their row: {overview.identical}",
        ]
    if overview.kind == "questions":
        verifiers = ", ".join(
            f"{shown(name, 40) or '(none named)'} {n}" for name, n in overview.verifiers.most_common(20)
        )
        lines += [f"with an answer: {share(overview.answers, rows)}", f"verifiers: {verifiers}"]
    return lines


def _sources(overview: Overview) -> Table:
    table = _table("source", "rows", "share")
    for name, count in overview.sources.most_common(_SOURCES_SHOWN):
        table.add_row(Text(shown(name, 60) or "(no source)"), str(count), f"{100 * count / overview.rows:.1f} %")
    if more := overview.sources.most_common()[_SOURCES_SHOWN:]:
        rest = sum(count for _, count in more)
        table.add_row(f"{len(more)} smaller sources", str(rest), f"{100 * rest / overview.rows:.1f} %")
    return table


def print_mix(console: Console, parts: Sequence[Part]) -> None:
    """What several parts come to together when they are drawn from by their weights."""
    rows, weights = sum(part.overview.rows for part in parts), sum(part.weight for part in parts)
    console.print(Text("the mix", style="bold"))
    table = _table(
        "part", "weight", "rows", "in parts before", "of the rows", "of the draws", f"passes in {rows} draws"
    )
    before: list[Overview] = []
    for part in parts:
        drawn, overview = part.weight / weights, part.overview
        again = "–"
        if isinstance(overview, Overview):
            again = str(overview.shared(*before))
            before.append(overview)
        table.add_row(
            _end(part.name, 40), f"{part.weight:g}", str(overview.rows), again,
            f"{100 * overview.rows / rows:.1f} %", f"{100 * drawn:.1f} %", f"{drawn * rows / overview.rows:.2f}",
        )  # fmt: skip
    console.print(table)
    if len(before) == len(parts):
        by_source: dict[str, float] = collections.defaultdict(float)
        for part, overview in zip(parts, before, strict=True):
            for name, count in overview.sources.items():
                by_source[name] += part.weight / weights * count / overview.rows
        table = _table("source", "of the draws")
        for name, drawn in sorted(by_source.items(), key=lambda item: -item[1])[:_SOURCES_SHOWN]:
            table.add_row(Text(shown(name, 60) or "(no source)"), f"{100 * drawn:.1f} %")
        console.print(table)


def print_lengths(console: Console, unit: str, of: str, fields: Mapping[str, Lengths]) -> None:
    """Percentiles, and bars over ranges that double."""
    present = {name: lengths for name, lengths in fields.items() if len(lengths)}
    if not present:
        return
    summary = _table(f"{unit} ({of})", "p50", "p90", "p99", "max")
    for name, lengths in present.items():
        summary.add_row(name, *(str(value) for value in lengths.percentiles(50, 90, 99, 100)))
    console.print(summary)
    bins = {name: {least: (most, count) for least, most, count in made.bins()} for name, made in present.items()}
    ranges = sorted({(least, most) for made in bins.values() for least, (most, _) in made.items()})
    bars = _table(unit, *present)
    for column in bars.columns[1:]:
        column.justify = "left"
    for least, most in ranges:
        cells = [_bar(made.get(least, (0, 0))[1], max(count for _, count in made.values())) for made in bins.values()]
        bars.add_row(f"{least}–{most}" if most > least else str(least), *cells)
    console.print(bars)


def _bar(count: int, largest: int) -> str:
    return f"{'█' * -(-count * _BAR // largest)} {count}" if count else ""


def _end(name: str, width: int) -> Text:
    """A path's end, which tells files of one folder apart."""
    return Text(shown(name if len(name) <= width else "…" + name[1 - width :], width))


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
