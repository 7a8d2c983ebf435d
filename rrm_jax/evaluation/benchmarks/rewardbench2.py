"""RewardBench 2: prompts with one chosen and three rejected responses, in five subsets, and a subset of ties.

Written against allenai/reward-bench-2, split `test`: `id`, `prompt`, `chosen`, `rejected` (lists), `subset`. A prompt
is right when its chosen response beats every rejected one; without a verdict in some of these games, its credit is the
chance of that when a coin decides them (the product of the games' credits).

The published score of the subset Ties rests on the margins between a reward model's ratings of right and wrong answers,
which a judge of pairs does not give. It is reported here by itself, as the share of prompts of which every right answer
beats every wrong one, is no published number, and is not part of the overall score.
"""

import math

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import checked_text, id_field, text_field
from rrm_jax.data.table_files import Row
from rrm_jax.evaluation.benchmarks.base import Benchmark, Game, Item, Judged, Policy, credits_of
from rrm_jax.evaluation.benchmarks.scores import Node, Table, mean, ratio

TIES = "Ties"
ROWS = {"Factuality": 475, "Precise IF": 160, "Math": 183, "Safety": 450, "Focus": 495, TIES: 102}


def _parse(row: Row, at: int) -> Item:
    subset = checked_text(row.get("subset"), "subset")
    if subset not in ROWS:
        raise RowError(f"subset {subset!r} is none of RewardBench 2's: {', '.join(ROWS)}")
    sides = []
    for key in ("chosen", "rejected"):
        if not isinstance(row.get(key), list) or not row[key]:
            raise RowError(f"{key} must be a list of at least one string")
        sides.append([checked_text(text, f"{key}[{n}]") for n, text in enumerate(row[key])])
    if subset != TIES and [len(side) for side in sides] != [1, 3]:
        raise RowError(f"a row of {subset} has one chosen and three rejected responses, not {[*map(len, sides)]}")
    right = len(sides[0])
    games = tuple(Game(i, right + j, 1) for i in range(right) for j in range(len(sides[1])))
    return Item(f"{subset}/{id_field(row)}", subset, text_field(row, "prompt"), (*sides[0], *sides[1]), games)


def _measure(item: Item, judged: Judged, policy: Policy) -> list[float]:
    credit = math.prod(credits_of(item, judged, policy))
    return [credit, 1.0] if credit == credit else [0.0, 0.0]


def _tree(table: Table) -> tuple[Node, ...]:
    subsets = [ratio(subset, [subset]) for subset in ROWS if subset in table.ids and subset != TIES]
    ties = (ratio("Ties: every right answer beats every wrong one", [TIES]),) if TIES in table.ids else ()
    missing = f" (of {len(subsets)} of 5 subsets)" if len(subsets) < 5 else ""
    return (mean(f"Overall without Ties{missing}", subsets), *ties) if subsets else ties


BENCHMARK = Benchmark(
    name="rewardbench2",
    what="best of 4 in factuality, instructions, mathematics, safety and focus",
    hub="allenai/reward-bench-2",
    revision="split test, as the card describes it",
    licence="ODC-BY (as remembered)",
    citation="Malik et al. 2025, arXiv 2506.01937",
    columns=("id", "prompt", "chosen", "rejected", "subset"),
    parse=_parse,
    measure=_measure,
    tree=_tree,
    rows=ROWS,
    games=3,
    right_first=True,
    unverified="The rows were not at hand; how many there are of each subset is as remembered. Ties: see above.",
)
