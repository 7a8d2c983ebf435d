"""Rewards for rollouts that come one a request: trainers such as OpenRLHF send each when it is written."""

import asyncio
import collections
import dataclasses
import re
from collections.abc import Awaitable, Callable, Sequence

from rrm_jax.errors import RrmError
from rrm_jax.serving.schemas import MOST_RESPONSES, Group, RemoteRewardRequest

Rewarded = tuple[float, float, float]
"""A rollout's reward, its rating, and the share of its group's comparisons that had no winner."""

_TURNS = re.compile(
    r"<\|im_start\|>user\n(?P<chatml>.*?)(?:<\|im_end\|>|$)|<[|｜]User[|｜]>(?P<r1>.*?)(?:<[|｜]Assistant[|｜]>|$)",
    re.S,
)
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|end▁of▁sentence|>", "<｜end▁of▁sentence｜>", "<|end|>", "<|eot_id|>")


def question_of(prompt: str) -> str:
    """What a judge is shown of a trainer's prompt: the last user's turn in ChatML or R1's markup, else all of it."""
    turns = list(_TURNS.finditer(prompt))
    return next(filter(None, turns[-1].groupdict().values()), "").strip() if turns else prompt


def response_of(text: str, prompt: str) -> str:
    """What was written after the prompt, without the tokens that ended it. A tokenizer may not give the prompt back to
    the letter: then it is looked for, and where it is not found the whole text is the response."""
    at = text.find(prompt)
    start, end = 0 if at < 0 else at + len(prompt), len(text)
    while end > start:  # from the end, a step each: a rollout may be a million blanks
        mark = next((mark for mark in _ENDS if text.endswith(mark, start, end)), None)
        if mark is None and not text[end - 1].isspace():
            break
        end -= 1 if mark is None else len(mark)
    return text[start:end]


@dataclasses.dataclass
class _Pending:
    members: list[tuple[str, asyncio.Future[Rewarded]]] = dataclasses.field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class Gathering:
    """Groups of `size` rollouts of one prompt, of as many requests as bring them; a group that is not whole after
    `seconds` is rewarded as it is. Size 0: the rollouts of one request are a group. `play` gives each group's rewards.
    """

    def __init__(self, size: int, seconds: float, play: Callable[[list[Group]], Awaitable[list[dict]]]):
        self._size, self._seconds, self._play = size, seconds, play
        self._pending: dict[tuple[str, bool], _Pending] = collections.defaultdict(_Pending)
        self._playing: set[asyncio.Task] = set()

    async def rewards(self, body: RemoteRewardRequest) -> list[Rewarded]:
        """For each rollout of the request, in its order. Waits for those of other requests that belong to the same
        groups."""
        pairs = list(zip(body.prompts, body.query, strict=True))
        responses = [response_of(text, prompt) for prompt, text in pairs]
        if not self._size:
            return await self._together(body.prompts, responses, body.thinks)
        futures = []
        try:
            for prompt, response in zip(body.prompts, responses, strict=True):
                futures.append(self._join(prompt, body.thinks, response))
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()

    async def _together(self, prompts: Sequence[str], responses: Sequence[str], thinks: bool) -> list[Rewarded]:
        places: dict[str, list[int]] = collections.defaultdict(list)
        for at, prompt in enumerate(prompts):
            places[prompt].append(at)
        if (most := max(map(len, places.values()))) > MOST_RESPONSES:
            raise RrmError(f"{most} rollouts of one prompt; a group has {MOST_RESPONSES} at most")
        groups = [_group(prompt, [responses[at] for at in members], thinks) for prompt, members in places.items()]
        found: dict[int, Rewarded] = {}
        for members, answer in zip(places.values(), await self._play(groups), strict=True):
            found |= dict(zip(members, _each(answer), strict=True))
        return [found[at] for at in range(len(prompts))]

    def _join(self, prompt: str, thinks: bool, response: str) -> asyncio.Future[Rewarded]:
        key, loop = (prompt, thinks), asyncio.get_running_loop()
        pending, future = self._pending[key], loop.create_future()
        pending.members.append((response, future))
        if pending.timer is None:
            pending.timer = loop.call_later(self._seconds, self._begin, key)
        if sum(not future.cancelled() for _, future in pending.members) >= self._size:
            self._begin(key)
        return future

    def _begin(self, key: tuple[str, bool]) -> None:
        pending = self._pending.pop(key)
        assert pending.timer is not None
        pending.timer.cancel()
        members = [(response, future) for response, future in pending.members if not future.cancelled()]
        if members:
            task = asyncio.ensure_future(self._reward(key, members))
            self._playing.add(task)
            task.add_done_callback(self._playing.discard)

    async def _reward(self, key: tuple[str, bool], members: list[tuple[str, asyncio.Future[Rewarded]]]) -> None:
        try:
            (answer,) = await self._play([_group(key[0], [response for response, _ in members], key[1])])
        except BaseException as error:
            for _, future in members:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), rewarded in zip(members, _each(answer), strict=True):
            if not future.done():
                future.set_result(rewarded)


def _group(prompt: str, responses: list[str], thinks: bool) -> Group:
    return Group(query=question_of(prompt), responses=responses, thinks=thinks)


def _each(answer: dict) -> list[Rewarded]:
    invalid = answer["invalid"] / max(1, answer["comparisons"])
    return [(reward, rating, invalid) for reward, rating in zip(answer["rewards"], answer["ratings"], strict=True)]
