"""Responses to one query → rewards for reinforcement learning, by a tournament that a judge decides.

Paper §4; docs/posttraining.md.
Axes: P queries (groups), G responses of one.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence

from rrm_jax.data.answers import strip_thinking
from rrm_jax.data.records import Candidates
from rrm_jax.evaluation.tournament import comparer
from rrm_jax.judging.judge import JudgesPairs
from rrm_jax.judging.store import VoteLog, digest
from rrm_jax.ranking.entry import Entry, parse_entry
from rrm_jax.ranking.protocol import Item, Match
from rrm_jax.ranking.tournament import run_tournaments

PAPER = "random:opponents=4"
"""The strategy of the paper's reward: everybody meets 4 random others, rated by Elo."""

_ELO_SCALED = ("elo", "elo-mean", "bradley-terry")


@dataclasses.dataclass(frozen=True)
class GroupReward:
    """`rewards[g]` is response g's, `ratings[g]` what it was made from. `matches` name responses by their places;
    those with no `outcome` were between equal answers, and nobody was asked. `comparisons` counts the others, `invalid`
    those of them without a winner, which are draws; `tokens` is what the judge wrote."""

    rewards: tuple[float, ...]
    ratings: tuple[float, ...]
    matches: tuple[Match, ...]
    comparisons: int
    invalid: int
    tokens: int


def elo_reward(rating: float) -> float:
    """`(Elo − 1000) / 200 + 0.5`: ½ for who wins as often as they lose (the paper's released code)."""
    return (rating - 1000) / 200 + 0.5


def tournament_rewards(
    judge: JudgesPairs,
    groups: Sequence[Candidates],
    *,
    strategy: str = PAPER,
    rating: str | None = None,
    seed: int = 0,
    thinks: bool = True,
    log: VoteLog | None = None,
    judged: Callable[[], None] = lambda: None,
) -> list[GroupReward]:
    """A reward for each response of each group, from comparisons within the group alone; no label is looked at.

    What responses hold up to `</think>` is not judged; one of a policy that `thinks` and never ended that is
    `[NO ANSWER]`. Equal answers are not compared and share what they earn, and a comparison without a winner is a draw.
    `strategy` and `rating` as `rrm rank` takes them: Elo and Bradley–Terry are turned into rewards by `elo_reward`, the
    others are shares of what can be reached. The tournament belongs to the set of answers, `seed` and the group's id:
    responses in another order get the same rewards. `judged` is called for each comparison.
    """
    entry = parse_entry(strategy, rating=rating)
    answers = [[strip_thinking(text, require_answer=thinks).strip() for text in group.responses] for group in groups]
    order = [sorted(range(len(texts)), key=lambda at: digest(texts[at])) for texts in answers]
    shown = {
        group.id: Candidates(group.id, group.query, tuple(texts[at] for at in places))
        for group, texts, places in zip(groups, answers, order, strict=True)
    }
    items = [Item(row.id, len(row.responses), row.responses) for row in shown.values()]
    compare = comparer(judge, log, shown, judged)
    played = run_tournaments(items, entry.strategy, compare, seed=seed, rating=entry.rating, invalid="draw")
    return [_reward(entry, one, places, shown[one.result.id]) for one, places in zip(played, order, strict=True)]


def _reward(entry: Entry, played, order: Sequence[int], row: Candidates) -> GroupReward:
    """`order[c]` is the place of the response that was candidate c."""
    result = played.result
    earned = _share_among_equals(_rewards(entry, played), row.responses)
    place = {at: candidate for candidate, at in enumerate(order)}
    back = [place[at] for at in range(len(order))]
    return GroupReward(
        rewards=tuple(earned[candidate] for candidate in back),
        ratings=tuple(result.ratings[candidate] for candidate in back),
        matches=tuple(Match(order[m.i], order[m.j], m.outcome) for one in played.rounds for m in one),
        comparisons=result.comparisons,
        invalid=result.invalid,
        tokens=result.tokens,
    )


def _rewards(entry: Entry, played) -> list[float]:
    ratings, name = played.result.ratings, entry.rating.name
    if name in _ELO_SCALED:
        return [elo_reward(rating) for rating in ratings]
    if name == "points":
        games = Counter(at for one in played.rounds for match in one for at in (match.i, match.j))
        return [rating / max(games.values(), default=1) for rating in ratings]
    if name == "survived":
        return [rating / max(math.ceil(math.log2(len(ratings))), 1) for rating in ratings]
    return list(ratings)  # win-rate: a share already


def _share_among_equals(earned: Sequence[float], texts: Sequence[str]) -> list[float]:
    of_text: dict[str, list[float]] = {}
    for value, text in zip(earned, texts, strict=True):
        of_text.setdefault(text, []).append(value)
    return [sum(of_text[text]) / len(of_text[text]) for text in texts]
