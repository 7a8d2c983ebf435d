"""A client of `rrm serve` for training loops, with nothing but Python: rewards for TRL and verl in a line each."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_BUSY = (429, 503)
_MOST_GROUPS, _MOST_CHARACTERS = 256, 1 << 20  # of one request; JSON's escapes may make 6 bytes of a character


class ServerError(RuntimeError):
    """The server refused, failed or stayed away; the message is its own, after the status."""


class Client:
    """`tries`: how often a server that is busy, or cannot be reached, is asked, with longer and longer pauses."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 600.0, tries: int = 8):
        self.url, self._timeout, self._tries = url.rstrip("/"), timeout, tries
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def judge(self, query: str, response_1: str, response_2: str, **how: Any) -> dict[str, Any]:
        """The verdict on a pair: a row of `rrm judge`. `how`: votes, order, seed, thinking_budget, id."""
        return self.post("/judge", {"query": query, "response_1": response_1, "response_2": response_2} | how)

    def rank(self, query: str, responses: Sequence[str], **how: Any) -> dict[str, Any]:
        """The responses ranked: a row of `rrm rank`. `how`: strategy, budget, stop, rating, votes, seed, answers, …"""
        return self.post("/rank", {"query": query, "responses": list(responses)} | how)

    def compare(self, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rewards of groups, {query, responses} each, with opponents, votes, seed and thinks where they are wanted.

        Any number of groups, in as many requests as the server's limits ask for.
        """
        return [answer for some in _requests(groups) for answer in self.post("/compare", some)]

    def chat(self, messages: Sequence[dict[str, str]], model: str, **how: Any) -> dict[str, Any]:
        """The server's answer, JSON; `how` are further fields of the request, such as `temperature`."""
        return self.post("/v1/chat/completions", {"model": model, "messages": list(messages)} | how)

    def rewards(self, queries: Sequence[str], responses: Sequence[str], **how: Any) -> list[float]:
        """A reward for each response, by a tournament among those whose queries are equal, wherever they stand."""
        places: dict[str, list[int]] = {}
        for at, query in enumerate(queries):
            places.setdefault(query, []).append(at)
        groups = [{"query": q, "responses": [responses[at] for at in group]} | how for q, group in places.items()]
        found: dict[int, float] = {}
        for group, answer in zip(places.values(), self.compare(groups), strict=True):
            found |= dict(zip(group, answer["rewards"], strict=True))
        return [found[at] for at in range(len(responses))]

    def post(self, route: str, body: Any) -> Any:
        """The answer's JSON. Raises ServerError."""
        data = json.dumps(body).encode()
        for left in reversed(range(self._tries)):
            request = urllib.request.Request(self.url + route, data, self._headers)
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                said = f"{error.code} from {self.url}{route}: {_message(error)}"
                if error.code not in _BUSY or not left:
                    raise ServerError(said) from None
            except OSError as error:
                if not left:
                    raise ServerError(f"no answer from {self.url}{route}: {error}") from None
            time.sleep(min(30.0, 0.5 * 2 ** (self._tries - 1 - left)))
        raise AssertionError("tries must be 1 at least")


def _requests(groups: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    some: list[dict[str, Any]] = []
    size = 0
    for group in groups:
        more = len(group["query"]) + sum(map(len, group["responses"]))
        if some and (len(some) == _MOST_GROUPS or size + more > _MOST_CHARACTERS):
            yield some
            some, size = [], 0
        some.append(group)
        size += more
    if some:
        yield some


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return error.reason


def trl_reward(url: str, token: str | None = None, **how: Any) -> Callable[..., list[float]]:
    """A reward function for TRL's GRPOTrainer: the completions of one prompt play a tournament.

    `how`: opponents, votes, seed, thinks (False for a policy that answers without thinking first).
    """
    client = Client(url, token)

    def rrm_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return client.rewards([_text(p) for p in prompts], [_text(c) for c in completions], **how)

    return rrm_reward


def verl_compute_score(
    url: str, token: str | None = None, question: str = "question", **how: Any
) -> Callable[..., list[dict[str, float]]]:
    """A batch's scores for verl's BatchRewardManager (`reward_manager.name=batch`); `question` is the key of extra_info
    with the prompt's text."""
    client = Client(url, token)

    def compute_score(
        data_sources: Sequence[Any], solution_strs: Sequence[str], ground_truths: Sequence[Any],
        extra_infos: Sequence[dict[str, Any]], **kwargs: Any,
    ) -> list[dict[str, float]]:  # fmt: skip
        queries = [info[question] for info in extra_infos]
        return [{"score": reward} for reward in client.rewards(queries, list(solution_strs), **how)]

    return compute_score


def _text(value: Any) -> str:
    """A prompt or completion as text; of messages the last one's, which is what was asked or answered."""
    return value if isinstance(value, str) else value[-1]["content"]
