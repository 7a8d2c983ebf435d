"""The one error type that means "what you gave cannot be used": the message says what, where, and what to do.

And the hint of a near name that such messages end with.
"""

import difflib
from collections.abc import Iterable


class RrmError(Exception):
    """Wrong input or environment. The CLI prints the message without a traceback and exits with code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest of the known names; "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
