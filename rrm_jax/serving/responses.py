"""How answers go out: JSON, errors in OpenAI's form, and streams that end with their reader."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from rrm_jax.errors import RrmError
from rrm_jax.serving.engine import EngineFailed, EngineFull, Withdrawn

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class HttpError(Exception):
    """An answer that is an error, to be raised: its HTTP status, what was wrong, and OpenAI's `code` for it."""

    def __init__(self, status: int, message: str, code: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI has it, JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = self.message.encode(errors="replace").decode()
        return {"error": {"message": message, "type": kind, "code": self.code}}

    def response(self) -> JSONResponse:
        """The body with its status and headers."""
        return JSONResponse(self.body, self.status, self.headers)


RETRY = {"Retry-After": "1"}


def http_error(error: BaseException) -> HttpError:
    """What an error is to the client. Its input is never to blame for a 5xx."""
    match error:
        case HttpError():
            return error
        case EngineFull():
            return HttpError(429, str(error), "queue_full", RETRY)
        case EngineFailed():
            return HttpError(503, str(error), "engine_failed")
        case Withdrawn():
            return HttpError(503, str(error), "shutting_down")
        case TimeoutError():
            return HttpError(504, "the answer took longer than the server allows (--timeout)", "timeout")
        case RrmError():
            return HttpError(400, str(error), "invalid_value")
    return HttpError(500, f"the server failed: {type(error).__name__}", "internal_error")


class ClientGone(Exception):
    """The client has closed its connection; whatever is answered reaches nobody."""


async def gone(receive: Receive) -> None:
    """Returns when the client has closed the connection; the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_wanted[T](work: Awaitable[T], receive: Receive, seconds: float) -> T:
    """The result of `work`, which is cancelled when the client goes (ClientGone) or the time is up (TimeoutError)."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({task, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone if left.done() else TimeoutError
    finally:
        await _end(task, left)


async def _end(*tasks: asyncio.Future) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def event(data: Any, name: str | None = None) -> bytes:
    """A server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode() + b"\n\n"


class EventStream(Response):
    """Server-sent events, sent as fast as their reader takes them and no longer than it stays, or `seconds`.

    `close` is called when it has ended, however that came; an error becomes a last event, made by `last`.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], seconds: float, close: Callable[[], Any],
        last: Callable[[HttpError], bytes] = lambda error: event(error.body, "error"),
    ):  # fmt: skip
        self._events, self._seconds, self._close, self._last = events, seconds, close, last
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it; returns when all is sent, or the reader has gone."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await while_wanted(self._send(send), receive, self._seconds)
            except ClientGone:
                return
            except Exception as error:
                if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                    return  # nobody can be told
                with contextlib.suppress(TimeoutError):  # its reader may be why it took so long
                    async with asyncio.timeout(1):
                        await _part(send, self._last(http_error(error)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        async for part in self._events:
            await _part(send, part)


async def _part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
