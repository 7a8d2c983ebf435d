"""A generator that answers from the prompt's text, without a model; it can be made to die after n completions."""

import hashlib
from collections.abc import Callable, Iterable, Iterator

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.sampling.protocol import Completion, Request


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


class FakeGenerator:
    """`answer(prompt text, request)` gives the completion's text, in which control tokens are parsed; the end token
    is added unless the text ends with "…" (cut off). Completions come in windows of `window` requests, in an order
    that depends on the requests, as from a sampler whose rows finish at different times."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        answer: Callable[[str, Request], str],
        window: int = 4,
        dies_after: int | None = None,
    ):
        self.tokenizer, self.answer, self.window, self.dies_after = tokenizer, answer, window, dies_after
        self.requests: list[Request] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        open_requests: list[Request] = []
        for request in requests:
            self.requests.append(request)
            open_requests.append(request)
            if len(open_requests) == self.window:
                yield self._finish(open_requests)
        while open_requests:
            yield self._finish(open_requests)

    def _finish(self, open_requests: list[Request]) -> Completion:
        if self.dies_after is not None:
            if self.dies_after == 0:
                raise Killed
            self.dies_after -= 1
        open_requests.sort(key=lambda r: hashlib.sha256(f"{r.id} {r.sample}".encode()).digest())
        return self.complete(open_requests.pop())

    def complete(self, request: Request) -> Completion:
        text = self.answer(self.tokenizer.decode(request.prompt_ids), request)
        ids = self.tokenizer.encode_control(text.removesuffix("…"))
        if text.endswith("…"):
            return Completion(request, tuple(ids), (0.0,) * len(ids), "length")
        ids.append(self.tokenizer.eos_id)
        return Completion(request, tuple(ids), (0.0,) * len(ids), "stop")


def coin(prompt: str, request: Request) -> str:
    """A verdict that belongs to (id, sample, seed), as a sampler's does; one in eight is invalid."""
    drawn = hashlib.sha256(f"{request.id} {request.sample} {request.seed}".encode()).digest()[0]
    if drawn < 32:
        return "hm…"
    return f"hm</think>\\boxed{{Assistant {1 + drawn % 2}}}"


def prefers(marker: str) -> Callable[[str, Request], str]:
    """Names the response that holds `marker`, wherever it is shown; invalid when it is in neither."""

    def answer(prompt: str, request: Request) -> str:
        first, second = prompt.split("### Assistant 1")[1].split("### Assistant 2")
        shown = 1 if marker in first else 2 if marker in second.split("## Analysis")[0] else 3
        return f"so</think>\n\n\\boxed{{Assistant {shown}}}"

    return answer
