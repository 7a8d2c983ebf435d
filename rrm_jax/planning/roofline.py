"""How long a step takes, by a roofline: products, memory and exchanges, each at the data sheet's rate.

A model, not a measurement. A program takes as long as the slowest of the three would take alone, over `efficiency`, the
share of the roofline that is reached. That is an assumption: with 0.5 decoding is near the published speeds of vLLM and
TensorRT-LLM (`parallel/serving_cost.py`), and an update with full recomputation reaches an MFU of 0.37 (published: 0.45
on v6e to 0.71 on v5p). Left out: latencies (a decode step exchanges small arrays, and waits for each), links that do
not wrap around in small slices, the network between GPU boxes' switches, checkpoints, evaluation and the host's work.

Products are counted as `training/throughput.py` counts them, padding included; recomputing a layer's forward pass
(remat full) adds two to the six FLOPs a weight and token.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jax.sharding import AbstractMesh

from rrm_jax.parallel.mesh import AXES
from rrm_jax.parallel.serving_cost import decode_step_seconds, prefill_flops
from rrm_jax.planning.memory import Footprint
from rrm_jax.planning.programs import BLOCK, RunPrograms
from rrm_jax.planning.topology import BOX, Topology
from rrm_jax.training.batches import Example
from rrm_jax.training.throughput import training_work

# Bytes a second that a device sends at most: TPUs by Google's pages (all links of a chip together), GPUs by NVLink's
# half that goes out.
_LINKS = {
    "v4": 300e9, "v5e": 200e9, "v5p": 600e9, "v6e": 448e9,
    "a100-40": 300e9, "a100-80": 300e9, "h100": 450e9, "h200": 450e9, "h100-nvl": 300e9, "h200-nvl": 450e9,
    "gh200": 450e9, "b200": 900e9, "gb200": 900e9, "h100-pcie": 64e9, "l40s": 32e9, "rtx4090": 32e9,
}  # fmt: skip
_BETWEEN_BOXES = 50e9  # a 400 Gb/s adapter a GPU


@dataclasses.dataclass(frozen=True)
class Phase:
    """A program in one step: how often it runs, and the seconds of all its runs by each of the three limits."""

    name: str
    runs: float
    products: float
    memory: float
    network: float

    @property
    def bound(self) -> str:
        return max(("products", "memory", "network"), key=lambda limit: getattr(self, limit))

    def seconds(self, efficiency: float) -> float:
        return max(self.products, self.memory, self.network) / efficiency


@dataclasses.dataclass(frozen=True)
class StepTime:
    """`tokens` that a step's update goes over once, `update_flops` and `step_flops` of the model's own arithmetic."""

    phases: tuple[Phase, ...]
    efficiency: float
    devices: int
    peak_flops: float
    tokens: int
    update_flops: float

    @property
    def seconds(self) -> float:
        return sum(phase.seconds(self.efficiency) for phase in self.phases)

    @property
    def mfu(self) -> float:
        """Of the update, as `rrm train` reports it."""
        update = sum(p.seconds(self.efficiency) for p in self.phases if p.name in ("forward and backward", "apply"))
        return self.update_flops / (update * self.devices * self.peak_flops)

    @property
    def tokens_per_device_second(self) -> float:
        return self.tokens / self.seconds / self.devices


def step_time(
    programs: RunPrograms, footprints: Iterable[Footprint], topology: Topology, prompt: int, new: int, efficiency: float
) -> StepTime:
    """Of a step whose prompts and completions have so many tokens, all of them."""
    config, decoder, learner = programs.config, programs.decoder, programs.learner
    grpo, chip, devices = config.grpo, topology.accelerator, math.prod(programs.mesh.shape.values())
    links = link_speeds(programs, topology)
    count = config.supervised.batch_size
    if config.method == "grpo":
        count = config.rollout.prompts_per_step * config.rollout.group_size
    group = config.rollout.group_size if config.method == "grpo" else 1
    updates, epochs = config.updates_per_step, grpo.epochs if config.method == "grpo" else 1
    examples = [Example((at // group, *(0,) * (prompt - 1)), (0,) * new) for at in range(count)]
    adapters = learner.frozen is not None
    of_update = examples[: count * epochs // updates]
    batches = learner.micro_batches(of_update, range(len(of_update)))
    padded = sum(len(b.rows) * b.time for b in batches) / (len(programs.micro_batch.rows) * programs.micro_batch.time)
    longest, width = programs.micro_batch.time, programs.micro_batch.width
    rows = len(programs.micro_batch.rows)
    full = training_work(decoder, [longest - width] * rows, [width] * rows, adapters=adapters).flops
    forward = training_work(decoder, [longest - width] * rows, [width] * rows).flops / 3
    again = forward if config.model.remat == "full" else 0.0
    passes = (grpo.kl_coef > 0) + (updates > 1 or grpo.kl_in == "reward")
    steps = count * new / programs.slots
    cached = prompt / group + new / 2
    width_of = 2 if config.model.compute_dtype == "bfloat16" else 4
    a_step = decode_step_seconds(
        decoder, chip, devices=programs.mesh.shape["tensor"], slots=programs.slots // learner.ways, cached=cached,
        seen=prompt + new / 2, weight_bytes=width_of, cache_bytes=width_of,
    )  # fmt: skip
    prefills = (count // group) * prefill_flops(decoder, prompt) / (devices * chip.peak_flops)
    chunks = max(1.0, (count // group) * prompt / (1024 * learner.ways))

    def phase(one: Footprint) -> Phase:
        network = sum(exchange.sent / links.get(exchange.axes, links["?"]) for exchange in one.exchanges)
        memory = one.moved / chip.bandwidth
        if one.name == "decode":
            return Phase(one.name, steps / BLOCK, 0.0, steps * a_step, steps / BLOCK * network)
        if one.name == "prefill":
            return Phase(one.name, chunks, prefills, 0.0, chunks * network)
        runs, flops = {
            "log-probs": (passes * updates / epochs * padded, forward),
            "forward and backward": (updates * padded, full + again),
            "apply": (updates, 0.0),
            "cast": (updates, 0.0),
        }.get(one.name, (1, 0.0))
        return Phase(one.name, runs, runs * flops / (devices * chip.peak_flops), runs * memory, runs * network)

    repeated = [learner.shares_prompts and at % group > 0 for at in range(count)]
    work = training_work(decoder, [prompt] * count, [new] * count, repeated=repeated, adapters=adapters)
    phases = tuple(phase(one) for one in footprints if not one.failed)
    return StepTime(phases, efficiency, devices, chip.peak_flops, work.tokens, epochs * work.flops)


def link_speeds(programs: RunPrograms, topology: Topology) -> Mapping[str, float]:
    """Bytes a second that a device sends along axes of the mesh ("fsdp", "fsdp × tensor"), and at most ("?").

    In a TPU slice links go along the torus's dimensions: axes that lie along one of three have a third of them.
    """
    every, mesh = _LINKS[topology.accelerator.name], programs.mesh
    speeds = {"?": every}
    for count in range(1, len(AXES) + 1):
        for axes in itertools.combinations(AXES, count):
            name = " × ".join(axis for axis in axes if mesh.shape[axis] > 1)
            devices = math.prod(mesh.shape[axis] for axis in axes)
            if topology.platform == "gpu":
                speeds[name] = every if devices <= BOX else _BETWEEN_BOXES
            else:
                speeds[name] = every * _share_of_links(mesh, axes)
    return speeds


def _share_of_links(mesh: Any, axes: tuple[str, ...]) -> float:
    """Of the dimensions that a slice has, those that the axes lie along; all where the devices tell no coordinates."""
    if isinstance(mesh, AbstractMesh) or not hasattr(mesh.devices.flat[0], "coords"):
        return 1.0
    group = mesh.devices[tuple(slice(None) if axis in axes else 0 for axis in AXES)]
    along, there = (
        sum(len({device.coords[at] for device in devices.flat}) > 1 for at in range(3))
        for devices in (group, mesh.devices)
    )
    return along / there if along else 1.0
