"""What a training run's own files say of it, read while it goes on as well as after it was killed."""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rrm_jax.checkpoints.run_files import TRACES, log_rows, read_metrics, read_settings
from rrm_jax.errors import RrmError

FIRST_TRACES, LAST_TRACES = 2, 4


@dataclasses.dataclass(frozen=True)
class TrainingLog:
    """`train` and `held_out` are the rows of metrics.jsonl, `traces` the first and the last few of traces.jsonl.

    `made` is run.json ({} where it cannot be read). Every text in it is untrusted: it is shown, never trusted.
    """

    name: str
    settings: Mapping[str, Any]
    made: Mapping[str, Any]
    train: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]]
    traces: Sequence[Mapping[str, Any]]

    @property
    def step(self) -> int:
        """The last step that is written down; 0: none yet."""
        return self.train[-1]["step"] if self.train else 0

    def series(self, kind: str, name: str) -> tuple[list[int], list[float]]:
        """The steps and the finite values of one metric of the "train" or the "eval" rows."""
        rows = self.train if kind == "train" else self.held_out
        found = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
        return [step for step, _ in found], [value for _, value in found]

    def names(self, kind: str) -> list[str]:
        """The metrics of a kind, in the order in which they first appear."""
        rows = self.train if kind == "train" else self.held_out
        names = dict.fromkeys(name for row in rows for name in row if _is_number(row[name]))
        return [name for name in names if name != "step"]

    def phases(self) -> list[str]:
        """What a step's seconds are measured of, by name."""
        return [name.removeprefix("seconds_") for name in self.names("train") if name.startswith("seconds_")]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_training_log(run: Path) -> TrainingLog:
    """Raises RrmError where `run` is no training run, has no metrics yet, or has a damaged log."""
    settings = read_settings(run)
    train, held_out = read_metrics(run, "train"), read_metrics(run, "eval")
    if not train and not held_out:
        raise RrmError(f"{run} has no metrics yet; its first step is not finished")
    try:
        made = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = {}
    rows = (row for _, row in log_rows(run / TRACES))
    first = list(itertools.islice(rows, FIRST_TRACES))
    last = collections.deque(rows, LAST_TRACES)
    return TrainingLog(
        run.resolve().name, settings, made if isinstance(made, dict) else {}, train, held_out, [*first, *last]
    )


def headline(log: TrainingLog) -> list[str]:
    """The run in a few lines: how far it is, what it reached, how long it took, and on what."""
    steps = log.settings.get("steps")
    state = "finished" if log.step == steps else "going on, or ended before"
    lines = [f"step {log.step} of {steps} ({state})"]
    held_out = [_change(log, "eval", *about) for about in _HELD_OUT]
    if any(held_out):
        shown_how = "" if log.settings.get("task") == "policy" else ", both orders"
        lines.append(f"held out{shown_how}: " + "; ".join(filter(None, held_out)))
    training = [_change(log, "train", *about) for about in _TRAINING]
    if any(training):
        lines.append("in training: " + "; ".join(filter(None, training)))
    spent = {phase: sum(log.series("train", f"seconds_{phase}")[1]) for phase in log.phases()}
    spent["eval"] = spent.get("eval", 0.0) + sum(log.series("eval", "seconds_eval")[1])
    total = sum(spent.values())
    if total > 0:
        shares = ", ".join(f"{phase} {100 * spent[phase] / total:.0f} %" for phase in spent if spent[phase])
        lines.append(f"{_duration(total)} of steps and evaluations: {shares}")
    versions, devices = log.made.get("versions"), log.made.get("devices")
    if isinstance(versions, dict) and isinstance(devices, list):
        kinds = ", ".join(f"{devices.count(kind)} × {kind}" for kind in dict.fromkeys(map(str, devices)))
        resumed = log.made.get("resumed") or []
        lines.append(
            f"on {kinds}, jax {versions.get('jax')}, revision {log.made.get('git_revision')}, seed "
            f"{log.settings.get('seed')}; resumed {len(resumed)} times"
        )
    return lines


_HELD_OUT = (("accuracy", "accuracy"), ("order_consistency", "order consistency"), ("invalid_rate", "invalid"))
_TRAINING = (("accuracy", "accuracy"), ("reward_mean", "reward"), ("loss", "loss"))


def _change(log: TrainingLog, kind: str, name: str, words: str) -> str:
    """ "accuracy 70.1 % → 84.0 %, the most at step 60 (85.2 %)"; "" where there are no values."""
    steps, values = log.series(kind, name)
    if not values:
        return ""
    show = _percent if name not in ("reward_mean", "loss") else "{:.4g}".format
    text = f"{words} {show(values[0])}" + (f" → {show(values[-1])}" if len(values) > 1 else "")
    most = max(range(len(values)), key=values.__getitem__)
    if kind == "eval" and name == "accuracy" and values[most] > values[-1]:
        text += f", the most at step {steps[most]} ({show(values[most])})"
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def last_values(logs: Sequence[TrainingLog], kind: str) -> list[list[str]]:
    """A table: a header, then for every metric each run's first and last value."""
    names = dict.fromkeys(name for log in logs for name in log.names(kind))
    table = [["metric", *(f"{log.name}, {which}" for log in logs for which in ("first", "last"))]]
    for name in names:
        cells = [name]
        for log in logs:
            values = log.series(kind, name)[1]
            cells += [f"{values[0]:.4g}", f"{values[-1]:.4g}"] if values else ["", ""]
        table.append(cells)
    return table


def settings_that_differ(logs: Sequence[TrainingLog]) -> list[list[str]]:
    """A table: a header, then the settings in which the runs differ; their names and outputs aside."""
    every = [_flat(log.settings) for log in logs]
    keys = dict.fromkeys(key for settings in every for key in settings if key != "output")
    table = [["setting", *(log.name for log in logs)]]
    for key in keys:
        values = [str(settings.get(key, "")) for settings in every]
        if len(set(values)) > 1:
            table.append([key, *values])
    return table


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
