"""Which mesh, recomputation, micro-batch and number of slots to train with on given devices.

Arithmetic sorts all combinations; the best few are then compiled, until one fits.
"""

import itertools
from collections.abc import Callable, Iterator

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


def candidates(
    config: TrainConfig, decoder: DecoderConfig, topology: Topology
) -> Iterator[tuple[Changes, TrainConfig]]:
    """Configurations that differ in mesh, remat, micro-batch tokens and slots, and what was changed in each."""
    count = topology.count - config.rollout.devices
    alike = config.rollout.mesh is None and not config.rollout.devices
    splits = [tensor for tensor in (1, 2, 4, 8) if decoder.num_kv_heads % tensor == count % tensor == 0]
    parts = [topology.slices * data for data in (1, 2) if count % (topology.slices * data) == 0]
    for tensor, data, remat, rows, slots in itertools.product(splits, parts, ("full", "dots"), _ROWS, _SLOTS):
        if count % (tensor * data):
            continue
        ways = count // tensor
        if alike and (slots < ways or slots % ways):
            continue
        fsdp = ways // data
        changes = {
            "mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor, "model.remat": remat,
            "pack.micro_batch_tokens": rows * ways * config.pack.row_tokens, "rollout.batch_size": slots,
        }  # fmt: skip
        tree = config.model_dump()
        for key, value in changes.items():
            section, _, name = key.partition(".")
            tree[section][name] = value
        yield {key: str(value) for key, value in changes.items()}, TrainConfig.model_validate(tree)


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
) -> tuple[Changes, Plan]:  # fmt: skip
    """The quickest that fits: of the best `compiling` by arithmetic the first that fits when compiled; with 0, the
    best by arithmetic. Raises RrmError if none fits."""
    if compiling:
        require_compiler(topology)
    best = ranked(config, decoder, topology, assumed)
    for changes, made in best[: max(compiling, 3)]:
        text = " ".join(f"{key}={value}" for key, value in changes.items())
        report(f"by arithmetic {made.time.seconds:,.0f} s a step, {made.peak.total / 2**30:.1f} GiB: {text}")
    if not compiling:
        return best[0]
    for changes, made in best[:compiling]:
        tried = plan(made.config, decoder, topology, assumed)
        if tried.fits:
            return changes, tried
        report(f"compiled it takes {tried.peak.total / 2**30:.1f} GiB ({tried.peak.name}), and does not fit")
    raise RrmError(f"none of the best {compiling} fitted when compiled; --compile more of them")
