"""Pictures of tournaments: the bracket, the rating intervals and the matrix of points, as HTML (SVG) or PNG.

Every chart is a `Drawing`, a list of lines, boxes and texts in pixels, that either format writes out. Labels and ids
are untrusted text: they pass through `shown`, and through escaping in HTML and without mathematical notation in PNG.
"""

import dataclasses
import html
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.figures import png
from rrm_jax.evaluation.html_page import safe
from rrm_jax.evaluation.ranking_report import Tournament, elimination, half, number, ranking_table, shown, summary_lines

MOST_DRAWN = 64  # candidates in a chart
INK, GREY, FAINT, STRIPE = "#222222", "#6b6b6b", "#d9d9d9", "#f4f6f8"
BLUE, ORANGE = "#0072b2", "#d55e00"  # of Okabe and Ito's palette, told apart by all eyes


@dataclasses.dataclass(frozen=True)
class Line:
    """From (x1, y1) to (x2, y2), in pixels; y grows downwards."""

    x1: float
    y1: float
    x2: float
    y2: float
    colour: str = INK
    width: float = 1.0
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Box:
    """A filled rectangle, in pixels; (x, y) is its upper left corner. `note` is shown when a reader points at it, in
    HTML alone; `round`: with rounded corners."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    note: str = ""
    round: bool = False


@dataclasses.dataclass(frozen=True)
class Text:
    """One line of text, in pixels."""

    x: float
    y: float  # of the middle of the line
    text: str
    size: float = 12.0
    anchor: str = "start"  # start, middle, end
    colour: str = INK
    bold: bool = False
    upright: bool = False  # read from below


@dataclasses.dataclass
class Drawing:
    """A picture of so many pixels, below its title. Shapes are drawn in their order, later ones on top."""

    title: str
    width: float
    height: float
    shapes: list[Line | Box | Text] = dataclasses.field(default_factory=list)

    def add(self, *shapes: Line | Box | Text) -> None:
        """On top of what is there."""
        self.shapes.extend(shapes)


def picture_format(path: Path) -> str:
    """ "html" or "png", by the suffix; RrmError for another, so that a long job can ask before it starts."""
    kind = {".html": "html", ".htm": "html", ".png": "png"}.get(path.suffix.lower())
    if kind is None:
        raise RrmError(
            f"a picture ends in .html (all queries, one page) or .png (the first query), not in {path.suffix!r}: {path}"
        )
    return kind


def write_picture(
    path: Path, tournaments: Sequence[Tournament], title: str = "Ranking", lines: Sequence[str] = (), most: int = 20
) -> None:
    """An HTML page of the first `most` tournaments below the summary `lines`, or a PNG of the first tournament."""
    if picture_format(path) == "html":
        write_html(path, tournaments, title, lines, most)
    elif tournaments:
        of = f" (the first of {len(tournaments)} queries)" if len(tournaments) > 1 else ""
        write_png(path, tournaments[0], title + of)
    else:
        raise RrmError(f"{path}: there is no tournament to draw")


def _charts(tournament: Tournament) -> list[Drawing]:
    drawn = [intervals(tournament), matrix(tournament)]
    tree = bracket(tournament)
    return [*drawn, tree] if tree else drawn


def _name(tournament: Tournament, candidate: int, width: int) -> str:
    number = f"#{candidate}"
    return f"{number} {shown(tournament.labels[candidate], max(width - len(number) - 1, 1))}".rstrip()


def _left_out(tournament: Tournament) -> str:
    count = len(tournament.ranking)
    return f" (the best {MOST_DRAWN} of {count})" if count > MOST_DRAWN else ""


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between `low` and `high`."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    return [at * step for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def intervals(tournament: Tournament) -> Drawing:
    """A dot for each rating and a whisker for its interval, best first."""
    t, ranking = tournament, tournament.ranking[:MOST_DRAWN]
    row, left, plot, top = 20, 240, 340, 34
    drawing = Drawing("Ratings with 95 % intervals" + _left_out(t), left + plot + 70, top + row * len(ranking) + 34)
    values = [v for c in ranking for v in (t.ratings[c], t.low[c], t.high[c]) if math.isfinite(v)] or [0.0]
    low, high = min(values), max(values)
    pad = max(0.03 * (high - low), 1e-6 * abs(high)) or 1.0
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return left + plot * (value - low) / (high - low)

    bottom = top + row * len(ranking)
    for at in range(0, len(ranking), 2):
        drawing.add(Box(0, top + row * at, drawing.width, row, STRIPE))
    for tick in _ticks(low, high):
        drawing.add(Line(x(tick), top, x(tick), bottom, FAINT), Text(x(tick), bottom + 12, f"{tick:g}", 11, "middle"))
    for at, c in enumerate(ranking):
        y, first = top + row * (at + 0.5), at == 0
        colour = BLUE if first else INK
        drawing.add(Text(28, y, str(at + 1), 11, "end", GREY), Text(38, y, _name(t, c, 28), 12, "start", colour, first))
        drawing.add(Text(drawing.width - 8, y, number(t.ratings[c]), 11, "end", colour, first))
        if math.isfinite(t.low[c]) and math.isfinite(t.high[c]):
            drawing.add(Line(x(t.low[c]), y, x(t.high[c]), y, colour, 1.6))
            drawing.add(*(Line(x(end), y - 3.5, x(end), y + 3.5, colour, 1.6) for end in (t.low[c], t.high[c])))
        if math.isfinite(t.ratings[c]):
            drawing.add(Box(x(t.ratings[c]) - 4, y - 4, 8, 8, colour, round=True))
    return drawing


def _mix(share: float) -> str:
    """Blue for 1, orange for 0, nearly white between them."""
    end, middle = (BLUE if share > 0.5 else ORANGE), "#ececec"
    weight = abs(2 * share - 1) * 0.85
    channels = ((int(end[at : at + 2], 16), int(middle[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(weight * e + (1 - weight) * m):02x}" for e, m in channels)


def matrix(tournament: Tournament) -> Drawing:
    """The row's points against the column's: shades for the share, and the counts where they fit."""
    t, ranking = tournament, list(tournament.ranking[:MOST_DRAWN])
    points = np.asarray(t.points, float)
    games = points + points.T
    cell = min(max(560 / len(ranking), 10), 40)
    size, left, top = cell * len(ranking), 38, 64
    drawing = Drawing(
        "Points of the row against the column" + _left_out(t), max(left + size, 410) + 10, top + size + 40
    )
    single = games.max() <= 1
    for at, c in enumerate(ranking):
        middle = cell * (at + 0.5)
        small = min(11, cell * 0.95)
        drawing.add(Text(left - 5, top + middle, f"#{c}", small, "end"))
        drawing.add(Text(left + middle, top - 5, f"#{c}", small, "start", upright=True))
        for column, d in enumerate(ranking):
            x, y = left + cell * column, top + cell * at
            if c == d or games[c, d] == 0:
                drawing.add(Box(x, y, cell - 1, cell - 1, "#b0b0b0" if c == d else "#fbfbfb"))
                continue
            taken, played = half(points[c, d]), half(games[c, d])
            share = points[c, d] / games[c, d]
            note = f"#{c} took {taken} of {played} from #{d}" if len(ranking) <= 32 else ""
            drawing.add(Box(x, y, cell - 1, cell - 1, _mix(share), note))
            text = f"{taken}/{played}" if not single else "½" if taken == "0.5" else taken
            font = min(12, 1.45 * (cell - 2) / max(len(text), 1.7))
            if font >= 6.5:
                colour = "#ffffff" if abs(2 * share - 1) > 0.7 else INK
                drawing.add(Text(x + (cell - 1) / 2, y + (cell - 1) / 2, text, font, "middle", colour))
    for at, (colour, meaning) in enumerate([(_mix(1), "all"), (_mix(0.5), "half"), (_mix(0), "none")]):
        x = left + 65 * at
        drawing.add(Box(x, top + size + 16, 12, 12, colour), Text(x + 17, top + size + 22, meaning, 11, colour=GREY))
    drawing.add(Text(left + 195, top + size + 22, "of the points; pale: never met", 11, colour=GREY))
    return drawing


@dataclasses.dataclass
class _Node:
    """A candidate's place in the bracket: at the start of round `column`, after winning the match of `inputs`."""

    candidate: int
    column: int
    inputs: tuple["_Node", ...] = ()
    decided: bool = True
    y: float = 0.0


