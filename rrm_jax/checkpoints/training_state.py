"""The state of a training run, saved while training goes on, whole or not at all."""

import contextlib
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from rrm_jax.checkpoints.assets import barrier, refuse
from rrm_jax.checkpoints.run_files import best_step
from rrm_jax.checkpoints.store import (
    COMMITTED,
    META,
    OPT_STATE,
    PARAMS,
    complete_steps,
    leaf_shapes,
    mismatches,
    orbax_context,
    orbax_errors,
    step_directories,
)
from rrm_jax.errors import RrmError


class TrainingCheckpoints:
    """The steps below `directory` (a run's `checkpoints/`): the last `keep` complete ones stay.

    So does the one with the largest held-out metric `best`, if that is given, as the run's metrics.jsonl has it: what
    stays depends on files alone, also after a kill.

    A step counts once its commit file exists, which is written last and removed first: a process killed at any
    moment leaves no torn step listed. One writer at a time; opening removes what a killed one left half written.
    With several processes, each calls everything.
    """

    def __init__(self, directory: str | Path, keep: int, best: str | None = None):
        if keep < 1:
            raise RrmError(f"keep must be ≥ 1 checkpoint, not {keep}")
        self._directory, self._keep, self._best = Path(directory).absolute(), keep, best
        self._removal: threading.Thread | None = None
        logging.getLogger("absl").addFilter(_not_of_orbax)
        with orbax_errors("write", self._directory):
            if jax.process_index() == 0:
                self._directory.mkdir(parents=True, exist_ok=True)
                for step in step_directories(self._directory):
                    if not (step / COMMITTED).is_file():
                        shutil.rmtree(step)
            barrier("cleaned")
            context = orbax_context()
            context.array.saving.scoped_storage_options_creator = _one_layer_a_chunk
            context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
            # By default Orbax keeps every step. `_prune` removes old ones, as Orbax may remove a step's data before
            # its commit file.
            self._checkpointer = ocp.training.Checkpointer(str(self._directory), context=context)

    def save(self, step: int, params: Any, opt_state: Any, meta: dict[str, Any]) -> None:
        """Copies the state off the devices and returns; it is written while training goes on.

        `meta` is JSON. The arrays may be donated or changed afterwards. Raises RrmError when the save before
        could not be written, `step` exists, or there is no room for it.
        """
        self.wait()
        if step in complete_steps(self._directory):
            raise RrmError(f"{self._directory} holds step {step} already")
        self.check_room(state_bytes(params, opt_state))
        with orbax_errors(f"save step {step} in", self._directory):
            items = {PARAMS: params, OPT_STATE: opt_state, META: meta}
            self._checkpointer.save_checkpointables_async(step, items, force=True)

    def check_room(self, size: int) -> str | None:
        """Looks whether the file system has room for checkpoints of `size` bytes. Raises RrmError if not for one more.

        Returns a warning if not for all that will stand there at a time: those that stay, and one being written.
        """
        free = self._free()
        if free < size and self._removal is not None:
            self._removal.join()
            free = self._free()
        if free < size:
            raise RrmError(
                f"no room for a checkpoint in {self._directory}: it takes {_size(size)}, and {_size(free)} are free; "
                "make room, then go on with --resume"
            )
        more = self._keep + (2 if self._best else 1) - len(complete_steps(self._directory))
        if free >= more * size:
            return None
        return (
            f"{self._directory} will fill its file system: up to {more} more checkpoints of {_size(size)} will stand "
            f"there, and {_size(free)} are free; make room, or lower checkpoint.keep"
        )

    def _free(self) -> int:
        with orbax_errors("write", self._directory):
            free = shutil.disk_usage(self._directory).free
        if jax.process_count() > 1:  # all must come to the same decision
            from jax.experimental import multihost_utils

            free = int(multihost_utils.broadcast_one_to_all(np.float64(free)))
        return free

    def latest_step(self) -> int | None:
        """The last complete step, the same on every process."""
        steps = complete_steps(self._directory)
        latest = steps[-1] if steps else -1
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            latest = int(multihost_utils.broadcast_one_to_all(latest))
        return None if latest < 0 else latest

    def restore(self, step: int, abstract_params: Any, abstract_opt_state: Any) -> tuple[Any, Any, dict[str, Any]]:
        """(params, opt_state, meta) of `step`, placed by the shardings of the abstract trees, whatever mesh wrote it.

        Raises RrmError when there is no such step or it holds other arrays than asked for.
        """
        self.wait()
        path = self._directory / str(step)
        if step not in complete_steps(self._directory):
            raise RrmError(f"{self._directory} holds no complete step {step}")
        with orbax_context(), orbax_errors("restore", path):
            stored = ocp.checkpointables_metadata(str(path)).metadata
            for item, abstract in ((PARAMS, abstract_params), (OPT_STATE, abstract_opt_state)):
                shapes = {name: leaf.shape for name, leaf in leaf_shapes(abstract).items()}
                refuse(f"{path} holds another state", mismatches(leaf_shapes(stored[item]), shapes, path / item))
            wanted = {PARAMS: abstract_params, OPT_STATE: abstract_opt_state, META: None}
            items = ocp.load_checkpointables(str(path), wanted)
        return items[PARAMS], items[OPT_STATE], items[META]

    def wait(self) -> None:
        """Returns when the last save is on disk and old steps are gone. Raises RrmError if it could not be written."""
        try:
            with orbax_errors("write", self._directory):
                self._checkpointer.wait()
        except RrmError as error:
            raise RrmError(f"{error}; the checkpoints before are whole, and --resume goes on from the last") from None
        self._prune()

    def close(self) -> None:
        """Waits for what is being saved and removed. RrmError where that failed."""
        try:
            self.wait()
            if self._removal is not None:
                self._removal.join()
        finally:
            with orbax_errors("close", self._directory):
                self._checkpointer.close()

    def _prune(self) -> None:
        if jax.process_index() != 0:
            return
        if self._removal is not None:
            self._removal.join()
        complete = complete_steps(self._directory)
        best = best_step(self._directory.parent, self._best, complete) if self._best else None
        old = [step for step in complete[: -self._keep] if step != best]
        for step in old:
            (self._directory / str(step) / COMMITTED).unlink()
        if old:
            self._removal = threading.Thread(target=_remove, args=([self._directory / str(step) for step in old],))
            self._removal.start()


def state_bytes(*trees: Any) -> int:
    """What the arrays of `trees` take in a checkpoint, over all devices."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(trees))


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs each of its threads' errors with its traceback; what went wrong is raised as well, and told once."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _one_layer_a_chunk(key: Any, value: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions | None:
    """Chunks that hold one layer of a stacked array, so that exporting can read the layers one by one."""
    if any(getattr(part, "key", None) == "layers" for part in key) and len(value.shape) > 1:
        return ocp.options.ArrayOptions.Saving.StorageOptions(shard_axes=(0,))
    return None


def _remove(directories: list[Path]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):  # no longer listed; removed when the run is next opened
            shutil.rmtree(directory)
