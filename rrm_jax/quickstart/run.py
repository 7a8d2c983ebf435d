"""The whole road on a laptop: data, warm start, GRPO, DirectJudge, held-out accuracy, best of 8."""

import collections
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rrm_jax.checkpoints.convert import save_model
from rrm_jax.checkpoints.run_files import read_metrics
from rrm_jax.config import load_config
from rrm_jax.data.jsonl import Reader
from rrm_jax.data.records import Candidates, parse_candidates, parse_labelled_pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.evaluation.tournament import comparer
from rrm_jax.judging.judge import Judge
from rrm_jax.judging.template import load_template
from rrm_jax.models.config import DecoderConfig, to_hf
from rrm_jax.models.params import init_params
from rrm_jax.quickstart import world
from rrm_jax.ranking.protocol import Item
from rrm_jax.ranking.strategies import Knockout, RoundRobin
from rrm_jax.ranking.tournament import run_tournaments
from rrm_jax.sampling.opening import open_sampler
from rrm_jax.sampling.protocol import Decoding
from rrm_jax.sampling.sampler import Sampler
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.evaluate import both_orders
from rrm_jax.training.train import train_to_the_end

Report = Callable[[str], None]

RUNS = ("warm_start", "grpo", "direct_warm_start", "direct_grpo")
CANDIDATES = 8
_TEMPERATURES = (1.0, 0.6)
DERAIL = 0.7
PACKAGED_DIRECTORY = "runs/quickstart"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Rows made for each purpose."""

    demonstrations: int = 20_000
    pairs: int = 6_000
    eval: int = 500
    rank: int = 100


def quickstart(directory: Path, seed: int = 0, report: Report = print, sizes: Sizes = Sizes()) -> dict[str, Any]:
    """Runs everything below `directory`, skipping what an earlier, interrupted call has finished there.

    Returns (and writes to `results.json`) held-out accuracies, best-of-8 accuracies and seconds by stage.
    """
    started, seconds = time.perf_counter(), {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        report(f"── {name}")
        value = work()
        seconds[name] = time.perf_counter() - begun
        return value

    stage("make the data and a random tiny model", lambda: prepare(directory, seed, sizes))
    for name in RUNS:
        stage(f"train {name}", lambda name=name: train_run(directory, name, seed, report))
    scores = stage("judge held-out pairs", lambda: _held_out(directory, seed))
    ranked = stage("rank best of 8", lambda: _best_of_n(directory, seed))
    results = {
        "seed": seed,
        "held_out": scores,
        "best_of_8": ranked,
        "curves": {name: _curve(directory / name) for name in RUNS},
        "seconds": seconds | {"total": time.perf_counter() - started},
    }
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def prepare(directory: Path, seed: int, sizes: Sizes) -> None:
    """Writes the data, the template and the random base model; every split is made from seeds of its own."""
    data = directory / "data"
    first = 1_000 * seed
    files = {
        "demonstrations.jsonl": lambda: world.demonstrations(sizes.demonstrations, first + 1, DERAIL, True),
        "direct_demonstrations.jsonl": lambda: world.demonstrations(sizes.demonstrations, first + 1, DERAIL, False),
        "pairs.jsonl": lambda: world.pairs(sizes.pairs, first + 2),
        "eval.jsonl": lambda: world.pairs(sizes.eval, first + 3),
        "four_digits.jsonl": lambda: world.pairs(sizes.eval, first + 5, digits=world.DIGITS - 1),
        "solutions.jsonl": lambda: world.solutions(sizes.demonstrations, first + 6, DERAIL),
        "questions.jsonl": lambda: world.questions(sizes.pairs, first + 7),
        "held_out_questions.jsonl": lambda: world.questions(sizes.eval, first + 8),
        "candidates.jsonl": lambda: world.candidates(sizes.rank, first + 4, CANDIDATES, right=0.35, popular=0.6),
    }
    for name, rows in files.items():
        if not (data / name).exists():
            world.write_jsonl(data / name, rows())
    (directory / "template.toml").write_text(world.TEMPLATE, encoding="utf-8")
    if not (directory / "base").exists():
        _write_base_model(directory / "base", seed)


def _write_base_model(path: Path, seed: int) -> None:
    with tempfile.TemporaryDirectory() as assets:
        vocabulary = write_word_tokenizer(assets, world.WORDS)
        config = DecoderConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            intermediate_size=128,
            max_positions=512,
            initializer_range=0.1,
        )
        (Path(assets) / "config.json").write_text(json.dumps(to_hf(config), indent=2) + "\n", encoding="utf-8")
        save_model(path, config, init_params(config, seed), Path(assets), {})


def train_run(directory: Path, name: str, seed: int, report: Report) -> None:
    """Trains as the packaged configuration `name` says (of `RUNS`, or another), with its paths moved to `directory`."""
    packaged = load_config(TrainConfig, f"quickstart/{name}.yaml")

    def moved(path: str) -> str:
        return str(directory / Path(path).relative_to(PACKAGED_DIRECTORY))

    data = packaged.data
    overrides = {
        "output": moved(packaged.output),
        "model.path": moved(packaged.model.path),
        "data.train": moved(data.parts[0].path),
        "data.eval": moved(data.eval or ""),
        "judge.template": moved(packaged.judge.template),
        "seed": seed,
    }
    arguments = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    config = load_config(TrainConfig, f"quickstart/{name}.yaml", arguments)
    train_to_the_end(config, report)


@functools.lru_cache(maxsize=1)
def _model(path: Path) -> tuple[Sampler, Tokenizer]:
    return open_sampler(path, jnp.float32, batch_size=256)


def _judge(directory: Path, name: str, temperature: float, **settings: Any) -> Judge:
    sampler, tokenizer = _model(directory / name)
    return Judge(
        sampler,
        tokenizer,
        load_template(directory / "template.toml"),
        Decoding(temperature, max_new_tokens=12),
        max_prompt_tokens=256,
        thinking=not name.startswith("direct"),
        **settings,
    )


def _held_out(directory: Path, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of every run's last weights on the held-out pairs, both orders, by temperature."""
    pairs = [pair for _, pair in Reader(directory / "data" / "eval.jsonl", parse_labelled_pair)]
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name in RUNS:
        scores[name] = {}
        for temperature in _TEMPERATURES:
            judge = _judge(directory, name, temperature, seed=seed, order="both")
            scores[name][str(temperature)] = both_orders(list(judge.judge(pairs)))
    return scores


