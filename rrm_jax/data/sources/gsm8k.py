"""GSM8K: 7,473 word problems to train on and 1,319 to test; the answer follows `####` at the solution's end.

Written against, and tested on, the files of the authors' repository; the hub's `openai/gsm8k` has the same columns.
"""

from rrm_jax.data.records import Question
from rrm_jax.data.sources.base import Source, answer_of, text_of
from rrm_jax.data.table_files import Row


def _parse(row: Row) -> Question:
    _, mark, answer = text_of(row, "answer").rpartition("####")
    return Question("", text_of(row, "question"), answer_of(answer.replace(",", "") if mark else None), "", "math")


SOURCE = Source(
    name="gsm8k",
    kind="questions",
    hub="openai/gsm8k",
    revision="openai/grade-school-math at 3101c7d",
    licence="MIT",
    citation="arXiv 2110.14168",
    columns=("question", "answer"),
    parse=_parse,
)
