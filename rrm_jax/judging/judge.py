"""Pairs in, judgments out: votes, presentation order, and what each vote is addressed by."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.records import Pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.forcing import forcing, ran_out
from rrm_jax.judging.prompt import Fitted, fit
from rrm_jax.judging.store import Asked, VoteLog, VoteRecord, digest
from rrm_jax.judging.template import Template
from rrm_jax.judging.verdict import Verdict, verdict_of_completion, written_text
from rrm_jax.sampling.protocol import Completion, Decoding, FinishReason, Generator, Request

Shown = Literal["12", "21"]
OrderPolicy = Literal["random", "given", "both"]
ORDER_POLICIES: tuple[OrderPolicy, ...] = ("random", "given", "both")


@dataclasses.dataclass(frozen=True)
class Vote:
    """`order` "21" showed the pair's second response as Assistant 1. `verdict` names the better response in the
    pair's own order, None when the completion has no valid verdict; `probability` is the model's that the pair's
    `response_1` is the better one, None where it is not known. Other fields: see `VoteRecord`."""

    order: Shown
    verdict: Verdict | None
    text: str
    tokens: int
    finish_reason: FinishReason
    truncated_input: bool
    forced: bool = False
    probability: float | None = None


@dataclasses.dataclass(frozen=True)
class Judgment:
    """A pair's votes. `winner` is what most valid votes name; None: as many for each, or no valid one.

    `soft_vote` is the mean probability that `response_1` is the better one, over the votes that have one; None where
    none has. It does not decide the winner.
    """

    pair: Pair
    votes: tuple[Vote, ...]

    @property
    def winner(self) -> Verdict | None:
        """1 or 2; None without a majority."""
        ones, twos = (sum(vote.verdict == response for vote in self.votes) for response in (1, 2))
        return None if ones == twos else 1 if ones > twos else 2

    @property
    def soft_vote(self) -> float | None:
        """From 0 to 1; None where no vote has a probability."""
        known = [vote.probability for vote in self.votes if vote.probability is not None]
        return sum(known) / len(known) if known else None

    @property
    def tokens(self) -> int:
        """Written for all votes together."""
        return sum(vote.tokens for vote in self.votes)

    def to_row(self) -> dict[str, Any]:
        """`{id, winner, probability, votes: [{order, verdict, text, tokens, finish_reason, truncated_input, forced,
        probability}], content}`, and for a labelled pair `label` and `correct` (null without a winner). A row's
        `probability` is the `soft_vote`; `content` is a digest of what was judged."""
        row: dict[str, Any] = {"id": self.pair.id, "winner": self.winner, "probability": self.soft_vote}
        if self.pair.label is not None:
            row["label"] = self.pair.label
            row["correct"] = None if self.winner is None else self.winner == self.pair.label
        return row | {"votes": [dataclasses.asdict(vote) for vote in self.votes], "content": content_digest(self.pair)}


def content_digest(pair: Pair) -> str:
    """Of the texts, in this order of the responses; the id and the label count for nothing."""
    return digest([pair.query, pair.response_1, pair.response_2])


def random_order(seed: int, item_id: str, vote: int) -> Shown:
    """The order in which a vote shows its pair: a fair coin that belongs to (seed, item id, vote)."""
    return "21" if int(digest([seed, item_id, vote])[:2], 16) & 1 else "12"


def _settings(decoding: Decoding) -> dict[str, Any]:
    """What was added later appears only where it is used, so that logs of earlier versions are gone on with."""
    settings: dict[str, Any] = {**dataclasses.asdict(decoding)}
    rules, min_p = settings.pop("thinking"), settings.pop("min_p")
    return settings | ({"min_p": min_p} if min_p else {}) | ({"forcing": rules} if rules else {})


class JudgesPairs(Protocol):
    """What a `Judge` does, for those that only need this."""

    def judge(
        self, pairs: Iterable[Pair], log: VoteLog | None = None, *, meeting: Callable[[Pair], int] = lambda pair: 0
    ) -> Iterator[Judgment]:
        """As `Judge.judge`."""
        ...


class Judge:
    """Judges pairs with `votes` samples each, streaming: pairs are read as the generator asks for requests.

    `order` "random" draws each vote's order by `random_order`, "given" shows the pair as it stands, "both" asks
    every vote in both orders (2 × votes completions). `thinking=False` is DirectJudge: the prompt closes the
    thinking and the verdict comes at once. What responses hold up to their last `</think>` is not shown, unless
    `keep_thinking`. `model` identifies the weights (`LoadedModel.fingerprint`).

    `thinking_budget`: after so many tokens without an end of thinking, thinking is closed and the verdict asked for
    greedily. `constrain_verdict`: after thinking only the two verdicts are possible, and each vote has the model's
    probability. See `forcing`; `decoding.max_new_tokens` must have room for all that.

    `arguments` are what it was made with, its generator apart.

    A vote's randomness and its key in a vote log depend on the texts shown, not on where the pair came from: equal
    questions get equal answers, in one job or in another.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        template: Template,
        decoding: Decoding = Decoding(),
        *,
        seed: int = 0,
        votes: int = 1,
        order: OrderPolicy = "random",
        thinking: bool = True,
        max_prompt_tokens: int = 4096,
        keep_thinking: bool = False,
        thinking_budget: int | None = None,
        constrain_verdict: bool = False,
        model: str = "",
    ):
        if votes < 1:
            raise ValueError(f"votes must be ≥ 1, not {votes}")
        if order not in ORDER_POLICIES:
            raise ValueError(f"order must be one of {', '.join(ORDER_POLICIES)}, not {order!r}")
        self.arguments: dict[str, Any] = {
            "tokenizer": tokenizer, "template": template, "decoding": dataclasses.replace(decoding, thinking=None),
            "seed": seed, "votes": votes, "order": order, "thinking": thinking, "max_prompt_tokens": max_prompt_tokens,
            "keep_thinking": keep_thinking, "thinking_budget": thinking_budget,
            "constrain_verdict": constrain_verdict, "model": model,
        }  # fmt: skip
        if not decoding.stop_ids:
            decoding = dataclasses.replace(decoding, stop_ids=tokenizer.stop_ids)
        rules = forcing(
            template,
            tokenizer,
            thinking=thinking,
            budget=thinking_budget,
            constrain=constrain_verdict,
            stop_id=decoding.stop_ids[0],
        )
        if rules is not None:
            decoding = dataclasses.replace(decoding, thinking=rules)
        self._generator, self._tokenizer, self._template, self._decoding = generator, tokenizer, template, decoding
        self._seed, self._votes, self._order = seed, votes, order
        self._thinking, self._max_prompt_tokens, self._keep_thinking = thinking, max_prompt_tokens, keep_thinking
        # What a single vote depends on beside the texts shown and its number.
        self._vote_settings: dict[str, Any] = {
            "model": model,
            "tokenizer": tokenizer.fingerprint,
            "template": template.sha256,
            "prefix": template.prefix(thinking),
            "thinking": thinking,
            **_settings(decoding),
            "seed": seed,
            "max_prompt_tokens": max_prompt_tokens,
            "keep_thinking": keep_thinking,
        }
        self._vote_digest = digest(self._vote_settings)

    @property
    def settings(self) -> dict[str, Any]:
        """All that a job's judgments depend on beside its pairs. Its votes' settings are these but `votes`, `order`."""
        return {**self._vote_settings, "votes": self._votes, "order": self._order}

    def judge(
        self, pairs: Iterable[Pair], log: VoteLog | None = None, *, meeting: Callable[[Pair], int] = lambda pair: 0
    ) -> Iterator[Judgment]:
        """One Judgment per pair, as they are completed. Votes found in `log` are not drawn again, whoever put them
        there; new ones are written to it before anything else happens with them. A pair's votes are numbered from
        `meeting` × votes: who meets again, counted from 0, gets new ones.

        What the generator raises passes through, and a completion that it never gives is a RuntimeError: an
        infrastructure failure is never scored.
        """
        waiting: _Waiting = {}
        ready: collections.deque[_Pending] = collections.deque()
        if log is not None:
            log.declare(self._vote_settings)
        for completion in self._generator.generate(self._requests(pairs, log, meeting, waiting, ready)):
            asked, places = waiting.pop((completion.request.id, completion.request.sample))
            record = self._record(completion, places[0][0].truncated)
            if log is not None:
                record = log.put(asked, record)
            for pending, at in places:
                pending.put(at, record, ready)
            while ready:
                yield ready.popleft().judgment()
        while ready:
            yield ready.popleft().judgment()
        if waiting:
            raise RuntimeError(f"the generator ended without {len(waiting)} of the completions it was asked for")

    def _requests(
        self,
        pairs: Iterable[Pair],
        log: VoteLog | None,
        meeting: Callable[[Pair], int],
        waiting: "_Waiting",
        ready: "collections.deque[_Pending]",
    ) -> Iterator[Request]:
        """What `log` lacks. A vote that is already being drawn for another pair is waited for, not drawn twice."""
        for pair in pairs:
            pending = _Pending(pair, self._plan(pair, meeting(pair)))
            responses = [pair.response_1, pair.response_2]
            if not self._keep_thinking:
                responses = [strip_thinking(response) for response in responses]
            fitted: Fitted | None = None
            for at, (order, vote) in enumerate(pending.plan):
                asked = self._asked(pair.query, responses if order == "12" else responses[::-1], vote)
                if log is not None and (record := log.get(asked.key)) is not None:
                    pending.put(at, record, ready)
                    continue
                if (asked.texts, vote) in waiting:
                    waiting[asked.texts, vote][1].append((pending, at))
                    continue
                if fitted is None:
                    texts = (pair.query, *responses)
                    fitted = fit(self._template, self._tokenizer, texts, self._max_prompt_tokens, self._thinking)
                    pending.truncated = fitted.truncated
                waiting[asked.texts, vote] = asked, [(pending, at)]
                ids = fitted.ids if order == "12" else fitted.turned_ids
                messages = fitted.messages(self._template, turned=order == "21")
                yield Request(asked.texts, tuple(ids), self._decoding, vote, self._seed, messages)

    def _plan(self, pair: Pair, meeting: int) -> list[tuple[Shown, int]]:
        votes = range(meeting * self._votes, (meeting + 1) * self._votes)
        if self._order == "both":
            return [(order, vote) for vote in votes for order in ("12", "21")]
        if self._order == "given":
            return [("12", vote) for vote in votes]
        return [(random_order(self._seed, pair.id, vote), vote) for vote in votes]

    def _asked(self, query: str, shown: list[str], vote: int) -> Asked:
        first, second = map(digest, shown)
        return Asked(self._vote_digest, digest([query, *shown]), vote, digest(query), (first, second))

    def _record(self, completion: Completion, truncated: bool) -> VoteRecord:
        return VoteRecord(
            verdict=verdict_of_completion(completion, self._tokenizer, self._thinking),
            text=written_text(completion, self._tokenizer),
            tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            truncated_input=truncated,
            forced=ran_out(completion),
            probability=None if completion.choice_probabilities is None else completion.choice_probabilities[0],
        )


# What is being drawn, by (digest of the texts, vote): what it is, and the votes of pairs that wait for it.
type _Waiting = dict[tuple[str, int], tuple[Asked, list[tuple[_Pending, int]]]]


class _Pending:
    """A pair some of whose votes are still to come."""

    def __init__(self, pair: Pair, plan: list[tuple[Shown, int]]):
        self.pair, self.plan, self.truncated = pair, plan, False
        self._records: dict[int, VoteRecord] = {}

    def put(self, at: int, record: VoteRecord, ready: "collections.deque[_Pending]") -> None:
        self._records[at] = record
        if len(self._records) == len(self.plan):
            ready.append(self)

    def judgment(self) -> Judgment:
        return Judgment(self.pair, tuple(self._vote(at, order) for at, (order, _) in enumerate(self.plan)))

    def _vote(self, at: int, order: Shown) -> Vote:
        record = self._records[at]
        fields = dataclasses.asdict(record)
        if order == "21":  # the verdict and its probability are of the order shown
            if record.verdict is not None:
                fields["verdict"] = 2 if record.verdict == 1 else 1
            if record.probability is not None:
                fields["probability"] = 1 - record.probability
        return Vote(order, **fields)
