"""A run's metrics: one JSON row a step, TensorBoard scalars, a line on the terminal; Weights & Biases on request."""

import contextlib
import os
import sys
import time
import types
import uuid
from pathlib import Path
from typing import Any

import jax

from rrm_jax.checkpoints.assets import barrier
from rrm_jax.checkpoints.run_files import METRICS, log_rows
from rrm_jax.data.jsonl import AppendLog
from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.training.config import TrainConfig

_LINE_SECONDS = 2.0
_WANDB_ID = "wandb_id"


class Metrics:
    """Writes `metrics.jsonl` and `tensorboard/` in a run's directory; with `config.log.wandb`, sends them there too.

    Opening at `step` drops the rows of later steps, which a resumed run makes again. Rows of one step may be
    several, of different `kind`s ("train", "eval"). With several processes, each calls everything; the first writes.
    """

    def __init__(self, directory: Path, step: int, config: TrainConfig):
        path, self._best, self._steps = directory / METRICS, config.checkpoint.best, config.steps
        self._writes = jax.process_index() == 0
        if self._writes:
            keep_until(path, step)
        barrier("metrics")
        self._known = {(row.get("kind"), row["step"]) for _, row in log_rows(path)}
        self._printed: dict[str, float] = {}
        if self._writes:
            from tensorboardX import SummaryWriter

            self._log = AppendLog(path)
            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1, flush_secs=10)
            self._wandb = _start_wandb(directory, config) if config.log.wandb else None

    def has(self, kind: str, step: int) -> bool:
        """Whether a row of this kind and step was written, by this process or by the one that it goes on from."""
        return (kind, step) in self._known

    def write(self, kind: str, step: int, values: dict[str, Any], show: tuple[str, ...] = ()) -> None:
        """Records `values` (numbers); prints those named in `show`, unless a line of this kind was just printed.

        Raises RrmError for held-out metrics without the one that `checkpoint.best` names.
        """
        if kind == "eval" and self._best is not None and self._best not in values:
            raise RrmError(f"checkpoint.best {self._best!r} is not a held-out metric; there are {', '.join(values)}")
        self._known.add((kind, step))
        if not self._writes:
            return
        self._log.append({"kind": kind, "step": step, **values})
        named = {f"{kind}/{name}": value for name, value in values.items()}
        for name, value in named.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(named, step=step)
        if show and time.monotonic() - self._printed.get(kind, -_LINE_SECONDS) >= _LINE_SECONDS:
            self._printed[kind] = time.monotonic()
            shown = "  ".join(f"{name} {values[name]:.4g}" for name in show if name in values)
            print(f"{kind} {step} of {self._steps}  {shown}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes all of them, whichever raises."""
        if not self._writes:
            return
        with contextlib.ExitStack() as closing:  # each is closed, whatever the others raise
            closing.callback(self._log.close)
            closing.callback(self._board.close)
            if self._wandb is not None:
                closing.callback(self._wandb.finish)


def keep_until(path: Path, step: int) -> None:
    """Cuts a log, whose rows stand in the order of their steps, after the last row of `step`, and a torn line off."""
    if not path.exists():
        return
    keep = 0
    for end, row in log_rows(path):
        if row["step"] > step:
            break
        keep = end
    try:
        os.truncate(path, keep)
    except OSError as error:
        raise RrmError(f"cannot write {path}: {error.strerror or error}") from None


def import_wandb() -> types.ModuleType:
    """The package wandb. Raises RrmError where it is not installed."""
    try:
        import wandb  # pyrefly: ignore[missing-import]
    except ImportError:
        raise RrmError(
            "log.wandb needs the package wandb: install it with  pip install 'rrm-jax[wandb]'  or set log.wandb=null"
        ) from None
    return wandb


def _start_wandb(directory: Path, config: TrainConfig) -> Any:
    """A run there named as the directory; its id stays in the directory, so that a resumed run goes on in it."""
    wandb, path = import_wandb(), directory / _WANDB_ID
    if not path.exists():
        write_whole(path, uuid.uuid4().hex + "\n")
    identity = path.read_text(encoding="utf-8").strip()
    try:
        return wandb.init(
            project=config.log.wandb,
            name=directory.resolve().name,
            id=identity,
            resume="allow",
            dir=str(directory),
            config=config.model_dump(mode="json"),
            allow_val_change=True,
        )
    except Exception as error:  # its own classes, which differ from version to version
        raise RrmError(
            f"Weights & Biases does not start: {error}; log in with  wandb login,  set WANDB_MODE=offline, or set "
            "log.wandb=null, and go on with --resume"
        ) from error
