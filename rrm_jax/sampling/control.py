"""What a row does next: stop ids, the length limit, the thinking budget, the choice of a verdict; all rows at once.

Axes: B rows, M stop ids, F tokens of a script.

A row draws freely until a token ends its thinking or its budget is used up. From there its tokens may come from its
script: the closing, then one of two choices, which share what comes before the token where they part. A row without
choices goes on after the closing, greedily, within its allowance.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.sampling.distribution import id_hash
from rrm_jax.sampling.protocol import Request


class Rows(NamedTuple):
    """What the rows were asked for, [B] (stop_ids [B, M], padded with −1; script [B, 2, F], script_length [B, 2])."""

    seed: Any
    id_hash: Any
    sample: Any
    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    max_new: Any
    stop_ids: Any
    end_id: Any  # −1: no token ends thinking
    budget: Any  # 0: none
    answer: Any
    script: Any
    script_length: Any
    closing: Any  # how much of the script is the closing


class Progress(NamedTuple):
    """How far the rows are, [B]. A row that is `done`, or never used, draws nothing.

    `drawn` counts new tokens, `limit` is where they end; `cursor` is the place in the script (−1: drawing freely) and
    `branch` the choice taken (−1: none yet); `over`: thinking has ended; `greedy`: forced to be; `stopped`: done by a
    stop id or a completed choice; `forced_from` and `choice`: see `Completion` (−1 and NaN where there is none).
    """

    drawn: Any
    limit: Any
    done: Any
    stopped: Any
    failed: Any
    over: Any
    greedy: Any
    cursor: Any
    branch: Any
    forced_from: Any
    choice: Any


def free_rows(batch: int, stops: int, script: int) -> Rows:
    """Rows that nobody uses yet, host arrays."""
    unsigned, whole, half = np.zeros(batch, np.uint32), np.zeros(batch, np.int32), np.zeros(batch, np.float32)
    return Rows(
        seed=unsigned.copy(), id_hash=unsigned.copy(), sample=unsigned.copy(),
        temperature=half + 1, top_k=whole.copy(), top_p=half + 1, min_p=half.copy(), max_new=whole.copy(),
        stop_ids=np.full((batch, stops), -1, np.int32), end_id=whole - 1, budget=whole.copy(), answer=whole.copy(),
        closing=whole.copy(),
        script=np.zeros((batch, 2, script), np.int32), script_length=np.zeros((batch, 2), np.int32),
    )  # fmt: skip


def scripts(request: Request) -> list[tuple[int, ...]]:
    """The closing followed by each of the two choices; the closing twice where there are none."""
    thinking = request.decoding.thinking
    if thinking is None:
        return [(), ()]
    closing = thinking.closing if thinking.budget is not None else ()
    return [closing + choice for choice in thinking.choices or ((), ())]


def ask(rows: Rows, at: int, request: Request) -> None:
    """Writes what a request asks for into row `at`; `rows` must have room for its stop ids and its script."""
    how, thinking = request.decoding, request.decoding.thinking
    stops = len(how.stop_ids)
    rows.seed[at], rows.id_hash[at], rows.sample[at] = request.seed, id_hash(request.id), request.sample
    rows.temperature[at], rows.top_k[at], rows.top_p[at] = how.temperature, how.top_k, how.top_p
    rows.min_p[at], rows.max_new[at] = how.min_p, how.max_new_tokens
    rows.stop_ids[at] = -1
    rows.stop_ids[at, :stops] = how.stop_ids
    rows.end_id[at] = -1 if thinking is None or thinking.end_id is None else thinking.end_id
    rows.budget[at] = 0 if thinking is None or thinking.budget is None else thinking.budget
    rows.answer[at] = 0 if thinking is None else thinking.answer_tokens
    rows.closing[at] = len(thinking.closing) if thinking is not None and thinking.budget is not None else 0
    rows.script[at] = 0
    for branch, script in enumerate(scripts(request)):
        rows.script[at, branch, : len(script)] = script
        rows.script_length[at, branch] = len(script)


def begin(rows: Rows, progress: Progress, fresh_B) -> Progress:
    """Rows that a new request begins in start from nothing; the others stay as they are."""
    chooses = rows.script_length[:, 0] > rows.closing
    over = chooses & (rows.end_id < 0)  # the prompt has ended the thinking
    nothing = jnp.zeros_like(progress.drawn)
    no, none = jnp.zeros_like(progress.done), nothing - 1
    forced = jnp.where(over, 0, -1)
    start = Progress(
        nothing, rows.max_new, no, no, no, over, no, jnp.where(over, rows.closing, -1), none, forced, nothing + jnp.nan
    )
    return Progress(*(jnp.where(fresh_B, new, old) for new, old in zip(start, progress, strict=True)))


def idle(batch: int) -> Progress:
    """Of `batch` rows in which nothing is at work."""
    whole, no = jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool)
    return Progress(whole, whole, ~no, no, no, no, no, whole - 1, whole - 1, whole - 1, whole + jnp.nan)


def temperature(rows: Rows, progress: Progress) -> jax.Array:
    """[B] float32: 0 where a row now takes the likeliest token."""
    return jnp.where(progress.greedy, 0.0, rows.temperature)


def from_script(rows: Rows, progress: Progress, token_B, logits_BV) -> tuple[jax.Array, Progress]:
    """The token of each row: the drawn one, or the script's, where it parts the more probable one."""
    scripted = progress.cursor >= 0
    at = jnp.clip(progress.cursor, 0, rows.script.shape[2] - 1)
    both = jnp.take_along_axis(rows.script, at[:, None, None], axis=2)[..., 0]
    parting = scripted & (progress.branch < 0) & (both[:, 0] != both[:, 1])
    logits = jnp.take_along_axis(logits_BV, both, axis=1)
    probability = jax.nn.sigmoid(logits[:, 0] - logits[:, 1])
    taken = jnp.where(parting, (probability < 0.5).astype(jnp.int32), progress.branch)
    written = jnp.where(taken == 1, both[:, 1], both[:, 0])
    choice = jnp.where(parting, probability, progress.choice)
    return jnp.where(scripted, written, token_B), progress._replace(branch=taken, choice=choice)


