"""What a response comes to: its answer without the thinking before it, and the final answer that it ends with."""

import re
from collections.abc import Iterator
from fractions import Fraction

from rrm_jax.data.tokenizer import END_THINK

NO_ANSWER = "[NO ANSWER]"

LONGEST_ANSWER = 1_000
"""Characters of a final answer that stands in a line of text; what is longer is no answer."""

LONGEST_RESPONSE = 100_000
"""Characters at a response's end that are looked at for its final answer."""

_BOXED = "\\boxed{"

# GSM8K's "#### 18", its solutions' "A: 18", DAPO's "Answer: 18", "the answer is (C)", "The answer to this is: 18".
_ANNOUNCED = re.compile(
    r"####|^[ \t]*\**(?-i:A)\**:|\bfinal answer\**[ \t]*$|"
    r"\b(?:answers?|(?:correct|right|best) (?:option|choice))\b[^\n.:=]{0,40}?(?:\bis\b|\bare\b|[:=])",
    re.M | re.I,
)
_MATHS = (("\\[", "\\]"), ("\\(", "\\)"), ("$$", "$$"), ("$", "$"))
_END_OF_SENTENCE = re.compile(r"\.(?=[\s*\"')]|$)|[\n\r]")
_WORDY = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boldsymbol)\s*\{([^{}\\]*)\}")
_SPACING = re.compile(r"\\[!,;:> ]|\\(?:left|right|displaystyle)(?![a-zA-Z])|~")
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_NUMBER = re.compile(r"([-+]?)([0-9]*)(?:\.([0-9]*))?")
_LONGEST_NUMBER = 100  # digits: arithmetic on a hostile text must stay cheap
_DIGITS = rf"(?:\{{([0-9]{{1,{_LONGEST_NUMBER}}})\}}|([0-9]))"
_FRACTION = re.compile(
    rf"([-+]?)(?:\\frac{_DIGITS}{_DIGITS}|([0-9]{{1,{_LONGEST_NUMBER}}})/([0-9]{{1,{_LONGEST_NUMBER}}}))"
)
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?")


def last_boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{…}` holds, without blanks at its ends; None where there is none or it is empty.

    Braces are matched, as in `\boxed{\frac{1}{2}}`; an escaped one, `\{`, counts for nothing.
    """
    first = text.find(_BOXED)
    if first < 0:
        return None
    # One pass: a text that repeats "\boxed{" thousands of times must not cost quadratic time.
    opened: list[int] = []
    last: tuple[int, int] | None = None
    for found in re.compile(r"\\boxed\{|\\.|[{}]", re.S).finditer(text, first):
        if found.group()[-1] == "{" and found.group() != "\\{":
            opened.append(found.end() if found.group() == _BOXED else -1)
        elif found.group() == "}" and opened:
            start = opened.pop()
            if start >= 0 and (last is None or start > last[0]):
                last = start, found.start()
    return text[last[0] : last[1]].strip() or None if last else None


def strip_thinking(response: str, *, require_answer: bool = False) -> str:
    """What follows the response's last `</think>`.

    A response without one is left whole, be it an ordinary answer or a text about the tag `<think>`; with
    `require_answer`, for the rollouts of a policy that thinks first, it has no answer and becomes `[NO ANSWER]`.
    """
    _, end, answer = response.rpartition(END_THINK)
    return NO_ANSWER if require_answer and not end else answer


def last_part(text: str) -> str:
    """The end of a text where its final answer is looked for."""
    return text[-LONGEST_RESPONSE:]


def final_answer(text: str) -> str | None:
    r"""The answer that a text ends with, as it is written there; None where it announces none.

    The last `\boxed{…}` if there is one. Else what the last announcement is followed by, to the end of its sentence,
    without `$`, `**` and full stop around it: `#### 18`, `A: 18`, `Answer: 18`, `The answer is (C).` Only the last
    100,000 characters are looked at.
    """
    text = last_part(text)
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    return next(filter(None, (_announced(text, end) for end in _announcements(text))), None)


def _announcements(text: str) -> Iterator[int]:
    """Where announcements end, the last one first."""
    yield from reversed([found.end() for found in _ANNOUNCED.finditer(text)])


def _announced(text: str, start: int) -> str | None:
    rest = text[start : start + LONGEST_ANSWER + 100].lstrip(" \t\n\r*:#")
    for opening, closing in _MATHS:
        if rest.startswith(opening):
            end = rest.find(closing, len(opening))
            inside = rest[len(opening) : end].strip() if end > 0 else ""
            after = rest[end + len(closing) :].lstrip() if end > 0 else ""
            if inside and not after[:1].isalnum() and not after.startswith((",", "$")):
                return inside
    rest = _END_OF_SENTENCE.split(rest, maxsplit=1)[0]
    return rest.strip(" \t*`\"'").rstrip(".,;:*").strip() or None if len(rest) <= LONGEST_ANSWER else None


def canonical(answer: str) -> str:
    r"""A form that one answer's usual spellings share: `\dfrac{2}{4}`, `1/2`, `0.50` and `$\frac12$` are `1/2`,
    `10{,}000`, `10,000.0` and `\$10000` are `10000`, `(C)`, `C.` and `\text{(C)}` are `C`.

    It is cheap, and cautious: what it makes equal is equal, but it does no algebra. Commas between groups of three
    digits are taken as such, not as a list's.
    """
    text = answer.strip().strip("$").replace("\u2212", "-").replace("{,}", ",")
    text = _SPACING.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = " ".join(_WORDY.sub(r" \1 ", text).replace("\\$", "").split()).rstrip(".")
    if letter := _LETTER.fullmatch(text):
        return letter[1]
    # Blanks count for nothing but between two words or numbers: "1 2" is not "12".
    text = re.sub(r"(?<![^\W_]) | (?![^\W_])", "", text)
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    return _reduced(text)


def _reduced(text: str) -> str:
    """A decimal or a fraction of integers in lowest terms; any other text as it is."""
    if found := _NUMBER.fullmatch(text):
        sign, whole, decimals = found[1], found[2], (found[3] or "").rstrip("0")
        if not whole and not found[3]:
            return text
        whole = whole.lstrip("0") or "0"
        sign = "-" if sign == "-" and (whole, decimals) != ("0", "") else ""
        if len(whole) + len(decimals) > _LONGEST_NUMBER or not decimals:
            return sign + whole + ("." + decimals if decimals else "")
        return str(Fraction(f"{sign}{whole}.{decimals}"))
    if found := _FRACTION.fullmatch(text):
        top, bottom = (int(part) for part in found.groups()[1:] if part)
        return str(Fraction(-top if found[1] == "-" else top, bottom)) if bottom else text
    return text
