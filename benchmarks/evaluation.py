"""What judging a benchmark costs beside decoding: `rrm eval`'s harness, and the engine alone on the same requests.

    python benchmarks/evaluation.py --data PandaLM/data/testset-v1.json --tokenizer DIR [--pairs 999] [--repeats 3]

A small random model (2 layers, 128 wide) with the tokenizer's whole vocabulary judges PandaLM's pairs in both orders,
with so many new tokens each, whatever they say. The harness reads the snapshot's items, makes and fits prompts, reads
verdicts, writes every vote to a store on disk, and collects judgments; the engine alone is given the finished requests.
A model this small is the strictest case: with a larger one decoding takes longer, and the harness does not. Repeats
alternate; the medians of tokens a second are printed, and the share that the harness keeps; also the engine's share of
the harness's own time, which depends less on what else the machine does. One repeat of each, not counted, compiles.
Float32, on CPU unless JAX has an accelerator.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.evaluation.benchmarks import judge_items, load, score
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.store import VoteLog
from rrm_jax.judging.template import load_template
from rrm_jax.models.config import DecoderConfig
from rrm_jax.sampling.protocol import Completion, Decoding, Request
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.testing import realistic_params


class Recorded:
    """A generator that keeps the requests it is given, counts the tokens it gives, and the seconds that it takes for
    them: those in which it waits for requests, or for the next one to be asked for, are not its own."""

    def __init__(self, sampler: Sampler):
        self.sampler, self.requests, self.tokens, self.seconds = sampler, list[Request](), 0, 0.0

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        self.requests, self.tokens, self.seconds = [], 0, 0.0

        def seen() -> Iterator[Request]:
            for request in self._timed(requests, -1):
                self.requests.append(request)
                yield request

        for completion in self._timed(self.sampler.generate(seen()), 1):
            self.tokens += len(completion.token_ids)
            yield completion

    def _timed[T](self, items: Iterable[T], sign: int) -> Iterator[T]:
        """`items`; the time that each takes to come is added to `seconds`, or taken off."""
        iterator, end = iter(items), object()
        while True:
            started = time.perf_counter()
            item = next(iterator, end)
            self.seconds += sign * (time.perf_counter() - started)
            if item is end:
                return
            yield item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=999)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()

    tokenizer = Tokenizer.load(given.tokenizer)
    config = DecoderConfig(
        vocab_size=152_064, hidden_size=128, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=64,
        intermediate_size=256, max_positions=8192, tied_embeddings=True,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, realistic_params(config, stacked=False))
    generator = Recorded(Sampler(config, params, batch_size=given.batch_size))
    # No token ends a completion: all have the same length, in the harness as in the engine.
    decoding = Decoding(0.6, max_new_tokens=given.new_tokens, stop_ids=(config.vocab_size - 1,))
    judge = Judge(generator, tokenizer, load_template("default"), decoding, order="both")

    def harness() -> float:
        started = time.perf_counter()
        loaded = load("pandalm", given.data)
        items = loaded.items[: given.pairs]
        with tempfile.TemporaryDirectory() as home, VoteLog(Path(home) / "votes.jsonl") as log:
            outcome = judge_items(judge, loaded.benchmark, items, log)
        score(loaded.benchmark, items, outcome.verdicts, samples=0)
        assert not outcome.not_judged
        seconds = time.perf_counter() - started
        shares.append(generator.seconds / seconds)
        return generator.tokens / seconds

    def engine() -> float:
        requests, started, tokens = generator.requests, time.perf_counter(), 0
        for completion in generator.sampler.generate(iter(requests)):
            tokens += len(completion.token_ids)
        return tokens / (time.perf_counter() - started)

    shares: list[float] = []
    rates: dict[str, list[float]] = {"harness": [], "engine": []}
    for repeat in range(given.repeats + 1):
        for name, run in (("harness", harness), ("engine", engine)):
            rate = run()
            print(f"{name}: {rate:,.0f} tokens/s" + ("" if repeat else " (not counted)"), file=sys.stderr, flush=True)
            if repeat:
                rates[name].append(rate)
    middle = {name: statistics.median(each) for name, each in rates.items()}
    print(f"{len(generator.requests):,} completions of {given.new_tokens} tokens, {given.batch_size} rows at a time")
    print(f"engine alone {middle['engine']:,.0f} tokens/s; in the harness {middle['harness']:,.0f}")
    print(f"kept: {100 * middle['harness'] / middle['engine']:.1f} %")
    counted = [100 * share for share in shares[1:]]
    print(
        f"of the harness's time the engine's: {statistics.median(counted):.1f} % "
        f"({min(counted):.1f} to {max(counted):.1f})"
    )


if __name__ == "__main__":
    main()
