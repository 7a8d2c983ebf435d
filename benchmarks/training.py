"""A training step of GRPO beside google-tunix's GRPOLearner: one table, on CPU, float32, random weights.

    python benchmarks/training.py [--cases ragged,full] [--repeats 3] [--steps 10] [--tunix-python PYTHON]

The peer runs in an interpreter of its own (default: this one, where it has it); such an environment is made with

    python -m venv peers-tunix && peers-tunix/bin/pip install google-tunix==0.1.7

4 layers, D 256, F 704, 8 heads / 2 kv of 32, V 8,192 tied; 4 prompts of 64 tokens, 4 samples each, at most 64 new
tokens at T = 1, k3 KL with β 0.04, adamw, one update a step, nothing recomputed in the backward pass. In "ragged" one
id in 24 ends a text, so that lengths are nearly geometric (mean 22 after the cut at 64), on both sides: the weights
are such that the model draws all ids almost alike. In "full" one id in 8,192 does. The reward is ±1 by the parity of
the last token on both sides; here words spell verdicts, and the trainer reads them. Both run their own public loop.

Each run is a new process without a persistent compilation cache; runs of the two alternate. A step's seconds are the
median (minimum–maximum) over all runs and steps but the first `--warm-up` of each; "first step" compiles, and is given
with and without setting up (loading two models and making the trainer, imports left out), the median over runs.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sampling import SMALL  # pyrefly: ignore[missing-import]

from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.judging.prompt import fit
from rrm_jax.judging.template import load_template
from rrm_jax.testing import write_hf_checkpoint

PROMPTS, SAMPLES, PROMPT, NEW, MEAN = 4, 4, 64, 64, 24
SPREAD = 0.02  # of the tied embeddings: logits have a standard deviation of 0.3, as in a model before training
PACK = {"row_tokens": 320, "micro_batch_tokens": 2048}  # a row holds a prompt and its four longest completions
TEMPLATE = """\
system = ""
user = "{query}{response_1}{response_2}"
direct_prefix = ""
"""
WORDS = [f"{number:04d}\\boxed{{Assistant {1 + number % 2}}} " for number in range(SMALL.vocab_size - 7)]
PHASES = ("sample", "score", "update")


def write_model(directory: Path, stop_ids: list[int]) -> None:
    """A Hugging Face directory that both sides read, its tokenizer one whose words are verdicts."""
    from safetensors.numpy import load_file, save_file

    write_hf_checkpoint(directory, SMALL)
    tensors = load_file(directory / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = embedding * np.float32(SPREAD / embedding.std())
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if (size := write_word_tokenizer(directory, WORDS)) != SMALL.vocab_size:
        raise SystemExit(f"the tokenizer has {size} ids, the model {SMALL.vocab_size}")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": stop_ids}), encoding="utf-8")


def write_pairs(path: Path, count: int) -> list[dict[str, Any]]:
    """Pairs whose prompts have exactly `PROMPT` tokens, three of which are the chat template's."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        # Of the first words, which this small tokenizer finds fastest: it is not what is measured.
        words = [WORDS[at] for at in rng.integers(0, 256, PROMPT - 3)]
        texts = ("".join(words[:21]), "".join(words[21:41]), "".join(words[41:]))
        rows.append(dict(zip(("query", "response_1", "response_2"), texts, strict=True)) | {"id": str(number)})
        rows[-1]["label"] = 1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def job_of(case: str, directory: Path, steps: int) -> dict[str, Any]:
    """What one run is told; the same for both sides, each reads what it needs."""
    model = directory / case
    rng = np.random.default_rng(1)
    stops = rng.choice(SMALL.vocab_size, SMALL.vocab_size // MEAN, replace=False) if case == "ragged" else []
    write_model(model, [int(stop) for stop in stops] or [SMALL.vocab_size - 6])
    template = directory / "template.toml"
    template.write_text(TEMPLATE, encoding="utf-8")
    rows = write_pairs(directory / "pairs.jsonl", PROMPTS * steps)
    tokenizer = Tokenizer.load(model)
    shown = [
        fit(
            load_template(template),
            tokenizer,
            (row["query"], row["response_1"], row["response_2"]),
            PROMPT,
            thinking=False,
        )
        for row in rows
    ]
    if any(len(prompt.ids) != PROMPT or prompt.truncated for prompt in shown):
        raise SystemExit(f"a prompt does not have {PROMPT} tokens")
    return {
        "directory": str(model), "pairs": str(directory / "pairs.jsonl"), "template": str(template),
        "prompts": [prompt.ids for prompt in shown], "stop_ids": list(tokenizer.stop_ids), "steps": steps,
        "samples": SAMPLES, "new": NEW, "beta": 0.04, "learning_rate": 1e-6, "pack": PACK,
    }  # fmt: skip


@dataclasses.dataclass
class Side:
    """One of the two, and what its runs answered."""

    script: str
    python: str | None
    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def run(self, job: dict[str, Any]) -> None:
        if self.python is None:
            return
        unset = {"JAX_COMPILATION_CACHE_DIR"}
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        with tempfile.TemporaryDirectory() as output:
            done = subprocess.run(
                [self.python, str(Path(__file__).with_name(self.script))],
                input=json.dumps(job | {"output": f"{output}/run"}) + "\n",
                capture_output=True, text=True, env=environment, check=False,
            )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{self.script} failed:\n{done.stderr[-4000:]}")
        self.runs.append(json.loads(done.stdout.splitlines()[-1]))
        shown = " ".join(f"{step['seconds']:.2f}" for step in self.runs[-1]["steps"])
        print(f"  {self.script}: set-up {self.runs[-1]['setup']:.2f} s, steps {shown}", file=sys.stderr, flush=True)

    def steps(self, warm_up: int, name: str) -> list[float]:
        return [step[name] for run in self.runs for step in run["steps"][warm_up:]]

    def first(self, with_setup: bool) -> list[float]:
        return [run["steps"][0]["seconds"] + run["setup"] * with_setup for run in self.runs]

    def first_phases(self) -> str:
        medians = {phase: statistics.median(run["steps"][0][phase] for run in self.runs) for phase in PHASES}
        return ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in medians.items())


