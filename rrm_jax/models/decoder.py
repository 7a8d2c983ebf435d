"""The Qwen2 decoder: Flax modules that declare every parameter once, and pure functions that run them.

Axes: B batch, T query time, S key/value time, D model width, H query heads, K key/value heads, N head width,
F MLP width, V vocabulary, L layers.

Weights are stored as Hugging Face stores them, output axis first, so that conversion only reshapes. Parameters
cross every jit boundary as nested dicts of arrays. `params["layers"]` is either one dict of arrays stacked
along L (training: `lax.scan`) or a list of L dicts (sampling: unrolled, so that no step copies a layer).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rrm_jax.errors import RrmError
from rrm_jax.models import rope
from rrm_jax.models.attention import BACKENDS, NO_WINDOW, Backend, Spec, attend
from rrm_jax.models.cache import Cache, Seen, Segment, attend_cached, store, write
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.quantized import product, product_with_table

Params = dict[str, Any]

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run a forward pass; static, hashable.

    `dtype`: compute dtype (parameters are cast at use, so float32 masters can train in bfloat16).
    `attention`: see `attention.choose_backend`. `remat`: what the backward pass through stacked layers recomputes,
    "none", "dots" (keeps matmul outputs) or "full". `spec`: logical axes → PartitionSpec on the mesh that
    `jax.set_mesh` made current; None on one device. Raises RrmError for an unknown choice.
    """

    dtype: Any = jnp.float32
    attention: Backend = "xla"
    remat: str = "none"
    spec: Spec | None = None

    def __post_init__(self):
        if self.attention not in BACKENDS:
            raise RrmError(f"attention {self.attention!r} is not one of {', '.join(BACKENDS)}")
        if self.remat not in REMAT_POLICIES:
            raise RrmError(f"remat {self.remat!r} is not one of {', '.join(REMAT_POLICIES)}")

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """`x` with its logical axes (None: not split) placed as `spec` says; as it is on one device."""
        return x if self.spec is None else jax.lax.with_sharding_constraint(x, self.spec(axes))


class View(NamedTuple):
    """What every layer of one forward pass shares: rotations, and what may be attended to."""

    cos: jax.Array
    sin: jax.Array
    positions: jax.Array
    segments: jax.Array
    cached: Seen | None = None
    prefixes: jax.Array | None = None


def declare(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], init, hf: str) -> nnx.Param:
    """A parameter's one declaration: its shape, logical axes, initialiser and Hugging Face name."""
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes, hf=hf, init=init)


def _rms_norm(x, scale, eps: float):
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return scale.astype(x.dtype) * normed.astype(x.dtype)


def _contained(k_BKTN, v_BKTN) -> tuple[jax.Array, jax.Array]:
    """Moves what is not finite in a token's value to its key.

    A score behind the mask is replaced, whatever it was, but a value there is multiplied by 0, and 0 × NaN is NaN: one
    broken token would reach the tokens before it, and the rows that use its columns later.
    """
    broken = ~jnp.all(jnp.isfinite(v_BKTN), axis=-1, keepdims=True)
    return jnp.where(broken, jnp.nan, k_BKTN), jnp.where(broken, 0, v_BKTN)


