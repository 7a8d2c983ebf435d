"""The trainable state of a run, and one optimiser step on it."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.checkpoints.load import load_model
from rrm_jax.checkpoints.training_state import TrainingCheckpoints
from rrm_jax.errors import RrmError
from rrm_jax.models import lora
from rrm_jax.models.decoder import Params
from rrm_jax.parallel.mesh import batch_sharding, param_sharding
from rrm_jax.parallel.offload import to_device, to_host
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.training.batches import Example, MicroBatch
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.learner_programs import LearnerPrograms, Loss
from rrm_jax.training.optimizer import abstract_opt_state
from rrm_jax.training.rollout_mesh import HandOver, meshes


class Learner:
    """Master parameters (float32, stacked), optimiser state, and the jitted pieces that move them.

    `params` is what is trained: the model's parameters, or, with `model.lora`, adapters, whose model is `frozen`, in
    the compute dtype. `version` counts optimiser steps since the model was loaded from `config.model.path`.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.mesh, self.rollout_mesh = meshes(config)
        if config.rollout.asynchronous:
            self._check_asynchronous()
        place = functools.partial(param_sharding, self.mesh)
        dtype = jnp.dtype(config.model.compute_dtype)
        # Only the parts are kept: a resumed run replaces the parameters, and must not hold these as well.
        adapted = config.model.lora
        stored = jnp.float32 if adapted is None else dtype
        model = load_model(config.model.path, mesh=self.mesh, dtype=stored, stacked=True)
        self.decoder, self.assets, self.base_fingerprint = model.config, model.assets, model.fingerprint
        self._programs = programs = LearnerPrograms(config, self.decoder, self.mesh)
        self.attention, self.options, self.ways = programs.attention, programs.options, programs.ways
        self._hand_over = HandOver(programs, self.rollout_mesh) if config.rollout.devices else None
        self.frozen: Params | None = None
        if adapted is None:
            self.params: Params = model.params
        else:
            self.frozen = model.params
            self.params = lora.init_adapters(self.decoder, adapted.rank, config.seed, sharding=place)
        with jax.set_mesh(self.mesh):
            self._opt_state = self._at_rest(jax.jit(programs.tx.init, out_shardings=programs.opt_at)(self.params))
        self.version = 0
        self._working: tuple[int, Params] | None = None
        self._sampler: Sampler | None = None
        self._sampler_version = -1

    def _check_asynchronous(self) -> None:
        """Two threads that start programs on the same devices may do so in orders that the devices do not agree on."""
        if jax.process_count() > 1:
            # Processes agree on stopping, and on checkpoints, by programs on all devices, those that sample among them.
            raise RrmError("rollout.asynchronous works in one process, and there are several; leave it out")
        if not self.config.rollout.devices and self.mesh.size > 1:
            raise RrmError(
                f"rollout.asynchronous samples and learns at once, and both would use the {self.mesh.size} devices; "
                "give sampling devices of its own, rollout.devices, or leave it out"
            )

    def working(self) -> Params:
        """The parameters as forward passes read them: a copy in the compute dtype, made anew after every update."""
        if not self._programs.casts:
            return self.params
        if self._working is None or self._working[0] != self.version:
            self._working = None  # the old copy makes room first
            with jax.set_mesh(self.mesh):
                self._working = self.version, self._programs.cast(self.params)
        return self._working[1]

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is run once for the completions beside it."""
        return self._programs.shares_prompts

    def micro_batches(
        self, examples: Sequence[Example], chosen: Sequence[int] | None = None, together: int = 1
    ) -> list[MicroBatch]:
        """The chosen examples (None: all), packed for this mesh; see `batches.micro_batches`."""
        return self._programs.micro_batches(examples, range(len(examples)) if chosen is None else chosen, together)

    def model_of_step(self) -> Params:
        """The policy as it is, for forward passes without gradients."""
        return self._programs.model(self.working(), self.frozen)

    def sampler(self) -> Sampler:
        """The sampler, on the weights as they are now: unstacked and cast anew after every update or restore."""
        if self._sampler is not None and self._sampler_version == self.version:
            return self._sampler
        if self._sampler is not None and self._hand_over is None:
            self._sampler.update(self._merged())
        else:
            self._sampler = None  # the old weights make room first
            params = self._merged() if self._hand_over is None else self._hand_over(self._merged())
            size = self.config.rollout.batch_size
            self._sampler = Sampler(self.decoder, params, self.options, self.rollout_mesh, batch_size=size)
        self._sampler_version = self.version
        return self._sampler

    def _merged(self) -> Params:
        adapted = self.config.model.lora
        if adapted is None:
            return self.working()
        with jax.set_mesh(self.mesh):
            return self._programs.merge(self.frozen, self.params)

    def compile(self, loss: Loss) -> None:
        """Sets the loss that `update` descends: `loss(model, batch) → (numerator, sums)`."""
        self._accumulate = self._programs.accumulate(loss)

    def place(self, batch: Any) -> Any:
        """A micro-batch of host arrays → device arrays, rows split over the mesh."""
        return jax.device_put(batch, batch_sharding(self.mesh))

    def update(self, batches: Iterable[Any], denominator: float) -> dict[str, float]:
        """One optimiser step on the gradients of all `batches` (host arrays), divided by `denominator` once.

        Returns the loss's sums, the mean loss and `grad_norm` (before clipping). A gradient that is not finite, or
        whose norm is above `optimizer.stop_norm`, changes nothing; what to make of it is the caller's.
        """
        with jax.set_mesh(self.mesh):
            gradients, sums = self._programs.zeros(), []
            for batch in batches:
                gradients, more = self._accumulate(self.working(), self.frozen, gradients, self.place(batch))
                sums.append(more)
            self._working = None
            opt_state = self._opt_state
            if self.config.optimizer.offload:
                opt_state = to_device(opt_state, self._programs.opt_at)
            self.params, opt_state, norm = self._programs.apply(
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
        """What goes on from here needs: parameters, optimiser state, and `meta`, JSON, with the version."""
        checkpoints.save(step, self.params, self._opt_state, meta | {"version": self.version})

    def restore(self, checkpoints: TrainingCheckpoints, step: int) -> dict[str, Any]:
        """Puts back the state saved at `step`, onto this mesh; returns what was saved with it."""
        trained = self._programs.trained
        abstract = abstract_opt_state(self._programs.tx, trained, self.mesh)
        self.params, opt_state, meta = checkpoints.restore(step, trained, abstract)
        self._opt_state = self._at_rest(opt_state)
        self.version, self._sampler_version, self._working = meta["version"], -1, None
        return meta
