"""The optimiser, and where its state lives."""

import math
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, GetAttrKey

from rrm_jax.models.decoder import Params
from rrm_jax.parallel.mesh import replicated
from rrm_jax.training.config import OptimizerConfig
from rrm_jax.training.moments import scale_by_small_adam


def make_optimizer(config: OptimizerConfig, total_updates: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW (1711.05101) or Adafactor (1804.04235): p ← p − η (direction + decay · p).

    The learning rate η counts optimiser steps and ends at 0 unless constant. `b1`, `b2` and `eps` are AdamW's;
    `moments` says how it keeps its state, see `moments.py`. Parameters and gradients are float32.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _scale(config),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(_schedule(config, total_updates)),
    )


def _scale(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients → directions, whose elements are of size 1 or so."""
    if config.kind == "adafactor":
        # Not `optax.adafactor`: by default that multiplies each step by the parameter's own size, so that a learning
        # rate of AdamW's would be tens of times too small; and its decay is applied after the learning rate, so that
        # 0.1 would take a tenth off the weights every step. Here both mean what they mean for AdamW. The root mean
        # square of a direction over an array (all layers of a kind) is 1 at most; but with no first moment nothing
        # averages noise away, so that steps of the same learning rate are longer than AdamW's.
        return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    if config.moments == "float32":
        return optax.scale_by_adam(config.b1, config.b2, config.eps)
    return scale_by_small_adam(config.b1, config.b2, config.eps, config.moments)


def _schedule(config: OptimizerConfig, total_updates: int) -> optax.Schedule:
    """Linear warm-up from peak / warmup_steps at the first step, then the decay, 0 after the last step."""
    peak, warmup = config.learning_rate, config.warmup_steps
    decay_steps = max(total_updates - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps),
        "linear": lambda: optax.linear_schedule(peak, 0.0, decay_steps),
    }[config.schedule]()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1), after], [warmup])


def opt_state_shardings(tx: optax.GradientTransformation, abstract_params: Params, mesh: Mesh) -> Any:
    """Where the state lives: what belongs to a parameter is split as the parameter is (jit alone would replicate it).

    `abstract_params` are nested dicts of `jax.ShapeDtypeStruct`s with shardings. An array of the state belongs to the
    parameter whose keys its own path contains, in whatever transformation's state that stands. An axis that a mesh
    axis does not divide is not split over it: scales of tiles, on large meshes. All else is replicated.
    """
    params = {_keys(path): param for path, param in jax.tree.leaves_with_path(abstract_params)}

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        param = params.get(_keys(path))
        if param is None:
            return replicated(mesh)
        entries = list(param.sharding.spec) + [None] * (len(param.shape) - len(param.sharding.spec))
        if leaf.ndim == len(entries) - 1:  # factored: the mean over one of the two longest axes
            *_, second, first = np.argsort(param.shape)
            entries.pop(first if GetAttrKey("v_row") in path else second)
        if leaf.ndim != len(entries):
            return replicated(mesh)
        fitting = (
            entry if _divides(mesh, entry, size) else None for entry, size in zip(entries, leaf.shape, strict=True)
        )
        return NamedSharding(mesh, PartitionSpec(*fitting))

    return jax.tree.map_with_path(place, jax.eval_shape(tx.init, abstract_params))


def _keys(path: Any) -> tuple[Any, ...]:
    """The keys of dicts in a path: a parameter's own, for transformations keep their states in tuples."""
    return tuple(key.key for key in path if isinstance(key, DictKey))


def _divides(mesh: Mesh, entry: Any, size: int) -> bool:
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return size % math.prod(mesh.shape[name] for name in names) == 0


def abstract_opt_state(tx: optax.GradientTransformation, abstract_params: Params, mesh: Mesh) -> Any:
    """The optimiser state's shapes, dtypes and shardings, to restore a checkpoint into."""
    shapes = jax.eval_shape(tx.init, abstract_params)
    shardings = opt_state_shardings(tx, abstract_params, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
