"""What `rrm train` can be told. One YAML file; see `configs/`."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rrm_jax.config import Config
from rrm_jax.training.policy_config import DPOConfig, PolicyConfig

DType = Literal["float32", "bfloat16"]


class MeshConfig(Config):
    """Devices on each mesh axis; one may be -1: all that remain."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


class LoraConfig(Config):
    """Low-rank adapters (2106.09685) on every matrix of every layer; the rest of the model is frozen."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    """An adapter is scaled by alpha / rank."""


class ModelConfig(Config):
    """What is trained, and in what precision."""

    path: str
    """A Hugging Face directory, a converted checkpoint, or a training run."""
    compute_dtype: DType = "bfloat16"
    """Activations, matmuls, and the copy of the parameters that they read. Master weights are always float32."""
    attention: str = "auto"
    """auto, xla, cudnn or splash."""
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes."""
    lora: LoraConfig | None = None
    """Train adapters instead of the model; without it every parameter is trained."""


class PartConfig(Config):
    """One source of training data of several."""

    path: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """How often a pair of this part is drawn, relative to the others."""


class DataConfig(Config):
    """What is trained on, and what is held out."""

    train: str | tuple[PartConfig, ...]
    """For grpo: JSONL {id, query, response_1, response_2, label}, a prepared data set's directory, or a mix of such by
    weight: [{path, weight}, …]; with `task: policy` questions, {id, query}, and answer where it is known. For dpo: such
    pairs. For supervised: JSONL of pairs, or queries, that also has completion."""
    eval: str | None = None
    """Held out, JSONL or a prepared data set's directory: pairs, judged in both orders, or, with `task: policy`,
    questions with answers."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many training rows (of each part)."""
    eval_limit: int | None = Field(None, ge=1)
    workers: int = Field(0, ge=0)
    """Processes that tokenise the next prompts meanwhile; 0: when they are needed. The prompts are the same."""
    token_cache: str | None = None
    """Directory that keeps every training pair's token ids (`rrm data tokenize`); made at the start where it is not."""

    @property
    def parts(self) -> tuple[PartConfig, ...]:
        """`train` as a mix, also where it is one path."""
        return (PartConfig(path=self.train),) if isinstance(self.train, str) else self.train


class JudgeConfig(Config):
    """How pairs are shown. Template and thinking go with the run's checkpoints: `rrm judge` asks in the same way."""

    template: str = "default"
    """A packaged template's name or a file."""
    thinking: bool = True
    """False trains a DirectJudge: the verdict with no thinking."""
    max_prompt_tokens: int = Field(4096, ge=1)


class RolloutConfig(Config):
    """How experience is drawn, and on which devices."""

    prompts_per_step: int = Field(128, ge=1)
    group_size: int = Field(16, ge=2)
    temperature: float = Field(0.6, gt=0)
    max_new_tokens: int = Field(8192, ge=1)
    batch_size: int = Field(64, ge=1)
    """Rows that are sampled at a time."""
    asynchronous: bool = False
    """Sample a step's rollouts while the step before is learnt from, with weights one step old. In one process, on one
    device or with `devices` of its own."""
    mesh: MeshConfig | None = None
    """How sampling lays out its devices; None: as training does, or, with `devices` of its own, all on fsdp. Sampling
    splits its rows over data × fsdp, and weights over tensor alone."""
    devices: int = Field(0, ge=0)
    """So many devices only sample, as many of each process; the others train, and the run's own `mesh` is over those.
    0: all do both."""


class RewardConfig(Config):
    """+1 for a right verdict, −1 for a wrong or an invalid one (docs/method.md), and what is added to that."""

    consistency: float = Field(0.0, ge=0, le=1)
    """Weight of +1 where a pair is judged rightly in both orders, −1 otherwise, against the verdict's own reward (J1,
    2505.10320, has 1). Above 0 every pair is shown in both orders in the same step."""
    invalid: float = Field(0.0, ge=0)
    """Taken off where there is no valid verdict."""
    length: float = Field(0.0, ge=0)
    """Taken off a completion of `rollout.max_new_tokens`, and in proportion off shorter ones."""
    overlong_tokens: int = Field(0, ge=0)
    """Up to 1 is taken off, in proportion, over the last so many tokens before the limit (DAPO, 2503.14476, eq. 13)."""


