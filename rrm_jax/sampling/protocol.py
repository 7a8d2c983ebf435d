"""What a generator takes and gives: the interface that judges, trainers and servers are written against."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Thinking:
    """How a completion that thinks first is brought to its answer (docs/method.md).

    `end_id` is the token that ends thinking; None: the prompt has ended it already. `budget`: when so many tokens have
    been drawn without `end_id`, `closing` (which holds `end_id`) is put in, and an answer of at most `answer_tokens`
    is drawn greedily. `choices`: none, or the two token sequences of which one must follow the end of thinking, its
    stop token included; where they part, the more probable one is taken.
    """

    end_id: int | None
    budget: int | None = None
    closing: tuple[int, ...] = ()
    answer_tokens: int = 100
    choices: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self):
        if self.budget is not None:
            if self.budget < 1:
                raise ValueError(f"a thinking budget must be ≥ 1 token, not {self.budget}")
            if self.end_id is None or self.end_id not in self.closing:
                raise ValueError("a thinking budget needs an end_id, and a closing that holds it")
        if self.answer_tokens < 1:
            raise ValueError(f"answer_tokens must be ≥ 1, not {self.answer_tokens}")
        if self.choices:
            if len(self.choices) != 2:
                raise ValueError(f"choices must be none or two token sequences, not {len(self.choices)}")
            one, two = self.choices
            if one[: len(two)] == two or two[: len(one)] == one:
                raise ValueError("neither of the choices may be the beginning of the other")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How to draw tokens.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 keep every token. Order: temperature, top-k, top-p
    over what top-k left, then min-p (at least `min_p` × the most probable token's probability), as transformers does.
    `stop_ids` end a sequence and are kept as its last token; `max_new_tokens` bounds all of it, with whatever
    `thinking` puts in. The defaults are the released code's (docs/method.md).
    """

    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 8192
    stop_ids: tuple[int, ...] = ()
    min_p: float = 0.0
    thinking: Thinking | None = None

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature must be ≥ 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], not {self.min_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be ≥ 0 (0: off), not {self.top_k}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be ≥ 1, not {self.max_new_tokens}")
        if self.thinking is not None and self.thinking.budget is not None:
            put_in = len(self.thinking.closing) + max((len(choice) for choice in self.thinking.choices), default=1)
            if self.thinking.budget + put_in > self.max_new_tokens:
                raise ValueError(
                    f"a thinking budget of {self.thinking.budget} tokens and at least {put_in} to close it and answer "
                    f"exceed max_new_tokens ({self.max_new_tokens}); raise it, or lower the budget"
                )


@dataclasses.dataclass(frozen=True)
class Request:
    """One sample to draw. (`seed`, `id`, `sample`) address its randomness: whatever it is batched with, and
    whenever it is drawn, the same request on the same weights gives the same tokens.

    `messages`, (role, text) pairs, say the same as `prompt_ids` to generators that take no token ids.
    """

    id: str
    prompt_ids: tuple[int, ...]
    decoding: Decoding
    sample: int = 0
    seed: int = 0
    messages: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """`token_ids` includes the stop token that ended it, if any. `logprobs[t]` (natural log) is of the distribution
    token t was really drawn from: tempered, truncated, renormalised; 0 for greedy and for put-in tokens.
    `model_logprobs[t]` is of the model's own distribution, at temperature 1 and whole.

    `forced_from` is the index of the first token that `Decoding.thinking` put in or made greedy (None: none; every
    later one is too), `choice_probabilities` the model's own probabilities of the two choices where they part, summing
    to 1. `text` is set by generators that give text rather than exact token ids. Generators that cannot tell a
    log-probability leave that tuple empty.
    """

    request: Request
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    model_logprobs: tuple[float, ...] = ()
    forced_from: int | None = None
    choice_probabilities: tuple[float, float] | None = None
    text: str | None = None


class Generator(Protocol):
    """Whatever writes completions: the sampler, a server, or a fake in tests."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields one Completion per request, in whatever order they finish."""
        ...
