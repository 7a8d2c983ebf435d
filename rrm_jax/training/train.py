"""The one entry to training: the method is a setting."""

from pathlib import Path

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
