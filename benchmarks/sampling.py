"""Decoding, beside a bare jitted loop, google-tunix and `transformers`: one table, on CPU, float32, random weights.

    python benchmarks/sampling.py [--cases uniform,ragged] [--repeats 5] [--torch-python PYTHON] [--tunix-python PYTHON]

The peers run in interpreters of their own (default: this one, where it has them); such an environment is made with

    python -m venv peers-tunix && peers-tunix/bin/pip install google-tunix==0.1.7
    python -m venv peers-torch && peers-torch/bin/pip install torch transformers

Everyone has the same weights and prompts and draws as many tokens as asked: none of them stops early, and the run ends
where one did. Prefill is included, compiling is not: each method runs once before it counts. Repeats are interleaved,
each in another order, so that a busy machine slows all alike; the table has medians of seconds and of CPU-seconds (of
the process that does the work, all its threads), and `ratio` is one of the medians named by "expected". Greedy texts
are compared between methods. "bare" is the least that a decoder can do: one compiled loop over a cache of the exact
size, see `comparison.py`; at T = 1 it draws with `jax.random.categorical`.
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from comparison import Bench, Method, Peer, Result, Run, bare_loop, ours, requests_of, same_texts  # pyrefly: ignore[missing-import]

from rrm_jax.models.config import DecoderConfig
from rrm_jax.sampling.lookup import PromptLookup
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.testing import realistic_params

SMALL = DecoderConfig(
    vocab_size=8192, hidden_size=256, num_layers=4, num_heads=8, num_kv_heads=2, head_dim=32, intermediate_size=704,
    max_positions=4096, tied_embeddings=True,
)  # fmt: skip
WIDE = dataclasses.replace(
    SMALL, vocab_size=151_936, hidden_size=512, num_layers=8, head_dim=64, intermediate_size=1408
)  # fmt: skip


@functools.lru_cache(maxsize=1)
def weights(config: DecoderConfig) -> Any:
    return jax.tree.map(jnp.asarray, realistic_params(config, stacked=False))


def prompts_of(config: DecoderConfig, rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (rows, length), dtype=np.int32)


def stats_of(result: Result | None) -> Any:
    assert result is not None
    return result.first.stats


def uniform(bench: Bench) -> None:
    prompts, new, params = prompts_of(SMALL, 16, 64), 128, weights(SMALL)
    job = {"directory": bench.checkpoint(SMALL), "new": new, "columns": 192}
    drawn, greedy = (Sampler(SMALL, params, batch_size=16) for _ in range(2))
    found = bench.measure(
        {
            "ours": ours(drawn, requests_of(prompts, Decoding(1.0, max_new_tokens=new))),
            "ours, greedy": ours(greedy, requests_of(prompts, Decoding(0.0, max_new_tokens=new))),
            "tunix": bench.tunix.method(prompts, **job),
            "tunix, greedy": bench.tunix.method(prompts, **job, temperature=0.0),
            "bare": bare_loop(SMALL, params, prompts[None], [new]),
            "bare, greedy": bare_loop(SMALL, params, prompts[None], [new], greedy=True),
        },
        [new] * 16,
    )
    mine, mine_greedy = found["ours"], found["ours, greedy"]
    bench.faster("uniform", mine, bench.tunix.name, found["tunix"], "cpu_seconds", 1.1)
    bench.dearer("uniform", mine, "bare, T 1", found["bare"], 1.1)
    note = same_texts(mine_greedy, found["bare, greedy"])
    bench.dearer("uniform, greedy", mine_greedy, "bare, argmax", found["bare, greedy"], 1.1, note)
    note = same_texts(mine_greedy, found["tunix, greedy"])
    bench.faster("uniform, greedy", mine_greedy, bench.tunix.name, found["tunix, greedy"], "cpu_seconds", 0, note)
    bench.dearer("uniform", mine, "bare, argmax", found["bare, greedy"], 0, "another draw: for comparison")


def group(bench: Bench) -> None:
    prompts, samples, new, params = prompts_of(SMALL, 2, 512), 8, 64, weights(SMALL)
    sampler, repeated = Sampler(SMALL, params, batch_size=16), np.repeat(prompts, samples, axis=0)
    job = {"directory": bench.checkpoint(SMALL), "new": new, "columns": 576}
    found = bench.measure(
        {
            "ours": ours(sampler, requests_of(prompts, Decoding(1.0, max_new_tokens=new), samples)),
            "tunix": bench.tunix.method(repeated, **job),
            "bare": bare_loop(SMALL, params, repeated[None], [new]),
        },
        [new] * 16,
    )
    stats = stats_of(found["ours"])
    note = f"prefill {stats.prefill_computed} of {stats.naive_prefill} tokens"
    bench.faster("group", found["ours"], bench.tunix.name, found["tunix"], "cpu_seconds", 2.5, note)
    bench.faster("group", found["ours"], "bare, nothing shared", found["bare"], "cpu_seconds", 0)


def ragged(bench: Bench) -> None:
    rows, params = 16, weights(SMALL)
    prompts = prompts_of(SMALL, 128, 64)
    lengths = np.random.default_rng(0).geometric(1 / 64, len(prompts)).clip(max=512).tolist()
    requests = [
        Request(str(at), tuple(prompt.tolist()), Decoding(1.0, max_new_tokens=new))
        for at, (prompt, new) in enumerate(zip(prompts, lengths, strict=True))
    ]
    longest = [max(batch) for batch in itertools.batched(lengths, rows)]

    def static(greedy: bool) -> Method:
        loop = bare_loop(SMALL, params, prompts.reshape(-1, rows, 64), longest, greedy=greedy)

        def run() -> Run:
            whole = loop()  # every row of a batch goes on to the end of its longest; what is too much is thrown away
            return dataclasses.replace(whole, texts=[text[:n] for text, n in zip(whole.texts, lengths, strict=True)])

        return run

    found = bench.measure(
        {
            "ours": ours(Sampler(SMALL, params, batch_size=rows), requests),
            "static": static(greedy=False),
            "static, argmax": static(greedy=True),
        },
        lengths,
    )
    stats = stats_of(found["ours"])
    steps = f"{stats.steps} steps, static {sum(longest)}; the least is {-(-sum(lengths) // rows)}"
    bench.faster("ragged", found["ours"], "bare, static batches", found["static"], "seconds", 2.5, steps)
    note = "another draw: for comparison"
    bench.faster("ragged", found["ours"], "the same by argmax", found["static, argmax"], "seconds", 0, note)
    busy = stats.row_steps / (stats.steps * rows)
    note = f"{100 * stats.busy:.0f} % where the batch's shrinking at the end counts as no slots"
    bench.line(
        "ragged, slots busy", found["ours"], "", None, ratio=stats.busy, expected="≥ 0.85", holds=stats.busy >= 0.85,
        note=f"{100 * busy:.0f} % of all 16 slots over all steps; {note}",
    )  # fmt: skip


def capacity(bench: Bench) -> None:
    """A row's sample does not depend on what it may draw: the token it has at its end makes it stop there."""
    prompts, new, params = prompts_of(SMALL, 16, 64), 128, weights(SMALL)
    sampler = Sampler(SMALL, params, batch_size=16)
    # A row's last token must be one that it had not drawn before: where it is not, the row takes another sample.
    chosen: dict[int, tuple[int, int]] = {}
    for sample in range(64):
        requests = requests_of(prompts, Decoding(1.0, max_new_tokens=new))
        requests = [dataclasses.replace(request, sample=sample) for request in requests]
        for row, text in enumerate(ours(sampler, requests)().texts):
            if text[-1] not in text[:-1]:
                chosen.setdefault(row, (sample, text[-1]))
        if len(chosen) == len(prompts):
            break
    short, long = [], []
    for row, prompt in enumerate(prompts):
        sample, last = chosen[row]
        for requests, how in (
            (short, Decoding(1.0, max_new_tokens=new)),
            (long, Decoding(1.0, max_new_tokens=4096 - 64, stop_ids=(last,))),
        ):
            requests.append(Request(str(row), tuple(prompt.tolist()), how, sample))
    job = {"directory": bench.checkpoint(SMALL), "new": new}
    found = bench.measure(
        {
            "4096": ours(Sampler(SMALL, params, batch_size=16), long),
            "192": ours(Sampler(SMALL, params, batch_size=16), short),
            "tunix, 4096": bench.tunix.method(prompts, **job, columns=4096),
            "tunix, 192": bench.tunix.method(prompts, **job, columns=192),
        },
        [new] * 16,
    )
    one, two = found["4096"], found["192"]
    if one is None or two is None or one.first.texts != two.first.texts:
        raise SystemExit("capacity: the texts depend on what may be drawn")
    bench.dearer("capacity 4,096, 192 used", one, "ours, capacity 192", two, 1.15, "the same texts")
    bench.dearer(f"{bench.tunix.name}, 4,096", found["tunix, 4096"], f"{bench.tunix.name}, 192", found["tunix, 192"], 0)