def line(case: str, mine: list[float], theirs: list[float], least: float = 0, note: str = "") -> str:
    def said(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "–"

    ratio = statistics.median(theirs) / statistics.median(mine) if theirs else None
    holds = "" if ratio is None or not least else "yes" if ratio >= least else "**no**"
    expected = f"≥ {least:g}" if least else ""
    shown = "" if ratio is None else f"{ratio:.2f}"
    return f"| {case} | {said(mine)} | {said(theirs)} | {shown} | {expected} | {holds} | {note} |"


def lines_of(case: str, ours: Side, tunix: Side, warm_up: int) -> list[str]:
    def both(name: str) -> tuple[list[float], list[float]]:
        return ours.steps(warm_up, name), tunix.steps(warm_up, name)

    means = [f"{statistics.mean(values):.1f}" for values in both("length") if values]
    spreads = [f"{statistics.mean(values):.2f}" for values in both("reward_std") if values]
    note = f"mean length {' and '.join(means)}; rewards' standard deviation {' and '.join(spreads)}"
    least = {"ragged": 2.0, "full": 1.3}[case]
    compiling = "; ".join(side.first_phases() for side in (ours, tunix) if side.runs)
    return [
        line(f"{case}, a step, s", *both("seconds"), least, note),
        line(f"{case}, a step, CPU-s", *both("cpu_seconds")),
        *(line(f"{case}, {phase}, s", *both(phase)) for phase in PHASES),
        line(f"{case}, first step, s", ours.first(False), tunix.first(False), 2.0, compiling),
        line(f"{case}, first step with setting up, s", ours.first(True), tunix.first(True), 2.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="ragged,full", help="one of them, or both")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=10, help="of a run")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of a run that do not count")
    here = sys.executable if importlib.util.find_spec("tunix") else None
    parser.add_argument("--tunix-python", default=here, help="an interpreter that has tunix")
    args = parser.parse_args()
    if unknown := set(args.cases.split(",")) - {"ragged", "full"}:
        parser.error(f"no such case: {', '.join(unknown)}; there are ragged, full")
    if not 0 < args.warm_up < args.steps:
        parser.error("--warm-up must be at least 1 and below --steps")
    lines, names = [], []
    with tempfile.TemporaryDirectory() as directory:
        for case in args.cases.split(","):
            print(case, file=sys.stderr, flush=True)
            sides = Side("rrm_grpo.py", sys.executable), Side("tunix_grpo.py", args.tunix_python)
            job = job_of(case, Path(directory), args.steps)
            for repeat in range(args.repeats):
                for side in sides if repeat % 2 else sides[::-1]:
                    side.run(job)
            lines += lines_of(case, *sides, args.warm_up)
            names = [side.runs[0]["name"] if side.runs else "not installed" for side in sides]
    counted = args.repeats * (args.steps - args.warm_up)
    print(f"{os.cpu_count()} CPU cores, float32; medians (min–max) of {counted} steps in {args.repeats} runs a side\n")
    print(f"| | {names[0]} | {names[1]} | theirs / ours | expected | holds | |")
    print("|---|---:|---:|---:|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
