"""A plan: a run's programs on devices that are not here, what they hold there, and how long a step takes."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from rrm_jax.checkpoints.assets import CONFIG, read_config
from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.planning.memory import Footprint, compiled
from rrm_jax.planning.programs import RunPrograms
from rrm_jax.planning.roofline import StepTime, step_time
from rrm_jax.planning.topology import Topology
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.rollout_mesh import meshes


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Tokens of a step's prompts and completions, None: as many as the configuration allows; and the share of the
    roofline that is reached. Memory is always planned for the longest."""

    prompt_tokens: int | None = None
    new_tokens: int | None = None
    efficiency: float = 0.5

    def __post_init__(self):
        if not 0 < self.efficiency <= 1:
            raise RrmError(f"efficiency {self.efficiency} is no share of the roofline; it is above 0, and 1 at most")


@dataclasses.dataclass(frozen=True)
class Plan:
    """`how`: which compiler said it, or that it is arithmetic."""

    config: TrainConfig
    decoder: DecoderConfig
    topology: Topology
    mesh: dict[str, int]
    rollout_mesh: dict[str, int]
    micro_batch: tuple[int, int]
    slots: int
    attention: str
    footprints: tuple[Footprint, ...]
    time: StepTime
    how: str

    @property
    def peak(self) -> Footprint:
        """The program that holds most."""
        return max(self.footprints, key=lambda one: one.total)

    @property
    def fits(self) -> bool:
        """Whether every program compiled, and the largest one fits into a device's usable memory."""
        return self.peak.total <= self.topology.usable and not any(one.failed for one in self.footprints)


def decoder_of(config: TrainConfig, model: str | None) -> DecoderConfig:
    """The shape of `model.path`'s config.json, or of a model of the paper by its size. Raises RrmError without both."""
    path = Path(config.model.path)
    if model is not None:
        if model.lower() not in PAPER_MODELS:
            raise RrmError(f"--model {model!r} is not one of {', '.join(PAPER_MODELS)}")
        return PAPER_MODELS[model.lower()]
    if (path / CONFIG).is_file():
        return read_config(path)
    raise RrmError(f"{path / CONFIG} is not there; say which model it will be: --model {', '.join(PAPER_MODELS)}")


def plan(
    config: TrainConfig, decoder: DecoderConfig, topology: Topology, assumed: Assumptions = Assumptions(),
    only: tuple[str, ...] = (), report: Callable[[Footprint], None] = lambda footprint: None,
) -> Plan:  # fmt: skip
    """Compiles the run's programs (or `only` those) for the topology; `report` is called after each.

    Raises RrmError where the mesh does not fit the devices or the model, or where there is no compiler.
    """
    require_compiler(topology)
    if config.rollout.devices:
        raise RrmError(
            "rollout.devices: compilers of devices that are not here make programs for all of them, not for some; give "
            "--analytic for an estimate by arithmetic"
        )
    programs = RunPrograms(config, decoder, *meshes(config, topology.devices))
    footprints = []
    for footprint in compiled(programs, only):
        footprints.append(footprint)
        report(footprint)
    return assemble(programs, topology, tuple(footprints), assumed, f"compiled by {topology.compiler}")


def require_compiler(topology: Topology) -> None:
    """Raises RrmError, with what to install, where there is none."""
    if topology.devices is None:
        raise RrmError(
            f"there is no compiler for {topology.name} here: {topology.missing}, or --analytic for an estimate by "
            "arithmetic"
        )


def assemble(
    programs: RunPrograms, topology: Topology, footprints: tuple[Footprint, ...], assumed: Assumptions, how: str
) -> Plan:
    """A plan out of what the programs hold; `how` says who says so. Raises RrmError for tokens that do not fit."""
    config = programs.config
    prompt = assumed.prompt_tokens or config.max_prompt_tokens
    new = assumed.new_tokens or config.rollout.max_new_tokens
    limit = config.max_prompt_tokens + config.rollout.max_new_tokens
    if config.method == "supervised":
        limit = config.pack.row_tokens
        prompt, new = assumed.prompt_tokens or limit // 2, assumed.new_tokens or limit - limit // 2
    if prompt < 1 or new < 1 or prompt + new > limit:
        raise RrmError(
            f"{prompt} prompt and {new} new tokens: at least 1 each, and {limit} together by the configuration"
        )
    time = step_time(programs, footprints, topology, prompt, new, assumed.efficiency)
    batch = programs.micro_batch
    return Plan(
        config, programs.decoder, topology, dict(programs.mesh.shape), dict(programs.rollout_mesh.shape),
        (len(batch.rows), batch.time), programs.slots, programs.learner.attention.backend, footprints, time, how,
    )  # fmt: skip


def rows_per_device(plan: Plan) -> int:
    """Of the micro-batch that is planned."""
    return plan.micro_batch[0] // math.prod(plan.mesh[axis] for axis in ("data", "fsdp"))
