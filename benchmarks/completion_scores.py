"""Log-probabilities, entropies, a clipped loss and its gradient, beside the program that holds all logits: one table.

    python benchmarks/completion_scores.py [--cases head-896,decoder] [--tokens 1024] [--repeats 3]

"head" is the output matrix alone, given hidden states and V = 151,936; "decoder" is a whole decoder of 0.5B shape (24
layers, D 896, tied, remat full), float32. Memory is the compiled program's own account of its temporaries at 8,192
tokens, for which nothing is allocated. Seconds are medians of interleaved repeats with `--tokens` tokens, since all
logits of 8,192 (5 GB, several times over) need more memory than a small machine has; `--tokens 0` measures none. The
two losses and gradients are compared as well. Both programs give the entropy, and no gradient goes through it.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, forward
from rrm_jax.models.params import abstract_params, init_params
from rrm_jax.rl.logprobs import Scores, Sequences, completion_scores, token_scores

VOCABULARY, ROWS, TEMPERATURE = 151_936, 8, 0.6
MEMORY_TOKENS = 8192
DECODER = DecoderConfig(
    vocab_size=VOCABULARY, hidden_size=896, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64,
    intermediate_size=4864, max_positions=4096, tied_embeddings=True,
)  # fmt: skip
OPTIONS = Options(remat="full")


def full_scores(hidden_BCD, table_VD, targets_BC, temperature: float) -> Scores:
    """What `token_scores` gives, through all logits [B, C, V] at once."""
    logits_BCV = jnp.einsum("bcd,vd->bcv", hidden_BCD, table_VD, preferred_element_type=jnp.float32) / temperature
    log_p_BCV = jax.nn.log_softmax(logits_BCV)
    fixed = jax.lax.stop_gradient(log_p_BCV)
    own = jnp.take_along_axis(log_p_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return Scores(own, -jnp.sum(jnp.exp(fixed) * fixed, axis=-1))


def hidden_states(params, sequences: Sequences):
    hidden_BTD, _ = forward(DECODER, params, sequences.tokens, sequences.positions, sequences.segments, OPTIONS)
    return jnp.take_along_axis(hidden_BTD, sequences.sources[..., None], axis=1)


def full_completion_scores(params, sequences: Sequences) -> Scores:
    return full_scores(hidden_states(params, sequences), params["embedding"], sequences.targets, TEMPERATURE)


def layers_alone(params, sequences: Sequences) -> Scores:
    mean_BC = jnp.mean(hidden_states(params, sequences), axis=-1)
    return Scores(mean_BC, mean_BC)


def clipped_loss(scores: Scores, old_BC, advantage_BC) -> tuple[jax.Array, jax.Array]:
    ratio = jnp.exp(scores.logprob - old_BC)
    gain = jnp.minimum(ratio * advantage_BC, jnp.clip(ratio, 0.8, 1.2) * advantage_BC)
    return -jnp.mean(gain), jnp.mean(jax.lax.stop_gradient(scores.entropy))


@dataclasses.dataclass
class Case:
    """`ours` and `naive` score (parameters, inputs); `make(tokens)` gives these as arrays, `shapes(tokens)` as shapes.

    `layers` stands for a head that needs no memory, where there is anything but a head.
    """

    ours: Callable[[Any, Any], Scores]
    naive: Callable[[Any, Any], Scores]
    make: Callable[[int], tuple[Any, Any]]
    shapes: Callable[[int], tuple[Any, Any]]
    layers: Callable[[Any, Any], Scores] | None = None


def head(width: int) -> Case:
    def make(tokens: int):
        rng, shape = np.random.default_rng(0), (ROWS, tokens // ROWS)
        hidden = rng.standard_normal((*shape, width), dtype=np.float32)
        table = rng.standard_normal((VOCABULARY, width), dtype=np.float32) * 0.05
        return (hidden, table), rng.integers(0, VOCABULARY, shape, dtype=np.int32)

    def shapes(tokens: int):
        shape = (ROWS, tokens // ROWS)
        parameters = tuple(jax.ShapeDtypeStruct((*axes, width), jnp.float32) for axes in (shape, (VOCABULARY,)))
        return parameters, jax.ShapeDtypeStruct(shape, jnp.int32)

    return Case(
        lambda parameters, targets: token_scores(*parameters, targets, TEMPERATURE),
        lambda parameters, targets: full_scores(*parameters, targets, TEMPERATURE),
        make,
        shapes,
    )


def decoder() -> Case:
    def sequences(tokens: int) -> Sequences:
        """Every token but a row's first is a completion token; the last place of C is padding."""
        ids = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, tokens // ROWS), dtype=np.int32)
        positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
        mask = (positions < ids.shape[1] - 1).astype(np.float32)
        return Sequences(ids, positions, np.ones_like(ids), None, positions, np.roll(ids, -1, axis=1), mask)

    def shapes(tokens: int):
        inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), sequences(tokens))
        return abstract_params(DECODER, jnp.float32, stacked=True), inputs

    return Case(
        lambda params, inputs: completion_scores(DECODER, params, inputs, TEMPERATURE, OPTIONS),
        full_completion_scores,
        lambda tokens: (init_params(DECODER, 0), sequences(tokens)),
        shapes,
        layers_alone,
    )


