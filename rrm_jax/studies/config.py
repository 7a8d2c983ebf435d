"""What `rrm study` can be told: one YAML file a study; see `configs/studies/`."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from rrm_jax.config import Config, flat, load_config

Narrow = Literal["auto", "int8", "float8_e4m3fn"]


class JudgeConfig(Config):
    """A judge: its model, where it runs, and how it is asked. Names and defaults are those of `rrm judge`'s options."""

    model: str
    """A Hugging Face directory, a converted checkpoint, or a training run."""
    template: str | None = None
    """A packaged name or a file; without it, what the model was trained with here, or the packaged default."""
    thinking: bool | None = None
    """False: the verdict at once. Without it, as the model was trained here, else true."""
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1)
    max_prompt_tokens: int = Field(4096, ge=1)
    constrain_verdict: bool = False
    batch_size: int = Field(32, ge=1)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    cache_dtype: Narrow = "auto"
    weight_dtype: Narrow = "auto"
    prompt_lookup: int = Field(0, ge=0)
    mesh: str = "data=1,fsdp=-1,tensor=1"
    backend: str | None = None
    """The address of an OpenAI-compatible server that writes instead of this machine."""
    backend_model: str | None = None
    backend_api: Literal["completions", "chat"] = "completions"
    concurrency: int = Field(64, ge=1)
    api_key_env: str | None = None


class StudyConfig(Config):
    """Of every study."""

    output: str
    """Directory for data.json, table.md, figure.png and run.json."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Of sampling, of all that is shuffled, and of the bootstrap."""
    resamples: int = Field(2000, ge=100)
    """Of the bootstrap, for each 95 % interval."""

    def files(self) -> dict[str, str]:
        """The files that the study reads, by the names that they have in its provenance."""
        return {}


class JudgingConfig(StudyConfig):
    """Of studies that judge."""

    judges: dict[str, JudgeConfig] = Field(min_length=1)
    """By the names that tables and figures show."""
    verdicts: str | None = None
    """The store that keeps all votes, which any studies and jobs may share; OUTPUT/votes.jsonl without it."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many rows of the data."""


class BenchmarkConfig(Config):
    """A benchmark, and how its items are judged."""

    benchmark: str | None = None
    """As `rrm eval` names it; without it, the name that it stands under."""
    data: str
    """A snapshot in the published layout, as `rrm eval --data` takes it. What is not there is left out, and told of."""
    split: str | None = None
    groups: tuple[str, ...] = ()
    """Only these subsets."""
    votes: int = Field(1, ge=1)
    """A comparison's."""
    order: Literal["random", "given", "both"] | None = None
    """Which response is shown first; as published without it."""
    strategy: str = "knockout"
    """Of best-of-N, as `rrm rank` takes it; the votes of a comparison are `votes`."""


class BenchmarksConfig(JudgingConfig):
    """The studies "benchmarks" and "transfer": published benchmarks, by every judge."""

    title: str = "How good is the judge?"
    benchmarks: dict[str, BenchmarkConfig] = Field(min_length=1)
    """By the names that are shown: those of `rrm eval --list`, or any with `benchmark`."""
    baseline: str | None = None
    """The judge that every other is tested against."""

    @model_validator(mode="after")
    def _has_baseline(self):
        if self.baseline is not None and self.baseline not in self.judges:
            raise ValueError(f"baseline {self.baseline!r} is not one of the judges {', '.join(self.judges)}")
        return self

    def files(self) -> dict[str, str]:
        """Every file below each benchmark's path, as BENCHMARK.PATH; none where that is not here."""
        found: dict[str, str] = {}
        for name, one in self.benchmarks.items():
            path = Path(one.data)
            below = sorted(path.rglob("*")) if path.is_dir() else [path]
            found |= {f"{name}.{file.relative_to(path)}": str(file) for file in below if file.is_file()}
        return found


class ReasoningConfig(JudgingConfig):
    """The studies "reasoning" and "base-models": judges on the same pairs, each against the baseline."""

    title: str = "Does thinking help?"
    pairs: str
    """JSONL {id, query, response_1, response_2, label}; each is judged in both orders."""
    votes: int = Field(1, ge=1)
    """Samples in each order."""
    baseline: str
    """The judge that every other is tested against."""

    @model_validator(mode="after")
    def _compares(self):
        if self.baseline not in self.judges:
            raise ValueError(f"baseline {self.baseline!r} is not one of the judges {', '.join(self.judges)}")
        if len(self.judges) < 2:
            raise ValueError("a comparison needs two judges at least")
        return self

    def files(self) -> dict[str, str]:
        """As `StudyConfig` has it."""
        return {"pairs": self.pairs}


