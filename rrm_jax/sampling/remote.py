"""Any OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted API) as a generator."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Literal, cast

from rrm_jax.data.tokenizer import END_THINK, Tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.sampling.endpoint import Endpoint, Outage, Patience, base_url
from rrm_jax.sampling.protocol import Completion, Decoding, FinishReason, Request

Api = Literal["completions", "chat"]
APIS: tuple[Api, ...] = ("completions", "chat")
KEY_VARIABLE = "OPENAI_API_KEY"
_QUOTED_END = "< /think>"


@dataclasses.dataclass
class RemoteStats:
    """How far a call of `generate` is: `completions` and `tokens` received, requests `open` at the server, tries that
    failed and were repeated, the last one's reason, and seconds since it began."""

    completions: int = 0
    tokens: int = 0
    open: int = 0
    retries: int = 0
    trouble: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        text = f"{self.completions} completions, {self.tokens} tokens, {self.tokens / max(1e-9, self.seconds):.0f} "
        text += f"tokens/s, {self.open} open"
        return text + (f", {self.retries} tries repeated (last: {self.trouble[:80]})" if self.retries else "")


@dataclasses.dataclass(frozen=True)
class _Piece:
    """What one call drew. `text` is None when `ids` are the server's own."""

    ids: tuple[int, ...]
    text: str | None
    finish: str
    logprobs: tuple[float, ...] = ()


class _Unfinished(Exception):
    """The server ended this one completion for a reason of its own (a content filter, a tool call)."""


