"""Where judging meets ranking: a judge as the answer to "compare i with j", and the best of N in one call."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from rrm_jax.data.records import Candidates, Pair
from rrm_jax.judging.judge import JudgesPairs, Judgment
from rrm_jax.judging.store import VoteLog
from rrm_jax.ranking.protocol import Comparison, Item, Outcome, Result


def rank(
    judge: JudgesPairs,
    query: str,
    candidates: Sequence[str],
    strategy: str = "swiss",
    *,
    budget: int | None = None,
    stop: str | None = None,
    rating: str | None = None,
    answers: Sequence[str | None] | None = None,
    seed: int = 0,
    log: VoteLog | None = None,
) -> Result:
    """The candidates' ranking by a judge: `.best` is the position of the best, `.ranking` of all, best first.

    `strategy`, `rating` and `stop` as `rrm rank` takes them ("swiss:rounds=6", "bradley-terry", "certain" or 0.95);
    `budget` is the most comparisons. Candidates whose `answers` are equal are not compared. Votes found in `log` are
    not drawn again. Raises RrmError for no candidates, and for what is unknown.
    """
    from rrm_jax.ranking.entry import parse_entry
    from rrm_jax.ranking.tournament import run_tournaments

    entry = parse_entry(strategy, rating=rating, stop=stop, budget=budget)
    row = Candidates("query", query, tuple(candidates))
    item = Item(row.id, len(row.responses), None if answers is None else tuple(answers))
    compare = comparer(judge, log, {row.id: row})
    return run_tournaments([item], entry.strategy, compare, seed=seed, rating=entry.rating, stop=entry.stop)[0].result


def comparer(
    judge: JudgesPairs, log: VoteLog | None, rows: Mapping[str, Candidates], judged: Callable[[], None] = lambda: None
) -> Callable[[list[Comparison]], list[Outcome]]:
    """`run_tournaments`'s compare function; `judged` is called for each comparison.

    A comparison has one name whichever candidate is named first, so that strategies with the same seed that ask
    for the same comparison get the same verdict; those who meet again get new votes. Texts of judgments are dropped
    as they come.
    """

    def pairs(comparisons: Sequence[Comparison]) -> Iterator[Pair]:
        for at, comparison in enumerate(comparisons):
            row = rows[comparison.item_id]
            i, j = sorted((comparison.i, comparison.j))
            name = json.dumps([row.id, i, j])
            yield Pair(name, row.query, row.responses[i], row.responses[j], source=str(at))

    def compare(comparisons: list[Comparison]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        meeting = lambda pair: comparisons[int(pair.source)].meeting  # noqa: E731
        for judgment in judge.judge(pairs(comparisons), log, meeting=meeting):
            at = int(judgment.pair.source)
            outcomes[at] = outcome_of(judgment, turned=comparisons[at].i > comparisons[at].j)
            judged()
        return [outcomes[at] for at in range(len(comparisons))]

    return compare


def outcome_of(judgment: Judgment, turned: bool) -> Outcome:
    """`turned`: the comparison's i is the pair's second response."""
    name: dict = {1: 2, 2: 1, None: None} if turned else {1: 1, 2: 2, None: None}
    soft = judgment.soft_vote
    return Outcome(
        winner=name[judgment.winner],
        tokens=judgment.tokens,
        votes=tuple(name[vote.verdict] for vote in judgment.votes),
        cut_off=sum(vote.finish_reason == "length" for vote in judgment.votes),
        truncated_inputs=sum(vote.truncated_input for vote in judgment.votes),
        forced=sum(vote.forced for vote in judgment.votes),
        orders=tuple((vote.order == "12") != turned for vote in judgment.votes),
        probability=soft if soft is None or not turned else 1 - soft,
    )
