"""`rrm data show`'s page: what overviews say, and lengths as bars, for rich to print.

Every text of the data is untrusted: it is printed without what a terminal or a browser would obey, and never as markup.
"""

import collections
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.overview import Lengths, Overview
from rrm_jax.data.prepared import Record
from rrm_jax.data.records import Candidates, Pair
from rrm_jax.evaluation.judged_overview import Judged
from rrm_jax.evaluation.labelling_report import share
from rrm_jax.evaluation.prompt_view import Place, View, print_example
from rrm_jax.evaluation.ranking_report import shown

SOURCES_SHOWN = 20
_BAR = 16  # columns of the longest bar
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<title>rrm data show</title>
<style>{stylesheet}body{{margin:2rem}}pre{{font:13px/1.4 Menlo,Consolas,monospace;white-space:pre-wrap;
overflow-wrap:anywhere}}</style></head><body><pre>{code}</pre></body></html>
"""


class Tokens:
    """Lengths in tokens by field, whole prompts of pairs before they are cut, and how many of these are cut to fit."""

    def __init__(self, view: View):
        self.view = view
        self.fields: dict[str, Lengths] = collections.defaultdict(Lengths)
        self.rows = self.prompts = self.cut = 0

    def add(self, record: Record) -> None:
        """A pair's prompt is measured as the judge would be shown it; responses without their thinking."""
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
        """How many prompts do not fit, as a line for people."""
        most = self.view.max_prompt_tokens
        return f"cut to fit {most} tokens: {share(self.cut, self.prompts)} of {self.prompts} prompts"


class Near(NamedTuple):
    """How many rows are near duplicates of earlier ones, from which similarity on."""

    threshold: float
    rows: int


@dataclasses.dataclass
class Part:
    """A file or a prepared data set: what it holds, its tokens where they were counted, and rows to be shown."""

    name: str
    overview: Overview | Judged
    tokens: Tokens | None = None
    examples: Sequence[Any] = ()
    weight: float = 1.0
    skipped: int = 0
    near: Near | None = None


def make_console(record: bool = False) -> Console:
    """Prints text as it is, never as markup; `record` keeps it for `as_html`."""
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    return Console(record=record, width=None if sys.stdout.isatty() else 120, **plain)


def as_html(console: Console) -> str:
    """What has been printed on a console that records, as a page that can neither run nor load anything."""
    return console.export_html(code_format=_PAGE, inline_styles=True)


def print_page(console: Console, part: Part, place: Place, most: int) -> None:
    """All of a part: counts, lengths, then examples with `most` characters of a text."""
    overview, tokens = part.overview, part.tokens
    print_part(console, part, place)
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
        print_example(console, record, tokens.view if tokens else None, place, most)
    console.print()


def print_part(console: Console, part: Part, place: Place) -> None:
    """Counts, labels and balance; lengths come by `print_lengths`."""
    overview = part.overview
    console.print(Text(f"{shown(part.name, 200)}: {overview.kind}", style="bold"))
    malformed = f", {part.skipped} malformed" if part.skipped else ""
    console.print(f"rows: {overview.rows}{malformed}")
    for line in overview.lines() if isinstance(overview, Judged) else _facts(overview, place):
        console.print(Text(line))
    if part.near is not None:
        console.print(
            f"near duplicates of an earlier row (similarity {part.near.threshold:g} or more): "
            f"about {share(part.near.rows, overview.rows)}"
        )
    if isinstance(overview, Overview) and (len(overview.sources) > 1 or any(overview.sources)):
        console.print(_sources(overview))


def _facts(overview: Overview, place: Place) -> list[str]:
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
            if place.parts == 1:  # else it is the mix's to say
                first = overview.first_in_stream(place.seed)
                lines.append(
                    f"as a trainer shows them (seed {place.seed}, first epoch): the better response first in "
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
    table = make_table("source", "rows", "share")
    for name, count in overview.sources.most_common(SOURCES_SHOWN):
        table.add_row(Text(shown(name, 60) or "(no source)"), str(count), f"{100 * count / overview.rows:.1f} %")
    if more := overview.sources.most_common()[SOURCES_SHOWN:]:
        rest = sum(count for _, count in more)
        table.add_row(f"{len(more)} smaller sources", str(rest), f"{100 * rest / overview.rows:.1f} %")
    return table


def print_lengths(console: Console, unit: str, of: str, fields: Mapping[str, Lengths]) -> None:
    """Percentiles, and bars over ranges that double."""
    present = {name: lengths for name, lengths in fields.items() if len(lengths)}
    if not present:
        return
    summary = make_table(f"{unit} ({of})", "p50", "p90", "p99", "max")
    for name, lengths in present.items():
        summary.add_row(name, *(str(value) for value in lengths.percentiles(50, 90, 99, 100)))
    console.print(summary)
    bins = {name: {least: (most, count) for least, most, count in made.bins()} for name, made in present.items()}
    ranges = sorted({(least, most) for made in bins.values() for least, (most, _) in made.items()})
    bars = make_table(unit, *present)
    bars.columns[0].no_wrap = True
    room = (console.width - 12) // len(present) - 10  # for the ranges, for a count beside each bar and between columns
    for column in bars.columns[1:]:
        column.justify = "left"
    for least, most in ranges:
        cells = [
            _bar(made.get(least, (0, 0))[1], max(count for _, count in made.values()), min(_BAR, max(1, room)))
            for made in bins.values()
        ]
        bars.add_row(f"{least}–{most}" if most > least else str(least), *cells)
    console.print(bars)


def _bar(count: int, largest: int, longest: int) -> str:
    return f"{'█' * -(-count * longest // largest)} {count}" if count else ""


def make_table(first: str, *others: str) -> Table:
    """The first column is text, the others are numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
