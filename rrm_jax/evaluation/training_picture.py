"""The curves of training runs, one panel for each question that a trainer asks of them; several runs are overlaid."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rrm_jax.evaluation.figures import COLOURS, png
from rrm_jax.evaluation.ranking_report import shown
from rrm_jax.evaluation.training_log import TrainingLog

_LINES = ("-", "--", ":")
_COLUMNS, _SMOOTHED_FROM = 3, 100
_WIDTH, _HEIGHT, _DPI = 15.0, 2.9, 110


@dataclasses.dataclass(frozen=True)
class Panel:
    """`series` are (kind of row, metric, words). `share`: from 0 to 1; `log`: on a logarithmic axis."""

    title: str
    series: tuple[tuple[str, str, str], ...]
    share: bool = False
    log: bool = False


PANELS = (
    Panel("Reward", (("train", "reward_mean", "mean"), ("train", "reward_std", "standard deviation"))),
    Panel("Accuracy", (("train", "accuracy", "training"), ("eval", "accuracy", "held out")), share=True),
    Panel(
        "Order consistency",
        (("train", "order_consistency", "training"), ("eval", "order_consistency", "held out")),
        share=True,
    ),
    Panel("Loss", (("train", "loss", "loss"),)),
    Panel("KL to the reference, nats a token", (("train", "kl", "KL"),)),
    Panel("Entropy, nats a token", (("train", "entropy", "entropy"),)),
    Panel(
        "Clipped tokens, share",
        (("train", "clip_low", "below 1 − clip_low"), ("train", "clip_high", "above 1 + clip_high")),
    ),
    Panel(
        "Response length, tokens",
        (
            ("train", "response_length", "mean"),
            ("train", "response_length_max", "longest"),
            ("eval", "response_length", "held out, mean"),
        ),
    ),
    Panel(
        "Truncated and invalid, share",
        (
            ("train", "truncation_rate", "truncated"),
            ("train", "invalid_rate", "invalid"),
            ("eval", "invalid_rate", "held out, invalid"),
        ),
    ),
    Panel("Zero-variance groups, share", (("train", "zero_variance_groups", "all rewards equal"),), share=True),
    Panel(
        "Sampler–trainer mismatch",
        (("train", "mismatch", "|log-prob difference|"), ("train", "mismatch_kl", "KL")),
        log=True,
    ),
    Panel("Gradient norm", (("train", "grad_norm", "before clipping"),), log=True),
    Panel("Tokens a second, by the whole step", (("train", "tokens_per_second", "tokens a second"),)),
    Panel("MFU of the update", (("train", "mfu", "MFU"),)),
)


def draw(logs: Sequence[TrainingLog], lines: Sequence[str] = ()) -> bytes:
    """A PNG of the panels that have values, with `lines` above them."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = [panel for panel in PANELS if any(log.series(*s[:2])[1] for log in logs for s in panel.series)]
    timed = any(log.phases() for log in logs)
    count = len(panels) + timed
    rows = -(-count // _COLUMNS) or 1
    head = 0.26 * (len(lines) + 1) if lines else 0.1
    foot = 0.3 * -(-len(logs) // 4) if len(logs) > 1 else 0.0
    height = rows * _HEIGHT + head + foot
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    edges = {"left": 0.04, "right": 0.99, "bottom": (foot + 0.3) / height, "top": 1 - (head + 0.35) / height}
    grid = figure.subplots(rows, _COLUMNS, squeeze=False, gridspec_kw=edges | {"wspace": 0.14, "hspace": 0.3}).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, panel, logs)
    if timed:
        _seconds(grid[len(panels)], logs)
    for at, line in enumerate(lines):
        y = 1 - (0.2 + 0.26 * at) / height
        size, weight = (12, "bold") if at == 0 else (10, "normal")
        figure.text(0.01, y, shown(line, 200), parse_math=False, fontsize=size, weight=weight, va="center")
    if len(logs) > 1:
        handles = [Line2D([], [], color=COLOURS[at % len(COLOURS)]) for at in range(len(logs))]
        names = [" " + shown(log.name, 40) for log in logs]  # a name with "_" first would be left out
        _plain(figure.legend(handles, names, loc="lower center", ncols=4, frameon=False, fontsize=10))
    return png(figure, _DPI)


def _panel(axes: Any, panel: Panel, logs: Sequence[TrainingLog]) -> None:
    from matplotlib.lines import Line2D

    several, drawn, positive = len(logs) > 1, {}, False
    for at, log in enumerate(logs):
        for number, (kind, name, words) in enumerate(panel.series):
            steps, values = log.series(kind, name)
            if not values:
                continue
            positive |= float(np.median(values)) > 0
            colour = COLOURS[(at if several else number) % len(COLOURS)]
            style = _LINES[number] if several else "-"
            _curve(axes, steps, values, kind, colour, style)
            marker = "o" if kind == "eval" else ""
            drawn[words] = Line2D(
                [], [], color="#6b6b6b" if several else colour, ls=style, marker=marker, markersize=3.5
            )
    if panel.log and positive:
        axes.set_yscale("log", nonpositive="mask")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if panel.share:
        axes.set_ylim(-0.02, 1.02)
    _finish(axes, panel.title)
    if len(drawn) > 1:
        _plain(axes.legend(list(drawn.values()), list(drawn), fontsize=8, frameon=False))


def _curve(axes: Any, steps: list[int], values: list[float], kind: str, colour: str, style: str) -> None:
    """One metric. Long ones are drawn faintly, below their running mean; evaluations are points on a line."""
    if kind == "eval":
        axes.plot(steps, values, style, color=colour, marker="o", markersize=3.5, linewidth=1.4)
    elif len(values) < _SMOOTHED_FROM:
        marker = "." if len(values) == 1 else ""  # a line of one point is not seen
        axes.plot(steps, values, style, color=colour, linewidth=1.2, marker=marker)
    else:
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
        axes.plot(steps, running_mean(np.array(values)), style, color=colour, linewidth=1.6)


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean over a window of a 25th of all [n] around each; at the ends, over what there is of it. [n]"""
    half = max(len(values) // 50, 1)
    return np.array([values[max(at - half, 0) : at + half + 1].mean() for at in range(len(values))])


def _seconds(axes: Any, logs: Sequence[TrainingLog]) -> None:
    """Where the time of a step goes: phases stacked for one run, their sums side by side for several."""
    sums = [
        [sum(float(row.get(f"seconds_{phase}", 0.0)) for phase in log.phases()) for row in log.train] for log in logs
    ]
    if len(logs) == 1:
        (log,) = logs
        steps, phases = [row["step"] for row in log.train], log.phases()
        stack = [[float(row.get(f"seconds_{phase}", 0.0)) for row in log.train] for phase in phases]
        axes.stackplot(steps, stack, labels=[" " + shown(phase, 20) for phase in phases], colors=COLOURS, alpha=0.8)
        _plain(axes.legend(fontsize=8, loc="upper right"))
    else:
        for at, (log, total) in enumerate(zip(logs, sums, strict=True)):
            axes.plot([row["step"] for row in log.train], total, color=COLOURS[at % len(COLOURS)], linewidth=1.2)
    top = 1.4 * max(float(np.quantile(total, 0.9)) for total in sums if total)
    axes.set_ylim(0, top or None)
    cut = " (steps that compile are cut off)" if any(max(total, default=0.0) > top for total in sums) else ""
    _finish(axes, "Seconds a step" + cut)


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.tick_params(which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _plain(legend: Any) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)  # "$" is a letter
