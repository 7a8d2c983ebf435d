"""What `sampling.py` compares, this project's sampler, a bare jitted loop and peers in processes of their own, and how.

Axes: B rows, T query time, S columns of the cache, D model width, K key/value heads, Q query rows (tokens ×
query heads of one of them), N head width, F MLP width, V vocabulary.

A method is a function without arguments that gives a `Run`: it draws every text anew, prefill included.
"""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.models.config import DecoderConfig
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.sampling.stats import Stats
from rrm_jax.testing import write_hf_checkpoint

Texts = list[list[int]]


@dataclasses.dataclass
class Run:
    """Seconds and CPU-seconds (of the process that did the work, all its threads) of drawing `texts`."""

    seconds: float
    cpu_seconds: float
    texts: Texts
    stats: Stats | None = None


Method = Callable[[], Run]


def ours(sampler: Sampler, requests: Sequence[Request]) -> Method:
    last: dict[str, Stats] = {}
    sampler.progress = lambda stats: last.update(stats=stats)
    order = {(request.id, request.sample): at for at, request in enumerate(requests)}

    def run() -> Run:
        start, cpu = time.perf_counter(), time.process_time()
        completions = list(sampler.generate(requests))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        completions.sort(key=lambda completion: order[completion.request.id, completion.request.sample])
        return Run(seconds, cpu_seconds, [list(c.token_ids) for c in completions], last["stats"])

    return run


def requests_of(prompts: np.ndarray, decoding: Decoding, samples: int = 1) -> list[Request]:
    """`samples` of each prompt [B, T]."""
    return [
        Request(str(at), tuple(prompt.tolist()), decoding, sample)
        for at, prompt in enumerate(prompts)
        for sample in range(samples)
    ]


# The bare loop: one compiled loop over a cache of the exact size, its layers unrolled, one write column for all rows;
# no stop ids, no log-probabilities, no rows that come and go. Its forward pass is its own.


