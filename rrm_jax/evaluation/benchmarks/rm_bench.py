"""RM-Bench: three chosen and three rejected responses a prompt (concise, detailed, detailed with markdown): 9 games
each.

Written against THU-KEG/RM-Bench at 2119ec56, whose README gives the layout (`id`, `prompt`, `chosen`, `rejected`,
`domain`) and the formula: hard is the mean accuracy of the games in which the rejected response has the fancier style,
normal of those in the same style, easy of the rest. A domain's score is the mean of the three; the overall score is the
mean of chat, math, code and safety, which holds safety-refuse and safety-response together.
"""

from collections.abc import Sequence

import numpy as np

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import checked_text, id_field, text_field
from rrm_jax.data.table_files import Row
from rrm_jax.evaluation.benchmarks.base import Benchmark, Game, Item, Judged, Policy, Published, credits_of
from rrm_jax.evaluation.benchmarks.scores import Node, Table, mean, ratio

DOMAINS = {"Chat": ("chat",), "Math": ("math",), "Code": ("code",), "Safety": ("safety-refuse", "safety-response")}
STYLES = ("concise", "detailed", "markdown")
_CELLS = [(i, j) for i in range(3) for j in range(3)]
_LEVELS = {
    "hard": [i < j for i, j in _CELLS], "normal": [i == j for i, j in _CELLS], "easy": [i > j for i, j in _CELLS],
}  # fmt: skip


def _parse(row: Row, at: int) -> Item:
    domain = checked_text(row.get("domain"), "domain")
    if not any(domain in groups for groups in DOMAINS.values()):
        raise RowError(f"domain {domain!r} is none of RM-Bench's")
    texts = []
    for key in ("chosen", "rejected"):
        if not isinstance(row.get(key), list) or len(row[key]) != 3:
            raise RowError(f"{key} must be a list of three strings")
        texts += [checked_text(text, f"{key}[{n}]") for n, text in enumerate(row[key])]
    games = tuple(Game(i, 3 + j, 1) for i, j in _CELLS)
    return Item(f"{domain}/{id_field(row)}", domain, text_field(row, "prompt"), tuple(texts), games)


def _measure(item: Item, judged: Judged, policy: Policy) -> list[float]:
    """[mean credit, 1], then the 9 games' credits, then which of them count."""
    credits = np.array(credits_of(item, judged, policy))
    counted = ~np.isnan(credits)
    own = [float(credits[counted].mean()), 1.0] if counted.any() else [0.0, 0.0]
    return [*own, *np.where(counted, credits, 0).tolist(), *counted.astype(float).tolist()]


def _cell(name: str, groups: Sequence[str], at: int) -> Node:
    return ratio(name, groups, 2 + at, 11 + at)


def _level(level: str, groups: Sequence[str]) -> Node:
    return mean(level, [_cell("", groups, at) for at, of in enumerate(_LEVELS[level]) if of], show=False)


def _tree(table: Table) -> tuple[Node, ...]:
    there = {name: [group for group in groups if group in table.ids] for name, groups in DOMAINS.items()}
    there = {name: groups for name, groups in there.items() if groups}
    domains = [
        mean(name, [_level(level, groups) for level in _LEVELS])
        for name, groups in there.items()
        for groups in [groups]
    ]
    levels = [
        mean(f"{level} (mean of domains)", [_level(level, groups) for groups in there.values()], show=False)
        for level in _LEVELS
    ]
    every = tuple(table.ids)
    names = [f"chosen {STYLES[i]} over rejected {STYLES[j]}" for i, j in _CELLS]
    matrix = mean("All games alike", [_cell(name, every, at) for at, name in enumerate(names)])
    missing = f" (of {len(domains)} of 4 domains)" if len(domains) < 4 else ""
    return (mean(f"Overall{missing}", domains), *levels, matrix)


BENCHMARK = Benchmark(
    name="rm-bench",
    what="subtle faults against style: 3 x 3 pairs a prompt in chat, mathematics, code and safety",
    hub="THU-KEG/RM-Bench",
    revision="2119ec56 (README)",
    licence="ODC-BY (as remembered)",
    citation="Liu et al. 2024, arXiv 2410.16184",
    columns=("id", "prompt", "chosen", "rejected", "domain"),
    parse=_parse,
    measure=_measure,
    tree=_tree,
    split="train",
    games=9,
    right_first=True,
    published=(Published("RRM-32B", "re-measured by others", {"Overall": 73.1}),),
    unverified="The rows and how many there are of each domain were not at hand; the formula is checked by hand.",
)
