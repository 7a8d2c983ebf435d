"""Final answers of responses."""

import pytest

from rrm_jax.data.answers import last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} no, \boxed{ 2 }.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}", None),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{}", None),
        (r"\boxed 4", None),
        ("", None),
        (r"\boxed{" * 1000 + "7" + "}" * 1000, "7"),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer
