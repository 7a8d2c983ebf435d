"""What a run that goes on may have changed in its configuration, and the record of what it did change."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rrm_jax.checkpoints.assets import JUDGE_TEMPLATE, read_json
from rrm_jax.checkpoints.run_files import CONFIG_YAML, read_settings
from rrm_jax.data.whole_files import write_whole
from rrm_jax.errors import RrmError
from rrm_jax.judging.template import Template, load_template
from rrm_jax.provenance import fingerprint, provenance
from rrm_jax.training.config import JudgeConfig, TrainConfig
from rrm_jax.training.training_data import data_files

PROVENANCE = "run.json"
MAY_CHANGE = (
    # Where it runs and what it keeps, writes and looks at: every step stays the same, up to the order of sums.
    "output",
    "model.path",  # the fingerprint says whether it is the same model
    "judge.template",  # its content says whether it is the same
    "policy.judge.model",  # these two likewise, see policy_judge.py
    "policy.judge.template",
    "policy.judge.backend",
    "policy.judge.concurrency",
    "policy.judge.batch_size",
    "policy.judge.idle",
    "mesh.",
    "pack.",
    "rollout.batch_size",
    "rollout.mesh",
    "rollout.mesh.",
    "rollout.devices",
    "model.attention",
    "model.remat",
    "optimizer.offload",
    "grpo.offload_reference",
    "checkpoint.",
    "eval.every",
    "log.",
    "data.workers",
    "data.token_cache",
    # How far it goes. A decaying schedule then ends at another step, and is another one from here on.
    "steps",
    # What ends a run that explodes, or keeps it from that; the steps from here on are other ones.
    "optimizer.learning_rate",
    "optimizer.clip_norm",
    "optimizer.stop_norm",
)
"""Settings, or sections (with a dot at their end), that a resumed run may have changed."""


def check_resumed(directory: Path, config: TrainConfig) -> dict[str, list[Any]]:
    """The settings that differ from those of the run in `directory`: {"a.b": [before, now]}.

    Raises RrmError where one may not, and where a data file is not the one that the run began with, by its SHA-256;
    the same file may have moved.
    """
    before, now = flat(_completed(read_settings(directory))), flat(config.model_dump(mode="json"))
    changed = {key: [before.get(key), now.get(key)] for key in {**before, **now} if before.get(key) != now.get(key)}
    inputs, files = read_json(directory / PROVENANCE).get("inputs", {}), data_files(config)
    # Files may have moved; how many there are for what, and their shares, stay.
    moved = {"data.train": _shares, "data.eval": bool}
    same = {key for key, kept in moved.items() if kept(before.get(key)) == kept(now.get(key))}
    refused = [key for key in changed if key not in same and not _may_change(key)]
    if refused:
        lines = "".join(f"\n  {key} changed from {before.get(key)!r} to {now.get(key)!r}" for key in sorted(refused))
        raise RrmError(f"cannot resume {directory} with another configuration:{lines}")
    for name, path in files.items():
        if fingerprint(path) != inputs[name]["sha256"]:
            raise RrmError(
                f"cannot resume {directory} with other data: {path} is not the file that the run began with "
                f"({inputs[name]['path']}); put that back, or train anew with another output="
            )
    return changed


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of settings that the version which began the run did not have."""
    try:
        return TrainConfig.model_validate(settings).model_dump(mode="json")
    except ValidationError:
        return settings


def check_same_template(directory: Path, template: Template, judge: JudgeConfig) -> None:
    """RrmError where the judge's prompt is not the one that the run in `directory` began with."""
    own = directory / "assets" / JUDGE_TEMPLATE
    if not own.is_file():
        return
    began, thinking = load_template(own), judge.thinking
    if (began.sha256, began.prefix(thinking)) != (template.sha256, template.prefix(thinking)):
        raise RrmError(
            f"cannot resume {directory} with another prompt: judge.template={judge.template} is not what it began "
            f"with; give judge.template={own}, or train anew with another output="
        )


def record_resumed(directory: Path, config: TrainConfig, step: int, changed: dict[str, list[Any]]) -> None:
    """Adds to run.json after which step the run went on, how and with what, and puts config.yaml up to date."""
    facts = provenance(changed, config.seed, {})
    entry = {"after_step": step, "changed": facts.pop("config")} | {
        name: facts[name] for name in ("command", "versions", "git_revision", "devices", "processes")
    }
    made = read_json(directory / PROVENANCE)
    made["resumed"] = [*made.get("resumed", []), entry]
    write_whole(directory / PROVENANCE, json.dumps(made, indent=2, default=str) + "\n")
    if changed:
        write_settings(directory, config)


def write_settings(directory: Path, config: TrainConfig) -> None:
    """RUN/config.yaml, whole or not at all."""
    write_whole(directory / CONFIG_YAML, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _shares(train: Any) -> Any:
    return [part["weight"] for part in train] if isinstance(train, list) else None


def _may_change(key: str) -> bool:
    return any(key.startswith(allowed) if allowed.endswith(".") else key == allowed for allowed in MAY_CHANGE)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
