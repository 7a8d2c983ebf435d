"""Tokens a second of the sampler, beside a bare jitted decode loop and `transformers`' generate.

    JAX_PLATFORMS=cpu python benchmarks/sampling.py --repeats 5 [--torch-python PYTHON] [--vocab 151936] [--top-p 0.95]

Random weights, float32, equal prompts for everyone, every row draws the same number of tokens. "bare loop" is the
least that a decoder can do: one compiled loop over a cache of the exact size with one shared write column, no stop
ids, no log-probs, nothing per row; it draws by argmax, or by Gumbel noise (`jax.random.categorical`). PYTHON is an
interpreter that has torch and transformers (default: this one, if it has them). Runs are interleaved, so that a
busy machine slows all of them alike; prefill is included everywhere, compiling nowhere.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rrm_jax.models.config import DecoderConfig
from rrm_jax.models.decoder import Options, decode, prefill, unembed
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.testing import realistic_params, write_hf_checkpoint


def bare_loop(config: DecoderConfig, params, prompts: np.ndarray, new: int, temperature: float) -> Callable[[], object]:
    rows, time_ = prompts.shape

    @jax.jit
    def run(params, tokens, key):
        lengths = jnp.full((rows,), time_, jnp.int32)
        hidden, cache = prefill(config, params, tokens, lengths, time_ + new, Options())

        def body(i, state):
            hidden, cache, drawn = state
            logits = unembed(config, params, hidden)
            if temperature:
                token = jax.random.categorical(jax.random.fold_in(key, i), logits / temperature)
            else:
                token = jnp.argmax(logits, axis=-1)
            token = token.astype(jnp.int32)
            hidden, cache = decode(config, params, cache, token, lengths + i, time_ + i)
            return hidden, cache, drawn.at[i].set(token)

        return jax.lax.fori_loop(0, new, body, (hidden, cache, jnp.zeros((new, rows), jnp.int32)))[2]

    return lambda: np.asarray(run(params, prompts, jax.random.key(0)))


def ours(config: DecoderConfig, params, prompts: np.ndarray, decoding: Decoding) -> Callable[[], object]:
    sampler = Sampler(config, params, batch_size=len(prompts))
    requests = [Request(str(row), tuple(map(int, prompt)), decoding) for row, prompt in enumerate(prompts)]

    def run():
        completions = list(sampler.generate(requests))
        if sum(len(completion.token_ids) for completion in completions) != len(prompts) * decoding.max_new_tokens:
            raise SystemExit("a row ended early: the runs would not be comparable")
        return completions

    return run


def transformers_process(python: str, directory: str, prompts: np.ndarray, new: int, temperature: float, top_p: float):
    path = Path(directory) / "prompts.json"
    path.write_text(json.dumps(prompts.tolist()), encoding="utf-8")
    script = Path(__file__).with_name("transformers_generate.py")
    command = [python, str(script), directory, str(path), str(new), str(temperature), str(top_p)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ready = process.stdout.readline().split() if process.stdout else []
    if not ready:
        raise SystemExit(f"{python} could not run {script}")
    return process, f"transformers {ready[2]} (torch {ready[1]})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--torch-python", default=sys.executable if importlib.util.find_spec("torch") else None)
    args = parser.parse_args()
    config = DecoderConfig(
        vocab_size=args.vocab, hidden_size=256, num_layers=4, num_heads=8, num_kv_heads=2, head_dim=32,
        intermediate_size=704, max_positions=4096, tied_embeddings=True,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, realistic_params(config, stacked=False))
    prompts = np.random.default_rng(0).integers(0, args.vocab, (args.rows, args.prompt), dtype=np.int32)
    decoding = Decoding(args.temperature, args.top_k, args.top_p, args.new)

    methods: dict[str, Callable[[], object]] = {
        "rrm_jax Sampler": ours(config, params, prompts, decoding),
        "bare loop, argmax": bare_loop(config, params, prompts, args.new, 0.0),
        "bare loop, Gumbel": bare_loop(config, params, prompts, args.new, args.temperature or 1.0),
    }
    for run in methods.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory() as directory:
        peer = None
        if args.torch_python:
            write_hf_checkpoint(directory, config)
            peer, peer_name = transformers_process(
                args.torch_python, directory, prompts, args.new, args.temperature, args.top_p
            )
            seconds[peer_name] = []
        for _ in range(args.repeats):
            for name, run in methods.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
            if peer and peer.stdin and peer.stdout:
                print(file=peer.stdin, flush=True)
                seconds[peer_name].append(float(peer.stdout.readline()))
        if peer:
            peer.communicate()

    tokens = args.rows * args.new
    print(
        f"{args.rows} rows × ({args.prompt} prompt + {args.new} new), V {args.vocab}, T {args.temperature}, "
        f"top-k {args.top_k}, top-p {args.top_p}, float32, on {jax.devices()[0]}; median of {args.repeats}"
    )
    print(f"{'method':<40}{'tokens/s':>10}{'ms a step':>11}{'min s':>8}{'max s':>8}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:<40}{tokens / median:>10.0f}{1e3 * median / args.new:>11.2f}{min(taken):>8.2f}{max(taken):>8.2f}")
    if not peer:
        print("torch is not installed here; --torch-python names an interpreter that has it")


if __name__ == "__main__":
    main()
