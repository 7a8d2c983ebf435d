"""The decoder's shape, read from and written to a Hugging Face Qwen2 `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from rrm_jax.errors import RrmError

RopeKind = Literal["default", "linear", "dynamic", "yarn"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "yarn")


class ConfigError(RrmError):
    """A `config.json` that this decoder cannot represent faithfully."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding parameters (Su et al. 2104.09864; YaRN 2309.00071).

    `factor` stretches the context for every kind but `default`; the last six fields are YaRN's.
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_positions: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A Qwen2 decoder. Lengths are in tokens, widths in elements.

    `window_layers[l]` says whether layer `l` sees only the last `sliding_window` positions; empty: none does.
    Raises ConfigError for sizes that do not fit each other.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    rms_eps: float = 1e-6
    tied_embeddings: bool = False
    rope: Rope = Rope()
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] = ()
    initializer_range: float = 0.02

    def __post_init__(self):
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        for name in (*sizes, "intermediate_size", "max_positions"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ConfigError(f"{name} is {size!r}; it must be a positive integer")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; rotary embeddings need pairs")
        if self.window_layers and len(self.window_layers) != self.num_layers:
            raise ConfigError(f"layer_types has {len(self.window_layers)} entries for {self.num_layers} layers")
        if any(self.window_layers) != bool(self.sliding_window):
            raise ConfigError(
                f"sliding_window is {self.sliding_window}, but {sum(self.window_layers)} layers are windowed; "
                "set both or neither"
            )

    @property
    def num_parameters(self) -> int:
        """Tied embeddings counted once."""
        attention = self.head_dim * (self.hidden_size + 1) * (self.num_heads + 2 * self.num_kv_heads)
        attention += self.head_dim * self.hidden_size * self.num_heads
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_layers * layer + tables + self.hidden_size


def from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads a `config.json` of either generation (`rope_theta` + `rope_scaling`, or `rope_parameters`).

    Raises ConfigError, naming the key, for anything this decoder would compute differently.
    """
    if hf.get("model_type", "qwen2") != "qwen2":
        raise ConfigError(f"model_type is {hf['model_type']!r}; only 'qwen2' decoders are supported")
    for key, supported in (("hidden_act", "silu"), ("attention_dropout", 0.0)):
        if hf.get(key, supported) != supported:
            raise ConfigError(f"{key} is {hf[key]!r}; only {supported!r} is supported")
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    missing = [key for key in required if hf.get(key) is None]
    if missing:
        raise ConfigError(f"config.json lacks {', '.join(missing)}")
    wrong = [key for key in required if type(hf[key]) is not int or hf[key] < 1]
    if wrong:
        raise ConfigError(f"{wrong[0]} is {hf[wrong[0]]!r}; it must be a positive integer")
    if hf.get("quantization_config"):
        raise ConfigError("quantization_config is set; export the checkpoint to bfloat16 or float32 first")
    layers, heads = hf["num_hidden_layers"], hf["num_attention_heads"]
    window_layers = _window_layers_from_hf(hf, layers)
    max_positions = hf.get("max_position_embeddings", 32_768)
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
        intermediate_size=hf["intermediate_size"],
        max_positions=max_positions,
        rms_eps=float(hf.get("rms_norm_eps", 1e-6)),
        tied_embeddings=bool(hf.get("tie_word_embeddings", False)),
        rope=_rope_from_hf(hf, max_positions),
        sliding_window=hf.get("sliding_window", 4096) if window_layers else None,
        window_layers=window_layers,
        initializer_range=float(hf.get("initializer_range", 0.02)),
    )


def _rope_from_hf(hf: Mapping[str, Any], max_positions: int) -> Rope:
    # Where both are given, transformers takes rope_scaling.
    declared = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in declared.values()):
        raise ConfigError("rope_parameters are nested by layer type; Qwen2 rotates every layer alike")
    kind = declared.get("rope_type", declared.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise ConfigError(f"rope type {kind!r} is not one of {', '.join(ROPE_KINDS)}")
    if declared.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        raise ConfigError("partial_rotary_factor is set; Qwen2 rotates whole heads")
    theta = float(declared.get("rope_theta", hf.get("rope_theta", 10_000.0)))
    if kind == "default":
        return Rope(theta=theta)
    original = hf.get("original_max_position_embeddings") or declared.get("original_max_position_embeddings")
    original = int(original or max_positions)
    factor = declared.get("factor")
    if factor is None:
        if kind != "yarn":
            raise ConfigError(f"rope type {kind!r} needs a factor")
        factor = max_positions / original
    if kind != "yarn":
        return Rope(theta=theta, kind=kind, factor=float(factor))
    return Rope(
        theta=theta,
        kind=kind,
        factor=float(factor),
        original_max_positions=original,
        attention_factor=declared.get("attention_factor"),
        beta_fast=float(declared.get("beta_fast") or 32.0),
        beta_slow=float(declared.get("beta_slow") or 1.0),
        mscale=declared.get("mscale"),
        mscale_all_dim=declared.get("mscale_all_dim"),
        truncate=bool(declared.get("truncate", True)),
    )


def _window_layers_from_hf(hf: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    kinds = hf.get("layer_types")
    if kinds is not None and (unknown := set(kinds) - {"full_attention", "sliding_attention"}):
        raise ConfigError(f"layer_types has unsupported {sorted(unknown)}")
    # transformers has no window, whatever layer_types says, while use_sliding_window is off.
    if not hf.get("use_sliding_window", False) or hf.get("sliding_window", 4096) is None:
        return ()
    if kinds is None:
        windowed = tuple(layer >= hf.get("max_window_layers", 28) for layer in range(layers))
    else:
        windowed = tuple(kind == "sliding_attention" for kind in kinds)
    return windowed if any(windowed) else ()


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` that `from_hf` reads back as an equal config, in the form every transformers ≥ 4.37 accepts.

    Used for models made here; a converted checkpoint keeps its own `config.json`.
    """
    rope = config.rope
    scaling: dict[str, Any] | None = None
    if rope.kind != "default":
        scaling = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "yarn" and scaling is not None:
        scaling |= {"original_max_position_embeddings": rope.original_max_positions}
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        optional = {
            "attention_factor": rope.attention_factor,
            "mscale": rope.mscale,
            "mscale_all_dim": rope.mscale_all_dim,
        }
        scaling |= {key: value for key, value in optional.items() if value is not None}
    hf = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_eps,
        "rope_scaling": scaling,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tied_embeddings,
        "use_sliding_window": config.sliding_window is not None,
        "vocab_size": config.vocab_size,
    }
    if config.head_dim != config.hidden_size // config.num_heads:
        hf["head_dim"] = config.head_dim
    if config.sliding_window is not None:
        hf["sliding_window"] = config.sliding_window
        hf["layer_types"] = ["sliding_attention" if windowed else "full_attention" for windowed in config.window_layers]
    return hf
