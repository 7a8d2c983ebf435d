"""Plans of the configurations that come with the package, for TPUs and GPUs that are not here.

    python -m benchmarks.plans                  # all of them, by arithmetic
    python -m benchmarks.plans --compile        # a few compiled as well, beside the arithmetic; needs libtpu
    python -m benchmarks.plans --scaling        # RRM-7B's update compiled for 16, 64 and 256 chips; needs libtpu

Prints Markdown tables. Of the compiled, each program's GiB on a device, the compiler's and by arithmetic. Of scaling,
with as many prompts a chip throughout: what a device sends in one forward and backward, seconds a step of that by the
network and by its products, and tokens a second of log-probs and updates together, at half the roofline. Compiling is
minutes a program, on two cores; docs/planning.md has what was found.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax

from rrm_jax.config import load_config
from rrm_jax.evaluation.ranking_report import table
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.parallel.mesh import AXES
from rrm_jax.planning.plan import Plan, plan
from rrm_jax.planning.search import analytic_plan
from rrm_jax.planning.topology import topology
from rrm_jax.testing import tiny_config
from rrm_jax.training.config import TrainConfig

_GIB = 2**30
TINY = "tiny"
"""A model of 23,000 parameters in place of one of the reader's own."""


class Row(NamedTuple):
    config: str
    model: str
    devices: str
    overrides: Sequence[str] = ()


# Of each size, devices of every kind that hold it, with what has to be changed for that.
_DEVICES = {
    "1.5b": {"v4:2x2x4": [], "v5e:4x4": [], "v5p:2x2x1": [], "v6e:4x4": [], "h100:8": []},
    "7b": {"v4:2x2x4": ["mesh.tensor=2"], "v5e:8x8": ["mesh.tensor=4"], "v5p:2x2x4": [], "v6e:4x4": ["mesh.tensor=2"],
           "h100:8": []},
    "14b": {"v4:4x4x4": ["mesh.tensor=4"], "v5e:16x16": ["mesh.tensor=8"], "v5p:2x2x4": [],
            "v6e:8x8": ["mesh.tensor=4"], "h100:16": []},
    "32b": {"v4:4x4x4": ["mesh.tensor=8"], "v5e:16x16": ["mesh.tensor=8"], "v5p:4x4x4": [],
            "v6e:8x8": ["mesh.tensor=8"], "h100:32": []},
}  # fmt: skip
_LORA = {"v4:2x2x1": ["mesh.tensor=2"], "v5e:4x4": ["mesh.tensor=4"], "v5p:1x1x1": [], "v6e:2x2": ["mesh.tensor=2"],
         "h100:1": []}  # fmt: skip
_WARM_START = {"v4:2x2x4": [], "v5e:8x8": [], "v5p:2x2x1": [], "v6e:4x4": [], "h100:8": []}
_POLICY = {"v5p:2x2x4": [], "v6e:4x4": ["mesh.tensor=2"], "h100:8": []}
_OF_A_CPU = ("grpo_tiny", *(f"posttrain/tiny/{name}" for name in ("warm_start", "tournament", "verifier", "coin")))

SHIPPED = [
    *(Row(f"{name}_{size}", size, *one) for name in ("rrm", "direct_judge") for size in _DEVICES
      for one in _DEVICES[size].items()),
    *(Row("rrm_7b_lora", "7b", *one) for one in _LORA.items()),
    *(Row("warm_start", "7b", *one) for one in _WARM_START.items()),
    *(Row(f"posttrain/{name}_7b", "7b", *one) for name in ("rl", "dpo") for one in _POLICY.items()),
    *(Row(name, TINY, "cpu:1") for name in _OF_A_CPU),
]  # fmt: skip
COMPILED = [
    Row("rrm_1.5b", "1.5b", "v5e:4x4"), Row("rrm_7b", "7b", "v5e:8x8", ["mesh.tensor=4"]),
    Row("rrm_7b", "7b", "v4:2x2x4", ["mesh.tensor=2"]),
]  # fmt: skip
SCALING = [
    Row("rrm_7b", "7b", f"{chip}:{size}", data)
    for chip, sizes in {"v5p": ("2x2x4", "4x4x4", "4x8x8"), "v6e": ("4x4", "8x8", "16x16")}.items()
    for size, data in zip((sizes[0], sizes[1], sizes[1], sizes[2], sizes[2]),
                          ([], [], ["mesh.data=4"], [], ["mesh.data=16"]), strict=True)
]  # fmt: skip
_UPDATE = ("log-probs", "forward and backward")
_PROMPTS = 8  # of a step, for each chip