def top_p(bench: Bench) -> None:
    prompts, new, params = prompts_of(WIDE, 16, 64), 48, weights(WIDE)
    small, job = prompts_of(SMALL, 16, 64), {"directory": bench.checkpoint(SMALL), "new": new, "columns": 112}

    def drawn(p: float) -> Method:
        requests = requests_of(prompts, Decoding(1.0, top_p=p, max_new_tokens=new))
        return ours(Sampler(WIDE, params, batch_size=16), requests)

    found = bench.measure(
        {
            "top-p 0.95": drawn(0.95),
            "top-p 1": drawn(1.0),
            "tunix, 0.95": bench.tunix.method(small, **job, top_p=0.95),
            "tunix, 1": bench.tunix.method(small, **job),
        },
        [new] * 16,
    )
    bench.dearer("top-p 0.95, V 151,936", found["top-p 0.95"], "ours, top-p 1", found["top-p 1"], 1.25)
    bench.dearer(
        f"{bench.tunix.name}, V 8,192, top-p 0.95", found["tunix, 0.95"], f"{bench.tunix.name}, top-p 1",
        found["tunix, 1"], 0,
    )  # fmt: skip


def round_robin(bench: Bench) -> None:
    new, params, rng = 16, weights(SMALL), np.random.default_rng(0)
    head, tail = rng.integers(0, SMALL.vocab_size, (2, 192)).tolist()
    candidates = rng.integers(0, SMALL.vocab_size, (8, 512)).tolist()
    shared, apart = [], []
    for number, pair in enumerate(itertools.combinations(range(8), 2)):
        first, second = rng.permutation(pair).tolist()
        prompt = (*head, *candidates[first], *candidates[second], *tail[:64])
        shared.append(Request(f"{first}-{second}", prompt, Decoding(1.0, max_new_tokens=new)))
        # Another first token for each, so that no two prompts have a head in common.
        apart.append(dataclasses.replace(shared[-1], prompt_ids=(number, *prompt[1:])))
    found = bench.measure(
        {
            "ours": ours(Sampler(SMALL, params, batch_size=28), shared),
            "apart": ours(Sampler(SMALL, params, batch_size=28), apart),
        },
        [new] * 28,
    )
    stats, other = stats_of(found["ours"]), stats_of(found["apart"])
    share = stats.prefill_computed / stats.naive_prefill
    note = (
        f"prefill {stats.prefill_computed} tokens with padding ({stats.prefilled} without) of {stats.naive_prefill}; "
        f"nothing shared: {other.prefill_computed}"
    )
    bench.line(
        "round robin, prefill", found["ours"], "", None, ratio=share, expected="≤ 0.65 of naive", holds=share <= 0.65,
        note=note,
    )  # fmt: skip
    bench.faster("round robin", found["ours"], "ours, nothing to share", found["apart"], "seconds", 0)


