"""Final answers of responses."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_jax.cli.rank import answers_of
from rrm_jax.data.answers import canonical, final_answer, last_boxed
from rrm_jax.data.records import Candidates

PIECES = [
    "\\boxed{",
    "}",
    "{",
    "\\",
    "$",
    "####",
    "A:",
    "the answer is ",
    ".",
    "\n",
    "\\[",
    "\\]",
    "-",
    "\\frac",
    "0",
    "/",
]
TEXTS = st.one_of(st.text(), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3))).map("".join))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} no, \boxed{ 2 }.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}", None),
        (r"} { \boxed{5} }", "5"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{3} and then \boxed{}", None),
        (r"\boxed{}", None),
        (r"\boxed 4", None),
        ("", None),
        (r"\boxed{" * 1000 + "7" + "}" * 1000, "7"),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


def boxed_by_counting(text: str) -> str | None:
    """What each `\\boxed{` holds by counting braces, the last one first."""
    for start in reversed([found.end() for found in re.finditer(r"\\boxed\{", text)]):
        depth, at = 1, start
        while at < len(text) and depth:
            if text[at] == "\\":
                at += 1
            else:
                depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth:
            return text[start : at - 1].strip() or None
    return None


@given(TEXTS)
def test_last_boxed_is_what_counting_braces_gives(text):
    text = text.replace("\\\\", "")  # where a backslash escapes another the two may begin to count in different places
    assert last_boxed(text) == boxed_by_counting(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A: 18", "18"),
        ("He makes 9 * 2 = $<<9*2=18>>18.\n#### 1,800", "1,800"),
        ("The answer is (C).", "(C)"),
        ("The correct option is B. It is red.", "B"),
        ("So the answer is $\\frac{1}{2}$.", "\\frac{1}{2}"),
        ("the answer to the second question is 3.5. Done.", "3.5"),
        ("Answer: $5$", "5"),
        ("**Answer:** .5", ".5"),
        ("## Final Answer\n\n\\[\n x = 5 \n\\]", "x = 5"),
        ("Final Answer: The final answer is $3$. I hope it is correct.", "3"),
        ("The answer is $2$ or $3$.", "$2$ or $3$"),
        ("The answer is $18 a day.", "$18 a day"),
        ("Answer: 4\n\nLet me check. The answer is 5.", "5"),
        ("Answer: 4\n\nSo the answer is", "4"),
        ("The answer is 4, in a box: \\boxed{5}", "5"),
        ("It is 4.", None),
        ("the answer is " + "1 + " * 1000, None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@given(TEXTS)
def test_no_text_is_an_error(text):
    answer = final_answer(text)
    assert answer is None or answer.strip()
    assert isinstance(canonical(text), str)


@pytest.mark.parametrize(
    "text",
    ["\\boxed{", "\\boxed{\\", "the answer is ", "#### ", "####\n", "$", "{", "answer ", " ", "\n", "A: ", "\\["],
)
def test_long_texts_take_linear_time(text):
    start = time.perf_counter()
    final_answer(text * (2_000_000 // len(text)))
    last_boxed(text * (2_000_000 // len(text)))
    assert time.perf_counter() - start < 20  # quadratic: hours


@pytest.mark.parametrize(
    "same",
    [
        {"1/2", "\\dfrac{2}{4}", "0.50", ".5", "$\\frac12$", "+1/2", "\\frac{1}2"},
        {"10000", "10{,}000", "10,000.0", "\\$10000", "10,\\!000", "010000"},
        {"C", "(C)", "C.", "\\text{(C)}", "\\textbf{C}"},
        {"-3/4", "\u22120.75", "-\\frac{3}{4}"},
        {"0", "-0", "0.0", "0/5"},
        {"(3,\\frac{\\pi}{2})", "\\left( 3, \\frac{\\pi}{2} \\right)"},
        {"137\\frac{1}{2}", "137 \\frac{1}{2}"},
        {"12"}, {"1 2"}, {"1,2"}, {"1/0"}, {"-1/2"}, {"50\\%"}, {"c"}, {"x 1"}, {"x1"}, {"\\frac{1}{x}"}, {""}, {"-"},
    ],
)  # fmt: skip
def test_canonical(same):
    forms = {canonical(answer) for answer in same}
    assert len(forms) == 1
    assert {canonical(form) for form in forms} == forms  # once is enough
    others = ["1/2", "10000", "C", "-3/4", "0", "12", "1 2", "1,2", "1/0", "-1/2", "50%", "c", "x 1", "x1", "", "-"]
    assert [other for other in others if canonical(other) in forms and other not in same | forms] == []


@given(st.fractions(max_denominator=1000), st.integers(1, 20))
def test_fractions_have_one_form(value, factor):
    top, bottom = value.numerator * factor, value.denominator * factor
    spellings = [f"{top}/{bottom}", f"{'-' * (top < 0)}\\frac{{{abs(top)}}}{{{bottom}}}", str(value)]
    assert {canonical(spelling) for spelling in spellings} == {str(value)}


def test_same_answers_of_candidates():
    responses = ("so \\boxed{0.5}", "Answer: $\\frac{1}{2}$", "\\boxed{1}</think>no answer", "A: (C)", "\\boxed{0.5}")
    row = Candidates("1", "q", responses)
    assert answers_of(row, "final") == ("1/2", "1/2", None, "C", "1/2")
    assert answers_of(row, "boxed") == ("0.5", None, "1", None, "0.5")
    assert answers_of(row, "compare") is None