def config_of(row: Row, *more: str) -> TrainConfig:
    return load_config(TrainConfig, f"{row.config}.yaml", [*row.overrides, *more])


def decoder_of(row: Row) -> DecoderConfig:
    return tiny_config() if row.model == TINY else PAPER_MODELS[row.model]


def by_arithmetic(row: Row) -> Plan:
    return analytic_plan(config_of(row), decoder_of(row), topology(row.devices, compiling=False))


def shipped() -> Iterator[list[str]]:
    """A line for each: what a device holds at most, and how long a step takes."""
    yield [
        "configuration",
        "devices",
        "mesh",
        "most, GiB a device",
        "of",
        "in",
        "s a step",
        "tokens/s a device",
        "fits",
    ]
    for row in SHIPPED:
        made = by_arithmetic(row)
        said = [f"{made.peak.total / _GIB:.1f}", f"{made.topology.usable / _GIB:.1f}", made.peak.name]
        timed = (
            [f"{made.time.seconds:,.0f}", f"{made.time.tokens_per_device_second:,.0f}"]
            if made.time.phases
            else ["", ""]
        )
        yield [row.config, row.devices, _mesh(made), *said, *timed, "yes" if made.fits else "**no**"]


def side_by_side(row: Row) -> Iterator[list[str]]:
    """A line for each program: what a device holds, and what of it is temporary, compiled and by arithmetic."""
    estimate = {one.name: one for one in by_arithmetic(row).footprints}
    made = plan(config_of(row), decoder_of(row), topology(row.devices))
    for one in made.footprints:
        other = estimate[one.name]
        total, temporary = ([x / _GIB for x in pair] for pair in (
            (one.total, other.total), (one.holds["temporaries"], other.holds["temporaries"]),
        ))  # fmt: skip
        cells = [f"{compiled:.2f} / {by_hand:.2f}" for compiled, by_hand in (total, temporary)]
        yield [f"{row.config}, {row.devices}, {_mesh(made)}", one.name, *cells, f"{one.seconds:.0f}"]


def scaling(row: Row) -> list[str]:
    """One line: an update of as many prompts a chip as there are everywhere."""
    devices = topology(row.devices)
    prompts = _PROMPTS * devices.count
    config = config_of(row, f"rollout.prompts_per_step={prompts}", f"grpo.mini_batch_prompts={prompts // 2}")
    made = plan(config, decoder_of(row), devices, only=_UPDATE)
    update = made.footprints[-1]
    phase = next(phase for phase in made.time.phases if phase.name == update.name)
    return [
        row.devices, str(devices.count), _mesh(made), f"{sum(x.sent for x in update.exchanges) / _GIB:.1f}",
        f"{phase.network:.1f} / {phase.products:.0f}", f"{made.time.tokens_per_device_second:,.0f}",
        f"{update.total / _GIB:.1f} of {devices.usable / _GIB:.1f}",
    ]  # fmt: skip


def _told(name: str, lines: Iterable[list[str]]) -> Iterator[list[str]]:
    """The lines, each said on stderr as it comes: a table is drawn when it is whole, minutes later."""
    for line in lines:
        print(f"{name}: {', '.join(line)}", file=sys.stderr, flush=True)
        yield line


def _mesh(made: Plan) -> str:
    return " × ".join(str(made.mesh[axis]) for axis in AXES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="three whole runs as well, by libtpu")
    parser.add_argument("--scaling", action="store_true", help="updates on 16, 64 and 256 chips instead, by libtpu")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # programs for devices that are not here cannot be read
    if options.scaling:
        heading = ["devices", "chips", "mesh", "GiB sent", "s: network / products", "tokens/s a chip", "GiB a device"]
        print("\n".join(table([heading, *_told("scaling", map(scaling, SCALING))])))
        return
    print("\n".join(table([*shipped()])))
    if options.compile:
        heading = ["compiled / by arithmetic", "program", "GiB a device", "of it temporaries", "compiled in s"]
        lines = (line for row in COMPILED for line in side_by_side(row))
        print("", *table([heading, *_told("compiled", lines)]), sep="\n")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
