"""What a product's weight may be besides an array: narrow values with a scale, or a frozen matrix with an adapter.

Weights are kept in int8 or float8 for decoding, with a scale for each output channel. Products are taken with the
narrow values, converted as they are read, and scaled afterwards: exact up to the rounding of the values themselves.
Embeddings and norms stay as they are. Adapted weights (`lora`) are multiplied part by part.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from rrm_jax.models.params import ParamSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """`values` as the weight was, `scale` float32 with the output axes of it."""

    values: Any
    scale: Any

    def __getitem__(self, index: Any) -> "Quantized":
        if index is not Ellipsis:
            raise TypeError("a quantized weight is used as a whole")
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """The matrix `weight` + `scale` · `up` · `down`, never made as such in a product (LoRA, 2106.09685, eq. 3).

    `weight` [*outputs, *inputs], `down` [R, *inputs], `up` [*outputs, R]; stacked, each has a leading layer axis.
    """

    weight: Any
    down: Any
    up: Any
    scale: float = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: Any) -> "Adapted":
        if index is not Ellipsis:
            raise TypeError("an adapted weight is used as a whole")
        return self

    def merged(self) -> jax.Array:
        """The one matrix of an unstacked weight, summed in float32 and rounded once, to the weight's dtype."""
        outputs, into = "abc"[: self.up.ndim - 1], "xyz"[: self.down.ndim - 1]
        up, down = self.up.astype(jnp.float32), self.down.astype(jnp.float32)
        change = jnp.einsum(f"{outputs}r,r{into}->{outputs}{into}", up, down, precision=jax.lax.Precision.HIGHEST)
        return (self.weight.astype(jnp.float32) + self.scale * change).astype(self.weight.dtype)


def inputs(spec: "ParamSpec") -> tuple[int, ...]:
    """The axes that a product sums over: what comes after "embed" in front, else the last."""
    return tuple(range(1, len(spec.shape))) if spec.axes[0] == "embed" else (len(spec.shape) - 1,)


def is_product(spec: "ParamSpec") -> bool:
    """Whether a weight is only ever a factor of a product: matrices, but not the table that tokens are looked up in."""
    return "embed" in spec.axes and spec.hf != "model.embed_tokens.weight"


def quantize(spec: "ParamSpec", weight, dtype) -> Quantized:
    """The nearest values of `dtype` (int8 or a float8), the largest of an output channel at its end of the range."""
    whole = jnp.issubdtype(dtype, jnp.integer)
    most = float(jnp.iinfo(dtype).max if whole else jnp.finfo(dtype).max)
    weight, axes = weight.astype(jnp.float32), inputs(spec)
    scale = jnp.maximum(jnp.max(jnp.abs(weight), axis=axes), 1e-30) / most
    values = jnp.clip(weight / jnp.expand_dims(scale, axes), -most, most)
    return Quantized((jnp.round(values) if whole else values).astype(dtype), scale)


def product(equation: str, x, weight, **how) -> jax.Array:
    """`jnp.einsum` of activations and a weight in their dtype, whose output axes end the result."""
    if isinstance(weight, Adapted):
        return product(equation, x, weight.weight, **how) + _change(equation, x, weight, **how)
    if isinstance(weight, Quantized):
        out = jnp.einsum(equation, x, weight.values.astype(x.dtype), **how)
        return out * weight.scale.astype(out.dtype)
    return jnp.einsum(equation, x, weight.astype(x.dtype), **how)


def _change(equation: str, x, weight: Adapted, **how) -> jax.Array:
    """What the adapter adds to a product: through R numbers for each token, with r for their axis."""
    terms, out = equation.split("->")
    of_x, of_weight = terms.split(",")
    outputs = "".join(axis for axis in of_weight if axis in out)
    into, lead = (axes.translate(dict.fromkeys(map(ord, outputs))) for axes in (of_weight, out))
    low = jnp.einsum(f"{of_x},r{into}->{lead}r", x, weight.down.astype(x.dtype))
    return jnp.einsum(f"{lead}r,{outputs}r->{out}", weight.scale * low, weight.up.astype(x.dtype), **how)


def product_with_table(x_BD, weight, **how) -> jax.Array:
    """`product("bd,vd->bv", …)` of a decode step's few rows with a large matrix [V, D].

    XLA's CPU compiler is faster from the matrix's side, 19 ms for 29 (16 rows, V 152 K, D 512), if it leaves it so:
    without the barrier it turns the product around again.
    """
    values = weight.values if isinstance(weight, Quantized) else weight
    straight = lambda x: jnp.einsum("bd,vd->bv", x, values.astype(x.dtype), **how)  # noqa: E731
    turned = lambda x: jax.lax.optimization_barrier(jnp.einsum("vd,bd->vb", values.astype(x.dtype), x, **how)).T  # noqa: E731
    out = jax.lax.platform_dependent(x_BD, cpu=turned, default=straight)
    return out * weight.scale.astype(out.dtype) if isinstance(weight, Quantized) else out
