"""Skywork-OR1-RL-Data, its split `math`: 105,055 problems; the split `code` holds no answer to verify.

The card gives the columns and the number of rows, and no licence; the model's card says Apache-2.0. The prompt is the
bare problem. `reward_model.ground_truth` is a JSON list written as text, such as `["15625"]`; a problem with several
answers, any of which is right, is left out.
"""

import json

from rrm_jax.data.jsonl import RowError
from rrm_jax.data.records import Question
from rrm_jax.data.sources.base import Source, Unusable, answer_of, first_user_turn, label_of
from rrm_jax.data.table_files import Row


def _parse(row: Row) -> Question:
    if label_of(row, "ability") == "code" or label_of(row, "data_source").startswith("train-code"):
        raise Unusable("code")
    truth = row["reward_model"].get("ground_truth") if isinstance(row["reward_model"], dict) else None
    try:
        answers = json.loads(truth or "[]")
    except (ValueError, TypeError, RecursionError):
        raise RowError(f"reward_model.ground_truth must be a JSON list, not {str(truth)[:40]!r}") from None
    if not isinstance(answers, list):
        answers = [answers]
    if len(answers) > 1:
        raise Unusable("several answers", f"{len(answers)}")
    answer = answer_of(answers[0] if answers else None)
    return Question("", first_user_turn(row["prompt"]), answer, label_of(row, "data_source"), "math")


SOURCE = Source(
    name="skywork-or1",
    kind="questions",
    hub="Skywork/Skywork-OR1-RL-Data",
    revision="1cdedc5, May 2025",
    licence="none stated (the models: Apache-2.0)",
    citation="arXiv 2505.22312",
    columns=("prompt", "reward_model"),
    optional=("data_source", "ability"),
    split="math",
    parse=_parse,
)
