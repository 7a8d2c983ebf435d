"""What a learner runs, and where its arrays live: known from configuration and model shape, before a weight is read."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rrm_jax.models import lora
from rrm_jax.models.attention import choose_backend, shares_prefixes
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.models.params import abstract_params
from rrm_jax.parallel.mesh import RULES, param_sharding, partition_spec, platform_of, replicated
from rrm_jax.rl.losses import Sums
from rrm_jax.training.batches import Example, MicroBatch, micro_batches
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.optimizer import make_optimizer, opt_state_shardings

Loss = Callable[[Params, Any], tuple[jax.Array, Sums]]


class LearnerPrograms:
    """The jitted functions of training on a mesh, and abstract trees (`jax.ShapeDtypeStruct`, placed) of its state.

    `trained`: the float32 parameters that the optimiser moves, the model's or adapters'; `frozen`: with `model.lora`,
    the model under them. `opt_at`: the optimiser state's shardings.

    `zeros() → gradients`; `apply(params, opt_state, gradients, denominator) → params, opt_state, norm` divides by the
    global denominator, once, and steps (the first two donated); `cast(params)` makes the copy that forward passes read;
    `merge(frozen, adapters)`.
    """

    def __init__(self, config: TrainConfig, decoder: DecoderConfig, mesh: Mesh):
        self.config, self.decoder, self.mesh = config, decoder, mesh
        self.ways = int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
        dtype = jnp.dtype(config.model.compute_dtype)
        self.attention = choose_backend(decoder, dtype, platform_of(mesh), requested=config.model.attention)
        self.options = Options(dtype, self.attention.backend, config.model.remat, partition_spec)
        self.place = functools.partial(param_sharding, mesh)
        adapted, self.frozen = config.model.lora, None
        if adapted is None:
            self.trained: Params = abstract_params(decoder, jnp.float32, stacked=True, sharding=self.place)
        else:
            self.frozen = abstract_params(decoder, dtype, stacked=True, sharding=self.place)
            self.trained = lora.abstract_adapters(decoder, adapted.rank, sharding=self.place)
        self.tx = make_optimizer(config.optimizer, config.steps * config.updates_per_step)
        self.opt_at = opt_state_shardings(self.tx, self.trained, mesh)
        self._trained_at: Any = jax.tree.map(lambda x: x.sharding, self.trained)
        of_params = functools.partial(jax.jit, out_shardings=self._trained_at)
        self.zeros = of_params(self._zeros)
        self.cast = of_params(self._cast)
        self.merge = jax.jit(self._merge)
        stepped = self._trained_at, self.opt_at, replicated(mesh)
        self.apply = jax.jit(self._apply, donate_argnums=(0, 1), out_shardings=stepped)

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is run once for the completions beside it: not on a TPU, whose kernel has no mask for that,
        nor with dynamic RoPE, which turns a prompt by the length of the whole."""
        return shares_prefixes(self.options.attention) and self.decoder.rope.kind != "dynamic"

    @property
    def casts(self) -> bool:
        """Whether forward passes read a copy of the parameters, and not the parameters themselves."""
        return self.frozen is None and jnp.dtype(self.config.model.compute_dtype) != jnp.float32

    def micro_batches(self, examples: Sequence[Example], chosen: Sequence[int], together: int = 1) -> list[MicroBatch]:
        """The chosen examples, packed for this mesh; see `batches.micro_batches`."""
        return micro_batches(examples, chosen, self.config.pack, self.ways, self.shares_prompts, together)

    def model(self, params: Params, frozen: Params | None) -> Params:
        """What `forward` takes: the parameters themselves, or the frozen model with these adapters in it."""
        adapted = self.config.model.lora
        if adapted is None or frozen is None:
            return params
        return lora.adapt(frozen, params, adapted.alpha, adapted.rank)

    def accumulate(self, loss: Loss) -> Any:
        """Jitted `(params, frozen, gradients, batch) → gradients, sums` (the gradients donated), for a
        `loss(model, batch) → (numerator, sums)`; `params` as forward passes read them."""

        def accumulate(params, frozen, gradients, batch):
            objective = lambda params: loss(self.model(params, frozen), batch)  # noqa: E731
            (numerator, sums), new = jax.value_and_grad(objective, has_aux=True)(params)
            return jax.tree.map(lambda total, g: total + g.astype(total.dtype), gradients, new), sums | {
                "loss": numerator
            }

        return jax.jit(accumulate, donate_argnums=(2,), out_shardings=(self._trained_at, replicated(self.mesh)))

    def _zeros(self):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.trained)

    def _cast(self, params):
        return jax.tree.map(lambda x: x.astype(self.options.dtype), params)

    def _merge(self, frozen, adapters):
        adapted = self.config.model.lora
        assert adapted is not None
        return lora.merge(frozen, adapters, adapted.alpha, adapted.rank)

    def _apply(self, params, opt_state, gradients, denominator):
        gradients = jax.tree.map(lambda g: g / denominator, gradients)
        norm = optax.global_norm(gradients)
        good = norm <= self.config.optimizer.stop_norm  # not where it is NaN
        with jax.named_scope("optimizer"):
            steps, new_state = self.tx.update(gradients, opt_state, params)
        keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        return (
            jax.tree.map(lambda p, step: keep(p + step, p), params, steps),
            jax.tree.map(keep, new_state, opt_state),
            norm,
        )
