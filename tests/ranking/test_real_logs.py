"""Real tournaments and real candidates (skipped where the files are not there)."""

import collections
import itertools
import json

import pytest
from simulated_judges import Simulated, results_of

from rrm_jax.ranking.adaptive import Adaptive
from rrm_jax.ranking.protocol import Comparison, Item, Outcome
from rrm_jax.ranking.strategies import Knockout, RoundRobin

QUERIES, CANDIDATES = 512, 32


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


class Replay:
    """Answers from the log of RRM-7B's knockouts on PPE MMLU-Pro, and insists on being asked that log's matches."""

    def __init__(self, log):
        self.log, self.round, self.asked = log, 0, 0

    def __call__(self, comparisons: list[Comparison]) -> list[Outcome]:
        self.round += 1
        matches = self.log[f"round_{self.round}"]
        next_match: collections.Counter[str] = collections.Counter()
        outcomes = []
        for comparison in comparisons:
            match, query = matches[str(next_match[comparison.item_id])], int(comparison.item_id)
            next_match[comparison.item_id] += 1
            assert (comparison.i, comparison.j) == (match["rival_1"][query], match["rival_2"][query])
            winner = 1 + (comparison.i, comparison.j).index(match["winner"][query])
            verdict = match["pred"][query] or None  # 0: invalid, decided by a coin that was not released
            assert verdict in (winner, None)
            outcomes.append(Outcome(winner, votes=(verdict,)))
        assert set(next_match.values()) == {len(matches)}
        self.asked += len(comparisons)
        return outcomes


def test_the_released_knockout_log_replays_link_by_link(real_data):
    folder = real_data / "rrm_official"
    log = load(folder / "mmlu_pro_knockout32_rrm_7b.json")
    released_bracket = load(folder / "MMLU_relative_data__tournament.json")
    bracket = tuple(itertools.chain.from_iterable(released_bracket["round_1"]))
    assert len(released_bracket) == 5
    replay = Replay(log)
    items = [Item(str(query), CANDIDATES) for query in range(QUERIES)]
    results = results_of(items, Knockout(bracket=bracket), replay)
    assert replay.round == 5
    assert replay.asked == 31 * QUERIES == sum(result.comparisons for result in results)
    assert [result.best for result in results] == log["round_5"]["0"]["winner"]
    for query, result in enumerate(results):
        # Wins counted straight from the log; with 32 candidates nobody has a bye.
        wins = collections.Counter(match["winner"][query] for one in log.values() for match in one.values())
        assert result.ratings == tuple(wins[c] for c in range(CANDIDATES))
    assert sum(result.invalid_votes for result in results) == 2


def test_the_released_elo_schedule_is_our_round_robin(real_data):
    """The released study lists which pairs of 8 candidates were judged, five times over, but not who won, so its
    ratings cannot be recomputed. Code abc: pass a, shown as b against c."""
    schedule = load(real_data / "rrm_official" / "math_elo_match_schedule.json")["7b"]
    judge = Simulated({"any": list(range(8))})
    results_of([Item("any", 8)], RoundRobin(), judge)
    ours = [(comparison.i, comparison.j) for comparison in judge.asked]
    assert all(sorted(divmod(code % 100, 10)) == [i, j] for code, i, j in schedule)
    for number in range(1, 5):
        theirs = [(i, j) for code, i, j in schedule if code // 100 == number]
        assert sorted(theirs) == sorted(ours)


def correctness_of(real_data, name):
    if name == "qwen_math_bon8":
        rows = (real_data / name / "math_cot_100.jsonl").read_text(encoding="utf-8").splitlines()
        return {str(at): json.loads(row)["score"] for at, row in enumerate(rows)}
    rows = (real_data / "gsm8k" / "example_model_solutions.jsonl").read_text(encoding="utf-8").splitlines()
    sources = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    return {str(at): [json.loads(row)[source]["is_correct"] for source in sources] for at, row in enumerate(rows)}


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "shape"), [("qwen_math_bon8", (100, 8)), ("gsm8k", (1319, 4))])
@pytest.mark.parametrize(
    ("strategy", "invalid"),
    [
        (RoundRobin(), "random"),
        (RoundRobin(), "draw"),
        (Knockout(), "random"),
        (RoundRobin(rating="points"), "draw"),
        (Adaptive(), "draw"),
    ],
    ids=["elo", "elo-draw", "knockout", "points", "adaptive"],
)
def test_a_perfect_judge_reaches_the_oracle_and_a_contrary_one_the_opposite(real_data, name, shape, strategy, invalid):
    correct = correctness_of(real_data, name)
    assert (len(correct), *{len(values) for values in correct.values()}) == shape
    items = [Item(id, shape[1]) for id in correct]
    for accuracy, whole in ((1.0, any), (0.0, all)):
        results = results_of(items, strategy, Simulated(correct, accuracy=accuracy), invalid=invalid)
        assert [correct[result.id][result.best] for result in results] == [whole(v) for v in correct.values()]