def _best_of_n(directory: Path, seed: int) -> dict[str, dict[str, float]]:
    """Share of questions whose chosen candidate is right, and comparisons a question, by way of choosing."""
    rows = {row.id: row for _, row in Reader(directory / "data" / "candidates.jsonl", parse_candidates)}
    items = [Item(row.id, len(row.responses)) for row in rows.values()]
    right = np.array([row.correct for row in rows.values()])
    ways = {
        "one sample": {"accuracy": float(right.mean()), "comparisons": 0.0},
        "majority of the answers": {"accuracy": _majority(list(rows.values())), "comparisons": 0.0},
    }
    strategies = {
        "knockout": (Knockout(), 1),
        "knockout, voting@5": (Knockout(), 5),
        "Elo, round robin": (RoundRobin(), 1),
    }
    for name, (strategy, votes) in strategies.items():
        judge = _judge(directory, "grpo", _TEMPERATURES[0], seed=seed, votes=votes)
        played = run_tournaments(items, strategy, comparer(judge, None, rows), seed=seed)
        results = [one.result for one in played]
        ways[name] = {
            "accuracy": float(np.mean([right[at, result.best] for at, result in enumerate(results)])),
            "comparisons": float(np.mean([result.comparisons for result in results])),
        }
    ways["oracle"] = {"accuracy": float(right.any(axis=1).mean()), "comparisons": 0.0}
    return ways


def _majority(rows: Sequence[Candidates]) -> float:
    """Accuracy of the most common answer; answers that are equally common share the credit."""
    credit = []
    for row in rows:
        counts = collections.Counter(row.responses)
        most = max(counts.values())
        right = dict(zip(row.responses, row.correct or (), strict=True))
        credit.append(np.mean([right[answer] for answer, count in counts.items() if count == most]))
    return float(np.mean(credit))


def _curve(run: Path) -> dict[str, list[float]]:
    rows = read_metrics(run, "eval")
    return {"step": [row["step"] for row in rows], "accuracy": [row["accuracy"] for row in rows]}
