"""Prompts and completions of uneven length → packed arrays of few shapes.

Axes: B rows, T time, C completion time.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rrm_jax.rl.logprobs import Sequences
from rrm_jax.sampling.buckets import bucket as sampler_bucket
from rrm_jax.training.config import PackConfig


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt and completion, token ids."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """One forward pass over `examples`: `rows[b]` lists the places in `examples` of those that row b holds, in order.

    Rows have `time` tokens, of which `width` can be completion tokens; empty rows are padding. Where `shares_prompts`,
    neighbours in a row with the same prompt have it once, as a segment that theirs continue.
    """

    examples: Sequence[Example]
    rows: tuple[tuple[int, ...], ...]
    time: int
    width: int
    shares_prompts: bool

    @property
    def members(self) -> list[int]:
        """The places in `examples` of all that the rows hold, row by row: the order in which results come back."""
        return [at for row in self.rows for at in row]

    def sequences(self) -> Sequences:
        """For one forward pass, NumPy arrays; `prefixes` only where it `shares_prompts`."""
        tokens, positions, segments, prefixes = np.zeros((4, len(self.rows), self.time), np.int32)
        sources, targets = np.zeros((2, len(self.rows), self.width), np.int32)
        mask = np.zeros((len(self.rows), self.width), np.float32)
        for b, row in enumerate(self.rows):
            end = done = last = segment = of_prompt = 0
            prompt: tuple[int, ...] = ()
            for at in row:
                example, count = self.examples[at], len(self.examples[at].completion_ids)
                if example.prompt_ids != prompt or not self.shares_prompts:
                    prompt, segment = example.prompt_ids, segment + 1
                    own = slice(end, end + len(prompt))
                    tokens[b, own], positions[b, own] = prompt, np.arange(len(prompt))
                    segments[b, own] = prefixes[b, own] = of_prompt = segment
                    end, last = own.stop, own.stop - 1
                segment += self.shares_prompts
                own, scored = slice(end, end + count), slice(done, done + count)
                tokens[b, own], positions[b, own] = example.completion_ids, len(prompt) + np.arange(count)
                segments[b, own], prefixes[b, own] = segment, of_prompt
                sources[b, scored] = [last, *range(end, end + count - 1)]
                targets[b, scored], mask[b, scored] = example.completion_ids, 1
                end, done = own.stop, scored.stop
        return Sequences(tokens, positions, segments, prefixes if self.shares_prompts else None, sources, targets, mask)

    def along(self, values: Sequence[Any], dtype: Any = np.float32) -> np.ndarray:
        """Values of every example in `examples`, one of each completion token or one for all → [B, C], else 0."""
        out = np.zeros((len(self.rows), self.width), dtype)
        for b, own, at in self._places():
            out[b, own] = values[at]
        return out

    def responses(self) -> np.ndarray:
        """The number in its row of the example that a completion token belongs to, int32 [B, C]."""
        out = np.zeros((len(self.rows), self.width), np.int32)
        for b, row in enumerate(self.rows):
            lengths = [len(self.examples[at].completion_ids) for at in row]
            out[b, : sum(lengths)] = np.repeat(np.arange(len(row)), lengths)
        return out

    def apart(self, value_BC: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The reverse of `along`: (place in `examples`, its values)."""
        for b, own, at in self._places():
            yield at, value_BC[b, own]

    def _places(self) -> Iterator[tuple[int, slice, int]]:
        for b, row in enumerate(self.rows):
            done = 0
            for at in row:
                own = slice(done, done + len(self.examples[at].completion_ids))
                yield b, own, at
                done = own.stop


