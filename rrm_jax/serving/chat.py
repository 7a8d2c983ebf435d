"""Chat completions as OpenAI has them, on the engine."""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.store import digest
from rrm_jax.sampling.protocol import Completion, Decoding, FinishReason, Request
from rrm_jax.serving.engine import Engine, Ticket, Withdrawn
from rrm_jax.serving.responses import EventStream, HttpError, event, while_wanted
from rrm_jax.serving.schemas import ChatRequest, Drawing, Message
from rrm_jax.serving.text import Field, Layout, Written, opens_thinking


@dataclasses.dataclass(frozen=True)
class ChatModel:
    """What answers: `decoding` has the defaults."""

    name: str
    tokenizer: Tokenizer
    decoding: Decoding
    max_positions: int


def request_of(model: ChatModel, body: ChatRequest) -> Request:
    """The first sample's request."""
    check_name(model, body)
    turns = [(_role(message), _content(message)) for message in body.messages]
    ids = tuple(model.tokenizer.encode_chat(turns))
    return drawing(model, body, ids, body.max_completion_tokens or body.max_tokens, model.tokenizer.stop_ids)


def check_name(model: ChatModel, body: Drawing) -> None:
    """HttpError 404 for another model than the one that is served."""
    if body.model != model.name:
        raise HttpError(404, f"the model {body.model!r} does not exist; this server has {model.name!r}", "no_model")


def drawing(model: ChatModel, body: Drawing, ids: tuple[int, ...], most: int | None, stops: tuple[int, ...]) -> Request:
    """A request for at most `most` tokens (None: the server's own number, where there is room). Its id is a digest of
    the prompt: equal questions, with equal seeds, get equal answers."""
    if most is None:
        most = min(model.decoding.max_new_tokens, max(1, model.max_positions - len(ids)))
    decoding = dataclasses.replace(
        model.decoding,
        temperature=model.decoding.temperature if body.temperature is None else body.temperature,
        top_p=model.decoding.top_p if body.top_p is None else body.top_p,
        top_k=body.top_k, min_p=body.min_p, max_new_tokens=most, stop_ids=stops, thinking=None,
    )  # fmt: skip
    seed = secrets.randbits(32) if body.seed is None else body.seed % (1 << 32)
    return Request(digest(list(ids)), ids, decoding, 0, seed)


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _content(message: Message) -> str:
    parts = message.content
    text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
    return strip_thinking(text) if message.role == "assistant" else text


@dataclasses.dataclass(frozen=True)
class _News:
    """Tokens of choice `index`, or how it ended."""

    index: int
    ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    ended: Completion | BaseException | None = None


