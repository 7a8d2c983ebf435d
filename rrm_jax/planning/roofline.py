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

import numpy as np
from jax.sharding import AbstractMesh

from rrm_jax.parallel.mesh import AXES
from rrm_jax.parallel.serving_cost import decode_step_seconds, prefill_flops
from rrm_jax.planning.memory import Footprint
from rrm_jax.planning.programs import BLOCK, SAMPLING, RunPrograms, score_passes
from rrm_jax.planning.topology import BOX, Topology
from rrm_jax.sampling.call import PREFILL_TOKENS
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
# A chip's share of the data centre's network, by the same pages; of v4 they tell none, and v5p's is taken.
_BETWEEN_SLICES = {"v4": 6.25e9, "v5e": 3.125e9, "v5p": 6.25e9, "v6e": 12.5e9}


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
        """The limit that takes longest: "products", "memory" or "network"."""
        return max(("products", "memory", "network"), key=lambda limit: getattr(self, limit))

    def seconds(self, efficiency: float) -> float:
        """At this share of the roofline."""
        return max(self.products, self.memory, self.network) / efficiency


@dataclasses.dataclass(frozen=True)
class StepTime:
    """`tokens` that a step's update goes over once, and `update_flops` of the model's own arithmetic.

    `devices` are all, `learning` those that update. With `at_once` sampling and the rest go on beside each other.
    """

    phases: tuple[Phase, ...]
    efficiency: float
    devices: int
    learning: int
    at_once: bool
    peak_flops: float
    tokens: int
    update_flops: float

    @property
    def seconds(self) -> float:
        """Of one step; of sampling and learning only the longer, where they go on `at_once`."""
        parts = [0.0, 0.0]
        for phase in self.phases:
            parts[phase.name in SAMPLING] += phase.seconds(self.efficiency)
        return max(parts) if self.at_once else sum(parts)

    @property
    def mfu(self) -> float:
        """Of the update, as `rrm train` reports it."""
        update = sum(p.seconds(self.efficiency) for p in self.phases if p.name in ("forward and backward", "apply"))
        return self.update_flops / (update * self.learning * self.peak_flops)

    @property
    def tokens_per_device_second(self) -> float:
        """What an update goes over, by the whole step's time and all devices."""
        return self.tokens / self.seconds / self.devices


def step_time(
    programs: RunPrograms, footprints: Iterable[Footprint], topology: Topology, prompt: int, new: int, efficiency: float
) -> StepTime:
    """Of a step whose prompts and completions have so many tokens, all of them."""
    config, learner = programs.config, programs.learner
    count, group, epochs = config.supervised.batch_size, 1, 1
    if config.method == "dpo":
        count, group = 2 * config.dpo.batch_size, 2
    if config.method == "grpo":
        count, group = config.rollout.prompts_per_step * config.rollout.group_size, config.rollout.group_size
        epochs = config.grpo.epochs
    step = _Step(programs, topology, prompt, new, count, group, epochs)
    adapters = learner.frozen is not None
    repeated = [learner.shares_prompts and at % group > 0 for at in range(count)]
    lengths = [prompt] * count, [new] * count
    work = training_work(programs.decoder, *lengths, repeated=repeated, adapters=adapters)
    of_evaluation = () if config.method == "grpo" else ("merge adapters", "hand-over", *SAMPLING)
    timed = () if topology.platform == "cpu" else tuple(one for one in footprints if not one.failed)
    phases = tuple(step.phase(one) for one in timed if one.name not in of_evaluation)
    peak = topology.accelerator.peak_flops
    at_once = programs.apart and config.rollout.asynchronous
    learning = programs.mesh.size
    return StepTime(phases, efficiency, topology.count, learning, at_once, peak, work.tokens, epochs * work.flops)


