"""How a study is written down: data.json, table.md and figure.png, each of which appears only when complete."""

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rrm_jax.data.whole_files import write_whole
from rrm_jax.evaluation.figures import png
from rrm_jax.evaluation.ranking_report import table
from rrm_jax.evaluation.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"


@dataclasses.dataclass(frozen=True)
class Table:
    """The first of `rows` is the heading; the first `left` columns are text."""

    title: str
    rows: Sequence[Sequence[str]]
    left: int = 1


Outcome = Literal["shown", "not shown", "contradicted"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that the paper says, or that one would expect, and what these numbers say to it. `outcome` None: there
    is nothing to be decided, `evidence` tells what was found."""

    statement: str
    outcome: Outcome | None
    evidence: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What a study found. `found` holds every number that tables and figure show, as dataclasses; `says` what they
    mean, and `notes` how to read them; `draw` fills a figure of `size` inches. `published` are others' numbers."""

    title: str
    question: str
    found: Any
    tables: Sequence[Table]
    says: Sequence[Claim]
    notes: Sequence[str]
    draw: "Callable[[Figure], None]"
    size: tuple[float, float] = (9.0, 3.8)
    published: Mapping[str, Any] | None = None


def write_report(report: Report, output: Path, facts: Mapping[str, Any]) -> str:
    """Writes the files to `output`; `facts` come first in data.json. Returns the Markdown."""
    text = markdown(report, facts)
    data = {**facts, "found": report.found, "says": list(report.says), "published": report.published}
    write_whole(output / "data.json", json.dumps(plain(data), indent=1, ensure_ascii=False) + "\n")
    write_whole(output / "table.md", text)
    _draw(report, output / "figure.png")
    return text


def markdown(report: Report, facts: Mapping[str, Any]) -> str:
    """All of a report but its figure; `facts` has the seeds and the command."""
    lines = [f"# {report.title}", "", report.question, ""]
    for one in report.tables:
        lines += [f"**{one.title}**", "", *table(one.rows, one.left), ""]
    lines += [*said(report), ""]
    lines += [f"- {note}" for note in report.notes]
    lines += ["", f"{seeds_of(facts['seeds'])}; made by `{facts['command']}`."]
    return "\n".join(lines) + "\n"


def said(report: Report) -> list[str]:
    """What the numbers say, as lines of Markdown."""
    return [
        "- " + (f"{claim.statement}: **{claim.outcome}**. " if claim.outcome else "") + claim.evidence
        for claim in report.says
    ]


def claim(statement: str, difference: Interval, evidence: str) -> Claim:
    """Of a difference that the statement says to be positive: shown where the whole interval is above 0, contradicted
    where it is below."""
    outcome: Outcome = "shown" if difference.low > 0 else "contradicted" if difference.high < 0 else "not shown"
    return Claim(statement, outcome, evidence)


def told(evidence: str) -> Claim:
    """What was found, where there is nothing to be decided."""
    return Claim("", None, evidence)


def seeds_of(seeds: Sequence[int]) -> str:
    """ "Seed 0", or "Seeds 0, 1, 2"."""
    return f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def brackets(seeds: Sequence[int], over: str) -> str:
    """A note on what stands in brackets, for intervals over so-called items."""
    if len(seeds) == 1:
        return f"In brackets: 95 % bootstrap intervals over {over}."
    return (
        f"Numbers are means over {len(seeds)} seeds, or sums of what is counted. In brackets: 95 % intervals, the "
        f"wider one of Student's over the seeds and the one over the {over}."
    )


def tested(seeds: Sequence[int], over: str) -> str:
    """A note on p."""
    if len(seeds) == 1:
        return f"p: exact two-sided sign test on the same {over} (McNemar's)."
    return (
        f"p: the larger one of a t-test over the seeds' differences and of the exact sign test on the same {over} "
        f"(McNemar's), of all seeds, or of an average one where all have the same {over}."
    )


def command_line() -> str:
    """The command that runs, as a shell reads it."""
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
        low, high = max(share.low, 0.0), min(share.high, 1.0)  # over seeds it may go beyond what a share can be
        return f"{100 * share.estimate:.1f} % ({100 * low:.1f} … {100 * high:.1f})"
    return f"{100 * share:.1f} %" if math.isfinite(share) else "–"


def points(difference: Interval) -> str:
    """A difference of shares in percentage points, signed, with its interval."""
    estimate, low, high = (
        f"{round(100 * value, 1) + 0.0:+.1f}" for value in (difference.estimate, difference.low, difference.high)
    )  # + 0.0: no −0.0
    return f"{estimate} ({low} … {high})"


def p_value(p: float) -> str:
    """As tables show it."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p > 0 else "< 1e-300"


def spread(intervals: Sequence[Interval], scale: float = 100) -> tuple[list[float], list[list[float]]]:
    """Estimates of shares, and their distances to the ends below and above, as matplotlib's error bars take them. Ends
    beyond 0 and 1, which intervals over seeds can have, are cut."""
    middle = [scale * one.estimate for one in intervals]
    # Not below 0: of a skewed statistic the estimate may lie outside its percentiles.
    low = [scale * max(one.estimate - max(one.low, 0.0), 0.0) for one in intervals]
    high = [scale * max(min(one.high, 1.0) - one.estimate, 0.0) for one in intervals]
    return middle, [low, high]


def finish(axes: Any, title: str, x: str, y: str) -> None:
    """Titles, labels and grid as all studies' figures have them, on matplotlib `Axes`. `title` is shown as text, never
    as maths."""
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _draw(report: Report, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=report.size, facecolor="white", layout="constrained")
    report.draw(figure)
    write_whole(path, png(figure))
