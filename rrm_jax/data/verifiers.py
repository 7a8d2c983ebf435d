"""Rules that say whether a response comes to the answer that is known to be right.

A verifier is a function `(response, answer) -> Outcome`; `VERIFIERS` names them. A new one is a function and a line
there. `resolve` gives it by its name, with what follows a colon as its parameter. Responses are untrusted, and a rule
may hang or be killed by one, so many are verified in processes of their own: `verifier_pool.VerifierPool`.

Answers that are programs would have to be run, which nothing here does. A verifier for them is one more function, which
hands the response to a sandbox outside this process; until there is one, the name `code` is an error that says so.
"""

import enum
import re
from collections.abc import Callable
from fractions import Fraction

from rrm_jax.data.answers import LONGEST_ANSWER, canonical, final_answer, last_part, strip_thinking
from rrm_jax.errors import RrmError


class Outcome(enum.StrEnum):
    """What became of verifying a response.

    `correct` is None where nobody knows: there is no answer given as right, or none that could be read, or the rule ran
    out of time or memory. A response without a final answer is not correct.
    """

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no answer"
    NO_GOLD = "no gold"
    UNREADABLE = "unreadable gold"
    TIMED_OUT = "timed out"
    CRASHED = "crashed"

    @property
    def correct(self) -> bool | None:
        """None where nobody knows."""
        return {"right": True, "wrong": False, "no answer": False}.get(self.value)

    @classmethod
    def of(cls, correct: bool) -> "Outcome":
        """RIGHT or WRONG."""
        return cls.RIGHT if correct else cls.WRONG


Verifier = Callable[[str, str], Outcome]


def verify_exact(response: str, answer: str) -> Outcome:
    """The same text in `canonical` form, whatever the case."""
    given = _final(response)
    if given is None:
        return Outcome.NO_ANSWER
    return Outcome.of(canonical(given).casefold() == canonical(answer).casefold())


def verify_whole(response: str, answer: str) -> Outcome:
    """The response is nothing but the answer, in `canonical` form, whatever the case."""
    given = strip_thinking(response).strip()
    if not given or len(given) > LONGEST_ANSWER:
        return Outcome.WRONG if given else Outcome.NO_ANSWER
    return Outcome.of(canonical(given).casefold() == canonical(answer).casefold())


def verify_choice(response: str, answer: str) -> Outcome:
    """The same letter: `C`, `(c)`, `C. because`, `\\text{(C)}`, `option C`; the response's last line may be just that.

    A final answer that is no letter, such as the text of an option, is no answer.
    """
    gold = choice_letter(answer)
    if gold is None:
        return Outcome.UNREADABLE
    letter = chosen_letter(response)
    return Outcome.NO_ANSWER if letter is None else Outcome.of(letter == gold)


def chosen_letter(response: str) -> str | None:
    """The option that a response ends with, a capital; None where it names none."""
    given = _final(response)
    if given is None:
        lines = last_part(strip_thinking(response)).strip().splitlines()
        given = lines[-1].strip(" *") if lines and _LETTER_ALONE.fullmatch(lines[-1].strip(" *")) else None
    return None if given is None else choice_letter(given)


def numeric(tolerance: float = 1e-4) -> Verifier:
    """Numbers within `tolerance` of the right one, relative to it; of 0, absolute.

    Decimals, fractions, powers of ten (`1.5 \\times 10^{3}`, `1.5e3`) and percentages (50 % is 0.5) are read. A unit
    after the number is not compared.
    """

    def verify(response: str, answer: str) -> Outcome:
        gold = _number(answer)
        if gold is None:
            return Outcome.UNREADABLE
        given = _final(response)
        if given is None:
            return Outcome.NO_ANSWER
        value = _number(given)
        return Outcome.of(value is not None and abs(value - gold) <= Fraction(tolerance) * (abs(gold) or 1))

    return verify


def verify_math(response: str, answer: str) -> Outcome:
    """Mathematically the same, by math-verify: fractions, roots, intervals, sets, matrices, equations, units left out.

    Equal spellings and different integers are told apart without it. May take long, and much memory.
    """
    given = _final(response)
    if given is None:
        return Outcome.NO_ANSWER
    short, gold = canonical(_without_unit(given)), canonical(answer)
    if short == gold or canonical(given) == gold:
        return Outcome.RIGHT
    if _INTEGER.fullmatch(short) and _INTEGER.fullmatch(gold):
        return Outcome.WRONG
    if _plain_words(answer):  # which math-verify would read as a product of letters: "seat" would be "east"
        return Outcome.of(short.casefold() == gold.casefold())
    if len(answer) > LONGEST_ANSWER:
        return Outcome.UNREADABLE
    if len(given) > LONGEST_ANSWER:
        return Outcome.WRONG
    return _symbolic(_without_unit(given), answer)


def verify_auto(response: str, answer: str) -> Outcome:
    """By the look of the right answer: a capital letter from A to J is a choice, words are exact, the rest is maths."""
    alone = canonical(answer)
    if len(alone) == 1 and alone in "ABCDEFGHIJ":
        return verify_choice(response, answer)
    return verify_exact(response, answer) if _plain_words(answer) else verify_math(response, answer)


