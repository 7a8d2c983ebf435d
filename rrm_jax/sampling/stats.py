"""How a sampler is doing: what it drew, how busy its rows are, and how near the memory's bandwidth it runs."""

import dataclasses
import time
from typing import TYPE_CHECKING

import jax

from rrm_jax.parallel.accelerators import accelerator_of

if TYPE_CHECKING:
    from rrm_jax.sampling.sampler import Sampler
    from rrm_jax.sampling.schedule import Schedule


@dataclasses.dataclass
class Stats:
    """Of one `generate` call. `str()` of it is a line for a person.

    `tokens` were drawn in `steps` steps; `row_steps` sums the rows at work over them, `slot_steps` all rows.
    `naive_prefill` counts the prompt tokens of all requests, `prefilled` those that were run, once for all that share
    them, `prefill_computed` with the padding. `bytes_read` is the least that decoding had to read: the weights once a
    step, and the filled columns of every row and every prompt in use. `longest` is a prompt with all it may draw.
    `compiled` counts the programs that this call had to trace.
    """

    weight_bytes: int
    column_bytes: int
    bandwidth: float | None
    completions: int = 0
    tokens: int = 0
    steps: int = 0
    row_steps: int = 0
    slot_steps: int = 0
    naive_prefill: int = 0
    prefilled: int = 0
    prefill_computed: int = 0
    bytes_read: int = 0
    longest: int = 0
    compiled: int = 0
    started: float = dataclasses.field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, sampler: "Sampler") -> "Stats":
        """Zeros, with what this sampler reads a step and how fast its devices read; from now on the time runs."""
        config, leaves = sampler.config, jax.tree.leaves(sampler._params)
        devices = leaves[0].sharding.device_set
        device = accelerator_of(next(iter(devices)))
        scales = 8 if sampler.cache_dtype.name == "int8" else 0
        column = config.num_layers * config.num_kv_heads * (2 * config.head_dim * sampler.cache_dtype.itemsize + scales)
        # Each part of the batch reads the weights for itself.
        weights = sum(x.nbytes for x in leaves) * sampler.ways
        return cls(weights, column, None if device is None else device.bandwidth * len(devices))

    def block(self, steps: int, row_steps: int, rows: int, schedule: "Schedule") -> None:
        """Counts a block of `rows` rows; the columns read are estimated from how far the rows were at its end."""
        self.steps += steps
        self.row_steps += row_steps
        self.slot_steps += steps * rows
        own = sum(len(work.token_ids) for work in schedule.rows if work is not None)
        prompts = sum(resident.filled for resident in schedule.residents if resident is not None and resident.users)
        self.bytes_read += steps * (self.weight_bytes + (own + prompts) * self.column_bytes)

    @property
    def seconds(self) -> float:
        """Since the start; it goes on when the call has ended."""
        return time.perf_counter() - self.started

    @property
    def busy(self) -> float:
        """The share of rows at work, over all steps."""
        return self.row_steps / max(1, self.slot_steps)

    @property
    def roofline(self) -> float | None:
        """Bytes that had to be read, as a share of what the devices could have read in the time; None if unknown."""
        return None if self.bandwidth is None else self.bytes_read / (self.bandwidth * self.seconds)

    def __str__(self) -> str:
        mean = self.tokens / max(1, self.completions)
        shown = (
            f"{self.completions} completions, {self.tokens} tokens, {self.tokens / self.seconds:.0f} tokens/s, "
            f"mean length {mean:.0f}, rows {100 * self.busy:.0f} % busy, "
            f"prefill {100 * self.prefilled / max(1, self.naive_prefill):.0f} %, {self.compiled} programs compiled"
        )
        return shown if self.roofline is None else f"{shown}, {100 * self.roofline:.0f} % of bandwidth"
