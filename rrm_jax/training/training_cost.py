"""What a training run costs in device-seconds: arithmetic on data sheets, before anything is run.

A model, not a measurement. A step of GRPO writes `prompts_per_step` × `group_size` completions (`serving_cost`, with
`rollout.batch_size` rows at a time over all devices), goes over them `grpo.epochs` times forwards and backwards, and
forwards once more for the reference's log-probs where there is a KL term, and once for the old policy's where a step
has several updates or the KL term is in the reward. The FLOPs are `training_work`'s: 6 a weight and token, a third of
them forwards. `mfu`, the share of the peak that such passes reach, is an assumption.

Left out: checkpoints, held-out evaluations, moving weights, what `dynamic_sampling` draws again, the network, and
waiting for the longest completion of a step. A prompt is counted with each of its completions, though GPUs run it once
for those that share a row.
"""

import dataclasses
import math

from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.parallel.accelerators import Accelerator
from rrm_jax.parallel.serving_cost import serving_cost
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.throughput import training_work

# Of a device's memory, what is for parameters, gradients, moments and the sampler's weights while a run updates; the
# rest is for activations, and JAX takes 75 % unless told otherwise.
USABLE_MEMORY = 0.6
_MOST_DEVICES = 2**16


@dataclasses.dataclass(frozen=True)
class TrainingCost:
    """Of a whole run on `devices`: device-seconds of sampling and of learning (log-probs and updates), and the tokens
    that are written and that updates go over, prompts included (once, whatever the epochs)."""

    devices: int
    sampling_device_seconds: float
    learning_device_seconds: float
    new_tokens: float
    learnt_tokens: float

    @property
    def device_seconds(self) -> float:
        """Of sampling and of learning together."""
        return self.sampling_device_seconds + self.learning_device_seconds

    @property
    def seconds(self) -> float:
        """By the clock, on all the devices."""
        return self.device_seconds / self.devices


def training_cost(
    config: TrainConfig,
    decoder: DecoderConfig,
    device: Accelerator,
    *,
    prompt_tokens: float,
    new_tokens: float,
    devices: int | None = None,
    mfu: float = 0.4,
    efficiency: float = 0.5,
) -> TrainingCost:
    """Of all steps of a run, without the judge of a policy; mean tokens of a prompt and of a completion.

    `devices` is by default what the mesh says, where that is open the least that holds the training state. Supervised
    training samples nothing. Raises RrmError if the devices do not fit the mesh, or not the model.
    """
    if not 0 < mfu <= 1:
        raise RrmError(f"mfu {mfu} is no share of the peak; it is above 0, and 1 at most")
    rollout, grpo = config.rollout, config.grpo
    mesh = _mesh(config, decoder, device, devices)
    devices = math.prod(mesh.values())
    sampling, forwards, epochs = 0.0, 0, 1
    completions = config.supervised.batch_size
    if config.method == "dpo":
        completions, forwards = 2 * config.dpo.batch_size, int(not config.dpo.reference_free)
    if config.method == "grpo":
        completions = rollout.prompts_per_step * rollout.group_size
        epochs = grpo.epochs
        forwards = (grpo.kl_coef > 0) + (config.updates_per_step > 1 or grpo.kl_in == "reward")
        sampling = serving_cost(
            decoder,
            device,
            prompts=rollout.prompts_per_step,
            votes=completions,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            devices=mesh["tensor"],
            slots=max(1, rollout.batch_size * mesh["tensor"] // devices),
            weight_bytes=_bytes(config),
            cache_bytes=_bytes(config),
            efficiency=efficiency,
        ).device_seconds
    lengths = [round(prompt_tokens)], [round(new_tokens)]
    update = training_work(decoder, *lengths, adapters=config.model.lora is not None).flops
    forward = training_work(decoder, *lengths).flops / 3
    learning = completions * (epochs * update + forwards * forward) / (device.peak_flops * mfu)
    written = config.steps * completions * new_tokens
    return TrainingCost(
        devices,
        config.steps * sampling,
        config.steps * learning,
        written if config.method == "grpo" else 0.0,
        written + config.steps * completions * prompt_tokens,
    )


def state_bytes(config: TrainConfig) -> float:
    """Bytes a parameter that a run holds over all devices while it updates, without the sampler's weights."""
    width, grpo = _bytes(config), config.grpo
    if config.model.lora is not None:
        return width  # the frozen model, which is the reference too; adapters are too small to count
    held = 4.0 + 4.0 + (2 * width if width < 4 else 0)  # masters and gradients; the working copy and its gradient
    if config.optimizer.kind == "adamw" and not config.optimizer.offload:
        held += {"float32": 8, "bfloat16": 4, "int8": 2}[config.optimizer.moments]
    reference = config.method == "grpo" and grpo.kl_coef > 0 and not grpo.offload_reference
    if config.method == "dpo":
        reference = not (config.dpo.reference_free or config.dpo.offload_reference)
    return held + (width if reference else 0)


def _bytes(config: TrainConfig) -> int:
    return 2 if config.model.compute_dtype == "bfloat16" else 4


def _mesh(config: TrainConfig, decoder: DecoderConfig, device: Accelerator, devices: int | None) -> dict[str, int]:
    """Devices on each axis of the mesh, the open one filled."""
    given = config.mesh.model_dump()
    if list(given.values()).count(-1) > 1 or any(size == 0 or size < -1 for size in given.values()):
        raise RrmError(f"mesh {given}: sizes are ≥ 1, and one may be -1")
    fixed = math.prod(size for size in given.values() if size != -1)
    filled = lambda rest: {axis: rest if size == -1 else size for axis, size in given.items()}  # noqa: E731
    if devices is not None or -1 not in given.values():
        mesh = filled((devices or fixed) // fixed)
        if devices is not None and math.prod(mesh.values()) != devices:
            raise RrmError(f"mesh {given} does not fit {devices} device(s)")
        return mesh
    state = state_bytes(config) * decoder.num_parameters
    # The sampler's weights are split by tensor alone.
    sampler = _bytes(config) * decoder.num_parameters if config.method == "grpo" else 0
    rest = 1
    while rest <= _MOST_DEVICES:
        mesh = filled(rest)
        if state / (mesh["fsdp"] * mesh["tensor"]) + sampler / mesh["tensor"] <= USABLE_MEMORY * device.memory:
            return mesh
        rest *= 2
    raise RrmError(
        f"no number of {device.name} on the open axis of mesh {given} holds the training state, {state / 1e9:.0f} GB, "
        f"and on each the sampler's weights, {sampler / 1e9:.0f} GB split by tensor alone; raise mesh.tensor"
    )