def _norm(x, scale, eps: float):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def _rotate(x_BTHN, angles_TN):
    first, second = jnp.split(x_BTHN, 2, axis=-1)
    cos, sin = jnp.cos(angles_TN)[:, None], jnp.sin(angles_TN)[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _layer(config: DecoderConfig, layer, x_BTD, cache, at, angles_TN):
    """Prefill where `cache` is None (its keys and values are returned as they are), else one more column of it."""
    weights, mlp = layer["attention"], layer["mlp"]
    rows, time_ = x_BTD.shape[:2]
    x = _norm(x_BTD, layer["attention_norm"], config.rms_eps)
    q = jnp.einsum("btd,hnd->bthn", x, weights["q_kernel"]) + weights["q_bias"]
    k = jnp.einsum("btd,knd->btkn", x, weights["k_kernel"]) + weights["k_bias"]
    v = jnp.einsum("btd,knd->btkn", x, weights["v_kernel"]) + weights["v_bias"]
    q = _rotate(q, angles_TN).reshape(rows, time_, config.num_kv_heads, -1, config.head_dim)
    k, v = _rotate(k, angles_TN).swapaxes(1, 2), v.swapaxes(1, 2)
    if cache is not None:
        k, v = (jax.lax.dynamic_update_slice(old, new, (0, 0, at, 0)) for old, new in zip(cache, (k, v), strict=True))
    # Time and group folded into one axis of queries: a plain batched GEMM, which is a tenth faster on CPU.
    q = q.swapaxes(1, 2).reshape(rows, config.num_kv_heads, -1, config.head_dim)
    seen_TS = jnp.arange(k.shape[2]) <= at + jnp.arange(time_)[:, None]
    seen_QS = jnp.repeat(seen_TS, q.shape[2] // time_, axis=0)
    scores = jnp.einsum("bkqn,bksn->bkqs", q, k) * config.head_dim**-0.5
    attended = jax.nn.softmax(jnp.where(seen_QS, scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bkqs,bksn->bkqn", attended, v).reshape(rows, config.num_kv_heads, time_, -1, config.head_dim)
    out = out.swapaxes(1, 2).reshape(rows, time_, -1, config.head_dim)
    x_BTD = x_BTD + jnp.einsum("bthn,dhn->btd", out, weights["o_kernel"])
    x = _norm(x_BTD, layer["mlp_norm"], config.rms_eps)
    gate, up = (jnp.einsum("btd,fd->btf", x, mlp[name]) for name in ("gate_kernel", "up_kernel"))
    return x_BTD + jnp.einsum("btf,df->btd", jax.nn.silu(gate) * up, mlp["down_kernel"]), (k, v)


def _forward(config: DecoderConfig, params, tokens_BT, caches, at):
    """Logits [B, V] of the last column, and every layer's keys and values [B, K, S, N]."""
    frequencies = config.rope.theta ** -(jnp.arange(0, config.head_dim, 2) / config.head_dim)
    angles_TN = (at + jnp.arange(tokens_BT.shape[1]))[:, None] * frequencies
    x, kept = params["embedding"][tokens_BT], []
    for layer, cache in zip(params["layers"], caches, strict=True):
        x, cache = _layer(config, layer, x, cache, at, angles_TN)
        kept.append(cache)
    last = _norm(x[:, -1], params["final_norm"], config.rms_eps)
    return jnp.einsum("bd,vd->bv", last, params["embedding" if config.tied_embeddings else "lm_head"]), kept


@functools.partial(jax.jit, static_argnames=("config", "columns", "greedy"))
def _bare_loop(config: DecoderConfig, params, tokens_BT, new, key, *, columns: int, greedy: bool):
    """Draws `new` (a runtime number) tokens of every row at T = 1, or greedily: int32 [S, B]."""
    rows, prompt = tokens_BT.shape

    def draw(logits, at):
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.random.categorical(jax.random.fold_in(key, at), logits).astype(jnp.int32)

    logits, caches = _forward(config, params, tokens_BT, [None] * config.num_layers, 0)
    caches = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, columns - prompt), (0, 0))), caches)

    def step(at, state):
        caches, drawn = state
        logits, caches = _forward(config, params, drawn[at - 1][:, None], caches, prompt + at - 1)
        return caches, drawn.at[at].set(draw(logits, at))

    drawn = jnp.zeros((columns, rows), jnp.int32).at[0].set(draw(logits, 0))
    return jax.lax.fori_loop(1, new, step, (caches, drawn))[1]