def micro_batches(
    examples: Sequence[Example], chosen: Sequence[int], pack: PackConfig, ways: int, shares_prompts: bool = True,
    together: int = 1,
) -> list[MicroBatch]:  # fmt: skip
    """Packs the chosen examples; each is in one row of one micro-batch.

    With `together` n, every n of `chosen`, which have one prompt, stay side by side in one row. Otherwise:

    The longest come first, with all that share their prompt, each into a row that has its prompt already and room for
    the completion, or into the first with room for both. A row has `pack.row_tokens` tokens, or, for what is longer,
    the next of `bucket`'s lengths. A micro-batch has rows of one length, as many as `pack.micro_batch_tokens` hold, and
    a multiple of `ways` (data × fsdp devices); where there are no more, the next of `bucket`'s numbers. So shapes are
    few, and with them compilations.
    """
    if together > 1:
        rows, times = _filled_together(examples, chosen, pack, shares_prompts, together)
    else:
        rows, times = _filled(examples, chosen, pack, shares_prompts)
    batches = []
    for time in sorted(set(times), reverse=True):
        of_time = [row for row, own in zip(rows, times, strict=True) if own == time]
        most = max(pack.micro_batch_tokens // (time * ways), 1) * ways
        for start in range(0, len(of_time), most):
            part = of_time[start : start + most]
            count = min(bucket(len(part), ways), most)
            widest = max(sum(len(examples[at].completion_ids) for at in row) for row in part)
            eighth = -(-time // 8)
            width = min(-(-widest // eighth) * eighth, time)
            padded = tuple(map(tuple, part + [[]] * (count - len(part))))
            batches.append(MicroBatch(examples, padded, time, width, shares_prompts))
    return batches


def _filled(
    examples: Sequence[Example], chosen: Sequence[int], pack: PackConfig, shares_prompts: bool
) -> tuple[list[list[int]], list[int]]:
    """Rows of places in `examples`, and the tokens of each row."""
    groups: dict[Any, list[int]] = {}
    for at in chosen:
        groups.setdefault(examples[at].prompt_ids if shares_prompts else at, []).append(at)
    for group in groups.values():
        group.sort(key=lambda at: (-examples[at].length, at))
    rows: list[list[int]] = []
    times: list[int] = []
    room = np.zeros(len(chosen), np.int64)
    for group in sorted(groups.values(), key=lambda group: (-examples[group[0]].length, group[0])):
        begun: list[int] = []  # the rows that have the group's prompt
        for at in group:
            length, own = examples[at].length, len(examples[at].completion_ids)
            row = next((row for row in begun if room[row] >= own), None)
            if row is None:
                fits = room[: len(rows)] >= length
                row = int(fits.argmax()) if fits.any() else len(rows)
                if row == len(rows):
                    rows.append([])
                    times.append(bucket(length, pack.row_tokens))
                    room[row] = times[row]
                begun.append(row)
                own = length
            rows[row].append(at)
            room[row] -= own
    return rows, times


def _filled_together(
    examples: Sequence[Example], chosen: Sequence[int], pack: PackConfig, shares_prompts: bool, together: int
) -> tuple[list[list[int]], list[int]]:
    """As `_filled`, for units of `together` examples: the longest first, each into the first row with room for it."""
    units = [list(chosen[at : at + together]) for at in range(0, len(chosen), together)]
    lengths = []
    for unit in units:
        prompts = len(examples[unit[0]].prompt_ids) * (1 if shares_prompts else together)
        lengths.append(prompts + sum(len(examples[at].completion_ids) for at in unit))
    rows: list[list[int]] = []
    times: list[int] = []
    room = np.zeros(len(units), np.int64)
    for at in sorted(range(len(units)), key=lambda at: (-lengths[at], at)):
        fits = room[: len(rows)] >= lengths[at]
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            times.append(bucket(lengths[at], pack.row_tokens))
            room[row] = times[row]
        rows[row] += units[at]
        room[row] -= lengths[at]
    return rows, times


def bucket(length: int, base: int) -> int:
    """The smallest of base × (1, 2, 3, 4, 6, 8, 12, 16, …) that holds `length`: at most a third is padding."""
    return base if length <= base else sampler_bucket(length, 2 * base)
