"""What each program of a run holds on a device, by what it is: read off the compiled program, or estimated."""

import dataclasses
import re
import time
from collections.abc import Iterator, Mapping

import jax

from rrm_jax.errors import RrmError
from rrm_jax.planning.collectives import Exchange, exchanges
from rrm_jax.planning.programs import BLOCK, Program, RunPrograms, device_bytes

CACHES = ("rows' cache", "prompts' cache")


@dataclasses.dataclass(frozen=True)
class Footprint:
    """One program on one device: bytes that are held while it runs, by name; what devices exchange in one run of it.

    `holds` includes the state that waits; beside names of `RunPrograms.state` it has "batch" (other arguments),
    "temporaries" and "code". `failed`: why the compiler made no program of it, "" if it did; then `holds` is what was
    known beforehand, and the compiler's own count where it said it. `moved`: bytes that a run of it at least reads and
    writes. `seconds`: what tracing and compiling took.
    """

    name: str
    holds: Mapping[str, int]
    exchanges: tuple[Exchange, ...]
    moved: int
    seconds: float
    failed: str = ""

    @property
    def total(self) -> int:
        """Bytes of all that it holds."""
        return sum(self.holds.values())


def compiled(programs: RunPrograms, only: tuple[str, ...] = ()) -> Iterator[Footprint]:
    """Compiles the programs (`only` those, if any are named), one after another, for the mesh's devices."""
    sizes = {name: device_bytes(tree) for name, tree in programs.state.items()}
    chosen = [program for program in programs.all() if not only or program.name in only]
    if missing := set(only) - {program.name for program in chosen}:
        known = ", ".join(program.name for program in programs.all())
        raise RrmError(f"no program {', '.join(sorted(missing))} in this run; it has {known}")
    for program in chosen:
        began = time.perf_counter()
        try:
            made = program.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            yield _too_large(program, sizes, str(error), time.perf_counter() - began)
            continue
        yield _footprint(program, sizes, made, programs.mesh_of(program.name).shape, began)


def _footprint(program: Program, sizes: Mapping[str, int], made, mesh: Mapping[str, int], began: float) -> Footprint:
    memory = made.memory_analysis()
    arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
    holds = {name: sizes[name] for name in (*program.takes, *program.beside)}
    # Compilers pad small arrays to tiles; a difference below zero is an argument that was not used.
    holds["batch"] = max(arguments - sum(sizes[name] for name in program.takes), 0)
    given = results - memory.alias_size_in_bytes
    holds[program.gives] = holds.get(program.gives, 0) + given
    # `temp_size_in_bytes` counts some results once more; what a TPU's compiler compares with the chip's memory is this.
    allocated = getattr(memory, "total_allocation_bytes", 0)
    temporaries = allocated - arguments - given if allocated else memory.temp_size_in_bytes
    holds["temporaries"] = holds.get("temporaries", 0) + max(temporaries, 0)
    holds["code"] = memory.generated_code_size_in_bytes
    found = exchanges(made.as_text() or "", mesh, BLOCK if program.name == "decode" else 1)
    return Footprint(program.name, holds, tuple(found), arguments + results, time.perf_counter() - began)


def _too_large(program: Program, sizes: Mapping[str, int], error: str, seconds: float) -> Footprint:
    """The compiler knows the chip's memory, and says what a program would use if that is more."""
    holds = {name: sizes[name] for name in (*program.takes, *program.beside)}
    if used := re.search(r"HLO temporaries \(([\d.]+)([KMG])\)", error):  # arguments and results among them
        taken = int(float(used[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[used[2]])
        holds["temporaries"] = max(taken - sum(sizes[name] for name in program.takes), 0)
    line = next((line for line in error.splitlines() if "Ran out of memory" in line), error)
    return Footprint(program.name, holds, (), 0, seconds, line[:300])
