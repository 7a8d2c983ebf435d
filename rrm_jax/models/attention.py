"""Grouped-query attention behind one mask rule, with a backend per platform.

Axes: B batch, T query time, S key/value time, H query heads, K key/value heads, G = H/K, N head width.

A query sees a key when they are in the same segment, or the key is in the segment that the query's continues (its
prefix: a prompt that several completions share), the key's position is not later, and, in a windowed layer, it is less
than `window` positions back. Padding is a segment of its own, 0: it sees only itself, so that no row of the softmax is
empty on any backend. Positions and segments travel as arrays; no token id is ever looked at.

What runs where: `xla` anywhere, with float32 scores [B, H, T, S]. `cudnn` needs an NVIDIA GPU; the mask reaches it
as a bias [B, 1, T, S] in the compute dtype. `splash` needs a TPU, and keeps neither scores nor mask; off a TPU its
kernels run in Pallas' interpreter, which is how the tests compare its results and gradients with `xla`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig

Backend = Literal["xla", "cudnn", "splash"]
BACKENDS: tuple[Backend, ...] = ("xla", "cudnn", "splash")
NO_WINDOW = 1 << 30
# Times are padded up to these: cuDNN's backward pass with a mask takes even lengths only, Splash whole blocks.
_MULTIPLE = {"xla": 1, "cudnn": 2, "splash": 128}
Spec = Callable[[tuple[str | None, ...]], PartitionSpec]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which backend full-sequence attention runs on, and why; `cache.attend_cached` says what decoding does with it."""

    backend: Backend
    reason: str

    def __str__(self) -> str:
        return f"attention: {self.backend} ({self.reason})"


