"""Which meshes, recomputation, micro-batch and number of slots to train with on given devices.

Arithmetic sorts all combinations; the best few are then compiled, until one fits.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.parallel.mesh import MeshError
from rrm_jax.planning.analytic import estimated, programs_of
from rrm_jax.planning.memory import Footprint
from rrm_jax.planning.plan import Assumptions, Plan, assemble, plan, require_compiler
from rrm_jax.planning.topology import Topology
from rrm_jax.training.config import TrainConfig

_ROWS = (1, 2, 4)  # of a micro-batch, on a device
_SLOTS = (64, 128, 256, 512, 1024)
_MARGIN = 0.9  # of usable memory, that an estimate may take to be worth compiling
_HOW = "by arithmetic, nothing was compiled"
Changes = dict[str, str]


def analytic_plan(
    config: TrainConfig, decoder: DecoderConfig, topology: Topology, assumed: Assumptions = Assumptions()
) -> Plan:
    """A plan without a compiler. Raises RrmError where the mesh does not fit the devices or the model."""
    programs = programs_of(config, decoder, topology)
    return assemble(programs, topology, tuple(estimated(programs, topology.slices)), assumed, _HOW)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Settings to change, what arithmetic says of them, and what the compiler says, None where it was not asked."""

    changes: Changes
    estimate: Plan
    compiled: Plan | None = None

    @property
    def plan(self) -> Plan:
        """The better founded of the two."""
        return self.compiled or self.estimate

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.changes.items())


def candidates(
    config: TrainConfig, decoder: DecoderConfig, topology: Topology
) -> Iterator[tuple[Changes, TrainConfig]]:
    """Configurations that differ in meshes, remat, micro-batch tokens and slots, and what was changed in each.

    With `rollout.devices` the rollouts' mesh stays as it is given; without rollouts all of theirs does.
    """
    count = topology.count - config.rollout.devices
    splits = [tensor for tensor in (1, 2, 4, 8) if decoder.num_kv_heads % tensor == count % tensor == 0]
    parts = [topology.slices * data for data in (1, 2) if count % (topology.slices * data) == 0]
    for tensor, data, remat, rows in itertools.product(splits, parts, ("full", "dots"), _ROWS):
        if count % (tensor * data):
            continue
        ways = count // tensor
        training = {
            "mesh.data": data, "mesh.fsdp": ways // data, "mesh.tensor": tensor, "model.remat": remat,
            "pack.micro_batch_tokens": rows * ways * config.pack.row_tokens,
        }  # fmt: skip
        for sampling in _of_sampling(config, topology, tensor, splits):
            changes = training | sampling
            told = {key: "null" if value is None else str(value) for key, value in changes.items()}
            yield told, _changed(config, changes)


def _of_sampling(
    config: TrainConfig, topology: Topology, tensor: int, splits: list[int]
) -> Iterator[dict[str, int | None]]:
    """Slots, and layouts that split the sampler's weights as training does, over `tensor`, or further."""
    if config.method != "grpo":
        yield {}
        return
    if config.rollout.devices:
        for slots in _SLOTS:
            yield {"rollout.batch_size": slots}
        return
    for own, slots in itertools.product((one for one in splits if one >= tensor), _SLOTS):
        ways = topology.count // own
        if slots % ways or ways % topology.slices:
            continue
        mesh: dict[str, int | None] = {} if config.rollout.mesh is None else {"rollout.mesh": None}
        if own != tensor:
            sizes = {"data": topology.slices, "fsdp": ways // topology.slices, "tensor": own}
            mesh = {f"rollout.mesh.{axis}": size for axis, size in sizes.items()}
        yield {"rollout.batch_size": slots, **mesh}


def _changed(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    tree = config.model_dump()
    for key, value in changes.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node[parent] = node[parent] or {}
            node = node[parent]
        node[name] = value
    return TrainConfig.model_validate(tree)


def ranked(
    config: TrainConfig, decoder: DecoderConfig, topology: Topology, assumed: Assumptions = Assumptions()
) -> list[tuple[Changes, Plan]]:
    """Those that arithmetic lets fit, the quickest first. Raises RrmError, with the least memory, if none does."""
    found: list[tuple[Changes, Plan]] = []
    least: tuple[Changes, Footprint] | None = None
    for changes, changed in candidates(config, decoder, topology):
        try:
            programs = programs_of(changed, decoder, topology)
        except MeshError:
            continue
        footprints = tuple(estimated(programs, topology.slices))
        peak = max(footprints, key=lambda one: one.total)
        if peak.total <= _MARGIN * topology.usable:
            found.append((changes, assemble(programs, topology, footprints, assumed, _HOW)))
        elif least is None or peak.total < least[1].total:
            least = changes, peak
    if found:
        return sorted(found, key=lambda one: (one[1].time.seconds, one[1].peak.total))
    if least is None:
        raise RrmError(f"no mesh over {topology.count} devices divides this model and {_SLOTS} rows")
    changes, peak = least
    raise RrmError(
        f"nothing fits {topology.name}: what takes least, {' '.join(f'{k}={v}' for k, v in changes.items())}, takes "
        f"{peak.total / 2**30:.1f} of {topology.usable / 2**30:.1f} GiB ({peak.name}); take more devices, or "
        "optimizer.moments=int8, optimizer.offload=true, grpo.offload_reference=true"
    )


def search(
    config: TrainConfig, decoder: DecoderConfig, topology: Topology, assumed: Assumptions,
    compiling: int, report: Callable[[str], None],
) -> tuple[list[Proposal], Proposal]:  # fmt: skip
    """What was looked at, and what to take of it. Of the quickest by arithmetic `compiling` at most are compiled, one
    after another, until one fits; with none that does, the last is given. With 0 it is the best by arithmetic.

    After one that does not fit comes the quickest that by arithmetic takes less in each program that was too large, or,
    where there is none, the next.
    Raises RrmError if none fits by arithmetic.
    """
    if topology.platform == "cpu":
        raise RrmError("--search looks for the quickest, and of CPUs there is no data sheet to tell; name TPUs or GPUs")
    if compiling:
        require_compiler(topology)
    best = [Proposal(*one) for one in ranked(config, decoder, topology, assumed)]
    if not compiling:
        return best[:3], best[0]
    tried: list[Proposal] = []
    while best and len(tried) < compiling:
        one = best[0]
        report(f"by arithmetic {one.estimate.time.seconds:,.0f} s a step, {_gib(one.estimate)} GiB; compiling: {one}")
        made = plan(one.estimate.config, decoder, topology, assumed)
        tried.append(dataclasses.replace(one, compiled=made))
        if made.fits:
            break
        report(f"compiled it takes {_gib(made)} GiB ({made.peak.name}), and does not fit")
        large = [x.name for x in made.footprints if x.failed or x.total > topology.usable]
        less = [other for other in best if all(_taken(other, name) < _taken(one, name) for name in large)]
        best = less or best[1:]
    return tried, tried[-1]


def _taken(proposal: Proposal, program: str) -> int:
    return next((one.total for one in proposal.estimate.footprints if one.name == program), 0)


def _gib(plan: Plan) -> str:
    return f"{plan.peak.total / 2**30:.1f}"
