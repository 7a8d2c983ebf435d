"""Tülu 3's preference mixture for 405B: 360,924 pairs, of which the paper takes those with the prompts it also labels.

The card gives the columns and the number of rows. As in the authors' code the question is the `prompt` column, and a
response is all assistant turns joined by a blank. Their 80K are the pairs whose prompt is among the 80K of
`tulu3-prompts`, blanks aside: `--only-prompts-of` takes those, or any other file's.
"""

from rrm_jax.data.records import Pair
from rrm_jax.data.sources.base import Source, assistant_turns, label_of, text_of
from rrm_jax.data.table_files import Row


def _parse(row: Row) -> Pair:
    chosen, rejected = (assistant_turns(row[key], key) for key in ("chosen", "rejected"))
    return Pair("", text_of(row, "prompt"), chosen, rejected, 1, label_of(row, "source"))


SOURCE = Source(
    name="tulu3-preferences",
    kind="pairs",
    hub="allenai/llama-3.1-tulu-3-405b-preference-mixture",
    revision="af794d7, January 2025",
    licence="ODC-BY-1.0; parts of it other licences, some non-commercial",
    citation="arXiv 2411.15124",
    columns=("prompt", "chosen", "rejected"),
    optional=("source",),
    parse=_parse,
    takes_prompts=True,
)
