"""WebInstruct-verified: 231,833 questions of many fields with short answers, and 1,000 in a test split.

The card's copies give the columns and the number of rows. `answer_type` chooses the verifier; its values here are those
that public code which reads the data set names, and one that is none of them is left to whoever verifies (not verified
against the published file).
"""

from rrm_jax.data.records import Question
from rrm_jax.data.sources.base import Source, answer_of, label_of, text_of
from rrm_jax.data.table_files import Row

VERIFIERS = {
    "Multiple Choice": "choice",
    "Boolean": "exact",
    "String": "exact",
    "Other": "exact",
    **dict.fromkeys(("Float", "Integer", "Percentage", "Fraction", "Expression", "Matrix", "List"), "math"),
}


def _parse(row: Row) -> Question:
    verifier = VERIFIERS.get(label_of(row, "answer_type"), "")
    return Question("", text_of(row, "question"), answer_of(row["answer"]), label_of(row, "category"), verifier)


SOURCE = Source(
    name="webinstruct-verified",
    kind="questions",
    hub="TIGER-Lab/WebInstruct-verified",
    revision="e3c3717, May 2025",
    licence="Apache-2.0",
    citation="arXiv 2505.14652",
    columns=("question", "answer", "answer_type"),
    optional=("category",),
    parse=_parse,
)