CASES: dict[str, Callable[[], Case]] = {
    "head-896": functools.partial(head, 896),
    "head-1536": functools.partial(head, 1536),
    "decoder": decoder,
}


def gradient_of(score: Callable[[Any, Any], Scores]):
    """Jitted (parameters, inputs, old [B, C], advantage [B, C]) → ((loss, mean entropy), gradient)."""

    def loss(parameters, inputs, old_BC, advantage_BC):
        return clipped_loss(score(parameters, inputs), old_BC, advantage_BC)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def temporaries(score, case: Case) -> float:
    """GiB that the compiled program sets aside for `MEMORY_TOKENS` tokens, beside what goes in and comes out."""
    each = jax.ShapeDtypeStruct((ROWS, MEMORY_TOKENS // ROWS), jnp.float32)
    compiled = gradient_of(score).lower(*case.shapes(MEMORY_TOKENS), each, each).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**30


def measure(case: Case, tokens: int, repeats: int) -> tuple[list[float], list[float], str]:
    """Seconds of ours and of the naive program, and how far apart they are."""
    parameters, inputs = jax.device_put(case.make(tokens))
    shape = (ROWS, tokens // ROWS)
    advantage = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    # Near the log-probabilities themselves, so that ratios are on either side of the clip's bounds.
    near = jax.jit(case.ours)(parameters, inputs).logprob
    old = near + 0.2 * np.random.default_rng(2).standard_normal(shape, dtype=np.float32)
    programs = [gradient_of(case.ours), gradient_of(case.naive)]
    seconds: list[list[float]] = [[], []]
    found: list[Any] = [None, None]
    for repeat in range(-1, repeats):
        for at in (0, 1) if repeat % 2 else (1, 0):
            found[at] = None
            start = time.perf_counter()
            found[at] = jax.block_until_ready(programs[at](parameters, inputs, old, advantage))
            seconds[at].append(time.perf_counter() - start)
            print(f"  {('ours', 'naive')[at]}: {seconds[at][-1]:.2f} s", file=sys.stderr, flush=True)
    (((loss, entropy), gradient), ((naive_loss, naive_entropy), naive_gradient)) = found
    apart = jax.tree.map(lambda a, b: (jnp.sum((a - b) ** 2), jnp.sum(b**2)), gradient, naive_gradient)
    squares = np.array(jax.tree.leaves(apart)).reshape(-1, 2).sum(0)
    said = (
        f"loss {abs(loss / naive_loss - 1):.0e}, entropy {abs(entropy / naive_entropy - 1):.0e}, "
        f"gradient {np.sqrt(squares[0] / squares[1]):.0e} apart"
    )
    return seconds[0][1:], seconds[1][1:], said


def said_seconds(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--tokens", type=int, default=1024, help="for seconds: a multiple of 8, or 0")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    chosen = args.cases.split(",")
    if unknown := [case for case in chosen if case not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if args.tokens % ROWS or args.repeats < 1:
        parser.error(f"--tokens must be a multiple of {ROWS}, --repeats at least 1")
    lines = []
    for name in chosen:
        case = CASES[name]()
        mine, naive = (temporaries(score, case) for score in (case.ours, case.naive))
        note = f"the layers alone {temporaries(case.layers, case):.2f}" if case.layers else ""
        shown = f"{mine:.2f} | {naive:.2f} | {mine / naive:.3f} | ≤ 0.125"
        lines.append(f"| {name}, temporaries, GiB | {MEMORY_TOKENS} | {shown} | {note} |")
        print(lines[-1], file=sys.stderr, flush=True)
        if args.tokens:
            ours, theirs, said = measure(case, args.tokens, args.repeats)
            ratio = statistics.median(ours) / statistics.median(theirs)
            shown = f"{said_seconds(ours)} | {said_seconds(theirs)} | {ratio:.2f} | ≤ 1.15 | {said}"
            lines.append(f"| {name}, seconds | {args.tokens} | {shown} |")
            print(lines[-1], file=sys.stderr, flush=True)
    print(f"{os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}, jax {jax.__version__}, float32; ", end="")
    print(f"V {VOCABULARY}; seconds: medians of {args.repeats} interleaved repeats (min–max)\n")
    print("| case | tokens | ours | all logits | ratio | expected | |")
    print("|---|---:|---:|---:|---:|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