class RemoteGenerator:
    """Implements `protocol.Generator` on a server; weights, batching and sampling are the server's.

    `api` "completions" sends `Request.prompt_ids` to `URL/v1/completions` (vLLM, SGLang): the prompt is exactly ours,
    and `tokenizer` must be the served model's. "chat" sends `Request.messages` to `URL/v1/chat/completions` and leaves
    the chat template to the server; separate reasoning is joined as reasoning + `</think>` + content, and a
    `</think>` that the reasoning only quotes is written `< /think>`. A model whose thinking is never shown must be
    judged as one that does not think.

    Where a completions server gives token ids (vLLM) they are the completion's. Else `Completion.text` is the text
    that it gave, and `token_ids` are that text encoded again, without an end token; a quoted `</think>` cannot be
    told from a real one then. `logprobs` asks a completions server for `Completion.model_logprobs`, which vLLM's
    default gives untempered; `Completion.logprobs` stays empty.

    `extensions` are fields that OpenAI's own API lacks (top_k and min_p when set; stop_token_ids, return_token_ids and
    skip_special_tokens on "completions"); False leaves them out, for servers that refuse what they don't know.
    A thinking budget takes two calls and works on "completions" alone; `Thinking.choices` are refused, because the
    probabilities that the choice needs are not part of these APIs.

    At most `concurrency` requests are open; others are taken as these finish, results come as they finish. Each
    request has a seed made of its (seed, id, sample): how far a server repeats itself for it is the server's word.
    The API key is read from the environment variable `key_variable` (None: OPENAI_API_KEY where it is set).
    `progress` is called about once a second, in the caller's thread.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Tokenizer,
        *,
        api: Api = "completions",
        concurrency: int = 64,
        key_variable: str | None = None,
        extensions: bool = True,
        logprobs: bool = False,
        patience: Patience = Patience(),
        progress: Callable[[RemoteStats], None] | None = None,
    ):
        if api not in APIS:
            raise RrmError(f"the server's API must be one of {', '.join(APIS)}, not {api!r}")
        if concurrency < 1:
            raise RrmError(f"concurrency must be ≥ 1, not {concurrency}")
        if not model:
            raise RrmError("the name of the model at the server must be given")
        if logprobs and api == "chat":
            raise RrmError("log-probabilities are only taken from the completions API: chat answers leave tokens out")
        self.url, self.model, self.api = base_url(url), model, api
        self._tokenizer, self._concurrency, self._key = tokenizer, concurrency, _api_key(key_variable)
        self._extensions, self._logprobs, self._patience, self._progress = extensions, logprobs, patience, progress
        self._end_id = tokenizer.control_id(END_THINK)

    def check(self, decoding: Decoding) -> None:
        """RrmError for a way to decode that this server cannot be asked for."""
        if not self._extensions and (decoding.top_k or decoding.min_p):
            raise RrmError("top-k and min-p are extensions of the API, which are switched off for this server")
        if (thinking := decoding.thinking) is None:
            return
        if thinking.choices:
            raise RrmError(
                "a constrained verdict needs the model's own probabilities of both verdicts, which servers do not "
                "give; leave it out, or run the model here"
            )
        if thinking.budget is not None and self.api == "chat":
            raise RrmError(
                "a thinking budget cannot be kept on the chat API: thinking that was cut cannot be gone on with; use "
                "the completions API, or bound the new tokens alone"
            )

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields one Completion per request, as they finish.

        Raises RrmError at once when the server refuses a request, and when it stays away longer than `patience`; what
        had been finished until then is yielded first. A completion that the server ended for a reason of its own
        (such as "content_filter") is left out, and an RrmError that names it is raised after all the others.
        """
        if isinstance(requests, Sequence):
            for request in requests:
                self._check(request)
        stats, started, unfinished = RemoteStats(), time.monotonic(), []

        def retried(why: str) -> None:
            stats.retries, stats.trouble = stats.retries + 1, why

        def report(still_open: int) -> None:
            stats.open, stats.seconds = still_open, time.monotonic() - started
            if self._progress is not None:
                self._progress(stats)

        waiting: Iterator[Request] | None = iter(requests)
        error: RrmError | None = None
        with _Calls(lambda: Endpoint(self.url, self._key, self._concurrency, self._patience, retried)) as calls:
            while True:
                while waiting is not None and calls.open < self._concurrency:
                    if (request := next(waiting, None)) is None:
                        waiting = None
                        break
                    try:
                        self._check(request)
                    except RrmError as refused:
                        waiting, error = None, refused
                        break
                    calls.start(request, self._complete(calls.endpoint, request))
                if not calls.open or (error is not None and calls.idle):
                    break
                if (ended := calls.next_ended(timeout=1.0)) is None:
                    report(calls.open)
                    continue
                request, call = ended
                try:
                    completion = call.result()
                except RrmError as refused:
                    waiting, error = None, error or refused
                    continue
                except _Unfinished as reason:
                    unfinished.append(f"{request.id!r} (sample {request.sample}): {reason}")
                    continue
                stats.completions += 1
                stats.tokens += len(completion.token_ids)
                report(calls.open)
                yield completion
        if error is not None:
            raise error
        if unfinished:
            raise RrmError(
                f"{self.url} did not finish {len(unfinished)} completion(s); every other one was received. "
                + "; ".join(unfinished[:5])
            )

    def _check(self, request: Request) -> None:
        self.check(request.decoding)
        if self.api == "chat" and not request.messages:
            raise RrmError(f"request {request.id!r} has no messages, which the chat API needs; use the completions API")
        if self.api == "completions" and not request.prompt_ids:
            raise RrmError(f"request {request.id!r} has an empty prompt; give at least one token")

    async def _complete(self, endpoint: Endpoint, request: Request) -> Completion:
        decoding = request.decoding
        thinking = decoding.thinking
        if thinking is None or thinking.budget is None:
            return _completion(request, await self._call(endpoint, request, decoding, decoding.max_new_tokens))
        first = await self._call(endpoint, request, decoding, thinking.budget)
        if first.finish == "stop":
            return _completion(request, first)
        left = decoding.max_new_tokens - len(first.ids)
        if thinking.end_id in first.ids:  # only its answer was cut
            rest = await self._call(endpoint, request, decoding, max(1, left), first.ids)
            return _completion(request, self._joined(first, rest))
        closing = _Piece(thinking.closing, None, "length")
        greedy = dataclasses.replace(decoding, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
        most = max(1, min(thinking.answer_tokens, left - len(closing.ids)))
        answer = await self._call(endpoint, request, greedy, most, first.ids + closing.ids)
        return _completion(request, self._joined(self._joined(first, closing), answer), len(first.ids))

    async def _call(
        self, endpoint: Endpoint, request: Request, decoding: Decoding, most: int, written: tuple[int, ...] = ()
    ) -> _Piece:
        """Draws at most `most` tokens after the prompt and what is `written` already."""
        address = json.dumps([request.seed, request.id, request.sample, len(written) > 0])
        seed = int.from_bytes(hashlib.sha256(address.encode()).digest()[:4], "big") >> 1  # 31 bits: any server's int
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": most,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": seed,
            "stream": False,
        }
        body |= {name: value for name in ("top_k", "min_p") if (value := getattr(decoding, name))}
        if self.api == "chat":
            body["messages"] = [{"role": role, "content": text} for role, text in request.messages]
            return await endpoint.post("/chat/completions", body, self._read_chat, address)
        body["prompt"] = [*request.prompt_ids, *written]
        if self._logprobs:
            body["logprobs"] = 1
        if self._extensions:
            body |= {"return_token_ids": True, "skip_special_tokens": False, "stop_token_ids": list(decoding.stop_ids)}
        return await endpoint.post("/completions", body, lambda answer: self._read(answer, most), address)

    def _read(self, answer: Any, most: int) -> _Piece:
        choice, finish = _choice(answer)
        text, ids = choice.get("text"), choice.get("token_ids")
        if ids is None:
            if not isinstance(text, str):
                raise Outage("an answer without text")
            return _Piece(self._encode(text), text, finish)
        if not isinstance(ids, list) or any(type(token) is not int or token < 0 for token in ids) or len(ids) > most:
            raise Outage(f"an answer whose token_ids are not at most {most} ids")
        logprobs = choice["logprobs"].get("token_logprobs") if isinstance(choice.get("logprobs"), dict) else None
        if not isinstance(logprobs, list) or len(logprobs) != len(ids):
            logprobs = []
        if any(type(value) not in (int, float) for value in logprobs):
            raise Outage("an answer whose token_logprobs are not numbers")
        return _Piece(tuple(ids), None, finish, tuple(map(float, logprobs)))

    def _read_chat(self, answer: Any) -> _Piece:
        choice, finish = _choice(answer)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise Outage("an answer without a message")
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        content = message.get("content") or message.get("refusal") or ""
        if not isinstance(reasoning, str) or not isinstance(content, str):
            raise Outage("an answer whose content is not text")
        text = content
        if reasoning:  # where it quotes a response's </think>, what it goes on to quote must not become the answer
            text = reasoning.replace(END_THINK, _QUOTED_END) + (END_THINK + content if content else "")
        return _Piece(self._encode(text), text, finish)

    def _encode(self, text: str) -> tuple[int, ...]:
        """Ids of a model's words: the first `</think>` is the control token, all other spellings are text."""
        thinking, end, answer = text.partition(END_THINK)
        try:
            if not end or self._end_id is None:
                return tuple(self._tokenizer.encode_text(text))
            return (*self._tokenizer.encode_text(thinking), self._end_id, *self._tokenizer.encode_text(answer))
        except RrmError as error:  # JSON can spell lone surrogates
            raise Outage(f"an answer with unusable text: {error}") from None

    def _joined(self, one: _Piece, two: _Piece) -> _Piece:
        text = None
        if one.text is not None or two.text is not None:
            text = "".join(self._tokenizer.decode(p.ids) if p.text is None else p.text for p in (one, two))
        logprobs = one.logprobs + two.logprobs
        ids = one.ids + two.ids
        return _Piece(ids, text, two.finish, logprobs if len(logprobs) == len(ids) else ())


