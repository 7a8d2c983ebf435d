"""Tiny models for tests and trials: random weights of realistic scale, in memory or in Hugging Face layout."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rrm_jax.models.config import DecoderConfig, to_hf
from rrm_jax.models.decoder import Params
from rrm_jax.models.params import ParamSpec, is_spec, named_specs, param_specs


def tiny_config(**changes: Any) -> DecoderConfig:
    """A Qwen2 shape that compiles in a second: 2 layers, D 32, 4 heads / 2 kv of 8, F 64, V 64."""
    config = DecoderConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_positions=128,
    )
    return dataclasses.replace(config, **changes)


def realistic_weight(spec: ParamSpec, seed: int = 0) -> np.ndarray:
    """float32 weights such that every part of the network matters, addressed by (seed, Hugging Face name).

    Matrices have variance 1/fan-in, so that attention is neither uniform nor one-hot and residual updates are as
    large as the stream; norms and biases differ from 1 and 0. With the usual 0.02 a tiny random model is almost
    linear in its embedding, and comparisons on it pass whatever the layers do.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(spec.hf.encode())]))
    noise = rng.standard_normal(spec.shape, dtype=np.float32)
    if spec.axes == ("norm",):
        return 1 + 0.2 * noise
    if "embed" not in spec.axes:  # biases
        return 0.3 * noise
    if spec.axes == ("vocab", "embed"):
        return noise * np.float32(1 / np.sqrt(spec.shape[1])) * 4
    fan_in = np.prod(spec.shape[1:]) if spec.axes[0] == "embed" else spec.shape[-1]
    gain = 2.0 if spec.hf.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
    return noise * np.float32(gain / np.sqrt(fan_in))


def realistic_params(config: DecoderConfig, seed: int = 0, stacked: bool = True) -> Params:
    """Parameters of `realistic_weight`, float32 NumPy arrays."""

    def leaf(spec: ParamSpec) -> np.ndarray:
        if "{layer}" not in spec.hf:
            return realistic_weight(spec, seed)
        one = dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])
        named = [dataclasses.replace(one, hf=spec.hf.format(layer=layer)) for layer in range(config.num_layers)]
        return np.stack([realistic_weight(layer, seed) for layer in named])

    return jax.tree.map(leaf, param_specs(config, stacked), is_leaf=is_spec)


def write_hf_checkpoint(
    directory: str | Path, config: DecoderConfig, seed: int = 0, dtype: Any = np.float32, shards: int = 1
) -> None:
    """A model directory as `transformers` saves it (no tokenizer): config.json and `shards` safetensors files."""
    from safetensors.numpy import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    hf = to_hf(config) | {"torch_dtype": np.dtype(dtype).name}
    (directory / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")
    specs = [spec for _, spec in named_specs(config)]
    if shards == 1:
        tensors = {spec.hf: realistic_weight(spec, seed).reshape(spec.hf_shape).astype(dtype) for spec in specs}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map, total = {}, 0
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = specs[shard * len(specs) // shards : (shard + 1) * len(specs) // shards]
        tensors = {spec.hf: realistic_weight(spec, seed).reshape(spec.hf_shape).astype(dtype) for spec in part}
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
