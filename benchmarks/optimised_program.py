"""Reads what a compiled program's loops write, off the text of XLA's optimised HLO for a GPU or a TPU.

Kinds: "copy" only moves data; "write-back" brings an array from a TPU's VMEM to its HBM; "prefetch" is the other way,
the read that the next operation is then spared, and is no traffic of its own; "product" is a matrix product or a
kernel; "compute" is everything else. Updates in place are not listed: they write what they change.
"""

import dataclasses
import math
import re

from rrm_jax.planning.hlo import BODIES, Array, Computation, Instruction, parse

MIB = 1 << 20
_FREE = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "constant", "after-all",
    "optimization-barrier", "copy-start", "slice-start", "async-start", "call-start", "call-update", "partition-id",
    "all-gather-start", "all-reduce-start", "collective-permute-start",
}  # fmt: skip
_MOVES = {
    "parameter", "constant", "copy", "transpose", "bitcast", "bitcast-convert", "reshape", "slice", "dynamic-slice",
    "concatenate", "pad", "broadcast", "convert", "gather", "reverse", "tuple", "get-tuple-element",
}  # fmt: skip
_CALLS = ("call", "while", "conditional", "async-start", "call-start")
_EXCHANGES = ("all-", "collective-permute", "reduce-scatter", "ragged-all-to-all")
_PRODUCTS = {"dot", "convolution", "custom-call"}


@dataclasses.dataclass(frozen=True)
class Write:
    """Something that a step of the loop writes. `branch`: in a branch that it may not take."""

    kind: str
    opcode: str
    array: Array
    source: str
    branch: bool


def _in_loop(computations: dict[str, Computation]) -> dict[str, bool]:
    """The computations that a while loop runs, fusions apart, and whether each is in a branch only."""
    found: dict[str, bool] = {}

    def visit(name: str, looped: bool, branch: bool) -> None:
        for one in computations[name].values():
            if one.opcode not in _CALLS:
                continue
            inside, may_be_skipped = looped or one.opcode == "while", branch or one.opcode == "conditional"
            for called in one.computations(*BODIES):
                if inside:
                    found[called] = found.get(called, True) and may_be_skipped
                visit(called, inside, may_be_skipped)

    visit("ENTRY", False, False)
    return found


def _fused(computations, one: Instruction) -> Computation:
    return computations[one.computations("calls")[0]]


def _updated(computations, one: Instruction) -> set[int]:
    """Which results of an instruction are an operand's own buffer, of which a part is overwritten."""
    if one.opcode in ("dynamic-update-slice", "scatter"):
        return {0}
    if "output_to_operand_aliasing" in one.rest:
        return set(range(len(one.arrays)))
    if one.opcode != "fusion":
        return set()
    body = _fused(computations, one)
    root = next(x for x in body.values() if x.root)

    def behind(name: str, *more: str) -> Instruction:
        x = body[name]
        while x.opcode in ("bitcast", "reshape", *more):
            x = body[x.operands[0]]
        return x

    def in_place(name: str) -> bool:
        update = behind(name)
        if update.opcode not in ("dynamic-update-slice", "scatter"):
            return False
        return behind(update.operands[0], "dynamic-update-slice", "scatter").opcode == "parameter"

    return {at for at, name in enumerate(root.operands if root.opcode == "tuple" else [root.name]) if in_place(name)}


def _kind(computations, where: Computation, one: Instruction, array: Array) -> str:
    if one.opcode in ("copy-done", "slice-done"):
        if array.in_vmem:
            return "prefetch"
        source = where[one.operands[0]].arrays
        return "write-back" if any(x.in_vmem for x in source) else "copy"
    inside = {x.opcode for x in _fused(computations, one).values()} if one.opcode == "fusion" else {one.opcode}
    if inside <= _MOVES:
        return "copy"
    return "product" if inside & _PRODUCTS else "compute"


def writes(text: str, least: int = MIB) -> list[Write]:
    """What the loops of an optimised program write, at least so many bytes each, updates in place apart."""
    computations = parse(text)
    found = []
    for name, branch in _in_loop(computations).items():
        for one in computations[name].values():
            # ConcatBitcast gives the pieces of a prefetch one name.
            if one.opcode in _FREE or 'custom_call_target="ConcatBitcast"' in one.rest:
                continue
            updated = _updated(computations, one)
            source = re.search(r'op_name="([^"]*)"', one.rest)
            for at, array in enumerate(one.arrays):
                if array.bytes >= least and at not in updated:
                    kind = _kind(computations, computations[name], one, array)
                    found.append(Write(kind, one.opcode, array, source[1] if source else "", branch))
    return found


def collectives(text: str) -> list[str]:
    """What the devices exchange in a step of the loops, of any size: "all-reduce bf16[64,3584]"."""
    computations = parse(text)
    return [
        f"{one.opcode.removesuffix('-start')} {one.arrays[-1].text.split('{')[0]}"
        for name in _in_loop(computations)
        for one in computations[name].values()
        if one.opcode.startswith(_EXCHANGES) and not one.opcode.endswith("-done")
    ]


def same_array(one: tuple[int, ...], two: tuple[int, ...]) -> bool:
    """Whether two shapes can be of the same array: transposed, or with neighbouring axes merged, or split."""
    one, two = (tuple(size for size in shape if size > 1) for shape in (one, two))
    ends_one, ends_two = ({math.prod(shape[:at]) for at in range(1, len(shape) + 1)} for shape in (one, two))
    merged = math.prod(one) == math.prod(two) and (ends_one <= ends_two or ends_two <= ends_one)
    return merged or sorted(one) == sorted(two)


def inner_loops(text: str) -> list[str]:
    """Where the loops come from that every step runs: a loop over rows or columns costs a step its latency."""
    computations = parse(text)
    return [
        re.sub(r'.*op_name="([^"]*)".*', r"\1", one.rest)
        for name, branch in _in_loop(computations).items()
        for one in computations[name].values()
        if one.opcode == "while" and not branch
    ]
