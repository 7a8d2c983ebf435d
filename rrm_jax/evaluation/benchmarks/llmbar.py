"""LLMBar: 419 pairs of which one response follows its instruction, natural and adversarial; each is judged in both
orders.

Written against princeton-nlp/LLMBar at 900616b2 and checked on its files: every released statistic of every released
evaluator (349) is recomputed from its verdicts. Rows: `input`, `output_1`, `output_2`, `label`. A directory may hold
any of its files: NAME.json of the subsets' names here, or the repository's own folders (`Natural/dataset.json`).
FairEval, LLMEval² and MT-Bench in the same form, as released beside it, are read where they are there; no average has
them. An invalid verdict is wrong, and two invalid ones of a pair are equal, as in the released code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import text_field
from rrm_jax.data.table_files import Row
from rrm_jax.evaluation.benchmarks.base import Ballot, Benchmark, Game, Item, Judged, Label, Policy, Verdicts, decide
from rrm_jax.evaluation.benchmarks.scores import Node, Table, mean, ratio

ROWS = {
    "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
}  # fmt: skip
BESIDE = {"faireval": 66, "llmeval2": 200, "mtbench200": 200}
_FOLDERS = {"natural": 0, "neighbor": 1, "gptinst": 2, "gptout": 3, "manual": 4}
# Where a measure is in an item's row: its sum, and how many count.
_GIVEN, _TURNED, _BOTH, _EQUAL = 2, 4, 6, 8


def _group_of_file(name: str) -> str:
    """The subset that a file holds, by its name in the snapshot; "" for another file."""
    parts = name.removesuffix(".json").split("/")
    if parts[-1] in ROWS or parts[-1] in BESIDE:
        return parts[-1]
    at = _FOLDERS.get(parts[-2].lower()) if len(parts) > 1 and parts[-1] == "dataset" else None
    return "" if at is None else list(ROWS)[at]


def _parse(row: Row, at: int) -> Item:
    if row.get("label") not in (1, 2) or isinstance(row["label"], bool):
        raise RowError(f"label must be 1 or 2, not {row.get('label')!r}")
    responses = text_field(row, "output_1"), text_field(row, "output_2")
    return Item(str(at), "", text_field(row, "input"), responses, (Game(0, 1, row["label"]),))


def _measure(item: Item, judged: Judged, policy: Policy) -> list[float]:
    """Pairs of (sum, how many count): the mean of the orders, each order, right in both, the same in both."""
    assert isinstance(judged, tuple)
    label, ballots = item.games[0].label, policy.counted(item.id, judged[0])
    said: list[Label | None] = []
    credits: list[float] = []
    row: list[float] = []
    for order in ("12", "21"):
        shown = [ballot for ballot in ballots if ballot.order == order]
        credit = float("nan")
        if shown:
            said.append(decide(shown))
            credit = policy.credit(f"{item.id} {order}", said[-1], label)
        known = credit == credit
        credits += [credit] * known
        row += [credit, 1.0] if known else [0.0, 0.0]
    average = [sum(credits) / len(credits), 1.0] if credits else [0.0, 0.0]
    both = [float(said == [label, label]), 1.0, float(said[0] == said[1]), 1.0] if len(said) == 2 else [0.0] * 4
    return [*average, *row, *both]


def _nodes(name: str, groups: Sequence[str]) -> Node:
    def node(what: str, at: int) -> Node:
        return ratio(what, groups, at, at + 1)

    parts = (
        node("as given", _GIVEN), node("turned", _TURNED), node("right in both orders", _BOTH),
        node("equal in both orders", _EQUAL),
    )  # fmt: skip
    return ratio(name, groups, parts=parts)


def _tree(table: Table) -> tuple[Node, ...]:
    own = [_nodes(group, [group]) for group in ROWS if group in table.ids]
    adversarial = [node for node in own if "adver" in node.name]
    missing = f"{len(own)} of 5" if len(own) < 5 else "its"
    nodes = [mean(f"LLMBar (mean of {missing} subsets)", own)] if own else []
    missing = f"{len(adversarial)} of 4" if len(adversarial) < 4 else "its"
    nodes += [mean(f"Adversarial (mean of {missing} subsets)", adversarial, show=False)] if adversarial else []
    return (*nodes, *(_nodes(group, [group]) for group in BESIDE if group in table.ids))


def _read_verdicts(content: Any, items: Sequence[Item]) -> Mapping[str, Verdicts] | None:
    """`{subset: {evaluator: {winner_original: [...], winner_swapped: [...]}}}`, winners "1", "2" or null: of the
    pair as the file has it, in whichever order it was shown."""
    if not isinstance(content, dict) or not {*content} & {*ROWS, *BESIDE}:
        return None
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.group] = sizes.get(item.group, 0) + 1
    found: dict[str, dict[str, Judged]] = {}
    for group, evaluators in content.items():
        if group not in sizes:
            continue
        for name, winners in evaluators.items():
            lists = [winners.get(key) for key in ("winner_original", "winner_swapped")]
            if any(not isinstance(one, list) or len(one) != len(lists[0]) for one in lists):
                raise RowError(f"{name} on {group}: winner_original and winner_swapped must be lists of one length")
            if len(lists[0]) != ({**ROWS, **BESIDE}).get(group):
                raise RowError(f"{name} on {group}: {len(lists[0])} verdicts of {({**ROWS, **BESIDE})[group]} pairs")
            if not {*lists[0], *lists[1]} <= {"1", "2", None}:
                raise RowError(f'{name} on {group}: a winner must be "1", "2" or null')
            own = found.setdefault(name, {})
            for at, (given, turned) in enumerate(zip(*lists, strict=True)):
                own[f"{group}/{at}"] = (
                    (Ballot("12", _SAYS[given], twin=True), Ballot("21", _SAYS[turned], twin=True)),
                )
    return found


_SAYS: dict[str | None, Label | None] = {"1": 1, "2": 2, None: None}

BENCHMARK = Benchmark(
    name="llmbar",
    what="which response follows the instruction, natural and adversarial",
    hub="princeton-nlp/LLMBar",
    revision="900616b2",
    licence="MIT",
    citation="Zeng et al. 2023, arXiv 2310.07641",
    columns=("input", "output_1", "output_2", "label"),
    parse=_parse,
    measure=_measure,
    tree=_tree,
    rows=ROWS,
    order="both",
    policy=Policy(invalid="0", ties="0"),
    group_of_file=_group_of_file,
    read_verdicts=_read_verdicts,
)