def advance(rows: Rows, progress: Progress, token_B, active_B) -> Progress:
    """The rows' state after `active` ones of them took their token."""
    p = progress
    scripted, drawn = p.cursor >= 0, p.drawn + 1
    chooses = rows.script_length[:, 0] > rows.closing
    length = jnp.where(p.branch == 1, rows.script_length[:, 1], rows.script_length[:, 0])
    # The script: its end completes a choice, or hands over to a greedy answer.
    cursor = jnp.where(scripted, p.cursor + 1, -1)
    ended = scripted & (cursor >= length)
    answers = ended & ~chooses
    limit = jnp.where(answers, jnp.minimum(p.limit, drawn + rows.answer), p.limit)
    # Free tokens: one ends the thinking, or it is one too many.
    ends = ~scripted & ~p.over & (token_B == rows.end_id)
    spent = ~scripted & ~p.over & ~ends & (rows.budget > 0) & (drawn >= rows.budget)
    cursor = jnp.where(answers, -1, cursor)
    cursor = jnp.where(spent, 0, jnp.where(ends & chooses, rows.closing, cursor))
    forces = spent | (ends & chooses)
    stopped = (~scripted & jnp.any(token_B[:, None] == rows.stop_ids, axis=-1)) | (ended & chooses)
    after = Progress(
        drawn, limit, stopped | (drawn >= limit), stopped, p.failed, p.over | ends | spent, p.greedy | answers,
        cursor, p.branch, jnp.where(forces & (p.forced_from < 0), drawn, p.forced_from), p.choice,
    )  # fmt: skip
    return Progress(*(jnp.where(active_B, new, old) for new, old in zip(after, progress, strict=True)))
