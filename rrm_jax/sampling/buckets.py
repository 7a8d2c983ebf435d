"""Sizes of what is compiled: few of them, and little padding."""

_CHUNKS = (32, 64, 128, 256, 512)
LARGEST_CHUNK = _CHUNKS[-1]
"""Tokens of a prompt that are computed at a time, at most."""


def bucket(size: int, smallest: int = 32) -> int:
    """The least of 32, 48, 64, 96, 128, 192, … that holds `size`: few shapes to compile, at most a third of waste."""
    power = smallest
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


def chunk_size(remaining: int) -> int:
    """How many columns to compute next of so many: few sizes, and little padding at a prompt's end."""
    above = next((size for size in _CHUNKS if size >= remaining), _CHUNKS[-1])
    if remaining >= above * 3 // 4 or above == _CHUNKS[0]:
        return above
    return max(size for size in _CHUNKS if size <= remaining)


def coarse_bucket(size: int, smallest: int = 1, ratio: int = 2) -> int:
    """The least of smallest, smallest × ratio, smallest × ratio², … that holds `size`."""
    found = smallest
    while found < size:
        found *= ratio
    return found
