"""Time and memory of `rrm convert` and `rrm export` on a random model of R1-Distill-Qwen-1.5B's shape.

    python benchmarks/conversion.py --dir /tmp/conversion

Makes 3.6 GB of bfloat16 weights in two files below --dir, converts and exports them in processes of their own, and
copies the same files with `shutil.copytree`, in turns; checks that every exported tensor equals its source bit for
bit; removes what it made. Times are medians, and until the data is on disk. Needs 15 GB of disk. Linux only (peak
resident memory is read from /proc).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

# Each piece runs in a fresh interpreter and prints "seconds, MiB resident before, peak MiB resident".
_MEASURE = """
import os, shutil, sys, time
def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))
{imports}
os.sync()
before, start = resident("VmRSS:"), time.perf_counter()
{work}
os.sync()
print(time.perf_counter() - start, before, resident("VmHWM:"))
"""
_LIBRARIES = "import jax\nfrom orbax.checkpoint import v1"
_OURS = "from rrm_jax.checkpoints.convert import convert, export"


def measure(imports: str, work: str) -> tuple[float, float, float]:
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE.format(imports=imports, work=work)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    seconds, before, peak = map(float, run.stdout.split())
    return seconds, before, peak


def make_model(directory: Path) -> None:
    """Random weights, in shards, written with our own writer: the tensors are drawn one at a time."""
    import ml_dtypes
    import numpy as np

    from rrm_jax.checkpoints.assets import write_json
    from rrm_jax.checkpoints.hf import write_safetensors
    from rrm_jax.models.config import DecoderConfig, to_hf
    from rrm_jax.models.params import named_specs

    config = DecoderConfig(
        vocab_size=151_936,
        hidden_size=1536,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        intermediate_size=8960,
        max_positions=131_072,
    )
    directory.mkdir(parents=True)
    write_json(directory / "config.json", to_hf(config) | {"torch_dtype": "bfloat16"})
    rng = np.random.default_rng(0)

    planned = {names: (spec, np.dtype(ml_dtypes.bfloat16)) for names, spec in named_specs(config)}

    def draw(names):
        shape = planned[names][0].hf_shape
        return (rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)).astype(ml_dtypes.bfloat16)

    write_safetensors(directory, planned, draw, max_shard_bytes=2 * 10**9)


def count_equal_tensors(a: Path, b: Path) -> tuple[int, int]:
    """How many tensors of `a` are the same, bit for bit, in `b`; and how many there are."""
    from rrm_jax.checkpoints.assets import read_config
    from rrm_jax.checkpoints.hf import HfWeights
    from rrm_jax.models.params import named_specs

    config = read_config(a)
    first, second = HfWeights(a, config), HfWeights(b, read_config(b))
    specs = [spec for _, spec in named_specs(config)]
    same = sum(
        first.dtype(spec) == second.dtype(spec) and first.read(spec).tobytes() == second.read(spec).tobytes()
        for spec in specs
    )
    return same, len(specs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where to work; must not exist")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    root: Path = arguments.dir
    source, copied, converted, exported = (root / name for name in ("source", "copy", "converted", "exported"))
    if root.exists():
        parser.error(f"{root} exists")
    try:
        make_model(source)
        shards = sorted(source.glob("*.safetensors"))
        size = sum(shard.stat().st_size for shard in shards)
        *_, libraries = measure(_LIBRARIES, "")
        print(f"source: {size / 1e9:.2f} GB of bfloat16 in {len(shards)} files; {arguments.repeats} repeats")
        print(f"empty process, jax and orbax imported: {libraries:.0f} MiB resident")
        jobs = {
            "shutil.copytree": ("", f"shutil.copytree({str(source)!r}, {str(copied)!r})"),
            "convert": (_OURS, f"convert({str(source)!r}, {str(converted)!r})"),
            "export": (_OURS, f"export({str(converted)!r}, {str(exported)!r})"),
        }
        results = {name: [] for name in jobs}
        for _ in range(arguments.repeats):
            for made in (copied, converted, exported):
                shutil.rmtree(made, ignore_errors=True)
            for name, job in jobs.items():
                results[name].append(measure(*job))
        print(f"\n{'':16} {'s':>6} {'fastest':>8} {'MB/s':>6} {'peak above empty':>18} {'above our imports':>18}")
        for name, runs in results.items():
            seconds, fastest = (pick(run[0] for run in runs) for pick in (statistics.median, min))
            peak = max(run[2] - libraries for run in runs), max(run[2] - run[1] for run in runs)
            memory = [f"{mib:.0f} MiB" if jobs[name][0] else "-" for mib in peak]
            print(
                f"{name:16} {seconds:6.1f} {fastest:8.1f} {size / 1e6 / seconds:6.0f} {memory[0]:>18} {memory[1]:>18}"
            )
        same, count = count_equal_tensors(source, exported)
        print(f"\n{same} of {count} exported tensors equal their source bit for bit")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
