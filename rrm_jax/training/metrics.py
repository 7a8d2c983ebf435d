"""A run's metrics: one JSON row a step, TensorBoard scalars, and a line on the terminal."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rrm_jax.data.jsonl import AppendLog, write_whole

_LINE_SECONDS = 2.0


class Metrics:
    """Writes `metrics.jsonl` and `tensorboard/` in a run's directory.

    Opening at `step` drops the rows of later steps, which a resumed run makes again. Rows of one step may be
    several, of different `kind`s ("train", "eval").
    """

    def __init__(self, directory: Path, step: int):
        from tensorboardX import SummaryWriter

        path = directory / "metrics.jsonl"
        _keep_until(path, step)
        self._log = AppendLog(path)
        self._printed: dict[str, float] = {}
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1, flush_secs=10)

    def write(self, kind: str, step: int, values: dict[str, Any], show: tuple[str, ...] = ()) -> None:
        """Records `values` (numbers); prints those named in `show`, unless a line of this kind was just printed."""
        self._log.append({"kind": kind, "step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if show and time.monotonic() - self._printed.get(kind, -_LINE_SECONDS) >= _LINE_SECONDS:
            self._printed[kind] = time.monotonic()
            shown = "  ".join(f"{name} {values[name]:.4g}" for name in show if name in values)
            print(f"{kind} {step}  {shown}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._log.close()
        self._board.close()


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    with AppendLog(path) as log:
        rows = list(log.rows())
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) == len(rows):
        return
    write_whole(path, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in kept))


def read_metrics(directory: str | Path, kind: str) -> list[dict[str, Any]]:
    """The rows of one kind, in the order of their steps."""
    with open(Path(directory) / "metrics.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row for row in rows if row["kind"] == kind]
