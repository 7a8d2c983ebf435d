"""What a training run has written down about itself: the rows of its logs, and which checkpoint is the best."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from rrm_jax.errors import RrmError

CONFIG_YAML = "config.yaml"
METRICS = "metrics.jsonl"
TRACES = "traces.jsonl"
BEST = "best"


def log_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte at which the row ends, row) of a run's log, oldest first; nothing where there is no file.

    A last line without its newline is being written, or was torn: it is left out. The file is only read. Raises
    RrmError for any other line that is not a JSON object with a step.
    """
    end = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                try:
                    row = json.loads(line)
                    int(row["step"])
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise RrmError(f"{path}:{number} is not a row with a step ({error}); the log is damaged") from None
                yield end, row
    except FileNotFoundError:
        return
    except OSError as error:
        raise RrmError(f"cannot read {path}: {error.strerror or error}") from None


def read_metrics(run: str | Path, kind: str) -> list[dict[str, Any]]:
    """The rows of one kind ("train", "eval") of a run's metrics, in the order of their steps."""
    return [row for _, row in log_rows(Path(run) / METRICS) if row.get("kind") == kind]


def best_step(run: Path, metric: str, steps: Iterable[int]) -> int | None:
    """The one of `steps` whose held-out `metric` is the largest, the first of equals; None if none was evaluated."""
    among, best, largest = set(steps), None, -math.inf
    for row in read_metrics(run, "eval"):
        value = row.get(metric)
        if row["step"] in among and isinstance(value, int | float) and value > largest:
            best, largest = row["step"], value
    return best


def read_settings(run: Path) -> dict[str, Any]:
    """A run's resolved configuration. Raises RrmError where `run` is no training run."""
    path = run / CONFIG_YAML
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RrmError(f"{run} is not a training run: it has no {CONFIG_YAML}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RrmError(f"cannot read {path}: {error}") from None
    if not isinstance(settings, dict):
        raise RrmError(f"{path} does not hold a configuration")
    return settings


def chosen_step(run: Path, wanted: str | None, steps: list[int]) -> int:
    """Which of a run's complete `steps` "40", "best" or None (the last) is. Raises RrmError where there is none."""
    if not steps:
        raise RrmError(f"{run} is a training run without a complete checkpoint yet")
    there = f"; there are {', '.join(map(str, steps))}"
    if wanted is None:
        return steps[-1]
    if wanted != BEST:
        if int(wanted) not in steps:
            raise RrmError(f"{run} has no complete checkpoint of step {wanted}{there}")
        return int(wanted)
    metric = (read_settings(run).get("checkpoint") or {}).get("best")
    if metric is None:
        raise RrmError(f"{run} keeps no best checkpoint (its checkpoint.best is null); choose a step{there}")
    best = best_step(run, metric, steps)
    if best is None:
        raise RrmError(f"none of the checkpoints in {run} has a held-out {metric}; choose a step{there}")
    return best


def split_step(path: Path) -> tuple[Path, str | None]:
    """(RUN, "40" or "best") of RUN/checkpoints/40 and RUN/checkpoints/best; (path, None) of any other path."""
    if path.parent.name == "checkpoints" and (path.name == BEST or (path.name.isascii() and path.name.isdigit())):
        run = path.parent.parent
        if (run / "assets").is_dir():  # else it may be a model directory of that name
            return run, path.name
    return path, None
