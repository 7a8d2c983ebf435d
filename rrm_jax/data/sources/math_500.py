"""MATH-500: 500 of the test problems of MATH, with their final answers. Tested on the published file."""

from rrm_jax.data.records import Question
from rrm_jax.data.sources.base import Source, answer_of, label_of, text_of
from rrm_jax.data.table_files import Row


def _parse(row: Row) -> Question:
    return Question("", text_of(row, "problem"), answer_of(row["answer"]), label_of(row, "subject"), "math")


SOURCE = Source(
    name="math-500",
    kind="questions",
    hub="HuggingFaceH4/MATH-500",
    revision="test.jsonl of 446,564 bytes",
    licence="MIT",
    citation="arXiv 2305.20050",
    columns=("problem", "answer"),
    optional=("subject",),
    split="test",
    parse=_parse,
)