def bracket(tournament: Tournament) -> Drawing | None:
    """The tree of a knockout, the champion on the right; None for other strategies."""
    rounds, before = elimination(tournament, MOST_DRAWN) if "knockout" in tournament.kind else ([], 0)
    if not rounds:
        return None
    standing: dict[int, _Node] = {}
    for column, matches in enumerate(rounds):
        for through, out, decided in matches:
            inputs = tuple(standing.pop(c, _Node(c, column)) for c in (through, out))
            standing[through] = _Node(through, column + 1, inputs, decided)
    roots = sorted(standing.values(), key=lambda node: -node.column)
    row, step, top, left = 22, 150, 58, 8
    leaves = 0

    def lay_out(node: _Node) -> None:
        nonlocal leaves
        for child in node.inputs:
            lay_out(child)
        if node.inputs:
            node.y = sum(child.y for child in node.inputs) / 2
        else:
            node.y, leaves = top + row * (leaves + 0.5), leaves + 1

    for root in roots:
        lay_out(root)
    earlier = f" (after {before} round(s) that are not drawn)" if before else ""
    width, height = left + step * (len(rounds) + 1) + 20, top + row * leaves + 30
    drawing = Drawing("Bracket" + earlier, width, height)
    for column in range(len(rounds) + 1):
        heading = f"round {before + column + 1}" if column < len(rounds) else "champion"
        drawing.add(Text(left + step * column + 4, 40, heading, 11, "start", GREY))
    for root in roots:
        drawing.add(*_branches(tournament, root, root.column + 1, left, step, won=len(standing) == 1))
    if not all(decided for matches in rounds for *_, decided in matches):
        drawing.add(Text(left + 4, height - 12, "dashed: no winner was named, a coin decided", 11, colour=GREY))
    return drawing


