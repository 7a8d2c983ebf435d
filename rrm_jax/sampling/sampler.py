"""The sampler: requests in, completions out, through a batch of rows that are refilled as they finish."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.sampling import control, engine
from rrm_jax.sampling.call import GenerateCall, Given
from rrm_jax.sampling.lookup import PromptLookup
from rrm_jax.sampling.protocol import Completion, Request
from rrm_jax.sampling.stats import Stats

BLOCK = 64
"""Decode steps that are run without looking at the host, unless told otherwise."""

Progress = Callable[[Stats], None]


def position_limit(config: DecoderConfig) -> int:
    """Prompt and new tokens together: a `config.json` states the length before stretching for dynamic and YaRN."""
    rope = config.rope
    if rope.kind == "dynamic":
        return int(config.max_positions * rope.factor)
    if rope.kind == "yarn":
        return max(config.max_positions, int((rope.original_max_positions or config.max_positions) * rope.factor))
    return config.max_positions


def room_for_prompt(positions: int, max_new_tokens: int, given: str) -> int:
    """Tokens that an answer of `max_new_tokens` leaves a prompt. RrmError where it leaves none; `given` says there how
    that number was set."""
    if positions <= max_new_tokens:
        raise RrmError(f"{given} leaves no room for a prompt: the model has {positions} positions; give fewer")
    return positions - max_new_tokens


class Sampler:
    """Implements `protocol.Generator` on this process's devices.

    `params`: stacked or list-of-layers arrays of any float dtype; list-of-layers arrays that already have
    `options.dtype` and the right placement are used as they are, everything else goes through `update`.
    `batch_size` rows are decoded together (rounded up to a multiple of data × fsdp of `mesh`; fewer when a call
    brings fewer requests, or at its end). A prompt's keys and values are computed and kept once for all its samples,
    and a head that prompts have in common is computed once. Memory is weights + (rows × longest completion at work +
    prompts at work × longest of them) × key/value bytes of a token.

    The same request on the same weights gives the same tokens whatever it is batched with, up to the rounding of float
    sums, whose order may differ between shapes, meshes and platforms: in low precision that can tip a token now and
    then.

    `block`: steps between two looks of the host. `cache_dtype` and `weight_dtype`: how keys and values, and the
    matrices, are kept, in the compute dtype unless given; int8 or a float8 halves what decoding reads, at the price of
    some rounding (docs/verification.md has the error in log-probabilities). `lookup`: guess tokens by prompt look-up.
    `overlap`: the host looks at a block's results while the next one runs (default: except on CPUs, which have nothing
    to gain); rows then finish a block late. `progress` is called with the `Stats` after each block.
    With several processes every one gives the same requests in the same order, and gets all the completions.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Params,
        options: Options = Options(),
        mesh: Mesh | None = None,
        batch_size: int = 32,
        *,
        block: int = BLOCK,
        cache_dtype: Any = None,
        weight_dtype: Any = None,
        lookup: PromptLookup | None = None,
        overlap: bool | None = None,
        progress: Progress | None = None,
    ):
        if batch_size < 1 or block < 1:
            raise RrmError(f"batch_size ({batch_size}) and block ({block}) must be at least 1")
        if (mesh is None) != (options.spec is None):
            raise RrmError("give a mesh together with Options(spec=partition_spec), or neither")
        self.config, self.options, self.mesh = config, options, mesh
        self.block, self.lookup, self.progress, self.version = block, lookup, progress, 0
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        self.overlap = platform != "cpu" if overlap is None else overlap
        # A GPU asks the host whether a loop goes on, unless the number of its turns is known beforehand.
        self.early = platform not in ("gpu", "cuda", "rocm")
        self.cache_dtype = np.dtype(options.dtype if cache_dtype is None else cache_dtype)
        self.weight_dtype = np.dtype(options.dtype if weight_dtype is None else weight_dtype)
        self._programs = engine.programs(config, options, mesh, self.cache_dtype, self.weight_dtype)
        self.ways = self._programs.ways
        self.batch_size = -(-batch_size // self.ways) * self.ways
        self._params: Params | None = params if self._in_place(params) else self._programs.adopt(params)

    @property
    def compilations(self) -> int:
        """Programs traced so far for this (config, options, mesh, dtypes), by this sampler or another."""
        return self._programs.compilations

    def update(self, params: Params) -> None:
        """Takes new weights: unstacked, cast and placed by one program on the devices, and copied.

        Calls of `generate` that are under way finish on the weights they began with. `version` counts updates.
        """
        self._params = None  # the old weights make room first, unless a call under way holds them
        self._params = self._programs.adopt(params)
        self.version += 1

    def release(self) -> None:
        """Gives the weights' memory back; `update` comes before the next `generate`."""
        self._params = None

    def _in_place(self, params: Params) -> bool:
        leaves = jax.tree.leaves(params)
        if not isinstance(params["layers"], list) or not all(isinstance(x, jax.Array) for x in leaves):
            return False
        if any(x.dtype != self.options.dtype for x in leaves) or self.weight_dtype != self.options.dtype:
            return False
        if self.mesh is None:
            return all(len(x.sharding.device_set) == 1 for x in leaves)
        wanted = jax.tree.leaves(engine.weight_shardings(self.config, self.mesh, self.weight_dtype))
        return all(x.sharding.is_equivalent_to(w, x.ndim) for x, w in zip(leaves, wanted, strict=True))

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields one Completion per request as they finish; requests are taken as rows come free.

        Raises RrmError for a request that cannot be served: before anything is drawn when `requests` is a
        sequence, else when it is reached. A row whose logits are not finite gives no completion; the others go
        on, and an RrmError that names it is raised at the end. RrmError too where the devices' memory does not
        suffice: it names what to lower.
        """
        if isinstance(requests, Sequence):
            for request in requests:
                self.check(request)
        call = GenerateCall(self, Given(requests))
        yield from call
        if call.failed:
            raise self.not_finite(call.failed)

    def not_finite(self, failed: Sequence[Request]) -> RrmError:
        """What to say of requests whose logits were not finite."""
        named = ", ".join(f"{r.id!r} (sample {r.sample})" for r in failed[:5])
        return RrmError(
            f"the logits of {len(failed)} request(s) were not finite: {named}; every other request was "
            f"completed. Look for NaN or infinity in the weights, or use a wider dtype than "
            f"{np.dtype(self.options.dtype).name}"
        )

    def check(self, request: Request) -> None:
        """Raises RrmError, with the reason and what to change, for a request that cannot be served."""
        name, prompt, limit = f"request {request.id!r}", request.prompt_ids, position_limit(self.config)
        if not prompt:
            raise RrmError(f"{name} has an empty prompt; give at least one token")
        for what, ids in (("prompt", prompt), ("closing or choice", itertools.chain(*control.scripts(request)))):
            wrong = next((token for token in ids if not 0 <= token < self.config.vocab_size), None)
            if wrong is not None:
                raise RrmError(f"{name}: {what} id {wrong} is outside the vocabulary of {self.config.vocab_size}")
        over = len(prompt) + request.decoding.max_new_tokens - limit
        if over > 0:
            raise RrmError(
                f"{name}: {len(prompt)} prompt + {request.decoding.max_new_tokens} new tokens exceed the model's "
                f"{limit} positions by {over}; lower max_new_tokens by {over} or shorten the prompt"
            )
        for what, value in (("seed", request.seed), ("sample", request.sample)):
            if not 0 <= value < 1 << 32:
                raise RrmError(f"{name}: {what} {value} is not in [0, 2^32)")
