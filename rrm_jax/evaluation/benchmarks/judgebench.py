"""JudgeBench: pairs of responses of which one is objectively right, judged in both orders.

Written against ScalerLab/JudgeBench (splits `gpt`, 350 pairs of GPT-4o's responses, and `claude`, 270): `pair_id`,
`source`, `question`, `response_A`, `response_B`, `label` ("A>B" or "B>A"). Each verdict counts +1 for the label and −1
against it; a pair is right when its sum is above 0, so that a tie and an invalid verdict gain nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import checked_text, text_field
from rrm_jax.data.table_files import Row
from rrm_jax.evaluation.benchmarks.base import (
    Ballot,
    Benchmark,
    Game,
    Item,
    Judged,
    Label,
    Policy,
    Published,
    Verdicts,
    pair_measure,
)  # fmt: skip
from rrm_jax.evaluation.benchmarks.scores import Node, Table, ratio

SOURCES = {
    "Knowledge (mmlu-pro)": "mmlu-pro", "Reasoning (livebench-reasoning)": "livebench-reasoning",
    "Math (livebench-math)": "livebench-math", "Coding (livecodebench)": "livecodebench",
}  # fmt: skip
_LABELS: dict[str, Label] = {"A>B": 1, "B>A": 2}
_SAYS: dict[str | None, Label | None] = {"A>B": 1, "B>A": 2, "A=B": 0, None: None}
_TURNED: dict[Label | None, Label | None] = {1: 2, 2: 1, 0: 0, None: None}


def _parse(row: Row, at: int) -> Item:
    if row.get("label") not in _LABELS:
        raise RowError(f'label must be "A>B" or "B>A", not {row.get("label")!r}')
    source = checked_text(row.get("source"), "source")
    if not source.startswith(tuple(SOURCES.values())):
        raise RowError(f"source {source!r} is none of JudgeBench's")
    responses = text_field(row, "response_A"), text_field(row, "response_B")
    game = Game(0, 1, _LABELS[row["label"]])
    return Item(text_field(row, "pair_id"), source, text_field(row, "question"), responses, (game,))


def _tree(table: Table) -> tuple[Node, ...]:
    groups = {name: sorted(group for group in table.ids if group.startswith(begin)) for name, begin in SOURCES.items()}
    return (ratio("Overall", tuple(table.ids), parts=tuple(ratio(name, of) for name, of in groups.items() if of)),)


def _read_verdicts(content: Any, items: Sequence[Item]) -> Mapping[str, Verdicts] | None:
    """The released outputs: rows with `pair_id`, `judge_name` and `judgments`, a list of {decision} (or null) as shown,
    of which the second was shown the other way round."""
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return None
    if not {"pair_id", "judgments"} <= {*content[0]}:
        return None
    found: dict[str, dict[str, Judged]] = {}
    for number, row in enumerate(content, start=1):
        judgments = row.get("judgments")
        if not isinstance(judgments, list) or len(judgments) not in (1, 2):
            raise RowError(f"row {number}: judgments must be a list of one or two")
        said = [_SAYS.get((judgment or {}).get("decision")) for judgment in judgments]
        both = len(said) == 2
        ballots = (Ballot("12", said[0], twin=both),) + ((Ballot("21", _TURNED[said[1]], twin=True),) if both else ())
        of_judge, pair = found.setdefault(str(row.get("judge_name", "judge")), {}), str(row.get("pair_id"))
        if pair in of_judge:
            raise RowError(f"row {number}: the pair {pair!r} appears twice")
        of_judge[pair] = (ballots,)
    return found


BENCHMARK = Benchmark(
    name="judgebench",
    what="pairs of which one is objectively right: knowledge, reasoning, mathematics, code",
    hub="ScalerLab/JudgeBench",
    revision="12a499c5 (the repository's files)",
    licence="MIT (as remembered)",
    citation="Tan et al. 2024, arXiv 2410.12784",
    columns=("pair_id", "source", "question", "response_A", "response_B", "label"),
    parse=_parse,
    measure=pair_measure,
    tree=_tree,
    split="gpt",
    order="both",
    policy=Policy(invalid="0", ties="0"),
    read_verdicts=_read_verdicts,
    published=(Published("RRM-32B", "re-measured by others", {"Overall": 75.7}),),
)