VERIFIERS: dict[str, Verifier] = {
    "auto": verify_auto,
    "choice": verify_choice,
    "exact": verify_exact,
    "math": verify_math,
    "numeric": numeric(),
    "whole": verify_whole,
}


def resolve(name: str) -> Verifier:
    """The verifier of that name; `numeric:0.01` has a tolerance. Raises RrmError where there is none."""
    rule, colon, parameter = name.partition(":")
    if rule == "code":
        raise RrmError(
            "verifier 'code': programs are not run here; add a verifier that hands them to a sandbox of yours "
            "(rrm_jax/data/verifiers.py), or leave these questions out"
        )
    if rule == "numeric" and colon:
        try:
            tolerance = float(parameter)
        except ValueError:
            tolerance = -1.0
        if not 0 <= tolerance < 1:
            raise RrmError(f"verifier {name!r}: the tolerance must be a number from 0 to 1")
        return numeric(tolerance)
    if rule not in VERIFIERS or colon:
        raise RrmError(f"no verifier {name!r}; there are {', '.join(VERIFIERS)} and numeric:TOLERANCE")
    return VERIFIERS[rule]


_INTEGER = re.compile(r"-?[0-9]+")
_LETTER_ALONE = re.compile(r"\(?[A-Za-z]\)?[.:]?")
_CHOICE = re.compile(r"(?:(?:option|choice|answer)\s+)?(?:\(([A-Za-z])\)|([A-Za-z])(?=$|[).:,]))", re.I)
_WORDS = re.compile(r"(?:no|[^\W\d_]{3,})(?:[\s,'-]+[^\W\d_]+)*", re.I)
_UNIT = re.compile(r"([-+]?\\?\$?[0-9][0-9,]*(?:\.[0-9]+)?)\s+([A-Za-z]{3,}(?:\s+[A-Za-z]+){0,3})")
_NO_UNIT = re.compile(
    r"\b(?:and|plus|minus|times|over|divided|mod|modulo|squared|cubed|factorial|percent|hundred|thousand|million|billion|"
    r"trillion|dozen|half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|sqrt|"
    r"roots?|log|sin|cos|tan|exp)\b",
    re.I,
)
_SCIENTIFIC = re.compile(
    r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:(?:\\times|\\cdot|\*|×|x)10\^\{?([-+]?[0-9]{1,3})\}?|[eE]([-+]?[0-9]{1,3}))?"
)

_AFTER_NUMBER = re.compile(r"$|\\?%|\^\{?\\circ|\\(?:text|mathrm|mbox)(?![a-z])|[^\W\d_]|°")


def choice_letter(answer: str) -> str | None:
    """The letter of an option, a capital; None where the text names none."""
    found = _CHOICE.match(canonical(answer))
    return (found[1] or found[2]).upper() if found else None


def _final(response: str) -> str | None:
    return final_answer(strip_thinking(response))


def _plain_words(answer: str) -> bool:
    return _WORDS.fullmatch(canonical(answer)) is not None


def _without_unit(answer: str) -> str:
    """`18` of `18 eggs a day`. Words that belong to the number keep it as it is."""
    found = _UNIT.fullmatch(answer.strip())
    return answer if found is None or _NO_UNIT.search(found[2]) else re.sub(r"[\\$]", "", found[1])


def _number(text: str) -> Fraction | None:
    """The number that a text is, but for a unit behind it; None where it is none, or one of hundreds of digits."""
    short = canonical(text)
    if re.fullmatch(r"-?[0-9]{1,30}/[0-9]{1,30}", short):
        top, bottom = map(int, short.split("/"))
        return Fraction(top, bottom) if bottom else None
    text = re.sub(r"\\[!,;: ]|\{?,\}?(?=[0-9]{3}(?![0-9]))|\\?\$|\s", "", text.replace("\u2212", "-"))
    found = _SCIENTIFIC.match(text)
    if found is None or len(found[1]) > 100 or not _AFTER_NUMBER.match(text, found.end()):
        return None
    value = Fraction(found[1]) * Fraction(10) ** int(found[2] or found[3] or 0)
    return value / 100 if re.match(r"\\?%|percent", text[found.end() :], re.I) else value


def _symbolic(given: str, answer: str) -> Outcome:
    """By math-verify, without its own time-outs: they cannot interrupt a product of huge numbers, and call what they
    do interrupt unequal. The process is stopped instead."""
    import logging

    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)

    def read(text: str) -> list:
        text = text if "$" in text.replace("\\$", "") else f"${text}$"
        return parse(text, [LatexExtractionConfig()], parsing_timeout=0, raise_on_error=True)

    try:
        gold = read(answer)
    except MemoryError:
        raise
    except Exception:  # whatever its parser raises at what it cannot read
        gold = []
    if not gold or isinstance(gold[0], str):
        return Outcome.UNREADABLE
    try:
        return Outcome.of(verify(gold, read(given), timeout_seconds=None, raise_on_error=True))
    except MemoryError:
        raise
    except Exception:
        return Outcome.WRONG