class ScalingConfig(JudgingConfig):
    """The study "test-time-compute": more votes a pair, and more comparisons a query."""

    pairs: str
    """JSONL pairs with labels, for voting."""
    candidates: str
    """JSONL {id, query, responses, correct}, for tournaments."""
    votes: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of votes. Every pair gets the largest; fewer are drawn from these in all ways."""
    strategies: tuple[str, ...] = (
        "knockout", "knockout:votes=3", "knockout:votes=5", "random:opponents=1", "random:opponents=2",
        "random:opponents=4", "swiss:rounds=3", "swiss", "adaptive", "round-robin",
    )  # fmt: skip
    """As `rrm replay` takes them."""
    reference: str = "round-robin"
    """The strategy that every other is tested against, on the same queries."""

    @model_validator(mode="after")
    def _counts(self):
        if not self.votes or min(self.votes) < 1:
            raise ValueError("votes must name numbers of 1 at least")
        if self.reference not in self.strategies:
            raise ValueError(f"reference {self.reference!r} is not one of the strategies {', '.join(self.strategies)}")
        return self

    def files(self) -> dict[str, str]:
        """As `StudyConfig` has it."""
        return {"pairs": self.pairs, "candidates": self.candidates}


class ThinkingBudgetConfig(JudgingConfig):
    """The study "thinking-budget": verdicts that are forced after so many tokens."""

    pairs: str
    """JSONL pairs with labels; each is judged in both orders."""
    votes: int = Field(1, ge=1)
    """Samples in each order."""
    budgets: tuple[int, ...]
    """Tokens of thinking after which the verdict is forced."""
    unbounded: bool = True
    """Judge without a budget, too."""

    @model_validator(mode="after")
    def _bounds(self):
        if not self.budgets or min(self.budgets) < 1 or len(set(self.budgets)) < len(self.budgets):
            raise ValueError("budgets must be different numbers of 1 at least")
        return self

    def files(self) -> dict[str, str]:
        """As `StudyConfig` has it."""
        return {"pairs": self.pairs}


# Not "first" and "second", which are what judges call the responses.
WORDS: dict[str, tuple[str, ...]] = {
    "transition": ("wait", "alternatively", "on the other hand", "then again", "hold on", "another thought"),
    "reflection": (
        "let me check", "let me verify", "double-check", "re-read", "reconsider", "am i sure", "make sure", "i missed",
        "mistake in my",
    ),
    "comparison": (
        "compared to", "compared with", "whereas", "better than", "worse than", "both assistants", "both responses",
        "unlike", "in contrast", "more accurate", "more helpful",
    ),
    "breakdown": (
        "first of all", "firstly", "secondly", "next,", "finally", "step by step", "let me start", "break this down",
        "break it down", "one by one",
    ),
}  # fmt: skip


class SourceConfig(Config):
    """A file of traces, and which of them are meant."""

    path: str
    """Judged rows (`rrm judge`), a verdict store (OUT.votes.jsonl), or a training run's traces.jsonl."""
    model: str | None = None
    """Of a verdict store, only the votes of this model, whose weights must be here."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Of a verdict store, only the votes whose settings have these values, such as {thinking: true}; see `rrm verdicts
    show`."""


class PatternsConfig(StudyConfig):
    """The study "patterns": what traces say, and how different they are."""

    traces: dict[str, SourceConfig] = Field(min_length=1)
    """By the names that are shown."""
    words: dict[str, tuple[str, ...]] = WORDS
    """Words and phrases of each category, in any case, matched whole. The lists are ours, not the paper's."""
    unit: Literal["word", "character"] = "word"
    """Diversity: traces are vectors of the counts of so many words, or characters, in a row."""
    ngram: int = Field(2, ge=1)
    cluster_distance: float = Field(0.3, gt=0, le=2)
    """A trace joins the first cluster whose first trace is within this cosine distance, else it begins one."""
    most: int = Field(1000, ge=2)
    """Traces of each source that diversity is of, drawn by the seed; keywords are of all."""

    @model_validator(mode="after")
    def _categories(self):
        for name, words in self.words.items():
            if not words or not all(word.strip() for word in words):
                raise ValueError(f"words.{name} must list words that are not empty")
        return self

    def files(self) -> dict[str, str]:
        """As `StudyConfig` has it."""
        return {f"traces.{name}": source.path for name, source in self.traces.items()}


class GamesConfig(Config):
    """A log of games, and which of them are meant."""

    path: str
    """A games log of `rrm rank` (OUT.games.jsonl), or games.jsonl of the study of test-time compute."""
    judge: str | None = None
    """Of a study's log, only this judge's games."""
    strategy: str | None = None
    """Of a study's log, only this strategy's games."""


