"""The programs of a training run, with abstract arguments: the trainer's and the sampler's own jitted functions.

What is planned is the longest that a configuration allows: rows of `max_new_tokens` behind prompts of
`max_prompt_tokens`, all slots in use.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.params import abstract_params
from rrm_jax.parallel.mesh import batch_sharding, platform_of
from rrm_jax.rl.losses import PolicyBatch, PreferenceBatch
from rrm_jax.sampling import call, control, engine
from rrm_jax.sampling.block import Start, Table
from rrm_jax.sampling.buckets import LARGEST_CHUNK, bucket
from rrm_jax.sampling.sampler import BLOCK
from rrm_jax.training import dpo, grpo, supervised
from rrm_jax.training.batches import Example, MicroBatch
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.learner_programs import LearnerPrograms
from rrm_jax.training.optimizer import abstract_opt_state
from rrm_jax.training.scoring import logprobs_of

SAMPLING = ("prefill", "decode")
"""The programs that run on the rollout mesh."""


@dataclasses.dataclass(frozen=True)
class Program:
    """One program, lowered by `lower()`.

    `beside`: what of the state waits on the devices meanwhile; `takes`: what of it are arguments; `gives`: what its
    results are, those that are not in an argument's place.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    takes: tuple[str, ...]
    beside: tuple[str, ...]
    gives: str = "temporaries"


