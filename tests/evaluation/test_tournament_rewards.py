"""Rewards by tournament, against Elo by hand on the games that were played."""

import random
from collections import Counter

import pytest

from rrm_jax.data.answers import NO_ANSWER
from rrm_jax.data.records import Candidates
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.tournament_rewards import elo_reward, tournament_rewards
from rrm_jax.judging.judge import Judgment, Vote


class StubJudge:
    """The longer response is the better one; those of `invalid` have no verdict. Keeps the texts it was shown."""

    def __init__(self, invalid: bool = False):
        self.invalid, self.shown = invalid, []

    def judge(self, pairs, log=None, *, meeting=lambda pair: 0):
        for pair in pairs:
            self.shown.append((pair.response_1, pair.response_2))
            better = 1 if len(pair.response_1) > len(pair.response_2) else 2
            verdict = None if self.invalid else better
            yield Judgment(pair, (Vote("12", verdict, "", 5, "stop", False),))


def group(texts, name="q"):
    return Candidates(name, "why?", tuple(f"<think>hm</think>{text}" for text in texts))


TEXTS = ["a" * n for n in (3, 1, 8, 6, 2, 7, 4, 5)]


def by_hand(matches, count):
    """Sequential Elo, K 4, scale 400, in float64 Python: (R − 1000) / 200 + 0.5."""
    ratings = [1000.0] * count
    for match in matches:
        score = {1: 1.0, 2: 0.0, None: 0.5}[match.outcome.winner] if match.outcome else 0.5
        expected = 1 / (1 + 10 ** ((ratings[match.j] - ratings[match.i]) / 400))
        ratings[match.i] += 4 * (score - expected)
        ratings[match.j] -= 4 * (score - expected)
    return [(rating - 1000) / 200 + 0.5 for rating in ratings]


def test_rewards_are_the_elo_of_the_games_that_were_played():
    (found,) = tournament_rewards(StubJudge(), [group(TEXTS)], seed=3)
    assert found.rewards == pytest.approx(by_hand(found.matches, 8), abs=1e-6)  # float32 against float64
    met = Counter(match.i for match in found.matches)
    assert met == dict.fromkeys(range(8), 4)  # each meets four others, of its own accord
    opponents = {at: [match.j for match in found.matches if match.i == at] for at in range(8)}
    assert all(len(set(others)) == 4 and at not in others for at, others in opponents.items())
    assert found.comparisons == 32
    assert found.tokens == 32 * 5
    assert found.invalid == 0
    longest, shortest = TEXTS.index("a" * 8), TEXTS.index("a")
    assert found.rewards[longest] == max(found.rewards) > 0.5 > min(found.rewards) == found.rewards[shortest]


def test_two_responses_by_hand():
    (found,) = tournament_rewards(StubJudge(), [group(["long", "s"])])
    second = 1 - 1 / (1 + 10 ** (-4 / 400))  # what the winner, 4 points ahead, was still lacking in the second game
    gained = 2 + 4 * second
    assert found.rewards == pytest.approx((0.5 + gained / 200, 0.5 - gained / 200), abs=1e-6)


@pytest.mark.parametrize("strategy", ["random:opponents=4", "round-robin", "knockout", "swiss"])
def test_shuffled_responses_get_permuted_rewards(strategy):
    order = list(range(8))
    random.Random(1).shuffle(order)
    (found,) = tournament_rewards(StubJudge(), [group(TEXTS)], strategy=strategy)
    (shuffled,) = tournament_rewards(StubJudge(), [group([TEXTS[at] for at in order])], strategy=strategy)
    assert shuffled.rewards == tuple(found.rewards[at] for at in order)
    assert len(set(found.rewards)) > 2


def test_without_verdicts_all_earn_the_same():
    (found,) = tournament_rewards(StubJudge(invalid=True), [group(TEXTS)])
    assert found.rewards == (0.5,) * 8
    assert found.invalid == found.comparisons == 32


def test_who_never_ends_thinking_has_no_answer():
    judge = StubJudge()
    row = Candidates("q", "why?", ("<think>and on", "<think>hm</think>right", "<think>and on and on", "x</think>  "))
    (found,) = tournament_rewards(judge, [row])
    assert {text for pair in judge.shown for text in pair} == {NO_ANSWER, "right", ""}
    assert found.rewards[0] == found.rewards[2]  # equal answers share what they earn
    assert not any({match.i, match.j} == {0, 2} and match.outcome for match in found.matches)
    whole = StubJudge()
    tournament_rewards(whole, [Candidates("q", "why?", ("one", "three"))], thinks=False)
    assert whole.shown[0] in [("one", "three"), ("three", "one")]


def test_other_ratings_are_shares():
    for strategy, rating in (("round-robin", "points"), ("round-robin", "win-rate"), ("knockout", "survived")):
        (found,) = tournament_rewards(StubJudge(), [group(TEXTS)], strategy=strategy, rating=rating)
        assert max(found.rewards) == 1
        assert 0 <= min(found.rewards) < 0.5
        assert found.rewards[TEXTS.index("a" * 8)] == 1


def test_groups_have_tournaments_of_their_own():
    alone = [tournament_rewards(StubJudge(), [group(TEXTS, name)])[0] for name in ("p", "q")]
    together = tournament_rewards(StubJudge(), [group(TEXTS, "p"), group(TEXTS, "q")])
    assert [one.rewards for one in together] == [one.rewards for one in alone]
    assert alone[0].matches != alone[1].matches
    with pytest.raises(RrmError, match="not one of"):
        tournament_rewards(StubJudge(), [group(TEXTS)], strategy="fair")


def test_elo_reward():
    assert (elo_reward(1000), elo_reward(1100), elo_reward(900)) == (0.5, 1.0, 0.0)
