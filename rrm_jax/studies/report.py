"""How a study is written down: data.json, table.md and figure.png, each of which appears only when complete."""

import dataclasses
import io
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrm_jax.data.jsonl import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.ranking_report import table
from rrm_jax.evaluation.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by all eyes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f00", "#000000")
MARKERS = "osD^vP*X"


@dataclasses.dataclass(frozen=True)
class Table:
    """The first of `rows` is the heading; the first `left` columns are text."""

    title: str
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclasses.dataclass(frozen=True)
class Report:
    """What a study found. `data` holds every number that tables and figure show, and may hold dataclasses; `notes` say
    how to read it; `draw` fills a figure of `size` inches. `logs` are further files by name: their
    rows, as JSON lines."""

    title: str
    question: str
    data: Mapping[str, Any]
    tables: Sequence[Table]
    notes: Sequence[str]
    draw: "Callable[[Figure], None]"
    size: tuple[float, float] = (9.0, 3.8)
    logs: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)


def write_report(report: Report, output: Path, facts: Mapping[str, Any]) -> str:
    """Writes the files to `output`; `facts` come first in data.json. Returns the Markdown."""
    text = markdown(report, facts)
    for name, rows in report.logs.items():
        write_whole(output / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_whole(output / "data.json", json.dumps(plain({**facts, **report.data}), indent=1, ensure_ascii=False) + "\n")
    write_whole(output / "table.md", text)
    _draw(report, output / "figure.png")
    return text


def markdown(report: Report, facts: Mapping[str, Any]) -> str:
    lines = [f"# {report.title}", "", report.question, ""]
    for one in report.tables:
        lines += [f"**{one.title}**", "", *table(one.rows, one.left), ""]
    lines += [f"- {note}" for note in report.notes]
    lines += ["", f"Seed {facts.get('seed')}; made by `{facts.get('command')}`."]
    return "\n".join(lines) + "\n"


def command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def plain(value: Any) -> Any:
    """`value` as JSON takes it: dataclasses as objects, and null where a number is not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def percent(share: float | Interval) -> str:
    """ "98.2 %", and for an interval "98.2 % (96.9 … 99.3)"; a dash where there is nothing to tell."""
    if isinstance(share, Interval):
        if not math.isfinite(share.estimate):
            return "–"
        return f"{100 * share.estimate:.1f} % ({100 * share.low:.1f} … {100 * share.high:.1f})"
    return f"{100 * share:.1f} %" if math.isfinite(share) else "–"


def points(difference: Interval) -> str:
    """A difference of shares in percentage points, signed, with its interval."""
    return f"{100 * difference.estimate:+.1f} ({100 * difference.low:+.1f} … {100 * difference.high:+.1f})"


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p > 0 else "< 1e-300"


def spread(intervals: Sequence[Interval], scale: float = 100) -> tuple[list[float], list[list[float]]]:
    """Estimates, and their distances to the ends below and above, as matplotlib's error bars take them."""
    middle = [scale * one.estimate for one in intervals]
    # Not below 0: of a skewed statistic the estimate may lie outside its percentiles.
    low = [scale * max(one.estimate - one.low, 0.0) for one in intervals]
    high = [scale * max(one.high - one.estimate, 0.0) for one in intervals]
    return middle, [low, high]


def finish(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _draw(report: Report, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=report.size, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    report.draw(figure)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        unfinished.write_bytes(image.getvalue())
        unfinished.replace(path)
    except OSError as error:
        raise RrmError(f"cannot write {path}: {error.strerror or error}") from None
