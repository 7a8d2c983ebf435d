"""Tülu 3's prompts as questions without an answer, for two responses and a label (`rrm data label`).

The paper had about 167,000 prompts labelled by GPT-4o: 80,000 to train on, 2,000 to validate, the rest for DPO. That
file is not published, nor is how its prompts were chosen, and its shuffle had no seed. The prompts here are the
distinct ones of the preference mixture for 405B, and `--part train`, `validation` and `dpo` divide them by a hash of
(seed, prompt).
"""

from rrm_jax.data.records import Question
from rrm_jax.data.sources.base import Source, label_of, text_of
from rrm_jax.data.sources.parts import HashedRecords
from rrm_jax.data.table_files import Row


def _parse(row: Row) -> Question:
    return Question("", text_of(row, "prompt"), None, label_of(row, "source"))


SOURCE = Source(
    name="tulu3-prompts",
    kind="questions",
    hub="allenai/llama-3.1-tulu-3-405b-preference-mixture",
    revision="af794d7, January 2025",
    licence="ODC-BY-1.0; parts of it other licences, some non-commercial",
    citation="arXiv 2411.15124",
    columns=("prompt",),
    optional=("source",),
    parse=_parse,
    parts=HashedRecords(sizes=(80_000, 2_000), names=("train", "validation", "dpo")),
    takes_prompts=True,
)