class IntransitivityConfig(StudyConfig):
    """The study "intransitivity": cycles in recorded games. Nothing is judged."""

    games: dict[str, GamesConfig] = Field(min_length=1)
    """By the names that are shown. A round robin's say most: every pair has met."""
    candidates: str | None = None
    """JSONL {id, query, responses, correct} of the games' queries, to see what cycles cost in right picks."""

    def files(self) -> dict[str, str]:
        """As `StudyConfig` has it."""
        games = {f"games.{name}": source.path for name, source in self.games.items()}
        return games | ({} if self.candidates is None else {"candidates": self.candidates})


class DynamicsConfig(StudyConfig):
    """The study "dynamics": the curves of training runs. Nothing is judged."""

    runs: dict[str, str] = Field(min_length=1)
    """Directories of `rrm train`, by the names that are shown."""

    def files(self) -> dict[str, str]:
        """The runs' metrics.jsonl."""
        return {f"runs.{name}": f"{run}/metrics.jsonl" for name, run in self.runs.items()}


class TrainingRunConfig(Config):
    """A run of `rrm train`: a configuration of it, and what is changed in that."""

    config: str
    """A YAML file, or the name of one that comes with the package."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What to change, nested as in the file. Once it is read, all of the run's settings."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        from rrm_jax.training.config import TrainConfig

        if not isinstance(given, dict) or not isinstance(given.get("config"), str):
            return given
        changes = given.get("settings") or {}
        resolved = load_config(TrainConfig, given["config"], [f"{key}={json.dumps(x)}" for key, x in flat(changes)])
        return given | {"settings": resolved.model_dump(mode="json")}


class PosttrainPairsConfig(Config):
    """Pairs of a policy's own responses, which are made before its runs begin."""

    questions: str
    """JSONL {id, query, answer}."""
    limit: int | None = Field(None, ge=1)
    policy: str
    """The model that responds, asked as the first of the runs says."""
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)
    judge: JudgeConfig


class PosttrainConfig(StudyConfig):
    """Runs of policies, side by side."""

    title: str
    train: bool = True
    """Train runs that are not finished, or go on with them, in the order in which they stand; False: an error."""
    before: dict[str, TrainingRunConfig] = Field(default_factory=dict)
    """Runs that the others begin from."""
    pairs: PosttrainPairsConfig | None = None
    """Pairs to make then, OUTPUT/pairs.{judge,verifier,coin}.jsonl; None: the runs' data are there."""
    runs: dict[str, TrainingRunConfig] = Field(min_length=1)
    """By the names that are shown."""
    gains: tuple[str, ...] = ()
    """Of these runs it is claimed that held-out answers get better."""
    no_gains: tuple[str, ...] = ()
    """Of these, that they do not."""

    @model_validator(mode="after")
    def _named(self):
        for name in (*self.gains, *self.no_gains):
            if name not in self.runs:
                raise ValueError(f"{name!r} is not one of the runs {', '.join(self.runs)}")
        return self


class CostConfig(JudgingConfig):
    """The study "cost": every strategy with every number of votes and every budget."""

    candidates: str
    """JSONL {id, query, responses, correct}, for tournaments."""
    strategies: tuple[str, ...] = ("knockout", "swiss", "adaptive", "round-robin")
    """As `rrm replay` takes them, without votes."""
    votes: tuple[int, ...] = (1, 3, 5)
    """Votes a comparison, each with every strategy."""
    budgets: tuple[int | None, ...] = (None,)
    """Tokens of thinking after which the verdict is forced, each with every strategy and votes; null: unbounded."""

    @model_validator(mode="after")
    def _grid(self):
        if not (self.strategies and self.votes and self.budgets) or min(self.votes) < 1:
            raise ValueError("strategies, votes (1 at least) and budgets must each name one at least")
        if any(budget is not None and budget < 1 for budget in self.budgets):
            raise ValueError("budgets must be 1 token at least, or null")
        if any("votes=" in text for text in self.strategies):
            raise ValueError("the votes of a comparison are `votes` here, not part of a strategy")
        return self

    def files(self) -> dict[str, str]:
        """As `StudyConfig` has it."""
        return {"candidates": self.candidates}


class CalibrationConfig(JudgingConfig):
    """The study "calibration": how sure a judge is against how often it is right."""

    pairs: str
    """JSONL pairs with labels."""
    votes: int = Field(16, ge=1)
    """Votes a pair, each in a random order; its share for a response is how sure the judge is."""
    bins: int = Field(10, ge=2)
    """Of the shares from ½ to 1."""

    @model_validator(mode="after")
    def _knows(self):
        if self.votes == 1 and not all(judge.constrain_verdict for judge in self.judges.values()):
            raise ValueError("one vote has no share: give more votes, or every judge constrain_verdict")
        return self

    def files(self) -> dict[str, str]:
        """As `StudyConfig` has it."""
        return {"pairs": self.pairs}
