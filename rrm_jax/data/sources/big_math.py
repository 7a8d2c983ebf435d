"""Big-Math-RL-Verified: 251,122 problems with closed-form answers.

The card gives the columns and the number of rows. Some problems appear more than once (a user counted 6,783 on the
data set's page): the first is kept, and one that comes again with another answer is reported.
"""

from rrm_jax.data.records import Question
from rrm_jax.data.sources.base import Source, answer_of, label_of, text_of
from rrm_jax.data.table_files import Row


def _parse(row: Row) -> Question:
    return Question("", text_of(row, "problem"), answer_of(row["answer"]), label_of(row, "source"), "math")


SOURCE = Source(
    name="big-math",
    kind="questions",
    hub="SynthLabsAI/Big-Math-RL-Verified",
    revision="ce48889, February 2025",
    licence="Apache-2.0",
    citation="arXiv 2502.17387",
    columns=("problem", "answer"),
    optional=("source",),
    parse=_parse,
)
