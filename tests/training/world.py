"""A base model, pairs and configurations small enough to train in seconds."""

from pathlib import Path
from typing import Any

from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.quickstart import world
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.train import train


def make_base(directory: Path) -> Path:
    """A Hugging Face directory: a tiny random model with the quickstart's tokenizer."""
    vocabulary = write_word_tokenizer(directory, world.WORDS)
    write_hf_checkpoint(directory, tiny_config(vocab_size=vocabulary + vocabulary % 2))
    return directory


def make_data(directory: Path) -> None:
    world.write_jsonl(directory / "pairs.jsonl", world.pairs(40, 1))
    world.write_jsonl(directory / "eval.jsonl", world.pairs(6, 2))
    world.write_jsonl(directory / "demonstrations.jsonl", world.demonstrations(40, 3, 0.5, thinking=False))
    (directory / "template.toml").write_text(world.TEMPLATE, encoding="utf-8")


def make_warm(directory: Path, **changes: Any) -> Path:
    """A base model, data, and `warm`: a model that gives verdicts, made of the first as the settings `changes` say."""
    make_base(directory / "base")
    make_data(directory)
    warm_up = {"method": "supervised", "steps": 40, "checkpoint": {"every": 40, "keep": 1}}
    paths = {"model__path": str(directory / "base"), "data__train": str(directory / "demonstrations.jsonl")}
    config = settings(directory, "warm", **warm_up | paths | {"supervised__batch_size": 16} | changes)
    train(TrainConfig.model_validate(config), False, lambda message: None)
    return directory


def make_home(directory: Path) -> Path:
    """What `make_warm` makes, and `full`: an ordinary run of three steps."""
    make_warm(directory)
    train(TrainConfig.model_validate(settings(directory, "full")), False, lambda message: None)
    return directory


def settings(directory: Path, output: str, **changes: Any) -> dict[str, Any]:
    """A GRPO configuration on what stands in `directory`: `warm`, a model that gives verdicts, and `make_data`'s files.

    `changes` are keys whose levels are joined by two underscores.
    """
    tree: dict[str, Any] = {
        "output": str(directory / output),
        "steps": 3,
        "model": {"path": str(directory / "warm"), "compute_dtype": "float32", "remat": "none"},
        "data": {"train": str(directory / "pairs.jsonl"), "eval": None},
        "judge": {"template": str(directory / "template.toml"), "max_prompt_tokens": 256, "thinking": False},
        "rollout": {"prompts_per_step": 4, "group_size": 4, "temperature": 0.7, "max_new_tokens": 6, "batch_size": 16},
        "grpo": {"mini_batch_prompts": 2, "kl_coef": 0.01},
        "supervised": {"batch_size": 8},
        "optimizer": {"learning_rate": 1e-2},
        "pack": {"row_tokens": 64, "micro_batch_tokens": 512},
        "checkpoint": {"every": 1, "keep": 5},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    return tree