@dataclasses.dataclass(frozen=True)
class _Step:
    """`count` completions, `group` of each prompt, gone over `epochs` times."""

    programs: RunPrograms
    topology: Topology
    prompt: int
    new: int
    count: int
    group: int
    epochs: int

    def phase(self, one: Footprint) -> Phase:
        mesh, chip = self.programs.mesh_of(one.name), self.topology.accelerator
        links = link_speeds(mesh, self.topology)
        network = sum(exchange.sent / links.get(exchange.axes, links["?"]) for exchange in one.exchanges)
        runs, products, memory = self._runs(one.name), self._flops(one.name), one.moved / chip.bandwidth
        products /= mesh.size * chip.peak_flops
        if one.name == "decode":
            memory = BLOCK * self._decode_step()
        if one.name == "prefill":
            memory = 0.0  # of a chunk: weights, which other chunks read as well
        return Phase(one.name, runs, runs * products, runs * memory, runs * network)

    def _runs(self, name: str) -> float:
        config, ways = self.programs.config, self.programs.engine.ways
        updates = config.updates_per_step
        if name == "decode":
            return max(self.count / self._rows_at_once(), 1) * self.new / BLOCK  # a completion's tokens come in turn
        if name == "prefill":
            return max(1.0, self.count // self.group * self.prompt / (PREFILL_TOKENS * ways))
        if name == "log-probs":
            return score_passes(config) * updates / self.epochs * self._micro_batches()
        if name == "forward and backward":
            return updates * self._micro_batches()
        return updates if name in ("apply", "cast") else 1

    def _rows_at_once(self) -> int:
        """The sampler halves its rows while half of them are enough for all completions."""
        rows, ways = self.programs.slots, self.programs.engine.ways
        while rows % (2 * ways) == 0 and rows // 2 >= self.count:
            rows //= 2
        return rows

    def _micro_batches(self) -> float:
        """Of an update, in units of the one that is planned."""
        prompts = [(at, *(0,) * (self.prompt - 1)) for at in range(-(-self.count // self.group))]
        completion = (0,) * self.new
        of_update = self.count * self.epochs // self.programs.config.updates_per_step
        examples = [Example(prompts[at // self.group], completion) for at in range(of_update)]
        planned = self.programs.micro_batch
        together = self.group if self.programs.config.method == "dpo" else 1
        batches = self.programs.learner.micro_batches(examples, range(of_update), together)
        return sum(len(batch.rows) * batch.time for batch in batches) / (len(planned.rows) * planned.time)

    def _flops(self, name: str) -> float:
        """Of one run, over all devices."""
        programs, batch = self.programs, self.programs.micro_batch
        if name == "prefill":
            return self.count // self.group * prefill_flops(programs.decoder, self.prompt) / self._runs(name)
        if name not in ("log-probs", "forward and backward"):
            return 0.0
        rows = len(batch.rows)
        lengths = [batch.time - batch.width] * rows, [batch.width] * rows
        forward = training_work(programs.decoder, *lengths).flops / 3
        if name == "log-probs":
            return forward
        both = training_work(programs.decoder, *lengths, adapters=programs.learner.frozen is not None).flops
        return both + (forward if programs.config.model.remat == "full" else 0)

    def _decode_step(self) -> float:
        width = 2 if self.programs.config.model.compute_dtype == "bfloat16" else 4
        return decode_step_seconds(
            self.programs.decoder, self.topology.accelerator, devices=self.programs.rollout_mesh.shape["tensor"],
            slots=self._rows_at_once() // self.programs.engine.ways, cached=self.prompt / self.group + self.new / 2,
            seen=self.prompt + self.new / 2, weight_bytes=width, cache_bytes=width,
        )  # fmt: skip


def link_speeds(mesh: Any, topology: Topology) -> Mapping[str, float]:
    """Bytes a second that a device sends along axes of the mesh ("fsdp", "fsdp × tensor"), between slices, and at most
    ("?").

    In a TPU slice links go along the torus's dimensions: axes that lie along one of three have a third of them. What
    leaves a box of GPUs goes through the adapters of all that the axes join in it.
    """
    every = _LINKS[topology.accelerator.name]
    speeds = {"?": every, "slices": _BETWEEN_SLICES.get(topology.accelerator.name, every)}
    for count in range(1, len(AXES) + 1):
        for axes in itertools.combinations(AXES, count):
            name = " × ".join(axis for axis in axes if mesh.shape[axis] > 1)
            if topology.platform == "gpu":
                joined, in_box = _in_a_box(mesh, axes)
                speeds[name] = every if joined == in_box else min(every, in_box * _BETWEEN_BOXES)
            else:
                speeds[name] = every * _share_of_links(mesh, axes)
    return speeds


def _in_a_box(mesh: Any, axes: tuple[str, ...]) -> tuple[int, int]:
    """How many devices the axes join, and how many of these are in the first one's box; boxes come in the devices'
    order."""
    shape = [mesh.shape[axis] for axis in AXES]
    places = np.arange(math.prod(shape)).reshape(shape)
    group = places[tuple(slice(None) if axis in axes else 0 for axis in AXES)].ravel()
    return len(group), int(np.sum(group // BOX == group[0] // BOX))


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