class GRPOConfig(Config):
    """`variant` sets what its paper changes; what is given beside it counts. See `VARIANTS`."""

    variant: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    mini_batch_prompts: int = Field(64, ge=1)
    """Prompts (groups) an optimiser step."""
    epochs: int = Field(1, ge=1)
    """Passes over each step's rollouts (μ)."""
    normalise_std: bool = True
    """Divide advantages by the group's standard deviation."""
    aggregation: Literal["sequence", "token", "constant"] = "sequence"
    """The mean over a response's tokens, then over responses; over all tokens alike; or the sum over a response's
    tokens divided by `rollout.max_new_tokens`, then the mean over responses."""
    ratio: Literal["token", "sequence"] = "token"
    """Of single tokens, or the geometric mean over the response."""
    surrogate: str = "clip"
    """What the loss makes of ratio and advantage, one of `SURROGATES`: "clip" is GRPO's; "cispo" clips a token's
    weight and keeps its gradient (2506.13585)."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.2, gt=0)
    """The ratio is clipped to 1 − clip_low … 1 + clip_high."""
    kl_coef: float = Field(1e-3, ge=0)
    """β; 0 keeps no reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    importance_cap: float | None = Field(None, gt=0)
    """Weigh tokens by π_trainer / π_sampler of the sampling policy, this at most; None: by 1."""
    dynamic_sampling: bool = False
    """Replace groups whose answers earned the same, before what `reward` adds or takes off, by new prompts until there
    are `prompts_per_step` others."""
    dynamic_draws: int = Field(8, ge=1)
    """Draws a step at most; what is missing then is filled with groups of equal rewards, and counted."""
    offload_reference: bool = False
    """Keep the reference model in host memory while it is not in use."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: Any) -> Any:
        variant = given.get("variant") if isinstance(given, dict) else None
        return VARIANTS.get(variant, {}) | given if isinstance(variant, str) else given

    @field_validator("surrogate")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SURROGATES:
            raise ValueError(f"there are {', '.join(SURROGATES)}")
        return name

    @model_validator(mode="after")
    def _check(self):
        if self.kl_in == "loss" and self.kl_estimator == "k1" and self.kl_coef:
            raise ValueError(
                "kl_estimator k1 cannot be in the loss: its expected gradient there is zero, so that it holds nothing; "
                "use k2 or k3, or kl_in: reward"
            )
        return self


VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},  # 2402.03300
    "dr_grpo": {"normalise_std": False, "aggregation": "constant"},  # 2503.20783, §3.2
    # 2503.14476; its over-long penalty is `reward.overlong_tokens`.
    "dapo": {"clip_high": 0.28, "aggregation": "token", "dynamic_sampling": True, "kl_coef": 0.0},
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},  # 2507.18071, §5.1
}


SURROGATES = {
    "clip": "rrm_jax.rl.surrogates:clipped_ratio",
    "cispo": "rrm_jax.rl.surrogates:clipped_weight",
}


class SupervisedConfig(Config):
    """Of `method: supervised`."""

    batch_size: int = Field(64, ge=1)
    """Rows an optimiser step."""


class OptimizerConfig(Config):
    """Of AdamW as Optax has it, or Adafactor."""

    kind: Literal["adamw", "adafactor"] = "adamw"
    """adafactor keeps one number for a row and one for a column of a matrix, and no first moment."""
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    """How adamw keeps its two moments: 8, 4 or 2 bytes a parameter."""
    offload: bool = False
    """Keep the optimiser state in host memory while it is not in use."""
    learning_rate: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Of the learning rate, after the warm-up; cosine and linear end at 0 after the last step."""
    warmup_steps: int = Field(0, ge=0)
    """Counted in optimiser steps, as the decay is."""
    weight_decay: float = Field(0.0, ge=0)
    b1: float = Field(0.9, ge=0, lt=1)
    b2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    clip_norm: float = Field(1.0, gt=0)
    stop_norm: float = Field(1e4, gt=0)
    """A gradient of a larger norm, or one that is not finite, ends the run before it is applied."""

    @model_validator(mode="after")
    def _check(self):
        if self.kind == "adafactor" and self.moments != "float32":
            raise ValueError(f"moments: {self.moments} is of adamw; adafactor's are float32")
        return self


