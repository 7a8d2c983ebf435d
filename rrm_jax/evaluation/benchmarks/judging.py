"""Items to verdicts, by a judge: pairs one by one, candidates by a tournament. What a backend fails on is not judged.

All votes go through the verdict store, so that a job that was killed, or whose backend failed, goes on where it was.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rrm_jax.data.records import Candidates, Pair
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.benchmarks.base import Benchmark, Item, Judged
from rrm_jax.evaluation.benchmarks.best_of_n import pick_of
from rrm_jax.evaluation.benchmarks.harness import pair_of
from rrm_jax.evaluation.benchmarks.verdict_files import ballots_of
from rrm_jax.judging.judge import Judge, Judgment
from rrm_jax.judging.store import VoteLog

if TYPE_CHECKING:
    from rrm_jax.ranking.entry import Entry

_IN_A_ROW = 3  # requests that fail one after the other, before a backend counts as gone


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`verdicts` of the items that were judged whole; why each other item was not judged, by its id. `given_up`:
    several requests in a row failed, and no more were made."""

    verdicts: Mapping[str, Judged]
    not_judged: Mapping[str, str]
    given_up: bool = False


def judge_items(
    judge: Judge, benchmark: Benchmark, items: Sequence[Item], log: VoteLog | None = None, *,
    entry: "Entry | None" = None, invalid: str = "random", seed: int = 0,
    keep: Callable[[dict[str, Any]], None] = lambda row: None, advance: Callable[[], None] = lambda: None,
) -> Outcome:  # fmt: skip
    """What a judge says of the items; votes found in `log` are not drawn again.

    `keep` is given each judged row, as `rrm judge` or `rrm rank` would write it, with the `benchmark`'s name and the
    `order`; `advance` is called for every comparison. Of best-of-N `entry` says how the best is sought (a knockout,
    unless given), with `invalid` and `seed` as `run_tournaments` takes them.
    """
    if benchmark.kind == "best-of-n":
        return _pick(judge, benchmark, items, log, entry, invalid, seed, keep, advance)
    votes: dict[str, Any] = {}

    order = judge.settings["order"]

    def judged(judgment: Judgment) -> None:
        row = judgment.to_row() | {"benchmark": benchmark.name, "order": order}
        votes[judgment.pair.id] = ballots_of(row["votes"], order == "both")
        keep(row)
        advance()

    pairs = [pair_of(item, game) for item in items for game in item.games]
    failed, given_up = _judge_pairs(judge, pairs, log, judged)
    verdicts: dict[str, Judged] = {}
    not_judged = {}
    for item in items:
        names = [item.name_of(game) for game in item.games]
        if why := next((failed[name] for name in names if name in failed), None):
            not_judged[item.id] = why
        else:
            verdicts[item.id] = tuple(votes[name] for name in names)
    return Outcome(verdicts, not_judged, given_up)


def _judge_pairs(
    judge: Judge, pairs: Sequence[Pair], log: VoteLog | None, use: Callable[[Judgment], None]
) -> tuple[dict[str, str], bool]:
    """Why pairs were not judged, by id, and whether the backend was given up. After a failure the rest is begun again;
    one that fails by itself is left out, and all that are left when several have done so in a row: then nobody answers
    any more."""
    todo = collections.OrderedDict((pair.id, pair) for pair in pairs)
    failed: dict[str, str] = {}

    def run(some: Sequence[Pair]) -> str | None:
        try:
            for judgment in judge.judge(some, log):
                del todo[judgment.pair.id]
                use(judgment)
        except (RrmError, RuntimeError) as error:
            return str(error)
        return None

    in_a_row = 0
    while todo:
        left = len(todo)
        why = run(list(todo.values()))
        if why is None:
            break
        if len(todo) < left:
            in_a_row = 0
            continue
        first = next(iter(todo.values()))
        why = run([first])
        if why is None:
            in_a_row = 0
            continue
        failed[first.id] = why
        del todo[first.id]
        in_a_row += 1
        if in_a_row == _IN_A_ROW:
            return failed | dict.fromkeys(todo, f"the backend was given up: {why}"), True
    return failed, False


def best_of_each(
    judge: Judge, benchmark: Benchmark, items: Sequence[Item], sizes: Sequence[int], log: VoteLog | None = None,
    **how: Any,
) -> dict[int, tuple[list[Item], Outcome]]:  # fmt: skip
    """The curve of best-of-K: for each of `sizes`, the items with their first K candidates alone, and what is picked
    of these by a tournament of its own. `how` is passed on to `judge_items`. Items with fewer candidates are left out.

    All draw on one store: a pair that an earlier tournament compared is not judged again.
    """
    found = {}
    for size in sizes:
        some = [first(item, size) for item in items if len(item.responses) >= size]
        found[size] = some, judge_items(judge, benchmark, some, log, **how)
    return found


def first(item: Item, size: int) -> Item:
    """The item with its first `size` candidates."""
    cut = lambda values: None if values is None else values[:size]  # noqa: E731
    return dataclasses.replace(
        item, responses=item.responses[:size], correct=cut(item.correct), answers=cut(item.answers),
        rewards=cut(item.rewards),
    )  # fmt: skip


def _pick(judge, benchmark, items, log, entry, invalid, seed, keep, advance) -> Outcome:
    from rrm_jax.evaluation.tournament import comparer
    from rrm_jax.ranking.entry import parse_entry
    from rrm_jax.ranking.protocol import Item as Field
    from rrm_jax.ranking.tournament import run_tournaments

    entry = entry or parse_entry("knockout")
    rows = {item.id: Candidates(item.id, item.query, item.responses) for item in items}
    how = {"seed": seed, "rating": entry.rating, "stop": entry.stop, "invalid": invalid}

    def play(some: Sequence[Item]) -> list[Any]:
        fields = [Field(item.id, len(item.responses)) for item in some]
        return run_tournaments(fields, entry.strategy, comparer(judge, log, rows, advance), **how)

    ranked, not_judged, in_a_row = [], {}, 0
    try:
        ranked = play(items)
    except (RrmError, RuntimeError):  # a tournament is a function of its item alone, and its votes are kept
        for item in items:
            try:
                if in_a_row < _IN_A_ROW:
                    ranked += play([item])
                    in_a_row = 0
                    continue
                why = "the backend was given up"
            except (RrmError, RuntimeError) as error:
                why, in_a_row = str(error), in_a_row + 1
            not_judged[item.id] = why
    results = [dataclasses.asdict(one.result) for one in ranked]
    for result in results:
        keep(result | {"benchmark": benchmark.name})
    picks = {result["id"]: pick_of(result) for result in results}
    return Outcome(picks, not_judged, given_up=in_a_row == _IN_A_ROW)
