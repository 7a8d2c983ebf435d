"""The loop on the host that refills rows, sizes the caches and collects results: of one call of `Sampler.generate`, or
of all that a server is asked for."""

import collections
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import jax
import numpy as np

from rrm_jax.models.decoder import Options
from rrm_jax.sampling import control
from rrm_jax.sampling.block import Drawn, Shared, Slots, Start, Table
from rrm_jax.sampling.buckets import bucket, coarse_bucket
from rrm_jax.sampling.control import Rows
from rrm_jax.sampling.memory import explain_exhaustion
from rrm_jax.sampling.protocol import Completion, Request
from rrm_jax.sampling.schedule import Schedule, Work
from rrm_jax.sampling.stats import Stats

if TYPE_CHECKING:
    from rrm_jax.sampling.sampler import Sampler

_PROMPT_BUCKET, _CACHE_BUCKET, _STOP_BUCKET, _SCRIPT_BUCKET = 32, 64, 8, 32  # the smallest ones
_KERNEL_BUCKET = 128  # from which on all buckets are whole tiles of the kernels for TPUs and GPUs
PREFILL_TOKENS = 1024  # a chunk: enough to keep an accelerator busy, and decoding waits for twice as much at most


def prompt_bucket(options: Options) -> int:
    """The least columns of a prompt's cache."""
    return _PROMPT_BUCKET if options.attention == "xla" else _KERNEL_BUCKET


def cache_bucket(options: Options) -> int:
    """The least columns of a row's cache."""
    return _CACHE_BUCKET if options.attention == "xla" else _KERNEL_BUCKET


@dataclasses.dataclass
class _Block:
    """A block under way, and whose the rows were when it began."""

    drawn: Drawn
    owners: list[Work | None]


class Source(Protocol):
    """Where requests come from, and who hears of them, each request by its identity."""

    lasting: bool
    """Whether more may come when none is left. Rows and places for prompts are kept for them then, and shapes are
    coarse: a server that compiles lets everybody wait."""

    def take(self, most: int, idle: bool) -> Sequence[Request]:
        """At most so many that are there now. With `idle` nothing else is at work: none means that none will come."""
        ...

    def cancelled(self) -> Collection[Request]:
        """What nobody wants any more, of all that was taken, since it was last asked."""
        ...

    def drawn(self, request: Request, token_ids: Sequence[int], model_logprobs: Sequence[float]) -> None:
        """A running request's newest tokens."""
        ...


class Given:
    """The requests of one call of `generate`."""

    lasting = False

    def __init__(self, requests: Iterable[Request]):
        self._requests = iter(requests)

    def take(self, most: int, idle: bool) -> Sequence[Request]:
        """As `Source` has it; `idle` makes no difference, as all requests are there from the start."""
        return list(itertools.islice(self._requests, most))

    def cancelled(self) -> Collection[Request]:
        """Nothing ever is."""
        return ()

    def drawn(self, request: Request, token_ids: Sequence[int], model_logprobs: Sequence[float]) -> None:
        """Nobody listens."""