class Conversation:
    """A request's choices, from submission to their texts. Made in the event loop's thread."""

    def __init__(self, engine: Engine, model: ChatModel, body: ChatRequest, request: Request):
        self._model, self._body, self._request = model, body, request
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        self._stream = bool(body.stream)
        layout = Layout(
            model.tokenizer, stops, request.decoding.stop_ids, body.separate_reasoning,
            opens_thinking(model.tokenizer, request.prompt_ids),
        )  # fmt: skip
        self._count = body.n or 1
        self._written = [Written(layout) for _ in range(self._count)]
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}
        self._news: asyncio.Queue[_News] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._tickets: list[Ticket] = []
        try:
            for index in range(self._count):
                self._submit(engine, index, listen=self._stream or bool(stops))
        except BaseException:
            self.close()
            raise

    def _submit(self, engine: Engine, index: int, listen: bool) -> None:
        def tell(news: _News) -> None:
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

        def ended(ticket: Ticket) -> None:
            try:
                result = ticket.exception() or ticket.result()
            except CancelledError:
                result = Withdrawn("the server is shutting down")
            tell(_News(index, ended=result))

        def drawn(ids: Sequence[int], logprobs: Sequence[float]) -> None:
            tell(_News(index, ids, logprobs))

        ticket = engine.submit(dataclasses.replace(self._request, sample=index), drawn if listen else None)
        self._tickets.append(ticket)
        ticket.add_done_callback(ended)  # type: ignore[arg-type]

    def close(self) -> None:
        """Frees what is still at work."""
        for ticket in self._tickets:
            ticket.cancel()

    async def _pieces(self) -> AsyncIterator[tuple[int, list[tuple[Field, str]], list[dict], FinishReason | None]]:
        """(Choice, text, log-probabilities, how it ended) as they come, until all choices have ended."""
        left = set(range(self._count))
        while left:
            news = await self._news.get()
            if news.index not in left:
                continue
            written, ids, logprobs, finish = self._written[news.index], news.ids, news.logprobs, None
            if isinstance(news.ended, BaseException):
                raise news.ended
            if news.ended is not None:  # of one that was listened to, all has been read
                ids, logprobs = news.ended.token_ids[written.tokens :], news.ended.model_logprobs[written.tokens :]
                finish = news.ended.finish_reason
            before = written.tokens
            pieces = written.feed(ids)
            if written.stopped:
                finish = "stop"
                self._tickets[news.index].cancel()
            if finish is not None:
                pieces += written.end()
                left.discard(news.index)
            read = written.tokens - before
            yield news.index, pieces, self._logprobs(ids[:read], logprobs[:read]), finish

    def _logprobs(self, ids: Sequence[int], values: Sequence[float]) -> list[dict]:
        if not self._body.logprobs:
            return []
        stops, decode = self._request.decoding.stop_ids, self._model.tokenizer.decode
        texts = [(decode([token]), value) for token, value in zip(ids, values, strict=True) if token not in stops]
        return [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []} for text, value in texts
        ]

    @property
    def _usage(self) -> dict[str, int]:
        prompt, written = len(self._request.prompt_ids), sum(one.tokens for one in self._written)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    async def _whole(self) -> dict[str, Any]:
        texts: list[dict[str, str]] = [{} for _ in range(self._count)]
        logprobs: list[list[dict]] = [[] for _ in range(self._count)]
        finishes: list[FinishReason | None] = [None] * self._count
        async for index, pieces, values, finish in self._pieces():
            for field, text in pieces:
                texts[index][field] = texts[index].get(field, "") + text
            logprobs[index] += values
            finishes[index] = finish
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": texts[index].get("content", None if "reasoning_content" in texts[index] else ""),
                    "reasoning_content": texts[index].get("reasoning_content"),
                },
                "logprobs": {"content": logprobs[index]} if self._body.logprobs else None,
                "finish_reason": finishes[index],
            }
            for index in range(self._count)
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage}

    async def _chunks(self) -> AsyncIterator[bytes]:
        usage = bool(self._body.stream_options and self._body.stream_options.include_usage)
        head = self._head | {"object": "chat.completion.chunk"} | ({"usage": None} if usage else {})

        def chunk(index: int, delta: dict, logprobs: list[dict], finish: FinishReason | None) -> bytes:
            values = {"content": logprobs} if logprobs else None
            return event(
                head | {"choices": [{"index": index, "delta": delta, "logprobs": values, "finish_reason": finish}]}
            )

        for index in range(self._count):
            yield chunk(index, {"role": "assistant", "content": ""}, [], None)
        async for index, pieces, logprobs, finish in self._pieces():
            for field, text in pieces:
                yield chunk(index, {field: text}, logprobs, None)
                logprobs = []
            if finish is not None or logprobs:
                yield chunk(index, {}, logprobs, finish)
        if usage:
            yield event(head | {"choices": [], "usage": self._usage})
        yield event("[DONE]")

    async def answer(self, receive: Receive, seconds: float) -> Response:
        """The whole answer, or a stream of its chunks, whichever was asked for. Its rows are free again when the reader
        leaves (ClientGone), or after `seconds` (TimeoutError)."""
        if self._stream:
            return EventStream(self._chunks(), seconds, self.close, lambda error: event(error.body))
        try:
            return JSONResponse(await while_wanted(self._whole(), receive, seconds))
        finally:
            self.close()
