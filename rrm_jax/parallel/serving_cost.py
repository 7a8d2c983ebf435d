"""What judging costs in device-seconds: arithmetic on data sheets, before anything is run.

A model, not a measurement. It leaves out scheduling (the batch is always full), the network between devices, loading
and compiling, and takes every prompt and every completion to be as long as the mean. `efficiency`, the share of the
roofline that is reached, is an assumption: with 0.5 the estimate is within a factor of 1.6 of the published speeds of
vLLM and TensorRT-LLM that the tests compare it with. The engine of this package was not measured on such devices.

V completions of T tokens continue U prompts of P tokens; B of them are written at a time, by a replica of n devices
that do F FLOPs and move M bytes a second each. The model has N parameters that multiply (all but the input table), E of
them in the output matrix, and L layers of H query and K key/value heads that are h wide; w bytes a weight, c a cached
number.

    prefill: U (2 (N − E) P + 2 L H h P²) / (n F efficiency) seconds, a prompt once for all its completions
    a step:  the larger of  (w N + 2 c L K h B (P U / V + T / 2)) / (n M efficiency)   weights and cache are read
                       and  B (2 N + 4 L H h (P + T / 2)) / (n F efficiency)           products, attention
    decode:  V T / B steps

A prompt is kept and read once for its completions, and a completion is half written on average. Windows of attention
are not looked at.
"""

import dataclasses
import math

from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.parallel.accelerators import Accelerator

USABLE_MEMORY = 0.9  # of a device's, for weights and cache; the rest is for activations and the runtime


@dataclasses.dataclass(frozen=True)
class ServingCost:
    """What one replica of `devices` takes, that writes `slots` completions at a time. So many replicas as there are
    share the seconds; the device-seconds stay the same. `new_tokens` are all that are written."""

    devices: int
    slots: int
    prefill_seconds: float
    decode_seconds: float
    new_tokens: float

    @property
    def device_seconds(self) -> float:
        """Of prefill and decoding, of one replica."""
        return self.devices * (self.prefill_seconds + self.decode_seconds)

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second of one device, prefill included."""
        return self.new_tokens / self.device_seconds


def serving_cost(
    config: DecoderConfig,
    device: Accelerator,
    *,
    prompts: int,
    votes: int,
    prompt_tokens: float,
    new_tokens: float,
    devices: int | None = None,
    slots: int | None = None,
    weight_bytes: float = 2,
    cache_bytes: float = 2,
    efficiency: float = 0.5,
) -> ServingCost:
    """Of `votes` completions in all, of `prompts` different prompts; mean tokens of a prompt and of a completion.

    `slots` is by default what memory holds beside the weights, and never more than the votes. `devices`, a replica's,
    is by default the least power of two that holds the weights and these slots; if they are not given, the weights and
    as much for sequences, or all votes: with less, most of a step goes into reading weights for few tokens.
    Raises RrmError if what is asked for does not fit the memory, or is no work at all.
    """
    if not 1 <= prompts <= votes:
        raise RrmError(f"{votes} votes on {prompts} prompts: there must be a prompt, and a vote on each")
    if prompt_tokens <= 0 or new_tokens <= 0:
        raise RrmError(f"prompts of {prompt_tokens} and completions of {new_tokens} tokens: both must be above 0")
    if not 0 < efficiency <= 1:
        raise RrmError(f"efficiency {efficiency} is no share of the roofline; it is above 0, and 1 at most")
    weights = weight_bytes * config.num_parameters
    # A completion's columns when it is finished, and its part of the prompt that it shares.
    sequence = cache_bytes * cached_numbers(config) * (prompt_tokens * prompts / votes + new_tokens)
    devices, slots = _replica(device, weights, sequence, votes, devices, slots)
    step = decode_step_seconds(
        config,
        device,
        devices=devices,
        slots=slots,
        cached=prompt_tokens * prompts / votes + new_tokens / 2,
        seen=prompt_tokens + new_tokens / 2,
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
    )
    prefill = prompts * prefill_flops(config, prompt_tokens) / (devices * device.peak_flops)
    decode = votes * new_tokens / slots * step
    return ServingCost(devices, slots, prefill / efficiency, decode / efficiency, votes * new_tokens)


def _replica(
    device: Accelerator, weights: float, sequence: float, votes: int, devices: int | None, slots: int | None
) -> tuple[int, int]:
    """The devices of a replica and its slots, by the bytes of the weights and of a sequence."""
    usable = USABLE_MEMORY * device.memory
    if devices is None:
        room = min(slots, votes) * sequence if slots else max(min(weights, votes * sequence), sequence)
        devices = 2 ** max(0, math.ceil(math.log2((weights + room) / usable)))
    if slots is None:
        slots = int((devices * usable - weights) / sequence)
    slots = min(slots, votes)
    if slots < 1 or weights + slots * sequence > devices * usable:
        raise RrmError(
            f"{devices} × {device.name}, {devices * usable / 1e9:.1f} GB of memory to use, do not hold weights of "
            f"{weights / 1e9:.1f} GB and sequences of {sequence / 1e9:.2f} GB, {max(slots, 1)} at a time; take more "
            "devices, fewer slots, or narrower weights"
        )
    return devices, slots


def decode_step_seconds(
    config: DecoderConfig,
    device: Accelerator,
    *,
    devices: int,
    slots: int,
    cached: float,
    seen: float,
    weight_bytes: float = 2,
    cache_bytes: float = 2,
) -> float:
    """The least time of one step on `devices` that adds a token to each of `slots` sequences.

    A sequence has `cached` columns to read, those of a shared prompt in part, and its new token sees `seen` of them.
    """
    multiplying = _multiplying(config)
    moved = weight_bytes * multiplying + cache_bytes * cached_numbers(config) * slots * cached
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * seen
    flops = slots * (2 * multiplying + attention)
    return max(moved / device.bandwidth, flops / device.peak_flops) / devices


def prefill_flops(config: DecoderConfig, prompt_tokens: float) -> float:
    """Of one prompt; its logits are not computed, and a token sees those before it, half of the prompt on average."""
    layers = _multiplying(config) - config.vocab_size * config.hidden_size
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * prompt_tokens
    return prompt_tokens * (2 * layers + attention)


def cached_numbers(config: DecoderConfig) -> int:
    """Numbers that the cache keeps of one token: a key and a value of every layer and key/value head."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim


def _multiplying(config: DecoderConfig) -> int:
    """Parameters without the input table, of which a token takes one row; a tied table is the output matrix too."""
    return config.num_parameters - (0 if config.tied_embeddings else config.vocab_size * config.hidden_size)
