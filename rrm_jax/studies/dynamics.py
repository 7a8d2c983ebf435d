"""How judges change while they are trained: the runs' own curves, side by side."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rrm_jax.evaluation.figures import COLOURS
from rrm_jax.evaluation.statistics import Interval, newcombe_interval, wilson_interval
from rrm_jax.evaluation.training_log import TrainingLog, read_training_log
from rrm_jax.studies.common import Session
from rrm_jax.studies.config import DynamicsConfig
from rrm_jax.studies.report import MARKERS, Report, Table, brackets, claim, finish, percent, points, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

type Panels = Sequence[tuple[str, str, str, str, float]]
"""Kind of row, metric, title, axis, times."""

PANELS: Panels = (
    ("eval", "accuracy", "Held-out accuracy, both orders", "verdicts right, %", 100),
    ("eval", "order_consistency", "Order consistency, held out", "same verdict in both orders, %", 100),
    ("train", "reward_mean", "Reward in training", "mean reward", 1),
    ("train", "response_length", "Length of completions", "tokens, mean", 1),
    ("train", "entropy", "Entropy", "nats a token", 1),
    ("train", "invalid_rate", "Invalid verdicts in training", "%", 100),
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric of one run. `intervals` are of shares of held-out pairs, None for other metrics."""

    run: str
    kind: str
    metric: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    intervals: tuple[Interval, ...] | None


@dataclasses.dataclass(frozen=True)
class Run:
    """How far a run has come. `learned` is the last held-out accuracy over the first; None where there are not two."""

    name: str
    step: int
    steps: int
    learned: Interval | None


@dataclasses.dataclass(frozen=True)
class Found:
    """`runs` in the configuration's order; `curves` by run and metric."""

    runs: tuple[Run, ...]
    curves: tuple[Curve, ...]


def compute(logs: dict[str, TrainingLog], panels: Panels = PANELS) -> list[Curve]:
    """The curves of `panels` that the runs have.

    The single verdicts of a run's evaluation are not kept, so that they cannot be drawn again: intervals are Wilson's,
    with a pair's two verdicts counted as one, which makes them rather too wide.
    """
    curves = []
    for name, log in logs.items():
        for kind, metric, *_ in panels:
            steps, values = log.series(kind, metric)
            if values:
                pairs = {row["step"]: row.get("pairs", row.get("questions", 0)) for row in log.held_out}
                shares = kind == "eval" and metric in ("accuracy", "order_consistency")
                sure = (
                    tuple(wilson_interval(v, int(pairs[s])) for s, v in zip(steps, values, strict=True))
                    if shares
                    else None
                )
                curves.append(Curve(name, kind, metric, tuple(steps), tuple(values), sure))
    return curves


def find(config: DynamicsConfig, session: Session) -> Found:
    """Reads the runs' own files; a run may still be going on."""
    logs = {name: read_training_log(Path(path)) for name, path in config.runs.items()}
    curves = compute(logs)
    runs = [Run(name, log.step, int(log.settings.get("steps", 0)), learned(name, curves)) for name, log in logs.items()]
    return Found(tuple(runs), tuple(curves))


def learned(name: str, curves: Sequence[Curve]) -> Interval | None:
    """A run's last held-out accuracy over its first; None where there are not two."""
    for one in curves:
        if (one.run, one.metric) == (name, "accuracy") and one.intervals is not None and len(one.intervals) > 1:
            return newcombe_interval(one.intervals[-1], one.intervals[0])
    return None


def report(config: DynamicsConfig, found: Found, seeds: Sequence[int]) -> Report:
    """The first, largest and last value of every curve, and the curves. `seeds` are those that `found` was pooled
    over."""
    return Report(
        "How do judges change in training?",
        "; ".join(f"{one.name}: step {one.step} of {one.steps}" for one in found.runs) + ".",
        found,
        [Table("First, most and last", rows_of(found.curves), left=2)],
        [
            claim(
                f"{one.name}: verdicts on held-out pairs get better in training",
                one.learned,
                f"{points(one.learned)} points from step {curve.steps[0]} to {curve.steps[-1]}, to "
                f"{100 * curve.values[-1]:.1f} %.",
            )
            for one in found.runs
            for curve in found.curves
            if one.learned is not None and (curve.run, curve.metric) == (one.name, "accuracy")
        ],
        [
            "In brackets: Wilson's 95 % intervals over the held-out pairs, a pair's two verdicts counted as one."
            if len(seeds) == 1
            else brackets(seeds, "held-out pairs"),
            "Most: the largest value, whether that is good or not.",
        ],
        lambda figure: draw(figure, found.curves),
        (12.0, 6.4),
    )


def rows_of(curves: Sequence[Curve], panels: Panels = PANELS) -> list[list[str]]:
    """A table's, the heading first."""
    rows = [["metric", "run", "first", "most", "at step", "last", "at step"]]
    for kind, metric, title, *_, times in panels:
        for one in curves:
            if (one.kind, one.metric) == (kind, metric):
                most = max(range(len(one.values)), key=one.values.__getitem__)
                shown = [_shown(one, at, times) for at in (0, most, -1)]
                steps = [str(one.steps[most]), str(one.steps[-1])]
                rows.append([title, one.run, shown[0], shown[1], steps[0], shown[2], steps[1]])
    return rows


def _shown(curve: Curve, at: int, times: float) -> str:
    if curve.intervals is not None:
        return percent(curve.intervals[at])
    return percent(curve.values[at]) if times == 100 else f"{curve.values[at]:.4g}"


def draw(figure: "Figure", curves: Sequence[Curve], panels: Panels = PANELS) -> None:
    """A panel for each that some run has."""
    panels = [panel for panel in panels if any((one.kind, one.metric) == panel[:2] for one in curves)]
    runs = list(dict.fromkeys(one.run for one in curves))
    columns = min(3, len(panels))
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    handles = {}
    for axes, (kind, metric, title, label, times) in zip(grid.flat, panels, strict=False):
        for at, name in enumerate(runs):
            for one in curves:
                if (one.run, one.kind, one.metric) != (name, kind, metric):
                    continue
                colour = COLOURS[at % 8]
                if one.intervals is not None:
                    middle, ends = spread(one.intervals, times)
                    handles[" " + name] = axes.errorbar(
                        one.steps, middle, ends, color=colour, marker=MARKERS[at % 8], markersize=4, capsize=2
                    )
                else:
                    (line,) = axes.plot(one.steps, [times * v for v in one.values], color=colour, linewidth=1.1)
                    handles.setdefault(" " + name, line)
        finish(axes, title, "step", label)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False)
