"""Compiles the decode block of a 7B model for a chip that is not here, and reads what its loop does to memory.

    pip install 'jax[tpu]'      # or 'jax[cuda13]'; neither needs the chip
    python benchmarks/compiled_decode.py v5p
    python benchmarks/compiled_decode.py h200 --case shared --list

Prints a Markdown row for each case: bytes of the arguments, aliased (caches updated where they are), temporaries; and
from the optimised program everything of at least 1 MiB that a step of the loop writes, updates in place apart. Exits
with 1 when that includes a copy of a cache or of a weight. What is read off is the compiler's program: no times.

What has the shape of a cache or a weight, transposed or with axes merged, counts as a copy of it, unless it is a TPU's
prefetch or a matrix product; `optimised_program` says how these are told apart.
"""

import argparse
import collections
import dataclasses
import functools
import math
import os
import sys
import time
from typing import Any

from optimised_program import MIB, collectives, inner_loops, same_array, writes  # pyrefly: ignore[missing-import]

_GIB = 1 << 30
_TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
_TOPOLOGIES = _TPUS | {"h200": "h200:4"}


@dataclasses.dataclass(frozen=True)
class Case:
    """64 rows that continue `prompts` prompts of `prompt` columns, with `own` columns of their own."""

    prompts: int
    prompt: int
    own: int
    cache: str = "bfloat16"
    drafts: int = 0
    mesh: tuple[int, int] | None = None


ROWS = 64
CASES = {
    "apart": Case(64, 1024, 1024),
    "apart-4k": Case(64, 2048, 2048),
    "shared": Case(8, 2048, 2048),
    "shared-int8": Case(8, 2048, 2048, cache="int8"),
    "shared-look-up": Case(8, 2048, 2048, drafts=3),
    "shared-2x2": Case(8, 2048, 2048, mesh=(2, 2)),
}


def devices(target: str) -> list:
    """Compile-only. Raises RrmError where there is no compiler for them."""
    from rrm_jax.planning.plan import require_compiler
    from rrm_jax.planning.topology import topology

    described = topology(_TOPOLOGIES[target])
    require_compiler(described)
    return described.devices


def lowered(case: Case, layers: int, target: str):
    """The engine's decode block for the case, lowered for the target, and the abstract arguments."""
    import jax
    import jax.numpy as jnp

    from rrm_jax.models.decoder import Options
    from rrm_jax.models.presets import PAPER_MODELS
    from rrm_jax.parallel.mesh import MeshShape, make_mesh, partition_spec, replicated
    from rrm_jax.sampling.block import decode_block
    from rrm_jax.sampling.lookup import PromptLookup

    config = dataclasses.replace(PAPER_MODELS["7b"], num_layers=layers)
    chips = devices(target)
    data, tensor = case.mesh or (1, 1)
    mesh = make_mesh(MeshShape(data, 1, tensor), chips[: data * tensor])
    backend = "splash" if target in _TPUS else "cudnn"
    options = Options(dtype=jnp.bfloat16, spec=partition_spec if case.mesh else None, attention=backend)
    arguments = abstract_arguments(case, config, options, mesh)
    slots = jax.tree.map(lambda x: x.sharding, arguments[1])
    block = jax.jit(
        functools.partial(decode_block, config, options),
        out_shardings=(slots, replicated(mesh)),
        donate_argnums=1,
        static_argnames=("steps", "lookup", "early"),
    )
    lookup = PromptLookup(case.drafts) if case.drafts else None
    with jax.set_mesh(mesh):
        return block.lower(*arguments, steps=64, lookup=lookup, early=target in _TPUS), arguments


