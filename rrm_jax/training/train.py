"""The one entry to training: the method is a setting."""

from pathlib import Path

from rrm_jax.checkpoints.run_files import CONFIG_YAML
from rrm_jax.checkpoints.store import complete_steps
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.run import Report


def train(config: TrainConfig, resume: bool = False, report: Report = print) -> Path:
    """Trains as configured; returns the run's directory. Raises RrmError for what can be known to be wrong."""
    if config.method == "supervised":
        from rrm_jax.training.supervised import train_supervised

        return train_supervised(config, resume, report)
    if config.method == "dpo":
        from rrm_jax.training.dpo import train_dpo

        return train_dpo(config, resume, report)
    from rrm_jax.training.grpo import train_grpo

    return train_grpo(config, resume, report)


def train_to_the_end(config: TrainConfig, report: Report = print) -> None:
    """Trains, or goes on with what an earlier call began; does nothing where that came to its last step.

    For jobs of which a run is one part: asked to stop, it is saved, and the whole job ends with a KeyboardInterrupt.
    """
    directory = Path(config.output)
    if reached(directory) >= config.steps:
        return
    train(config, (directory / CONFIG_YAML).exists(), report)
    if reached(directory) < config.steps:
        raise KeyboardInterrupt


def reached(directory: Path) -> int:
    """The last step of which a run has a checkpoint; 0 without one."""
    checkpoints = directory / "checkpoints"
    steps = complete_steps(checkpoints) if checkpoints.is_dir() else []
    return steps[-1] if steps else 0
