"""The optimiser, its sharded state, and gradients accumulated exactly."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from rrm_jax.models.decoder import Params
from rrm_jax.parallel.mesh import replicated
from rrm_jax.rl.losses import Sums
from rrm_jax.training.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, total_updates: int) -> optax.GradientTransformation:
    """AdamW after clipping by global norm; the schedule counts optimiser steps and ends at 0 unless constant."""
    peak, warmup = config.learning_rate, config.warmup_steps
    decay_steps = max(total_updates - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps),
        "linear": lambda: optax.linear_schedule(peak, 0.0, decay_steps),
    }[config.schedule]()
    schedule = after
    if warmup:
        schedule = optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1), after], [warmup])
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay),
    )


def opt_state_shardings(tx: optax.GradientTransformation, abstract_params: Params, mesh: Mesh) -> Any:
    """Moments live where their parameter lives (jit alone would replicate them); the rest is replicated."""
    return optax.tree.map_params(
        tx,  # pyrefly: ignore[bad-argument-type]
        lambda _, param: param.sharding,
        jax.eval_shape(tx.init, abstract_params),
        abstract_params,
        transform_non_params=lambda _: replicated(mesh),
    )


def abstract_opt_state(tx: optax.GradientTransformation, abstract_params: Params, mesh: Mesh) -> Any:
    """The optimiser state's shapes, dtypes and shardings, to restore a checkpoint into."""
    shapes = jax.eval_shape(tx.init, abstract_params)
    shardings = opt_state_shardings(tx, abstract_params, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


class Updates(NamedTuple):
    """Jitted. `zeros() → gradients`; `accumulate(params, gradients, batch) → gradients, sums` adds one micro-batch
    (gradients donated) and gives its own sums; `apply(params, opt_state, gradients, count) → params, opt_state,
    gradient norm` divides by the global count, once, and steps (params and opt_state donated).
    """

    zeros: Callable[[], Params]
    accumulate: Callable[..., tuple[Params, Sums]]
    apply: Callable[..., tuple[Params, Any, jax.Array]]


def make_updates(
    tx: optax.GradientTransformation,
    loss: Callable[[Params, Any], tuple[jax.Array, Sums]],
    abstract: Params,
    mesh: Mesh,
) -> Updates:
    """Compiles the pieces of an optimiser step for `loss(params, batch) → (numerator, sums)`."""
    params_at: Any = jax.tree.map(lambda x: x.sharding, abstract)
    opt_at = opt_state_shardings(tx, abstract, mesh)
    whole: NamedSharding = replicated(mesh)

    @functools.partial(jax.jit, out_shardings=params_at)
    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)

    @functools.partial(jax.jit, donate_argnums=(1,), out_shardings=(params_at, whole))
    def accumulate(params, gradients, batch):
        (numerator, sums), new = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return jax.tree.map(jnp.add, gradients, new), sums | {"loss": numerator}

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(params_at, opt_at, whole))
    def apply(params, opt_state, gradients, count):
        gradients = jax.tree.map(lambda g: g / count, gradients)
        norm = optax.global_norm(gradients)
        steps, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, steps), opt_state, norm

    return Updates(zeros, accumulate, apply)
