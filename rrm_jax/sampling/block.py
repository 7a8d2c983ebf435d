"""The block of decode steps: what a device does between two looks of the host.

Axes: B rows, J drafts, T = 1 + J tokens of a step, I steps of a block, V vocabulary, D model width.

A step draws each row's next token from its last hidden state, guesses J more where prompt look-up is on, runs them all
through the decoder, and keeps those guesses that the row draws itself. A row's token t is drawn with the key (seed,
request, sample, t), so guessing changes how many steps a text takes and never the text.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrm_jax.models import decoder
from rrm_jax.models.cache import Cache, Prefix, Segment, take_rows
from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, Params
from rrm_jax.sampling import control
from rrm_jax.sampling.control import Progress, Rows
from rrm_jax.sampling.distribution import Draw, base_keys, draw
from rrm_jax.sampling.lookup import PromptLookup, guess


class Slots(NamedTuple):
    """The rows' state, which stays on the device: their own columns [B, K, S, N] a layer, last hidden states [B, D],
    progress, and, for prompt look-up alone, the tokens so far [B, C]."""

    layers: list[Segment]
    hidden: jax.Array
    progress: Progress
    history: jax.Array | None


class Shared(NamedTuple):
    """The prompts' state on the device: a Segment [U, K, P, N] a layer, and each prompt's last hidden state [U, D]."""

    layers: list[Segment]
    hidden: jax.Array


class Record(NamedTuple):
    """Tokens int32 and their log-probabilities float32, [B, I × T]."""

    token: Any
    logprob: Any
    model_logprob: Any


class Drawn(NamedTuple):
    """A block's result: a record, of which row b has its first `count[b]`; the rows' progress after it; how many steps
    were made, and how many rows were at work in them, summed."""

    record: Record
    count: Any
    progress: Progress
    steps: Any
    row_steps: Any


class Start(NamedTuple):
    """What begins with a block: `fresh` bool [B] marks rows that a new request begins in, after prefix `source`
    (int32 [W, B/W], within its part of the batch) of `length` int32 [B] tokens, `prompt` int32 [B, C] (or None)."""

    fresh: Any
    source: Any
    length: Any
    prompt: Any


class Table(NamedTuple):
    """Which rows read which prefix: see `cache.Prefix`."""

    length: Any
    rows: Any
    place: Any


def decode_block(
    config: DecoderConfig, options: Options, params: Params, slots: Slots, shared: Shared, table: Table, rows: Rows,
    start: Start, limit, enough, *, steps: int, lookup: PromptLookup | None, early: bool,
) -> tuple[Slots, Drawn]:  # fmt: skip
    """`steps` steps; with `early`, at most `limit` ≤ `steps`, and none once `enough` or fewer rows are at work.

    Needs drawn + steps × T + J ≤ S of every row at work.
    """
    rows, start, table = jax.tree.map(lambda x: _by_row(options, x), (rows, start, table))
    slots = _begin(slots, shared, rows, start)
    keys_B = base_keys(rows.seed, rows.id_hash, rows.sample)
    prefix = Prefix(shared.layers, table.length, table.rows, table.place)
    batch = rows.seed.shape[0]
    width = steps * (1 + (lookup.drafts if lookup else 0))
    began_B = slots.progress.drawn

    def step(state):
        at, row_steps, slots, record = state
        row_steps += jnp.sum(~slots.progress.done)
        slots, record = _step(config, options, params, slots, prefix, rows, start, keys_B, began_B, record, lookup)
        return at + 1, row_steps, slots, record

    empty = jnp.zeros((batch, width), jnp.float32)
    state = jnp.int32(0), jnp.int32(0), slots, Record(empty.astype(jnp.int32), empty, empty)
    if early:
        state = jax.lax.while_loop(lambda s: (s[0] < limit) & (jnp.sum(~s[2].progress.done) > enough), step, state)
    else:  # a trip count that is known beforehand keeps a GPU from asking the host before each step
        state = jax.lax.fori_loop(0, steps, lambda _, s: step(s), state)
    made, row_steps, slots, record = state
    return slots, Drawn(record, slots.progress.drawn - began_B, slots.progress, made, row_steps)


def _by_row(options: Options, x) -> jax.Array:
    x = jnp.asarray(x)
    return options.constrain(x, "batch", *(None,) * (x.ndim - 1))


def _begin(slots: Slots, shared: Shared, rows: Rows, start: Start) -> Slots:
    """Fresh rows take the last hidden state of their prompt."""
    hidden = jnp.where(start.fresh[:, None], take_rows(shared.hidden, start.source), slots.hidden)
    progress = control.begin(rows, slots.progress, start.fresh)
    history = slots.history
    if history is not None:
        history = jnp.where(start.fresh[:, None], start.prompt, history)
    return slots._replace(hidden=hidden, progress=progress, history=history)


def _step(config, options, params, slots: Slots, prefix, rows, start, keys_B, began_B, record, lookup):
    drafts = lookup.drafts if lookup else 0
    before = slots.progress
    active = ~before.done
    with jax.named_scope("draw"):
        logits = _logits(config, options, params, slots.hidden)
        token, logprob, model_logprob, progress = _choose(options, logits, rows, before, keys_B)
    record = _write(record, active & ~progress.failed, before.drawn - began_B, token, logprob, model_logprob)
    history, tokens = slots.history, token[:, None]
    if lookup is not None:
        history = _put(history, start.length + before.drawn, token, active)
        guesses = guess(lookup, history, start.length + progress.drawn)
        tokens = jnp.concatenate([tokens, jnp.maximum(guesses, 0)], axis=1)
    # A row that is done goes on writing to its first columns, where it no longer matters, and reads little.
    length = jnp.where(active, before.drawn, 0)
    hidden, layers = decoder.extend(config, params, Cache(slots.layers, length, prefix), tokens, options)
    if lookup is None:
        return Slots(layers, hidden[:, 0], progress, None), record
    checked = _check(config, options, params, hidden[:, :drafts], rows, progress, keys_B)
    accepted = active & ~progress.failed
    last = jnp.zeros_like(progress.drawn)
    for at in range(drafts):
        drawn, logprob, model_logprob = (x[:, at] for x in checked)
        # A row whose thinking ends, or that must be greedy from here, begins anew with the next step.
        free = (progress.cursor < 0) & (progress.greedy == before.greedy) & ~progress.done
        accepted &= free & (drawn == tokens[:, 1 + at])
        record = _write(record, accepted, progress.drawn - began_B, drawn, logprob, model_logprob)
        history = _put(history, start.length + progress.drawn, drawn, accepted)
        progress = control.advance(rows, progress, drawn, accepted)
        last += accepted
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return Slots(layers, hidden, progress, history), record


def _logits(config, options: Options, params, hidden_BD) -> jax.Array:
    # Two constraints: with the last alone, XLA gathers the output matrix rather than the logits.
    logits = decoder.unembed(config, params, hidden_BD)
    logits = options.constrain(logits, "batch", "vocab")
    return options.constrain(logits, "batch", None)


def _draw(options: Options, *by_row) -> Draw:
    """Each device draws for its own rows: none waits to hear whether another's need a second look."""
    if options.spec is None:
        return draw(*by_row)
    rows = options.spec(("batch",))
    return jax.shard_map(draw, in_specs=(rows,) * len(by_row), out_specs=rows, check_vma=False)(*by_row)


