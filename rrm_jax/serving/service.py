"""What the routes share: the engine once it is there, the judge, the verdict store, and threads for jobs."""

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from rrm_jax.judging.judge import Judge
from rrm_jax.judging.store import VoteLog
from rrm_jax.serving.chat import ChatModel
from rrm_jax.serving.engine import Engine, EngineFailed, OnTokens
from rrm_jax.serving.jobs import Job
from rrm_jax.serving.metrics import Metrics
from rrm_jax.serving.responses import RETRY, EventStream, HttpError, event, while_wanted
from rrm_jax.serving.text import Layout, Written


@dataclasses.dataclass(frozen=True)
class Limits:
    """`waiting` requests, or samples of them, may wait for a row; an answer takes `seconds` at most."""

    waiting: int = 256
    seconds: float = 600.0
    body_bytes: int = 8 << 20


class Service:
    """`engine` is None until the weights are loaded. `rows` is its batch size."""

    def __init__(self, model: ChatModel, judge: Judge, log: VoteLog | None, limits: Limits, rows: int):
        self.model, self.judge, self.log, self.limits, self.rows = model, judge, log, limits, rows
        self.engine: Engine | None = None
        self.metrics = Metrics()
        self.most_open = rows + limits.waiting
        self._pool = ThreadPoolExecutor(self.most_open, "job")
        self._jobs: set[Job] = set()

    def ready(self) -> Engine:
        """Raises HttpError 503 while the weights are loaded, EngineFailed when the engine has ended."""
        if self.engine is None:
            raise HttpError(503, "the weights are being loaded", "loading", RETRY)
        if self.engine.failure is not None:
            raise EngineFailed(self.engine.failure)
        return self.engine

    def close(self) -> None:
        """Ends what is under way."""
        for job in list(self._jobs):
            job.cancel()
        if self.engine is not None:
            self.engine.close()
        self._pool.shutdown(wait=True)
        if self.log is not None:
            self.log.close()

    def metrics_text(self) -> str:
        """What /metrics answers; zeros for an engine that is not there yet."""
        engine = self.engine
        gauges: dict[str, float] = {"queue_depth": 0, "busy_rows": 0, "rows": self.rows, "ready": 0}
        counters: dict[str, float] = {"tokens_total": 0, "completions_total": 0, "programs_compiled_total": 0}
        if engine is not None:
            gauges |= {"queue_depth": engine.queued, "busy_rows": engine.busy, "ready": engine.failure is None}
            counters |= {"tokens_total": engine.tokens, "completions_total": engine.completions}
            counters["programs_compiled_total"] = engine.sampler.compilations
        return self.metrics.text(gauges, counters)

    def job(self, hear: "Hearing | None" = None) -> Job:
        """A request's work. HttpError 503 before the model is loaded and 429 while too many requests wait;
        EngineFailed."""
        engine = self.ready()
        if engine.full:
            raise HttpError(429, f"{engine.queued} requests wait already; try again later", "queue_full", RETRY)
        if hear is None:
            return Job(engine, self.judge, self.log, self.metrics)
        return Job(engine, self.judge, self.log, self.metrics, hear.tell, hear.hear)

    async def run(self, job: Job, work: Callable[[Job], Any]) -> Any:
        """`work` in a thread; cancelled, it ends that too."""
        self._jobs.add(job)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, job)
        finally:
            job.cancel()
            self._jobs.discard(job)

    async def answer(self, work: Callable[[Job], Any], receive: Receive, stream: str = "") -> Response:
        """What `work` gives as JSON; or, with the last one's name, as events that tell how it comes about."""
        if not stream:
            return JSONResponse(await while_wanted(self.run(self.job(), work), receive, self.limits.seconds))
        hearing = Hearing(Layout(self.model.tokenizer, (), self.model.tokenizer.stop_ids, False, False))
        job = self.job(hearing)
        task = asyncio.ensure_future(self.run(job, work))
        task.add_done_callback(lambda _: hearing.end())

        async def events() -> AsyncIterator[bytes]:
            async for part in hearing.events():
                yield part
            yield event(await task, stream)

        return EventStream(events(), self.limits.seconds, task.cancel)


class Hearing:
    """What a job tells, and the tokens of its votes, as server-sent events. Made in the event loop's thread."""

    def __init__(self, layout: Layout):
        self._layout, self._loop = layout, asyncio.get_running_loop()
        self._told: asyncio.Queue[tuple[str, dict, Written | None, Sequence[int]] | None] = asyncio.Queue()
        self._names = itertools.count()

    def tell(self, name: str, data: dict[str, Any]) -> None:
        """From any thread."""
        self._put((name, data, None, ()))

    def hear(self, about: dict[str, Any]) -> OnTokens:
        """`about` what the tokens are; two votes with one number, in either order, are told apart by `sample`."""
        written, data = Written(self._layout), about | {"sample": next(self._names)}
        return lambda ids, logprobs: self._put(("tokens", data, written, ids))

    def end(self) -> None:
        """Nothing more will be told."""
        self._told.put_nowait(None)

    def _put(self, news: tuple[str, dict, Written | None, Sequence[int]]) -> None:
        self._loop.call_soon_threadsafe(self._told.put_nowait, news)

    async def events(self) -> AsyncIterator[bytes]:
        """What is told, as it is told, until `end`."""
        while (news := await self._told.get()) is not None:
            name, data, written, ids = news
            if written is None:
                yield event(data, name)
            elif text := "".join(piece for _, piece in written.feed(ids)):
                yield event(data | {"text": text}, name)