class Attention(nnx.Module):
    """Grouped-query attention with biases on queries, keys and values, and rotary positions."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs):
        normal, zeros = nnx.initializers.normal(c.initializer_range), nnx.initializers.zeros
        kv, q = (c.num_kv_heads, c.head_dim), (c.num_heads, c.head_dim)
        self.q_kernel = declare(
            rngs, (*q, c.hidden_size), ("heads", "head", "embed"), normal, "self_attn.q_proj.weight"
        )
        self.k_kernel = declare(
            rngs, (*kv, c.hidden_size), ("kv_heads", "head", "embed"), normal, "self_attn.k_proj.weight"
        )
        self.v_kernel = declare(
            rngs, (*kv, c.hidden_size), ("kv_heads", "head", "embed"), normal, "self_attn.v_proj.weight"
        )
        self.o_kernel = declare(
            rngs, (c.hidden_size, *q), ("embed", "heads", "head"), normal, "self_attn.o_proj.weight"
        )
        self.q_bias = declare(rngs, q, ("heads", "head"), zeros, "self_attn.q_proj.bias")
        self.k_bias = declare(rngs, kv, ("kv_heads", "head"), zeros, "self_attn.k_proj.bias")
        self.v_bias = declare(rngs, kv, ("kv_heads", "head"), zeros, "self_attn.v_proj.bias")

    def __call__(self, x_BTD, view: View, window, cache, options: Options):
        """Output [B, T, D] and this layer's Segment: the new keys and values [B, K, T, N], or the updated cache.

        `cache` is None or (own Segment, prefix Segment or None).
        """
        dtype = x_BTD.dtype
        q = product("btd,hnd->bthn", x_BTD, self.q_kernel[...]) + self.q_bias[...].astype(dtype)
        k = product("btd,knd->btkn", x_BTD, self.k_kernel[...]) + self.k_bias[...].astype(dtype)
        v = product("btd,knd->btkn", x_BTD, self.v_kernel[...]) + self.v_bias[...].astype(dtype)
        q = options.constrain(rope.rotate(q, view.cos, view.sin), "batch", None, "heads", None)
        k, v = _contained(rope.rotate(k, view.cos, view.sin).swapaxes(1, 2), v.swapaxes(1, 2))
        k, v = (options.constrain(x, "batch", "kv_heads", None, None) for x in (k, v))
        if view.cached is None:
            kv = Segment(k, v)
            at, segments = view.positions, view.segments
            how = {"q_prefixes_BT": view.prefixes, "backend": options.attention, "spec": options.spec}
            out = attend(q, k, v, at, at, segments, segments, window, **how)
        else:
            own, prefix = cache
            kv = write(own, store(k, v, own.k.dtype), view.cached.length, options.spec)
            out = attend_cached(q, kv, prefix, view.cached, window, options.attention, options.spec)
        return product("bthn,dhn->btd", out, self.o_kernel[...]), kv


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(c.initializer_range)
        self.gate_kernel = declare(
            rngs, (c.intermediate_size, c.hidden_size), ("mlp", "embed"), normal, "mlp.gate_proj.weight"
        )
        self.up_kernel = declare(
            rngs, (c.intermediate_size, c.hidden_size), ("mlp", "embed"), normal, "mlp.up_proj.weight"
        )
        self.down_kernel = declare(
            rngs, (c.hidden_size, c.intermediate_size), ("embed", "mlp"), normal, "mlp.down_proj.weight"
        )

    def __call__(self, x_BTD, options: Options):
        """[B, T, D]."""
        gate = product("btd,fd->btf", x_BTD, self.gate_kernel[...])
        up = product("btd,fd->btf", x_BTD, self.up_kernel[...])
        hidden = options.constrain(jax.nn.silu(gate) * up, "batch", None, "mlp")
        return product("btf,df->btd", hidden, self.down_kernel[...])


class Block(nnx.Module):
    """One layer: attention and MLP, each behind an RMS norm and added to what came in."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs):
        ones = nnx.initializers.ones
        self.eps = c.rms_eps
        self.attention = Attention(c, rngs)
        self.mlp = MLP(c, rngs)
        self.attention_norm = declare(rngs, (c.hidden_size,), ("norm",), ones, "input_layernorm.weight")
        self.mlp_norm = declare(rngs, (c.hidden_size,), ("norm",), ones, "post_attention_layernorm.weight")

    def __call__(self, x_BTD, view: View, window, cache, options: Options):
        """Output [B, T, D] and the layer's Segment, as `Attention` gives it."""
        with jax.named_scope("attention"):
            out, kv = self.attention(_rms_norm(x_BTD, self.attention_norm[...], self.eps), view, window, cache, options)
            x_BTD = options.constrain(x_BTD + out, "batch", None, None)
        with jax.named_scope("mlp"):
            x_BTD = x_BTD + self.mlp(_rms_norm(x_BTD, self.mlp_norm[...], self.eps), options)
        return options.constrain(x_BTD, "batch", None, None), kv


