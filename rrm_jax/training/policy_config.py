"""What a run that trains a policy can be told: part of `config.TrainConfig`."""

from typing import Literal

from pydantic import Field, model_validator

from rrm_jax.config import Config


class TournamentJudgeConfig(Config):
    """The judge whose verdicts reward a policy, and how it is asked.

    It runs where the policy's rollouts are drawn, in turn with them: on the training devices, or, with
    `rollout.devices`, on those that train nothing; or at a server, with `backend`.
    """

    model: str
    """A Hugging Face directory, a converted checkpoint, or a training run. With `backend` its tokenizer is enough."""
    template: str | None = None
    """A packaged name or a file; without it, what the model was trained with here, or the packaged default."""
    thinking: bool | None = None
    """False: the verdict at once. Without it, as the model was trained here, else true."""
    votes: int = Field(1, ge=1)
    """A comparison's."""
    order: Literal["random", "both"] = "random"
    """Which response is shown first; both: every vote is asked for in both orders."""
    temperature: float = Field(0.6, ge=0)
    max_new_tokens: int = Field(8192, ge=1)
    max_prompt_tokens: int = Field(4096, ge=1)
    batch_size: int = Field(64, ge=1)
    """Rows that are sampled at a time."""
    idle: Literal["sharded", "host", "ready"] = "sharded"
    """Where its weights wait while it is not its turn: split over the devices, in host memory, or as sampling reads
    them, whole over fsdp, so that nothing is moved."""
    backend: str | None = None
    """The address of an OpenAI-compatible server that judges instead of this machine's devices."""
    backend_model: str | None = None
    """The model's name there."""
    backend_api: Literal["completions", "chat"] = "completions"
    concurrency: int = Field(64, ge=1)
    """Requests open at the server at a time."""


class PolicyConfig(Config):
    """Of `task: policy`: how queries are put to the model, and what its responses earn (docs/posttraining.md)."""

    system: str = ""
    """The system turn; none where it is empty."""
    user: str = "{query}"
    """The user turn, which holds {query} once."""
    prefix: str = "<think>\n"
    """How the model's turn begins; control tokens are parsed in it."""
    thinking: bool = True
    """A response is what follows `</think>`, and what never gets there has no answer. False: it is all that comes."""
    max_prompt_tokens: int = Field(2048, ge=1)
    """The end of a longer query is cut off."""
    reward: Literal["tournament", "verifier", "mixed", "coin"] = "tournament"
    """tournament: a group's responses meet, and the judge decides; no answer is looked at. verifier: 1 where the final
    answer is right, else 0. mixed: the verifier where a row has an answer, the tournament elsewhere. coin: a tournament
    decided by a fair coin, to compare with."""
    strategy: str = "random:opponents=4"
    """Who meets whom, as `rrm rank` takes it."""
    rating: str | None = None
    """What is made of the games, as `rrm rank` takes it; the strategy's own where it is not given."""
    verifier: str = "auto"
    """Of rows that name none; see `rrm data verify --help`."""
    judge: TournamentJudgeConfig | None = None
    """Whose verdicts decide tournaments."""

    @model_validator(mode="after")
    def _check(self):
        if self.user.count("{query}") != 1:
            raise ValueError(f"policy.user must hold {{query}} once, not {self.user.count('{query}')} times")
        return self


class DPOConfig(Config):
    """Direct preference optimisation (2305.18290) on labelled pairs."""

    batch_size: int = Field(64, ge=1)
    """Pairs an optimiser step."""
    beta: float = Field(0.1, gt=0)
    reference_free: bool = False
    """Leave the reference model out: the margin is that of the policy's own log-probabilities."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The probability that a label is wrong (conservative DPO)."""
    length_normalised: bool = False
    """Use means over a response's tokens in place of sums."""
    offload_reference: bool = False
    """Keep the reference model in host memory while it is not in use."""