def _choose(options: Options, logits_BV, rows: Rows, progress: Progress, keys_B):
    """Each row's next token, with its log-probabilities, and the rows' state after it."""
    keys = jax.vmap(jax.random.fold_in)(keys_B, progress.drawn)
    how = control.temperature(rows, progress), rows.top_k, rows.top_p, rows.min_p
    drawn = _draw(options, logits_BV, keys, *how)
    scripted = progress.cursor >= 0
    token, chosen = control.from_script(rows, progress, drawn.token, logits_BV)
    active = ~progress.done
    after = control.advance(rows, chosen, token, active & drawn.finite)
    failed = active & ~drawn.finite
    after = after._replace(failed=after.failed | failed, done=after.done | failed)
    logits_B2 = jnp.take_along_axis(logits_BV, jnp.stack([token, drawn.token], axis=1), axis=1)
    model_logprob = drawn.model_logprob + logits_B2[:, 0] - logits_B2[:, 1]
    return token, jnp.where(scripted, 0.0, drawn.logprob), model_logprob, after


def _check(config, options, params, hidden_BJD, rows: Rows, progress: Progress, keys_B):
    """What each row would draw after each of its guesses: token, logprob, model_logprob [B, J]."""
    batch, drafts = hidden_BJD.shape[:2]
    logits = _logits(config, options, params, hidden_BJD.reshape(batch * drafts, -1))
    each = lambda x: jnp.repeat(x, drafts, axis=0)  # noqa: E731
    place = jnp.tile(jnp.arange(drafts), batch) + each(progress.drawn)
    keys = jax.vmap(jax.random.fold_in)(each(keys_B), place)
    how = (control.temperature(rows, progress), rows.top_k, rows.top_p, rows.min_p)
    drawn = _draw(options, logits, keys, *(each(x) for x in how))
    token = jnp.where(drawn.finite, drawn.token, -2)  # agrees with no guess: the row fails with its next step
    return tuple(x.reshape(batch, drafts) for x in (token, drawn.logprob, drawn.model_logprob))


def _put(x_BC, at_B, value_B, where_B) -> jax.Array:
    """x[b, at[b]] = value[b] where asked. The whole of x is small: a scatter would cross devices, or loop over rows."""
    here = (jnp.arange(x_BC.shape[1], dtype=jnp.int32) == at_B[:, None]) & where_B[:, None]
    return jnp.where(here, value_B[:, None], x_BC)


def _write(record: Record, where_B, at_B, *values) -> Record:
    return Record(*(_put(x, at_B, value, where_B) for x, value in zip(record, values, strict=True)))
