"""How fast training is against what the devices can do: tokens a second, and model FLOPs utilisation (MFU).

MFU as PaLM defines it (2204.02311, appendix B): the FLOPs that the model's own arithmetic asks for, without those of
recomputed activations, over the devices' peak. Counted here are matrix products alone: 2 FLOPs a weight and token
forwards, 4 backwards; attention by the keys that a token really sees; the unembedding for the tokens whose log-prob is
asked for. Padding counts as nothing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rrm_jax.models.config import DecoderConfig
from rrm_jax.parallel.accelerators import accelerator_of
from rrm_jax.training.batches import Example


class Work(NamedTuple):
    """`tokens` that went through the layers, prompts included, and the FLOPs that this takes."""

    tokens: int
    flops: float


def layer_weights(config: DecoderConfig) -> int:
    """Weights of the matrices of one layer: each is multiplied once with every token."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)


def training_work(
    config: DecoderConfig,
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    *,
    repeated: Sequence[bool] | None = None,
    adapters: bool = False,
) -> Work:
    """One forward and backward pass over sequences of these lengths, in tokens.

    Where `repeated`, the prompt is another sequence's too, and was run with that one only.
    With `adapters` the matrices are frozen: the gradients by their weights, a third of all, are not computed, and the
    adapters' own products are too small to count.
    """
    prompt, completion = np.asarray(prompt_lengths, np.int64), np.asarray(completion_lengths, np.int64)
    lengths = prompt + completion
    again = prompt[np.asarray(repeated, bool)] if repeated is not None else prompt[:0]
    tokens, scored = int(lengths.sum() - again.sum()), int(completion.sum())
    windowed = sum(config.window_layers)
    seen = 0
    for layers, window in ((config.num_layers - windowed, None), (windowed, config.sliding_window)):
        seen += layers * (_seen(lengths, window) - _seen(again, window))
    weights = tokens * config.num_layers * layer_weights(config) + scored * config.vocab_size * config.hidden_size
    flops = (4 if adapters else 6) * weights + 12 * config.num_heads * config.head_dim * seen
    return Work(tokens, float(flops))


def _seen(lengths: np.ndarray, window: int | None) -> int:
    """Keys seen by all tokens of all sequences: 1 by the first, 2 by the second, never more than the window."""
    inside = lengths if window is None else np.minimum(lengths, window)
    return int((inside * (inside + 1) // 2 + (lengths - inside) * inside).sum())


def device_memory() -> int | None:
    """The most bytes that one of this process's devices ever held; None where they do not count them (CPUs)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat), default=None)


def throughput(
    config: DecoderConfig,
    examples: Sequence[Example],
    seconds: Mapping[str, float],
    devices: int,
    passes: int,
    *,
    shares_prompts: bool = False,
    adapters: bool = False,
) -> dict[str, float]:
    """What a step's `seconds` (of `Run.seconds`) say, when `passes` times an update went over its `examples`.

    `tokens_per_second`, prompts included, by the whole step; `mfu` of the update alone, on so many `devices`;
    `memory_peak_gib` of one device, since the process began. With `shares_prompts` a prompt counts once, however many
    of the examples have it. What is not known of the devices is left out.
    """
    prompts = [len(example.prompt_ids) for example in examples]
    completions = [len(example.completion_ids) for example in examples]
    known: set[tuple[int, ...]] = set()
    repeated = []
    for example in examples:
        repeated.append(shares_prompts and example.prompt_ids in known)
        known.add(example.prompt_ids)
    work = training_work(config, prompts, completions, repeated=repeated, adapters=adapters)
    values = {"tokens_per_second": work.tokens / sum(seconds.values())}
    device, memory = accelerator_of(jax.devices()[0]), device_memory()
    if device is not None:
        values["mfu"] = passes * work.flops / seconds["seconds_update"] / (device.peak_flops * devices)
    if memory is not None:
        values["memory_peak_gib"] = memory / 2**30
    return values
