"""Model parameters in Orbax checkpoints. With `training_state`, the only module that knows Orbax.

MODEL/rrm_checkpoint.json    what it is; written last
MODEL/params/                an Orbax checkpoint: {"embedding": …, "layers": {"0": {…}, …}, …}
MODEL/config.json, …         see `assets`

RUN/checkpoints/STEP/        params (layers stacked, float32), opt_state, meta
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

from rrm_jax.checkpoints.assets import read_json, write_json
from rrm_jax.errors import RrmError

MANIFEST = "rrm_checkpoint.json"
PARAMS, OPT_STATE, META = "params", "opt_state", "meta"
FORMAT = 1
COMMITTED = "commit_success.txt"
_STATE = "state"  # the name Orbax gives to a checkpoint's only tree
_GROUP_BYTES = 256 * 2**20  # written in one save, at least
_MOST_GROUPS = 32  # a save takes the longer, the more were made before it
_CHUNK_BYTES = 16 * 2**20  # small enough that a device reads little more than its own shard

Names = tuple[str, ...]


def orbax_context(partial_load: bool = False) -> ocp.Context:
    """The options every checkpoint here is written and read with. Weights hardly compress: they are stored raw."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    context.pytree.loading.partial_load = partial_load
    # Left to choose, Orbax stores JSON as a tree of arrays, which not every JSON value survives.
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=META)
    context.checkpointables.registry = registry
    return context


@contextlib.contextmanager
def orbax_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise into an RrmError that says what was being done, and where."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # Orbax wraps; the first cause says what happened
            cause = cause.__cause__
        raise RrmError(f"cannot {doing} {path}: {_reason(cause)}") from error


def _reason(cause: BaseException) -> str:
    text = str(cause).strip().partition("\n")[0]
    system = re.search(r"os_error_code='(\d+)'", str(cause))  # TensorStore's messages hold whole array specs
    if system:
        return os.strerror(int(system.group(1)))
    return getattr(cause, "strerror", None) or text[:400] or type(cause).__name__


def write_params(directory: Path, tensors: Sequence[tuple[Names, int]], read: Callable[[Names], Any]) -> None:
    """Writes the named arrays, of the given sizes in bytes, as one Orbax checkpoint, a group at a time.

    `read(names)` gives an array, NumPy's or jax's, possibly sharded; it is asked for one after another, in order.
    With several processes all must write the same sequence. One group is in memory, with a copy while it is written.
    """
    total, largest = sum(size for _, size in tensors), max(size for _, size in tensors)
    context = orbax_context()
    context.memory.deepcopy_host_arrays = False  # nobody changes the arrays: every save ends here
    with context, orbax_errors("write", directory):
        for group in _groups(tensors, max(_GROUP_BYTES, largest, total // _MOST_GROUPS)):
            ocp.partial.save(str(directory.absolute()), _tree(group, read))
        ocp.partial.finalize(str(directory.absolute()))


def _tree(group: list[Names], read: Callable[[Names], Any]) -> Any:
    tree: dict[str, Any] = {}
    for names in group:
        node = tree
        for key in names[:-1]:
            node = node.setdefault(key, {})
        node[names[-1]] = read(names)
    return tree


def _groups(tensors: Sequence[tuple[Names, int]], group_bytes: int) -> Iterator[list[Names]]:
    group: list[Names] = []
    filled = 0
    for names, size in tensors:
        if group and filled + size > group_bytes:
            yield group
            group, filled = [], 0
        group.append(names)
        filled += size
    yield group


class Arrays:
    """The parameters of one Orbax checkpoint: their shapes, single tensors on the host, or trees on devices."""

    def __init__(self, checkpoint: Path, item: str | None = None):
        """`item` is the one to read among several (a training checkpoint's "params")."""
        self._checkpoint, self._item = checkpoint.absolute(), item
        self._context = ts.Context()
        with orbax_context(), orbax_errors("read", checkpoint):
            if item is None:
                tree = ocp.metadata(str(self._checkpoint)).metadata
            else:
                tree = ocp.checkpointables_metadata(str(self._checkpoint)).metadata[item]
        self.stored = leaf_shapes(tree)

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """The array "layers.0.mlp.up_kernel", or one layer of a stacked one, in the dtype it was written in."""
        directory = self._checkpoint / (self._item or _STATE)
        store = {"driver": "ocdbt", "base": f"file://{directory}/", "path": f"{name}/"}
        with orbax_errors("read", directory):
            array = ts.open({"driver": "zarr3", "kvstore": store}, context=self._context, open=True).result()
            return (array if layer is None else array[layer]).read().result()

    def load(self, abstract: Any) -> Any:
        """The arrays of a (possibly partial) tree of `jax.ShapeDtypeStruct`s, cast and placed as these say."""
        with orbax_context(partial_load=True), orbax_errors("load", self._checkpoint):
            if self._item is None:
                return ocp.load(str(self._checkpoint), abstract)
            return ocp.load_checkpointables(str(self._checkpoint), {self._item: abstract})[self._item]


def leaf_shapes(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a tree by name, the same for a tree in memory and for what Orbax says of the stored one."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def mismatches(stored: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], where: Path) -> list[str]:
    """What is missing, misshapen or extra in a checkpoint, one line each."""
    problems = []
    for name, shape in wanted.items():
        if name not in stored:
            problems.append(f"{name} is missing from {where}")
        elif tuple(stored[name].shape) != tuple(shape):
            problems.append(f"{name} in {where}: shape {list(stored[name].shape)}, not {list(shape)}")
    return problems + [f"{name} in {where} is not a parameter of this model" for name in stored if name not in wanted]


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    """Marks `directory` as a whole model checkpoint: what it holds, and the size of every file of its parameters."""
    files = sorted(path for path in (directory / PARAMS).rglob("*") if path.is_file())
    sizes = {str(path.relative_to(directory)): path.stat().st_size for path in files}
    write_json(directory / MANIFEST, {"format": FORMAT, **facts, "files": sizes})


def read_manifest(directory: Path) -> dict[str, Any]:
    """Raises RrmError for another format, and for files that are absent or of another size (a partial copy)."""
    manifest = read_json(directory / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise RrmError(
            f"{directory / MANIFEST} is of format {manifest.get('format')!r}, this version reads {FORMAT}; "
            "convert the model again"
        )
    for name, size in manifest.get("files", {}).items():
        path = directory / name
        if not path.is_file():
            raise RrmError(f"{directory} is incomplete: {name} is missing; copy or convert it again")
        if path.stat().st_size != size:
            raise RrmError(
                f"{directory} is damaged: {name} has {path.stat().st_size} bytes, not {size}; convert it again"
            )
    return manifest


def complete_steps(checkpoints: Path) -> list[int]:
    """The steps of a training run that were written to their end, ascending."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in step_directories(checkpoints) if (path / COMMITTED).is_file())


def step_directories(checkpoints: Path) -> list[Path]:
    """The directories of all steps, also of those that were never finished."""
    return [path for path in checkpoints.iterdir() if path.name.isascii() and path.name.isdigit() and path.is_dir()]


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """The JSON that was saved with a training step."""
    with orbax_context(), orbax_errors("read", checkpoint):
        return ocp.load_checkpointables(str(checkpoint.absolute()), {META: None})[META]
