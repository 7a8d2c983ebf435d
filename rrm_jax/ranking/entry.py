"""A way to rank by its name: strategy, rating and stop rule from one line of text, such as "swiss:rounds=6"."""

import dataclasses
import typing
from typing import Any

from rrm_jax.errors import RrmError
from rrm_jax.ranking.adaptive import Adaptive
from rrm_jax.ranking.rating import RATINGS, Rating
from rrm_jax.ranking.stopping import Stop
from rrm_jax.ranking.strategies import Knockout, RoundRobin, Strategy
from rrm_jax.registry import find

# A new strategy is a frozen dataclass (see `Strategy`) in a module of its own, and a line here.
STRATEGIES = {
    "round-robin": "rrm_jax.ranking.strategies:RoundRobin",
    "random": "rrm_jax.ranking.strategies:RandomOpponents",
    "knockout": "rrm_jax.ranking.strategies:Knockout",
    "swiss": "rrm_jax.ranking.strategies:Swiss",
    "adaptive": "rrm_jax.ranking.adaptive:Adaptive",
}
_OWN_MATTER = ("rating", "in_rounds", "prune", "bracket")


@dataclasses.dataclass(frozen=True)
class Entry:
    """`text` is what it was made from; `votes` is for judges that take it from here (see `replay`)."""

    text: str
    strategy: Strategy
    rating: Rating
    stop: Stop
    votes: int = 1


def parse_entry(
    text: str,
    *,
    rating: str | None = None,
    stop: str | None = None,
    budget: int | None = None,
    tokens: int | None = None,
) -> Entry:
    """`NAME[:key=value…]`: the fields of the strategy, and `rating`, `stop` and `votes`, which also have arguments.

    `stop` is "certain" or a probability. `budget` comparisons is what an adaptive strategy plans for, and where any
    other ends; `tokens` likewise. Raises RrmError for an unknown name, key or value.
    """
    name, *options = text.split(":")
    if name in RATINGS:
        raise RrmError(f"{name!r} is a rating, not a strategy: give rating {name}, with one of {', '.join(STRATEGIES)}")
    kind: type = find(STRATEGIES, name, "strategy")
    types = {field: hint for field, hint in typing.get_type_hints(kind).items() if field not in _OWN_MATTER}
    given: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in types and key not in ("rating", "stop", "votes"):
            known = ", ".join([*types, "rating", "stop", "votes"])
            raise RrmError(f"{text!r}: {key!r} is not an option of {name}; it has {known}")
        given[key] = _value(text, key, value, types.get(key, int if key == "votes" else str))
    rating, stop = given.pop("rating", rating), given.pop("stop", stop)
    votes = given.pop("votes", 1)
    if votes < 1:
        raise RrmError(f"{text!r}: votes must be 1 at least")
    rule = _stop(stop, budget, tokens)
    if kind is RoundRobin and (rule.certain or rule.probability or rule.tokens):
        given |= {"in_rounds": True, "prune": rule.certain and rating == "points"}
    if kind is Adaptive and budget is not None:
        given.setdefault("budget", budget)
    strategy = kind(**given)
    entry = Entry(text, strategy, Rating(rating or strategy.rating), rule, votes)
    if entry.rating.name == "survived" and kind is not Knockout:
        raise RrmError('the rating "survived" is of a knockout')
    entry.stop.check(strategy, entry.rating)
    return entry


def _value(text: str, key: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise RrmError(
            f"{text!r}: {key}={value!r} is not {'a number' if kind is float else 'a whole number'}"
        ) from None


def _stop(stop: str | None, budget: int | None, tokens: int | None) -> Stop:
    if stop in (None, "", "never"):
        return Stop(budget=budget, tokens=tokens)
    if stop == "certain":
        return Stop(certain=True, budget=budget, tokens=tokens)
    try:
        return Stop(probability=float(stop), budget=budget, tokens=tokens)
    except ValueError:
        raise RrmError(f'stop {stop!r} is not "certain", "never", or a probability between 0 and 1') from None
