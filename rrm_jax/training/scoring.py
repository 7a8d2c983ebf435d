"""Completions' log-probabilities by the trainer's forward pass, and the frozen model that some are taken of."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rrm_jax.checkpoints.load import load_model
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.parallel.mesh import replicated
from rrm_jax.parallel.offload import to_device, to_host
from rrm_jax.rl.logprobs import Sequences, completion_scores
from rrm_jax.training.batches import Example
from rrm_jax.training.learner import Learner

Score = Callable[[Params, Sequence[Example]], list[np.ndarray]]
"""`score(model, examples)`: of each example its completion tokens' log-probabilities, float32."""


def logprobs_of(decoder: DecoderConfig, options: Options, mesh: Mesh, temperature: float) -> Any:
    """Jitted `(model, sequences) → log-probabilities` of completion tokens, float32 [B, C]."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))  # every process reads all of them
    def scored(model, sequences: Sequences):
        return completion_scores(decoder, model, sequences, temperature, options).logprob

    return scored


def scorer(learner: Learner, temperature: float, together: int = 1) -> Score:
    """`together` as in `batches.micro_batches`: what an update has packed so comes in the same shapes here."""
    scored = logprobs_of(learner.decoder, learner.options, learner.mesh, temperature)

    def score(model: Params, examples: Sequence[Example]) -> list[np.ndarray]:
        pending = []
        with jax.set_mesh(learner.mesh):
            for batch in learner.micro_batches(examples, together=together):
                pending.append((batch, scored(model, learner.place(batch.sequences()))))
        found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(examples)
        for batch, logprob_BC in pending:
            for at, values in batch.apart(np.asarray(logprob_BC)):
                found[at] = values
        return found

    return score


class Reference:
    """The frozen model that the policy is held near: the one that the run started from.

    With `offload` it waits in host memory while it is not in use; adapters' model is held anyway.
    """

    def __init__(self, learner: Learner, offload: bool = False):
        self._offloaded = offload and learner.frozen is None
        if learner.frozen is not None:
            self._model: Params = learner.frozen  # adapters are all that differs
            return
        model = learner.config.model
        dtype = jnp.dtype(model.compute_dtype)
        self._model = load_model(model.path, mesh=learner.mesh, dtype=dtype, stacked=True).params
        self._at: Any = jax.tree.map(lambda x: x.sharding, self._model)
        if self._offloaded:
            self._model = to_host(self._model)

    def scores(self, score: Score, examples: Sequence[Example]) -> list[np.ndarray]:
        """What `score` gives for the frozen model: for each example, float32 of its completion's length."""
        if not self._offloaded:
            return score(self._model, examples)
        here = to_device(self._model, self._at)
        found = score(here, examples)
        self._model = to_host(here)
        return found
