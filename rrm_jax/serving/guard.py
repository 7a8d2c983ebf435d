"""What stands before the routes: tokens, limits, and counting."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rrm_jax.serving.metrics import Metrics
from rrm_jax.serving.responses import RETRY, HttpError

OPEN = ("/health", "/ready", "/")
"""What is answered without a token, and all below PAGE: a browser asks for the page before it can know one."""
PAGE = "/page/"
WORK = ("/v1/chat/completions", "/v1/completions", "/judge", "/rank", "/compare", "/get_reward")
_KNOWN = (*OPEN, *WORK, "/metrics", "/v1/models", "/openapi.json")


class Guard:
    """ASGI middleware. Bodies are read whole, at most `most_bytes`, within `seconds`; at most `most_open` requests for
    work are open at a time; with a `token`, it is asked for as `Authorization: Bearer TOKEN`."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, token: str | None, most_bytes: int, most_open: int, seconds: float
    ):
        self._app, self._metrics, self._token = app, metrics, None if token is None else f"Bearer {token}".encode()
        self._most_bytes, self._most_open, self._seconds, self._open = most_bytes, most_open, seconds, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.monotonic(), 499  # the client has gone

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        work = scope["path"] in WORK and scope["method"] == "POST"
        try:
            await self._admitted(scope, receive, counted, work)
        except asyncio.CancelledError:  # the server ends, and has waited as long as it may
            if status == 499:
                await HttpError(503, "the server is shutting down", "shutting_down").response()(scope, receive, counted)
        finally:
            route = scope["path"] if scope["path"] in _KNOWN else "other"
            self._metrics.request(route, status, time.monotonic() - started)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send, work: bool) -> None:
        try:
            self._check_token(scope)
            if work and self._open >= self._most_open:
                raise HttpError(429, f"{self._open} requests are open already; try again later", "queue_full", RETRY)
            self._open += work
            try:
                body = await self._body(scope, receive)
                await self._app(scope, _again(body, receive), send)
            finally:
                self._open -= work
        except HttpError as error:
            await error.response()(scope, receive, send)

    def _check_token(self, scope: Scope) -> None:
        if self._token is None or scope["path"] in OPEN or scope["path"].startswith(PAGE):
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not hmac.compare_digest(given, self._token):
            raise HttpError(
                401, "this server wants `Authorization: Bearer TOKEN`, with its token", "invalid_token",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        stated = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        size = int(stated) if stated.isdigit() else 0
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._seconds):
                while size <= self._most_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return b""
                    parts.append(message.get("body", b""))
                    size = max(size, sum(map(len, parts)))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise HttpError(408, "the body did not come in time", "timeout") from None
        if size > self._most_bytes:
            raise HttpError(413, f"the body is larger than {self._most_bytes} bytes", "body_too_large")
        return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read
