"""The trainable state of a run, and one optimiser step on it."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.training_state import TrainingCheckpoints
from rrm_jax.models.attention import choose_backend
from rrm_jax.models.decoder import Options, Params
from rrm_jax.models.params import abstract_params
from rrm_jax.parallel.mesh import MeshShape, batch_sharding, make_mesh, param_sharding, partition_spec
from rrm_jax.rl.losses import Sums
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.optimizer import abstract_opt_state, make_optimizer, make_updates, opt_state_shardings

Loss = Callable[[Params, Any], tuple[jax.Array, Sums]]


class Learner:
    """Master parameters (float32, stacked), optimiser state, and the jitted pieces that move them.

    `version` counts optimiser steps since the model was loaded from `config.model.path`.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.mesh = make_mesh(MeshShape(**config.mesh.model_dump()))
        place = functools.partial(param_sharding, self.mesh)
        # Only the parts are kept: a resumed run replaces the parameters, and must not hold these as well.
        model = load_model(config.model.path, mesh=self.mesh, dtype=jnp.float32, stacked=True)
        self.decoder, self.assets = model.config, model.assets
        dtype = jnp.dtype(config.model.compute_dtype)
        self.attention = choose_backend(self.decoder, dtype, requested=config.model.attention)
        self.options = Options(dtype, self.attention.backend, config.model.remat, partition_spec)
        self.params: Params = model.params
        self._abstract = abstract_params(self.decoder, jnp.float32, stacked=True, sharding=place)
        self._tx = make_optimizer(config.optimizer, config.steps * config.updates_per_step)
        with jax.set_mesh(self.mesh):
            init = jax.jit(self._tx.init, out_shardings=opt_state_shardings(self._tx, self._abstract, self.mesh))
            self.opt_state = init(self.params)
        self.version = 0
        self._sampler: Sampler | None = None
        self._sampler_version = -1
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.rows = -(-config.micro_batch_rows // ways) * ways

    def sampler(self) -> Sampler:
        """The sampler, on the weights as they are now: unstacked and cast anew after every update or restore."""
        if self._sampler is None:
            size = self.config.rollout.batch_size
            self._sampler = Sampler(self.decoder, self.params, self.options, self.mesh, batch_size=size)
        elif self._sampler_version != self.version:
            self._sampler.update(self.params)
        self._sampler_version = self.version
        return self._sampler

    def compile(self, loss: Loss) -> None:
        """Sets the loss that `update` descends: `loss(params, batch) → (numerator, sums)`."""
        self._updates = make_updates(self._tx, loss, self._abstract, self.mesh)

    def place(self, batch: Any) -> Any:
        """A micro-batch of host arrays → device arrays, rows split over the mesh."""
        return jax.device_put(batch, batch_sharding(self.mesh))

    def update(self, batches: Iterable[Any], count: float) -> dict[str, float]:
        """One optimiser step on the gradients of all `batches` (host arrays), divided by `count` once.

        Returns the loss's sums, the mean loss and `grad_norm` (before clipping).
        """
        with jax.set_mesh(self.mesh):
            gradients, sums = self._updates.zeros(), []
            for batch in batches:
                gradients, batch_sums = self._updates.accumulate(self.params, gradients, self.place(batch))
                sums.append(batch_sums)
            self.params, self.opt_state, norm = self._updates.apply(
                self.params, self.opt_state, gradients, np.float32(count)
            )
        self.version += 1
        fetched = jax.device_get(sums)
        totals = {name: float(sum(each[name] for each in fetched)) for name in fetched[0]}
        return totals | {"loss": totals["loss"] / count, "grad_norm": float(norm)}

    def save(self, checkpoints: TrainingCheckpoints, step: int, meta: dict[str, Any]) -> None:
        checkpoints.save(step, self.params, self.opt_state, meta | {"version": self.version})

    def restore(self, checkpoints: TrainingCheckpoints, step: int) -> dict[str, Any]:
        """Puts back the state saved at `step`, onto this mesh; returns what was saved with it."""
        abstract = abstract_opt_state(self._tx, self._abstract, self.mesh)
        self.params, self.opt_state, meta = checkpoints.restore(step, self._abstract, abstract)
        self.version, self._sampler_version = meta["version"], -1
        return meta
