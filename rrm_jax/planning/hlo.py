"""Reads the text of XLA's optimised programs: computations, their instructions, and how often loops run them."""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s4": 0.5, "u4": 0.5, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
_ARRAY = re.compile(r"\b([a-z]+\d[a-z0-9]*|pred)\[([\d,]*)\](?:\{[^}]*\})?")
BODIES = ("to_apply", "body", "calls", "branch_computations", "true_computation", "false_computation")
_END = re.compile(r"\}(, execution_thread=.*)?")  # kernels' metadata has lines that begin with a bracket too
_TURNS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """An operand or a result as the text has it: its shape without the layout, and its size in bytes."""

    text: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def in_vmem(self) -> bool:
        """Whether the compiler put it into a TPU's fast memory (memory space 1)."""
        return "S(1)" in self.text


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `arrays` are its results, `operands` names of other lines; `rest` is what stands
    behind the operands."""

    name: str
    root: bool
    arrays: list[Array]
    opcode: str
    operands: list[str]
    rest: str
    value: str = ""
    """What stands in the brackets of a constant."""

    def computations(self, *attributes: str) -> list[str]:
        """Names that the given attributes hold: `body=%a`, `branch_computations={%a, %b}`."""
        found = []
        for attribute in attributes:
            for one, several in re.findall(rf"\b{attribute}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", self.rest):
                found += [one] if one else re.findall(r"[\w.\-]+", several)
        return found


Computation = dict[str, Instruction]


def parse(text: str) -> dict[str, Computation]:
    """By name; the program's own is "ENTRY"."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name = "ENTRY" if line.startswith("ENTRY") else line[1:].split(" ")[0]
            current = computations[name] = {}
        elif _END.fullmatch(line):
            current = None
        elif current is not None and (one := _instruction(line)):
            current[one.name] = one
    return computations


def executed(computations: dict[str, Computation], turns: int) -> Iterator[tuple[str, Instruction, int]]:
    """Every instruction that a run of the program executes, with its computation's name and how many times.

    A loop whose number of turns is not in the text is taken to make `turns` if no other loop is around it, and else
    one. Of branches all count.
    """

    def visit(name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for one in computations.get(name, {}).values():
            yield name, one, times
            inside = times
            if one.opcode == "while":
                inside = times * (_turns(computations, one) or (turns if times == 1 else 1))
            for called in one.computations(*BODIES):
                yield from visit(called, inside)

    yield from visit("ENTRY", 1)


def _turns(computations: dict[str, Computation], loop: Instruction) -> int | None:
    """How many turns a loop makes that counts from 0 up to a constant; None where that is not what it does."""
    if known := _TURNS.search(loop.rest):
        return int(known[1])
    condition, body = (computations.get("".join(loop.computations(part)), {}) for part in ("condition", "body"))
    compare = _root(condition)
    if compare is None or compare.opcode != "compare" or "direction=LT" not in compare.rest:
        return None
    counter, bound = (condition.get(name) for name in compare.operands)
    place = re.search(r"index=(\d+)", counter.rest) if counter is not None else None
    if bound is None or not bound.value.isdigit() or place is None:
        return None
    return -(-int(bound.value) // _increment(body, int(place[1])))


def _increment(body: Computation, place: int) -> int:
    """What a turn adds to the counter, which loops that were unrolled do by more than one."""
    root = _root(body)
    added = body.get(root.operands[place]) if root is not None and place < len(root.operands) else None
    if added is None or added.opcode != "add":
        return 1
    values = [body[name].value for name in added.operands if name in body and body[name].value.isdigit()]
    return max(int(values[0]), 1) if values else 1


def _root(computation: Computation) -> Instruction | None:
    return next((one for one in computation.values() if one.root), None)


def _closing(text: str) -> int:
    """Where the bracket that `text` begins with is closed."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at
    return len(text)


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = re.match(r"[\w\-]+", rest)
    if not opcode or not rest[opcode.end() :].startswith("("):
        return None
    rest = rest[opcode.end() :]
    inside = rest[1 : _closing(rest)]
    operands = re.findall(r"%([\w.\-]+)", inside)
    arrays = []
    for found in _ARRAY.finditer(shape):
        sizes = tuple(int(size) for size in found[2].split(",") if size)
        arrays.append(Array(found[0], sizes, int(math.prod(sizes) * _BYTES.get(found[1], 0))))
    value = inside if opcode[0] == "constant" else ""
    return Instruction(head[2], bool(head[1]), arrays, opcode[0], operands, rest[_closing(rest) + 1 :], value)
