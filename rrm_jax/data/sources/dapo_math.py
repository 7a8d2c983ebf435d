"""DAPO-Math-17k: problems whose answers are integers.

The published file has 1,791,700 rows, its 17,917 problems a hundred times each, by accident as its authors say; texts
among them repeat once more, and others counted 17,398 distinct ones. Every prompt is a problem between an instruction
to solve it step by step and one to put the answer on a line of its own, which are taken off. The card gives the
licence, copies of the data set the columns.
"""

import re

from rrm_jax.data.records import Question
from rrm_jax.data.sources.base import Source, answer_of, first_user_turn, label_of
from rrm_jax.data.table_files import Row

_BEFORE = re.compile(r"\s*Solve the following math problem step by step\.[^\n]*\n\n")
_AFTER = re.compile(r'\n\nRemember to put your answer on its own line after "Answer:"\.?\s*$')


def _parse(row: Row) -> Question:
    prompt = first_user_turn(row["prompt"])
    opening = _BEFORE.match(prompt)
    problem = _AFTER.sub("", prompt[opening.end() :] if opening else prompt)
    truth = row["reward_model"].get("ground_truth") if isinstance(row["reward_model"], dict) else None
    return Question("", problem, answer_of(truth), label_of(row, "data_source"), "math")


SOURCE = Source(
    name="dapo-math",
    kind="questions",
    hub="BytedTsinghua-SIA/DAPO-Math-17k",
    revision="March 2025",
    licence="Apache-2.0",
    citation="arXiv 2503.14476",
    columns=("prompt", "reward_model"),
    optional=("data_source",),
    parse=_parse,
)
