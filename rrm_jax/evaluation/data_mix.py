"""What several data sets come to when a trainer draws from them by weight."""

import collections
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rrm_jax.data.overview import Overview
from rrm_jax.data.stream import PairStream
from rrm_jax.data.stream import Part as StreamPart
from rrm_jax.evaluation.data_page import SOURCES_SHOWN, Part, make_table
from rrm_jax.evaluation.ranking_report import shown

_MOST_DRAWS = 100_000


def print_mix(console: Console, parts: Sequence[Part], seed: int) -> None:
    """What several parts come to together when they are drawn from by their weights."""
    rows, weights = sum(part.overview.rows for part in parts), sum(part.weight for part in parts)
    overviews = [part.overview for part in parts if isinstance(part.overview, Overview)]
    shown_first = _shown_first(parts, overviews, min(rows, _MOST_DRAWS), seed)
    console.print(Text("the mix", style="bold"))
    table = make_table("part", "weight", "rows", "repeated", "drawn", "passes", "better first")
    for at, part in enumerate(parts):
        drawn, overview = part.weight / weights, part.overview
        again = str(overview.shared(*overviews[:at])) if isinstance(overview, Overview) else "–"
        table.add_row(
            _end(part.name, 30), f"{part.weight:g}", str(overview.rows), again, f"{100 * drawn:.1f} %",
            f"{drawn * rows / overview.rows:.2f}", shown_first[at] if shown_first else "–",
        )  # fmt: skip
    console.print(table)
    console.print(f"repeated: different rows that an earlier part has too; passes: in {rows} draws, one for each row")
    if shown_first:
        console.print(
            f"as a trainer shows them (seed {seed}, {min(rows, _MOST_DRAWS)} draws): the better response first in "
            f"{shown_first[-1]}"
        )
    if len(overviews) == len(parts):
        by_source: dict[str, float] = collections.defaultdict(float)
        for part, overview in zip(parts, overviews, strict=True):
            for name, count in overview.sources.items():
                by_source[name] += part.weight / weights * count / overview.rows
        table = make_table("source", "of the draws")
        for name, drawn in sorted(by_source.items(), key=lambda item: -item[1])[:SOURCES_SHOWN]:
            table.add_row(Text(shown(name, 60) or "(no source)"), f"{100 * drawn:.1f} %")
        console.print(table)


def _shown_first(parts: Sequence[Part], overviews: Sequence[Overview], draws: int, seed: int) -> list[str]:
    """How often the stream shows the better response first, by part and of all; empty where a part has no labels."""
    if len(overviews) < len(parts) or not all(overview.labelled for overview in overviews):
        return []
    weighed = zip(parts, overviews, strict=True)
    stream = PairStream([StreamPart(overview.labelled, part.weight) for part, overview in weighed], seed)
    drawn, first = [0] * len(parts), [0] * len(parts)
    for place in map(stream.place, range(draws)):
        drawn[place.part] += 1
        first[place.part] += stream.at(place).label == 1
    counts = [*zip(first, drawn, strict=True), (sum(first), draws)]
    return [f"{100 * part / of:.1f} %" if of else "–" for part, of in counts]


def _end(name: str, width: int) -> Text:
    """A path's end, which tells files of one folder apart."""
    return Text(shown(name if len(name) <= width else "…" + name[1 - width :], width))
