"""What a generator takes and gives: the interface that judges, trainers and servers are written against."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How to draw tokens.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every token. Order: temperature, then top-k, then
    top-p over what top-k left, as transformers does. `stop_ids` end a sequence and are kept as its last token.
    The defaults are the released code's (docs/method.md).
    """

    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 8192
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature must be ≥ 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be ≥ 0 (0: off), not {self.top_k}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be ≥ 1, not {self.max_new_tokens}")


@dataclasses.dataclass(frozen=True)
class Request:
    """One sample to draw. (`seed`, `id`, `sample`) address its randomness: whatever it is batched with, and
    whenever it is drawn, the same request on the same weights gives the same tokens."""

    id: str
    prompt_ids: tuple[int, ...]
    decoding: Decoding
    sample: int = 0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Completion:
    """`token_ids` includes the stop token that ended it, if any. `logprobs[t]` (natural log) is of the distribution
    token t was really drawn from: tempered, truncated, renormalised; 0 for greedy."""

    request: Request
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class Generator(Protocol):
    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields one Completion per request, in whatever order they finish."""
        ...
