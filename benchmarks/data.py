"""The paper's amount of data, from records to the trainer's prompts: times, sizes, memory, against what a pod needs.

    python benchmarks/data.py --dir /tmp/data-benchmark --tokenizer DIR [--pairs 420000]

Makes synthetic pairs whose texts are as long as preference data is (a log-normal number of words, median 40 for a query
and 120 for a response), in four parts of the paper's proportions, and then measures, each in a fresh process:

    prepare   records to ArrayRecord, beside a plain copy of the JSONL file (`shutil.copyfile`): time, size, peak memory
    read      random records a second, beside `grain`'s own sampler over `tfds.data_source` of the same files
    feed      prompts a second into a trainer, tokenised with no, 1 and 2 worker processes, and from a cache of token
              ids; the first prompt is waited for apart
    restore   the middle of the first epoch, from nothing to the first prompt there

What a pod needs is 128 prompts a step; a step of the paper's takes minutes, so that a minute is the strictest reading,
2.13 prompts a second. Removes what it made. DIR holds a tokenizer's files, R1-Distill-Qwen's for the paper's figures.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NEEDED = 128 / 60  # prompts a second
PARTS = {"skywork": (80, 5), "tulu": (80, 1), "gpt4o": (80, 1), "synthetic": (180, 1)}  # thousands of pairs, weight

# Each piece runs in a fresh interpreter; the last line says the peak resident memory of it and of its children in MiB.
_AFTER = """
import resource
print(*(int(resource.getrusage(who).ru_maxrss / 1024) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""

_PREPARE = """
import json, sys, time
from pathlib import Path
from rrm_jax.data.jsonl import Reader
from rrm_jax.data.prepared import write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import parse_labelled_pair
home = Path(sys.argv[1])
started = time.perf_counter()
count = 0
for file in sorted(home.glob("*.jsonl")):
    rows = (pair for _, pair in Reader(file, parse_labelled_pair))
    count += write_prepared(home / file.stem, RecordsBuilder, rows, kind="pairs", facts={})
    print(file.stem, f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
print(time.perf_counter() - started, count)
"""

_READ = """
import random, sys, time
from pathlib import Path
from rrm_jax.data.prepared import Prepared
home, count = Path(sys.argv[1]) / "synthetic", int(sys.argv[2])
rows = Prepared(home)
drawn = random.Random(0).choices(range(len(rows)), k=count)
rows[0]
started = time.perf_counter()
for at in drawn:
    rows[at]
print(time.perf_counter() - started, count)
"""

_READ_PEER = """
import random, sys, time
import grain, tensorflow_datasets as tfds
home, count = sys.argv[1] + "/synthetic", int(sys.argv[2])
source = tfds.builder_from_directory(home).as_data_source("train")
records = grain.MapDataset.source(source).seed(0).shuffle().repeat()
loader = iter(records.to_iter_dataset(grain.ReadOptions(num_threads=0)))
next(loader)
started = time.perf_counter()
for _ in range(count):
    next(loader)
print(time.perf_counter() - started, count)
"""

_OPEN = """
import sys, time
from pathlib import Path
started = time.perf_counter()
from rrm_jax.data.pairs import open_pairs
from rrm_jax.data.stream import PairStream, Part
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.template import load_template
from rrm_jax.training.feed import Feed
from rrm_jax.training.token_cache import Encode, open_token_cache
home, tokenizer, workers, start, count, cached = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
weights = {weights}
def main():
    parts = [Part(open_pairs(Path(home) / name, print), weight) for name, weight in weights.items()]
    encode = Encode(load_template("default"), Tokenizer.load(Path(tokenizer)), 4096, True)
    {body}
if __name__ == "__main__":
    main()
"""

_FEED = """
    caches = [open_token_cache(Path(home) / "tokens", part.rows, "", encode) for part in parts] if cached else []
    feed = Feed(PairStream(parts, 0), encode, workers=workers, caches=caches)
    feed.take(start, 1)
    first, again = time.perf_counter() - started, time.perf_counter()
    tokens = sum(len(ids) for _, ids, _ in feed.take(start + 1, count))
    print(time.perf_counter() - again, count, first, tokens)
    feed.close()
"""

_CACHE = """
    again = time.perf_counter()
    caches = [open_token_cache(Path(home) / "tokens", part.rows, "", encode, workers) for part in parts]
    print(time.perf_counter() - again, sum(map(len, caches)), sum(cache.tokens for cache in caches))
"""


def run(code: str, *arguments: object) -> tuple[list[float], list[int]]:
    """What the code's last line printed, and the peak memory of its process and of its largest child, in MiB."""
    script = Path(str(arguments[0])) / "measure.py"  # worker processes import the main module anew: it must be a file
    script.write_text(code.rstrip() + "\n" + "if __name__ == '__main__':" + _AFTER.replace("\n", "\n    ") + "\n")
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    *_, values, memory = done.stdout.strip().splitlines()
    return [float(value) for value in values.split()], [int(value) for value in memory.split()]


def make_pairs(home: Path, pairs: int) -> None:
    """Words of a made-up vocabulary with Zipf's frequencies: a tokenizer takes 2 tokens or so for one."""
    import json

    import numpy as np

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwyp"))
    vocabulary = np.array(["".join(rng.choice(letters, size)) for size in rng.integers(2, 8, 20_000)], dtype=object)
    frequencies = 1 / np.arange(1, len(vocabulary) + 1)
    frequencies /= frequencies.sum()
    pool = rng.choice(len(vocabulary), 1 << 22, p=frequencies)

    def text(median: int) -> str:
        words = int(np.clip(rng.lognormal(np.log(median), 0.8), 3, 3000))
        start = int(rng.integers(len(pool) - words))
        return " ".join(vocabulary[pool[start : start + words]])

    whole = sum(thousands for thousands, _ in PARTS.values())
    for name, (thousands, _) in PARTS.items():
        with open(home / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for at in range(pairs * thousands // whole):
                row = {"id": f"{name}-{at}", "query": text(40), "response_1": text(120), "response_2": text(120)}
                file.write(json.dumps(row | {"label": 1, "source": name}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where to work; must not exist")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=420_000)
    parser.add_argument("--prompts", type=int, default=2000, help="prompts to time the feed with")
    parser.add_argument("--cached-pairs", type=int, default=20_000, help="pairs to tokenise for the cache")
    arguments = parser.parse_args()
    home: Path = arguments.dir
    if home.exists():
        parser.error(f"{home} exists")
    home.mkdir(parents=True)
    try:
        _measure(home, arguments)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _measure(home: Path, arguments: argparse.Namespace) -> None:
    tokenizer = arguments.tokenizer.resolve()
    make_pairs(home, arguments.pairs)
    files = sorted(home.glob("*.jsonl"))
    size = sum(file.stat().st_size for file in files)
    started = time.perf_counter()
    for file in files:
        shutil.copyfile(file, home / "copy")
    print(f"{arguments.pairs:,} pairs, {size / 1e6:,.0f} MB of JSONL; copied in {time.perf_counter() - started:.1f} s")
    (seconds, count), (peak, _) = run(_PREPARE, home)
    made = sum(file.stat().st_size for name in PARTS for file in (home / name).iterdir())
    print(f"prepare    {seconds:7.1f} s {count / seconds:10,.0f} pairs/s; {made / 1e6:,.0f} MB; peak {peak} MiB")
    for name, code in (("read", _READ), ("read, grain", _READ_PEER)):
        (seconds, count), (peak, _) = run(code, home, 20_000)
        print(f"{name:<11}{count / seconds:18,.0f} records/s, at random; peak {peak} MiB")

    weights = {name: weight for name, (_, weight) in PARTS.items()}
    feed = _OPEN.replace("{weights}", repr(weights)).replace("{body}", _FEED.strip())
    middle = arguments.pairs // 2
    for workers in (0, 1, 2):
        for name, start in (("feed", 0), ("restore", middle)):
            values, (peak, child) = run(feed, home, tokenizer, workers, start, arguments.prompts, 0)
            _print_feed(f"{name}, {workers} workers", *values, peak, child)
    # The cache of all pairs takes an hour: a smaller mix of the same lengths says as much.
    small = home / "small"
    small.mkdir()
    make_pairs(small, arguments.cached_pairs)
    run(_PREPARE, small)
    cache = _OPEN.replace("{weights}", repr(weights)).replace("{body}", _CACHE.strip())
    for workers in (0, 2):
        shutil.rmtree(small / "tokens", ignore_errors=True)
        (seconds, count, tokens), (peak, child) = run(cache, small, tokenizer, workers, 0, 0, 1)
        disk = sum(file.stat().st_size for file in small.rglob("tokens-*/*"))
        print(
            f"tokenise, {workers} workers {count / seconds:8,.0f} pairs/s, both orders, {tokens / seconds / 1e6:.2f} M "
            f"tokens/s; {disk / count / 1e3:.1f} KB a pair; peak {peak} + {child} MiB"
        )
    values, (peak, child) = run(feed, small, tokenizer, 0, 0, arguments.prompts, 1)
    _print_feed("feed, cache", *values, peak, child)


def _print_feed(name: str, seconds: float, count: float, first: float, tokens: float, peak: int, child: int) -> None:
    rate = count / seconds
    print(
        f"{name:<20}{rate:9,.0f} prompts/s of {tokens / count:,.0f} tokens, {rate / NEEDED:,.0f} × a pod's need; first "
        f"after {first:.1f} s; peak {peak} + {child} MiB"
    )


if __name__ == "__main__":
    main()