def _completion(request: Request, piece: _Piece, forced_from: int | None = None) -> Completion:
    finish = cast(FinishReason, piece.finish)
    return Completion(request, piece.ids, (), finish, piece.logprobs, forced_from, text=piece.text)


def _choice(answer: Any) -> tuple[dict[str, Any], FinishReason]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Outage("an answer that does not hold one choice")
    finish = choices[0].get("finish_reason")
    if finish in ("stop", "length"):
        return choices[0], finish
    if not isinstance(finish, str) or finish in ("abort", "error"):  # the server gave up in the middle
        raise Outage(f"an answer that was not finished (finish_reason {str(finish)[:40]!r})")
    raise _Unfinished(f"finish_reason {finish[:40]!r}")


def _api_key(variable: str | None) -> str | None:
    key = os.environ.get(KEY_VARIABLE if variable is None else variable, "").strip()
    if not key and variable is not None:
        raise RrmError(f"the environment variable {variable} holds no API key")
    if not key.isascii() or not key.isprintable():
        raise RrmError(f"the API key in {variable or KEY_VARIABLE} holds characters that cannot be sent")
    return key or None


class _Calls:
    """Calls under way in an event loop with a thread of its own, so that the caller may have a loop already (as
    notebooks do) and answers are received while it is busy. Leaving it cancels what is still under way."""

    def __init__(self, open_endpoint: Callable[[], Endpoint]):
        self._open_endpoint, self.open = open_endpoint, 0
        self._ended: queue.SimpleQueue[tuple[Request, Future[Completion]]] = queue.SimpleQueue()

    def __enter__(self) -> "_Calls":
        self.endpoint = self._open_endpoint()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote generator", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.endpoint.close()

    def start(self, request: Request, call: Coroutine[Any, Any, Completion]) -> None:
        self.open += 1
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        future.add_done_callback(lambda done: self._ended.put((request, done)))

    @property
    def idle(self) -> bool:
        """Whether no ended call waits to be taken."""
        return self._ended.empty()

    def next_ended(self, timeout: float) -> tuple[Request, Future[Completion]] | None:
        with contextlib.suppress(queue.Empty):
            ended = self._ended.get(timeout=timeout)
            self.open -= 1
            return ended
        return None
