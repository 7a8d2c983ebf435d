"""The trainable state of a run, and one optimiser step on it."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.training_state import TrainingCheckpoints
from rrm_jax.errors import RrmError
from rrm_jax.models import lora
from rrm_jax.models.attention import choose_backend, shares_prefixes
from rrm_jax.models.decoder import Options, Params
from rrm_jax.models.params import abstract_params
from rrm_jax.parallel.mesh import (
    RULES,
    MeshShape,
    batch_sharding,
    make_mesh,
    param_sharding,
    partition_spec,
    replicated,
)
from rrm_jax.parallel.offload import to_device, to_host
from rrm_jax.rl.losses import Sums
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.training.batches import Example, MicroBatch, micro_batches
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.optimizer import abstract_opt_state, make_optimizer, opt_state_shardings

Loss = Callable[[Params, Any], tuple[jax.Array, Sums]]


class Learner:
    """Master parameters (float32, stacked), optimiser state, and the jitted pieces that move them.

    `params` is what is trained: the model's parameters, or, with `model.lora`, adapters, whose model is `frozen`, in
    the compute dtype. `version` counts optimiser steps since the model was loaded from `config.model.path`.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.mesh = make_mesh(MeshShape(**config.mesh.model_dump()))
        if config.rollout.asynchronous and self.mesh.size > 1:
            # Two threads would start programs on the same devices in orders that devices need not agree on.
            raise RrmError(
                f"rollout.asynchronous samples and learns at once on one device, and the mesh has {self.mesh.size}; "
                "leave it out"
            )
        self.ways = int(np.prod([self.mesh.shape[axis] for axis in RULES["batch"]]))
        place = functools.partial(param_sharding, self.mesh)
        dtype = jnp.dtype(config.model.compute_dtype)
        # Only the parts are kept: a resumed run replaces the parameters, and must not hold these as well.
        adapted = config.model.lora
        stored = jnp.float32 if adapted is None else dtype
        model = load_model(config.model.path, mesh=self.mesh, dtype=stored, stacked=True)
        self.decoder, self.assets, self.base_fingerprint = model.config, model.assets, model.fingerprint
        self.attention = choose_backend(self.decoder, dtype, requested=config.model.attention)
        self.options = Options(dtype, self.attention.backend, config.model.remat, partition_spec)
        self.frozen: Params | None = None
        if adapted is None:
            self.params: Params = model.params
            self._abstract = abstract_params(self.decoder, jnp.float32, stacked=True, sharding=place)
        else:
            self.frozen = model.params
            self.params = lora.init_adapters(self.decoder, adapted.rank, config.seed, sharding=place)
            self._abstract = lora.abstract_adapters(self.decoder, adapted.rank, sharding=place)
        self._tx = make_optimizer(config.optimizer, config.steps * config.updates_per_step)
        self._opt_at = opt_state_shardings(self._tx, self._abstract, self.mesh)
        with jax.set_mesh(self.mesh):
            self._opt_state = self._at_rest(jax.jit(self._tx.init, out_shardings=self._opt_at)(self.params))
        self.version = 0
        self._working: tuple[int, Params] | None = None
        self._sampler: Sampler | None = None
        self._sampler_version = -1
        self._jitted = _jitted(self)

    def model(self, params: Params, frozen: Params | None) -> Params:
        """What `forward` takes: the parameters themselves, or the frozen model with these adapters in it."""
        adapted = self.config.model.lora
        if adapted is None or frozen is None:
            return params
        return lora.adapt(frozen, params, adapted.alpha, adapted.rank)

    def working(self) -> Params:
        """The parameters as forward passes read them: a copy in the compute dtype, made anew after every update."""
        if self.frozen is not None or jnp.dtype(self.config.model.compute_dtype) == jnp.float32:
            return self.params
        if self._working is None or self._working[0] != self.version:
            self._working = None  # the old copy makes room first
            with jax.set_mesh(self.mesh):
                self._working = self.version, self._jitted.cast(self.params)
        return self._working[1]

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is run once for the completions beside it: not on a TPU, whose kernel has no mask for that,
        nor with dynamic RoPE, which turns a prompt by the length of the whole."""
        return shares_prefixes(self.options.attention) and self.decoder.rope.kind != "dynamic"

    def micro_batches(self, examples: Sequence[Example], chosen: Sequence[int] | None = None) -> list[MicroBatch]:
        """The chosen examples (None: all), packed for this mesh."""
        chosen = range(len(examples)) if chosen is None else chosen
        return micro_batches(examples, chosen, self.config.pack, self.ways, self.shares_prompts)

    def model_of_step(self) -> Params:
        """The policy as it is, for forward passes without gradients."""
        return self.model(self.working(), self.frozen)

    def sampler(self) -> Sampler:
        """The sampler, on the weights as they are now: unstacked and cast anew after every update or restore."""
        if self._sampler is None:
            size = self.config.rollout.batch_size
            self._sampler = Sampler(self.decoder, self._merged(), self.options, self.mesh, batch_size=size)
        elif self._sampler_version != self.version:
            self._sampler.update(self._merged())
        self._sampler_version = self.version
        return self._sampler

    def _merged(self) -> Params:
        adapted = self.config.model.lora
        if adapted is None:
            return self.working()
        with jax.set_mesh(self.mesh):
            return self._jitted.merge(self.frozen, self.params)

    def compile(self, loss: Loss) -> None:
        """Sets the loss that `update` descends: `loss(model, batch) → (numerator, sums)`."""

        def accumulate(params, frozen, gradients, batch):
            objective = lambda params: loss(self.model(params, frozen), batch)  # noqa: E731
            (numerator, sums), new = jax.value_and_grad(objective, has_aux=True)(params)
            return jax.tree.map(lambda total, g: total + g.astype(total.dtype), gradients, new), sums | {
                "loss": numerator
            }

        at: Any = jax.tree.map(lambda x: x.sharding, self._abstract)
        self._accumulate = jax.jit(accumulate, donate_argnums=(2,), out_shardings=(at, replicated(self.mesh)))

    def place(self, batch: Any) -> Any:
        """A micro-batch of host arrays → device arrays, rows split over the mesh."""
        return jax.device_put(batch, batch_sharding(self.mesh))

    def update(self, batches: Iterable[Any], denominator: float) -> dict[str, float]:
        """One optimiser step on the gradients of all `batches` (host arrays), divided by `denominator` once.

        Returns the loss's sums, the mean loss and `grad_norm` (before clipping). A gradient that is not finite, or
        whose norm is above `optimizer.stop_norm`, changes nothing; what to make of it is the caller's.
        """
        with jax.set_mesh(self.mesh):
            gradients, sums = self._jitted.zeros(), []
            for batch in batches:
                gradients, more = self._accumulate(self.working(), self.frozen, gradients, self.place(batch))
                sums.append(more)
            self._working = None
            opt_state = to_device(self._opt_state, self._opt_at) if self.config.optimizer.offload else self._opt_state
            self.params, opt_state, norm = self._jitted.apply(
                self.params, opt_state, gradients, np.float32(denominator)
            )
            self._opt_state = self._at_rest(opt_state)
        self.version += 1
        fetched = jax.device_get(sums)
        totals = {name: float(sum(each[name] for each in fetched)) for name in fetched[0]}
        return totals | {"loss": totals["loss"] / denominator, "grad_norm": float(norm)}

    def _at_rest(self, opt_state: Any) -> Any:
        return to_host(opt_state) if self.config.optimizer.offload else opt_state

    def save(self, checkpoints: TrainingCheckpoints, step: int, meta: dict[str, Any]) -> None:
        checkpoints.save(step, self.params, self._opt_state, meta | {"version": self.version})

    def restore(self, checkpoints: TrainingCheckpoints, step: int) -> dict[str, Any]:
        """Puts back the state saved at `step`, onto this mesh; returns what was saved with it."""
        abstract = abstract_opt_state(self._tx, self._abstract, self.mesh)
        self.params, opt_state, meta = checkpoints.restore(step, self._abstract, abstract)
        self._opt_state = self._at_rest(opt_state)
        self.version, self._sampler_version, self._working = meta["version"], -1, None
        return meta


class _Jitted(NamedTuple):
    """`zeros() → gradients`; `apply(params, opt_state, gradients, denominator) → params, opt_state, norm` divides by
    the global denominator, once, and steps (the first two donated); `cast(params)`; `merge(frozen, adapters)`."""

    zeros: Callable[[], Params]
    apply: Callable[..., tuple[Params, Any, jax.Array]]
    cast: Callable[[Params], Params]
    merge: Callable[[Params | None, Params], Params]


def _jitted(learner: Learner) -> _Jitted:
    abstract, tx, mesh = learner._abstract, learner._tx, learner.mesh
    params_at: Any = jax.tree.map(lambda x: x.sharding, abstract)
    adapted, dtype = learner.config.model.lora, learner.options.dtype
    stop_norm = learner.config.optimizer.stop_norm

    @functools.partial(jax.jit, out_shardings=params_at)
    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(params_at, learner._opt_at, replicated(mesh)))
    def apply(params, opt_state, gradients, denominator):
        gradients = jax.tree.map(lambda g: g / denominator, gradients)
        norm = optax.global_norm(gradients)
        good = norm <= stop_norm  # not where it is NaN
        with jax.named_scope("optimizer"):
            steps, new_state = tx.update(gradients, opt_state, params)
        keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        return (
            jax.tree.map(lambda p, step: keep(p + step, p), params, steps),
            jax.tree.map(keep, new_state, opt_state),
            norm,
        )

    @functools.partial(jax.jit, out_shardings=params_at)
    def cast(params):
        return jax.tree.map(lambda x: x.astype(dtype), params)

    @jax.jit
    def merge(frozen, adapters):
        assert adapted is not None
        return lora.merge(frozen, adapters, adapted.alpha, adapted.rank)

    return _Jitted(zeros, apply, cast, merge)
