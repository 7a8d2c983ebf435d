"""The final answer that a response ends with."""


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
