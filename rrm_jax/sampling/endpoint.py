"""JSON over HTTP to one server: retries with back-off, answers of bounded size, errors that never hold the API key."""

import asyncio
import dataclasses
import email.utils
import hashlib
import json
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import httpx2

from rrm_jax.errors import RrmError

_TRY_AGAIN = (408, 409, 425, 429)  # and every 5xx
_LONGEST_PAUSE = 60.0  # seconds between two tries, unless the server asks for more
_LONGEST_RETRY_AFTER = 600.0
_SHOWN = 400  # characters of the server's own words in a message


class Outage(Exception):
    """The server did not give a usable answer this time. Tried again; never a result."""

    def __init__(self, what: str, retry_after: float = 0.0):
        super().__init__(what)
        self.retry_after = retry_after


def base_url(text: str) -> str:
    """The address that `/completions` is appended to: with or without a trailing slash, an API version, or the path
    of a call in `text`; without any version it is `/v1`. RrmError when it is no http(s) address or holds a password.
    """
    try:
        parts = urllib.parse.urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise RrmError(f"{text!r} is not the address of a server: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RrmError(f"{text!r} is not the address of a server; give one like http://localhost:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")
        raise RrmError(
            f"the address of the server {shown} must hold no user, password, query or fragment; an API key goes into "
            "an environment variable"
        )
    path = re.sub(r"/(chat/)?completions$", "", parts.path.rstrip("/"))
    if not any(re.fullmatch(r"v\d\w*", part) for part in path.split("/")):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


@dataclasses.dataclass(frozen=True)
class Patience:
    """`timeout` seconds for one answer, `retries` after a failed try with pauses of about `pause` × 2ⁿ seconds (at
    most a minute, or what the server's Retry-After asks for, up to ten), and at most `answer_bytes` an answer."""

    timeout: float = 1800.0
    retries: int = 8
    pause: float = 0.5
    answer_bytes: int = 64 * 2**20

    def __post_init__(self):
        if self.timeout <= 0 or self.pause < 0 or self.retries < 0 or self.answer_bytes < 1:
            raise ValueError(f"timeout and answer_bytes must be positive, retries and pause not negative: {self}")

    def seconds(self, attempt: int, address: str) -> float:
        """The pause after a failed try: half to all of pause × 2ⁿ, which part of it being a hash of `address`, so
        that many requests which failed together do not come back together."""
        part = int.from_bytes(hashlib.sha256(f"{address} {attempt}".encode()).digest()[:4], "big") / 2**32
        return min(_LONGEST_PAUSE, self.pause * 2 ** min(attempt, 30)) * (0.5 + 0.5 * part)


class Endpoint:
    """One server, for calls from one event loop; close it there. `retried(why)` hears of every failed try."""

    def __init__(self, url: str, key: str | None, connections: int, patience: Patience, retried: Callable[[str], None]):
        self.url, self._key, self._patience, self._retried = url, key, patience, retried
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(patience.timeout, connect=min(30.0, patience.timeout)),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aclose()

    async def post[T](self, path: str, body: dict[str, Any], read: Callable[[Any], T], address: str) -> T:
        """`read(answer)` of a POST, tried again for as long as it is an Outage (raised by `read` too).

        Raises RrmError at once for what trying again cannot help (a wrong key, model or request), and when the
        server stays away. `address` names the request: its pauses are the same whenever it is made.
        """
        started, attempt = time.monotonic(), 0
        while True:
            try:
                return read(await self._once(path, body))
            except Outage as outage:
                why, wait = self._clean(str(outage)), outage.retry_after
            if attempt >= self._patience.retries or wait > _LONGEST_RETRY_AFTER:
                asked = f", and asks to wait {wait:.0f} s" if wait > _LONGEST_RETRY_AFTER else ""
                raise RrmError(
                    f"{self.url} is out of service{asked}: {why} ({attempt + 1} tries in "
                    f"{time.monotonic() - started:.0f} s). Nothing was made up for it, and what was finished is kept: "
                    "run the same again when the server is back"
                )
            self._retried(why)
            await asyncio.sleep(max(wait, self._patience.seconds(attempt, address)))
            attempt += 1

    async def _once(self, path: str, body: dict[str, Any]) -> Any:
        content = bytearray()
        try:
            async with (
                asyncio.timeout(self._patience.timeout),  # httpx2's own is for each read: drops would go on for ever
                self._client.stream("POST", self.url + path, json=body) as response,
            ):
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > self._patience.answer_bytes:
                        raise Outage(f"an answer of more than {self._patience.answer_bytes} bytes")
        except (TimeoutError, httpx2.TimeoutException):
            raise Outage(f"no answer within {self._patience.timeout:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise Outage(f"{type(error).__name__} {error}".strip()) from None
        status = response.status_code
        if status in _TRY_AGAIN or status >= 500:
            raise Outage(f"HTTP {status}: {_words(content)}", _retry_after(response.headers.get("retry-after")))
        if status != 200:
            moved = f" (moved to {response.headers['location']})" if "location" in response.headers else ""
            raise RrmError(
                self._clean(f"{self.url}{path} refuses the request: HTTP {status}{moved}: {_words(content)}")
            )
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise Outage(f"an answer that is not JSON: {_words(content)}") from None
        if isinstance(answer, dict) and answer.get("error"):  # as gateways do when the server behind them fails
            raise Outage(f"an error as an answer: {_words(content)}")
        return answer

    def _clean(self, text: str) -> str:
        """Printable, and without the API key, which servers are known to repeat in their errors."""
        if self._key:
            text = text.replace(self._key, "[API key]")
        return "".join(character if character.isprintable() else " " for character in text)


def _words(content: bytes | bytearray) -> str:
    """What the server says of its error, shortened."""
    text = content[: 64 * _SHOWN].decode("utf-8", "replace")
    try:
        answer = json.loads(content) if len(content) < 2**20 else None
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        error = answer.get("error", answer.get("detail", answer))
        said = error.get("message", error) if isinstance(error, dict) else error
        text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _retry_after(value: str | None) -> float:
    """Seconds, from seconds or a date; 0 for what is neither."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value or "").timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