class PackConfig(Config):
    """How completions become arrays: several to a row, with segments and positions of their own."""

    row_tokens: int = Field(4096, ge=1)
    """Tokens of a row; a longer sequence makes a longer row, whose length is one of a few."""
    micro_batch_tokens: int = Field(32_768, ge=1)
    """Tokens of one forward and backward pass, padding included, over all devices; a row a device at least.
    Gradients are accumulated exactly, whatever the split."""


class CheckpointConfig(Config):
    """Steps between checkpoints, and which of these stay."""

    every: int = Field(20, ge=1)
    keep: int = Field(3, ge=1)
    """The last so many stay."""
    best: str | None = "accuracy"
    """The checkpoint with the largest value of this held-out metric stays as well; None: no other does."""


class EvalConfig(Config):
    """Steps between evaluations on the held-out data, and how these are sampled."""

    every: int = Field(20, ge=1)
    """Also once before the first step, and after the last."""
    temperature: float = Field(0.6, ge=0)


class LogConfig(Config):
    """What is written down beside the metrics."""

    traces: int = Field(4, ge=0)
    """Completions a step that are written to `traces.jsonl`, to be read."""
    profile: tuple[int, int] | None = None
    """The first and the last step that are traced, to RUN/profile."""
    wandb: str | None = None
    """A project of Weights & Biases that metrics are sent to as well (needs the package wandb)."""

    @model_validator(mode="after")
    def _check(self):
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise ValueError(f"profile must name a first step, 1 at least, and a last one, not {list(self.profile)}")
        return self


class TrainConfig(Config):
    """A run. Fields of methods and tasks that it is not of are passed over; what cannot go together is an error."""

    task: Literal["judge", "policy"] = "judge"
    """What the model is to do: judge pairs, or answer queries."""
    method: Literal["grpo", "supervised", "dpo"] = "grpo"
    output: str
    """The run's directory; must not exist, or be resumed."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    steps: int = Field(ge=1)
    model: ModelConfig
    mesh: MeshConfig = MeshConfig()
    data: DataConfig
    judge: JudgeConfig = JudgeConfig()
    policy: PolicyConfig = PolicyConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    grpo: GRPOConfig = GRPOConfig()
    supervised: SupervisedConfig = SupervisedConfig()
    dpo: DPOConfig = DPOConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    pack: PackConfig = PackConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _check(self):
        rollout, grpo, reward = self.rollout, self.grpo, self.reward
        if self.task == "policy":
            self._check_policy()
        elif self.method == "dpo":
            raise ValueError("method: dpo trains a model that answers queries; set task: policy")
        if self.method != "grpo":
            return self
        if rollout.prompts_per_step % grpo.mini_batch_prompts:
            raise ValueError(
                f"rollout.prompts_per_step {rollout.prompts_per_step} is not a multiple of "
                f"grpo.mini_batch_prompts {grpo.mini_batch_prompts}"
            )
        if reward.consistency and rollout.prompts_per_step % 2:
            raise ValueError(
                f"reward.consistency shows every pair in both orders, and rollout.prompts_per_step "
                f"{rollout.prompts_per_step} is odd"
            )
        if rollout.asynchronous and grpo.importance_cap is None:
            raise ValueError("rollout.asynchronous samples from older weights: set grpo.importance_cap, 2 for example")
        if reward.overlong_tokens >= rollout.max_new_tokens:
            raise ValueError(
                f"reward.overlong_tokens {reward.overlong_tokens} is not below rollout.max_new_tokens "
                f"{rollout.max_new_tokens}"
            )
        return self

    def _check_policy(self) -> None:
        policy = self.policy
        if self.method != "grpo":
            return
        if policy.reward in ("tournament", "mixed") and policy.judge is None:
            raise ValueError(f"policy.reward: {policy.reward} needs a judge: set policy.judge.model")
        if self.reward.consistency:
            raise ValueError("reward.consistency is of a judge in training; policy.judge.order: both is its like here")

    @property
    def max_prompt_tokens(self) -> int:
        """Of the task's prompts."""
        return self.policy.max_prompt_tokens if self.task == "policy" else self.judge.max_prompt_tokens

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps in one training step."""
        if self.method != "grpo":
            return 1
        return self.grpo.epochs * self.rollout.prompts_per_step // self.grpo.mini_batch_prompts
