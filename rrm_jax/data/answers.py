"""What a response comes to: its answer without the thinking before it, and the final answer that it ends with."""

from rrm_jax.data.tokenizer import END_THINK

NO_ANSWER = "[NO ANSWER]"


def last_boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{…}` holds, without blanks at its ends; None where there is none or it is empty.

    Braces are matched, as in `\boxed{\frac{1}{2}}`; an escaped one, `\{`, counts for nothing.
    """
    opening = "\\boxed{"
    end = len(text)
    while (start := text.rfind(opening, 0, end)) >= 0:
        depth, at = 1, start + len(opening)
        while at < len(text) and depth:
            if text[at] == "\\":
                at += 1
            else:
                depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth:
            return text[start + len(opening) : at - 1].strip() or None
        end = start
    return None


def strip_thinking(response: str, *, require_answer: bool = False) -> str:
    """What follows the response's last `</think>`.

    A response without one is left whole, be it an ordinary answer or a text about the tag `<think>`; with
    `require_answer`, for the rollouts of a policy that thinks first, it has no answer and becomes `[NO ANSWER]`.
    """
    _, end, answer = response.rpartition(END_THINK)
    return NO_ANSWER if require_answer and not end else answer
