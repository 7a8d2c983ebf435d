"""The sampler: requests in, completions out, through a batch of rows that are refilled as they finish."""

import collections
import dataclasses
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
from rrm_jax.sampling.block import Drawn, Shared, Slots, Start, Table
from rrm_jax.sampling.control import Rows
from rrm_jax.sampling.lookup import PromptLookup
from rrm_jax.sampling.memory import explain_exhaustion
from rrm_jax.sampling.protocol import Completion, Request
from rrm_jax.sampling.schedule import Schedule, Work, bucket
from rrm_jax.sampling.stats import Stats

_PROMPT_BUCKET, _CACHE_BUCKET, _STOP_BUCKET, _SCRIPT_BUCKET = 32, 64, 8, 32  # the smallest ones
_KERNEL_BUCKET = 128  # from which on all buckets are whole tiles of the TPU kernel
_PREFILL_TOKENS = 1024  # a chunk: enough to keep an accelerator busy, and decoding never waits longer

Progress = Callable[[Stats], None]


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
        block: int = 64,
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


@dataclasses.dataclass
class _Block:
    """A block under way, and whose the rows were when it began."""

    drawn: Drawn
    owners: list[Work | None]


class _Run:
    """One call of `generate`."""

    def __init__(self, sampler: Sampler, requests: Iterable[Request]):
        self.sampler, self.programs, self.params = sampler, sampler._programs, sampler._params
        self.requests, self.failed = iter(requests), []
        self.stats, self.compiled_before = Stats.of(sampler), self.programs.compilations
        self.under_way: collections.deque[_Block] = collections.deque()
        self.finished: list[Completion] = []

    def __iter__(self) -> Iterator[Completion]:
        sampler = self.sampler
        first = list(itertools.islice(self.requests, sampler.batch_size))
        if not first:
            return
        batch = sampler.batch_size
        while batch % 2 == 0 and batch // 2 >= len(first) and (batch // 2) % sampler.ways == 0:
            batch //= 2
        dynamic, most = sampler.config.rope.kind == "dynamic", sampler.config.max_positions
        # Dynamic RoPE rotates a prompt beyond the trained length by that length: its head is nobody else's.
        share = (lambda a, b: max(a, b) <= most) if dynamic else (lambda a, b: True)
        self.schedule = Schedule(batch, sampler.ways, _PREFILL_TOKENS, share)
        for request in first:
            self._take(request)
        self.rows = control.free_rows(batch, _STOP_BUCKET, _SCRIPT_BUCKET)
        self.prompt_length = np.zeros(batch, np.int32)
        self.shared: Shared | None = None
        self.slots: Slots | None = None
        with explain_exhaustion(sampler, self.stats):
            while True:
                self._look_ahead()
                started = self._refill()
                if self.schedule.live():
                    self._fit(shrink=not started)
                    self._dispatch(started)
                elif not self.under_way:
                    assert not self.schedule.waiting, "requests wait, and none can start"
                    return
                if len(self.under_way) > sampler.overlap or not self.schedule.live():
                    self._read(self.under_way.popleft())
                yield from self.finished
                self.finished.clear()

    def _take(self, request: Request) -> None:
        self.sampler._check(request)
        self.schedule.add(request)
        self.stats.naive_prefill += len(request.prompt_ids)
        self.stats.longest = max(self.stats.longest, len(request.prompt_ids) + request.decoding.max_new_tokens)

    def _look_ahead(self) -> None:
        for request in itertools.islice(self.requests, self.sampler.batch_size - self.schedule.waiting_count):
            self._take(request)

    # Prompts

    def _refill(self) -> list[int]:
        """Prefills and starts rows: all it can while a quarter of the rows is idle, else one chunk at most."""
        schedule = self.schedule
        decoding = bool(schedule.live())
        if not schedule.waiting and not decoding:
            return []
        schedule.rows_per_prompt = max(schedule.rows_per_prompt, schedule.group())
        self._fit_prompts()
        started = schedule.start_rows()
        while True:
            schedule.admit()
            chunk = schedule.next_chunk()
            if chunk is None:
                break
            assert self.shared is not None
            self.shared = self.programs.prefill(self.params, self.shared, *chunk[:6], limit=chunk.limit)
            self.stats.prefilled += chunk.real
            self.stats.prefill_computed += chunk.tokens.size
            started += schedule.start_rows()
            idle = len(schedule.rows) - len(schedule.live())
            if not schedule.waiting or (decoding and 4 * idle < len(schedule.rows)):
                break
        for row in started:
            self._ask(row)
        return started

    def _ask(self, row: int) -> None:
        request = self._work(row).request
        stops, script = len(request.decoding.stop_ids), max(map(len, control.scripts(request)))
        rows = self.rows
        if stops > rows.stop_ids.shape[1]:
            more = bucket(stops, _STOP_BUCKET) - rows.stop_ids.shape[1]
            rows = rows._replace(stop_ids=np.pad(rows.stop_ids, ((0, 0), (0, more)), constant_values=-1))
        if script > rows.script.shape[2]:
            more = bucket(script, _SCRIPT_BUCKET) - rows.script.shape[2]
            rows = rows._replace(script=np.pad(rows.script, ((0, 0), (0, 0), (0, more))))
        control.ask(rows, row, request)
        self.rows = rows
        self.prompt_length[row] = len(request.prompt_ids)

    def _work(self, row: int) -> Work:
        work = self.schedule.rows[row]
        assert work is not None
        return work

    def _fit_prompts(self) -> None:
        """Places for prompts, and columns for the longest of them and of those that wait."""
        schedule = self.schedule
        need = schedule.longest_prompt()
        if schedule.waiting:
            need = max(need, max(len(key) for key in itertools.islice(schedule.waiting, len(schedule.rows))))
        columns = bucket(max(need, 1), self._smallest(_PROMPT_BUCKET))
        ways = self.sampler.ways
        if self.shared is None:
            prompts = schedule.prompts_wanted()
            schedule.resize_prompts(prompts)
            self.shared = self.programs.empty_shared(prompts=prompts * ways, columns=columns)
            return
        have = self.shared.layers[0].k.shape[2]
        if columns <= have < 2 * columns:
            columns = have
        prompts = schedule.prompts_wanted()
        if not schedule.waiting:
            still = bucket(schedule.drop_idle_prompts(), 1)
            prompts = still if 2 * still <= prompts else prompts
        if prompts * ways == len(schedule.residents) and columns == have:
            return
        source = schedule.resize_prompts(prompts)
        self._move(self.shared.layers, source, columns)
        hidden = self.programs.move_state(self.shared.hidden, source, columns=0)
        self.shared = Shared(self.shared.layers, hidden)

    def _smallest(self, columns: int) -> int:
        return _KERNEL_BUCKET if self.sampler.options.attention == "splash" else columns

    def _move(self, layers: list, source: np.ndarray, columns: int) -> None:
        for at, segment in enumerate(layers):  # one array at a time: only one is held twice
            for name in segment._fields:
                if (old := getattr(segment, name)) is not None:
                    segment = layers[at] = segment._replace(**{name: None})
                    moved = self.programs.move(old, source, columns=columns)
                    del old
                    segment = layers[at] = segment._replace(**{name: moved})

    # Rows

    def _fit(self, shrink: bool) -> None:
        """Columns for what the rows may draw until the host looks again; fewer, and fewer rows, when half would do."""
        sampler, schedule = self.sampler, self.schedule
        drafts = sampler.lookup.drafts if sampler.lookup else 0
        ahead = sampler.block * (1 + drafts) * (1 + len(self.under_way))
        need = 1
        for row in schedule.live():
            work = self._work(row)
            need = max(need, min(len(work.token_ids) + ahead, work.request.decoding.max_new_tokens) + drafts)
        columns, batch, ways = bucket(need, self._smallest(_CACHE_BUCKET)), len(schedule.rows), sampler.ways
        assert self.shared is not None
        history = self.shared.layers[0].k.shape[2] + columns if sampler.lookup else 0
        if self.slots is None:
            self.slots = self.programs.empty_slots(batch=batch, columns=columns, history=history)
            return
        have = self.slots.layers[0].k.shape[2]
        if columns <= have < 2 * columns:
            columns = have
            history = self.shared.layers[0].k.shape[2] + columns if sampler.lookup else 0
        per_part = batch // ways
        if shrink and not schedule.waiting:
            busiest = max(sum(row // per_part == part for row in schedule.live()) for part in range(ways))
            while per_part % 2 == 0 and busiest <= per_part // 2:
                per_part //= 2
        had = 0 if self.slots.history is None else self.slots.history.shape[1]
        if (columns, per_part * ways, history) == (have, batch, had):
            return
        source = np.tile(np.arange(per_part, dtype=np.int32), (ways, 1))
        if per_part * ways != batch:
            while self.under_way:  # results are by the old places
                self._read(self.under_way.popleft())
            source = schedule.shrink_rows(per_part)
            flat = (source + np.arange(ways)[:, None] * (batch // ways)).reshape(-1)
            self.rows = Rows(*(x[flat] for x in self.rows))
            self.prompt_length = self.prompt_length[flat]
        if (columns, per_part * ways) != (have, batch):
            self._move(self.slots.layers, source, columns)
        state = self.slots._replace(layers=[])
        self.slots = self.programs.move_state(state, source, columns=history)._replace(layers=self.slots.layers)

    def _dispatch(self, started: list[int]) -> None:
        sampler, schedule = self.sampler, self.schedule
        assert self.shared is not None
        assert self.slots is not None
        self.programs.forget_old_programs()
        length, rows, place = schedule.table()
        fresh = np.zeros(len(schedule.rows), bool)
        fresh[started] = True
        prompt = None
        if self.slots.history is not None:
            prompt = np.zeros(self.slots.history.shape, np.int32)
            for row in started:
                ids = self._work(row).request.prompt_ids
                prompt[row, : len(ids)] = ids
        start = Start(fresh, place // rows.shape[2], self.prompt_length, prompt)
        live = len(schedule.live())
        # With others waiting, come back once an eighth of the rows is free; else when all are done.
        enough = live - max(1, len(schedule.rows) // 8) if schedule.waiting else 0
        # And soon, where a prompt for an idle row is only partly prefilled.
        soon = schedule.prefilling() and live < len(schedule.rows)
        limit = max(1, sampler.block // 4) if soon else sampler.block
        self.slots, drawn = self.programs.decode_block(
            self.params, self.slots, self.shared, Table(length, rows, place), self.rows, start,
            np.int32(limit), np.int32(enough), steps=sampler.block, lookup=sampler.lookup, early=sampler.early,
        )  # fmt: skip
        self.under_way.append(_Block(drawn, list(schedule.rows)))

    def _read(self, block: _Block) -> None:
        """Waits for a block's results and gives them to whose they are."""
        drawn = jax.device_get(block.drawn)
        progress = drawn.progress
        failed = np.zeros(len(block.owners), bool)
        for row, work in enumerate(block.owners):
            if work is None or work.done:  # the row was done before this block began
                continue
            new = int(drawn.count[row])
            work.token_ids += drawn.record.token[row, :new].tolist()
            work.logprobs += drawn.record.logprob[row, :new].tolist()
            work.model_logprobs += drawn.record.model_logprob[row, :new].tolist()
            self.stats.tokens += new
            if not progress.done[row]:
                continue
            work.done = True
            self.schedule.finish(row)
            self.stats.completions += 1
            if progress.failed[row]:
                failed[row] = True
                self.failed.append(work.request)
            else:
                self.finished.append(_completion(work, progress, row))
        self.stats.compiled = self.programs.compilations - self.compiled_before
        self.stats.block(int(drawn.steps), int(drawn.row_steps), len(block.owners), self.schedule)
        if failed.any():
            self._clean(failed)
        if self.sampler.progress:
            self.sampler.progress(self.stats)

    def _clean(self, failed: np.ndarray) -> None:
        assert self.slots is not None
        for at, segment in enumerate(self.slots.layers):
            cleaned = [x if x is None else self.programs.clean(x, failed) for x in segment]
            self.slots.layers[at] = type(segment)(*cleaned)


def _completion(work: Work, progress: control.Progress, row: int) -> Completion:
    forced, choice = int(progress.forced_from[row]), float(progress.choice[row])
    return Completion(
        work.request,
        tuple(work.token_ids),
        tuple(work.logprobs),
        "stop" if progress.stopped[row] else "length",
        tuple(work.model_logprobs),
        None if not 0 <= forced < len(work.token_ids) else forced,
        None if np.isnan(choice) else (choice, 1 - choice),
    )