def transformers(bench: Bench) -> None:
    prompts, new, params = prompts_of(WIDE, 16, 512), 64, weights(WIDE)
    job = {"directory": bench.checkpoint(WIDE)}

    def both(name: str, new: int, temperature: float, p: float = 1.0) -> dict[str, Result | None]:
        requests = requests_of(prompts, Decoding(temperature, top_p=p, max_new_tokens=new))
        mine = ours(Sampler(WIDE, params, batch_size=16), requests)
        theirs = bench.torch.method(prompts, **job, new=new, temperature=temperature, top_p=p)
        methods = {f"ours, {name}": mine, f"transformers, {name}": theirs}
        return bench.measure(methods, [new] * 16)

    drawn = both("drawn", new, 0.6, 0.95)
    greedy = both("greedy", new, 0.0)
    first = both("one token", 1, 0.0)  # prefill, and what a call costs

    def compared(case: str, results: dict[str, Result | None], least: float, said: str) -> None:
        mine, theirs = results.values()
        passes = f"{stats_of(mine).steps} passes for {new} tokens" if mine else ""
        whole = "with the prompts' prefill, most of it matrix products at the CPU's limit in both"
        bench.faster(f"{case}, whole call", mine, bench.torch.name, theirs, "seconds", 0, f"{whole}; {passes}")
        later = [_after(result, one) for result, one in zip((mine, theirs), first.values(), strict=True)]
        bench.faster(f"{case}, decoding", later[0], bench.torch.name, later[1], "seconds", least, said)

    compared("transformers, T 0.6, top-p 0.95", drawn, 4, "less the time of a first token")
    compared("transformers, greedy", greedy, 1.7, same_texts(*greedy.values()))


