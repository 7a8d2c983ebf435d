"""The one error type that means "what you gave cannot be used": the message says what, where, and what to do."""


class RrmError(Exception):
    """Wrong input or environment. The CLI prints the message without a traceback and exits with code 2."""
