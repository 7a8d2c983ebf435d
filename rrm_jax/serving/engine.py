"""The sampler for many askers at once: one thread owns it, and whoever asks shares its batch.

What a request draws is addressed by (seed, id, sample), so every answer is the one that `Sampler.generate` gives.
"""

import dataclasses
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Protocol

from rrm_jax.errors import RrmError
from rrm_jax.sampling.call import GenerateCall
from rrm_jax.sampling.protocol import Completion, Request
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.sampling.schedule import Schedule

OnTokens = Callable[[Sequence[int], Sequence[float]], None]


class EngineFull(RrmError):
    """As many requests wait as may; nothing was wrong with this one."""


class EngineFailed(RrmError):
    """The engine has ended, and answers nothing any more."""


class Withdrawn(RrmError):
    """Nobody wants the answer any more, or the server is shutting down."""


class Ticket(Future[Completion]):
    """A request's completion to come. `cancel` frees its row, or its place in the queue, at the next look of the host.

    `on_tokens` is called in the engine's thread with (token ids, model log-probabilities) as they are read, and must
    return at once.
    """

    def __init__(self, engine: "Engine", request: Request, on_tokens: OnTokens | None):
        super().__init__()
        self.request, self.on_tokens, self._engine = request, on_tokens, engine

    def cancel(self) -> bool:
        """As `Future` has it; the engine hears of it."""
        if not super().cancel():
            return False
        self._engine._withdraw(self)
        return True


class Engine:
    """Serves a sampler's completions to any thread. At most `max_waiting` requests wait for a row.

    Its thread starts with the first request. `failure` says why it has ended, None while it is well; `tokens` counts
    what was drawn.
    """

    lasting = True  # for `call.Source`

    def __init__(self, sampler: Sampler, max_waiting: int = 256):
        self.sampler, self.max_waiting = sampler, max_waiting
        self.failure: str | None = None
        self.tokens = self.completions = 0
        self._changed = threading.Condition()
        self._waiting: dict[int, Ticket] = {}
        self._taken: dict[int, Ticket] = {}
        self._cancelled: list[Request] = []
        self._closed = False
        self._call: GenerateCall | None = None
        self._thread: threading.Thread | None = None

    # For those who ask

    def submit(
        self, request: Request, on_tokens: OnTokens | None = None, patient: Callable[[], bool] = lambda: False
    ) -> Ticket:
        """Raises RrmError for what cannot be served, EngineFailed, and EngineFull: while it is `patient` it waits for
        room."""
        self.sampler.check(request)
        ticket = Ticket(self, dataclasses.replace(request), on_tokens)  # known by its identity from here
        with self._changed:
            while self.full and patient() and not self._ended:
                self._changed.wait()
            if self._ended:
                raise EngineFailed(self.failure or "the server is shutting down")
            if self.full:
                raise EngineFull(f"{self.queued} requests wait already; try again later")
            self._waiting[id(ticket.request)] = ticket
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return ticket

    def wake(self) -> None:
        """Whoever waits for room asks again whether to be patient."""
        with self._changed:
            self._changed.notify_all()

    def generator(self, listen: "Listen | None" = None) -> "EngineGenerator":
        """A `protocol.Generator` on this engine."""
        return EngineGenerator(self, listen)

    @property
    def queued(self) -> int:
        """Requests without a row."""
        schedule = self._schedule
        return len(self._waiting) + (0 if schedule is None else schedule.waiting_count)

    @property
    def busy(self) -> int:
        """Rows at work."""
        schedule = self._schedule
        return 0 if schedule is None else sum(work is not None for work in schedule.rows)

    @property
    def full(self) -> bool:
        """Whether as many wait as may, beside those for whom there are rows."""
        queued = self.queued
        return queued >= self.max_waiting and queued >= self.max_waiting + self.sampler.batch_size - self.busy

    @property
    def _schedule(self) -> Schedule | None:
        """As the engine's thread has it; None before the first request."""
        return getattr(self._call, "schedule", None)

    @property
    def _ended(self) -> bool:
        return self._closed or self.failure is not None

    def close(self) -> None:
        """Ends the thread; what is not finished is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            left = [*self._waiting.values(), *self._taken.values()]
        for ticket in left:
            ticket.cancel()
        if self._thread is not None:
            self._thread.join()

    def _withdraw(self, ticket: Ticket) -> None:
        with self._changed:
            if self._waiting.pop(id(ticket.request), None) is None and id(ticket.request) in self._taken:
                self._cancelled.append(ticket.request)
            self._changed.notify_all()

    # For the call, in the engine's thread

    def take(self, most: int, idle: bool) -> Sequence[Request]:
        """As `sampling.call.Source` has it; with `idle` it waits until a request comes, or the engine is closed."""
        with self._changed:
            while idle and not self._waiting and not self._closed:
                self._changed.wait()
            first = list(self._waiting)[:most]
            tickets = [self._waiting.pop(key) for key in first]
            self._taken |= dict(zip(first, tickets, strict=True))
            if tickets:
                self._changed.notify_all()
        return [ticket.request for ticket in tickets]

    def cancelled(self) -> Collection[Request]:
        """As `sampling.call.Source` has it."""
        if not self._cancelled:
            return ()
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
            for request in cancelled:
                self._taken.pop(id(request), None)
            return cancelled

    def drawn(self, request: Request, token_ids: Sequence[int], model_logprobs: Sequence[float]) -> None:
        """As `sampling.call.Source` has it; the ticket's `on_tokens` is told."""
        self.tokens += len(token_ids)
        ticket = self._taken.get(id(request))
        if ticket is not None and ticket.on_tokens is not None:
            try:
                ticket.on_tokens(token_ids, model_logprobs)
            except Exception:  # a listener that has gone must not end everybody else's answers
                ticket.on_tokens = None

    def _run(self) -> None:
        try:
            self._call = GenerateCall(self.sampler, self)
            for finished in self._call.blocks():
                for completion in finished:
                    self.completions += 1
                    self._settle(completion.request, completion)
                failed, self._call.failed = self._call.failed, []
                for request in failed:
                    self._settle(request, self.sampler.not_finite([request]))
                if self._closed:
                    return
        except BaseException as error:
            with self._changed:
                self.failure = f"the engine has failed: {error or type(error).__name__}"
                left = [*self._waiting.values(), *self._taken.values()]
                self._waiting.clear()
                self._taken.clear()
                self._changed.notify_all()
            for ticket in left:
                _resolve(ticket, EngineFailed(self.failure))
            if not isinstance(error, Exception):
                raise

    def _settle(self, request: Request, result: Completion | RrmError) -> None:
        with self._changed:
            ticket = self._taken.pop(id(request), None)
        if ticket is not None:
            _resolve(ticket, result)