def _after(result: Result | None, first: Result | None) -> Result | None:
    """What a call took beyond the first token of every row."""
    if result is None or first is None:
        return None
    return dataclasses.replace(
        result, seconds=result.seconds - first.seconds, cpu_seconds=result.cpu_seconds - first.cpu_seconds
    )


def look_up(bench: Bench) -> None:
    """Greedy texts of which two thirds stand in the prompt, by a model whose next token follows from the last alone.

    The layers run at full cost, but add nothing to the residual stream, and the output matrix gives every token its
    one successor. A prompt holds four passages of 64 tokens of that chain, in disorder and with 32 left out between
    them; the completion runs through the chain from the first passage's beginning.
    """
    config = dataclasses.replace(SMALL, tied_embeddings=False)
    params = realistic_params(config, stacked=False)
    chain = np.random.default_rng(0).permutation(config.vocab_size).astype(np.int32)
    params["lm_head"] = np.zeros_like(params["embedding"])
    params["lm_head"][np.roll(chain, -1)] = params["embedding"][chain]
    for layer in params["layers"]:
        layer["attention"]["o_kernel"] = np.zeros_like(layer["attention"]["o_kernel"])
        layer["mlp"]["down_kernel"] = np.zeros_like(layer["mlp"]["down_kernel"])
    params = jax.tree.map(jnp.asarray, params)
    new, prompts = 384, []
    for row in range(16):
        text = chain[500 * row : 500 * row + 500]
        passages = [text[96 * number : 96 * number + 64] for number in (2, 0, 3, 1)]
        prompts.append(np.concatenate([*passages, text[:2]]))
    prompts = np.stack(prompts)
    requests = requests_of(prompts, Decoding(0.0, max_new_tokens=new))
    found = bench.measure(
        {
            "look-up": ours(Sampler(config, params, batch_size=16, lookup=PromptLookup()), requests),
            "plain": ours(Sampler(config, params, batch_size=16), requests),
            "bare": bare_loop(config, params, prompts[None], [new], greedy=True),
        },
        [new] * 16,
    )
    guessed, plain = stats_of(found["look-up"]), stats_of(found["plain"])
    ratio, texts = plain.steps / guessed.steps, [result.first.texts for result in found.values() if result]
    note = f"{guessed.steps} and {plain.steps} passes; two thirds of the text is quoted; 4 guesses a pass"
    bench.line(
        "look-up", found["look-up"], "ours, no look-up", found["plain"], ratio=ratio,
        expected="passes: ≥ 1.5 × fewer, same text", holds=ratio >= 1.5 and texts[0] == texts[1], note=note,
    )  # fmt: skip
    note = same_texts(found["look-up"], found["bare"])
    bench.dearer("look-up", found["look-up"], "bare, argmax", found["bare"], 0, note)


CASES: dict[str, Callable[[Bench], None]] = {
    "uniform": uniform,
    "group": group,
    "ragged": ragged,
    "capacity": capacity,
    "top-p": top_p,
    "round-robin": round_robin,
    "transformers": transformers,
    "look-up": look_up,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=5)
    for peer, module in (("torch", "torch"), ("tunix", "tunix")):
        here = sys.executable if importlib.util.find_spec(module) else None
        parser.add_argument(f"--{peer}-python", default=here, help=f"an interpreter that has {peer}")
    args = parser.parse_args()
    chosen = args.cases.split(",")
    if unknown := [case for case in chosen if case not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    jax.config.update("jax_platforms", "cpu")
    tunix = Peer("tunix_generate.py", args.tunix_python, "tunix")
    torch = Peer("transformers_generate.py", args.torch_python, "transformers")
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(args.repeats, Path(directory), tunix, torch)
        try:
            for case in chosen:
                print(case, file=sys.stderr, flush=True)
                CASES[case](bench)
        finally:
            tunix.close()
            torch.close()
    print(
        f"{os.cpu_count()} CPU cores, jax {jax.__version__}, float32; medians of {args.repeats} interleaved repeats\n"
    )
    print("| case | s | CPU-s | beside | s | CPU-s | ratio | expected | holds | |")
    print("|---|---:|---:|---|---:|---:|---:|---|---|---|")
    print("\n".join(bench.lines))


if __name__ == "__main__":
    main()
