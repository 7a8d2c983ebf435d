"""The models on which this decoder and transformers' Qwen2 are compared, and how far apart they came out.

Each case is a `config.json` as a checkpoint would hold it, so that reading it is compared too. Write the checkpoints
with `python tests/models/parity_cases.py DIR`, then run `tests/fixtures/make_parity.py DIR tests/fixtures/parity`
with an interpreter that has PyTorch.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.models.config import DecoderConfig, from_hf
from rrm_jax.models.decoder import Params, decode, forward, prefill, unembed
from rrm_jax.models.params import named_specs, stack
from rrm_jax.testing import realistic_params, realistic_weight, write_hf_checkpoint

LENGTHS = (19, 7, 12)
NEW_TOKENS = 8
BOUND = 5e-5  # of the standard deviation of the logits, everything in float32


def _case(heads: int, kv_heads: int, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    } | changes


def _yarn(**changes: Any) -> dict[str, Any]:
    """With heads of 32 and θ 1e4 the ramp runs from pair 1 to 8 of 16, so that both of its ends matter."""
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512} | changes


_LONG = {"head_dim": 32, "max_position_embeddings": 2048}


CASES: dict[str, dict[str, Any]] = {
    "default_8_8": _case(8, 8, rope_theta=1e4),
    "default_8_2_tied": _case(8, 2, rope_theta=1e6, rms_norm_eps=1e-5, tie_word_embeddings=True),
    "default_6_2_head_dim": _case(6, 2, rope_theta=1e4, head_dim=16, rms_norm_eps=1e-5),
    "linear": _case(8, 2, rope_theta=1e4, rope_scaling={"type": "linear", "factor": 4.0}),
    "dynamic_below": _case(8, 2, rope_theta=1e6, rope_scaling={"type": "dynamic", "factor": 2.0}),
    # rows of 19, 7 and 12 tokens: one starts beyond the limit, one crosses it while decoding, one stands at it
    "dynamic_beyond": _case(
        8, 2, rope_theta=1e4, max_position_embeddings=12, rope_scaling={"rope_type": "dynamic", "factor": 3.0}
    ),
    "yarn": _case(8, 8, **_LONG, rope_theta=1e4, rope_scaling=_yarn()),
    "yarn_attention_factor": _case(
        8, 2, **_LONG, rope_theta=1e6, rope_scaling=_yarn(attention_factor=1.3, beta_fast=16.0, beta_slow=2.0)
    ),
    "yarn_mscale": _case(6, 2, **_LONG, rope_theta=1e4, rope_scaling=_yarn(mscale=1.0, mscale_all_dim=0.5)),
    "yarn_not_truncated": _case(
        8, 2, **_LONG, rope_theta=1e4, tie_word_embeddings=True, rope_scaling=_yarn(factor=None, truncate=False)
    ),
    "window_from_layer_1": _case(
        8, 2, rope_theta=1e4, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "window_switched_off": _case(
        8, 2, rope_theta=1e4, use_sliding_window=False, sliding_window=5, max_window_layers=1
    ),
    "generation_5_window_yarn": _case(
        8, 2, **_LONG, use_sliding_window=True, sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=_yarn(rope_theta=1e6),
    ),
    "generation_5_default": _case(
        8, 8, use_sliding_window=False, sliding_window=None, layer_types=["full_attention"] * 3, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True,
    ),
}  # fmt: skip


class Outputs(NamedTuple):
    """What one side computed. Rows of `full` are [length, V]; `steps` is [B, NEW_TOKENS, V]; `tokens` [B, NEW_TOKENS].

    `steps[b, i]` are the logits that greedy token `tokens[b, i]` was taken from, by way of the KV cache.
    """

    full: list[np.ndarray]
    steps: np.ndarray
    tokens: np.ndarray


class Gap(NamedTuple):
    """The largest |Δ| of the logits over their standard deviation, and whether the greedy tokens are equal."""

    full: float
    decode: float
    greedy: bool


def prompts(name: str, seed: int) -> list[list[int]]:
    rng = np.random.default_rng([seed, *name.encode()])
    return [rng.integers(0, CASES[name]["vocab_size"], size=length).tolist() for length in LENGTHS]


def weight_sums(config: DecoderConfig, seed: int) -> np.ndarray:
    """Σ|w| of every tensor, in the order of their names: tells stale fixtures from a wrong decoder."""
    specs = sorted((spec for _, spec in named_specs(config)), key=lambda spec: spec.hf)
    return np.array([np.abs(realistic_weight(spec, seed)).sum(dtype=np.float64) for spec in specs])


def export(directory: Path, seed: int = 0) -> None:
    """One folder a case: `config.json`, weights, and `inputs.json` (prompts as token ids, tokens to add)."""
    for name, hf in CASES.items():
        write_hf_checkpoint(directory / name, from_hf(hf), seed)
        (directory / name / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")
        inputs = {"prompts": prompts(name, seed), "new_tokens": NEW_TOKENS}
        (directory / name / "inputs.json").write_text(json.dumps(inputs) + "\n", encoding="utf-8")


def read_outputs(path: Path) -> tuple[Outputs, np.ndarray]:
    """transformers' outputs of one case, and the sums of the weights they came from."""
    with np.load(path, allow_pickle=False) as file:
        full = [file[f"full_{row}"] for row in range(len(LENGTHS))]
        return Outputs(full, file["steps"], file["tokens"]), file["weight_sums"]


def run(name: str, seed: int = 0) -> Outputs:
    """Ours: one right-padded batch, whole sequences by the scanned layers, decoding by the unrolled ones."""
    config = from_hf(CASES[name])
    params = jax.tree.map(jnp.asarray, realistic_params(config, seed, stacked=False))
    rows = prompts(name, seed)
    tokens = np.full((len(rows), max(LENGTHS)), 63, np.int32)
    for b, row in enumerate(rows):
        tokens[b, : len(row)] = row
    full, steps, chosen = jax.device_get(_compute(config, params, tokens, np.array(LENGTHS, np.int32)))
    return Outputs([logits[:length] for logits, length in zip(full, LENGTHS, strict=True)], steps, chosen)


@functools.partial(jax.jit, static_argnums=0)
def _compute(config: DecoderConfig, params: Params, tokens_BT, lengths_B):
    batch, time = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32), (batch, time))
    segments_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
    stacked = stack(params)
    full = unembed(config, stacked, forward(config, stacked, tokens_BT, positions_BT, segments_BT)[0])
    hidden, cache = prefill(config, params, tokens_BT, lengths_B, time + NEW_TOKENS)

    def step(carry, i):
        hidden, cache = carry
        logits = unembed(config, params, hidden)
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return decode(config, params, cache, token), (logits, token)

    _, (steps, chosen) = jax.lax.scan(step, (hidden, cache), jnp.arange(NEW_TOKENS, dtype=jnp.int32))
    return full, steps.swapaxes(0, 1), chosen.swapaxes(0, 1)


def compare(ours: Outputs, theirs: Outputs) -> Gap:
    scale = np.concatenate(theirs.full).std()
    full = max(np.abs(a - b).max() for a, b in zip(ours.full, theirs.full, strict=True))
    # After a different token the two sides decode different texts: only steps up to it can be compared.
    same = np.cumprod(ours.tokens == theirs.tokens, axis=1).astype(bool)
    comparable = np.concatenate([np.ones_like(same[:, :1]), same[:, :-1]], axis=1)
    decode = np.abs(ours.steps - theirs.steps).max(axis=-1)[comparable].max()
    return Gap(float(full / scale), float(decode / scale), bool(same.all()))


if __name__ == "__main__":
    export(Path(sys.argv[1]))