class GenerateCall:
    """Iterates over the completions; `failed` has the requests so far whose logits were not finite."""

    def __init__(self, sampler: "Sampler", source: Source):
        self.sampler, self.programs, self.params = sampler, sampler._programs, sampler._params
        self.source, self.failed = source, []
        self.stats, self.compiled_before = Stats.of(sampler), self.programs.compilations
        self.under_way: collections.deque[_Block] = collections.deque()
        self.finished: list[Completion] = []
        self.dropped: set[int] = set()  # rows that the devices still work on, for nobody

    def __iter__(self) -> Iterator[Completion]:
        for finished in self.blocks():
            yield from finished

    def blocks(self) -> Iterator[list[Completion]]:
        """What finished with each look of the host, which may be nothing."""
        sampler = self.sampler
        first = self.source.take(sampler.batch_size, idle=True)
        if not first:
            return
        batch = sampler.batch_size
        while batch % 2 == 0 and batch // 2 >= len(first) and (batch // 2) % sampler.ways == 0:
            if self.source.lasting:
                break
            batch //= 2
        dynamic, most = sampler.config.rope.kind == "dynamic", sampler.config.max_positions
        # Dynamic RoPE rotates a prompt beyond the trained length by that length: its head is nobody else's.
        share = (lambda a, b: max(a, b) <= most) if dynamic else (lambda a, b: True)
        self.schedule = Schedule(batch, sampler.ways, PREFILL_TOKENS, share, coarse=self.source.lasting)
        for request in first:
            self._take(request)
        self.rows = control.free_rows(batch, _STOP_BUCKET, _SCRIPT_BUCKET)
        self.prompt_length = np.zeros(batch, np.int32)
        self.shared: Shared | None = None
        self.slots: Slots | None = None
        with explain_exhaustion(sampler, self.stats):
            while True:
                self._drop(self.source.cancelled())
                self._look_ahead()
                started = self._refill()
                if self.schedule.live():
                    self._fit(shrink=not started and not self.source.lasting)
                    self._dispatch(started)
                elif not self.under_way:
                    assert not self.schedule.waiting, "requests wait, and none can start"
                    return
                if len(self.under_way) > sampler.overlap or not self.schedule.live():
                    self._read(self.under_way.popleft())
                finished, self.finished = self.finished, []
                yield finished

    def _take(self, request: Request) -> None:
        self.sampler.check(request)
        self.schedule.add(request)
        self.stats.naive_prefill += len(request.prompt_ids)
        self.stats.longest = max(self.stats.longest, len(request.prompt_ids) + request.decoding.max_new_tokens)

    def _look_ahead(self) -> None:
        room = self.sampler.batch_size - self.schedule.waiting_count
        idle = not (self.schedule.waiting or self.schedule.live() or self.under_way)
        for request in self.source.take(room, idle) if room else ():
            self._take(request)

    def _drop(self, requests: Collection[Request]) -> None:
        """Frees the rows, and the places in the queue, of requests that nobody wants any more."""
        if not requests:
            return
        unwanted = {id(request) for request in requests}
        for row in self.schedule.live():
            work = self._work(row)
            if id(work.request) in unwanted:
                work.done = True
                self.schedule.finish(row)
                self.dropped.add(row)
        self.schedule.withdraw(unwanted)

    # Prompts

    def _refill(self) -> list[int]:
        """Prefills and starts rows: all it can while a quarter of the rows is idle, else a chunk or some small ones."""
        schedule = self.schedule
        decoding = bool(schedule.live())
        if not schedule.waiting and not decoding:
            return []
        schedule.rows_per_prompt = schedule.group()
        self._fit_prompts()
        started, computed = schedule.start_rows(), 0
        while True:
            schedule.admit()
            chunk = schedule.next_chunk()
            if chunk is None:
                break
            assert self.shared is not None
            self.shared = self.programs.prefill(self.params, self.shared, *chunk[:6], limit=chunk.limit)
            self.stats.prefilled += chunk.real
            self.stats.prefill_computed += chunk.tokens.size
            computed += chunk.tokens.size
            started += schedule.start_rows()
            idle = len(schedule.rows) - len(schedule.live())
            small = computed + chunk.tokens.size <= schedule.prefill_tokens * self.sampler.ways
            if not schedule.waiting or (decoding and 4 * idle < len(schedule.rows) and not small):
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

    def _columns(self, need: int, smallest: int) -> int:
        return coarse_bucket(need, _KERNEL_BUCKET) if self.source.lasting else bucket(need, smallest)

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
        columns = self._columns(max(need, 1), prompt_bucket(self.sampler.options))
        ways = self.sampler.ways
        if self.shared is None:
            prompts = schedule.prompts_wanted()
            schedule.resize_prompts(prompts, columns)
            self.shared = self.programs.empty_shared(prompts=prompts * ways, columns=columns)
            return
        have = self.shared.layers[0].k.shape[2]
        if columns <= have < 2 * columns:
            columns = have
        prompts = schedule.prompts_wanted()
        if not schedule.waiting and not self.source.lasting:
            still = bucket(schedule.drop_idle_prompts(), 1)
            prompts = still if 2 * still <= prompts else prompts
        if prompts * ways == len(schedule.residents) and columns == have:
            return
        source = schedule.resize_prompts(prompts, columns)
        self._move(self.shared.layers, source, columns)
        hidden = self.programs.move_state(self.shared.hidden, source, columns=0)
        self.shared = Shared(self.shared.layers, hidden)

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
        columns, batch, ways = self._columns(need, cache_bucket(sampler.options)), len(schedule.rows), sampler.ways
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
        for row in self.dropped.difference(started):
            self.rows.max_new[row] = 0  # begun anew for one token, that of nobody, it is done
            fresh[row] = True
        self.dropped.clear()
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
        for row, work in enumerate(block.owners):
            if work is None or work.done:  # the row was done before this block began
                continue
            new = int(drawn.count[row])
            work.token_ids += drawn.record.token[row, :new].tolist()
            work.logprobs += drawn.record.logprob[row, :new].tolist()
            work.model_logprobs += drawn.record.model_logprob[row, :new].tolist()
            if new:
                self.source.drawn(work.request, work.token_ids[-new:], work.model_logprobs[-new:])
            self.stats.tokens += new
            if not progress.done[row]:
                continue
            work.done = True
            self.schedule.finish(row)
            self.stats.completions += 1
            if progress.failed[row]:
                self.failed.append(work.request)
            else:
                self.finished.append(_completion(work, progress, row))
        self.stats.compiled = self.programs.compilations - self.compiled_before
        self.stats.block(int(drawn.steps), int(drawn.row_steps), len(block.owners), self.schedule)
        if self.sampler.progress:
            self.sampler.progress(self.stats)


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
