"""From what the judge wrote to its verdict. Only its own completion is ever read, never the prompt."""

import re
from collections.abc import Sequence
from typing import Literal

from rrm_jax.data.tokenizer import END_THINK, Tokenizer
from rrm_jax.sampling.protocol import Completion

Verdict = Literal[1, 2]
VERDICT_FORMS = ("\\boxed{Assistant 1}", "\\boxed{Assistant 2}")
_VERDICTS: dict[str, Verdict] = {"Assistant 1": 1, "Assistant 2": 2}


def parse_verdict(text: str, thinking: bool = True) -> Verdict | None:
    """The verdict of a completion given as text; None is invalid.

    It is read after the last `</think>`, from the last `\\boxed{…}` with balanced braces, whose stripped content
    must be `Assistant 1` or `Assistant 2`. With `thinking` a completion without `</think>` was cut off in its
    thinking and is invalid; without, the prompt has closed the thinking and the whole completion counts.
    """
    _, end, answer = text.rpartition(END_THINK)
    if thinking and not end:
        return None
    return _boxed_verdict(answer)


def verdict_of_completion(completion: Completion, tokenizer: Tokenizer, thinking: bool = True) -> Verdict | None:
    """As `parse_verdict`, on token ids: where `</think>` is a control token, only the token itself ends thinking,
    and text that spells it does not. A completion that came as text is read as text."""
    if completion.text is not None:
        return parse_verdict(completion.text, thinking)
    ids = written_ids(completion, tokenizer)
    end_think = tokenizer.control_id(END_THINK)
    if end_think is None:
        return parse_verdict(tokenizer.decode(ids), thinking)
    closed = _after_last(ids, end_think)
    if closed is None:
        return None if thinking else _boxed_verdict(tokenizer.decode(ids))
    return _boxed_verdict(tokenizer.decode(closed))


def written_text(completion: Completion, tokenizer: Tokenizer) -> str:
    """The completion's text without the stop token that ended it; as it came, where it came as text."""
    return tokenizer.decode(written_ids(completion, tokenizer)) if completion.text is None else completion.text


def written_ids(completion: Completion, tokenizer: Tokenizer) -> Sequence[int]:
    """The completion's ids without the stop token that ended it."""
    ids = completion.token_ids
    stops = {*tokenizer.stop_ids, *completion.request.decoding.stop_ids}
    return ids[:-1] if completion.finish_reason == "stop" and ids and ids[-1] in stops else ids


def _after_last(ids: Sequence[int], token: int) -> Sequence[int] | None:
    for at in range(len(ids) - 1, -1, -1):
        if ids[at] == token:
            return ids[at + 1 :]
    return None


def _boxed_verdict(text: str) -> Verdict | None:
    # One pass: a model that repeats "\boxed{" thousands of times must not cost quadratic time.
    opened: list[int] = []
    last: tuple[int, int] | None = None
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            start = opened.pop()
            if text.endswith("\\boxed", 0, start) and (last is None or start > last[0]):
                last = start, brace.start()
    if last is None:
        return None
    return _VERDICTS.get(text[last[0] + 1 : last[1]].strip())
