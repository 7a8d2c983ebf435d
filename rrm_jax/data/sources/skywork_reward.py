"""Skywork-Reward-Preference-80K-v0.2: 77,016 pairs, most of the data that the paper's judges are trained on.

The card gives the columns and the number of rows; it names no licence of its own, only the sets that it was drawn from
(HelpSteer2, OffsetBias, WildGuard, Magpie), so theirs hold. v0.2 is v0.1 without 4,957 pairs that overlap RewardBench.

Question and responses as in the authors' code: the first user turn, and all assistant turns of a side joined by a
blank. Of a conversation of several turns the later user turns are lost. A system turn before the first user turn, which
that code would have taken for the question, is passed over (whether there is any is not verified against the published
file). `--part train` and `--part test` are their 75,000 and 2,016 rows, by the same permutation.
"""

from rrm_jax.data.records import Pair
from rrm_jax.data.sources.base import Source, assistant_turns, first_user_turn, label_of
from rrm_jax.data.sources.parts import ShuffledRows
from rrm_jax.data.table_files import Row


def _parse(row: Row) -> Pair:
    query = first_user_turn(row["chosen"], "chosen")
    chosen, rejected = (assistant_turns(row[key], key) for key in ("chosen", "rejected"))
    return Pair("", query, chosen, rejected, 1, label_of(row, "source"))


SOURCE = Source(
    name="skywork-reward",
    kind="pairs",
    hub="Skywork/Skywork-Reward-Preference-80K-v0.2",
    revision="9757870, October 2024",
    licence="none stated; those of its sources",
    citation="arXiv 2410.18451",
    columns=("chosen", "rejected"),
    optional=("source",),
    parse=_parse,
    parts=ShuffledRows(train=75_000, seed=42),
)
