"""The sampler: requests in, completions out, through a batch of slots that are refilled as rows finish."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rrm_jax.errors import RrmError
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.parallel.mesh import RULES
from rrm_jax.sampling import engine
from rrm_jax.sampling.distribution import id_hash
from rrm_jax.sampling.protocol import Completion, Request

_PROMPT_BUCKET, _CACHE_BUCKET, _STOP_BUCKET = 32, 64, 8  # the smallest ones
_PREFILL_TOKENS = 1024  # enough to keep an accelerator busy; activations stay small beside the cache
_KEPT_CHUNKS = 2

Progress = Callable[[int, int], None]


def bucket(size: int, smallest: int = _PROMPT_BUCKET) -> int:
    """The least of 32, 48, 64, 96, 128, 192, … that holds `size`: few shapes to compile, at most a third of waste."""
    power = smallest
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


def position_limit(config: DecoderConfig) -> int:
    """Prompt and new tokens together: a `config.json` states the length before stretching for dynamic and YaRN."""
    rope = config.rope
    if rope.kind == "dynamic":
        return int(config.max_positions * rope.factor)
    if rope.kind == "yarn":
        return max(config.max_positions, int((rope.original_max_positions or config.max_positions) * rope.factor))
    return config.max_positions


class Sampler:
    """Implements `protocol.Generator` on this process's devices.

    `params`: stacked or list-of-layers arrays of any float dtype; list-of-layers arrays that already have
    `options.dtype` and the right placement are used as they are, everything else goes through `update`.
    `batch_size` slots are decoded together (rounded up to a multiple of data × fsdp of `mesh`; fewer when a call
    brings fewer requests). Memory is weights + slots × columns × key/value bytes of a token, where columns follow
    the longest row at work.

    The same request on the same weights gives the same tokens whatever it is batched with, as long as the shapes
    are the same: slots, columns, and the length bucket of its own prompt. Between shapes, meshes and platforms the
    order of float sums may differ, which in low precision can tip a token now and then.

    `block` tokens are drawn between two looks of the host. `progress(completions, tokens)` is called at each.
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
        block: int = 64,
        progress: Progress | None = None,
    ):
        if batch_size < 1 or block < 1:
            raise RrmError(f"batch_size ({batch_size}) and block ({block}) must be at least 1")
        if (mesh is None) != (options.spec is None):
            raise RrmError("give a mesh together with Options(spec=partition_spec), or neither")
        self.config, self.options, self.mesh = config, options, mesh
        self.block, self.progress, self.version = block, progress, 0
        self._ways = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
        self.batch_size = -(-batch_size // self._ways) * self._ways
        self._programs = engine.programs(config, options, mesh)
        self._params: Params | None = params if self._in_place(params) else self._programs.adopt(params)

    @property
    def compilations(self) -> int:
        """Programs traced so far for this (config, options, mesh), by this sampler or another."""
        return self._programs.compilations

    def update(self, params: Params) -> None:
        """Takes new weights: unstacked, cast and placed by one program on the devices, and copied.

        Calls of `generate` that are under way finish on the weights they began with. `version` counts updates.
        """
        self._params = None  # the old weights make room first, unless a call under way holds them
        self._params = self._programs.adopt(params)
        self.version += 1

    def _in_place(self, params: Params) -> bool:
        leaves = jax.tree.leaves(params)
        if not isinstance(params["layers"], list) or not all(isinstance(x, jax.Array) for x in leaves):
            return False
        if any(x.dtype != self.options.dtype for x in leaves):
            return False
        if self.mesh is None:
            return all(len(x.sharding.device_set) == 1 for x in leaves)
        wanted = jax.tree.leaves(engine.weight_shardings(self.config, self.mesh))
        return all(x.sharding.is_equivalent_to(w, x.ndim) for x, w in zip(leaves, wanted, strict=True))

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields one Completion per request as they finish; requests are taken as slots come free.

        Raises RrmError for a request that cannot be served: before anything is drawn when `requests` is a
        sequence, else when it is reached. A row whose logits are not finite gives no completion; the others go
        on, and an RrmError that names it is raised at the end.
        """
        if isinstance(requests, Sequence):
            for request in requests:
                self._check(request)
        run = _Run(self, requests)
        yield from run
        if run.failed:
            named = ", ".join(f"{r.id!r} (sample {r.sample})" for r in run.failed[:5])
            raise RrmError(
                f"the logits of {len(run.failed)} request(s) were not finite: {named}; every other request was "
                f"completed. Look for NaN or infinity in the weights, or use a wider dtype than "
                f"{np.dtype(self.options.dtype).name}"
            )

    def _check(self, request: Request) -> None:
        name, prompt, limit = f"request {request.id!r}", request.prompt_ids, position_limit(self.config)
        if not prompt:
            raise RrmError(f"{name} has an empty prompt; give at least one token")
        wrong = next((token for token in prompt if not 0 <= token < self.config.vocab_size), None)
        if wrong is not None:
            raise RrmError(f"{name}: prompt id {wrong} is outside the vocabulary of {self.config.vocab_size}")
        over = len(prompt) + request.decoding.max_new_tokens - limit
        if over > 0:
            raise RrmError(
                f"{name}: {len(prompt)} prompt + {request.decoding.max_new_tokens} new tokens exceed the model's "
                f"{limit} positions by {over}; lower max_new_tokens by {over} or shorten the prompt"
            )
        for what, value in (("seed", request.seed), ("sample", request.sample)):
            if not 0 <= value < 1 << 32:
                raise RrmError(f"{name}: {what} {value} is not in [0, 2^32)")


class _Chunk(NamedTuple):
    """Prompts prefilled together, and the row of `state` that each is."""

    state: engine.Slots
    rows: dict[tuple[int, ...], int]


class _Run:
    """One call of `generate`: the slots, who owns them, and the requests that wait."""

    def __init__(self, sampler: Sampler, requests: Iterable[Request]):
        self.sampler, self.programs, self.params = sampler, sampler._programs, sampler._params
        self.requests = iter(requests)
        self.waiting: deque[Request] = deque()
        self.failed: list[Request] = []
        self.completions = self.tokens = 0
        self._kept: list[_Chunk] = []

    def __iter__(self) -> Iterator[Completion]:
        self._look_ahead()
        if not self.waiting:
            return
        ways, batch = self.sampler._ways, self.sampler.batch_size
        while batch % 2 == 0 and batch // 2 >= len(self.waiting) and (batch // 2) % ways == 0:
            batch //= 2
        self.rows = engine.free_rows(batch, stops=_STOP_BUCKET)
        self.owner: list[Request | None] = [None] * batch
        self.drawn: list[tuple[list[int], list[float]]] = [([], []) for _ in range(batch)]
        self.slots: engine.Slots | None = None
        while self.waiting or any(self.owner):
            started = self._give_slots()
            self._look_ahead()
            self._make_room()
            self._prefill(started)
            yield from self._decode_block()

    def _look_ahead(self) -> None:
        for request in itertools.islice(self.requests, self.sampler.batch_size - len(self.waiting)):
            self.sampler._check(request)
            self.waiting.append(request)

    def _give_slots(self) -> dict[tuple[int, ...], list[int]]:
        """Gives free slots to waiting requests: the slots that each prompt now starts in."""
        started: dict[tuple[int, ...], list[int]] = {}
        for slot, owner in enumerate(self.owner):
            if owner is None and self.waiting:
                request = self.waiting.popleft()
                self._assign(slot, request)
                started.setdefault(request.prompt_ids, []).append(slot)
        return started

    def _prefill(self, started: dict[tuple[int, ...], list[int]]) -> None:
        """Fills the slots with their prompts' keys and values, each distinct prompt computed once."""
        # Prompts of which more samples wait stay at hand: a group is seldom a multiple of the free slots.
        needed = {request.prompt_ids for request in self.waiting}
        for chunk in self._kept:
            self._place(chunk, {prompt: started.pop(prompt) for prompt in chunk.rows if prompt in started})
        self._kept = [chunk for chunk in self._kept if not needed.isdisjoint(chunk.rows)]
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for prompt in started:
            by_length.setdefault(bucket(len(prompt)), []).append(prompt)
        for columns, prompts in sorted(by_length.items()):
            size = self._prefill_rows(columns)
            for first in range(0, len(prompts), size):
                chunk = self._compute(prompts[first : first + size], columns, size)
                self._place(chunk, {prompt: started[prompt] for prompt in chunk.rows})
                if not needed.isdisjoint(chunk.rows):
                    self._kept = [*self._kept, chunk][-_KEPT_CHUNKS:]

    def _assign(self, slot: int, request: Request) -> None:
        rows, decoding = self.rows, request.decoding
        stops = len(decoding.stop_ids)
        if stops > rows.stop_ids.shape[1]:
            more = bucket(stops, _STOP_BUCKET) - rows.stop_ids.shape[1]
            rows = self.rows = rows._replace(stop_ids=np.pad(rows.stop_ids, ((0, 0), (0, more)), constant_values=-1))
        rows.stop_ids[slot] = -1
        rows.stop_ids[slot, :stops] = decoding.stop_ids
        rows.seed[slot], rows.id_hash[slot], rows.sample[slot] = request.seed, id_hash(request.id), request.sample
        rows.temperature[slot], rows.top_k[slot] = decoding.temperature, decoding.top_k
        rows.top_p[slot], rows.max_new[slot] = decoding.top_p, decoding.max_new_tokens
        rows.length[slot], rows.drawn[slot], rows.done[slot] = len(request.prompt_ids), 0, False
        self.owner[slot], self.drawn[slot] = request, ([], [])

    def _prefill_rows(self, columns: int) -> int:
        """Prompts a prefill, always the same for a length bucket, so that nothing depends on who came together."""
        ways = self.sampler._ways
        return max(ways, min(len(self.owner), _PREFILL_TOKENS * ways // columns) // ways * ways)

    def _compute(self, prompts: list[tuple[int, ...]], columns: int, size: int) -> _Chunk:
        tokens, lengths = np.zeros((size, columns), np.int32), np.ones(size, np.int32)
        for at, prompt in enumerate(prompts):
            tokens[at, : len(prompt)], lengths[at] = prompt, len(prompt)
        state = self.programs.prefill(self.params, tokens, lengths)
        return _Chunk(state, {prompt: row for row, prompt in enumerate(prompts)})

    def _place(self, chunk: _Chunk, slots_of: dict[tuple[int, ...], list[int]]) -> None:
        if not slots_of or self.slots is None:
            return
        source = np.full(len(self.owner), -1, np.int32)
        for prompt, slots in slots_of.items():
            source[slots] = chunk.rows[prompt]
        old, new = self.slots, chunk.state
        for layers, more in ((old.k, new.k), (old.v, new.v)):
            for layer, x in enumerate(more):
                layers[layer] = self.programs.place_kv(layers[layer], x, source)
        self.slots = old._replace(hidden=self.programs.place_hidden(old.hidden, new.hidden, source))

    def _make_room(self) -> None:
        """Columns for the next block of every row at work, and for its prompt's bucket; fewer when half would do."""
        rows, live = self.rows, ~self.rows.done
        end = (rows.length + np.minimum(rows.drawn + self.sampler.block, rows.max_new))[live]
        need = max(bucket(int(end.max()), _CACHE_BUCKET), bucket(int(rows.length[live].max())))
        if self.slots is None:
            self.slots = self.programs.empty(batch=len(self.owner), columns=need)
            return
        have = self.slots.k[0].shape[2]
        if have < need or need <= have // 2:
            for layers in (self.slots.k, self.slots.v):
                for layer in range(len(layers)):  # one by one: only one layer is held twice at a time
                    layers[layer] = self.programs.resize(layers[layer], columns=need)

    def _decode_block(self) -> Iterator[Completion]:
        live = int(np.sum(~self.rows.done))
        # With others waiting, come back once an eighth of the slots is free; else when all are done.
        enough = live - max(1, len(self.owner) // 8) if self.waiting else 0
        self.slots, drawn = self.programs.decode_block(
            self.params, self.slots, self.rows, self.sampler.block, enough, steps=self.sampler.block
        )
        token, logprob, count, done, failed = jax.device_get(drawn)
        new = count - self.rows.drawn
        self.rows = self.rows._replace(drawn=np.array(count), done=np.array(done))
        finished = []
        for slot, request in enumerate(self.owner):
            if request is None:
                continue
            ids, logprobs = self.drawn[slot]
            ids += token[: new[slot], slot].tolist()
            logprobs += logprob[: new[slot], slot].tolist()
            self.tokens += int(new[slot])
            if not done[slot]:
                continue
            self.owner[slot] = None
            self.completions += 1
            if failed[slot]:
                self.failed.append(request)
                continue
            reason = "stop" if ids[-1] in request.decoding.stop_ids else "length"
            finished.append(Completion(request, tuple(ids), tuple(logprobs), reason))
        if self.sampler.progress:
            self.sampler.progress(self.completions, self.tokens)
        yield from finished
