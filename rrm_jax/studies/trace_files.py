"""Reasoning traces out of whatever holds them: judged rows, verdict stores, and the traces of training runs."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rrm_jax.checkpoints.sources import open_source
from rrm_jax.data.jsonl import Reader, RowError
from rrm_jax.data.tokenizer import END_THINK
from rrm_jax.errors import RrmError
from rrm_jax.judging.store import VoteLog


@dataclasses.dataclass(frozen=True)
class Trace:
    """`question` names what was judged, the same for all traces about it; `text` is the thinking, without its end."""

    question: str
    text: str
    tokens: int


def read_traces(
    path: str, report: Callable[[str], None], settings: Mapping[str, Any] | None = None, model: str | None = None
) -> tuple[list[Trace], int]:
    """All traces of a file, in its order, and how many malformed rows were passed over. RrmError where there is none.

    Which kind of file it is, its first row says. `settings`: only votes of a verdict store whose settings have these.
    `model`: only votes of the model at this path, which its weights tell, in whatever dtype they were used.
    """
    if not Path(path).is_file():
        raise RrmError(f"there is no file {path}")
    kind, wanted = _kind(path), settings or {}
    if (wanted or model) and kind != "store":
        raise RrmError(f"{path} is no verdict store, so its traces cannot be chosen by model or settings")
    if kind == "store":
        weights = "" if model is None else open_source(Path(model)).fingerprint()
        with VoteLog(path, write=False, report=report) as log:
            chosen = [
                name
                for name, of in log.settings.items()
                if str(of.get("model")).startswith(weights) and all(of.get(key) == want for key, want in wanted.items())
            ]
            found = [
                Trace(vote.asked.query if vote.asked else vote.key, thinking(vote.record.text), vote.record.tokens)
                for vote in log.votes(chosen)
            ]
        skipped = 0
    else:
        reader = Reader(Path(path), _of_judged if kind == "judged" else _of_run, report=report)
        found = [trace for _, traces in reader for trace in traces]
        skipped = reader.skipped
    if not found:
        asked = (f" of the settings {dict(wanted)}" if wanted else "") + (f" of the model {model}" if model else "")
        raise RrmError(f"{path} holds no traces{asked}")
    return found, skipped


def _kind(path: str) -> str:
    with open(path, "rb") as file:
        line = file.readline()
    try:
        row = json.loads(line)
    except ValueError:
        row = {}
    if isinstance(row, dict):
        if "votes" in row:
            return "judged"
        if "completion" in row:
            return "run"
        if "settings" in row or "key" in row:
            return "store"
    raise RrmError(
        f"{path}:1 is neither a judged row, nor one of a verdict store, nor of a training run's traces.jsonl"
    )


def thinking(text: str) -> str:
    """What stands before the first end of thinking; all of it where thinking was cut off."""
    return text.split(END_THINK)[0].strip()


def _of_judged(row: dict[str, Any]) -> list[Trace]:
    try:
        return [Trace(str(row["id"]), thinking(vote["text"]), int(vote["tokens"])) for vote in row["votes"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise RowError(f"not a judged row: {error!r}") from None


def _of_run(row: dict[str, Any]) -> list[Trace]:
    try:
        return [Trace(str(row["id"]), thinking(row["completion"]), int(row["tokens"]))]
    except (KeyError, TypeError, AttributeError) as error:
        raise RowError(f"not a row of a run's traces: {error!r}") from None
