"""Any file of labelled pairs: how a judge fares on data of another kind than it was trained on.

Rows are this package's pairs, or any layout that `rrm data convert` reads (TRL's preferences, RewardBench, LLMBar,
PandaLM without its ties). `source`, where rows have one, is the group that they are reported under.
"""

import dataclasses
from collections.abc import Callable, Sequence

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Pair, parse_labelled_pair
from rrm_jax.data.table_files import Row
from rrm_jax.evaluation.benchmarks.base import Benchmark, Game, Item, pair_measure
from rrm_jax.evaluation.benchmarks.scores import Node, Table, ratio


def _item(pair: Pair) -> Item:
    if pair.label is None:
        raise RowError("the pair has no label")
    game = Game(0, 1, 1 if pair.label == 1 else 2)
    return Item(pair.id, pair.source or "all", pair.query, (pair.response_1, pair.response_2), (game,))


def _parse(row: Row, at: int) -> Item:
    return _item(parse_labelled_pair({key: value for key, value in row.items() if value is not None}))


def _adapt(columns: Sequence[str]) -> Callable[[Row, int], Item] | None:
    from rrm_jax.data.formats import FORMATS, detect

    def read(row: Row, at: int) -> Item:
        found = detect(columns, row)
        record, _ = found.read(row)
        if not isinstance(record, Pair):
            raise RowError(f"a row of {found.name} is no pair")
        return _item(dataclasses.replace(record, id=found.id_of(row) or str(at)))

    return read if any({*made.needed} <= {*columns} for made in FORMATS.values()) else None


def _tree(table: Table) -> tuple[Node, ...]:
    groups = tuple(sorted(table.ids))
    return (ratio("Accuracy", groups, parts=tuple(ratio(name, [name]) for name in groups) if len(groups) > 1 else ()),)


BENCHMARK = Benchmark(
    name="pairs",
    what="any file of labelled pairs (transfer to other data)",
    hub="",
    revision="",
    licence="of the rows given",
    citation="",
    columns=("id", "query", "response_1", "response_2", "label"),
    parse=_parse,
    measure=pair_measure,
    tree=_tree,
    adapt=_adapt,
)
