"""Several evaluations as one table: a line a model, a column a score; for the terminal, Markdown, LaTeX and CSV."""

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.eval_report import percent, safe, terminal
from rrm_jax.evaluation.ranking_report import shown

Column = tuple[str, tuple[str, ...]]
"""A benchmark, and a score of it: what it is a part of, and its own name last. Parts of different scores may be called
the same, in one evaluation or in two."""


class Cell(NamedTuple):
    """Shares from 0 to 1; no interval of a published number."""

    value: float | None
    low: float | None = None
    high: float | None = None
    items: int | None = None


@dataclasses.dataclass
class Line:
    """What one model reached. `source` says where a published number is from; "" are ours."""

    name: str
    source: str = ""
    cells: dict[Column, Cell] = dataclasses.field(default_factory=dict)


def read_line(spec: str, depth: int) -> tuple[list[Line], list[Line]]:
    """Lines of `OUT` or `NAME=OUT`, an evaluation by `rrm eval`: ours, one a judge, and the published ones.

    `depth` is how many levels of scores are taken. Raises RrmError for a file that is no evaluation.
    """
    name, out = "", spec
    if "=" in spec and not _json_of(spec).exists():  # a path may hold a "=" of its own
        name, _, out = spec.partition("=")
    path = _json_of(out)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        benchmark, judges = str(facts["benchmark"]), facts["scores"]
        ours = []
        for judge, scores in judges.items():
            label = name if name and len(judges) == 1 else " ".join(filter(None, (name or path.stem, judge)))
            ours.append(Line(label, cells=_cells(benchmark, scores, depth)))
        taken = {column for line in ours for column in line.cells}
        published = [_published(benchmark, one, taken) for one in facts["published"]]
    except OSError as error:
        raise RrmError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RrmError(f"{path} is not what rrm eval --out writes ({error!r})") from None
    return ours, [line for line in published if line.cells]


def _json_of(out: str) -> Path:
    return Path(out if out.endswith(".json") else f"{out}.json")


def _cells(benchmark: str, scores: Sequence[dict[str, Any]], depth: int) -> dict[Column, Cell]:
    """In the order of the tree."""
    return {
        (benchmark, path): Cell(*(score[key] for key in ("value", "low", "high", "items")))
        for path, score in _walk(scores, depth)
    }


def _walk(
    scores: Sequence[dict[str, Any]], depth: int, parents: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for score in scores:
        path = *parents, str(score["name"])
        yield path, score
        if depth > 1:
            yield from _walk(score["parts"], depth - 1, path)


def _published(benchmark: str, one: dict[str, Any], there: set[Column]) -> Line:
    """Of the scores that are `there`. Published ones are named without what they are a part of, where one is meant."""
    cells = {}
    for name, value in one["scores"].items():
        meant = [column for column in there if column[1][-1] == name]
        top = [column for column in meant if len(column[1]) == 1]
        if len(column := top or meant) == 1:
            cells[column[0]] = Cell(round(value / 100, 6))
    return Line(one["who"], one["where"], cells)


def joined(lines: Sequence[Line]) -> list[Line]:
    """Lines of one name and source as one. Raises RrmError where they say the same score twice."""
    found: dict[tuple[str, str], Line] = {}
    for line in lines:
        line_so_far = found.setdefault((line.name, line.source), Line(line.name, line.source))
        twice = [column for column in line.cells if column in line_so_far.cells]
        if twice and not line.source:
            raise RrmError(
                f"{line.name} has {twice[0][1][-1]!r} of {twice[0][0]} twice; give the evaluations names of their own, "
                "as NAME=OUT"
            )
        line_so_far.cells.update(line.cells)
    return list(found.values())


def render(lines: list[Line], published: list[Line], how: str, intervals: bool) -> str:
    """The table as `terminal`, `markdown`, `latex` or `csv`; the best of ours is bold where there is bold."""
    columns = list(dict.fromkeys(column for line in lines for column in line.cells))
    return _WRITERS[how](lines, published, columns, intervals)


def _text(cell: Cell | None, intervals: bool) -> str:
    if cell is None:
        return "–"
    between = f" ({percent(cell.low)} – {percent(cell.high)})" if intervals and cell.low is not None else ""
    return percent(cell.value) + between


def _best(lines: Sequence[Line], columns: Sequence[Column]) -> dict[Column, str]:
    """The best value of each column as it is printed, where there is more than one line."""
    best: dict[Column, str] = {}
    for column in columns:
        values = [cell.value for line in lines if (cell := line.cells.get(column)) and cell.value is not None]
        if len(values) > 1:
            best[column] = percent(max(values))
    return best


def _rows(
    lines: Sequence[Line],
    columns: Sequence[Column],
    intervals: bool,
    escape: Callable[[str], str] = str,
    bold: Callable[[str], str] = str,
) -> Iterator[list[str]]:
    """Each line's cells, escaped; the best of ours by `bold`."""
    best = _best([line for line in lines if not line.source], columns)
    for line in lines:
        source = f" (published: {line.source})" if line.source else ""
        cells = [escape(shown(line.name + source, 90))]
        for column in columns:
            cell = line.cells.get(column)
            top = not line.source and cell is not None and percent(cell.value) == best.get(column)
            cells.append((bold if top else str)(escape(_text(cell, intervals))))
        yield cells


def _head(columns: Sequence[Column]) -> list[str]:
    """A part's own name, where no other score of its benchmark has it as well."""
    one = len({benchmark for benchmark, _ in columns}) == 1
    named = Counter((benchmark, path[-1]) for benchmark, path in columns)
    names = [path[-1] if named[benchmark, path[-1]] == 1 else " / ".join(path) for benchmark, path in columns]
    return ["%", *(name if one else f"{of}: {name}" for name, (of, _) in zip(names, columns, strict=True))]


def _terminal(lines: list[Line], published: list[Line], columns: list[Column], intervals: bool) -> str:
    return "\n".join(terminal([_head(columns), *_rows([*lines, *published], columns, intervals)])) + "\n"


def _markdown(lines: list[Line], published: list[Line], columns: list[Column], intervals: bool) -> str:
    rows = [[safe(name) for name in _head(columns)]]
    rows += _rows([*lines, *published], columns, intervals, safe, "**{}**".format)
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---|" + "---:|" * len(columns), *body]) + "\n"


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
_TEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def _latex(lines: list[Line], published: list[Line], columns: list[Column], intervals: bool) -> str:
    def escape(text: str) -> str:
        return "".join(_TEX.get(character, character) for character in text)

    def rows(some: list[Line]) -> list[str]:
        return [" & ".join(row) + r" \\" for row in _rows(some, columns, intervals, escape, r"\textbf{{{}}}".format)]

    body = [r"\toprule", " & ".join(map(escape, _head(columns))) + r" \\", r"\midrule", *rows(lines)]
    body += [r"\midrule", *rows(published)] if published else []
    lines_of_text = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", *body]
    return "\n".join([*lines_of_text, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _csv(lines: list[Line], published: list[Line], columns: list[Column], intervals: bool) -> str:
    """A row a score, unrounded, shares from 0 to 1: for programs."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(["model", "published", "benchmark", "score", "value", "low", "high", "items"])
    for line in [*lines, *published]:
        for (benchmark, path), cell in line.cells.items():
            writer.writerow(
                [line.name, line.source, benchmark, " / ".join(path), *("" if x is None else x for x in cell)]
            )
    return made.getvalue()


_WRITERS: dict[str, Callable[..., str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
}