def bare_loop(config: DecoderConfig, params, prompts: np.ndarray, lengths: Sequence[int], *, greedy=False) -> Method:
    """`prompts` int32 [batches, B, T]; `lengths[b]` new tokens of every row of batch b."""
    key = jax.random.key(0)

    def run() -> Run:
        start, cpu = time.perf_counter(), time.process_time()
        texts: Texts = []
        for batch, new in zip(prompts, lengths, strict=True):
            columns = -(-(batch.shape[1] + new) // 64) * 64
            drawn = _bare_loop(config, params, batch, new, key, columns=columns, greedy=greedy)
            texts += np.asarray(drawn)[:new].T.tolist()
        return Run(time.perf_counter() - start, time.process_time() - cpu, texts)

    return run


class Peer:
    """Another project's generation, in an interpreter that has it. It waits while the others run.

    `python` None: nobody gave one; `name` then says so and `method` gives nothing to measure.
    """

    def __init__(self, script: str, python: str | None, name: str):
        self.process, self.name = None, f"{name}: not installed"
        if python is None:
            return
        path = Path(__file__).with_name(script)
        self.process = subprocess.Popen(
            [python, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        self.name = self._line() or name

    def _line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{self.name}: {self.process.args!r} ended; what it said is above")
        return line

    def method(self, prompts: np.ndarray, **job: Any) -> Method | None:
        if self.process is None:
            return None
        job = {"prompts": prompts.tolist(), "temperature": 1.0, "top_p": 1.0, "seed": 0} | job

        def run() -> Run:
            assert self.process is not None
            assert self.process.stdin is not None
            print(json.dumps(job), file=self.process.stdin, flush=True)
            answer = json.loads(self._line())
            return Run(answer["seconds"], answer["cpu_seconds"], answer["texts"])

        return run

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()


@dataclasses.dataclass
class Result:
    """What a method took, medians over the repeats, and its first run."""

    seconds: float
    cpu_seconds: float
    first: Run

    def __str__(self) -> str:
        return f"{self.seconds:.2f} | {self.cpu_seconds:.2f}"


@dataclasses.dataclass
class Bench:
    repeats: int
    directory: Path
    tunix: Peer
    torch: Peer
    lines: list[str] = dataclasses.field(default_factory=list)

    def checkpoint(self, config: DecoderConfig) -> str:
        path = self.directory / f"{config.vocab_size}"
        if not path.exists():
            write_hf_checkpoint(path, config)
        return str(path)

    def measure(self, methods: Mapping[str, Method | None], lengths: Sequence[int]) -> dict[str, Result | None]:
        """Runs every method once, then `repeats` times in turn; every text must have its length."""
        present = {name: method for name, method in methods.items() if method is not None}
        runs: dict[str, list[Run]] = {}
        names = list(present)
        for repeat in range(-1, self.repeats):
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                run = present[name]()
                if [len(text) for text in run.texts] != list(lengths):
                    raise SystemExit(f"{name}: a text is not as long as it should be: the runs are not comparable")
                runs.setdefault(name, []).append(run)
                print(f"  {name}: {run.seconds:.2f} s, {run.cpu_seconds:.2f} CPU-s", file=sys.stderr, flush=True)
        results: dict[str, Result | None] = dict.fromkeys(methods)
        for name, (first, *counted) in runs.items():
            seconds = statistics.median(run.seconds for run in counted)
            results[name] = Result(seconds, statistics.median(run.cpu_seconds for run in counted), first)
        return results

    def line(
        self, case: str, mine: Result | None, beside: str, other: Result | None, *, ratio: float | None = None,
        expected: str = "", holds: bool | None = None, note: str = "",
    ) -> None:  # fmt: skip
        said = "" if holds is None else "yes" if holds else "**no**"
        shown = "" if ratio is None else f"{ratio:.2f}"
        self.lines.append(
            f"| {case} | {mine or '– | –'} | {beside} | {other or '– | –'} | {shown} | {expected} | {said} | {note} |"
        )
        print(self.lines[-1], file=sys.stderr, flush=True)

    def faster(
        self, case: str, mine: Result | None, beside: str, other: Result | None, by: str, least: float, note: str = ""
    ) -> None:
        """A line that says how many times less than another's ours is, `by` "seconds" or "cpu_seconds"."""
        ratio = getattr(other, by) / getattr(mine, by) if mine and other else None
        holds = None if ratio is None or not least else ratio >= least
        said = f"{_UNIT[by]}: theirs ≥ {least:g} × ours" if least else f"{_UNIT[by]}: theirs / ours"
        self.line(case, mine, beside, other, ratio=ratio, expected=said, holds=holds, note=note)

    def dearer(
        self, case: str, mine: Result | None, beside: str, other: Result | None, most: float, note: str = ""
    ) -> None:
        """A line that says how many times another's CPU-seconds ours takes."""
        ratio = mine.cpu_seconds / other.cpu_seconds if mine and other else None
        holds = None if ratio is None or not most else ratio <= most
        expected = f"CPU-s: ≤ {most:g} ×" if most else "CPU-s"
        self.line(case, mine, beside, other, ratio=ratio, expected=expected, holds=holds, note=note)


_UNIT = {"seconds": "s", "cpu_seconds": "CPU-s"}


def same_texts(one: Result | None, two: Result | None) -> str:
    if one is None or two is None:
        return ""
    equal = sum(a == b for a, b in zip(one.first.texts, two.first.texts, strict=True))
    return f"{equal} of {len(one.first.texts)} greedy texts equal"
