"""A benchmark's scores for people: a table on the terminal and in Markdown, with the counts that belong beside a score.

Published numbers stand in a table of their own, marked as such. Names of judges come from files, and are shown escaped.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from rrm_jax.evaluation.benchmarks.base import Benchmark
from rrm_jax.evaluation.benchmarks.scores import Difference, Score
from rrm_jax.evaluation.ranking_report import shown

Rows = list[list[str]]
_HEAD = [
    "score", "%", "95 % interval", "items", "comparisons", "no winner", "votes", "invalid", "cut off", "inputs cut",
    "order-consistent", "tokens",
]  # fmt: skip
_MOST_COLUMNS = 8


def percent(value: float | None) -> str:
    """A share from 0 to 1, in percent."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def score_rows(scores: Sequence[Score], unit: str = "votes") -> Rows:
    """A line a score of the whole tree, parts indented, with the counts beside it; `unit`: what is counted as votes."""
    rows = [[unit if name == "votes" else name for name in _HEAD]]
    for top in scores:
        for depth, score in top.walk():
            counts = score.counts
            between = "–" if score.low is None else f"{percent(score.low)} – {percent(score.high)}"
            both = int(counts["both_orders"])
            consistent = f"{percent(counts['consistent'] / both)} % of {both}" if both else "–"
            numbers = ("comparisons", "no_winner", "votes", "invalid", "cut_off", "truncated_inputs")
            cells = [str(int(counts[name])) for name in numbers]
            rows.append(
                [
                    "  " * depth + shown(score.name, 100),
                    percent(score.value),
                    between,
                    str(score.items),
                    *cells,
                    consistent,
                    str(int(counts["tokens"])),
                ]
            )
    return rows


def judge_rows(scores: Mapping[str, Sequence[Score]]) -> Rows:
    """Several judges, a line each: their scores of the first level, and of the second where these are few."""
    walked = {judge: [(depth, part) for score in one for depth, part in score.walk()] for judge, one in scores.items()}
    names = list(dict.fromkeys(part.name for one in walked.values() for depth, part in one if depth < 2))
    if len(names) > _MOST_COLUMNS:
        names = list(dict.fromkeys(score.name for one in scores.values() for score in one))
    rows = [["judge", *(shown(name, 60) for name in names), "items"]]
    for judge, one in scores.items():
        values = {part.name: percent(part.value) for depth, part in reversed(walked[judge]) if depth < 2}
        rows.append([shown(judge, 60), *(values.get(name, "–") for name in names), str(max(s.items for s in one))])
    return rows


def curve_rows(curve: Mapping[int, Sequence[Score]]) -> Rows:
    """Best-of-K by K, and what picking K took."""
    names = list(dict.fromkeys(score.name for one in curve.values() for score in one))
    rows = [["best of the first", *(shown(name, 60) for name in names), "95 % interval", "comparisons", "items"]]
    for size, one in curve.items():
        values = {score.name: percent(score.value) for score in one}
        top = one[0]
        between = "–" if top.low is None else f"{percent(top.low)} – {percent(top.high)}"
        counts = [str(int(top.counts["comparisons"])), str(top.items)]
        rows.append([str(size), *(values.get(name, "–") for name in names), between, *counts])
    return rows


def published_rows(benchmark: Benchmark) -> Rows:
    """What others published of this benchmark, in percent, and how it is known; no row where there is nothing."""
    names = list(dict.fromkeys(name for one in benchmark.published for name in one.scores))
    rows = [["published (not measured here)", *names, "from"]]
    for one in benchmark.published:
        rows.append([one.who, *(f"{one.scores[name]:.1f}" if name in one.scores else "–" for name in names), one.where])
    return rows if benchmark.published else []


def difference_rows(found: Sequence[Difference]) -> Rows:
    """A line a score of two runs over the same items: difference in points, interval, and both tests."""
    rows = [["score", "this", "other", "difference", "95 % interval", "p, bootstrap", "p, McNemar", "items"]]
    for one in found:
        between = "–" if one.low is None else f"{percent(one.low)} – {percent(one.high)}"
        p_values = ["–" if p is None else f"{p:.3g}" for p in (one.p_value, one.mcnemar)]
        only = f" ({one.only_first} : {one.only_second})" if one.only_first is not None else ""
        rows.append(
            [
                shown(one.name, 200),
                percent(one.first),
                percent(one.second),
                percent(one.first - one.second),
                between,
                p_values[0],
                p_values[1] + only,
                str(one.items),
            ]
        )
    return rows


def markdown(title: str, lines: Sequence[str], tables: Sequence[Rows]) -> str:
    """A page: a list of `lines`, then `tables`, of which the first row is the head; empty ones are left out. Everything
    is shown escaped, but for the title."""
    parts = [f"# {title}", "", *(f"- {safe(line)}" for line in lines)]
    for rows in filter(None, tables):
        head, *body = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
        parts += ["", head, "|" + "---|" * len(rows[0]), *body]
    return "\n".join(parts) + "\n"


def terminal(rows: Rows) -> Iterator[str]:
    """Columns of equal width: the first to the left, the others to the right; those that say nothing are left out."""
    keep = [at for at in range(len(rows[0])) if at < 4 or any(row[at] not in ("–", "0") for row in rows[1:])]
    rows = [[row[at] for at in keep] for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(keep))]
    for row in rows:
        first, *others = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join([first, *others]).rstrip()


def _cell(text: str) -> str:
    depth = len(text) - len(text.lstrip(" "))
    return "&nbsp;" * 2 * depth + safe(text.lstrip(" "))


def safe(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    for character in "\\|<>*_`[]":
        text = text.replace(character, "\\" + character)
    return text