def _resolve(ticket: Ticket, result: Completion | Exception) -> None:
    """Its asker may have cancelled it just now."""
    if not ticket.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        ticket.set_exception(result)
    else:
        ticket.set_result(result)


class Listen(Protocol):
    """How an `EngineGenerator`'s owner hears of tokens as they are drawn."""

    def __call__(self, request: Request) -> OnTokens | None:
        """Who wants to hear of a request's tokens; called in the asker's thread when it is submitted."""
        ...


class EngineGenerator:
    """Implements `protocol.Generator`: for a judge, or a tournament, in a thread of its own beside others.

    Twice as many of its requests are with the engine as that has rows, at most; others are taken from the iterator as
    these finish. `cancel`, from any thread, ends `generate` with Withdrawn, and frees its rows, as does closing it.
    """

    def __init__(self, engine: Engine, listen: Listen | None = None):
        self._engine, self._listen = engine, listen
        self._open: set[Ticket] = set()
        self._ended: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._wanted = True

    def cancel(self) -> None:
        """From any thread; what waits in `generate` ends with Withdrawn."""
        self._wanted = False
        self._ended.put(None)
        self._engine.wake()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """As `Generator` has it. Raises Withdrawn after `cancel`, and what the engine raised where it failed."""
        if isinstance(requests, Sequence):
            for request in requests:
                self._engine.sampler.check(request)
        waiting: Iterator[Request] | None = iter(requests)
        try:
            while True:
                while waiting is not None and len(self._open) < 2 * self._engine.sampler.batch_size:
                    if (request := next(waiting, None)) is None:
                        waiting = None
                        break
                    self._submit(request)
                if not self._open:
                    return
                yield self._next()
        finally:
            for ticket in self._open:
                ticket.cancel()

    def _submit(self, request: Request) -> None:
        on_tokens = None if self._listen is None else self._listen(request)
        try:
            ticket = self._engine.submit(request, on_tokens, lambda: self._wanted)
        except EngineFull:
            raise Withdrawn("cancelled") from None
        self._open.add(ticket)
        ticket.add_done_callback(lambda _: self._ended.put(ticket))

    def _next(self) -> Completion:
        ticket = self._ended.get()
        if ticket is None or not self._wanted:
            raise Withdrawn("cancelled")
        self._open.discard(ticket)
        try:
            return ticket.result()
        except CancelledError:
            raise Withdrawn("the server is shutting down") from None