class RunPrograms:
    """The programs of a run, in the order in which a step runs them, and what the state holds.

    It trains on `mesh` and samples on `rollout_mesh`, of the same devices or, with `rollout.devices`, others: then
    `apart`. Abstract meshes will do for what is not lowered.

    `state`: abstract trees by name. `micro_batch`: the one that is planned.
    """

    def __init__(self, config: TrainConfig, decoder: DecoderConfig, mesh: Any, rollout_mesh: Any):
        self.config, self.decoder, self.mesh, self.rollout_mesh = config, decoder, mesh, rollout_mesh
        self.apart = config.rollout.devices > 0
        self.learner = learner = LearnerPrograms(config, decoder, mesh)
        self.samples = config.method == "grpo" or config.data.eval is not None
        dtype = np.dtype(learner.options.dtype)
        self.engine = engine.programs(config=decoder, options=learner.options, mesh=rollout_mesh, cache_dtype=dtype,
                                      weight_dtype=dtype)  # fmt: skip
        self.micro_batch = longest_micro_batch(learner)
        self.state = self._state()

    def _state(self) -> dict[str, Any]:
        config, learner = self.config, self.learner
        state = {"parameters": learner.trained, "gradients": learner.trained}
        state["optimiser"] = abstract_opt_state(learner.tx, learner.trained, self.mesh)
        if learner.frozen is not None:
            state["frozen model"] = state["merged copy"] = learner.frozen
        if learner.casts:
            state["working copy"] = jax.tree.map(lambda x: x.update(dtype=learner.options.dtype), learner.trained)
        if keeps_reference(config) and learner.frozen is None:
            compute = abstract_params(self.decoder, learner.options.dtype, stacked=True, sharding=learner.place)
            state["reference"] = compute
        if self.samples:
            state["sampler's weights"] = _placed(
                abstract_params(self.decoder, learner.options.dtype, stacked=False), self.engine.weights_at
            )
            state["rows' cache"], state["prompts' cache"] = self._caches()
        return state

    def _caches(self) -> tuple[Any, Any]:
        """As `sampling/call.py` sizes them, when all rows are at work and as long as they can be."""
        rows, prompts = self.slots, self.prompts
        options = self.learner.options
        columns = bucket(self.config.rollout.max_new_tokens, call.cache_bucket(options))
        width = bucket(self.config.max_prompt_tokens, call.prompt_bucket(options))
        slots = jax.eval_shape(functools.partial(self.engine.make_slots, batch=rows, columns=columns, history=0))
        shared = jax.eval_shape(functools.partial(self.engine.make_shared, prompts=prompts, columns=width))
        return _placed(slots, self.engine.slots_at), _placed(shared, self.engine.shared_at)

    @property
    def slots(self) -> int:
        """Rows that are sampled at a time, over all devices."""
        ways = self.engine.ways
        return -(-self.config.rollout.batch_size // ways) * ways

    @property
    def prompts(self) -> int:
        """Prompts that the sampler keeps: those of its rows, and one more for each part of the batch to go on with."""
        ways = self.engine.ways
        part = self.slots // ways
        group = self.config.rollout.group_size if self.config.method == "grpo" else 1
        return ways * min(bucket(-(-part // group) + 1, 1), part)

    def mesh_of(self, name: str) -> Any:
        """That of a program."""
        return self.rollout_mesh if name in SAMPLING else self.mesh

    @property
    def resting(self) -> tuple[str, ...]:
        """State that is on the training devices whatever is run."""
        config = self.config
        names = ["parameters"]
        names += [] if config.optimizer.offload else ["optimiser"]
        names += ["frozen model"] * ("frozen model" in self.state)
        names += ["reference"] * ("reference" in self.state and not offloads_reference(config))
        names += ["sampler's weights"] * (self.samples and not self.apart)
        return tuple(names)

    def all(self) -> list[Program]:
        """Sampling, scores, the update; without sampling the update alone."""
        programs = [*self._sampling()] if self.samples else []
        return [*programs, *self._scores(), *self._update()]

    def _program(self, name: str, lower, takes: tuple[str, ...], gives: str = "temporaries", without=()):
        beside = tuple(x for x in self.resting if x in self.state and x not in takes and x not in without)
        return Program(name, lower, tuple(x for x in takes if x in self.state), beside, gives)

    def _sampler_program(self, name: str, lower, takes: tuple[str, ...], more: tuple[str, ...] = ()):
        held = more if self.apart else (*self.resting, *more, self._read)
        beside = tuple(x for x in held if x not in takes)
        return Program(name, lower, takes, beside)

    @property
    def _read(self) -> str:
        """What forward passes read."""
        return "working copy" if "working copy" in self.state else "parameters"

    def _sampling(self):
        state, programs = self.state, self.engine
        learner = self.learner
        weights, rows, shared = (state[x] for x in ("sampler's weights", "rows' cache", "prompts' cache"))
        if learner.casts:
            cast = functools.partial(self._lower, learner.cast, state["parameters"])
            yield self._program("cast", cast, ("parameters",), "working copy")
        source = self._read
        if learner.frozen is not None:
            source = "merged copy"
            merge = functools.partial(self._lower, learner.merge, learner.frozen, learner.trained)
            yield self._program("merge adapters", merge, ("frozen model", "parameters"), source)
        yield self._handed_over(source)
        chunk, limit = self._chunk()
        prefill = functools.partial(programs.prefill.lower, weights, shared, *chunk, limit=limit)
        takes = ("sampler's weights", "prompts' cache")
        yield self._sampler_program("prefill", prefill, takes, ("rows' cache",))
        takes = ("sampler's weights", "rows' cache", "prompts' cache")
        block = functools.partial(
            programs.decode_block.lower, weights, rows, shared, *self._table(), steps=BLOCK, lookup=None,
            early=platform_of(self.rollout_mesh) != "gpu",
        )  # fmt: skip
        yield self._sampler_program("decode", block, takes)

    def _handed_over(self, source: str) -> Program:
        if not self.apart:
            adopt = functools.partial(self.engine.adopt.lower, self.state[source])
            return self._program("hand-over", adopt, (source,), "sampler's weights", without=("sampler's weights",))

        def refused() -> jax.stages.Lowered:
            raise RrmError("a hand-over to other devices is several programs and copies, and is not lowered as one")

        return self._program("hand-over", refused, (source,))

    def _chunk(self) -> tuple[tuple[Any, ...], int]:
        """The last chunk of the longest prompts: arguments of `engine.prefill`, and its `limit`."""
        longest, ways = self.config.max_prompt_tokens, self.engine.ways
        columns = min(LARGEST_CHUNK, bucket(longest, 32))
        each = min(max(1, call.PREFILL_TOKENS // columns), max(1, self.prompts // ways))
        each = 2 ** int(math.log2(each))
        limit = bucket(longest, 128) if longest > columns else 0
        whole = jax.ShapeDtypeStruct((ways * each,), jnp.int32)
        place = jax.ShapeDtypeStruct((ways, each), jnp.int32)
        tokens = jax.ShapeDtypeStruct((ways * each, columns), jnp.int32)
        return (tokens, place, place, whole, whole, whole), limit

    def _table(self) -> tuple[Any, ...]:
        """Arguments of the decode block after the caches: as `sampling/call.py` makes them on the host."""
        ways, rows, prompts = self.engine.ways, self.slots, self.prompts
        whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
        group = min(self.config.rollout.group_size, rows // ways) if self.config.method == "grpo" else 1
        table = Table(whole(prompts), whole(ways, prompts // ways, group), whole(ways, rows // ways))
        start = Start(jax.ShapeDtypeStruct((rows,), jnp.bool_), whole(ways, rows // ways), whole(rows), None)
        asked = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), control.free_rows(rows, 8, 32))
        return table, asked, start, whole(), whole()

    def _scores(self):
        config, learner = self.config, self.learner
        if not score_passes(config):
            return
        temperature = config.rollout.temperature if config.method == "grpo" else 1.0
        scored = logprobs_of(self.decoder, learner.options, self.mesh, temperature)
        of_reference = config.method == "dpo"
        if of_reference and learner.frozen is not None:
            model, takes = learner.frozen, ("frozen model",)
        elif of_reference:
            model, takes = self.state["reference"], ("reference",)
        else:
            model, takes = learner.model(self.state[self._read], learner.frozen), (self._read, "frozen model")

        def lower() -> jax.stages.Lowered:
            return self._lower(scored, model, self._batch(self.micro_batch.sequences()))

        yield self._program("log-probs", lower, takes)

    def _update(self):
        learner, state = self.learner, self.state

        def accumulate() -> jax.stages.Lowered:
            loss, batch = self._loss_and_batch()
            of_loss = learner.accumulate(loss)
            return self._lower(of_loss, state[self._read], learner.frozen, learner.trained, self._batch(batch))

        yield self._program("forward and backward", accumulate, (self._read, "frozen model", "gradients"))
        denominator = jax.ShapeDtypeStruct((), jnp.float32)
        apply = functools.partial(
            self._lower, learner.apply, learner.trained, state["optimiser"], learner.trained, denominator
        )
        yield self._program("apply", apply, ("parameters", "optimiser", "gradients"))

    def _loss_and_batch(self) -> tuple[Any, Any]:
        """The method's loss, and host arrays of the planned micro-batch as it takes them."""
        config, batch, options = self.config, self.micro_batch, self.learner.options
        sequences = batch.sequences()
        if config.method == "supervised":
            return supervised.loss_of(self.decoder, options), supervised.Batch(sequences)
        number = batch.along([0.0] * len(batch.examples))
        reference = number if keeps_reference(config) else None
        if config.method == "dpo":
            preference = PreferenceBatch(batch.responses(), reference, sequences.mask)
            return dpo.loss_of(config, self.decoder, options), dpo.Batch(sequences, preference)
        old = number if needs_old(config) else None
        policy = PolicyBatch(number, number, batch.responses(), old, reference, number, sequences.mask)
        return grpo.loss_of(config, self.decoder, options), grpo.Batch(sequences, policy)

    def _batch(self, tree: Any) -> Any:
        at = batch_sharding(self.mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree)

    def _lower(self, jitted, *arguments) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return jitted.lower(*arguments)


def keeps_reference(config: TrainConfig) -> bool:
    """Whether there is a frozen reference."""
    if config.method == "dpo":
        return not config.dpo.reference_free
    return config.method == "grpo" and config.grpo.kl_coef > 0


def offloads_reference(config: TrainConfig) -> bool:
    """Whether the run keeps its reference in host memory."""
    return config.dpo.offload_reference if config.method == "dpo" else config.grpo.offload_reference


def needs_old(config: TrainConfig) -> bool:
    """Whether GRPO scores the policy that sampled as well."""
    return config.updates_per_step > 1 or config.grpo.kl_in == "reward"


def score_passes(config: TrainConfig) -> int:
    """How often log-probs are taken of a step's completions."""
    return keeps_reference(config) + (config.method == "grpo" and needs_old(config))


def longest_micro_batch(learner: LearnerPrograms) -> MicroBatch:
    """One that is full of the longest prompts and completions; of DPO, of pairs of them."""
    config, row = learner.config, learner.config.pack.row_tokens
    prompt, new, together = config.max_prompt_tokens, config.rollout.max_new_tokens, 1
    if config.method == "supervised":
        prompt, new = row // 2, row - row // 2
    if config.method == "dpo":
        together = 2
    rows = max(config.pack.micro_batch_tokens // (row * learner.ways), 1) * learner.ways
    count = rows * max(row // (prompt + new), 1) * together
    examples = [Example((at // together, *(0,) * (prompt - 1)), (0,) * new) for at in range(count)]
    return learner.micro_batches(examples, range(count), together)[0]


def device_bytes(tree: Any) -> int:
    """Of an abstract tree, on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _placed(tree: Any, shardings: Any) -> Any:
    """`shardings` may name whole subtrees at once, as `out_shardings` may."""
    at = jax.tree.broadcast(shardings, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, at)