def target_platform() -> str:
    """Where what is being traced will run: on the devices of the current mesh, which need not be of this machine."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform


def choose_backend(config: DecoderConfig, dtype, platform: str | None = None, requested: str = "auto") -> Choice:
    """The backend for `platform` (default: JAX's) and compute `dtype`.

    `requested` other than "auto" is taken as it is, or refused with an RrmError that says what it lacks.
    """
    platform = platform or jax.default_backend()
    lacking = {
        "xla": None,
        "cudnn": _cudnn_lacks(config, dtype, platform),
        "splash": _splash_lacks(config, platform),
    }
    if requested != "auto":
        if requested not in lacking:
            raise RrmError(f"attention backend {requested!r} is not one of auto, {', '.join(BACKENDS)}")
        if lacking[requested]:
            raise RrmError(f"attention backend {requested!r} cannot be used: {lacking[requested]}")
        return Choice(requested, "asked for")
    preferred: Backend | None = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform)  # type: ignore[assignment]
    if preferred is None:
        return Choice("xla", f"the default on {platform}")
    if lacking[preferred]:
        return Choice("xla", f"{preferred} cannot be used: {lacking[preferred]}")
    return Choice(preferred, f"the default on {platform}")


def _cudnn_lacks(config: DecoderConfig, dtype, platform: str) -> str | None:
    if platform not in ("gpu", "cuda"):
        return f"platform is {platform}, not a CUDA GPU"
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"compute dtype is {jnp.dtype(dtype).name}, not bfloat16 or float16"
    if config.head_dim % 8 or config.head_dim > 128:
        return f"head_dim {config.head_dim} is not a multiple of 8 up to 128"
    return None


def _splash_lacks(config: DecoderConfig, platform: str) -> str | None:
    if platform != "tpu":
        return f"platform is {platform}, not a TPU"
    if config.head_dim % 64:
        return f"head_dim {config.head_dim} is not a multiple of 64"
    if any(config.window_layers):
        return "sliding-window layers are chosen at run time, Splash masks when compiling"
    return None


def shares_prefixes(backend: Backend) -> bool:
    """Whether a segment can continue another one: Splash knows of a query's own segment alone."""
    return backend != "splash"


def visible(
    q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS, window, q_prefixes_BT: Any = None
) -> jax.Array:
    """The mask, bool [B, T, S], of the rule at the top of this module."""
    distance = q_positions_BT[:, :, None] - kv_positions_BS[:, None, :]
    same = q_segments_BT[:, :, None] == kv_segments_BS[:, None, :]
    if q_prefixes_BT is not None:
        same = same | (q_prefixes_BT[:, :, None] == kv_segments_BS[:, None, :])
    return same & (distance >= 0) & (distance < window)


def attend(
    q_BTHN,
    k_BKSN,
    v_BKSN,
    q_positions_BT,
    kv_positions_BS,
    q_segments_BT,
    kv_segments_BS,
    window,
    *,
    q_prefixes_BT: Any = None,
    backend: Backend = "xla",
    spec: Spec | None = None,
) -> jax.Array:
    """Attention output [B, T, H, N] in q's dtype; softmax in float32.

    `q_prefixes_BT` names, for each query, the segment that its own continues (its own where it continues none); None:
    nothing continues anything. Raises ValueError with a backend that does not have it, see `shares_prefixes`.
    `window` is a scalar int array (`NO_WINDOW` for none). Rows of padding get finite values that callers must not
    read. `cudnn` and `splash` are for self-attention (S = T); `splash` takes no window, and is causal by index,
    which is causal by position where positions rise within a segment. `spec` places Splash, which XLA cannot
    partition by itself, on the current mesh.
    """
    if q_prefixes_BT is not None and not shares_prefixes(backend):
        raise ValueError(f"attention backend {backend!r} has no prefixes; lay every sequence out by itself")
    short = -q_BTHN.shape[1] % _MULTIPLE[backend]
    if short:

        def grow(x, axis):
            return jnp.pad(x, [(0, short if at == axis else 0) for at in range(x.ndim)])

        out = attend(
            grow(q_BTHN, 1), grow(k_BKSN, 2), grow(v_BKSN, 2), grow(q_positions_BT, 1), grow(kv_positions_BS, 1),
            grow(q_segments_BT, 1), grow(kv_segments_BS, 1), window,
            q_prefixes_BT=None if q_prefixes_BT is None else grow(q_prefixes_BT, 1), backend=backend, spec=spec,
        )  # fmt: skip
        return out[:, :-short]
    with jax.named_scope(f"attend_{backend}"):
        if backend == "splash":
            return _splash(q_BTHN, k_BKSN, v_BKSN, q_segments_BT, spec)
        where = q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS
        mask_BTS = visible(*where, window, q_prefixes_BT)
        if backend == "cudnn":
            k, v = (x.swapaxes(1, 2) for x in (k_BKSN, v_BKSN))
            return jax.nn.dot_product_attention(q_BTHN, k, v, mask=mask_BTS[:, None], implementation="cudnn")
        return _xla(q_BTHN, k_BKSN, v_BKSN, mask_BTS)


def _xla(q_BTHN, k_BKSN, v_BKSN, mask_BTS) -> jax.Array:
    # Heads are grouped by the key/value head they share: repeating K and V costs 13 to 16 times the bytes. The group is
    # one axis with time, so that both products are plain ones: half the time of einsums over five axes on a CPU.
    batch, time, heads, width = q_BTHN.shape
    kv_heads, length = k_BKSN.shape[1:3]
    group = heads // kv_heads
    q = q_BTHN.reshape(batch, time, kv_heads, group, width).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, kv_heads, group * time, width)
    scores = jnp.einsum("bkqn,bksn->bkqs", q, k_BKSN, preferred_element_type=jnp.float32) * width**-0.5
    scores = scores.reshape(batch, kv_heads, group, time, length)
    scores = jnp.where(mask_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BKSN.dtype).reshape(batch, kv_heads, group * time, length)
    out = jnp.einsum("bkqs,bksn->bkqn", weights, v_BKSN).reshape(batch, kv_heads, group, time, width)
    return out.transpose(0, 3, 1, 2, 4).reshape(q_BTHN.shape)


def _splash(q_BTHN, k_BKSN, v_BKSN, segments_BT, spec: Spec | None) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    interpret = target_platform() != "tpu"

    def on_device(q, k, v, segments):
        time = q.shape[1]
        mask = masks.MultiHeadMask([masks.CausalMask((time, time))] * q.shape[2])
        tile = next(tile for tile in (512, 256, 128) if time % tile == 0)
        run = kernel.make_splash_mha(
            mask, block_sizes=kernel.BlockSizes(*(tile,) * 8), head_shards=1, q_seq_shards=1, interpret=interpret
        )
        ids = kernel.SegmentIds(q=segments, kv=segments)
        out: Any = jax.vmap(run)(q.swapaxes(1, 2) * q.shape[-1] ** -0.5, k, v, ids)
        return out.swapaxes(1, 2).astype(q.dtype)

    if spec is None:
        return on_device(q_BTHN, k_BKSN, v_BKSN, segments_BT)
    q_spec, kv_spec = spec(("batch", None, "heads", None)), spec(("batch", "kv_heads", None, None))
    placed = jax.shard_map(
        on_device, in_specs=(q_spec, kv_spec, kv_spec, spec(("batch", None))), out_specs=q_spec, check_vma=False
    )
    return placed(q_BTHN, k_BKSN, v_BKSN, segments_BT)