def _branches(tournament: Tournament, node: _Node, end: int, left: float, step: float, won: bool) -> Iterator:
    """A node's line up to the column where its next match is (blue while it wins), its name, and its inputs."""
    x, colour, width = left + step * node.column, BLUE if won else GREY, 2.0 if won else 1.0
    yield Line(x, node.y + 7, left + step * end, node.y + 7, colour, width)
    yield Text(x + 4, node.y - 2, _name(tournament, node.candidate, 20), 11, colour=BLUE if won else INK)
    for child in node.inputs:
        through = child.candidate == node.candidate
        yield Line(x, child.y + 7, x, node.y + 7, BLUE if through else GREY, 2.0 if through else 1.0, not node.decided)
        yield from _branches(tournament, child, node.column, left, step, won=through)


def svg(drawing: Drawing) -> str:
    """One <svg> element: well-formed XML, whatever the texts hold."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{drawing.width:.0f}" '
        f'height="{drawing.height:.0f}" viewBox="0 0 {drawing.width:.0f} {drawing.height:.0f}" '
        'font-family="system-ui,Segoe UI,Helvetica,Arial,sans-serif">'
    ]
    for shape in [Text(8, 14, drawing.title, 13, bold=True), *drawing.shapes]:
        match shape:
            case Line(x1, y1, x2, y2, colour, width, dashed):
                dash = ' stroke-dasharray="4 3"' if dashed else ""
                out.append(
                    f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
                    f'stroke-width="{width:g}"{dash}/>'
                )
            case Box(x, y, width, height, colour, note, rounded):
                radius = f' rx="{width / 2:g}"' if rounded else ""
                inside = f"><title>{html.escape(note)}</title></rect>" if note else "/>"
                out.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
                    f'fill="{colour}"{radius}{inside}'
                )
            case Text(x, y, text, size, anchor, colour, bold, upright):
                # The middle of the letters by hand: not every program knows dominant-baseline.
                move = f"{x + 0.35 * size:.1f},{y:.1f}" if upright else f"{x:.1f},{y + 0.35 * size:.1f}"
                turn = f' transform="translate({move}) rotate(-90)"' if upright else f' transform="translate({move})"'
                weight = ' font-weight="600"' if bold else ""
                out.append(
                    f'<text{turn} font-size="{size:.1f}" text-anchor="{anchor}" fill="{colour}"{weight} '
                    f'unicode-bidi="isolate">{html.escape(text)}</text>'
                )
    return "".join(out) + "</svg>"


_STYLE = """
body{font:15px/1.5 system-ui,Segoe UI,Helvetica,Arial,sans-serif;color:#222;background:#fff;margin:2rem auto;
max-width:1320px;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;border-top:1px solid #d9d9d9;padding-top:1.2rem;margin-top:2rem}
.charts{display:flex;flex-wrap:wrap;gap:2rem;align-items:flex-start;overflow-x:auto}
li{margin:.15rem 0}pre{background:#f4f6f8;padding:.8rem;overflow-x:auto;font-size:12px}summary{cursor:pointer}
"""


def write_html(
    path: Path, tournaments: Sequence[Tournament], title: str, lines: Sequence[str] = (), most: int = 20
) -> None:
    """One page that needs nothing else: no script, no font, no file. The first `most` tournaments are drawn."""
    page = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        # Should a text ever get past the escaping, a browser still runs and loads nothing.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
        '<meta name="viewport" content="width=device-width"/>'
        f"<title>{safe(title, 200)}</title><style>{_STYLE}</style></head><body><h1>{safe(title, 200)}</h1>",
        _list(lines),
    ]
    if len(tournaments) > most:
        page.append(f"<p>Drawn below: the first {most} of {len(tournaments)} queries.</p>")
    for tournament in tournaments[:most]:
        drawn = "".join(f"<figure>{svg(drawing)}</figure>" for drawing in _charts(tournament))
        page.append(
            f"<section><h2>Query {safe(tournament.id, 120)}</h2>{_list(summary_lines([tournament]))}"
            f'<div class="charts">{drawn}</div><details><summary>Candidates</summary><pre>'
            + "\n".join(html.escape(line) for line in ranking_table(tournament, MOST_DRAWN, 160))
            + "</pre></details></section>"
        )
    page.append("</body></html>\n")
    write_whole(path, "\n".join(page))


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{safe(line, 1000)}</li>" for line in lines) + "</ul>" if lines else ""


def write_png(path: Path, tournament: Tournament, title: str = "Ranking") -> None:
    """One tournament's charts on a page: intervals and matrix side by side, a bracket below them."""
    from matplotlib.figure import Figure

    drawn = _charts(tournament)
    facts = [f"Query {shown(tournament.id, 120)}", *(shown(line, 220) for line in summary_lines([tournament]))]
    head = Drawing(shown(title, 100), 0, 30 + 18 * len(facts))
    head.add(*(Text(8, 40 + 18 * at, fact, 11, colour=INK if at == 0 else GREY) for at, fact in enumerate(facts)))
    beside = max(drawing.height for drawing in drawn[:2])
    places = [(0.0, 0.0), (0.0, head.height + 20), (drawn[0].width + 30, head.height + 20)]
    places.append((0.0, head.height + beside + 40))
    width = max([1250.0, *(x + drawing.width for (x, _), drawing in zip(places[1:], drawn, strict=False))])
    height = max(y + drawing.height for (_, y), drawing in zip(places[1:], drawn, strict=False)) + 10
    margin = 16
    figure = Figure(figsize=((width + 2 * margin) / 100, (height + 2 * margin) / 100), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin))
    axes.axis("off")
    for (x, y), drawing in zip(places, [head, *drawn], strict=False):
        _paint(axes, drawing, x, y)
    write_whole(path, png(figure))


def _paint(axes, drawing: Drawing, x0: float, y0: float) -> None:
    """A drawing on axes whose unit is 1/100 inch, with y downwards."""
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Ellipse, Rectangle

    shapes = [Text(8, 14, drawing.title, 13, bold=True), *drawing.shapes]
    boxes = [s for s in shapes if isinstance(s, Box) and not s.round]
    dots = [s for s in shapes if isinstance(s, Box) and s.round]
    squares = [Rectangle((x0 + s.x, y0 + s.y), s.width, s.height) for s in boxes]
    circles = [Ellipse((x0 + s.x + s.width / 2, y0 + s.y + s.height / 2), s.width, s.height) for s in dots]
    for patches, of, above in ((squares, boxes, 1), (circles, dots, 3)):
        axes.add_collection(PatchCollection(patches, facecolors=[s.colour for s in of], linewidths=0, zorder=above))
    lines = [s for s in shapes if isinstance(s, Line)]
    axes.add_collection(
        LineCollection(
            [[(x0 + s.x1, y0 + s.y1), (x0 + s.x2, y0 + s.y2)] for s in lines],
            colors=[s.colour for s in lines],
            linewidths=[0.72 * s.width for s in lines],  # points in 1/100 inch
            linestyles=[(0, (4, 3)) if s.dashed else "-" for s in lines],
            zorder=2,
        )
    )
    anchors = {"start": "left", "middle": "center", "end": "right"}
    for s in shapes:
        if isinstance(s, Text):
            sides = (
                {"ha": "center", "va": "bottom"} if s.upright else {"ha": anchors[s.anchor], "va": "center_baseline"}
            )
            style = {"color": s.colour, "weight": "bold" if s.bold else "normal", "rotation": 90 * s.upright}
            axes.text(x0 + s.x, y0 + s.y, s.text, fontsize=0.68 * s.size, parse_math=False, zorder=4, **sides, **style)