def abstract_arguments(case: Case, config, options, mesh) -> tuple:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from rrm_jax.models.params import abstract_params
    from rrm_jax.parallel.mesh import partition_spec
    from rrm_jax.sampling import control, engine
    from rrm_jax.sampling.block import Start, Table

    def place(tree, *axes):
        def one(x):
            at = NamedSharding(mesh, partition_spec(axes[: len(x.shape)]))
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)

        return jax.tree.map(one, tree)

    def state(make, **sizes):
        tree = jax.eval_shape(lambda: make(config, options, dtype=jnp.dtype(case.cache), **sizes))
        return place(tree, "batch")._replace(layers=place(tree.layers, "batch", "kv_heads"))

    def host(*shape, dtype=jnp.int32):
        return place(jax.ShapeDtypeStruct(shape, dtype))

    ways, history = mesh.shape["data"], case.own + case.prompt if case.drafts else 0
    params = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        abstract_params(config, options.dtype, stacked=False),
        engine.weight_shardings(config, mesh, options.dtype),
    )
    slots = state(engine._empty_slots, batch=ROWS, columns=case.own, history=history)
    shared = state(engine._empty_shared, prompts=case.prompts, columns=case.prompt)
    rows_of_one = host(ways, case.prompts // ways, ROWS // case.prompts)
    table = Table(host(case.prompts), rows_of_one, host(ways, ROWS // ways))
    prompt = host(ROWS, history) if history else None
    start = Start(host(ROWS, dtype=jnp.bool_), host(ways, ROWS // ways), host(ROWS), prompt)
    return params, slots, shared, table, place(control.free_rows(ROWS, 8, 32)), start, host(), host()


def kept(arguments) -> set[tuple[int, ...]]:
    """The shapes of caches (without their scales) and weights, whole and a device's part of each."""
    import jax

    params, slots, shared = arguments[:3]
    caches = [(layer.k, layer.v) for layer in [*slots.layers, *shared.layers]]
    leaves = jax.tree.leaves((params, caches))
    shapes = ((shape, x.dtype.itemsize) for x in leaves for shape in (x.shape, x.sharding.shard_shape(x.shape)))
    return {shape for shape, width in shapes if math.prod(shape) * width >= MIB}


def check_the_reader(target: str) -> None:
    """A loop that does copy its cache, so that finding none elsewhere means something."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    def copying(cache, column):
        def step(_, cache):
            return jnp.where(jnp.arange(cache.shape[1])[:, None] == column, jnp.bfloat16(1), cache)

        return jax.lax.fori_loop(0, 8, step, cache)

    here = SingleDeviceSharding(devices(target)[0])
    cache = jax.ShapeDtypeStruct((64, 4096, 512), jnp.bfloat16, sharding=here)
    column = jax.ShapeDtypeStruct((), jnp.int32, sharding=here)
    text = jax.jit(copying, donate_argnums=0).lower(cache, column).compile().as_text() or ""
    if not any(same_array(write.array.shape, cache.shape) for write in writes(text)):
        sys.exit("the reader does not see a cache that is rewritten in each step: this compiler prints another form")


def row(name: str, layers: int, target: str, show: bool) -> bool:
    """Prints a case's row; whether it is free of copies of caches and weights."""
    began = time.perf_counter()
    program, arguments = lowered(CASES[name], layers, target)
    compiled = program.compile()
    seconds = time.perf_counter() - began
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    found, whole = writes(text), kept(arguments)
    copies = [
        w for w in found
        if w.kind not in ("prefetch", "product") and any(same_array(w.array.shape, shape) for shape in whole)
    ]  # fmt: skip
    by_kind: dict[str, int] = collections.Counter()
    for write in found:
        kind = "compute" if write.kind == "product" else write.kind
        by_kind["branch" if write.branch else kind] += write.array.bytes
    columns = [
        f"{target} {name}", f"{layers}",
        *(f"{getattr(memory, f'{what}_size_in_bytes') / _GIB:.2f}" for what in ("argument", "alias", "temp")),
        f"{len(copies)}", *(f"{by_kind[kind] / MIB:,.0f}" for kind in ("copy", "write-back", "compute", "branch")),
        f"{len(inner_loops(text))}", f"{seconds:.0f}",
    ]  # fmt: skip
    print("| " + " | ".join(columns) + " |", flush=True)
    if show:
        counted = collections.Counter((w.kind, w.branch, w.opcode, w.array.text, w.array.bytes) for w in found)
        for (kind, branch, opcode, shape, size), count in sorted(counted.items(), key=lambda x: -x[0][4] * x[1]):
            print(f"  {count:3d} × {size / MIB:8.1f} MiB {kind}{' in a branch' * branch}: {opcode} {shape}")
        for loop in inner_loops(text):
            print(f"  inner loop: {loop}")
        for what, count in collections.Counter(collectives(text)).items():
            print(f"  {count:3d} × {what}")
    for copy in copies:
        print(f"  COPY: {copy.kind} {copy.opcode} {copy.array.text} of {copy.source}", file=sys.stderr)
    return not copies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=list(_TOPOLOGIES))
    parser.add_argument("--case", choices=list(CASES), action="append", help="default: all")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--list", action="store_true", help="show everything that is written")
    asked: Any = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    check_the_reader(asked.target)
    names = asked.case or list(CASES)
    print("| | layers | arguments GiB | aliased GiB | temporaries GiB | cache and weight copies "
          "| copied MiB | written back MiB | computed MiB | in branches MiB | inner loops | seconds |")  # fmt: skip
    print("|" + "---|" * 12)
    return 0 if all([row(name, asked.layers, asked.target, asked.list) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
