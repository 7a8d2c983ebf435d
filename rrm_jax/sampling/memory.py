"""What a sampler's device memory goes into, and what to lower where it does not suffice."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax

from rrm_jax.errors import RrmError

if TYPE_CHECKING:
    from rrm_jax.sampling.sampler import Sampler
    from rrm_jax.sampling.stats import Stats

_KEPT_FREE = 0.1  # of the memory: activations, logits, and one layer's cache while it grows


@contextlib.contextmanager
def explain_exhaustion(sampler: "Sampler", stats: "Stats") -> Iterator[None]:
    """Turns the runtime's out-of-memory error into one that says which setting to lower, and to what."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        raise RrmError(_advice(sampler, stats, str(error).splitlines()[0])) from error


def _advice(sampler: "Sampler", stats: "Stats", reason: str) -> str:
    device = jax.tree.leaves(sampler._params)[0].sharding.device_set
    limit = ((next(iter(device)).memory_stats() or {}).get("bytes_limit", 0)) * len(device)
    row = stats.longest * stats.column_bytes
    fits = max(1, sampler.batch_size // 2 // sampler.ways) * sampler.ways
    if limit:
        room = limit * (1 - _KEPT_FREE) - stats.weight_bytes
        fits = min(fits, max(1, int(room // row) // sampler.ways) * sampler.ways)
    told = f"of {limit / 2**30:.1f} GiB" if limit else "of a size that the runtime does not tell"
    return (
        f"out of device memory: the weights take {stats.weight_bytes / 2**30:.2f} GiB and each of {sampler.batch_size} "
        f"rows up to {row / 2**30:.3f} GiB at {stats.longest} tokens (prompt and completion), {told}. Lower batch_size "
        f"(--batch-size) to {fits}, lower max_new_tokens, or keep the cache in int8. What was completed is not lost. "
        f"({reason[:300]})"
    )
