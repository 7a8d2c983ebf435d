"""Where judging meets ranking: a judge as the answer to "compare i with j"."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from rrm_jax.data.records import Candidates, Pair
from rrm_jax.judging.judge import Judge, Judgment
from rrm_jax.judging.store import VoteLog
from rrm_jax.ranking.strategies import Comparison, Outcome


def comparer(
    judge: Judge, log: VoteLog | None, rows: Mapping[str, Candidates], judged: Callable[[], None] = lambda: None
) -> Callable[[list[Comparison]], list[Outcome]]:
    """`run_tournaments`'s compare function; `judged` is called for each comparison.

    A comparison has one name whichever candidate is named first, so that strategies with the same seed that ask
    for the same comparison get the same verdict. Texts of judgments are dropped as they come.
    """

    def pairs(comparisons: Sequence[Comparison]) -> Iterator[Pair]:
        for at, comparison in enumerate(comparisons):
            row = rows[comparison.item_id]
            i, j = sorted((comparison.i, comparison.j))
            name = json.dumps([row.id, i, j])
            yield Pair(name, row.query, row.responses[i], row.responses[j], source=str(at))

    def compare(comparisons: list[Comparison]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        for judgment in judge.judge(pairs(comparisons), log):
            at = int(judgment.pair.source)
            outcomes[at] = _outcome(judgment, turned=comparisons[at].i > comparisons[at].j)
            judged()
        return [outcomes[at] for at in range(len(comparisons))]

    return compare


def _outcome(judgment: Judgment, turned: bool) -> Outcome:
    name: dict = {1: 2, 2: 1, None: None} if turned else {1: 1, 2: 2, None: None}
    return Outcome(
        winner=name[judgment.winner],
        tokens=judgment.tokens,
        votes=tuple(name[vote.verdict] for vote in judgment.votes),
        cut_off=sum(vote.finish_reason == "length" for vote in judgment.votes),
        truncated_inputs=sum(vote.truncated_input for vote in judgment.votes),
        forced=sum(vote.forced for vote in judgment.votes),
    )
