"""A plan as text: memory by program, exchanges, seconds, and what to change where it does not fit."""

from collections.abc import Iterator, Sequence

from rrm_jax.evaluation.ranking_report import table
from rrm_jax.planning.memory import CACHES, Footprint
from rrm_jax.planning.plan import Plan, rows_per_device
from rrm_jax.planning.programs import offloads_reference
from rrm_jax.planning.search import Proposal

_GIB = 2**30
_COLUMNS = {
    "parameters": ("parameters",),
    "optimiser": ("optimiser",),
    "gradients": ("gradients",),
    "copies": ("working copy", "reference", "frozen model", "merged copy"),
    "sampler": ("sampler's weights",),
    "cache": CACHES,
    "temporaries": ("temporaries", "batch"),
    "code": ("code",),
}
Rows = list[list[str]]


def lines(plan: Plan) -> Iterator[str]:
    """The whole report; Markdown tables."""
    yield from heading(plan)
    yield from ["", f"GiB on a device, of {plan.topology.accelerator.memory / _GIB:.0f} "
                    f"({plan.topology.usable / _GIB:.1f} for programs)", ""]  # fmt: skip
    yield from table(memory_rows(plan))
    yield from ["", "What a device exchanges in one run of a program (decode: a block of 64 steps)", ""]
    yield from table(exchange_rows(plan))
    yield from ["", *time_lines(plan)]
    yield ""
    yield from verdict(plan)


def heading(plan: Plan) -> Iterator[str]:
    """What is planned, on what, and who says it."""
    mesh = _axes(plan.mesh)
    if plan.config.rollout.devices:
        mesh += f", and to sample {plan.config.rollout.devices} others, mesh {_axes(plan.rollout_mesh)}"
    elif plan.rollout_mesh != plan.mesh:
        mesh += f", to sample {_axes(plan.rollout_mesh)}"
    rows, time = plan.micro_batch
    yield (
        f"{plan.decoder.num_parameters / 1e9:.2f} G parameters on {plan.topology.name}: {plan.topology.count} × "
        f"{plan.topology.accelerator.name}, mesh {mesh}; {plan.how}"
    )
    yield (
        f"micro-batches of {rows} rows × {time:,} tokens, {plan.slots} rows sampled at a time, remat "
        f"{plan.config.model.remat}, attention {plan.attention}"
    )
    yield from _left_out(plan)


def _left_out(plan: Plan) -> Iterator[str]:
    """Of a policy's run: the judge, whose shape is not the policy's."""
    config = plan.config
    judge = config.policy.judge
    if config.task != "policy" or config.method != "grpo" or judge is None:
        return
    if judge.backend is not None:
        yield "the policy alone: its judge is at a server (policy.judge.backend), and waiting for it is left out"
        return
    where = {"sharded": "split over the devices", "host": "in host memory", "ready": "as sampling reads them"}
    yield (
        "the policy alone: the judge of its tournaments (policy.judge) is left out, its weights, which wait "
        f"{where[judge.idle]} between its turns, and its turns' memory and seconds"
    )


def _axes(mesh: dict[str, int]) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in mesh.items())


def memory_rows(plan: Plan) -> Rows:
    """GiB that a device holds while each program runs, the heading first."""
    rows = [["program", *_COLUMNS, "together", "of usable", "compiled in s"]]
    for one in plan.footprints:
        cells = [_gib(sum(one.holds.get(name, 0) for name in names)) for names in _COLUMNS.values()]
        share = f"{one.total / plan.topology.usable:.0%}"
        rows.append([one.name, *cells, _gib(one.total) + ("!" if one.failed else ""), share, f"{one.seconds:.0f}"])
    return rows


def proposal_lines(proposals: Sequence[Proposal]) -> Iterator[str]:
    """What a search looked at: by arithmetic, and, where it was compiled, by the compiler."""
    rows = [["proposal", "by arithmetic: s a step", "GiB", "compiled: s a step", "GiB", "fits"]]
    for one in proposals:
        said = [] if one.compiled is None else [f"{one.compiled.time.seconds:,.0f}", _gib(one.compiled.peak.total)]
        fits = "by arithmetic" if one.compiled is None else "yes" if one.compiled.fits else "**no**"
        estimate = [f"{one.estimate.time.seconds:,.0f}", _gib(one.estimate.peak.total)]
        rows.append([str(one), *estimate, *(said or ["", ""]), fits])
    yield from table(rows)


def exchange_rows(plan: Plan) -> Rows:
    """What a device sends in one run of each program, in MiB; the heading first."""
    rows = [["program", "kind", "along", "count", "MiB sent by a device"]]
    for one in plan.footprints:
        for exchange in one.exchanges:
            rows.append(
                [one.name, exchange.kind, exchange.axes, f"{exchange.count:,}", f"{exchange.sent / 2**20:,.1f}"]
            )
    return rows


