"""Who rewards a policy, looked at: votes counted by tournament, and signs that a reward says something else.

Axes: P prompts (groups), G samples of one prompt.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rrm_jax.data.records import Pair
from rrm_jax.data.stream import coin
from rrm_jax.evaluation.tournament_rewards import GroupReward
from rrm_jax.judging.judge import JudgesPairs, Judgment, Vote, content_digest
from rrm_jax.judging.store import VoteLog
from rrm_jax.training.rollouts import Group


class CoinJudge:
    """Every verdict is a fair coin's, whatever the responses say: what a policy gains from it is nothing but noise."""

    def __init__(self, seed: int):
        self._seed = seed

    def judge(
        self, pairs: Iterable[Pair], log: VoteLog | None = None, *, meeting: Callable[[Pair], int] = lambda pair: 0
    ) -> Iterator[Judgment]:
        """As `JudgesPairs` has it: one vote a pair, without text, which belongs to (seed, pair, meeting); `log` is not
        used."""
        for pair in pairs:
            verdict = 1 if coin("judge", self._seed, pair.id, content_digest(pair), meeting(pair)) else 2
            yield Judgment(pair, (Vote("12", verdict, "", 0, "stop", False),))


class CountingJudge:
    """A judge whose votes are counted by tournament as they come."""

    def __init__(self, judge: JudgesPairs):
        self._judge = judge
        self._counts: dict[str, dict[str, float]] = {}

    def judge(
        self, pairs: Iterable[Pair], log: VoteLog | None = None, *, meeting: Callable[[Pair], int] = lambda pair: 0
    ) -> Iterator[Judgment]:
        """As `JudgesPairs` has it. Ids of pairs are those of `evaluation/tournament.py`, JSON lists that begin with the
        tournament's."""
        for judgment in self._judge.judge(pairs, log, meeting=meeting):
            name, *_ = json.loads(judgment.pair.id)
            counts = self._counts.setdefault(name, dict.fromkeys(_VOTES, 0.0))
            for vote in judgment.votes:
                counts["votes"] += 1
                counts["invalid_votes"] += vote.verdict is None
                counts["cut_votes"] += vote.finish_reason == "length"
                counts["first_votes"] += vote.verdict is not None and (vote.verdict == 1) == (vote.order == "12")
            for one, two in zip(judgment.votes[::2], judgment.votes[1::2], strict=False):
                if one.order != two.order:
                    counts["both_orders"] += 1
                    counts["consistent"] += one.verdict is not None and one.verdict == two.verdict
            yield judgment

    def of(self, name: str) -> dict[str, float]:
        """The counts of one tournament, {} where it had no vote."""
        return self._counts.get(name, {})


_VOTES = ("votes", "invalid_votes", "cut_votes", "first_votes", "both_orders", "consistent")


def counts_of(one: GroupReward) -> dict[str, float]:
    """Of one tournament, for `Group.counts`."""
    undecided = one.invalid == one.comparisons
    return {
        "comparisons": float(one.comparisons),
        "undecided": float(undecided and one.comparisons > 0),
        "judge_tokens": float(one.tokens),
    }


def tournament_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the tournaments of a step cost, and signs of a judge that rewards something else than what it should.

    `reward_auc`: how often a right response earned more than a wrong one of its group, equal rewards ½; only where it
    is known what is right. `reward_length_correlation`: between reward and tokens within groups (Pearson's, of what is
    centred in each group). `judge_first`: the share of valid votes for the response shown first; ½ where the order says
    nothing. `judge_consistency`: of votes in both orders, the share that name one response. `undecided_groups`: of
    whose comparisons none had a winner, so that nothing is learnt from them. Rates are over votes; empty where no group
    played.
    """
    played = [group for group in groups if group.counts]
    if not played:
        return {}
    total = {name: sum(group.counts.get(name, 0.0) for group in played) for name in (*_VOTES, "judge_tokens")}
    votes = max(total["votes"], 1.0)
    found = {
        "judge_votes": total["votes"],
        "judge_tokens": total["judge_tokens"],
        "judge_invalid_rate": total["invalid_votes"] / votes,
        "judge_truncation_rate": total["cut_votes"] / votes,
        "judge_first": total["first_votes"] / max(total["votes"] - total["invalid_votes"], 1.0),
        "comparisons": sum(group.counts["comparisons"] for group in played),
        "undecided_groups": sum(group.counts["undecided"] for group in played),
        "reward_length_correlation": _within_groups(played),
    }
    if (auc := _auc(groups)) is not None:
        found["reward_auc"] = auc
    if total["both_orders"]:
        found["judge_consistency"] = total["consistent"] / total["both_orders"]
    return found


def _within_groups(groups: Sequence[Group]) -> float:
    reward_PG = np.array([group.rewards for group in groups])
    length_PG = np.array([[len(ids) for ids in group.completion_ids] for group in groups], float)
    reward_PG = reward_PG - reward_PG.mean(-1, keepdims=True)
    length_PG = length_PG - length_PG.mean(-1, keepdims=True)
    size = np.sqrt((reward_PG**2).sum() * (length_PG**2).sum())
    return float((reward_PG * length_PG).sum() / size) if size > 0 else 0.0


def _auc(groups: Sequence[Group]) -> float | None:
    higher = []
    for group in groups:
        of = {
            kind: [x for x, right in zip(group.rewards, group.right, strict=True) if right is kind]
            for kind in (True, False)
        }
        higher += [(one > two) + (one == two) / 2 for one in of[True] for two in of[False]]
    return float(np.mean(higher)) if higher else None
