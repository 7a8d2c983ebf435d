"""What `rrm train` can be told. One YAML file; see `configs/`."""

from typing import Literal

from pydantic import Field, model_validator

from rrm_jax.config import Config

DType = Literal["float32", "bfloat16"]


class MeshConfig(Config):
    """Devices on each mesh axis; one may be -1: all that remain."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


class ModelConfig(Config):
    path: str
    """A Hugging Face directory, a converted checkpoint, or a training run."""
    compute_dtype: DType = "bfloat16"
    """Activations and matmuls. Master weights and optimiser state are always float32."""
    attention: str = "auto"
    """auto, xla, cudnn or splash."""
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes."""


class DataConfig(Config):
    train: str
    """JSONL. For grpo: {id, query, response_1, response_2, label}. For supervised: also completion."""
    eval: str | None = None
    """Held-out JSONL pairs, judged in both orders."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many training rows."""
    eval_limit: int | None = Field(None, ge=1)


class JudgeConfig(Config):
    template: str = "default"
    """A packaged template's name or a file."""
    thinking: bool = True
    """False trains a DirectJudge: the verdict with no thinking."""
    max_prompt_tokens: int = Field(4096, ge=1)


class RolloutConfig(Config):
    prompts_per_step: int = Field(128, ge=1)
    group_size: int = Field(16, ge=2)
    temperature: float = Field(0.6, gt=0)
    max_new_tokens: int = Field(8192, ge=1)
    batch_size: int = Field(64, ge=1)
    """Rows that are sampled at a time."""


class GRPOConfig(Config):
    mini_batch_prompts: int = Field(64, ge=1)
    """Prompts (groups) an optimiser step."""
    epochs: int = Field(1, ge=1)
    """Passes over each step's rollouts (μ)."""
    clip_eps: float = Field(0.2, gt=0, lt=1)
    kl_coef: float = Field(1e-3, ge=0)
    """β of the k3 penalty; 0 keeps no reference model."""


class SupervisedConfig(Config):
    batch_size: int = Field(64, ge=1)
    """Rows an optimiser step."""


class OptimizerConfig(Config):
    """AdamW."""

    learning_rate: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    """Counted in optimiser steps, as the decay is."""
    weight_decay: float = Field(0.0, ge=0)
    b1: float = Field(0.9, ge=0, lt=1)
    b2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    clip_norm: float = Field(1.0, gt=0)


class CheckpointConfig(Config):
    every: int = Field(20, ge=1)
    keep: int = Field(3, ge=1)


class EvalConfig(Config):
    every: int = Field(20, ge=1)
    """Also once before the first step, and after the last."""
    temperature: float = Field(0.6, ge=0)


class TrainConfig(Config):
    method: Literal["grpo", "supervised"] = "grpo"
    output: str
    """The run's directory; must not exist, or be resumed."""
    seed: int = Field(0, ge=0)
    steps: int = Field(ge=1)
    model: ModelConfig
    mesh: MeshConfig = MeshConfig()
    data: DataConfig
    judge: JudgeConfig = JudgeConfig()
    rollout: RolloutConfig = RolloutConfig()
    grpo: GRPOConfig = GRPOConfig()
    supervised: SupervisedConfig = SupervisedConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    micro_batch_rows: int = Field(16, ge=1)
    """Rows of one forward and backward pass, over all devices; gradients are accumulated exactly."""
    length_bucket: int = Field(64, ge=1)
    """Sequences are padded to a multiple of this many tokens: fewer shapes, fewer compilations."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _check(self):
        if self.method == "grpo" and self.rollout.prompts_per_step % self.grpo.mini_batch_prompts:
            raise ValueError(
                f"rollout.prompts_per_step {self.rollout.prompts_per_step} is not a multiple of "
                f"grpo.mini_batch_prompts {self.grpo.mini_batch_prompts}"
            )
        return self

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps in one training step."""
        if self.method == "supervised":
            return 1
        return self.grpo.epochs * self.rollout.prompts_per_step // self.grpo.mini_batch_prompts
