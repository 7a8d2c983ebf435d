"""What devices exchange, read off an optimised program: how often, how many bytes, along which axes of the mesh."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from rrm_jax.planning.hlo import Computation, Instruction, executed, parse

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# How TPUs write what goes from slice to slice: pairs of transfers that their runtime makes a collective of.
_SLICE_TRANSFER = re.compile(r'_xla_megascale_target="\{([\d,]+)\}.*?_xla_megascale_transfer_type="([A-Z_]+)"')


@dataclasses.dataclass(frozen=True)
class Exchange:
    """`count` collectives of a kind along `axes` ("fsdp", "fsdp × tensor"; "slices" from TPU slice to slice; "?" where
    groups follow no axes), in one run of a program; `sent`: the bytes that each device sends in them, if data go around
    a ring."""

    kind: str
    axes: str
    count: int
    sent: float


def exchanges(text: str, mesh: Mapping[str, int], turns: int = 1) -> list[Exchange]:
    """Of a program for a mesh of these axes and sizes, the most bytes first; `turns` as in `hlo.executed`."""
    computations = parse(text)
    counts: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for where, one, times in executed(computations, turns):
        kind = one.opcode.removesuffix("-start")
        if one.opcode in ("send", "recv") and (between := _SLICE_TRANSFER.search(one.rest)):
            # Of a collective between slices, that one which has the whole.
            kind, size = between[2].lower().replace("_", "-"), between[1].count(",") + 1
            if one.opcode == ("recv" if kind == "all-gather" else "send"):
                counts[kind, "slices"][0] += times
                counts[kind, "slices"][1] += times * _sent(kind, one.arrays[0].bytes, size)
            continue
        if kind not in _KINDS:
            continue
        axes, size = _along(one.rest, mesh)
        if size == 1:
            continue
        if kind == "all-reduce" and "all-reduce-scatter" in where:  # how TPUs write a reduce-scatter
            kind = "reduce-scatter"
        entry = counts[kind, axes]
        entry[0] += times
        entry[1] += times * _sent(kind, _bytes(computations, where, one, kind), size)
    found = [Exchange(kind, axes, int(count), sent) for (kind, axes), (count, sent) in counts.items()]
    return sorted(found, key=lambda exchange: -exchange.sent)


def _bytes(computations: dict[str, Computation], where: str, one: Instruction, kind: str) -> int:
    """Of the whole: the gathered, or the one that is to be reduced, on one device."""
    operands = [computations[where][name] for name in one.operands if name in computations[where]]
    before = sum(array.bytes for operand in operands for array in operand.arrays)
    # The result of a "-start" also names its operands.
    after = sum(array.bytes for array in one.arrays) - (before if one.opcode.endswith("-start") else 0)
    return max(before, after) if kind != "collective-permute" else before


def _sent(kind: str, size: int, devices: int) -> float:
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) / devices


def _along(attributes: str, mesh: Mapping[str, int]) -> tuple[str, int]:
    """The mesh axes along which a collective's groups lie, and how many devices a group has."""
    shape = tuple(mesh.values())
    groups = _groups(attributes, math.prod(shape))
    if groups is None:
        return "?", math.prod(shape)
    if max(map(len, groups)) == 1:
        return "", 1
    varying = set()
    for group in groups[:4]:
        places = np.array(np.unravel_index(np.array(group), shape))
        varying |= {axis for axis in range(len(shape)) if len(set(places[axis])) > 1}
    names = list(mesh)
    size = len(groups[0])
    if "source_target_pairs" in attributes:
        size = 2
    elif size != math.prod(shape[axis] for axis in varying):
        return " × ".join(names[axis] for axis in sorted(varying)) + " (in part)", size
    return " × ".join(names[axis] for axis in sorted(varying)), size


def _groups(attributes: str, devices: int) -> list[list[int]] | None:
    """In the three ways that XLA writes them, or as pairs; None if in none of these."""
    if found := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return [pair for pair in _lists(found[1]) if pair[0] != pair[1]] or [[0]]
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        order = _iota(found[2]) if "<=" in found[2] else np.arange(math.prod(sizes.values()))
        return _of_axes(order.reshape(tuple(sizes.values())), list(sizes), found[3])
    if found := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _iota(found[1]).tolist()
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return _lists(found[1])
    if re.search(r"replica_groups=\{\}", attributes):
        return [list(range(devices))]
    return None


def _lists(text: str) -> list[list[int]]:
    return [[int(at) for at in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]


def _iota(text: str) -> np.ndarray:
    """`[4,2]<=[2,4]T(1,0)`: 0, 1, … in the second shape, transposed, in the first shape."""
    found = re.search(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert found is not None
    shape, source, turn = ([int(x) for x in part.split(",")] if part else None for part in found.groups())
    assert shape is not None
    assert source is not None
    ids = np.arange(math.prod(source)).reshape(source)
    return (ids if turn is None else ids.transpose(turn)).reshape(shape)


def _of_axes(ids: np.ndarray, names: list[str], chosen: str) -> list[list[int]]:
    """Groups along `'a', 'b':(2)4`: whole axes, or of one the part of size 4 after one of size 2."""
    shape: list[int] = []
    inside: list[int] = []
    parts = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)}
    for name, length in zip(names, ids.shape, strict=True):
        before, size = parts.get(name, ("1", "1"))
        whole = name in parts and not size
        first, own = (1, length) if whole else (int(before or 1), int(size or 1))
        inside += [len(shape) + 1] if name in parts else []
        shape += [first, own, length // (first * own)]
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    return ids.reshape(shape).transpose(outside + inside).reshape(-1, math.prod(shape[at] for at in inside)).tolist()
