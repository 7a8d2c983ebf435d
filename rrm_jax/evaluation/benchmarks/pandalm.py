"""PandaLM's test set: 999 pairs with the labels of three annotators: 1, 2, or 0 for a tie. The majority's counts.

Written against testset-v1.json of WeOpenML/PandaLM at 3871806e, and checked on the file itself: accuracy and macro F1
of the two released judges are recomputed to the last digit. What cannot be parsed is a tie, and so is a judge's
disagreement with itself between the two orders. A judge without ties can never be right about the 105 rows that
annotators call ties, so that scores are given with and without these.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import checked_text, id_field, text_field
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
    coin,
    decide,
)  # fmt: skip
from rrm_jax.evaluation.benchmarks.scores import Node, Sums, Table, divide, ratio

_ANNOTATORS = ("annotator1", "annotator2", "annotator3")
GROUP, TIES = "labelled 1 or 2", "labelled ties"
_CLASSES, _SAID = 3, 4  # labels; what is said: the same, or nothing that counts


def _parse(row: Row, at: int) -> Item:
    said = [row.get(key) for key in _ANNOTATORS]
    if any(vote not in (0, 1, 2) or isinstance(vote, bool) for vote in said):
        raise RowError(f"annotators must each say 0, 1 or 2, not {', '.join(map(repr, said))}")
    label, votes = Counter(said).most_common(1)[0]
    if votes == 1:
        raise RowError("the three annotators all differ, so that there is no majority")
    instruction, given = text_field(row, "instruction"), "" if row.get("input") is None else text_field(row, "input")
    query = f"{instruction}\n\n{given}" if given else instruction
    # Six responses of the file are true or false instead of text: these words, as Python writes them.
    responses = tuple(
        str(text) if isinstance(text, bool) else text for text in (row.get("response1"), row.get("response2"))
    )
    responses = checked_text(responses[0], "response1"), checked_text(responses[1], "response2")
    group = TIES if label == 0 else GROUP
    return Item(f"pandalm/{id_field({'id': row.get('idx')})}", group, query, responses, (Game(0, 1, label or 0),))


def _measure(item: Item, judged: Judged, policy: Policy) -> list[float]:
    """[credit, 1], and the confusion [label, said] of three classes and of "nothing" in a row."""
    assert isinstance(judged, tuple)
    label, name = item.games[0].label, item.id
    decided = decide(policy.counted(name, judged[0]))
    rule = policy.invalid if decided is None else policy.ties if decided == 0 else "as said"
    said = np.zeros((_CLASSES, _SAID))
    if rule == "exclude":
        return [0.0] * (2 + said.size)
    if rule in ("as said", "tie"):
        said[label, decided or 0] = 1
    elif rule == "random":
        said[label, 1 + coin(policy.seed, name)] = 1
    else:
        said[label, label], said[label, _SAID - 1] = float(rule), 1 - float(rule)
    return [said[label, label], 1.0, *said.ravel().tolist()]


def _of_classes(name: str, groups: Sequence[str], what: str) -> Node:
    """Precision, recall or F1: the mean over the classes that are a label or said, or weighted by their labels."""

    def of(sums: Sums) -> np.ndarray:
        total = sum(sums[group] for group in groups)
        confusion = np.asarray(total)[..., 2:].reshape(*np.shape(total)[:-1], _CLASSES, _SAID)
        right = np.diagonal(confusion[..., :_CLASSES], axis1=-2, axis2=-1)
        labels, said = confusion.sum(axis=-1), confusion[..., :_CLASSES].sum(axis=-2)
        precision, recall = np.nan_to_num(divide(right, said)), np.nan_to_num(divide(right, labels))
        f1 = np.nan_to_num(divide(2 * precision * recall, precision + recall))
        there = (labels + said) > 0
        values = {"precision": precision, "recall": recall}.get(what, f1)
        weights = labels if what == "weighted F1" else there.astype(float)
        return divide(np.sum(values * weights, axis=-1), np.sum(weights, axis=-1))

    return Node(name, tuple(groups), of, below=1)


def _tree(table: Table) -> tuple[Node, ...]:
    groups = tuple(group for group in (GROUP, TIES) if group in table.ids)
    names = {"F1": "macro F1", "precision": "macro precision", "recall": "macro recall", "weighted F1": "weighted F1"}
    nodes = [ratio("Accuracy over 1, 2 and tie", groups)]
    nodes += [_of_classes(f"{name} over 1, 2 and tie", groups, what) for what, name in names.items()]
    if GROUP in table.ids:
        nodes.append(ratio("Accuracy without the rows labelled ties", [GROUP]))
        nodes.append(_of_classes("macro F1 without the rows labelled ties", [GROUP], "F1"))
    return tuple(nodes)


_RESULTS: dict[str, dict[Any, Label | None]] = {
    "gpt_result": {"1": 1, "2": 2, "Tie": 0, "garbage": None},
    "pandalm_result": {1: 1, 2: 2, 0: 0},
}


def _read_verdicts(content: Any, items: Sequence[Item]) -> Mapping[str, Verdicts] | None:
    """A released judge's file: rows of `idx` and `gpt_result` or `pandalm_result`, of the pairs as they stand."""
    if not isinstance(content, list) or not content or not isinstance(content[0], dict) or "idx" not in content[0]:
        return None
    key = next((key for key in _RESULTS if key in content[0]), None)
    if key is None:
        return None
    said: dict[str, Judged] = {}
    for number, row in enumerate(content, start=1):
        result = row.get(key)
        if isinstance(result, bool) or result not in _RESULTS[key]:
            raise RowError(f"row {number}: {key} must be one of {', '.join(map(repr, _RESULTS[key]))}, not {result!r}")
        if (name := f"pandalm/{row.get('idx')}") in said:
            raise RowError(f"row {number}: the idx {row.get('idx')!r} appears twice")
        said[name] = ((Ballot("12", _RESULTS[key][result]),),)
    return {key.removesuffix("_result"): said}


BENCHMARK = Benchmark(
    name="pandalm",
    what="999 pairs of instruction-tuned models, with ties",
    hub="WeOpenML/PandaLM",
    revision="3871806e, data/testset-v1.json",
    licence="Apache-2.0",
    citation="Wang et al. 2023, arXiv 2306.05087",
    columns=("idx", "instruction", "input", "response1", "response2", *_ANNOTATORS),
    parse=_parse,
    measure=_measure,
    tree=_tree,
    split="testset-v1",
    rows={GROUP: 894, TIES: 105},
    order="both",
    policy=Policy(invalid="tie", ties="tie"),
    read_verdicts=_read_verdicts,
    published=(
        Published(
            "gpt-3.5-turbo", "computed from its released verdicts",
            {"Accuracy over 1, 2 and tie": 71.07, "macro F1 over 1, 2 and tie": 57.55},
        ),
        Published(
            "PandaLM-7B", "computed from its released verdicts",
            {"Accuracy over 1, 2 and tie": 66.77, "macro F1 over 1, 2 and tie": 57.43},
        ),
    ),
)  # fmt: skip