def time_lines(plan: Plan) -> Iterator[str]:
    """Seconds of each program in a step, and of the step."""
    time = plan.time
    if plan.topology.platform == "cpu":
        yield "Seconds are not estimated: what a CPU does is on no data sheet."
        return
    yield f"Seconds in one step, at {time.efficiency:.0%} of the roofline; by each limit alone, at all of it"
    yield ""
    rows = [["program", "runs", "seconds", "bound by", "products", "memory", "network"]]
    for phase in time.phases:
        limits = [f"{getattr(phase, limit):.3g}" for limit in ("products", "memory", "network")]
        rows.append([phase.name, f"{phase.runs:.0f}", f"{phase.seconds(time.efficiency):.3g}", phase.bound, *limits])
    yield from table(rows)
    yield ""
    if time.phases:
        of_update = (
            f", MFU of the update {time.mfu:.2f}" if "forward and backward" in {p.name for p in time.phases} else ""
        )
        yield (
            f"A step: {time.seconds:,.0f} s, {time.tokens:,} tokens, {time.tokens_per_device_second:,.0f} tokens/s a "
            f"device{of_update}. An estimate from data sheets, not a measurement."
        )


def verdict(plan: Plan) -> Iterator[str]:
    """Whether it fits; where it does not, what would change that, the most first."""
    peak, usable = plan.peak, plan.topology.usable
    for one in plan.footprints:
        if one.failed:
            yield f"{one.name}: the compiler refused it: {one.failed}"
    if plan.fits:
        yield f"It fits: {peak.name} takes most, {_gib(peak.total)} of {_gib(usable)} GiB."
        return
    over = peak.total - usable
    yield f"It does not fit: {peak.name} takes {_gib(peak.total)} GiB, {_gib(max(over, 0))} more than there is."
    for gain, change in sorted(changes(plan, peak), reverse=True):
        yield f"  {change}: {_gib(gain)} GiB less" + (", enough by itself" if gain >= over else "")


def changes(plan: Plan, peak: Footprint) -> Iterator[tuple[int, str]]:
    """What would lower what `peak` holds, and by how much, by arithmetic."""
    config, holds = plan.config, peak.holds
    optimizer, mesh = config.optimizer, plan.mesh
    moments = {"float32": 8, "bfloat16": 4, "int8": 2}[optimizer.moments]
    held = holds.get("optimiser", 0)
    if held and peak.name != "apply":
        yield held, "optimizer.offload=true (the state waits in host memory)"
    if held and optimizer.kind == "adamw" and moments > 2:
        yield held * (moments - 2) // moments, "optimizer.moments=int8"
    if holds.get("reference", 0) and not offloads_reference(config):
        yield holds["reference"], f"{config.method}.offload_reference=true"
    weights, caches = holds.get("sampler's weights", 0), sum(holds.get(name, 0) for name in CACHES)
    where, sampling = ("rollout.mesh" if _samples_elsewhere(plan) else "mesh"), plan.rollout_mesh
    if weights and plan.decoder.num_kv_heads % (2 * sampling["tensor"]) == 0 and sampling["fsdp"] % 2 == 0:
        yield weights // 2, f"{where}.tensor={2 * sampling['tensor']} (the sampler's weights are split by tensor alone)"
    if caches and _rows_can_halve(plan):
        yield caches // 2, f"rollout.batch_size={plan.slots // 2} (fewer rows at a time)"
    if "temporaries" in holds and peak.name in ("forward and backward", "log-probs"):
        if config.model.remat != "full" and peak.name == "forward and backward":
            yield holds["temporaries"] // 2, "model.remat=full (at least)"
        if (many := rows_per_device(plan)) > 1:
            tokens = plan.micro_batch[0] // many * plan.micro_batch[1]
            yield holds["temporaries"] * (many - 1) // many, f"pack.micro_batch_tokens={tokens} (a row a device), about"
    if plan.topology.platform == "cpu":  # more devices share the same memory
        return
    spread = sum(holds.get(name, 0) for name in ("parameters", "optimiser", "gradients", *_COLUMNS["copies"]))
    yield spread // 2, f"twice as many devices on fsdp ({2 * mesh['fsdp']})"


def _samples_elsewhere(plan: Plan) -> bool:
    return plan.config.rollout.mesh is not None or plan.config.rollout.devices > 0


def _rows_can_halve(plan: Plan) -> bool:
    ways = plan.rollout_mesh["data"] * plan.rollout_mesh["fsdp"]
    return plan.slots % (2 * ways) == 0


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f}"