class Tables(nnx.Module):
    """What is not in a layer: the token embedding, the last norm, and the untied output matrix."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(c.initializer_range)
        self.embedding = declare(
            rngs, (c.vocab_size, c.hidden_size), ("vocab", "embed"), normal, "model.embed_tokens.weight"
        )
        self.final_norm = declare(rngs, (c.hidden_size,), ("norm",), nnx.initializers.ones, "model.norm.weight")
        if not c.tied_embeddings:
            self.lm_head = declare(rngs, (c.vocab_size, c.hidden_size), ("vocab", "embed"), normal, "lm_head.weight")


def forward(
    config: DecoderConfig,
    params: Params,
    tokens_BT,
    positions_BT,
    segments_BT,
    options: Options = Options(),
    seq_len_BT: Any = None,
    prefixes_BT: Any = None,
) -> tuple[jax.Array, list[Segment] | None]:
    """Runs the layers: final-norm hidden states [B, T, D] in the compute dtype, and the keys and values.

    `segments_BT` is 0 on padding and labels packed sequences 1, 2, …; positions count from 0 in each. The second
    result is each layer's Segment [B, K, T, N] (unstacked parameters) or None (stacked). `seq_len_BT` is the length of
    each token's whole sequence, which dynamic RoPE asks for, where that is more than is seen here. `prefixes_BT`: the
    segment that each token's own continues, so that both are seen, and positions go on from there (see `attend`). Ask
    `unembed` for logits, at the positions that need them.
    """
    if config.rope.kind == "dynamic" and seq_len_BT is None:
        seq_len_BT = _segment_lengths(positions_BT, segments_BT)
    rotations = rope.rotations(config, positions_BT, seq_len_BT)
    view = View(*rotations, positions_BT, segments_BT, prefixes=prefixes_BT)
    return _run_layers(config, params, tokens_BT, view, None, options)


def extend(
    config: DecoderConfig, params: Params, cache: Cache, tokens_BT, options: Options = Options(), seq_len_BT: Any = None
) -> tuple[jax.Array, list[Segment]]:
    """Runs T more tokens of every row: hidden states [B, T, D], and the cache's layers with the tokens written to them.

    Needs unstacked parameters, and room for T columns in every row; how many of the tokens stay is for the caller to
    say, by the `length` of the cache it goes on with.
    """
    start_B = cache.start()
    positions_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
    if config.rope.kind == "dynamic" and seq_len_BT is None:
        seq_len_BT = positions_BT + 1  # a generated token is rotated for the length it was generated at
    seen = Seen(positions_BT, start_B - cache.length, cache.length, cache.prefix)
    view = View(*rope.rotations(config, positions_BT, seq_len_BT), positions_BT, jnp.ones_like(positions_BT), seen)
    hidden, layers = _run_layers(config, params, tokens_BT, view, cache, options)
    assert layers is not None
    return hidden, layers


def _run_layers(config: DecoderConfig, params: Params, tokens_BT, view: View, cache: Cache | None, options: Options):
    with jax.named_scope("embed"):
        x = params["embedding"].astype(options.dtype)[tokens_BT]
    if cache is None:
        # Each device looks its slice of D up for all the rows of its fsdp group, then slices are exchanged for rows,
        # so that the table is never gathered. Left to itself XLA replicates x on some meshes to reshard it.
        x = options.constrain(x, "lookup_batch", None, "embed")
    x = options.constrain(x, "batch", None, None)
    windowed = config.window_layers or (False,) * config.num_layers
    windows = [(config.sliding_window if here else None) or NO_WINDOW for here in windowed]
    last_norm = params["final_norm"], config.rms_eps
    if not isinstance(params["layers"], list):
        if cache is not None:
            raise ValueError("decoding needs unstacked parameters: call unstack(params) once per hand-over")
        return _rms_norm(_scan_blocks(config, params["layers"], x, view, windows, options), *last_norm), None
    prefixes = cache.prefix.layers if cache is not None and cache.prefix is not None else [None] * config.num_layers
    caches = zip(cache.layers, prefixes, strict=True) if cache is not None else [None] * config.num_layers
    segments = []
    for layer, window, layer_cache in zip(params["layers"], windows, caches, strict=True):
        x, segment = _run_block(config, layer, x, view, window, layer_cache, options)
        segments.append(segment)
    return _rms_norm(x, *last_norm), segments


@functools.lru_cache(maxsize=32)
def _block_graph(config: DecoderConfig) -> nnx.GraphDef:
    # 9 ms a call against 0.1 ms for a merge: half the tracing time of an unrolled model when it is not kept.
    return nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))[0]


def _run_block(config, layer: Params, x, view: View, window, cache, options: Options):
    return nnx.merge(_block_graph(config), layer)(x, view, window, cache, options)


def _scan_blocks(config, layers: Params, x, view: View, windows: list[int], options: Options):
    def body(x, layer_and_window):
        layer, window = layer_and_window
        return _run_block(config, layer, x, view, window, None, options)[0], None

    if options.remat != "none":  # a scan's body is never merged with its recomputation: no barrier needed
        body = jax.checkpoint(body, policy=REMAT_POLICIES[options.remat], prevent_cse=False)
    return jax.lax.scan(body, x, (layers, jnp.asarray(windows, jnp.int32)))[0]


def _segment_lengths(positions_BT, segments_BT):
    """Each token's segment's largest position + 1: int32 [B, T]."""
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    return jnp.max(jnp.where(same_BTS, positions_BT[:, None, :], 0), axis=-1) + 1


@jax.named_scope("unembed")
def unembed(config: DecoderConfig, params: Params, hidden) -> jax.Array:
    """Logits, float32 [..., V], of hidden states [..., D]; [B, D] are taken for the few rows of a decode step."""
    table = params["embedding"] if config.tied_embeddings else params["lm_head"]
    if hidden.ndim == 2:
        return product_with_table(hidden, table, preferred_element_type=jnp.float32)
    return product("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


def prefill(
    config: DecoderConfig, params: Params, tokens_BT, lengths_B, capacity: int, options: Options = Options()
) -> tuple[jax.Array, Cache]:
    """Runs right-padded prompts: the hidden state [B, D] of each row's last token, and a cache of `capacity` columns.

    The plain way to decode, without slots or sharing. `lengths_B` ≥ 1.
    """
    time = tokens_BT.shape[1]
    columns = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32), tokens_BT.shape)
    filled = (columns < lengths_B[:, None]).astype(jnp.int32)
    hidden, segments = forward(config, params, tokens_BT, columns, filled, options)
    assert segments is not None
    last = jnp.take_along_axis(hidden, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    grow = ((0, 0), (0, 0), (0, capacity - time), (0, 0))
    return last, Cache([Segment(jnp.pad(kv.k, grow), jnp.pad(kv.v, grow)) for kv in segments], lengths_B)


def decode(
    config: DecoderConfig, params: Params, cache: Cache, token_B, options: Options = Options()
) -> tuple[jax.Array, Cache]:
    """One more token for each row: its hidden state [B, D] and the updated cache."""
    hidden, layers = extend(config, params, cache, token_B[:, None], options)
    return hidden[:, 0], cache._replace(layers=layers, length=cache.length + 1)
